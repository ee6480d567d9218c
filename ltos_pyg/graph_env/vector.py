"""From a game that plays one episode to the batched environment that algorithms train on."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch

from ltos_pyg.data.snapshot import Snapshot, batch_snapshots
from ltos_pyg.graph_env.base import GraphEnv, GraphStep
from ltos_pyg.graph_env.spec import GraphEnvSpec


class SingleStep(NamedTuple):
    """What one step of a :class:`SingleGraphEnv` leads to. N agents acted."""

    graph: Snapshot  # the successor: what the actions led to, also when the episode is over
    reward: Tensor  # (N,), one per agent that acted
    terminated: bool = False  # the task ended
    truncated: bool = False  # the game's own clock ran out (`horizon` is handled for you)
    info: Mapping[str, float] = MappingProxyType({})  # metrics of this step, the same names at every step
    outcome: Mapping[str, float] = MappingProxyType({})  # metrics of the whole episode: read where it ends


class SingleGraphEnv(ABC):
    """A game that plays one episode at a time: write :meth:`start` and :meth:`step`, and declare the sizes.

    .. code-block:: python

        class Walk(SingleGraphEnv):
            num_features, num_actions, max_nodes, horizon = 1, 2, 2, 10

            def start(self):
                self.place = torch.rand(2, 1, generator=self.generator)
                return self.look()

            def step(self, action):
                self.place = self.place + 0.1 * (2 * action.unsqueeze(1) - 1)
                return SingleStep(self.look(), reward=-self.place.abs().squeeze(1))

            def look(self):
                return Snapshot(x=self.place, edge_index=fully_connected(2))

        env = VectorGraphEnv(Walk, num_envs=8)

    The attributes below are those of :class:`~ltos_pyg.graph_env.GraphEnvSpec`; set them on the class or in
    ``__init__``. The agents may change from step to step if ``fixed_nodes = False``; each snapshot then identifies the
    agents by ``node_id``, and an agent that left has no value to bootstrap from. Draw random numbers from
    :attr:`generator` only: then episodes are reproducible, and instances do not affect each other.
    """

    num_features: int
    num_actions: int
    max_nodes: int
    max_edges: int | None = None  # None: those of `max_nodes` fully connected nodes
    edge_dim: int | None = None
    feature_dtype: torch.dtype = torch.float32
    edge_dtype: torch.dtype = torch.float32
    feature_scale: tuple[float, ...] | None = None
    edge_scale: tuple[float, ...] | None = None
    has_action_mask: bool = False
    fixed_nodes: bool = True
    symmetric: bool = False
    horizon: int | None = None  # episodes are truncated after so many steps: `step` need not count

    @cached_property
    def generator(self) -> torch.Generator:
        """The game's random generator, its only source of randomness."""
        return torch.Generator()

    def seed(self, seed: int) -> None:
        """Reseeds the generator. A game with generators of its own extends this."""
        self.generator.manual_seed(seed)

    @abstractmethod
    def start(self) -> Snapshot:
        """Starts an episode and returns its first graph."""

    @abstractmethod
    def step(self, action: Tensor) -> SingleStep:
        """Plays one action per agent, (N,) int64 in node order."""

    def state_dict(self) -> dict[str, Any] | None:
        """The episode's state in tensors and plain containers (:attr:`generator` is saved for you), or ``None``."""
        return None

    def load_state_dict(self, state: dict[str, Any]) -> Snapshot:
        """Restores a saved state and returns the graph to act on."""
        raise RuntimeError(f'{type(self).__name__} does not save its state: call start() instead')

    def close(self) -> None:  # noqa: B027 (not every game holds resources)
        """Releases the game's resources (windows, processes)."""


