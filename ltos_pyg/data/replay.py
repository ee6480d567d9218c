"""Replay of ragged graph transitions: nodes and edges may differ per graph and per step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch

from ltos_pyg.data.replay_input import (
    NO_BYTES,
    as_bytes,
    check_fixed_nodes,
    check_memory,
    check_values,
    read_batch,
    read_played,
    read_status,
)
from ltos_pyg.data.ring_kernels import (
    ACTED_OLDEST,
    EDGE,
    FRAME,
    FRAMES,
    NODE,
    OLDEST,
    OPEN,
    RUNNING,
    Array,
    Parts,
    Rings,
    commit_step,
    continues,
    copy_rows,
    cut_streams,
    late_frames,
    plan_walks,
    read_frames,
    read_returns,
    table_size,
)
from ltos_pyg.data.snapshot import batch_snapshots
from ltos_pyg.data.transition import Transition
from ltos_pyg.nn.functional import Sharing

if TYPE_CHECKING:
    from ltos_pyg.graph_env import GraphEnvSpec, GraphStep

STATE_VERSION = 1
NOTHING = torch.empty(0, dtype=torch.uint8)


def least_capacity(spec: GraphEnvSpec) -> int:
    """The fewest frames that a replay may keep: the graphs acted on, their ends and the graphs that follow."""
    return 3 * spec.num_envs


class GraphReplay:
    r"""Keeps the newest ``capacity`` frames of ``spec.num_envs`` parallel streams of graphs; samples transitions.

    Args:
        spec: What the environment promises; it sets the dtypes of the storage (int8 features stay int8).
        capacity: Frames kept; a frame is one graph at one step, and the end of an episode takes one more.
        share: Whether sharing weights are stored.
        max_nodes: Node rows over all frames. Default ``capacity * spec.max_nodes``: every frame fits, whatever its
            size. Choose fewer if graphs are on average far smaller than the bound; old frames are then overwritten
            earlier.
        max_edges: Edge rows over all frames, likewise.
        seed: Seed of the replay's own generator, the default of :meth:`sample`.

    :meth:`push` stores one step of a batched environment. Stream b of one push continues as stream b of the next, so
    call :meth:`start_stream` if the environment was reset in between.

    Memory is bounded: :attr:`nbytes` is allocated on construction and does not grow.

    Raises:
        ValueError: If a bound is too small, or the memory asked for is more than the machine has free.
    """

    def __init__(
        self,
        spec: GraphEnvSpec,
        capacity: int,
        *,
        share: bool = True,
        max_nodes: int | None = None,
        max_edges: int | None = None,
        seed: int = 0,
    ) -> None:
        self.spec = spec
        self.capacity = capacity
        self.share = share
        self.max_nodes = capacity * spec.max_nodes if max_nodes is None else max_nodes
        self.max_edges = capacity * max(spec.max_edges, 1) if max_edges is None else max_edges
        self.generator = torch.Generator().manual_seed(seed)
        for name, needed, why in (
            ('capacity', least_capacity(spec), 'the graphs acted on, their ends and the graphs that follow'),
            ('max_nodes', spec.max_nodes, 'the largest graph'),
            ('max_edges', max(spec.max_edges, 1), 'the largest graph'),
        ):
            if getattr(self, name) < needed:
                raise ValueError(f"'{name}' must be at least {needed}: {why} (got {getattr(self, name)})")
        layout = self._layout()
        self.nbytes = sum(rows * width * dtype.itemsize for rows, width, dtype in layout.values())
        check_memory(self.nbytes, capacity, self.max_nodes, self.max_edges)
        self._rings = Rings(**{name: np.zeros(rows * width, dtype) for name, (rows, width, dtype) in layout.items()})
        self._widths = np.array([layout[name][1] for name in ('x', 'mask', 'edge_attr')])
        self._counters = np.zeros(7, np.int64)
        self._table = np.empty(table_size(spec.max_nodes), np.int32)

    def _layout(self) -> dict[str, tuple[int, int, np.dtype[Any]]]:
        """Rows, entries per row and dtype of each ring."""
        spec, byte = self.spec, np.dtype(np.uint8)
        small = spec.max_nodes <= np.iinfo(np.int16).max
        return {
            'frame': (self.capacity, 1, FRAME),
            'acted': (self.capacity, 1, np.dtype(np.int64)),
            'node': (self.max_nodes, 1, NODE),
            'edge': (self.max_edges, 1, EDGE['i2' if small else 'i4']),
            'x': (self.max_nodes, spec.num_features * spec.feature_dtype.itemsize, byte),
            'mask': (self.max_nodes, spec.num_actions if spec.has_action_mask else 0, byte),
            'edge_attr': (self.max_edges, (spec.edge_dim or 0) * spec.edge_dtype.itemsize, byte),
        }

    def __len__(self) -> int:
        """Number of one-step transitions that can be sampled."""
        return self.num_transitions()

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}({self.num_frames} of {self.capacity} frames, {len(self)} transitions, '
            f'{self.nbytes / 2**20:.1f} MiB)'
        )

    @property
    def num_frames(self) -> int:
        """Frames in memory, ends of episodes included."""
        return int(self._counters[FRAMES] - self._counters[OLDEST])

    def num_transitions(self, n_step: int = 1) -> int:
        """Number of frames with a complete n-step future, or an episode end before it."""
        start, late = late_frames(self._rings, self._counters, n_step, self.spec.num_envs)
        return int(start - self._counters[ACTED_OLDEST]) + late.size

    def start_stream(self) -> None:
        """Cuts the streams: the next graph pushed does not follow the last step (the environment was reset).

        The last graphs stay as successors to bootstrap from, as after a truncation.
        """
        cut_streams(self._rings, self._counters, self.spec.num_envs)

    # -- writing

    def push(self, graph: Batch, action: Tensor, sharing: Sharing | None, step: GraphStep) -> None:
        """Stores one step of all streams.

        Args:
            graph: The graphs that the actions were for: ``step.graph`` of the push before, or the first graph of a
                stream.
            action: (N,) integers.
            sharing: The sharing weights, given (E,) and kept (N,); None if and only if ``share=False``.
            step: The step that the environment returned.

        Raises:
            ValueError: If anything does not fit the spec, the graph or the stream. The replay is then unchanged.
        """
        parts = read_batch(self.spec, 'graph', graph)
        if not self._counters[OPEN]:
            check_values(self.spec, 'graph', graph, parts, self._table)
        elif not continues(self._rings, self._counters, parts, self._widths):
            raise ValueError(
                "'graph' must be what the last step returned to act on: expected the graphs of step.graph of the push "
                'before, got others. Call start_stream() after the environment was reset.'
            )
        status = read_status(self.spec, step)
        played = read_played(self.spec, self.share, parts, action, sharing, step.reward, status)
        first = self._checked_batch('step.graph', step.graph)
        last = self._checked_batch('step.successor', step.successor) if status.any() else first
        if self.spec.fixed_nodes:
            check_fixed_nodes(parts, last, status)
        room = self._room(parts, first, last, status)
        commit_step(self._rings, self._counters, parts, first, last, played, room, self._widths, self._table)

    def _checked_batch(self, name: str, batch: Batch) -> Parts:
        parts = read_batch(self.spec, name, batch)
        check_values(self.spec, name, batch, parts, self._table)
        return parts

    def _room(self, parts: Parts, first: Parts, last: Parts, status: Array) -> Array:
        """Frames, nodes and edges that the push adds; the frames acted on must also stay in memory."""
        acted = np.array([status.size, parts.ptr[-1], parts.edge_ptr[-1]])
        new = np.array([status.size, first.ptr[-1], first.edge_ptr[-1]])
        if last is not first:
            ended = status != RUNNING
            new += [ended.sum(), np.diff(last.ptr)[ended].sum(), np.diff(last.edge_ptr)[ended].sum()]
        for j, name in ((1, 'max_nodes'), (2, 'max_edges')):
            if new[j] + acted[j] > getattr(self, name):
                raise ValueError(
                    f"'{name}' of the replay must hold one step: the graphs acted on, their ends and the graphs that "
                    f'follow need {new[j] + acted[j]} (got {getattr(self, name)}). Give the replay more.'
                )
        return new if self._counters[OPEN] else new + acted

    # -- reading

    def sample(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        n_step: int = 1,
        gamma: float = 0.99,
        newest: int | None = None,
    ) -> Transition:
        r"""Draws n-step transitions, uniformly and with replacement, as one batch.

        Args:
            batch_size: Number of graphs.
            generator: The generator that draws them; None: the replay's own.
            n_step: Steps between a graph and its successor, fewer where the episode ended or any agent left earlier
                (see :class:`~ltos_pyg.data.Transition`).
            gamma: Discount per step.
            newest: Draw from that many newest transitions only; None: from all.

        Only frames with a complete n-step future are drawn (:meth:`num_transitions`).

        Raises:
            ValueError: If there are none yet, or an argument makes no sense.
        """
        if batch_size < 1 or n_step < 1 or not 0 <= gamma <= 1 or (newest is not None and newest < 1):
            raise ValueError(
                f"'batch_size', 'n_step' and 'newest' must be at least 1 and 'gamma' lie in [0, 1] "
                f'(got {batch_size}, {n_step}, {newest} and {gamma})'
            )
        start, late = late_frames(self._rings, self._counters, n_step, self.spec.num_envs)
        total = int(start - self._counters[ACTED_OLDEST]) + late.size
        if total == 0:
            raise ValueError(
                f'There is no transition of {n_step} steps to sample yet ({self.num_frames} frames stored). Push more.'
            )
        low = 0 if newest is None else max(total - newest, 0)
        draw = torch.randint(low, total, (batch_size,), generator=generator or self.generator)
        plan = torch.empty((7, batch_size + 1), dtype=torch.int64)
        plan_walks(self._rings, self._counters, draw.numpy(), start, late, n_step, plan.numpy())
        return self._gather(plan, gamma)

    def _gather(self, plan: Tensor, gamma: float) -> Transition:
        num_nodes = int(plan[3, -1])
        action, next_row = torch.empty((2, num_nodes), dtype=torch.int64)
        reward, discount = torch.empty((2, num_nodes), dtype=torch.float32)
        read_returns(self._rings, plan.numpy(), gamma, *(out.numpy() for out in (action, reward, discount, next_row)))
        graph, sharing = self._read(plan[0, :-1], plan[3], plan[4], self.share)
        successor, _ = self._read(plan[1, :-1], plan[5], plan[6], False)
        return Transition(
            graph=graph,
            action=action,
            sharing=sharing,
            reward=reward,
            discount=discount,
            successor=successor,
            successor_node=next_row,
            index=plan[0, :-1],
        )

    def _read(self, frames: Tensor, ptr: Tensor, edge_ptr: Tensor, share: bool) -> tuple[Batch, Sharing | None]:
        """The frames as one batch and, if asked for, the weights stored with their actions."""
        spec, num_nodes, num_edges = self.spec, int(ptr[-1]), int(edge_ptr[-1])
        out: dict[str, Any] = {
            'x': torch.empty((num_nodes, spec.num_features), dtype=spec.feature_dtype),
            'edge_index': torch.empty((2, num_edges), dtype=torch.int64),
            'node_id': torch.empty(num_nodes, dtype=torch.int64),
        }
        if spec.edge_dim is not None:
            out['edge_attr'] = torch.empty((num_edges, spec.edge_dim), dtype=spec.edge_dtype)
        if spec.has_action_mask:
            out['action_mask'] = torch.empty((num_nodes, spec.num_actions), dtype=torch.bool)
        parts = Parts(
            ptr=ptr.numpy(),
            edge_ptr=edge_ptr.numpy(),
            edge_index=out['edge_index'].numpy(),
            node_id=out['node_id'].numpy(),
            x=as_bytes(out['x']),
            mask=as_bytes(out['action_mask']) if spec.has_action_mask else NO_BYTES,
            edge_attr=as_bytes(out['edge_attr']) if spec.edge_dim is not None else NO_BYTES,
        )
        graph_of_node = torch.empty(num_nodes, dtype=torch.int64)
        given, kept = (torch.empty(rows if share else 0, dtype=torch.float32) for rows in (num_edges, num_nodes))
        weights = (given.numpy(), kept.numpy())
        read_frames(self._rings, frames.numpy(), parts, self._widths, graph_of_node.numpy(), share, *weights)
        batch = batch_snapshots(ptr.diff(), edge_ptr.diff(), ptr=ptr, batch=graph_of_node, **out)
        return batch, Sharing(given, kept) if share else None

    # -- saving

    def state_dict(self) -> dict[str, Any]:
        """The whole content as tensors and plain containers; only the used part of the rings."""
        spans = self._spans(self._counters, self._rings.frame[self._counters[OLDEST] % self.capacity :])
        rings = {}
        for name, (at, rows, width) in spans.items():
            used = np.empty(rows * width, np.uint8)
            copy_rows(getattr(self._rings, name).view(np.uint8), at, used, 0, rows, width)
            rings[name] = torch.from_numpy(used)
        return {
            'version': STATE_VERSION,
            'layout': self._signature(),
            'counters': torch.from_numpy(self._counters.copy()),
            'generator': self.generator.get_state(),
            'rings': rings,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a saved state: the same generator then draws the same transitions.

        Raises:
            ValueError: If the state is of another version or size, or damaged. The replay is then unchanged.
        """
        if state.get('version') != STATE_VERSION:
            raise ValueError(
                f"'state' must be of version {STATE_VERSION} (got {state.get('version')}). Start with an empty replay."
            )
        missing = {'layout', 'counters', 'generator', 'rings'} - state.keys()
        if missing:
            raise ValueError(f"'state' is damaged: it lacks {sorted(missing)}. Use an older checkpoint.")
        if state['layout'] != self._signature():
            mine, theirs = self._signature(), state['layout']
            off = {key: (mine[key], theirs.get(key)) for key in mine if mine[key] != theirs.get(key)}
            raise ValueError(
                f"'state' must come from a replay of the same spec and sizes: expected against got {off}. "
                f'Make the replay with the arguments of the saved one.'
            )
        rings = {name: state['rings'].get(name, NOTHING).numpy() for name in Rings._fields}
        counters, used = state['counters'].numpy(), {name: ring.size for name, ring in rings.items()}
        if counters.shape != self._counters.shape or used['frame'] < FRAME.itemsize * min(counters[FRAMES], 1):
            raise ValueError(f"'state' is damaged: its frames are missing (got bytes {used}). Use an older checkpoint.")
        spans = self._spans(counters, rings['frame'].view(FRAME))
        needed = {name: rows * width for name, (_, rows, width) in spans.items()}
        if needed != used or any(ring.dtype != np.uint8 for ring in rings.values()):
            raise ValueError(f"'state' is damaged: expected bytes {needed}, got {used}. Use an older checkpoint.")
        self.generator.set_state(state['generator'])
        for name, (at, rows, width) in spans.items():
            copy_rows(rings[name], 0, getattr(self._rings, name).view(np.uint8), at, rows, width)
        self._counters[:] = counters

    def _spans(self, counters: Array, records: Array) -> dict[str, tuple[int, int, int]]:
        """Of each ring the used part: position, rows, bytes per row. ``records`` are of frames from the oldest on."""
        first_frame, frames, nodes, edges, first_acted, acted, _ = counters.tolist()
        node_at, edge_at = nodes, edges
        if frames > first_frame:
            node_at, edge_at = int(records['node_at'][0]), int(records['edge_at'][0])
        used = {'frame': (first_frame, frames), 'acted': (first_acted, acted)}
        used |= dict.fromkeys(('node', 'x', 'mask'), (node_at, nodes))
        used |= dict.fromkeys(('edge', 'edge_attr'), (edge_at, edges))
        spans = {name: (used[name], width * dtype.itemsize) for name, (_, width, dtype) in self._layout().items()}
        return {name: (start, stop - start, width) for name, ((start, stop), width) in spans.items()}

    def _signature(self) -> dict[str, int | str | None]:
        """Properties that must be equal for a saved state to fit."""
        spec = self.spec
        sizes = {'capacity': self.capacity, 'max_nodes': self.max_nodes, 'max_edges': self.max_edges}
        names = ('num_envs', 'num_features', 'num_actions', 'edge_dim', 'has_action_mask')
        dtypes = {'feature_dtype': str(spec.feature_dtype), 'edge_dtype': str(spec.edge_dtype)}
        bounds = {'spec.max_nodes': spec.max_nodes, 'spec.max_edges': spec.max_edges}
        return {**sizes, 'share': self.share, **{name: getattr(spec, name) for name in names}, **dtypes, **bounds}
