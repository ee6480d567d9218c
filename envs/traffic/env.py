"""Traffic: signals of a road network choose their phases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch_geometric.data import Batch

from ltos_pyg.data import batch_snapshots
from ltos_pyg.graph_env import GraphEnv, GraphEnvSpec, GraphStep

from ..checks import check_action, check_count
from ..options import options_of
from .config import TrafficConfig
from .engine import Backend, TrafficEngine, make_engine
from .files.flow import Flow
from .files.network import RoadNetwork
from .metrics import TrafficMetrics
from .signals import Ints, SignalChoices, check_timing, play_decision
from .view import View

Task = tuple[RoadNetwork, Flow]

VEHICLES_SCALE = 0.1  # networks see tens of vehicles
METRES_SCALE = 0.005  # and units of 200 m
REWARD_QUEUE = 10.0  # waiting vehicles that cost a reward of -1


class TrafficEnv(GraphEnv):
    r"""Signals that decide every ``seconds`` which of their phases to show, after `"Learning to Share in Multi-Agent
    Reinforcement Learning" <https://arxiv.org/abs/2112.08702>`_.

    **Agents** are the intersections with lights, in the order of the network's file.

    **Actions** are the phases of :func:`~ltos_pyg.envs.traffic.signals.signal_choices`, counted from 0: with the
    default ``phases=4`` and the tables of the paper's networks, action a shows phase a + 1. If signals differ in their
    number of phases, ``action_mask`` marks the phases of each. A signal that changes shows phase 0 for ``yellow``
    seconds first.

    **Observation**, int16: the phase shown, one-hot over the actions (with ``phase_bits`` instead: for each movement
    that some choice closes, whether it is open; the authors' 8 bits on their network); then the vehicles on each
    incoming lane; with ``observe_waiting`` also the waiting ones. Lanes come in the order of the network's
    ``incoming``; a signal with fewer than others has zeros at the end. ``spec.feature_scale`` converts counts to tens
    of vehicles.

    **Reward** of a signal: minus the number of vehicles that wait (below 0.1 m/s) on its incoming lanes, averaged over
    the seconds of the decision (counted at the start of each second) and divided by 10. So -1 is a mean queue of 10
    vehicles. (The authors' reward is 0.125 times this one.)

    **Graph**: two signals are connected in both directions if a road leads from one to the other. Edges are sorted by
    graph, receiver and sender. ``edge_attr`` is the offset from receiver to sender, in metres to the east and to the
    north, int16; ``spec.edge_scale`` converts it to units of 200 m.

    Episode b plays task ``b % len(tasks)``: networks of several sizes may be in one batch. (Tasks beyond ``num_envs``
    are not played; they still count for the sizes in the spec. Training needs an episode for each task.) All episodes
    share one clock; they are truncated and restarted together after ``horizon`` decisions. Nothing terminates, and
    nothing is random: all episodes of a task have the same start.

    Args:
        tasks: Networks, each with its flow; or a single pair.
        num_envs (int): Parallel episodes, B.
        config (TrafficConfig, optional): The options; networks and flows are ignored in favour of ``tasks``.
        seconds (int): Seconds of a decision.
        seed (int): CityFlow's seed, which most flows do not use.
        device: Where the tensors live.
        **options: Single options of :class:`~ltos_pyg.envs.TrafficConfig`, e.g. ``yellow=3``.

    ``info`` has per graph (B,) the mean ``queue`` of a signal, and ``switches``, the share of signals that changed;
    ``outcome`` has, where an episode ended, the metrics of :class:`~ltos_pyg.envs.traffic.metrics.TrafficMetrics`.

    Raises:
        ValueError: If an option or an action is out of its range, or a network has no signal.
    """

    def __init__(
        self,
        tasks: Task | Sequence[Task],
        num_envs: int = 1,
        config: TrafficConfig | None = None,
        *,
        seconds: int = 10,
        seed: int = 0,
        device: str | torch.device = 'cpu',
        **options: Any,
    ) -> None:
        self.config = c = options_of(TrafficConfig, config, options)
        check_count('num_envs', num_envs, 1)
        check_count('horizon', c.horizon, 1)
        check_timing(seconds, c.yellow)
        pairs = _pairs(tasks)
        self.num_envs, self.yellow, self.seconds, self.horizon = num_envs, c.yellow, seconds, c.horizon
        self.observe_waiting, self.device = c.observe_waiting, torch.device(device)
        views = [View.of(network, c.phases, c.phase_bits) for network, _ in pairs]
        heads, lanes = max(view.num_heads for view in views), max(view.num_lanes for view in views)
        self._columns = (0, heads, heads + lanes)  # first columns of phase, vehicles and waiting vehicles in `x`
        self.spec = _spec(views, num_envs, c.horizon, c.observe_waiting, c.edge_features)
        self._groups = _groups(pairs, views, num_envs, c.backend, c.engine_threads, seed)
        fixed, self._nodes_of = _unchanging(self._groups, num_envs, self.spec)
        self._mask = fixed['action_mask'].numpy() if self.spec.has_action_mask else None
        self._fixed = {name: value.to(self.device) for name, value in fixed.items()}
        self._num_nodes = len(fixed['batch'])
        self._clock: int | None = None  # decisions played; None before the first reset

    @property
    def engines(self) -> tuple[TrafficEngine, ...]:
        """One engine per task: episode b is number ``b // len(engines)`` of engine ``b % len(engines)``."""
        return tuple(group.engine for group in self._groups)

    @property
    def phases(self) -> tuple[Ints, ...]:
        """The phases shown, per engine and in its order: its episodes by its signals."""
        return tuple(group.phase.copy() for group in self._groups)

    @property
    def choices(self) -> tuple[SignalChoices, ...]:
        """The phases that signals choose from, per engine."""
        return tuple(group.view.choices for group in self._groups)

    def reset(self, seed: int | None = None) -> Batch:
        """Starts all episodes. The seed has no effect."""
        for group in self._groups:
            group.reset()
        self._clock = 0
        return self._batch()

    def step(self, action: Tensor) -> GraphStep:
        if self._clock is None:
            raise RuntimeError('the episodes have not begun: call reset() before step()')
        action = check_action(action, self._num_nodes, self.spec.num_actions, self.device)
        chosen = action.cpu().numpy()
        self._check_allowed(chosen)
        reward = np.empty(len(chosen), np.float32)
        info = {name: np.empty(self.num_envs, np.float32) for name in ('queue', 'switches')}
        for group, nodes in zip(self._groups, self._nodes_of, strict=True):
            queue, switched = group.play(chosen[nodes], self.seconds, self.yellow)
            reward[nodes] = -queue / REWARD_QUEUE
            info['queue'][group.episodes], info['switches'][group.episodes] = queue.mean(1), switched.mean(1)
        self._clock += 1
        graph = successor = self._batch()
        over = self._clock >= self.horizon
        outcome = self._outcome() if over else {}
        if over:
            graph = self.reset()
        return GraphStep(
            graph,
            successor,
            torch.from_numpy(reward).to(self.device),
            torch.zeros(self.num_envs, dtype=torch.bool, device=self.device),
            torch.full((self.num_envs,), over, device=self.device),
            self._tensors(info),
            self._tensors(outcome),
        )

    def metrics(self) -> dict[str, Tensor]:
        """The metrics of the running episodes so far, (B,) each."""
        return self._tensors(self._outcome())

    def state_dict(self) -> dict[str, Any]:
        return {
            'clock': self._clock,
            'engines': [_to_tensors(group.engine.state_dict()) for group in self._groups],
            'phases': [torch.from_numpy(group.phase.copy()) for group in self._groups],
        }

    def load_state_dict(self, state: dict[str, Any]) -> Batch:
        if len(state['engines']) != len(self._groups):
            raise ValueError(
                f"'state' is of {len(state['engines'])} tasks, expected {len(self._groups)}. Build the env with the "
                f'networks and flows of the saved one.'
            )
        for group, saved, phase in zip(self._groups, state['engines'], state['phases'], strict=True):
            group.engine.load_state_dict(_to_arrays(saved, group.engine.state_dict()))
            group.phase = phase.numpy().copy()
            group.waited = group.waiting_seconds()
        self._clock = state['clock']
        return self._batch()

    def close(self) -> None:
        for group in self._groups:
            group.engine.close()

    def _batch(self) -> Batch:
        x = np.zeros((self._num_nodes, self.spec.num_features), np.int16)
        for group, nodes in zip(self._groups, self._nodes_of, strict=True):
            parts = [group.view.head(group.phase), group.lanes(group.engine.lane_vehicle_count())]
            if self.observe_waiting:
                parts.append(group.lanes(group.engine.lane_waiting_count()))
            for start, part in zip(self._columns, parts, strict=False):
                x[nodes, start : start + part.shape[-1]] = part
        return batch_snapshots(x=torch.from_numpy(x).to(self.device), **self._fixed)

    def _check_allowed(self, action: Ints) -> None:
        if self._mask is None:
            return
        wrong = np.flatnonzero(~self._mask[np.arange(len(action)), action])
        if wrong.size:
            node = int(wrong[0])
            raise ValueError(
                f"'action' of node {node} must be one that action_mask allows: expected one of "
                f'{np.flatnonzero(self._mask[node]).tolist()}, got {action[node]}. Mask the Q-values before choosing.'
            )

    def _outcome(self) -> dict[str, npt.NDArray[Any]]:
        outcome: dict[str, npt.NDArray[Any]] = {}
        for group in self._groups:
            for name, value in group.metrics().items():
                outcome.setdefault(name, np.empty(self.num_envs))[group.episodes] = value
        return outcome

    def _tensors(self, named: dict[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
        return {name: torch.from_numpy(value).float().to(self.device) for name, value in named.items()}


class _Group:
    """The episodes of one task."""

    def __init__(self, engine: TrafficEngine, view: View, episodes: Ints) -> None:
        self.engine, self.view, self.episodes = engine, view, episodes
        self.metrics = TrafficMetrics(engine)
        incoming = engine.network.incoming
        self.exists, self.lane = incoming >= 0, np.maximum(incoming, 0)
        self.reset()

    def reset(self) -> None:
        self.engine.reset()
        self.phase = self.view.choices.first(self.engine.num_envs)
        self.waited = self.waiting_seconds()

    def play(self, action: Ints, seconds: int, yellow: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """One decision (B, I): the mean number of vehicles that waited at each signal, and the signals that changed."""
        target = self.view.choices.of(action)
        switched = target != self.phase
        play_decision(self.engine, self.view.choices, self.phase, target, seconds, yellow)
        self.phase, before = target, self.waited
        self.waited = self.waiting_seconds()
        return (self.waited - before) / seconds, switched

    def lanes(self, count: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A number per lane (B, L) as one per signal and incoming lane, (B, I, *)."""
        return count[:, self.lane] * self.exists

    def waiting_seconds(self) -> npt.NDArray[np.float64]:
        """Per signal, (B, I)."""
        return self.lanes(self.engine.waiting_seconds()).sum(-1)


def _pairs(tasks: Any) -> list[Task]:
    if isinstance(tasks, tuple) and len(tasks) == 2 and isinstance(tasks[0], RoadNetwork):
        tasks = [tasks]
    pairs = list(tasks)
    if not pairs:
        raise ValueError("'tasks' must hold at least one pair of a network and a flow (got none)")
    return pairs


def _groups(
    pairs: list[Task], views: list[View], num_envs: int, backend: Backend, threads: int, seed: int
) -> list[_Group]:
    groups = []
    for k, ((network, flow), view) in enumerate(zip(pairs[:num_envs], views, strict=False)):
        episodes = np.arange(k, num_envs, len(pairs))
        engine = make_engine(network, flow, len(episodes), backend, threads, seed)
        groups.append(_Group(engine, view, episodes))
    return groups


def _spec(views: list[View], num_envs: int, horizon: int, observe_waiting: bool, edge_features: bool) -> GraphEnvSpec:
    choices = [view.choices for view in views]
    heads, lanes = max(view.num_heads for view in views), max(view.num_lanes for view in views)
    lane_columns = lanes * (1 + observe_waiting)
    return GraphEnvSpec(
        num_envs=num_envs,
        num_features=heads + lane_columns,
        num_actions=max(c.num_actions for c in choices),
        max_nodes=max(c.num_signals for c in choices),
        max_edges=max(view.edge_index.shape[1] for view in views),
        edge_dim=2 if edge_features else None,
        feature_dtype=torch.int16,
        edge_dtype=torch.int16,
        feature_scale=(1.0,) * heads + (VEHICLES_SCALE,) * lane_columns,
        edge_scale=(METRES_SCALE,) * 2 if edge_features else None,
        has_action_mask=len({c.num_actions for c in choices}) > 1 or not all(c.allowed.all() for c in choices),
        symmetric=True,
        horizon=horizon,
        num_tasks=len(views),
    )


def _unchanging(groups: list[_Group], num_envs: int, spec: GraphEnvSpec) -> tuple[dict[str, Any], list[Ints]]:
    """Every tensor of a batch but the observations, and the nodes of each group, (B, I) each."""
    view_of = [groups[b % len(groups)].view for b in range(num_envs)]
    nodes = np.array([view.choices.num_signals for view in view_of])
    edges = np.array([view.edge_index.shape[1] for view in view_of])
    ptr = np.concatenate([[0], nodes.cumsum()])
    fields = {
        'nodes_per_graph': nodes,
        'edges_per_graph': edges,
        'ptr': ptr,
        'batch': np.arange(num_envs).repeat(nodes),
        'node_id': np.concatenate([np.arange(n) for n in nodes]),
        'edge_index': np.concatenate([view.edge_index + ptr[b] for b, view in enumerate(view_of)], axis=1),
    }
    if spec.edge_dim is not None:
        fields['edge_attr'] = np.concatenate([view.offset for view in view_of])
    if spec.has_action_mask:
        mask = np.zeros((int(ptr[-1]), spec.num_actions), bool)
        for b, view in enumerate(view_of):
            mask[ptr[b] : ptr[b + 1], : view.choices.num_actions] = view.choices.allowed
        fields['action_mask'] = mask
    nodes_of = [ptr[group.episodes][:, None] + np.arange(group.view.choices.num_signals) for group in groups]
    return {name: torch.from_numpy(value) for name, value in fields.items()}, nodes_of


def _to_tensors(state: Any) -> Any:
    """Arrays as tensors, recursively, as a checkpoint needs; records as bytes."""
    if isinstance(state, dict):
        return {key: _to_tensors(value) for key, value in state.items()}
    if not isinstance(state, np.ndarray):
        return state
    if state.dtype.names is not None:
        state = np.ascontiguousarray(state)[..., None].view(np.uint8)
    return torch.from_numpy(state.copy())


def _to_arrays(state: Any, like: Any) -> Any:
    """The inverse; ``like`` is a state of the same kind, which defines the record types."""
    if isinstance(state, dict):
        return {
            key: _to_arrays(value, like.get(key) if isinstance(like, dict) else None) for key, value in state.items()
        }
    if not isinstance(state, Tensor):
        return state
    array = state.numpy().copy()
    if isinstance(like, np.ndarray) and like.dtype.names is not None:
        if array.dtype != np.uint8 or array.ndim != like.ndim + 1 or array.shape[-1] != like.dtype.itemsize:
            raise ValueError("'state' is of another version of the engine. Start new episodes with reset().")
        return array.view(like.dtype)[..., 0]
    return array
