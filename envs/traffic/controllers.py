"""Baseline controllers, which are not learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..checks import check_count
from .engine import TrafficEngine
from .files.network import RoadNetwork
from .signals import Ints, SignalChoices, check_timing, play_decision

Floats = npt.NDArray[np.float64]
Of = Literal['counts', 'queues']

Controller = Callable[[TrafficEngine], Ints]
"""Chooses the phases of the I signals from the state of an engine with B episodes, (B, I)."""


@dataclass(frozen=True, eq=False)
class FixedTime:
    """Every signal shows its choices in turn, each for ``seconds``, all of them starting with the first."""

    choices: SignalChoices
    seconds: int = 20

    def __post_init__(self) -> None:
        check_count('seconds', self.seconds, 1)

    def __call__(self, engine: TrafficEngine) -> Ints:
        turn = engine.time // self.seconds % self.choices.allowed.sum(1)
        return np.tile(self.choices.of(turn), (engine.num_envs, 1))


class RandomPhase:
    """Draws one of its choices for every signal at every decision, uniformly."""

    def __init__(self, choices: SignalChoices, seed: int = 0) -> None:
        self.choices = choices
        self.generator = np.random.default_rng(seed)

    def __call__(self, engine: TrafficEngine) -> Ints:
        count = self.choices.allowed.sum(1)
        return self.choices.of(self.generator.integers(0, count, (engine.num_envs, len(count))))


class MostPressing:
    r"""Shows the choice whose open movements have the most pressure. Ties go to the lowest number.

    A movement leads from one road to another at a signal. Its pressure is the number of vehicles on the lanes that it
    starts from, for ``outgoing`` less the mean number on the lanes that it leads to,

    .. math::
        p(\text{phase}) = \sum_{m\ \text{open}} \Big(\sum_{l \in \text{in}(m)} n_l
        - \frac{1}{|\text{out}(m)|} \sum_{l \in \text{out}(m)} n_l\Big).

    Movements that every choice opens do not count. The sum runs in the order of the network's file, in float64: if two
    choices have the same pressure up to rounding, rounding decides. (Traffic is chaotic: such ties changed the mean
    travel time of an hour by up to 9 % in trials.)

    Args:
        network: The network.
        choices: What may be shown.
        of: Whether :math:`n_l` counts all vehicles, or those that wait.
        outgoing: Whether the lanes that a movement leads to are included. With them it is max-pressure after Varaiya,
            `"Max pressure control of a network of signalized intersections"
            <https://doi.org/10.1016/j.trc.2013.08.014>`_; without, the longest queue or the largest count goes first.
    """

    def __init__(self, network: RoadNetwork, choices: SignalChoices, of: Of = 'counts', outgoing: bool = True) -> None:
        if of not in ('counts', 'queues'):
            raise ValueError(f"'of' must be 'counts' or 'queues' (got {of!r})")
        self.choices, self.of, self.outgoing = choices, of, outgoing
        self.start, self.end = _lanes_of(network, network.link_start), _lanes_of(network, network.link_end)
        self.movements = _movements(network, choices)

    def pressure(self, engine: TrafficEngine) -> Floats:
        """The pressure of every choice, (B, I, A); minus infinity where a signal has no such choice."""
        count = engine.lane_vehicle_count() if self.of == 'counts' else engine.lane_waiting_count()
        of_movement = _sum_of(count, self.start)
        if self.outgoing:
            of_movement = of_movement - _sum_of(count, self.end) / np.maximum((self.end >= 0).sum(1), 1)
        of_movement = np.pad(of_movement.astype(np.float64), ((0, 0), (0, 1)))  # target of padded entries
        total = np.zeros((engine.num_envs, *self.choices.phase.shape))
        for column in np.moveaxis(self.movements, -1, 0):
            total += of_movement[:, column]
        return np.where(self.choices.allowed, total, -np.inf)

    def __call__(self, engine: TrafficEngine) -> Ints:
        return self.choices.of(self.pressure(engine).argmax(-1))


def _lanes_of(network: RoadNetwork, lane_of_link: Ints) -> Ints:
    """The lanes at one end of each road link, each once, (M, *); -1 where padded."""
    lanes = [np.unique(lane_of_link[network.link_road_link == m]) for m in range(len(network.road_link_start))]
    return _padded(lanes)


def _movements(network: RoadNetwork, choices: SignalChoices) -> Ints:
    """The road links that each choice opens and some other choice closes, (I, A, *); -1 where padded."""
    rows: list[Ints] = []
    for links, opened, phases, allowed in zip(
        network.signal_road_links, network.phase_open, choices.phase, choices.allowed, strict=True
    ):
        counts = (links >= 0) & ~opened[phases[allowed]].all(0)
        rows += [links[opened[phase] & counts] for phase in phases]
    return _padded(rows).reshape(*choices.phase.shape, -1)


def _padded(rows: list[Ints]) -> Ints:
    table = np.full((len(rows), max(map(len, rows), default=0)), -1, dtype=np.int64)
    for k, row in enumerate(rows):
        table[k, : len(row)] = row
    return table


def _sum_of(count: npt.NDArray[np.int32], lanes: Ints) -> npt.NDArray[np.int64]:
    """(B, M): the sum of (B, L) over the lanes of each row."""
    return (count[:, np.maximum(lanes, 0)] * (lanes >= 0)).sum(-1)


CONTROLLERS: tuple[str, ...] = (
    'fixed', 'random', 'longest-queue', 'greedy-count', 'max-pressure', 'max-pressure-queues'
)  # fmt: skip


def make_controller(
    name: str, network: RoadNetwork, choices: SignalChoices, seconds: int = 20, seed: int = 0
) -> Controller:
    """A controller by name, one of ``CONTROLLERS``.

    Args:
        name: Name of the controller.
        network: The network.
        choices: What may be shown.
        seconds: Length of each phase, for ``'fixed'``.
        seed: Seed of the draws, for ``'random'``.

    Raises:
        ValueError: If there is no such controller; lists the known ones.
    """
    if name == 'fixed':
        return FixedTime(choices, seconds)
    if name == 'random':
        return RandomPhase(choices, seed)
    if name == 'longest-queue':
        return MostPressing(network, choices, 'queues', outgoing=False)
    if name == 'greedy-count':
        return MostPressing(network, choices, 'counts', outgoing=False)
    if name == 'max-pressure':
        return MostPressing(network, choices, 'counts')
    if name == 'max-pressure-queues':
        return MostPressing(network, choices, 'queues')
    raise ValueError(f"unknown controller '{name}'. Choose one of: {', '.join(CONTROLLERS)}")


def drive(
    engine: TrafficEngine,
    controller: Controller,
    choices: SignalChoices,
    horizon: int = 3600,
    seconds: int = 10,
    yellow: int = 5,
) -> Ints:
    """Simulates B whole episodes under a controller, which decides every ``seconds``.

    Args:
        engine: The engine; it is reset first.
        controller: The controller.
        choices: What may be shown; the first choice of each signal is shown at the start.
        horizon: Seconds of an episode.
        seconds: Length of one decision.
        yellow: As in :func:`~ltos_pyg.envs.traffic.signals.play_decision`.

    Returns:
        The phases chosen at each decision, (decisions, B, I).

    Raises:
        ValueError: If the horizon, or the time for which fixed-time control shows a phase, is not a multiple of a
            decision, or the yellow is not shorter than one.
    """
    check_timing(seconds, yellow)
    if isinstance(controller, FixedTime) and controller.seconds % seconds:
        raise ValueError(
            f"'seconds' of FixedTime (--fixed-seconds) must be a multiple of a decision's {seconds} s, for phases "
            f'change at decisions only (got {controller.seconds})'
        )
    check_count('horizon', horizon, seconds)
    if horizon % seconds:
        raise ValueError(f"'horizon' must be a multiple of a decision's {seconds} s (got {horizon})")
    engine.reset()
    phase = choices.first(engine.num_envs)
    plan = np.empty((horizon // seconds, *phase.shape), np.int64)
    for k in range(len(plan)):
        plan[k] = controller(engine)
        play_decision(engine, choices, phase, plan[k], seconds, yellow)
        phase = plan[k]
    return plan