class VectorGraphEnv(GraphEnv):
    """Many episodes of a :class:`SingleGraphEnv` as one disjoint batch; a finished one restarts within the step.

    Args:
        make_env: Makes one game; called ``num_envs`` times. May be the class itself.
        num_envs (int): Number of parallel games.
        seed (int): Each game gets its own seed derived from it. ``reset(seed)`` replaces it.

    The games are stepped in a loop, which suits games written in Python. (:class:`~ltos_pyg.envs.JungleEnv` steps all
    its episodes at once and implements :class:`~ltos_pyg.graph_env.GraphEnv` itself.)
    """

    def __init__(self, make_env: Callable[[], SingleGraphEnv], num_envs: int = 1, seed: int = 0) -> None:
        if num_envs < 1:
            raise ValueError(f"'num_envs' must be at least 1 (got {num_envs})")
        self.envs = [make_env() for _ in range(num_envs)]
        if len({id(env) for env in self.envs}) < num_envs:
            raise ValueError("'make_env' must make a new game at each call (got the same object again)")
        self.spec = _common_spec(self.envs)
        self._graphs: list[Snapshot] = []  # current graph of each game; empty before the first reset
        self._elapsed = [0] * num_envs
        self._names: dict[str, set[str]] = {}  # of the metrics in `info` and in `outcome`, as first reported
        self._seed(seed)

    def reset(self, seed: int | None = None) -> Batch:
        if seed is not None:
            self._seed(seed)
        self._graphs = [self._started(i) for i in range(len(self.envs))]
        return _batch(self._graphs)

    def step(self, action: Tensor) -> GraphStep:
        if not self._graphs:
            raise RuntimeError('No episode has started yet: call reset() before step()')
        sizes = [_num_nodes(graph) for graph in self._graphs]
        _check_action(action, sum(sizes), self.spec.num_actions)
        parts = action.to(self._graphs[0].x.device, torch.int64).split(sizes)  # the networks may be on a GPU
        played = [env.step(part) for env, part in zip(self.envs, parts, strict=True)]
        steps = [self._clocked(i, step) for i, step in enumerate(played)]
        for size, step in zip(sizes, steps, strict=True):
            if self.spec.fixed_nodes and not step.terminated and _num_nodes(step.graph) != size:
                raise ValueError(
                    f'the nodes of a graph must stay the same during an episode, as spec.fixed_nodes is True (got '
                    f'{_num_nodes(step.graph)} after {size}). Set fixed_nodes = False, and give each graph a node_id.'
                )
        reward = torch.cat([_reward(step, size) for step, size in zip(steps, sizes, strict=True)])
        successor = graph = _batch([step.graph for step in steps])
        ended = [step.terminated or step.truncated for step in steps]
        self._graphs = [self._started(i) if end else steps[i].graph for i, end in enumerate(ended)]
        if any(ended):
            graph = _batch(self._graphs)
        device = successor.x.device
        return GraphStep(
            graph=graph,
            successor=successor,
            reward=reward.to(device),
            terminated=torch.tensor([step.terminated for step in steps], device=device),
            truncated=torch.tensor([step.truncated for step in steps], device=device),
            info=self._metrics('info', [step.info for step in steps], device),
            outcome=self._metrics(
                'outcome', [step.outcome if end else None for step, end in zip(steps, ended, strict=True)], device
            ),
        )

    def _metrics(
        self, part: str, games: Sequence[Mapping[str, float] | None], device: torch.device
    ) -> dict[str, Tensor]:
        """The metrics of all games, by name; 0 where a game reports none now."""
        reported = [game for game in games if game is not None]
        if not reported:
            return {}
        names = self._names.setdefault(part, set(reported[0]))
        for game in reported:
            if set(game) != names:
                when = 'at every step' if part == 'info' else 'at the end of every episode'
                move = 'Give 0 where there is nothing to report.'
                if part == 'info':
                    move += " What is known only at the end of an episode belongs in 'outcome'."
                raise ValueError(
                    f"'{part}' must have the same names in every game {when} (got {sorted(game)} after "
                    f'{sorted(names)}). {move}'
                )
            for name, value in game.items():
                if isinstance(value, str) or _size(value) != 1:
                    raise ValueError(
                        f"'{part}' must hold one number per game under each name (got {name!r}: {value!r}). Report a "
                        f'mean or a sum over the agents.'
                    )
        return {
            name: torch.tensor([0.0 if game is None else float(game[name]) for game in games], device=device)
            for name in reported[0]
        }

    def state_dict(self) -> dict[str, Any] | None:
        """The state of every game, or ``None`` if one of them offers none (or none has started)."""
        states = [env.state_dict() for env in self.envs] if self._graphs else []
        if not states or any(state is None for state in states):
            return None
        return {
            'envs': copy.deepcopy(states),  # a game may still write to what it returned
            'generators': [env.generator.get_state() for env in self.envs],
            'elapsed': list(self._elapsed),
        }

    def load_state_dict(self, state: dict[str, Any]) -> Batch:
        if len(state['envs']) != len(self.envs):
            raise ValueError(
                f"'state' must hold {len(self.envs)} games (got {len(state['envs'])}). "
                f'Make the environment with num_envs={len(state["envs"])}.'
            )
        self._graphs = [env.load_state_dict(s) for env, s in zip(self.envs, copy.deepcopy(state['envs']), strict=True)]
        for env, generator in zip(self.envs, state['generators'], strict=True):
            env.generator.set_state(generator)
        self._elapsed = list(state['elapsed'])
        return _batch(self._graphs)

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def _seed(self, seed: int) -> None:
        seeds = np.random.SeedSequence(seed).generate_state(len(self.envs), np.uint64) >> np.uint64(1)
        for env, own in zip(self.envs, seeds.tolist(), strict=True):
            env.seed(own)

    def _started(self, i: int) -> Snapshot:
        self._elapsed[i] = 0
        graph = self.envs[i].start()
        self._check(i, graph, 'start')
        return graph

    def _check(self, i: int, graph: Snapshot, method: str) -> None:
        source = f'{type(self.envs[i]).__name__}.{method}()'
        _check_graph(graph, source)
        _check_widths(graph, self.spec, f'{source} of game {i}')

    def _clocked(self, i: int, step: SingleStep) -> SingleStep:
        """The step with the horizon applied; terminated and truncated are never both true."""
        if not isinstance(step, SingleStep):
            raise ValueError(
                f'{type(self.envs[i]).__name__}.step() must return a SingleStep (got {type(step).__name__}). Does it '
                f'end in a return?'
            )
        self._check(i, step.graph, 'step')
        for name in ('terminated', 'truncated'):
            if _size(getattr(step, name)) != 1:
                raise ValueError(
                    f"'{name}' must be one bool for the whole episode (got {getattr(step, name)}). An agent that "
                    f'leaves is missing from the next graph, see node_id.'
                )
        self._elapsed[i] += 1
        terminated, late = bool(step.terminated), self._elapsed[i] == self.spec.horizon
        return step._replace(terminated=terminated, truncated=(bool(step.truncated) or late) and not terminated)


