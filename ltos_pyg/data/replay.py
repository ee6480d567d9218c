r"""Replay of ragged graph transitions: nodes and edges may differ per graph and per step.

How it lies in memory. A *frame* is one graph at one step. Each is stored once, in rings of contiguous rows: one row per
frame, one per node, one per edge. A frame that was acted on links to the frame that the actions led to, and each of its
nodes to the row of the same agent there. An n-step transition is a walk along these links, so that overlapping
transitions share their memory. The oldest frames make room as soon as any ring is full.

Counters never wrap: the frame with number ``f`` lies in slot ``f % capacity``, and the node row at position ``p`` of
the endless tape in row ``p % rows``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch_geometric.data import Batch

from ltos_pyg.data.snapshot import batch_snapshots
from ltos_pyg.graph_env import GraphEnvSpec, GraphStep
from ltos_pyg.nn.functional import Sharing
from ltos_pyg.nn.validation import check_edge_index, check_finite, check_rows, check_sharing

Array = np.ndarray[Any, Any]

WAITING, RUNNING, TERMINATED, TRUNCATED = -1, 0, 1, 2  # the fate of a frame; waiting: nobody acted on it (yet)
SIMPLEX_ATOL = 1e-4  # as in `check_sharing`
TOO_MANY_NODES, TOO_MANY_EDGES, BAD_EDGE, BAD_ID, BAD_ACTION, BAD_REWARD, BAD_SHARING = range(1, 8)  # findings
STATE_VERSION = 1


FRAME = np.dtype(
    [('node_at', 'i8'), ('edge_at', 'i8'), ('link', 'i8'), ('nodes', 'i4'), ('edges', 'i4'), ('fate', 'i8')]
)
NODE = np.dtype([('id', 'i4'), ('action', 'i4'), ('heir', 'i4'), ('reward', 'f4'), ('shaped', 'f4'), ('kept', 'f4')])
EDGE = {size: np.dtype([('sender', size), ('receiver', size), ('given', 'f4')]) for size in ('i2', 'i4')}


class _Rings(NamedTuple):
    """All storage. Records lie side by side, so that reading a frame touches few places in memory."""

    frame: Array  # FRAME: where the first node and edge lie, number of the successor frame, sizes, fate
    acted: Array  # frame numbers, in the order in which they were acted on
    node: Array  # NODE: `heir` is the row of the same agent in the successor frame, -1 if it is gone
    edge: Array  # EDGE: ends counted inside the graph
    x: Array  # bytes, as are `mask` (of actions) and `edge_attr`
    mask: Array
    edge_attr: Array


# What `counters` holds. They live in one array so that a push is one kernel call: an interrupt cannot split it.
OLDEST, FRAMES, NODES, EDGES, ACTED_OLDEST, ACTED, OPEN = range(7)


class _Parts(NamedTuple):
    """A batch of graphs as the kernels read and write it."""

    ptr: Array
    edge_ptr: Array
    edge_index: Array
    node_id: Array
    x: Array
    mask: Array
    edge_attr: Array


class _Played(NamedTuple):
    """What was done on a batch and what came of it."""

    action: Array
    reward: Array
    given: Array
    kept: Array
    fate: Array


# --------------------------------------------------------------------------------------------------------- kernels


@njit(cache=True)
def _copy(source: Array, at: int, target: Array, to: int, rows: int, width: int) -> None:
    """Copies rows of ``width`` bytes between flat arrays; positions wrap at the end of either."""
    if width == 0 or rows == 0:
        return
    source_rows, target_rows = source.size // width, target.size // width
    at, to = at % source_rows, to % target_rows
    while rows > 0:
        run = min(rows, source_rows - at, target_rows - to)
        read = source[at * width : (at + run) * width]
        write = target[to * width : (to + run) * width]
        for i in range(run * width):
            write[i] = read[i]
        rows -= run
        at, to = (at + run) % source_rows, (to + run) % target_rows


@njit(cache=True)
def _same(source: Array, other: Array, to: int, rows: int, width: int) -> bool:
    """Whether the first rows of ``source`` lie at position ``to`` of the ring ``other``."""
    if width == 0 or rows == 0:
        return True
    other_rows = other.size // width
    at, to = 0, to % other_rows
    while rows > 0:
        run = min(rows, other_rows - to)
        a = source[at * width : (at + run) * width]
        b = other[to * width : (to + run) * width]
        difference = np.uint8(0)
        for i in range(run * width):
            difference |= a[i] ^ b[i]
        if difference != 0:
            return False
        rows -= run
        at, to = at + run, 0
    return True


@njit(cache=True)
def _tabulate(ids: Array, table: Array) -> bool:
    """Fills a hash table (-1: free) with the row of each id; False if an id comes twice."""
    last = table.size - 1  # the size is a power of two
    table[:] = -1
    for row in range(ids.size):
        slot = ((ids[row] * 2654435761) >> 12) & last
        while table[slot] >= 0:
            if ids[table[slot]] == ids[row]:
                return False
            slot = (slot + 1) & last
        table[slot] = row
    return True


@njit(cache=True)
def _look_up(wanted: int, ids: Array, table: Array) -> int:
    last = table.size - 1
    slot = ((wanted * 2654435761) >> 12) & last
    while table[slot] >= 0:
        if ids[table[slot]] == wanted:
            return table[slot]
        slot = (slot + 1) & last
    return -1


@njit(cache=True)
def _table_size(rows: int) -> int:
    size = 2
    while size < 2 * rows:
        size *= 2
    return size


@njit(cache=True)
def _unique(ids: Array, table: Array) -> bool:
    for row in range(1, ids.size):
        if ids[row] <= ids[row - 1]:
            return _tabulate(ids, table[: _table_size(ids.size)])
    return True


@njit(cache=True)
def _inspect(parts: _Parts, max_nodes: int, max_edges: int, table: Array) -> tuple[int, int]:
    """Finds where each graph's edges start, and what is wrong (0: nothing) in which graph or edge."""
    ptr, edge_index = parts.ptr, parts.edge_index
    e, num_edges = 0, edge_index.shape[1]
    for graph in range(ptr.size - 1):
        low, high = ptr[graph], ptr[graph + 1]
        if high < low or high - low > max_nodes:
            return TOO_MANY_NODES, graph
        parts.edge_ptr[graph] = e
        while e < num_edges and edge_index[0, e] < high:
            sender, receiver = edge_index[0, e], edge_index[1, e]
            if sender < low or receiver < low or receiver >= high or sender == receiver:
                return BAD_EDGE, e
            e += 1
        if e - parts.edge_ptr[graph] > max_edges:
            return TOO_MANY_EDGES, graph
        ids = parts.node_id[low:high]
        for row in range(ids.size):
            if ids[row] < 0 or ids[row] > 2147483647:
                return BAD_ID, graph
        if not _unique(ids, table):
            return BAD_ID, graph
    parts.edge_ptr[ptr.size - 1] = e
    return (BAD_EDGE, e) if e < num_edges else (0, 0)


