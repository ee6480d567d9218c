"""Signals of a network: the phases to choose from, and one decision with its yellow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..checks import check_count
from .engine import TrafficEngine
from .files.network import RoadNetwork

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class SignalChoices:
    """The phases that each of I signals may show, as actions 0 to A - 1."""

    phase: Ints  # (I, A) phase of each action; padded with the signal's first choice
    allowed: Bools  # (I, A)
    yellow: Bools  # (I,) whether phase 0 is the yellow between two phases

    @property
    def num_signals(self) -> int:
        return self.phase.shape[0]

    @property
    def num_actions(self) -> int:
        return self.phase.shape[1]

    def first(self, num_envs: int) -> Ints:
        """The phases that an episode starts with (num_envs, I): phase 1 where there is one."""
        return np.tile(self.phase[:, 0], (num_envs, 1))

    def of(self, action: Ints) -> Ints:
        """The phases of actions (*, I)."""
        return self.phase[np.arange(self.num_signals), action]


def signal_choices(network: RoadNetwork, phases: int | None = 4) -> SignalChoices:
    """The phases that agents choose from.

    If a signal's phase 0 opens nothing that any of its other phases closes, it is the yellow: never chosen, shown
    between two others. This is so in the tables of CityFlow's tools, with only right turns in phase 0. The choices are
    then phases 1, 2, …; at other signals they are 0, 1, …, without yellow in between.

    Args:
        network: The network.
        phases: Most phases to choose from; ``None`` is all.

    Raises:
        ValueError: If ``phases`` is below 1, or the network has no signal.
    """
    if phases is not None:
        check_count('phases', phases, 1)
    if len(network.signals) == 0:
        raise ValueError("'network' has no signal: there is nothing to decide. Give one intersection light phases.")
    yellow = _first_is_yellow(network)
    start = yellow.astype(np.int64)
    count = network.num_phases - start
    if phases is not None:
        count = np.minimum(count, phases)
    action = np.arange(int(count.max()))
    allowed = action < count[:, None]
    phase = start[:, None] + np.where(allowed, action, 0)
    return SignalChoices(phase=phase.astype(np.int64), allowed=allowed, yellow=yellow)


def _first_is_yellow(network: RoadNetwork) -> Bools:
    exists = np.arange(network.phase_open.shape[1]) < network.num_phases[:, None]  # (I, P)
    shut = ~network.phase_open & exists[:, :, None]
    inside_all = ~(network.phase_open[:, :1] & shut).any(axis=(1, 2))
    return inside_all & (network.num_phases >= 2)


def play_decision(
    engine: TrafficEngine, choices: SignalChoices, current: Ints, target: Ints, seconds: int = 10, yellow: int = 5
) -> None:
    """Simulates ``seconds``; signals whose phase changes show phase 0 for the first ``yellow`` of them.

    Args:
        engine: B episodes.
        choices: The choices of the engine's network.
        current: (B, I) phases shown so far.
        target: (B, I) phases to show.
        seconds: Length of one decision.
        yellow: Seconds of yellow, less than ``seconds``; 0 changes at once.
    """
    pause = np.where((target != current) & choices.yellow, 0, target)
    if yellow > 0 and not np.array_equal(pause, target):
        engine.play([(pause, yellow), (target, seconds - yellow)])
    else:
        engine.play([(target, seconds)])


def check_timing(seconds: int, yellow: int) -> None:
    """Raises a ``ValueError`` unless ``yellow`` is shorter than a decision."""
    check_count('seconds', seconds, 1)
    check_count('yellow', yellow, 0)
    if yellow >= seconds:
        raise ValueError(f"'yellow' must be shorter than a decision of {seconds} s (got {yellow})")