def _common_spec(envs: Sequence[SingleGraphEnv]) -> GraphEnvSpec:
    specs = [_spec_of(env, len(envs)) for env in envs]
    for i, spec in enumerate(specs):
        if spec != specs[0]:
            raise ValueError(
                f"'make_env' must make games of the same sizes every time (game 0: {specs[0]}, game {i}: {spec}). "
                f"Pad their features, and give 'max_nodes' and 'max_edges' for the largest."
            )
    return specs[0]


def _spec_of(env: SingleGraphEnv, num_envs: int) -> GraphEnvSpec:
    missing = [name for name in ('num_features', 'num_actions', 'max_nodes') if not hasattr(env, name)]
    if missing:
        raise ValueError(
            f'{type(env).__name__} must declare its sizes: {", ".join(missing)} missing. '
            f'Set them as attributes of the class or in __init__.'
        )
    max_edges = env.max_nodes * (env.max_nodes - 1) if env.max_edges is None else env.max_edges
    return GraphEnvSpec(
        num_envs=num_envs,
        num_features=env.num_features,
        num_actions=env.num_actions,
        max_nodes=env.max_nodes,
        max_edges=max_edges,
        edge_dim=env.edge_dim,
        feature_dtype=env.feature_dtype,
        edge_dtype=env.edge_dtype,
        feature_scale=env.feature_scale,
        edge_scale=env.edge_scale,
        has_action_mask=env.has_action_mask,
        fixed_nodes=env.fixed_nodes,
        symmetric=env.symmetric,
        horizon=env.horizon,
    )