@njit(cache=True)
def _inspect_played(parts: _Parts, played: _Played, num_actions: int, share: bool) -> tuple[int, int]:
    """What is wrong (0: nothing), and at which node."""
    for i in range(played.action.size):
        if played.action[i] < 0 or played.action[i] >= num_actions:
            return BAD_ACTION, i
        if not np.isfinite(played.reward[i]):
            return BAD_REWARD, i
    if not share:
        return 0, 0
    total = played.kept.copy()
    lowest = np.float32(0.0)
    for e in range(played.given.size):
        total[parts.edge_index[0, e]] += played.given[e]
        lowest = min(lowest, played.given[e])
    for i in range(total.size):
        lowest = min(lowest, played.kept[i])
        if not abs(total[i] - 1) <= SIMPLEX_ATOL:
            return BAD_SHARING, i
    return (0, 0) if lowest >= -SIMPLEX_ATOL else (BAD_SHARING, 0)


@njit(cache=True)
def _after(row: int, ring: Array) -> int:
    """The next row of a ring; cheaper than a division."""
    return row + 1 if row + 1 < ring.size else 0


@njit(cache=True)
def _continues(rings: _Rings, counters: Array, parts: _Parts, widths: Array) -> bool:
    """Whether the batch is what the newest frames hold, one for each stream; if so, fills its ``edge_ptr``."""
    num_graphs = parts.ptr.size - 1
    first = rings.frame[(counters[FRAMES] - num_graphs) % rings.frame.size]
    num_nodes, num_edges = counters[NODES] - first.node_at, counters[EDGES] - first.edge_at
    if parts.ptr[num_graphs] != num_nodes or parts.edge_index.shape[1] != num_edges:
        return False
    row, edge_row, e = first.node_at % rings.node.size, first.edge_at % rings.edge.size, 0
    for b in range(num_graphs):
        frame = rings.frame[(counters[FRAMES] - num_graphs + b) % rings.frame.size]
        low = parts.ptr[b]
        if parts.ptr[b + 1] - low != frame.nodes:
            return False
        for i in range(low, low + frame.nodes):
            if parts.node_id[i] != rings.node[row].id:
                return False
            row = _after(row, rings.node)
        parts.edge_ptr[b] = e
        for _ in range(frame.edges):
            edge = rings.edge[edge_row]
            if parts.edge_index[0, e] - low != edge.sender or parts.edge_index[1, e] - low != edge.receiver:
                return False
            edge_row = _after(edge_row, rings.edge)
            e += 1
    parts.edge_ptr[num_graphs] = e
    return (
        _same(parts.x, rings.x, first.node_at, num_nodes, widths[0])
        and _same(parts.mask, rings.mask, first.node_at, num_nodes, widths[1])
        and _same(parts.edge_attr, rings.edge_attr, first.edge_at, num_edges, widths[2])
    )


@njit(cache=True)
def _write_frame(rings: _Rings, counters: Array, parts: _Parts, graph: int, widths: Array) -> None:
    frame = rings.frame[counters[FRAMES] % rings.frame.size]
    low, edge_low = parts.ptr[graph], parts.edge_ptr[graph]
    n, m = parts.ptr[graph + 1] - low, parts.edge_ptr[graph + 1] - edge_low
    at, edge_at = counters[NODES], counters[EDGES]
    frame.node_at, frame.edge_at, frame.nodes, frame.edges = at, edge_at, n, m
    frame.link, frame.fate = -1, WAITING
    _copy(parts.x, low, rings.x, at, n, widths[0])
    _copy(parts.mask, low, rings.mask, at, n, widths[1])
    _copy(parts.edge_attr, edge_low, rings.edge_attr, edge_at, m, widths[2])
    row = at % rings.node.size
    for i in range(low, low + n):
        rings.node[row].id = parts.node_id[i]
        row = _after(row, rings.node)
    row = edge_at % rings.edge.size
    for e in range(edge_low, edge_low + m):
        rings.edge[row].sender = parts.edge_index[0, e] - low
        rings.edge[row].receiver = parts.edge_index[1, e] - low
        row = _after(row, rings.edge)
    counters[FRAMES] += 1
    counters[NODES] += n
    counters[EDGES] += m


