"""The common part of the jungle's two implementations: options and observations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ltos_pyg.graph_env.symmetry import Symmetry

from .checks import check_count

SMALL_SIZE = 127  # up to here cells are signed bytes in `x` and `edge_attr`, beyond 16-bit integers
LARGEST_SIZE = 2**15 - 1
LARGEST_GAIN = float(np.finfo(np.float32).max)
NUM_ACTIONS = 9  # 0 up, 1 left, 2 stay, 3 right, 4 down; attacks 5 up, 6 left, 7 right, 8 down
FIRST_ATTACK = 5
DY = (-1, 0, 0, 0, 1, -1, 0, 0, 1)  # direction of each action
DX = (0, -1, 0, 1, 0, 0, -1, 1, 0)

MANY = 256  # a board with this many agents and foods or more is large: on the CPU it is then read through a grid

Graph = Literal['knn', 'radius']


@dataclass(frozen=True, kw_only=True)
class JungleConfig:
    """Options of the jungle. Cells are (y, x), y down and x right, and the outer ring is wall."""

    num_agents: int = 20  # agents on a board
    num_foods: int = 12  # foods on a board
    size: int = 30  # cells on a side, wall included
    graph: Graph = 'knn'  # neighbours are the k nearest, or with 'radius' all agents within `radius`
    neighbours: int = 3  # k of the k-nearest graph; all others where there are fewer than k; unused with 'radius'
    radius: float = 9.0  # largest distance of neighbours with 'radius', in cells (Euclidean); 9: about 4.6 neighbours
    view: int = 5  # radius of the window, in cells (Euclidean)
    horizon: int = 120  # steps of an episode
    symmetric: bool = True  # neighbours both ways if either is among the other's k nearest; unused with 'radius'
    cost_on_hit: bool = False  # True: every attack costs 0.01 (MAgent); False: only one on a blank or wall (the paper)
    attack_gain_high: float | None = None  # what some agents gain by attacking an agent; None: 2, as all others
    high_fraction: float = 0.5  # fraction of agents, redrawn in each episode, that gain `attack_gain_high`
    edge_features: bool = True  # edge_attr = (dy, dx), sender minus receiver

    def __post_init__(self) -> None:
        least = {'num_agents': 1, 'num_foods': 0, 'size': 3, 'neighbours': 0, 'view': 1, 'horizon': 1}
        for name, bound in least.items():
            check_count(name, getattr(self, name), bound)
        if self.size > LARGEST_SIZE:
            raise ValueError(
                f"'size' must be at most {LARGEST_SIZE}, as cells are stored in 16 bits (got {self.size}). Use more "
                f'envs on smaller boards.'
            )
        free = (self.size - 2) ** 2
        if self.num_agents + self.num_foods > free:
            raise ValueError(
                f"'num_agents' + 'num_foods' must fit on the free cells: expected at most (size - 2)^2 = {free}, got "
                f"{self.num_agents} + {self.num_foods}. Enlarge 'size'."
            )
        self._check_graph()
        self._check_gains()

    def _check_graph(self) -> None:
        if self.graph not in get_args(Graph):
            raise ValueError(
                f"'graph' must be 'knn' or 'radius' (got {self.graph!r}). Choose 'knn' for the k nearest agents, "
                f"'radius' for all within a distance."
            )
        if not _is_finite(self.radius) or self.radius <= 0:
            raise ValueError(
                f"'radius' must be a finite number above 0 (got {self.radius!r}). It counts cells; to join all agents "
                f"take 2 * 'size'."
            )

    def _check_gains(self) -> None:
        gain = self.attack_gain_high
        if gain is not None and not (_is_finite(gain) and abs(gain) <= LARGEST_GAIN):
            raise ValueError(
                f"'attack_gain_high' must be a finite number that float32 can hold, or None (got {gain!r}). Leave it "
                f'out for the same gain for all agents.'
            )
        if not _is_finite(self.high_fraction) or not 0 <= self.high_fraction <= 1:
            raise ValueError(
                f"'high_fraction' must lie in [0, 1] (got {self.high_fraction!r}). It is a part of the agents, not "
                f'their number.'
            )

    @property
    def degree(self) -> int:
        """k, or the number of other agents if that is smaller."""
        return min(self.neighbours, self.num_agents - 1)

    @property
    def max_edges(self) -> int:
        """Most edges of one graph: with 'radius' all pairs both ways, or from all cells within it to each agent; else
        N k directed ones, or with their reverses, without duplicates."""
        N, reach = self.num_agents, self.reach
        if reach is not None:
            far = math.isqrt(reach)
            cells = sum(2 * math.isqrt(reach - dy * dy) + 1 for dy in range(-far, far + 1))
            return N * min(N - 1, cells - 1)
        return min(2 * N * self.degree, N * (N - 1)) if self.symmetric else N * self.degree

    @property
    def dtype(self) -> torch.dtype:
        """Of observations and edge features."""
        return torch.int8 if self.size <= SMALL_SIZE else torch.int16

    @property
    def is_large(self) -> bool:
        """Whether the pairs of agents are too many to look at all of them."""
        return self.size > SMALL_SIZE or self.num_agents + self.num_foods > MANY

    @property
    def reach(self) -> int | None:
        """The largest squared distance between neighbours; None if they are the k nearest."""
        if self.graph == 'knn':
            return None
        radius = min(self.radius, 2.0 * self.size)  # the largest distance between two cells
        return next(square for square in range(int(radius**2) + 1, -1, -1) if math.sqrt(square) <= radius)

    @property
    def num_high(self) -> int:
        """Agents of each board that gain ``attack_gain_high``."""
        return 0 if self.attack_gain_high is None else round(self.high_fraction * self.num_agents)

    @property
    def num_features(self) -> int:
        """Columns of ``x``: the window, then y and x, then the flag of a high gain where there are such gains."""
        return (2 * self.view + 1) ** 2 + 2 + (self.attack_gain_high is not None)

    @property
    def payoffs(self) -> npt.NDArray[np.float32]:
        """Reward for attacking a food, an agent and a blank, the cost for the agent attacked, and the reward of
        high-gain agents for attacking an agent."""
        cost = 0.01 if self.cost_on_hit else 0.0
        high = 2.0 if self.attack_gain_high is None else self.attack_gain_high
        return np.array([1 - cost, 2 - cost, -0.01, -4, high - cost], dtype=np.float32)


def board_symmetries(config: JungleConfig) -> tuple[Symmetry, ...]:
    """The eight rotations and reflections of the board, the identity first: the rules are invariant under them."""
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
    """The symmetry that maps the offset (y, x) to (sign_y y, sign_x x), or to (sign_y x, sign_x y) with ``swap``."""
    side = range(-config.view, config.view + 1)
    width = len(side)

    def turn(y: int, x: int) -> tuple[int, int]:
        return (sign_y * x, sign_x * y) if swap else (sign_y * y, sign_x * x)

    offsets = [(y, x) for y in side for x in side]
    place = {turn(y, x): number for number, (y, x) in enumerate(offsets)}
    window = tuple(place[offset] for offset in offsets)
    own = (1, 0) if swap else (0, 1)
    last = config.size - 1
    flag = tuple(range(width**2 + 2, config.num_features))  # stays as it is
    moves = list(zip(DY, DX, strict=True))
    kinds = (range(FIRST_ATTACK), range(FIRST_ATTACK, NUM_ACTIONS))
    action = tuple(
        next(b for kind in kinds if a in kind for b in kind if moves[b] == turn(*moves[a])) for a in range(NUM_ACTIONS)
    )
    return Symmetry(
        feature=(*window, width**2 + own[0], width**2 + own[1], *flag),
        feature_sign=(*(1.0,) * width**2, float(sign_y), float(sign_x), *(1.0 for _ in flag)),
        feature_shift=(
            *(0.0,) * width**2,
            *(0.0 if sign > 0 else float(last) for sign in (sign_y, sign_x)),
            *(0.0 for _ in flag),
        ),
        action=action,
        edge=own if config.edge_features else (),
        edge_sign=(float(sign_y), float(sign_x)) if config.edge_features else (),
    )


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


class Observations(NamedTuple):
    """Observations of all agents: the fields of the batch, and the number of edges of each graph."""

    x: Tensor  # (B N, F) int8, int16 on boards of a size above 127
    edge_index: Tensor  # (2, E) int64, node numbers of the whole batch
    edge_attr: Tensor | None  # (E, 2), likewise
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


def check_high(high: Tensor | None, config: JungleConfig, num_envs: int) -> Tensor | None:
    """Which agents have the high gain (B, N) bool on the CPU: as given by the caller, or the first ``num_high`` of each
    board. None if all agents have the same gain.

    Raises:
        ValueError: If a shape or dtype is wrong, or flags are given where all agents gain the same.
    """
    N = config.num_agents
    if config.attack_gain_high is None:
        if high is not None:
            raise ValueError(
                "'high' must be left out where all agents gain the same (got a tensor). Build the env with "
                "'attack_gain_high'."
            )
        return None
    if high is None:
        return (torch.arange(N) < config.num_high).repeat(num_envs, 1)
    if tuple(high.shape) != (num_envs, N):
        raise ValueError(
            f"'high' needs one flag per agent: expected shape ({num_envs}, {N}), got {tuple(high.shape)}. Give all "
            f'graphs, also for one: high[None].'
        )
    if high.dtype != torch.bool:
        raise ValueError(f"'high' must be of torch.bool (got {high.dtype}). Convert it with .bool().")
    return high.cpu()
