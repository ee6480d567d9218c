"""Free-flow durations: each trip by a lone vehicle with green lights only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .files.flow import Flow
from .files.network import STRAIGHT, RoadNetwork

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

TURN_SPEED = 8.3333  # metres per second that a vehicle slows down to before a turning link
LINK_SPEED = 10_000.0  # no limit on lane links
LONGEST = 100_000  # seconds after which a vehicle counts as one that never arrives


@dataclass(frozen=True, eq=False)
class FreeFlow:
    """Per entry of the flow; NaN for entries without vehicles."""

    duration: Floats  # (F,) seconds from entering to leaving the last lane that leads to lights; NaN without one
    trip: Floats  # (F,) seconds from entering to leaving the network
    crossings: Ints  # (F,) intersections with lights that the route leads through


@dataclass(frozen=True, eq=False)
class _Path:
    """The drivables of one route: S of them, lane, link, lane, …"""

    length: Floats  # (S,)
    limit: Floats  # (S,) metres per second
    turn: Bools  # (S,) whether it is a lane before a turning link
    last_line: int  # the last lane that leads to lights; -1: none
    crossings: int


@dataclass(frozen=True, eq=False)
class _Paths:
    """The paths of F entries, stacked."""

    length: Floats  # (F, S) infinite where padded
    limit: Floats  # (F, S)
    turn: Bools  # (F, S)
    size: Ints  # (F,) 0: no path
    last_line: Ints  # (F,)
    crossings: Ints  # (F,)


def free_flow(network: RoadNetwork, flow: Flow) -> FreeFlow:
    """Simulates every entry's vehicle in an empty network with green lights, by the engine's speed rules.

    Where several first lanes lead to the second road, the one with the lowest index is taken.
    """
    paths = _paths(network, flow)
    entries = np.arange(flow.num_entries)
    at, distance, speed = np.zeros_like(entries), np.zeros(len(entries)), np.zeros(len(entries))
    duration, trip = np.full(len(entries), np.nan), np.full(len(entries), np.nan)
    for second in range(LONGEST):
        driving = entries[(paths.size > 0) & np.isnan(trip)]
        if driving.size == 0:
            break
        here = at[driving]
        new = _speed(paths, flow, driving, here, distance[driving], speed[driving])
        distance[driving] += (speed[driving] + new) / 2
        speed[driving] = new
        while (over := distance[driving] > paths.length[driving, at[driving]]).any():
            moved = driving[over]
            distance[moved] -= paths.length[moved, at[moved]]
            duration[moved[at[moved] == paths.last_line[moved]]] = second
            at[moved] += 1
            trip[moved[at[moved] >= paths.size[moved]]] = second
    return FreeFlow(duration, trip, paths.crossings)


def _speed(paths: _Paths, flow: Flow, entry: Ints, at: Ints, distance: Floats, speed: Floats) -> Floats:
    """One second of the vehicles of these entries."""
    top, usual = flow.max_speed[entry], flow.usual_neg_acc[entry]
    new = np.minimum(np.minimum(top, speed + flow.max_pos_acc[entry]), paths.limit[entry, at])
    near = paths.length[entry, at] - distance <= top**2 / (2 * usual) + 2 * top
    new = np.where(paths.turn[entry, at] & near, np.minimum(new, TURN_SPEED), new)
    return np.maximum(new, speed - flow.max_neg_acc[entry])


def _paths(network: RoadNetwork, flow: Flow) -> _Paths:
    links: dict[tuple[int, int], list[int]] = {}  # by start lane and end road
    for k in range(network.num_links):
        key = int(network.link_start[k]), int(network.lane_road[network.link_end[k]])
        links.setdefault(key, []).append(k)
    lit = np.isin(np.arange(network.num_intersections), network.signals)
    known = {route: _path(network, links, lit, route) for route in set(flow.route)}
    paths = [known[route] for route in flow.route]
    size = np.array([0 if path is None else len(path.length) for path in paths], np.int64)
    shape = (len(paths), int(size.max(initial=0)) + 1)
    length, limit, turn = np.full(shape, np.inf), np.full(shape, LINK_SPEED), np.zeros(shape, bool)
    for f, path in enumerate(paths):
        if path is not None:
            length[f, : size[f]], limit[f, : size[f]], turn[f, : size[f]] = path.length, path.limit, path.turn
    last_line = np.array([-1 if path is None else path.last_line for path in paths], np.int64)
    crossings = np.array([0 if path is None else path.crossings for path in paths], np.int64)
    return _Paths(length, limit, turn, size, last_line, crossings)


def _path(
    network: RoadNetwork, links: dict[tuple[int, int], list[int]], lit: Bools, route: tuple[int, ...]
) -> _Path | None:
    """The path of a route; ``None`` if there is none."""
    starts = network.lanes_of(route[0]).tolist() if route else []
    ways = (_way(network, links, route, lane) for lane in starts)
    way = next((way for way in ways if way is not None), None)
    if way is None:
        return None
    lanes, taken = way
    size = 2 * len(route) - 1
    length, limit, turn = np.empty(size), np.full(size, LINK_SPEED), np.zeros(size, bool)
    length[::2], limit[::2] = network.lane_length[lanes], network.lane_max_speed[lanes]
    length[1::2] = network.link_length[taken]
    turn[:-1:2] = network.road_link_type[network.link_road_link[taken]] != STRAIGHT
    before_lights = lit[network.road_to[list(route)]]
    last_line = 2 * int(np.flatnonzero(before_lights)[-1]) if before_lights.any() else -1
    return _Path(length, limit, turn, last_line, int(before_lights[:-1].sum()))


def _way(
    network: RoadNetwork, links: dict[tuple[int, int], list[int]], route: tuple[int, ...], lane: int
) -> tuple[list[int], list[int]] | None:
    """Lanes and lane links from a first lane on: at each crossing the link whose end is nearest to the own lane index
    among those that lead to the rest of the route; ``None`` if there is no such link."""
    lanes, taken = [lane], []
    for step, road in enumerate(route[1:], 1):
        options = links.get((lanes[-1], road), [])
        if step + 1 < len(route):
            options = [k for k in options if (int(network.link_end[k]), route[step + 1]) in links]
        if not options:
            return None
        index = network.lane_index
        best = min(options, key=lambda k: abs(int(index[network.link_end[k]]) - int(index[lanes[-1]])))
        taken.append(best)
        lanes.append(int(network.link_end[best]))
    return lanes, taken
