"""What the jungle's two implementations share: the options, and what agents see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ltos_pyg.envs.checks import check_count
from ltos_pyg.graph_env.symmetry import Symmetry

LARGEST_SIZE = 127  # cells are signed bytes in `x` and `edge_attr`
NUM_ACTIONS = 9  # 0 up, 1 left, 2 stay, 3 right, 4 down; attacks 5 up, 6 left, 7 right, 8 down
FIRST_ATTACK = 5
DY = (-1, 0, 0, 0, 1, -1, 0, 0, 1)  # where each action points
DX = (0, -1, 0, 1, 0, 0, -1, 1, 0)


@dataclass(frozen=True, kw_only=True)
class JungleConfig:
    """The options of :class:`JungleEnv`. Cells are (y, x), y down and x right, and the outer ring is wall."""

    num_agents: int = 20
    num_foods: int = 12
    size: int = 30  # cells on a side, wall included
    neighbours: int = 3  # k of the k-nearest graph; all others where there are fewer than k
    view: int = 5  # radius of the window, in cells (Euclidean)
    horizon: int = 120  # steps of an episode
    symmetric: bool = True  # neighbours if either is among the other's k nearest; else only who hears its own k nearest
    cost_on_hit: bool = False  # every attack costs 0.01 (MAgent), not only one on a blank (the paper)
    edge_features: bool = True  # edge_attr = (dy, dx), sender minus receiver

    def __post_init__(self) -> None:
        least = {'num_agents': 1, 'num_foods': 0, 'size': 3, 'neighbours': 0, 'view': 1, 'horizon': 1}
        for name, bound in least.items():
            check_count(name, getattr(self, name), bound)
        if self.size > LARGEST_SIZE:
            raise ValueError(
                f"'size' must be at most {LARGEST_SIZE}, for cells are stored as signed bytes (got {self.size}). "
                f'Use more envs on smaller boards.'
            )
        free = (self.size - 2) ** 2
        if self.num_agents + self.num_foods > free:
            raise ValueError(
                f"'num_agents' + 'num_foods' must fit on the free cells: expected at most (size - 2)^2 = {free}, got "
                f"{self.num_agents} + {self.num_foods}. Enlarge 'size'."
            )

    @property
    def degree(self) -> int:
        """k, where there are so many others."""
        return min(self.neighbours, self.num_agents - 1)

    @property
    def max_edges(self) -> int:
        """Most edges of one graph: N k directed ones, or each of them there and back, but no pair twice."""
        N = self.num_agents
        return min(2 * N * self.degree, N * (N - 1)) if self.symmetric else N * self.degree

    @property
    def num_features(self) -> int:
        """Columns of ``x``: the window, then y and x."""
        return (2 * self.view + 1) ** 2 + 2

    @property
    def payoffs(self) -> npt.NDArray[np.float32]:
        """What attacking a food, an agent and a blank brings, and what it costs the agent attacked."""
        cost = 0.01 if self.cost_on_hit else 0.0
        return np.array([1 - cost, 2 - cost, -0.01, -4], dtype=np.float32)


def board_symmetries(config: JungleConfig) -> tuple[Symmetry, ...]:
    """The eight ways to turn and mirror the board, the identity first: the rules know no direction."""
    return tuple(
        _turned(config, *way)
        for way in (
            (1, 1, False),
            (1, -1, False),
            (-1, 1, False),
            (-1, -1, False),
            (1, 1, True),
            (1, -1, True),
            (-1, 1, True),
            (-1, -1, True),
        )
    )


def _turned(config: JungleConfig, sign_y: int, sign_x: int, swap: bool) -> Symmetry:
    """The view in which the offset (y, x) has become (sign_y y, sign_x x), or (sign_y x, sign_x y) with ``swap``."""
    side = range(-config.view, config.view + 1)
    width = len(side)

    def turn(y: int, x: int) -> tuple[int, int]:
        return (sign_y * x, sign_x * y) if swap else (sign_y * y, sign_x * x)

    offsets = [(y, x) for y in side for x in side]
    place = {turn(y, x): number for number, (y, x) in enumerate(offsets)}
    window = tuple(place[offset] for offset in offsets)
    own = (1, 0) if swap else (0, 1)
    last = config.size - 1
    moves = list(zip(DY, DX, strict=True))
    kinds = (range(FIRST_ATTACK), range(FIRST_ATTACK, NUM_ACTIONS))
    action = tuple(
        next(b for kind in kinds if a in kind for b in kind if moves[b] == turn(*moves[a])) for a in range(NUM_ACTIONS)
    )
    return Symmetry(
        feature=(*window, width**2 + own[0], width**2 + own[1]),
        feature_sign=(1.0,) * width**2 + (float(sign_y), float(sign_x)),
        feature_shift=(0.0,) * width**2 + tuple(0.0 if sign > 0 else float(last) for sign in (sign_y, sign_x)),
        action=action,
        edge=own if config.edge_features else (),
        edge_sign=(float(sign_y), float(sign_x)) if config.edge_features else (),
    )


class Sight(NamedTuple):
    """What all agents see: the fields of the batch, and how many edges each graph has."""

    x: Tensor  # (B N, F) int8
    edge_index: Tensor  # (2, E) int64, numbers over the whole batch
    edge_attr: Tensor | None  # (E, 2) int8
    edges_per_graph: Tensor  # (B,) int64


def check_cells(agents: Tensor, foods: Tensor, config: JungleConfig, num_envs: int) -> Tensor:
    """Cells (B, N, 2) and (B, L, 2) given by the caller as one (B, N + L, 2) int64 tensor on the CPU.

    Raises:
        ValueError: If a shape or dtype is wrong, a cell is wall, or two of a graph are the same.
    """
    for name, given, count in (('agents', agents, config.num_agents), ('foods', foods, config.num_foods)):
        if tuple(given.shape) != (num_envs, count, 2):
            raise ValueError(
                f"'{name}' needs one (y, x) per entity: expected shape ({num_envs}, {count}, 2), got "
                f'{tuple(given.shape)}. Give all graphs, also for one: agents[None].'
            )
        if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
            raise ValueError(f"'{name}' must hold integers (got {given.dtype}). Convert them with .long().")
        if given.numel() and (int(given.min()) < 1 or int(given.max()) > config.size - 2):
            raise ValueError(
                f"'{name}' must lie on free cells, 1..{config.size - 2} on both axes: the outer ring is wall "
                f'(got {int(given.min())}..{int(given.max())}). Are they (y, x), counted from the corner?'
            )
    cells = torch.cat([agents.long().cpu(), foods.long().cpu()], 1)
    number = (cells[..., 0] * config.size + cells[..., 1]).sort(1).values
    twice = (number[:, 1:] == number[:, :-1]).any(1)
    if bool(twice.any()):
        raise ValueError(
            f"'agents' and 'foods' must stand on distinct cells (got two on one cell in graph "
            f'{int(twice.nonzero()[0])}). reset() finds distinct cells.'
        )
    return cells