@njit(cache=True)
def _write_heirs(nodes: Array, at: int, ids: Array, new_ids: Array, table: Array) -> None:
    """For each agent its row among ``new_ids``, -1 if it is not there."""
    tabulated = False
    part = table[: _table_size(new_ids.size)]
    row = at % nodes.size
    for i in range(ids.size):
        heir = i if i < new_ids.size and new_ids[i] == ids[i] else -1
        if heir < 0:
            if not tabulated:
                tabulated = _tabulate(new_ids, part)
            heir = _look_up(ids[i], new_ids, part)
        nodes[row].heir = heir
        row = _after(row, nodes)


@njit(cache=True)
def _shape_reward(parts: _Parts, played: _Played) -> Array:
    """`share_value`, in the same order of sums."""
    shaped = played.kept * played.reward
    for e in range(played.given.size):
        shaped[parts.edge_index[1, e]] += played.given[e] * played.reward[parts.edge_index[0, e]]
    return shaped


@njit(cache=True)
def _write_played(rings: _Rings, at: int, edge_at: int, parts: _Parts, b: int, played: _Played, shaped: Array) -> None:
    share = played.kept.size > 0
    row = at % rings.node.size
    for i in range(parts.ptr[b], parts.ptr[b + 1]):
        node = rings.node[row]
        node.action, node.reward, node.shaped = played.action[i], played.reward[i], shaped[i]
        if share:
            node.kept = played.kept[i]
        row = _after(row, rings.node)
    if not share:
        return
    row = edge_at % rings.edge.size
    for e in range(parts.edge_ptr[b], parts.edge_ptr[b + 1]):
        rings.edge[row].given = played.given[e]
        row = _after(row, rings.edge)


@njit(cache=True)
def _evict(rings: _Rings, counters: Array, room: Array) -> None:
    """Moves the oldest frame forward until that many frames, nodes and edges fit."""
    while counters[OLDEST] < counters[FRAMES]:
        frame = rings.frame[counters[OLDEST] % rings.frame.size]
        if (
            counters[FRAMES] + room[0] - counters[OLDEST] <= rings.frame.size
            and counters[NODES] + room[1] - frame.node_at <= rings.node.size
            and counters[EDGES] + room[2] - frame.edge_at <= rings.edge.size
        ):
            break
        counters[OLDEST] += 1
    while (
        counters[ACTED_OLDEST] < counters[ACTED]
        and rings.acted[counters[ACTED_OLDEST] % rings.acted.size] < counters[OLDEST]
    ):
        counters[ACTED_OLDEST] += 1


@njit(cache=True)
def _commit(
    rings: _Rings,
    counters: Array,
    parts: _Parts,
    heads: _Parts,
    ends: _Parts,
    played: _Played,
    room: Array,
    widths: Array,
    table: Array,
) -> None:
    """One push: makes room, stores what is new (ends of episodes, then one head a stream), links the streams on."""
    num_graphs = parts.ptr.size - 1
    _evict(rings, counters, room)
    if counters[OPEN] == 0:
        for b in range(num_graphs):
            _write_frame(rings, counters, parts, b, widths)
    first, end = counters[FRAMES] - num_graphs, counters[FRAMES]
    for b in range(num_graphs):
        if played.fate[b] != RUNNING:
            _write_frame(rings, counters, ends, b, widths)
    for b in range(num_graphs):
        _write_frame(rings, counters, heads, b, widths)
    shaped = _shape_reward(parts, played) if played.kept.size > 0 else played.reward
    for b in range(num_graphs):
        frame = rings.frame[(first + b) % rings.frame.size]
        frame.fate, frame.link = played.fate[b], counters[FRAMES] - num_graphs + b
        after = heads
        if frame.fate != RUNNING:
            frame.link, after = end, ends
            end += 1
        _write_played(rings, frame.node_at, frame.edge_at, parts, b, played, shaped)
        ids, new_ids = parts.node_id[parts.ptr[b] : parts.ptr[b + 1]], after.node_id[after.ptr[b] : after.ptr[b + 1]]
        _write_heirs(rings.node, frame.node_at, ids, new_ids, table)
        rings.acted[counters[ACTED] % rings.acted.size] = first + b
        counters[ACTED] += 1
    counters[OPEN] = 1


@njit(cache=True)
def _cut(rings: _Rings, counters: Array, num_graphs: int) -> None:
    """Ends the running episodes where they are."""
    if counters[OPEN] == 0:
        return
    for k in range(counters[ACTED] - num_graphs, counters[ACTED]):
        frame = rings.frame[rings.acted[k % rings.acted.size] % rings.frame.size]
        if frame.fate == RUNNING:
            frame.fate = TRUNCATED
    counters[OPEN] = 0


