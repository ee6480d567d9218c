"""Flows: vehicles with their departure times and routes, from CityFlow's flow JSON."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from .reading import Element, read_json
from .road_network import RoadNetwork
from .routes import Router

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

OneRoad = Literal['strict', 'legacy']
LAST_SECOND = 10**9
SHORTEST_INTERVAL = 0.01

# JSON key of a vehicle: field of Flow, greatest value, whether 0 is refused
VEHICLE = {
    'length': ('length', 1000.0, True),
    'width': ('width', 1000.0, False),
    'maxPosAcc': ('max_pos_acc', 1000.0, True),
    'maxNegAcc': ('max_neg_acc', 1000.0, True),
    'usualPosAcc': ('usual_pos_acc', 1000.0, True),
    'usualNegAcc': ('usual_neg_acc', 1000.0, True),
    'minGap': ('min_gap', 1000.0, False),
    'maxSpeed': ('max_speed', 1000.0, True),
    'headwayTime': ('headway', 1000.0, False),
}
LEAST_POSITIVE = 1e-6


@dataclass(frozen=True, eq=False)
class Flow:
    r"""F entries in file order; each sends a vehicle at ``start``, then every ``interval``, until ``end`` inclusive."""

    source: Path  # the file it was read from
    one_road: OneRoad

    start: Ints  # (F,) seconds
    end: Ints  # (F,) seconds, inclusive; -1: never
    interval: Floats  # (F,) seconds
    anchors: tuple[tuple[int, ...], ...]  # (F,) roads as listed in the file
    route: tuple[tuple[int, ...], ...]  # (F,) the roads driven; empty if the entry is dropped

    length: Floats  # (F,) metres
    width: Floats  # (F,) metres; has no effect
    max_pos_acc: Floats  # (F,) metres per second squared, as the next three
    max_neg_acc: Floats  # (F,)
    usual_pos_acc: Floats  # (F,)
    usual_neg_acc: Floats  # (F,)
    min_gap: Floats  # (F,) metres
    max_speed: Floats  # (F,) metres per second
    headway: Floats  # (F,) seconds

    @property
    def num_entries(self) -> int:
        return len(self.route)

    @property
    def dropped(self) -> Bools:
        """Entries without vehicles: no path between their roads, or one road only and ``'strict'``, (F,)."""
        return np.array([not r for r in self.route], dtype=bool)


def load_flow(path: str | Path, network: RoadNetwork, one_road: OneRoad = 'strict') -> Flow:
    """Reads a flow.

    Args:
        path: The file.
        network (RoadNetwork): The road network of the flow.
        one_road (str): Treatment of routes of a single road: ``'strict'`` drops the entry, as CityFlow does today;
            ``'legacy'`` drives that road, as CityFlow did before April 2020.

    Warns:
        UserWarning: Once, with the number of entries dropped.

    Raises:
        ValueError: If the file is not a valid flow for the network; the message names file, element and field.
    """
    if one_road not in ('strict', 'legacy'):
        raise ValueError(f"'one_road' must be 'strict' or 'legacy' (got {one_road!r})")
    entries = read_json(path, 'flow', '[')
    index = {name: r for r, name in enumerate(network.road_ids)}
    router = Router(network)
    anchors, routes, numbers, vehicles = [], [], [], []
    for i, value in enumerate(entries):
        entry = Element(value, f"flow '{path}', entry {i}")
        numbers.append(_times(entry))
        vehicles.append(_vehicle(entry.element('vehicle')))
        named = tuple(entry.indices_of('route', index, 'road', least=1))
        anchors.append(named)
        route = router.route(named)
        routes.append(route if len(route) > 1 or one_road == 'legacy' else ())
    flow = Flow(
        source=Path(path),
        one_road=one_road,
        start=np.array([n[0] for n in numbers], dtype=np.int64),
        end=np.array([n[1] for n in numbers], dtype=np.int64),
        interval=np.array([n[2] for n in numbers], dtype=np.float64),
        anchors=tuple(anchors),
        route=tuple(routes),
        **{
            name: np.array([vehicle[c] for vehicle in vehicles], dtype=np.float64)
            for c, (name, _, _) in enumerate(VEHICLE.values())
        },
    )
    dropped = int(flow.dropped.sum())
    if dropped:
        warnings.warn(
            f"flow '{path}': {dropped} of {flow.num_entries} entries are dropped, for their routes have one road or no "
            f"way between their roads, as CityFlow does. With one_road='legacy' those of one road drive it.",
            stacklevel=2,
        )
    return flow


def _times(entry: Element) -> tuple[int, int, float]:
    start = entry.integer('startTime', 0, LAST_SECOND)
    end = entry.integer('endTime', -1, LAST_SECOND)
    if end != -1 and end < start:
        raise entry.fault_at('endTime', f'must not be before startTime, {start}, unless it is -1 (got {end})')
    return start, end, entry.number('interval', SHORTEST_INTERVAL, LAST_SECOND)


def _vehicle(vehicle: Element) -> list[float]:
    return [
        vehicle.number(key, LEAST_POSITIVE if positive else 0.0, most) for key, (_, most, positive) in VEHICLE.items()
    ]
