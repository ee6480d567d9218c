"""Reference policies for the jungle: scripted, from the batch of the current step alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch_geometric.data import Batch

from .jungle_rules import FIRST_ATTACK, NUM_ACTIONS

UP, LEFT, RIGHT, DOWN = 0, 1, 2, 3  # the four sides, in the order of the attacks
MOVES = (0, 1, 3, 4)  # the action that goes to each side


class RandomPolicy:
    """Draws each action uniformly, for any game.

    Args:
        num_actions (int): Actions to draw from.
        seed (int): Start of its own generator.
    """

    def __init__(self, num_actions: int = NUM_ACTIONS, seed: int = 0) -> None:
        self.num_actions = num_actions
        self.generator = torch.Generator().manual_seed(seed)

    def act(self, graph: Batch) -> Tensor:
        """One action per node (N,) int64."""
        return torch.randint(self.num_actions, (graph.x.size(0),), generator=self.generator).to(graph.x.device)


class PeacefulEater:
    """Goes to the nearest visible food, stands next to it and eats, and never attacks an agent.

    It uses its own window only. Nearest is by :math:`L_1` distance (ties: the higher row, then further left). It moves
    to a random free side that is nearer; if there is none, or no food is visible, to a random free side.

    Args:
        seed (int): Start of its own generator.
    """

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def act(self, graph: Batch) -> Tensor:
        """One action per node (N,) int64, from ``graph.x`` as :class:`JungleEnv` makes it."""
        window = _window(graph.x)
        beside = _beside(window)
        to_food, seen = _nearest_food(window)
        action = self._walk(to_food, beside)
        eats = seen & (to_food.abs().sum(1) == 1)
        action = torch.where(eats, FIRST_ATTACK + _side_of(to_food), action)
        return self._or_else(action, beside)

    def _or_else(self, action: Tensor, beside: Tensor) -> Tensor:
        """Hook for subclasses that attack."""
        return action

    def _walk(self, to_food: Tensor, beside: Tensor) -> Tensor:
        """A move to a free side, nearer if possible; ties are broken at random."""
        dy, dx = to_food.unbind(1)
        nearer = torch.stack([dy < 0, dx < 0, dx > 0, dy > 0], 1)
        chance = torch.rand(nearer.shape, generator=self.generator).to(nearer.device)
        side = torch.where(beside == 0, nearer + chance, -1.0).argmax(1)
        return torch.tensor(MOVES, device=side.device)[side]


class GreedyAttacker(PeacefulEater):
    """Attacks any agent beside it, and is a :class:`PeacefulEater` otherwise."""

    def _or_else(self, action: Tensor, beside: Tensor) -> Tensor:
        victim = beside > 0
        return torch.where(victim.any(1), FIRST_ATTACK + victim.int().argmax(1), action)


def _window(x: Tensor) -> Tensor:
    """(N, D, D) int8: the window, without the position and the flag of a high gain."""
    side = math.isqrt(max(x.size(1) - 2, 0))
    if side % 2 == 0 or x.size(1) - side * side not in (2, 3):
        raise ValueError(
            f"'graph.x' must hold a square window of odd side, then y and x (got {x.size(1)} columns). Make the graph "
            f'with JungleEnv.'
        )
    return x[:, : side * side].reshape(-1, side, side)


def _beside(window: Tensor) -> Tensor:
    """(N, 4): content of the four adjacent cells."""
    mid = window.size(1) // 2
    cells = ((mid - 1, mid), (mid, mid - 1), (mid, mid + 1), (mid + 1, mid))
    return torch.stack([window[:, y, x] for y, x in cells], 1)


def _nearest_food(window: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 2) the offset (dy, dx) to the nearest food, 0 if none is visible, and (N,) whether one is."""
    side = window.size(1)
    offset = torch.arange(side, device=window.device) - side // 2
    way = torch.cartesian_prod(offset, offset)
    steps = torch.where(window.flatten(1) == -1, way.abs().sum(1), 4 * side)
    least, where = steps.min(1)
    seen = least < 4 * side
    return way[where] * seen.unsqueeze(1), seen


def _side_of(way: Tensor) -> Tensor:
    """The side of an offset of one step."""
    dy, dx = way.unbind(1)
    return torch.where(dy < 0, UP, torch.where(dy > 0, DOWN, torch.where(dx < 0, LEFT, RIGHT)))