@njit(cache=True)
def _is_complete(rings: _Rings, number: int, n_step: int) -> bool:
    for _ in range(n_step):
        frame = rings.frame[number % rings.frame.size]
        if frame.fate != RUNNING:
            return frame.fate != WAITING
        number = frame.link
    return True


@njit(cache=True)
def _late(rings: _Rings, counters: Array, n_step: int, num_graphs: int) -> tuple[int, Array]:
    """Only the last ``n_step - 1`` pushes can lack a future: where they start, and which of them have one."""
    start = max(counters[ACTED_OLDEST], counters[ACTED] - (n_step - 1) * num_graphs)
    complete = np.empty(counters[ACTED] - start, np.int64)
    count = 0
    for k in range(start, counters[ACTED]):
        if _is_complete(rings, rings.acted[k % rings.acted.size], n_step):
            complete[count] = k
            count += 1
    return start, complete[:count]


@njit(cache=True)
def _walk(rings: _Rings, counters: Array, draw: Array, start: int, late: Array, n_step: int, plan: Array) -> None:
    """Rows of ``plan``: frame, last frame, steps between; ptr and edge_ptr of both batches (one entry more)."""
    early = start - counters[ACTED_OLDEST]
    plan[3:, 0] = 0
    for i in range(draw.size):
        k = counters[ACTED_OLDEST] + draw[i] if draw[i] < early else late[draw[i] - early]
        number = rings.acted[k % rings.acted.size]
        frame = rings.frame[number % rings.frame.size]
        plan[0, i] = number
        plan[3, i + 1] = plan[3, i] + frame.nodes
        plan[4, i + 1] = plan[4, i] + frame.edges
        steps = 0
        while steps < n_step:
            steps += 1
            fate, number = frame.fate, frame.link
            frame = rings.frame[number % rings.frame.size]
            if fate != RUNNING:
                break
        plan[1, i], plan[2, i] = number, steps
        plan[5, i + 1] = plan[5, i] + frame.nodes
        plan[6, i + 1] = plan[6, i] + frame.edges


@njit(cache=True)
def _read_frames(
    rings: _Rings,
    frames: Array,
    out: _Parts,
    widths: Array,
    graph_of_node: Array,
    share: bool,
    given: Array,
    kept: Array,
    known: Array,
) -> None:
    """Graphs side by side, with the weights stored with them where there are any, otherwise keep-all."""
    for g in range(frames.size):
        frame = rings.frame[frames[g] % rings.frame.size]
        low, edge_low, n, m = out.ptr[g], out.edge_ptr[g], frame.nodes, frame.edges
        _copy(rings.x, frame.node_at, out.x, low, n, widths[0])
        _copy(rings.mask, frame.node_at, out.mask, low, n, widths[1])
        _copy(rings.edge_attr, frame.edge_at, out.edge_attr, edge_low, m, widths[2])
        acted = frame.fate != WAITING
        row = frame.node_at % rings.node.size
        for i in range(low, low + n):
            graph_of_node[i] = g
            out.node_id[i] = rings.node[row].id
            if share:
                kept[i] = rings.node[row].kept if acted else 1
            row = _after(row, rings.node)
        row = frame.edge_at % rings.edge.size
        for e in range(edge_low, edge_low + m):
            out.edge_index[0, e] = rings.edge[row].sender + low
            out.edge_index[1, e] = rings.edge[row].receiver + low
            if share:
                given[e] = rings.edge[row].given if acted else 0
            row = _after(row, rings.edge)
        known[g] = acted


@njit(cache=True)
def _read_returns(
    rings: _Rings,
    plan: Array,
    gamma: float,
    action: Array,
    reward: Array,
    shaped: Array,
    discount: Array,
    heir: Array,
) -> None:
    """n-step sums, discounts and the agents' rows in the successor, along the links."""
    for g in range(plan.shape[1] - 1):
        first = rings.frame[plan[0, g] % rings.frame.size]
        for i in range(plan[3, g], plan[3, g + 1]):
            frame, row = first, i - plan[3, g]
            action[i] = rings.node[(first.node_at + row) % rings.node.size].action
            total, total_shaped, factor = 0.0, 0.0, 1.0
            for _ in range(plan[2, g]):
                node = rings.node[(frame.node_at + row) % rings.node.size]
                total += factor * node.reward
                total_shaped += factor * node.shaped
                row = node.heir
                factor = 0.0 if row < 0 or frame.fate == TERMINATED else factor * gamma
                if row < 0:
                    break
                frame = rings.frame[frame.link % rings.frame.size]
            reward[i], shaped[i], discount[i] = total, total_shaped, factor
            heir[i] = row + plan[5, g] if row >= 0 else 0


# ------------------------------------------------------------------------------------------------------ transition


