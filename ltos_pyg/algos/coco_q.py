"""Coco-Q: Q-learning on a table for two players with side payments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Batch

from ltos_pyg.algos.base import Algorithm, Decision
from ltos_pyg.algos.exploration import epsilon_greedy, linear_schedule, softmax_choice
from ltos_pyg.algos.losses import masked
from ltos_pyg.algos.team import joint_mask
from ltos_pyg.data.replay_input import check_observation
from ltos_pyg.graph_env import GraphEnvSpec, GraphStep
from ltos_pyg.nn.validation import check_finite
from ltos_pyg.ranges import check_range
from ltos_pyg.seeding import generator

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class CocoQConfig:
    """Options of Coco-Q."""

    total_steps: int = 20_000  # env steps of training (one step of one graph each); all schedules run over them
    gamma: float = 0.99  # discount per step
    rate_power: float = 0.8  # the n-th visit of a state and joint action moves its values by 1 / n^this
    epsilon_start: float = 1.0  # chance of a random joint action at the start
    epsilon_end: float = 0.05  # chance of a random joint action at the end
    epsilon_fraction: float = 0.3  # fraction of training over which epsilon falls
    eval_temperature: float = 0.0  # without exploration: draw from softmax((Q_1 + Q_2) / this); 0: greedy
    max_states: int = 100_000  # rows of the table; a game with more states is refused

    def __post_init__(self) -> None:
        check_range(self, 'total_steps', 'max_states', least=1)
        check_range(self, 'gamma', 'rate_power', 'epsilon_start', 'epsilon_end', 'epsilon_fraction', least=0, most=1)
        check_range(self, 'eval_temperature', least=0)


def zero_sum_value(payoff: Array) -> float:
    r"""The value of a zero-sum game for the player who picks the row,
    :math:`\max_p \min_j \sum_i p_i M_{ij}` over mixed strategies :math:`p`.

    A saddle point where there is one; in closed form where both have two actions, :math:`(ad - bc) / (a + d - b - c)`;
    else by the simplex method on :math:`\max \sum_j y_j` subject to :math:`M y \le 1`, with entries made positive.
    """
    low, high = payoff.min(1).max(), payoff.max(0).min()
    if low >= high:
        return float(low)
    if payoff.shape == (2, 2):
        (a, b), (c, d) = payoff.tolist()
        return float((a * d - b * c) / (a + d - b - c))
    shift = 1 - payoff.min()
    return 1 / _simplex(payoff + shift) - float(shift)


def _simplex(matrix: Array) -> float:
    """The largest sum of y >= 0 with ``matrix @ y <= 1``, for positive entries; Bland's rule, which cannot cycle."""
    m, n = matrix.shape
    table = np.block([[matrix, np.eye(m), np.ones((m, 1))], [-np.ones((1, n)), np.zeros((1, m + 1))]])
    basis = np.arange(n, n + m)
    while (table[-1, :-1] < -1e-12).any():
        column = int(np.argmax(table[-1, :-1] < -1e-12))
        rows = np.flatnonzero(table[:-1, column] > 1e-12)
        ratio = table[rows, -1] / table[rows, column]
        ties = rows[ratio <= ratio.min() + 1e-15]
        row = int(ties[basis[ties].argmin()])
        table[row] /= table[row, column]
        others = np.arange(m + 1) != row
        table[others] -= np.outer(table[others, column], table[row])
        basis[row] = column
    return float(table[-1, -1])


def coco_value(own: Array, other: Array) -> tuple[float, float]:
    r"""The cooperative-competitive values of a game with payoffs :math:`U` (row player) and :math:`V` (column player).

    .. math::
        \max_{a, b} \frac{U + V}{2} \pm \mathrm{val}\Big(\frac{U - V}{2}\Big)

    Their sum is the best joint payoff; their difference is twice the value of the zero-sum part of the game.
    """
    best, edge = float((own + other).max()) / 2, zero_sum_value((own - other) / 2)
    return best + edge, best - edge