def _check_graph(graph: Snapshot, source: str) -> None:
    """Raises a ``ValueError`` unless it is a snapshot, ``x`` is a tensor and the edges join its own nodes. (A larger
    node number would point into another graph of the batch.)"""
    if not isinstance(graph, Snapshot):
        raise ValueError(
            f'{source} must return a Snapshot as its graph (got {type(graph).__name__}). Build it with '
            f'ltos_pyg.data.Snapshot(x=..., edge_index=...).'
        )
    for name in ('x', 'edge_index'):
        if not isinstance(graph.get(name), Tensor):
            raise ValueError(
                f"'{name}' from {source} must be a torch.Tensor (got {type(graph.get(name)).__name__}). Convert it "
                f'with torch.as_tensor.'
            )
    for name, value in graph.to_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"'{name}' of the graph from {source} must be a torch.Tensor, like every field of a Snapshot (got "
                f'{type(value).__name__}). Leave it out, or give one row per node.'
            )
    edge_index, nodes = graph.edge_index, graph.x.size(0)
    if edge_index.dim() != 2 or edge_index.size(0) != 2 or edge_index.dtype != torch.int64:
        raise ValueError(
            f"'edge_index' from {source} must have shape (2, E) of torch.int64 (got {tuple(edge_index.shape)} of "
            f'{edge_index.dtype}). Convert it with .long(); transpose an (E, 2) list with .t().contiguous().'
        )
    if edge_index.size(1) > 0:
        low, high = (int(end) for end in edge_index.aminmax())
        if low < 0 or high >= nodes:
            raise ValueError(
                f"'edge_index' from {source} must name nodes of its graph, in [0, {nodes - 1}] (got {low}..{high}). "
                f'Number the nodes of each graph from 0: the batch shifts them.'
            )


def _check_widths(graph: Snapshot, spec: GraphEnvSpec, source: str) -> None:
    """Raises a ``ValueError`` unless the fields of a snapshot have the columns that the spec declares."""
    widths = {'x': 'num_features', 'edge_attr': 'edge_dim', 'action_mask': 'num_actions'}
    for name, declared in widths.items():
        value, width = graph.get(name), getattr(spec, declared)
        if value is not None and width is not None and (value.dim() != 2 or value.size(1) != width):
            rows = 'E' if name == 'edge_attr' else 'N'
            raise ValueError(
                f"'{name}' from {source} must fit the spec: expected shape ({rows}, {declared}={width}), got "
                f'{tuple(value.shape)}. Give all games the same columns, and declare their number as {declared}.'
            )


def _check_action(action: Tensor, num_nodes: int, num_actions: int) -> None:
    if not isinstance(action, Tensor):
        raise ValueError(
            f"'action' must be a torch.Tensor (got {type(action).__name__}). Convert it with torch.as_tensor."
        )
    if tuple(action.shape) != (num_nodes,):
        raise ValueError(
            f"'action' needs one entry per node of the current batch: expected shape ({num_nodes},), "
            f'got {tuple(action.shape)}. Was it computed from an older batch?'
        )
    if action.is_floating_point() or action.dtype == torch.bool:
        raise ValueError(f"'action' must be integers (got {action.dtype}). Use an argmax, or convert with .long().")
    if num_nodes > 0 and (int(action.min()) < 0 or int(action.max()) >= num_actions):
        raise ValueError(
            f"'action' must lie in [0, {num_actions - 1}] (got {int(action.min())}..{int(action.max())}). "
            f'Does the network have {num_actions} outputs?'
        )


def _num_nodes(graph: Snapshot) -> int:
    return int(graph.x.size(0))


def _reward(step: SingleStep, num_nodes: int) -> Tensor:
    reward = torch.as_tensor(step.reward, dtype=torch.float32)
    if tuple(reward.shape) != (num_nodes,):
        raise ValueError(
            f"'reward' needs one entry per agent that acted: expected shape ({num_nodes},), got {tuple(reward.shape)}. "
            f'Agents that left in this step still get their last reward; agents that entered get none yet.'
        )
    return reward


def _size(value: Any) -> int:
    """How many numbers there are in an array, a tensor, a list or a number."""
    return value.numel() if isinstance(value, Tensor) else int(np.size(value))


def _batch(graphs: Sequence[Snapshot]) -> Batch:
    first = graphs[0]
    nodes = torch.tensor([_num_nodes(graph) for graph in graphs], device=first.x.device)
    edges = torch.tensor([graph.edge_index.size(1) for graph in graphs], device=first.x.device)
    names = first.keys()
    if any(set(graph.keys()) != set(names) for graph in graphs):
        raise ValueError(
            f'The graphs of a batch must have the same fields (got {[sorted(graph.keys()) for graph in graphs]}). '
            f'An optional field is there in every graph or in none.'
        )
    fields = {name: torch.cat([graph[name] for graph in graphs], dim=first.__cat_dim__(name, None)) for name in names}
    shift = nodes.cumsum(0) - nodes
    for key in first.NODE_NUMBERS & fields.keys():
        per_graph = edges if key in first.EDGE_FIELDS else nodes
        fields[key] = fields[key] + shift.repeat_interleave(per_graph)
    return batch_snapshots(nodes, edges, cls=type(first), **fields)
