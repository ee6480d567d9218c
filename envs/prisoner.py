"""The prisoner: a corridor game in which two players earn more by going to their own goals than by racing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch_geometric.data import Batch

from ltos_pyg.data import batch_snapshots
from ltos_pyg.graph_env import GraphEnv, GraphEnvSpec, GraphStep

from .checks import check_action, check_count
from .options import options_of
from .streams import draw, first_streams


@dataclass(frozen=True, kw_only=True)
class PrisonerConfig:
    """Options of the prisoner."""

    length: int = 9  # cells of the corridor, odd, 5 or more
    horizon: int = 50  # steps after which an episode is truncated
    cost: float = 0.01  # cost of each action, the last one included

    def __post_init__(self) -> None:
        for name, least in (('length', 5), ('horizon', 1)):
            check_count(name, getattr(self, name), least)
        if self.length % 2 == 0:
            raise ValueError(
                f"'length' must be odd, as the corridor needs a middle cell (got {self.length}). Try {self.length + 1}."
            )


class PrisonerEnv(GraphEnv):
    r"""Two players in a corridor, a prisoner's dilemma in time.

    .. code-block:: text

        cell   0    1    2    3    4    5    6    7    8
              [A]             A  [any]  B             [B]

    A starts left of the middle, B right of it. The first cell is a goal for A only, the last for B only, the middle one
    for both. Actions: 0 left, 1 right. Every action costs ``cost``, also the last; a player on a goal of its own gets
    1, and the episode ends. If both step to the middle at once, a fair coin decides which one enters; the other stays
    in place. (They cannot swap places: the middle, where episodes end, lies between them.)

    With the default 9 cells the plans "go home" (C) and "take the middle" (D) return (for A, for B)

    ====  ============  ============
    ..    B: C          B: D
    ====  ============  ============
    A: C  .97, .97      -.01, .99
    A: D  .99, -.01     .49, .49
    ====  ============  ============

    (D, D) in expectation: a dilemma. The game is the corridor of Sodomka et al., `"Coco-Q: Learning in Stochastic Games
    with Side Payments" <https://proceedings.mlr.press/v28/sodomka13.html>`_, as `"Learning to Share in Multi-Agent
    Reinforcement Learning" <https://arxiv.org/abs/2112.08702>`_ uses it.

    Each player observes everything: its own cell and the other's as one-hots of ``length``, then its identity (1, 0 for
    A; 0, 1 for B). The graph is one edge in each direction. Episodes end independently, and restart within the step.

    Args:
        num_envs (int): Parallel episodes, B.
        config (PrisonerConfig, optional): The options of the game.
        seed (int): Seed of the env's own random streams; graph b draws the same numbers in a batch of any size.
        device: Where the tensors live.
        **options: Single options of :class:`~ltos_pyg.envs.PrisonerConfig`, e.g. ``length=11``.

    ``info`` has ``length`` (B,), the steps played so far in each episode, and ``races`` (B,), 1 where both stepped to
    the middle at once.

    Raises:
        ValueError: If an option or an action is out of its range.
    """

    def __init__(
        self,
        num_envs: int = 1,
        config: PrisonerConfig | None = None,
        *,
        seed: int = 0,
        device: str | torch.device = 'cpu',
        **options: Any,
    ) -> None:
        check_count('num_envs', num_envs, 1)
        self.config = options_of(PrisonerConfig, config, options)
        length, horizon, cost = self.config.length, self.config.horizon, self.config.cost
        self.num_envs, self.length, self.horizon, self.cost = num_envs, length, horizon, cost
        self.device = torch.device(device)
        self.spec = GraphEnvSpec(
            num_envs=num_envs,
            num_features=2 * length + 2,
            num_actions=2,
            max_nodes=2,
            max_edges=2,
            symmetric=True,
            horizon=horizon,
        )
        middle, last = length // 2, length - 1
        self._start = torch.tensor([middle - 1, middle + 1], device=self.device)
        self._goals = torch.tensor([[0, middle], [middle, last]], device=self.device)  # of A, of B
        self._streams = first_streams(seed, num_envs, 'prisoner').to(self.device)
        self._cell = self._start.repeat(num_envs, 1)
        self._clock = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self._fixed = _unchanging(num_envs, self.device)
        self._ready = False

    def reset(self, seed: int | None = None) -> Batch:
        if seed is not None:
            self._streams = first_streams(seed, self.num_envs, 'prisoner').to(self.device)
        self._cell = self._start.repeat(self.num_envs, 1)
        self._clock = torch.zeros_like(self._clock)
        self._ready = True
        return self._batch(self._cell)

    def step(self, action: Tensor) -> GraphStep:
        if not self._ready:
            raise RuntimeError('the episodes have not begun: call reset() before step()')
        action = check_action(action, 2 * self.num_envs, 2, self.device)
        target = self._cell + 2 * action.view(-1, 2) - 1
        race = target[:, 0] == target[:, 1]
        coin = draw(self._streams, 2)  # drawn at every step, so that streams do not depend on the actions
        stays = race.unsqueeze(1) & (coin.unsqueeze(1) == torch.arange(2, device=self.device))
        cell = torch.where(stays, self._cell, target)
        scored = (cell.unsqueeze(2) == self._goals).any(2)
        reward = (scored.float() - self.cost).flatten()
        clock = self._clock + 1
        terminated = scored.any(1)
        truncated = ~terminated & (clock >= self.horizon)
        info = {'length': clock.float(), 'races': race.float()}
        ended = terminated | truncated
        successor = graph = self._batch(cell)
        if bool(ended.any()):
            cell = torch.where(ended.unsqueeze(1), self._start, cell)
            clock = clock.masked_fill(ended, 0)
            graph = self._batch(cell)
        self._cell, self._clock = cell, clock
        return GraphStep(graph, successor, reward, terminated, truncated, info)

    def state_dict(self) -> dict[str, Any]:
        state = {'cell': self._cell.cpu(), 'clock': self._clock.cpu(), 'streams': self._streams.cpu().clone()}
        return state | {'length': self.length}

    def load_state_dict(self, state: dict[str, Any]) -> Batch:
        if tuple(state['cell'].shape) != (self.num_envs, 2):
            raise ValueError(
                f"'state' is of {state['cell'].size(0)} episodes, expected num_envs={self.num_envs}. Build the env "
                f'with the num_envs of the saved one.'
            )
        if state.get('length', self.length) != self.length:  # earlier versions did not save it
            raise ValueError(
                f"'state' is of a corridor of length {state['length']}, expected {self.length}. Build the env with the "
                f'options of the saved one.'
            )
        self._cell, self._clock = state['cell'].to(self.device), state['clock'].to(self.device)
        self._streams = state['streams'].to(self.device, copy=True)
        self._ready = True
        return self._batch(self._cell)

    def _batch(self, cell: Tensor) -> Batch:
        other = cell.flip(1)
        place = one_hot(torch.stack([cell, other], 2).view(-1, 2), self.length).view(-1, 2 * self.length)
        return batch_snapshots(x=torch.cat([place.float(), self._fixed['player']], 1), **self._fixed['rest'])


def _unchanging(num_envs: int, device: torch.device) -> dict[str, Any]:
    """All fields of a batch except the positions."""
    ptr = 2 * torch.arange(num_envs + 1, device=device)
    pair = torch.tensor([[1, 0], [0, 1]], device=device)  # receivers 0, then 1
    two = torch.full((num_envs,), 2, device=device)
    rest = {
        'nodes_per_graph': two,
        'edges_per_graph': two,
        'ptr': ptr,
        'batch': torch.arange(num_envs, device=device).repeat_interleave(2),
        'node_id': torch.arange(2, device=device).repeat(num_envs),
        'edge_index': (pair.unsqueeze(1) + ptr[:-1].unsqueeze(1)).view(2, -1),
    }
    return {'player': torch.eye(2, device=device).repeat(num_envs, 1), 'rest': rest}