class CocoQ(Algorithm):
    r"""Q-learning on a table of both players' values, for two players whose payoffs can be moved between them.

    .. math::
        Q_i(s, a_1, a_2) \leftarrow Q_i + \frac{1}{n(s, a_1, a_2)^\omega} \Big( r_i + \gamma\,
        \mathrm{coco}_i\big(Q_1(s', \cdot), Q_2(s', \cdot)\big) - Q_i \Big), \qquad i = 1, 2

    after `"Coco-Q: Learning in Stochastic Games with Side Payments" <https://proceedings.mlr.press/v28/sodomka13.html>`_
    with :func:`coco_value`; both play :math:`\arg\max (Q_1 + Q_2)`, ties broken by the lowest number. Acting is
    centralised. The payments that make the best joint action acceptable to both players are :meth:`side_payments`; the
    environment's rewards are not changed.

    From the paper: the operator, the update, the side payments. Ours: the decaying learning rate (races in the prisoner
    make targets random), the linear exploration schedule, and the definition of a state: the node features (and action
    masks) of the graph, compared byte by byte. Edges are not used.

    Args:
        spec: What the environment promises.
        config: The options.
        seed: Seeds the exploration.
        device: Where actions are returned; the table is in main memory.

    Raises:
        ValueError: Unless every graph has the same two agents (for more, coco values have no simple form), or if the
            game has more than ``max_states`` states.
    """

    config: CocoQConfig

    def __init__(
        self, spec: GraphEnvSpec, config: CocoQConfig, seed: int = 0, device: str | torch.device = 'cpu'
    ) -> None:
        if not spec.fixed_nodes or spec.max_nodes != 2:
            raise ValueError(
                f'coco_q needs the same two players throughout, as in the prisoner: expected spec.max_nodes=2 and '
                f'spec.fixed_nodes=True, got {spec.max_nodes} and {spec.fixed_nodes}. Take qmix, which trains for any '
                f'team.'
            )
        self.spec, self.config, self.device = spec, config, torch.device(device)
        self.env_steps = self.updates = 0
        self.explore_rng = generator(seed, 'explore')
        self.play_rng = generator(seed, 'play')
        self.table = Table(spec.num_actions, config.max_states)
        self.pending: list[dict[str, Tensor]] = []  # observed, not used in an update yet

    # acting ------------------------------------------------------------------------------------------------------

    def act(self, graph: Batch, explore: bool = False) -> Decision:
        self._check(graph)
        actions, c, mask = self.spec.num_actions, self.config, self._joint_mask(graph)
        row = [self.table.find(key) for key in _keys(graph)]
        q = torch.from_numpy(self.table.q[row].sum(1)).flatten(1)  # (B, A^2); unknown states are all zero
        if explore:
            progress = min(self.env_steps / c.total_steps, 1.0)
            rate = linear_schedule(c.epsilon_start, c.epsilon_end, c.epsilon_fraction, progress)
            joint = epsilon_greedy(q, rate, self.explore_rng, mask)
        else:
            joint = softmax_choice(q, c.eval_temperature, self.play_rng, mask)
        return Decision(torch.stack([joint // actions, joint % actions], dim=1).flatten().to(self.device))

    def _joint_mask(self, graph: Batch) -> Tensor | None:
        """Which joint actions are allowed, (B, A^2)."""
        mask = graph.get('action_mask')
        return None if mask is None else joint_mask(mask.cpu().view(-1, 2, self.spec.num_actions))

    def _check(self, graph: Batch) -> None:
        if graph.num_nodes != 2 * graph.num_graphs:
            raise ValueError(
                f'coco_q needs both players in each graph: expected {2 * graph.num_graphs} nodes in '
                f'{graph.num_graphs} graphs, got {graph.num_nodes}'
            )

    def observe(self, graph: Batch, decision: Decision, step: GraphStep) -> None:
        self._check(step.successor)
        check_observation('graph', graph)
        check_finite('step.reward', step.reward.cpu())
        check_observation('step.successor', step.successor)
        self.pending.append(
            {
                'row': self._rows(graph),
                'action': decision.action.cpu().view(-1, 2),
                'reward': step.reward.cpu().double().view(-1, 2),
                'next_row': self._rows(step.successor).masked_fill(step.terminated.cpu(), -1),
            }
        )
        self.env_steps += graph.num_graphs

    def _rows(self, graph: Batch) -> Tensor:
        """The table's row of each graph (B,); a new state gets a new row."""
        mask = graph.get('action_mask')
        actions = self.spec.num_actions
        allowed = torch.ones(graph.num_nodes, actions, dtype=torch.bool) if mask is None else mask.cpu()
        pairs = zip(_keys(graph), allowed.view(-1, 2, actions).numpy(), strict=True)
        return torch.tensor([self.table.add(key, which) for key, which in pairs], dtype=torch.int64)

    def restart_episodes(self) -> None:
        """Nothing to do: every transition is stored whole."""

    # learning ----------------------------------------------------------------------------------------------------

    @property
    def due_updates(self) -> int:
        return len(self.pending)

    def update(self) -> dict[str, float]:
        """Updates the table with the oldest observed step that was not used yet: one change per graph, in graph
        order."""
        if not self.pending:
            raise ValueError("no step is left to learn from: call 'observe' first, and 'update' 'due_updates' times.")
        t = self.pending.pop(0)
        errors = [self._learn(*one) for one in zip(*(t[name].tolist() for name in TRANSITION), strict=True)]
        self.updates += 1
        return {'loss': float(np.square(errors).mean() / 2) if errors else 0.0, 'states': float(self.table.size)}

    def _learn(self, row: int, action: Sequence[int], reward: Sequence[float], next_row: int) -> Array:
        future = (0.0, 0.0) if next_row < 0 else self.table.coco(next_row)
        first, second = action
        q, visits = self.table.q[row, :, first, second], self.table.visits[row, first]
        error: Array = np.asarray(reward) + self.config.gamma * np.asarray(future) - q
        visits[second] += 1
        q += error / visits[second] ** self.config.rate_power
        return error

    # what was learned --------------------------------------------------------------------------------------------

    def values(self, graph: Batch) -> Tensor:
        """The coco value of each node (N,), float64; 0 in unvisited states."""
        rows = [self.table.find(key) for key in _keys(graph)]
        return torch.tensor([self.table.coco(row) for row in rows], dtype=torch.float64).flatten()

    def side_payments(self, graph: Batch) -> Tensor:
        r"""What each node is to receive (N,) for the best joint action, :math:`\mathrm{coco}_i(s) - Q_i(s, a^*)`.

        The two payments of a graph sum to zero. With them, each node's expected return is its value in :meth:`values`.
        """
        row = [self.table.find(key) for key in _keys(graph)]
        q = torch.from_numpy(self.table.q[row]).flatten(2)  # (B, 2, A^2)
        best = masked(q.sum(1), self._joint_mask(graph)).argmax(-1)
        return self.values(graph) - q.gather(2, best.view(-1, 1, 1).expand(-1, 2, 1)).flatten()

    # saving ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            'env_steps': self.env_steps,
            'updates': self.updates,
            'table': self.table.state_dict(),
            'pending': [dict(t) for t in self.pending],
            'rng': {'explore': self.explore_rng.get_state(), 'play': self.play_rng.get_state()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.load_policy(state)
        self.pending = [dict(t) for t in state['pending']]
        self.explore_rng.set_state(state['rng']['explore'])
        self.play_rng.set_state(state['rng']['play'])

    def policy_state(self) -> dict[str, Any]:
        return {'env_steps': self.env_steps, 'updates': self.updates, 'table': self.table.state_dict()}

    def load_policy(self, state: dict[str, Any]) -> None:
        self.env_steps, self.updates = state['env_steps'], state['updates']
        self.table.load_state_dict(state['table'])


TRANSITION = ('row', 'action', 'reward', 'next_row')


def _keys(graph: Batch) -> list[bytes]:
    """The state of each graph as bytes."""
    num_graphs = graph.num_graphs
    parts = [graph.x + 0]  # no minus zero
    if graph.get('action_mask') is not None:
        parts.append(graph.action_mask)
    flat = [part.cpu().contiguous().view(torch.uint8).view(num_graphs, -1) for part in parts]
    return [row.tobytes() for row in torch.cat(flat, dim=1).numpy()]


class Table:
    """Values of both players for each state and joint action; a row is added for each new state.

    One row beyond the last stays zero: it stands for every unvisited state.
    """

    def __init__(self, num_actions: int, max_states: int) -> None:
        self.num_actions, self.max_states = num_actions, max_states
        self.clear()

    def clear(self) -> None:
        """Removes all states."""
        actions = self.num_actions
        self.row: dict[bytes, int] = {}
        self.q = np.zeros((1, 2, actions, actions))
        self.visits = np.zeros((1, actions, actions), np.int64)
        self.allowed = np.ones((1, 2, actions), np.bool_)

    @property
    def size(self) -> int:
        """Number of visited states."""
        return len(self.row)

    def find(self, key: bytes) -> int:
        """The row of a state, or the zero row for an unvisited one."""
        return self.row.get(key, self.size)

    def add(self, key: bytes, allowed: NDArray[np.bool_]) -> int:
        """The row of a state, a new one for an unvisited state; ``allowed`` (2, A) are the players' legal actions.

        Raises:
            ValueError: If there is no room.
        """
        row = self.row.get(key)
        if row is not None:
            return row
        row = self.size
        if row >= self.max_states:
            raise ValueError(
                f"coco_q has a table of at most 'max_states' {self.max_states} states, and this game has more. Raise "
                f'it if the game is small after all; a game with continuous observations needs another method.'
            )
        self.row[key] = row
        if row + 1 >= len(self.q):
            for name in ('q', 'visits', 'allowed'):
                old = getattr(self, name)
                fill = np.ones_like(old) if name == 'allowed' else np.zeros_like(old)
                setattr(self, name, np.concatenate([old, fill]))
        self.allowed[row] = allowed
        return row

    def coco(self, row: int) -> tuple[float, float]:
        """The coco values of a state, over the players' legal actions."""
        first, second = self.allowed[row]
        own, other = self.q[row][:, first][:, :, second]
        return coco_value(own, other)

    def state_dict(self) -> dict[str, Any]:
        """The rows in use, as tensors."""
        used = {name: torch.from_numpy(getattr(self, name)[: self.size].copy()) for name in ('q', 'visits', 'allowed')}
        keys = np.frombuffer(b''.join(self.row), np.uint8).reshape(self.size, -1 if self.size else 0)
        return {'keys': torch.from_numpy(keys.copy()), **used}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores saved rows."""
        self.clear()
        for key, allowed in zip(state['keys'].numpy(), state['allowed'].numpy(), strict=True):
            self.add(key.tobytes(), allowed)
        for name in ('q', 'visits'):
            getattr(self, name)[: self.size] = state[name].numpy()