@dataclass(frozen=True)
class Transition:
    r"""A batch of n-step graph transitions. N nodes in B graphs, N' nodes in the B successors.

    ``m`` is the number of steps between a graph and its successor: ``m <= n``, smaller where the episode ended earlier.
    """

    graph: Batch  # o_t
    action: Tensor  # (N,) int64
    sharing: Sharing | None  # the weights stored with the action: given (E,), kept (N,); None: the replay keeps none
    reward: Tensor  # (N,) float32: sum over k < m of gamma^k times the node's own reward, up to its last step
    shaped: Tensor  # (N,) float32: the same of the shaped rewards, each step shaped with the weights stored at it
    discount: Tensor  # (N,) float32: gamma^m, and 0 where the task terminated or the agent is gone
    successor: Batch  # o_{t+m}
    successor_node: Tensor  # (N,) int64: row of the same agent in `successor`; 0 where it is gone (there discount is 0)
    sharing_next: Sharing | None  # the weights stored with `successor`; keep-all where there are none
    sharing_next_known: Tensor  # (B,) bool: whether there are
    index: Tensor  # (B,) int64: number of the frame, counted from the first one ever stored

    @property
    def num_graphs(self) -> int:
        return self.index.numel()

    def bootstrap(self, value: Tensor) -> Tensor:
        r"""``discount`` times each agent's value in ``successor``: what a TD target adds to ``reward`` or ``shaped``.

        Right also where no agent is left in any successor and ``value`` (N',) is therefore empty.
        """
        check_rows('value', value, self.successor.num_nodes, 'node of successor')
        if value.size(0) == 0:
            return self.discount.clone()
        return self.discount * value.index_select(0, self.successor_node)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Transition:
        """The same transition on ``device``."""
        return Transition(**{f.name: _move(getattr(self, f.name), device, non_blocking) for f in fields(self)})


def _move(value: Any, device: torch.device | str, non_blocking: bool) -> Any:
    if isinstance(value, Sharing):
        return Sharing(*(part.to(device, non_blocking=non_blocking) for part in value))
    return None if value is None else value.to(device, non_blocking=non_blocking)


# ---------------------------------------------------------------------------------------------------------- replay


