"""Metrics of a traffic episode, as defined by CityFlow, by the authors' code of LToS and by its paper."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from .engine import TrafficEngine
from .files.network import RoadNetwork
from .free_flow import FreeFlow, free_flow

Floats = npt.NDArray[np.float64]

RED_LIGHT = 10.0  # seconds counted as one red light: the length of a decision

DESCRIPTIONS = {
    'duration': "s from entering to leaving the last stop line with lights (so far): the authors' duration",
    'average_travel_time': "s from departure to arrival, or until now: CityFlow's",
    'scheduled': 'vehicles due to depart',
    'entered': 'vehicles that entered',
    'finished': 'vehicles that left the network: the throughput',
    'queue': 'waiting vehicles (below 0.1 m/s) on the incoming lanes of a signal',
    'queue_time': 's that a vehicle waited on incoming lanes',
    'delay': 's of the duration beyond that of a lone vehicle at green lights',
    'red_lights_delay': 'definition A: delay per intersection with lights, over 10 s',
    'red_lights_queue': 'definition B: queue time per intersection with lights, over 10 s',
}
"""The metrics of :class:`TrafficMetrics` and their meaning."""


class TrafficMetrics:
    r"""Metrics of the episodes of an engine, from its trips.

    Over the N vehicles that entered, with durations :math:`D_v`, free-flow durations :math:`F_v`, and :math:`n_v`
    intersections with lights that their routes lead through, and with the waiting counts :math:`q` of the L incoming
    lanes:

    .. math::
        \text{duration} = \frac{1}{N} \sum_v D_v \qquad
        A = \frac{\sum_v (D_v - F_v)}{10\,\mathrm{s} \cdot \sum_v n_v} \qquad
        B = \frac{\sum_{t, l} q_{t, l}}{10\,\mathrm{s} \cdot \sum_v n_v}

    The paper reports an "average number of red lights one vehicle waits for at per intersection" and does not say how
    it is computed: A and B are two possible definitions; which one the paper uses, if any, is not known. A duration
    ends where the vehicle last left a lane that leads to lights, by passing them or by arriving there; for one still
    under way that is the last such lane so far, and without any, now. Vehicles whose route has no lights count for
    ``scheduled``, ``entered``, ``finished`` and ``average_travel_time`` only.

    Args:
        engine: The engine whose episodes are measured.
    """

    def __init__(self, engine: TrafficEngine) -> None:
        self.engine = engine
        self.incoming = incoming_lanes(engine.network)

    @cached_property
    def free(self) -> FreeFlow:
        """The trips of lone vehicles at green lights."""
        return free_flow(self.engine.network, self.engine.flow)

    def __call__(self) -> dict[str, Floats]:
        """The metrics of ``DESCRIPTIONS`` so far, (B,) each; 0 where there are no vehicles."""
        engine, trips = self.engine, self.engine.trips()
        free = self.free.duration[trips.entry]
        entered = ~np.isnan(trips.entered)
        lit = entered & ~np.isnan(free)
        until = np.where(np.isnan(trips.left_signal), engine.time, trips.left_signal)
        duration = np.where(lit, until - trips.entered, 0.0)
        delay = np.where(lit, duration - free, 0.0)
        number = lit.sum(1)
        passed = np.where(lit, self.free.crossings[trips.entry], 0).sum(1)
        queue = engine.waiting_seconds()[:, self.incoming].sum(1)
        return {
            'duration': _ratio(duration.sum(1), number),
            'average_travel_time': engine.average_travel_time(),
            'scheduled': np.full(engine.num_envs, float(len(trips.entry))),
            'entered': entered.sum(1).astype(float),
            'finished': (~np.isnan(trips.finished)).sum(1).astype(float),
            'queue': _ratio(queue, np.full(engine.num_envs, engine.time * engine.network.num_signals)),
            'queue_time': _ratio(queue, number),
            'delay': _ratio(delay.sum(1), number),
            'red_lights_delay': _ratio(delay.sum(1), RED_LIGHT * passed),
            'red_lights_queue': _ratio(queue, RED_LIGHT * passed),
        }


def incoming_lanes(network: RoadNetwork) -> npt.NDArray[np.int64]:
    """The lanes that lead to a signal, each once."""
    return np.unique(network.incoming[network.incoming >= 0])


def _ratio(total: Floats, count: npt.NDArray[Any]) -> Floats:
    """Division, with 0 for x / 0."""
    return np.divide(total, count, out=np.zeros(len(total)), where=count > 0)
