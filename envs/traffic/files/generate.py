"""Grids with the demand of the paper's Table 2, in CityFlow's JSON, which CityFlow itself can run."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ltos_pyg.seeding import seed_stream

from ...checks import check_count

Json = dict[str, Any]
Point = tuple[float, float]

EAST, NORTH, WEST, SOUTH = DIRECTIONS = range(4)
HEADING: tuple[Point, ...] = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))
TURNS = {1: 'turn_left', 0: 'go_straight', 3: 'turn_right'}  # quarter turns to the left
LINK_POINTS = 11
DECIMALS = 9  # few enough that every JSON reader, also CityFlow's, gets the same number


class Period(NamedTuple):
    """A period in which vehicles depart, equally spaced."""

    start: int  # second
    end: int  # second, excluded
    vehicles: int


TABLE_2 = (
    Period(0, 600, 600),  # 1 a second
    Period(600, 1200, 150),  # 1/4
    Period(1200, 1800, 200),  # 1/3
    Period(1800, 2400, 1200),  # 2
    Period(2400, 3000, 120),  # 1/5
    Period(3000, 3600, 300),  # 1/2
)
"""One hour of 2570 vehicles, as in Table 2 of `"Learning to Share in Multi-Agent Reinforcement Learning"
<https://arxiv.org/abs/2112.08702>`_."""

VEHICLE = {'length': 5.0, 'width': 2.0, 'minGap': 2.5, 'headwayTime': 2.0}
VEHICLE_RANGES = {
    'maxSpeed': (8.0, 16.0),
    'maxPosAcc': (1.5, 2.5),
    'usualPosAcc': (1.5, 2.5),
    'maxNegAcc': (3.0, 6.0),
    'usualNegAcc': (3.0, 6.0),
}


def generate_grid(
    rows: int = 6,
    cols: int = 6,
    *,
    block_length: float = 100.0,
    lanes: tuple[int, int, int] = (1, 1, 1),
    lane_width: float = 4.0,
    intersection_width: float | None = None,
    max_speed: float = 11.111,
) -> Json:
    r"""A grid of signalised intersections as a CityFlow road network.

    ``intersection_x_y``, :math:`x = 1 \ldots` ``cols``, :math:`y = 1 \ldots` ``rows``, lies at
    :math:`((x-1)\,l, (y-1)\,l)`; a virtual one closes each end of every row and column. ``road_x_y_d`` leaves
    :math:`(x, y)` in direction d: 0 east, 1 north, 2 west, 3 south. Every lane has one movement and a lane link to each
    lane of the road that it leads to, a cubic Hermite curve of 11 points whose tangents are as long as the
    intersection is wide.

    There are 9 phases: 0 right turns only (always green), 1 and 2 straight on along x and along y, 3 and 4 left along
    x and along y, 5 to 8 straight and left from the west, the east, the south and the north. Without left lanes, phases
    that would open no more than phase 0 are omitted.

    Args:
        rows: Intersections along y.
        cols: Intersections along x.
        block_length: Metres from one intersection to the next, centre to centre.
        lanes: Lanes that turn left, go straight and turn right, on each road, counted from its middle.
        lane_width: Metres.
        intersection_width: Metres from an intersection's centre to its stop lines. Default: one less than the width of
            the road.
        max_speed: Speed limit in m/s.

    Returns:
        The document for ``json.dump``; :func:`write_scenario` writes files. The default is the 6x6 network of the
        paper.

    Raises:
        ValueError: If a size is out of its range, or the blocks are too short for the intersections.
    """
    check_count('rows', rows, 1)
    check_count('cols', cols, 1)
    lanes = _check_lanes(lanes)
    for name, value in (('block_length', block_length), ('lane_width', lane_width), ('max_speed', max_speed)):
        _check_positive(name, value)
    width = sum(lanes) * lane_width - 1 if intersection_width is None else intersection_width
    _check_positive('intersection_width', width)
    if block_length <= 2 * width:
        raise ValueError(
            f"'block_length' must be more than two intersection widths of {width} m, or roads have no length (got "
            f'{block_length}). Make the blocks longer.'
        )
    grid = _Grid(rows, cols, block_length, lanes, lane_width, width, max_speed)
    places = [(x, y) for x in range(cols + 2) for y in range(rows + 2) if grid.has(x, y)]
    return {
        'intersections': [grid.intersection(x, y) for x, y in places],
        'roads': [grid.road(x, y, d) for x, y in places for d in DIRECTIONS if grid.leads_on(x, y, d)],
    }


class _Grid(NamedTuple):
    rows: int
    cols: int
    block: float
    lanes: tuple[int, int, int]
    lane_width: float
    width: float
    max_speed: float

    def inside(self, x: int, y: int) -> bool:
        return 1 <= x <= self.cols and 1 <= y <= self.rows

    def has(self, x: int, y: int) -> bool:
        """All but the corners of the frame."""
        return 1 <= x <= self.cols or 1 <= y <= self.rows

    def leads_on(self, x: int, y: int, d: int) -> bool:
        to = _next(x, y, d)
        return self.has(*to) and min(to) >= 0 and (self.inside(x, y) or self.inside(*to))

    def centre(self, x: int, y: int) -> Point:
        return (x - 1) * self.block, (y - 1) * self.block

    def road(self, x: int, y: int, d: int) -> Json:
        to = _next(x, y, d)
        lane = {'width': self.lane_width, 'maxSpeed': self.max_speed}
        return {
            'id': f'road_{x}_{y}_{d}',
            'points': [_point(self.centre(x, y)), _point(self.centre(*to))],
            'lanes': [dict(lane) for _ in range(sum(self.lanes))],
            'startIntersection': f'intersection_{x}_{y}',
            'endIntersection': f'intersection_{to[0]}_{to[1]}',
        }

    def intersection(self, x: int, y: int) -> Json:
        signal = self.inside(x, y)
        out = [d for d in DIRECTIONS if self.leads_on(x, y, d)]
        movements = self.movements() if signal else []
        return {
            'id': f'intersection_{x}_{y}',
            'point': _point(self.centre(x, y)),
            'width': self.width if signal else 0,
            'roads': [_road_into(x, y, (d + 2) % 4) for d in sorted(out, key=_opposite)]
            + [f'road_{x}_{y}_{d}' for d in out],
            'roadLinks': [self.road_link(x, y, d, e) for d, e in movements],
            'trafficLight': {
                'roadLinkIndices': list(range(len(movements))),
                'lightphases': _phases(movements) if signal else [],
            },
            'virtual': not signal,
        }

    def movements(self) -> list[tuple[int, int]]:
        """Pairs of directions, in and out, in the order of the road links."""
        counts = dict(zip(TURNS, self.lanes, strict=True))
        return [(d, e) for d in DIRECTIONS for e in DIRECTIONS if counts.get((e - d) % 4)]

    def road_link(self, x: int, y: int, d: int, e: int) -> Json:
        turn = (e - d) % 4
        first = {1: 0, 0: self.lanes[0], 3: self.lanes[0] + self.lanes[1]}[turn]
        count = self.lanes[list(TURNS).index(turn)]
        return {
            'type': TURNS[turn],
            'startRoad': _road_into(x, y, d),
            'endRoad': f'road_{x}_{y}_{e}',
            'direction': d,
            'laneLinks': [
                {'startLaneIndex': i, 'endLaneIndex': j, 'points': self.curve(self.centre(x, y), d, i, e, j)}
                for i in range(first, first + count)
                for j in range(sum(self.lanes))
            ],
        }

    def curve(self, centre: Point, d: int, i: int, e: int, j: int) -> list[Json]:
        """From the end of lane i heading d to the start of lane j heading e, around ``centre``."""
        w = self.width
        start, end = self.lane_point(centre, d, -w, i), self.lane_point(centre, e, w, j)
        knots = (start, _along(start, HEADING[d], w / 3), _along(end, HEADING[e], -w / 3), end)
        return [_point(_bezier(knots, k / (LINK_POINTS - 1))) for k in range(LINK_POINTS)]

    def lane_point(self, centre: Point, d: int, ahead: float, lane: int) -> Point:
        right = HEADING[(d + 3) % 4]
        return _along(_along(centre, HEADING[d], ahead), right, (lane + 0.5) * self.lane_width)


def _phases(movements: Sequence[tuple[int, int]]) -> list[Json]:
    straight, left, right = 0, 1, 3
    groups: list[tuple[set[int], set[int]]] = [  # headings, turns
        (set(), set()),
        ({EAST, WEST}, {straight}),
        ({NORTH, SOUTH}, {straight}),
        ({EAST, WEST}, {left}),
        ({NORTH, SOUTH}, {left}),
        *(({d}, {straight, left}) for d in (EAST, WEST, NORTH, SOUTH)),
    ]
    opened = [
        [k for k, (d, e) in enumerate(movements) if (e - d) % 4 == right or (d in headings and (e - d) % 4 in turns)]
        for headings, turns in groups
    ]
    kept = [links for p, links in enumerate(opened) if p == 0 or links != opened[0]]
    return [{'time': 5 if p == 0 else 30, 'availableRoadLinks': links} for p, links in enumerate(kept)]


def generate_flow(
    network: Mapping[str, Any],
    profile: Sequence[tuple[int, int, int]] = TABLE_2,
    seed: int = 0,
    *,
    scale: float = 1.0,
    turn: float = 0.0,
) -> list[Json]:
    """A flow of single vehicles on a road network, as CityFlow's flow document.

    Each vehicle starts at a virtual intersection, drawn uniformly, and drives until it reaches one: at each
    intersection it turns with probability ``turn``, left as often as right, and else goes straight on. If that is not
    possible, it takes a possible movement. Speeds and accelerations are independent and uniform in
    :data:`VEHICLE_RANGES`, the rest is :data:`VEHICLE`.

    Args:
        network: A road network as :func:`generate_grid` returns it, or ``json.load`` of any other.
        profile: Departures: (start, end, vehicles) of each period, equally spaced and rounded down to seconds.
        seed: Seed of a separate generator; the same seed gives the same flow.
        scale: Factor on the numbers of vehicles.
        turn: Probability to turn at an intersection.

    Raises:
        ValueError: If an argument is out of its range, or no road leads into the network.
    """
    starts = _starts(profile, scale)
    if not (math.isfinite(turn) and 0 <= turn <= 1):
        raise ValueError(f"'turn' must be a probability in [0, 1] (got {turn})")
    entries, onward = _ways(network)
    rng = np.random.default_rng(seed_stream(seed, 'traffic', 'demand'))
    low, high = np.array(list(VEHICLE_RANGES.values())).T
    drawn = np.round(rng.uniform(low, high, (len(starts), len(low))), 6)
    entry = rng.integers(len(entries), size=len(starts))
    return [
        {
            'vehicle': {**VEHICLE, **dict(zip(VEHICLE_RANGES, values.tolist(), strict=True))},
            'interval': 1.0,
            'startTime': start,
            'endTime': start,
            'route': _route(entries[e], onward, turn, rng),
        }
        for start, values, e in zip(starts, drawn, entry, strict=True)
    ]


def _starts(profile: Sequence[tuple[int, int, int]], scale: float) -> list[int]:
    """The second of each departure, in rising order."""
    if not (math.isfinite(scale) and scale >= 0):
        raise ValueError(f"'scale' must be a finite number of at least 0 (got {scale})")
    starts: list[int] = []
    for k, period in enumerate(profile):
        if len(period) != 3 or not all(isinstance(n, int | np.integer) for n in period):
            raise ValueError(f"'profile[{k}]' must be three integers: start, end, vehicles (got {period!r})")
        start, end, vehicles = (int(n) for n in period)
        if start < 0 or end <= start or vehicles < 0:
            raise ValueError(
                f"'profile[{k}]' must have 0 <= start < end and vehicles >= 0 (got start={start}, end={end}, "
                f'vehicles={vehicles})'
            )
        count = round(vehicles * scale)
        starts += [start + i * (end - start) // count for i in range(count)]
    return sorted(starts)


def _ways(network: Mapping[str, Any]) -> tuple[list[str], dict[str, dict[str, list[str]]]]:
    """Roads into the network, and the roads after each road, by kind of movement."""
    virtual = {i['id'] for i in network['intersections'] if i.get('virtual', False)}
    onward: dict[str, dict[str, list[str]]] = {road['id']: {} for road in network['roads']}
    for intersection in network['intersections']:
        links = () if intersection['id'] in virtual else intersection.get('roadLinks', ())
        for link in links:
            onward[link['startRoad']].setdefault(link['type'], []).append(link['endRoad'])
    entries = [r['id'] for r in network['roads'] if r['startIntersection'] in virtual and onward[r['id']]]
    if not entries:
        raise ValueError("'network' has no road that leads from a virtual intersection into it: no vehicle can enter")
    return entries, onward


def _route(
    road: str, onward: Mapping[str, Mapping[str, list[str]]], turn: float, rng: np.random.Generator
) -> list[str]:
    route, limit = [road], 100 * len(onward)
    while ways := onward[road]:
        kind = 'go_straight'
        if turn > 0 and rng.random() < turn:
            kind = 'turn_left' if rng.random() < 0.5 else 'turn_right'
        choice = ways.get(kind) or ways.get('go_straight') or [r for roads in ways.values() for r in roads]
        road = choice[0] if len(choice) == 1 else choice[int(rng.integers(len(choice)))]
        route.append(road)
        if len(route) > limit:
            raise ValueError(
                f"'network' does not let vehicles out: a route from '{route[0]}' has {limit} roads already"
            )
    return route


def write_scenario(
    folder: str | Path,
    rows: int = 6,
    cols: int = 6,
    *,
    block_length: float = 100.0,
    lanes: tuple[int, int, int] = (1, 1, 1),
    profile: Sequence[tuple[int, int, int]] = TABLE_2,
    seed: int = 0,
    scale: float = 1.0,
    turn: float = 0.0,
) -> tuple[Path, Path]:
    """Writes ``roadnet.json`` and ``flow.json`` of a generated grid into ``folder``, which is created if needed.

    Files are written atomically. The arguments are
    those of :func:`generate_grid` and :func:`generate_flow`.

    Returns:
        The paths of the two files.

    Raises:
        ValueError: If an argument is out of its range; then nothing is written.
        OSError: If the folder cannot be written to.
    """
    network = generate_grid(rows, cols, block_length=block_length, lanes=lanes)
    flow = generate_flow(network, profile, seed, scale=scale, turn=turn)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return _write_json(folder / 'roadnet.json', network), _write_json(folder / 'flow.json', flow)


def _write_json(path: Path, document: object) -> Path:
    text = json.dumps(document, allow_nan=False, separators=(',', ':'))
    handle, temp = tempfile.mkstemp(prefix=f'.{path.name}.', suffix='.tmp', dir=path.parent)
    try:
        with os.fdopen(handle, 'w', encoding='utf-8') as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temp, 0o644)  # mkstemp's files are private
        os.replace(temp, path)
    except BaseException:
        Path(temp).unlink(missing_ok=True)
        raise
    return path


def _check_lanes(lanes: tuple[int, int, int]) -> tuple[int, int, int]:
    if len(lanes) != 3:
        raise ValueError(f"'lanes' must be three counts: left, straight, right (got {lanes!r})")
    for name, count, least in zip(('left', 'straight', 'right'), lanes, (0, 1, 0), strict=True):
        check_count(f'lanes: {name}', count, least)
    return lanes


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"'{name}' must be a positive, finite number (got {value})")


def _next(x: int, y: int, d: int) -> tuple[int, int]:
    return x + int(HEADING[d][0]), y + int(HEADING[d][1])


def _opposite(d: int) -> int:
    return (d + 2) % 4


def _road_into(x: int, y: int, d: int) -> str:
    """The road that reaches (x, y) heading d."""
    a, b = _next(x, y, _opposite(d))
    return f'road_{a}_{b}_{d}'


def _along(p: Point, direction: Point, metres: float) -> Point:
    return p[0] + direction[0] * metres, p[1] + direction[1] * metres


def _bezier(knots: Sequence[Point], t: float) -> Point:
    weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
    x, y = (sum(w * p[axis] for w, p in zip(weights, knots, strict=True)) for axis in (0, 1))
    return x, y


def _point(p: Point) -> Json:
    return {'x': round(p[0], DECIMALS) + 0.0, 'y': round(p[1], DECIMALS) + 0.0}  # + 0.0: no minus zero