class GraphReplay:
    r"""Keeps the newest ``capacity`` frames of ``spec.num_envs`` parallel streams of graphs; samples transitions.

    Args:
        spec: What the environment promises; storage takes its dtypes (int8 features stay int8).
        capacity: Frames kept; a frame is one graph at one step, and the end of an episode takes one more.
        share: Whether sharing weights are stored and rewards shaped by them.
        max_nodes: Node rows over all frames. Default ``capacity * spec.max_nodes``: every frame fits, whatever its
            size. Give less where graphs are far smaller than the bound on average; old frames then go earlier.
        max_edges: Edge rows over all frames, likewise.
        seed: Of the replay's own generator, which :meth:`sample` uses when it is given none.

    :meth:`push` takes what the loop of an environment holds after a step. Stream b of one push goes on as stream b of
    the next, so call :meth:`start_stream` when the environment was reset in between.

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
            ('capacity', 3 * spec.num_envs, 'the graphs acted on, their ends and the graphs that follow'),
            ('max_nodes', spec.max_nodes, 'the largest graph'),
            ('max_edges', max(spec.max_edges, 1), 'the largest graph'),
        ):
            if getattr(self, name) < needed:
                raise ValueError(f"'{name}' must be at least {needed}: {why} (got {getattr(self, name)})")
        layout = self._layout()
        self.nbytes = sum(rows * width * dtype.itemsize for rows, width, dtype in layout.values())
        _check_memory(self.nbytes, capacity, self.max_nodes, self.max_edges)
        self._rings = _Rings(**{name: np.zeros(rows * width, dtype) for name, (rows, width, dtype) in layout.items()})
        self._widths = np.array([layout[name][1] for name in ('x', 'mask', 'edge_attr')])
        self._counters = np.zeros(7, np.int64)
        self._table = np.empty(_table_size(spec.max_nodes), np.int32)

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
        """Number of frames that have their whole n-step future, or an end before it."""
        start, late = _late(self._rings, self._counters, n_step, self.spec.num_envs)
        return int(start - self._counters[ACTED_OLDEST]) + late.size

    def start_stream(self) -> None:
        """Cuts the streams: the next graph pushed does not follow from the last step (the environment was reset).

        The last graphs stay as successors to bootstrap from, as after a truncation.
        """
        _cut(self._rings, self._counters, self.spec.num_envs)

    # -- writing

    def push(self, graph: Batch, action: Tensor, sharing: Sharing | None, step: GraphStep) -> None:
        """Stores one step of all streams.

        Args:
            graph: What was acted on: ``step.graph`` of the push before, or the first graph of a stream.
            action: (N,) integers.
            sharing: The weights in force, given (E,) and kept (N,); None exactly if ``share=False``.
            step: What the environment returned.

        Raises:
            ValueError: If anything does not fit the spec, the graph or the stream. Nothing is stored then.
        """
        parts = self._parts('graph', graph)
        if not self._counters[OPEN]:
            self._check_values('graph', graph, parts)
        elif not _continues(self._rings, self._counters, parts, self._widths):
            raise ValueError(
                "'graph' must be what the last step returned to act on: expected the graphs of step.graph of the push "
                'before, got others. Call start_stream() after the environment was reset.'
            )
        fate = self._fate(step)
        played = self._played(parts, action, sharing, step.reward, fate)
        heads = self._parts('step.graph', step.graph)
        self._check_values('step.graph', step.graph, heads)
        ends = heads
        if fate.any():
            ends = self._parts('step.successor', step.successor)
            self._check_values('step.successor', step.successor, ends)
        room = self._room(parts, heads, ends, fate)
        _commit(self._rings, self._counters, parts, heads, ends, played, room, self._widths, self._table)

    def _parts(self, name: str, batch: Batch) -> _Parts:
        """The batch as arrays, once shapes and dtypes are found to fit the spec; ``edge_ptr`` is left to be filled."""
        spec = self.spec
        ptr, edge_index = batch.get('ptr'), batch.get('edge_index')
        if ptr is None or ptr.numel() != spec.num_envs + 1:
            got = 'none with a ptr' if ptr is None else f'{ptr.numel() - 1}'
            raise ValueError(
                f"'{name}' must be a batch of {spec.num_envs} graphs, one per stream (got {got}). "
                f'Make it with ltos_pyg.data.batch_snapshots or Batch.from_data_list.'
            )
        if edge_index is None or edge_index.dim() != 2 or edge_index.size(0) != 2 or edge_index.dtype != torch.int64:
            got = 'none' if edge_index is None else f'{tuple(edge_index.shape)} of {edge_index.dtype}'
            raise ValueError(f"'{name}.edge_index' must be (2, E) of torch.int64, senders above receivers (got {got}).")
        num_nodes, num_edges = int(ptr[-1]), edge_index.size(1)
        mask_width = spec.num_actions if spec.has_action_mask else None
        return _Parts(
            ptr=_array(ptr),
            edge_ptr=np.empty(spec.num_envs + 1, np.int64),
            edge_index=_array(edge_index),
            node_id=self._node_id(name, batch, ptr),
            x=_raw(f'{name}.x', batch.get('x'), num_nodes, spec.num_features, spec.feature_dtype),
            mask=_raw(f'{name}.action_mask', batch.get('action_mask'), num_nodes, mask_width, torch.bool),
            edge_attr=_raw(f'{name}.edge_attr', batch.get('edge_attr'), num_edges, spec.edge_dim, spec.edge_dtype),
        )

    def _check_values(self, name: str, batch: Batch, parts: _Parts) -> None:
        """Raises a ``ValueError`` unless ids, edges and features make sense; fills ``parts.edge_ptr``."""
        for field in ('x', 'edge_attr'):
            value = batch.get(field)
            # a finite sum in float64 says in one pass that all is finite
            if value is not None and value.is_floating_point() and not value.sum(dtype=torch.float64).isfinite():
                check_finite(f'{name}.{field}', value.cpu())
        finding, where = _inspect(parts, self.spec.max_nodes, self.spec.max_edges, self._table)
        if finding:
            self._malformed(name, parts, finding, where)

    def _node_id(self, name: str, batch: Batch, ptr: Tensor) -> Array:
        node_id = batch.get('node_id')
        if node_id is not None:
            check_rows(f'{name}.node_id', node_id, int(ptr[-1]), 'node')
            return _array(node_id.to(torch.int64))
        if not self.spec.fixed_nodes:
            raise ValueError(
                f"'{name}' needs 'node_id' (N,), who is who: spec.fixed_nodes is False (got none). "
                f'Have the environment emit it.'
            )
        start = torch.repeat_interleave(ptr[:-1], ptr.diff())
        return _array(torch.arange(int(ptr[-1]), device=ptr.device) - start)

    def _malformed(self, name: str, parts: _Parts, finding: int, where: int) -> None:
        spec = self.spec
        if finding == BAD_EDGE:
            check_edge_index(torch.from_numpy(parts.edge_index), int(parts.ptr[-1]))
            raise ValueError(
                f"'{name}.edge_index' must list the edges graph by graph, each inside its own graph (edge {where} is "
                f'{parts.edge_index[:, where].tolist()}). Make the batch with ltos_pyg.data.batch_snapshots.'
            )
        if finding in (TOO_MANY_NODES, TOO_MANY_EDGES):
            what, bound = ('nodes', spec.max_nodes) if finding == TOO_MANY_NODES else ('edges', spec.max_edges)
            low, high = parts.ptr[where : where + 2]
            senders = parts.edge_index[0]
            got = high - low if finding == TOO_MANY_NODES else ((low <= senders) & (senders < high)).sum()
            raise ValueError(
                f"'{name}' must have at most spec.max_{what} = {bound} {what} in a graph (got {got} in graph {where}). "
                f'Raise the bound in the spec of the environment.'
            )
        low, high = parts.ptr[where : where + 2]
        raise ValueError(
            f"'{name}.node_id' must hold each id once per graph, in [0, 2^31) (got {parts.node_id[low:high].tolist()} "
            f'in graph {where}).'
        )

    def _fate(self, step: GraphStep) -> Array:
        flags = []
        for name in ('terminated', 'truncated'):
            flag = getattr(step, name)
            if flag.dtype != torch.bool or flag.shape != (self.spec.num_envs,):
                raise ValueError(
                    f"'step.{name}' needs one bool per graph: expected shape ({self.spec.num_envs},), "
                    f'got {tuple(flag.shape)} of {flag.dtype}'
                )
            flags.append(_array(flag))
        return np.where(flags[0], TERMINATED, np.where(flags[1], TRUNCATED, RUNNING)).astype(np.int8)

    def _played(self, parts: _Parts, action: Tensor, sharing: Sharing | None, reward: Tensor, fate: Array) -> _Played:
        num_nodes = int(parts.ptr[-1])
        for name, value in (('action', action), ('step.reward', reward)):
            if value.shape != (num_nodes,):
                raise ValueError(
                    f"'{name}' needs one entry per node of 'graph': expected shape ({num_nodes},), "
                    f'got {tuple(value.shape)}. Was it computed from another batch?'
                )
        if action.is_floating_point() or action.dtype == torch.bool:
            raise ValueError(f"'action' must hold integers (got {action.dtype}). Convert it with .long().")
        if self.share != (sharing is not None):
            raise ValueError(
                f"'sharing' must be {'given' if self.share else 'None'}: the replay was made with share={self.share} "
                f'(got {"none" if sharing is None else "some"}).'
            )
        given = kept = np.empty(0, np.float32)
        if sharing is not None:
            if sharing.given.shape != (parts.edge_index.shape[1],) or sharing.kept.shape != (num_nodes,):
                raise ValueError(
                    f"'sharing' needs one weight per edge and one per node of 'graph': expected given "
                    f'({parts.edge_index.shape[1]},) and kept ({num_nodes},), got {tuple(sharing.given.shape)} and '
                    f'{tuple(sharing.kept.shape)}. Average over heads before storing.'
                )
            given, kept = _array(sharing.given.detach().float()), _array(sharing.kept.detach().float())
        played = _Played(_array(action.long()), _array(reward.detach().float()), given, kept, fate)
        finding, where = _inspect_played(parts, played, self.spec.num_actions, self.share)
        if finding == BAD_ACTION:
            raise ValueError(
                f"'action' must lie in [0, {self.spec.num_actions - 1}], as spec.num_actions says "
                f'(got {int(played.action[where])} at node {where}). Does the policy belong to this environment?'
            )
        if finding == BAD_REWARD:
            check_finite('step.reward', torch.from_numpy(played.reward))
        if finding == BAD_SHARING:
            weights = Sharing(torch.from_numpy(given), torch.from_numpy(kept))
            check_sharing(weights, torch.from_numpy(parts.edge_index), num_nodes, SIMPLEX_ATOL)
        return played

    def _room(self, parts: _Parts, heads: _Parts, ends: _Parts, fate: Array) -> Array:
        """Frames, nodes and edges that the push adds; the frames acted on must stay beside them."""
        acted = np.array([fate.size, parts.ptr[-1], parts.edge_ptr[-1]])
        new = np.array([fate.size, heads.ptr[-1], heads.edge_ptr[-1]])
        if ends is not heads:
            ended = fate != RUNNING
            new += [ended.sum(), np.diff(ends.ptr)[ended].sum(), np.diff(ends.edge_ptr)[ended].sum()]
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
            generator: Of the draws; None: the replay's own.
            n_step: Steps between a graph and its successor, fewer where the episode ended earlier.
            gamma: Discount per step.
            newest: Draw from that many newest transitions only; None: from all.

        Only frames take part whose n-step future is known in full (:meth:`num_transitions`).

        Raises:
            ValueError: If there are none yet, or an argument makes no sense.
        """
        if batch_size < 1 or n_step < 1 or not 0 <= gamma <= 1 or (newest is not None and newest < 1):
            raise ValueError(
                f"'batch_size', 'n_step' and 'newest' must be at least 1 and 'gamma' lie in [0, 1] "
                f'(got {batch_size}, {n_step}, {newest} and {gamma})'
            )
        start, late = _late(self._rings, self._counters, n_step, self.spec.num_envs)
        total = int(start - self._counters[ACTED_OLDEST]) + late.size
        if total == 0:
            raise ValueError(
                f'There is no transition of {n_step} steps to sample yet ({self.num_frames} frames stored). Push more.'
            )
        low = 0 if newest is None else max(total - newest, 0)
        draw = torch.randint(low, total, (batch_size,), generator=generator or self.generator)
        plan = torch.empty((7, batch_size + 1), dtype=torch.int64)
        _walk(self._rings, self._counters, draw.numpy(), start, late, n_step, plan.numpy())
        return self._gather(plan, gamma)

    def _gather(self, plan: Tensor, gamma: float) -> Transition:
        num_nodes = int(plan[3, -1])
        action, heir = torch.empty((2, num_nodes), dtype=torch.int64)
        reward, shaped, discount = torch.empty((3, num_nodes), dtype=torch.float32)
        _read_returns(
            self._rings, plan.numpy(), gamma, *(out.numpy() for out in (action, reward, shaped, discount, heir))
        )
        graph, sharing, _ = self._read(plan[0, :-1], plan[3], plan[4])
        successor, sharing_next, known = self._read(plan[1, :-1], plan[5], plan[6])
        return Transition(
            graph=graph,
            action=action,
            sharing=sharing,
            reward=reward,
            shaped=shaped,
            discount=discount,
            successor=successor,
            successor_node=heir,
            sharing_next=sharing_next,
            sharing_next_known=known,
            index=plan[0, :-1],
        )

    def _read(self, frames: Tensor, ptr: Tensor, edge_ptr: Tensor) -> tuple[Batch, Sharing | None, Tensor]:
        """The frames as one batch, their weights, and whether there are any."""
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
        parts = _Parts(
            ptr=ptr.numpy(),
            edge_ptr=edge_ptr.numpy(),
            edge_index=out['edge_index'].numpy(),
            node_id=out['node_id'].numpy(),
            x=_bytes(out['x']),
            mask=_bytes(out['action_mask']) if spec.has_action_mask else NO_BYTES,
            edge_attr=_bytes(out['edge_attr']) if spec.edge_dim is not None else NO_BYTES,
        )
        graph_of_node = torch.empty(num_nodes, dtype=torch.int64)
        given, kept = (torch.empty(rows if self.share else 0, dtype=torch.float32) for rows in (num_edges, num_nodes))
        known = torch.zeros(frames.numel(), dtype=torch.bool)
        weights = (given.numpy(), kept.numpy(), known.numpy())
        _read_frames(self._rings, frames.numpy(), parts, self._widths, graph_of_node.numpy(), self.share, *weights)
        batch = batch_snapshots(ptr.diff(), edge_ptr.diff(), ptr=ptr, batch=graph_of_node, **out)
        return batch, Sharing(given, kept) if self.share else None, known

    # -- saving

    def state_dict(self) -> dict[str, Any]:
        """Everything that is stored, as tensors and plain containers; only the used part of the rings."""
        spans = self._spans(self._counters, self._rings.frame[self._counters[OLDEST] % self.capacity :])
        rings = {}
        for name, (at, rows, width) in spans.items():
            used = np.empty(rows * width, np.uint8)
            _copy(_as_bytes(getattr(self._rings, name)), at, used, 0, rows, width)
            rings[name] = torch.from_numpy(used)
        return {
            'version': STATE_VERSION,
            'layout': self._signature(),
            'counters': torch.from_numpy(self._counters.copy()),
            'generator': self.generator.get_state(),
            'rings': rings,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to a saved state: the same generator then draws the same transitions.

        Raises:
            ValueError: If the state is of another version or size, or damaged. Nothing changes then.
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
                f'Make the replay as it was made then.'
            )
        rings = {name: state['rings'].get(name, NOTHING).numpy() for name in _Rings._fields}
        counters, used = state['counters'].numpy(), {name: ring.size for name, ring in rings.items()}
        if counters.shape != self._counters.shape or used['frame'] < FRAME.itemsize * min(counters[FRAMES], 1):
            raise ValueError(f"'state' is damaged: its frames are missing (got bytes {used}). Use an older checkpoint.")
        spans = self._spans(counters, rings['frame'].view(FRAME))
        needed = {name: rows * width for name, (_, rows, width) in spans.items()}
        if needed != used or any(ring.dtype != np.uint8 for ring in rings.values()):
            raise ValueError(f"'state' is damaged: expected bytes {needed}, got {used}. Use an older checkpoint.")
        self.generator.set_state(state['generator'])
        for name, (at, rows, width) in spans.items():
            _copy(rings[name], 0, _as_bytes(getattr(self._rings, name)), at, rows, width)
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
        """What must agree for a saved state to fit."""
        spec = self.spec
        sizes = {'capacity': self.capacity, 'max_nodes': self.max_nodes, 'max_edges': self.max_edges}
        names = ('num_envs', 'num_features', 'num_actions', 'edge_dim', 'has_action_mask')
        dtypes = {'feature_dtype': str(spec.feature_dtype), 'edge_dtype': str(spec.edge_dtype)}
        bounds = {'spec.max_nodes': spec.max_nodes, 'spec.max_edges': spec.max_edges}
        return {**sizes, 'share': self.share, **{name: getattr(spec, name) for name in names}, **dtypes, **bounds}


