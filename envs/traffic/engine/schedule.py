"""The vehicles of a flow: departure time, priority and path. None of these depends on the lights."""

from __future__ import annotations

from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from ..files.flow import Flow
from ..files.road_network import RoadNetwork
from ..files.routes import Router
from ..jit import jit

Array = npt.NDArray[Any]
MOST_VEHICLES = 2_000_000


class Schedule:
    """All departures before second ``until``, in CityFlow's order, with the random numbers that CityFlow would draw.

    CityFlow's generator (MT19937) gives two numbers for each vehicle that departs, the first of which decides ties
    between vehicles of equal rights, and one more for its first lane. A dropped entry draws for its first departure.

    Args:
        network, flow: The road network and its flow.
        seed (int): CityFlow's.
        until (int): Seconds.

    V vehicles: ``entry``, ``number`` of the vehicle in its entry, ``depart`` in seconds, ``priority``, ``path``, a
    row of ``paths`` (lanes, and lane links as ``num_lanes + k``), and the id of each.
    """

    def __init__(self, network: RoadNetwork, flow: Flow, seed: int, until: int) -> None:
        self.until = until
        dropped = flow.dropped
        count = departures(flow.start, flow.end, flow.interval, dropped, until, np.empty((0, 3), np.int64))
        if count > MOST_VEHICLES:
            raise ValueError(
                f"flow '{flow.source}' sends {count} vehicles within {until} s: more than {MOST_VEHICLES} are refused. "
                f"Is an 'interval' too short?"
            )
        sent = np.empty((count, 3), np.int64)
        departures(flow.start, flow.end, flow.interval, dropped, until, sent)
        sent = sent[np.lexsort((sent[:, 2], sent[:, 1], sent[:, 0]))]  # by second, entry, number
        first_road = np.array([r[0] if r else -1 for r in flow.route], dtype=np.int64)
        runs = ~dropped[sent[:, 1]]
        priority, choice = _draws(sent, runs, first_road, seed)
        self.depart, self.entry, self.number = (sent[runs, c].copy() for c in range(3))
        self.priority = priority[runs]
        self.paths: list[list[int]] = []
        self._choose_paths(Router(network), flow, choice[runs])
        self.path_ptr = np.array(list(accumulate(map(len, self.paths), initial=0)), dtype=np.int64)
        self.path_drivable = np.array([d for path in self.paths for d in path], dtype=np.int64)

    @cached_property
    def ids(self) -> list[str]:
        """CityFlow's names of the vehicles."""
        return [f'flow_{k}_{n}' for k, n in zip(self.entry.tolist(), self.number.tolist(), strict=True)]

    @property
    def num_vehicles(self) -> int:
        return len(self.entry)

    def _choose_paths(self, router: Router, flow: Flow, choice: Array) -> None:
        """Numbers the paths by their first vehicle, so that a shorter table is a prefix of a longer one."""
        first_lanes = [router.first_lanes(route) if route else [] for route in flow.route]
        options = np.array([max(1, len(lanes)) for lanes in first_lanes], dtype=np.int64)
        key = np.stack([self.entry, choice % options[self.entry]])
        pairs, first, which = np.unique(key, axis=1, return_index=True, return_inverse=True)
        order = np.argsort(first)
        number = np.empty_like(order)
        known: dict[tuple[tuple[int, ...], int], int] = {}
        for pair in order.tolist():
            entry, pick = pairs[:, pair].tolist()
            way = (flow.route[entry], first_lanes[entry][pick])
            if way not in known:
                known[way] = len(self.paths)
                self.paths.append(router.path(*way))
            number[pair] = known[way]
        self.path = number[which.reshape(-1)]


@jit
def way_lengths(
    path_ptr: Array, path: Array, drivable_length: Array, drivable_speed: Array, with_light: Array, vehicle_path: Array,
    vehicle_speed: Array,
) -> Array:  # fmt: skip
    """Per vehicle: lights on its path, length of the path, seconds at the speed limit; the latter two also to the last
    light.

    ``with_light[d]``: whether the lane before lane link d ends at lights.
    """
    out = np.zeros((vehicle_path.shape[0], 5), np.float64)
    for v in range(vehicle_path.shape[0]):
        row = out[v]
        for p in range(path_ptr[vehicle_path[v]], path_ptr[vehicle_path[v] + 1]):
            d = path[p]
            if with_light[d]:
                row[0] += 1
                row[3], row[4] = row[1], row[2]
            row[1] += drivable_length[d]
            row[2] += drivable_length[d] / min(drivable_speed[d], vehicle_speed[v])
    return out


@jit
def departures(start: Array, end: Array, interval: Array, dropped: Array, until: int, out: Array) -> int:
    """Number of vehicles that depart before ``until``; writes their second, entry and number if there is room.

    Of a dropped entry only the departures of its first second count, after which it is closed.
    """
    total = 0
    for k in range(start.shape[0]):
        due, number = interval[k], 0
        last = until - 1 if end[k] == -1 else min(until - 1, end[k])
        if dropped[k]:
            last = min(last, start[k])
        for second in range(start[k], last + 1):
            while due >= interval[k]:
                if total < out.shape[0]:
                    out[total, 0], out[total, 1], out[total, 2] = second, k, number
                due -= interval[k]
                number += 1
                total += 1
            due += 1.0
    return total


def _draws(sent: Array, runs: Array, first_road: Array, seed: int) -> tuple[Array, Array]:
    """The random numbers for priority and first lane, (n,) each.

    In each second come the two of each departure, by entry; then those for the lanes, road by road. Dropped ones have
    no lane.
    """
    n = len(sent)
    draws = np.random.RandomState(seed).randint(0, 2**32, 2 * n + int(runs.sum()), dtype=np.uint32)
    by_road = np.lexsort((np.arange(n), first_road[sent[:, 1]], sent[:, 0]))
    by_road = by_road[runs[by_road]]
    # One key per number drawn: second, then departures before lanes, then the order within
    second = np.concatenate([np.repeat(sent[:, 0], 2), sent[by_road, 0]])
    stage = np.repeat([0, 1], [2 * n, len(by_road)])
    place = np.empty(len(draws), np.int64)
    place[np.lexsort((np.arange(len(draws)), stage, second))] = np.arange(len(draws))
    choice = np.zeros(n, np.uint32)
    choice[by_road] = draws[place[2 * n :]]
    return draws[place[: 2 * n : 2]].view(np.int32).astype(np.int64), choice