NO_BYTES = np.empty(0, np.uint8)
NOTHING = torch.empty(0, dtype=torch.uint8)


def _array(tensor: Tensor) -> Array:
    return tensor.cpu().contiguous().numpy()


def _as_bytes(ring: Array) -> Array:
    return ring.view(np.uint8)


def _bytes(tensor: Tensor) -> Array:
    """The entries of a contiguous tensor as flat bytes, whatever its dtype; shares memory."""
    return tensor.view(torch.uint8).view(-1).numpy()


def _raw(name: str, value: Tensor | None, rows: int, columns: int | None, dtype: torch.dtype) -> Array:
    """A field as bytes, once it is found to be what the spec says (``columns=None``: absent)."""
    expected = 'none, as the spec declares none' if columns is None else f'({rows}, {columns}) of {dtype}'
    if value is None and columns is None:
        return NO_BYTES
    if value is None or columns is None or value.shape != (rows, columns) or value.dtype != dtype:
        got = 'none' if value is None else f'{tuple(value.shape)} of {value.dtype}'
        raise ValueError(f"'{name}' must fit the spec of the environment: expected {expected}, got {got}.")
    return _bytes(value.detach().cpu().contiguous())


def _check_memory(needed: int, capacity: int, max_nodes: int, max_edges: int) -> None:
    free = _free_memory()
    if free is not None and needed > free:
        raise ValueError(
            f"'capacity' of {capacity} frames with {max_nodes} node rows and {max_edges} edge rows needs "
            f'{needed / 2**30:.2f} GiB: expected at most the {free / 2**30:.2f} GiB that the machine has free. Lower '
            f"'capacity', or give 'max_nodes' and 'max_edges' for the average graph instead of the largest."
        )


def _free_memory() -> int | None:
    """Bytes that the operating system says are available; None where it does not say (it is not Linux)."""
    table = Path('/proc/meminfo')
    if not table.exists():
        return None
    lines = dict(line.split(':', 1) for line in table.read_text(encoding='ascii').splitlines())
    return int(lines['MemAvailable'].split()[0]) * 1024 if 'MemAvailable' in lines else None
