"""Networks and flows for the tests: CityFlow's formats, written small."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ltos_pyg.envs.traffic import Flow, RoadNetwork

DATA = Path(__file__).parents[2] / 'data'
GRID = DATA / 'grid_2x3'

Json = dict[str, Any]
Loaded = tuple[RoadNetwork, Flow]
Write = Callable[..., Loaded]


def vehicle(**fields: float) -> Json:
    usual = {'length': 5.0, 'width': 2.0, 'maxPosAcc': 2.0, 'maxNegAcc': 4.5, 'usualPosAcc': 2.0, 'usualNegAcc': 4.5}
    return {**usual, 'minGap': 2.5, 'maxSpeed': 10.0, 'headwayTime': 2.0, **fields}


def entry(*route: str, start: int = 0, end: int | None = None, interval: float = 1, **fields: float) -> Json:
    """One entry of a flow; a single vehicle unless ``end`` says otherwise."""
    times = {'interval': interval, 'startTime': start, 'endTime': start if end is None else end}
    return {'vehicle': vehicle(**fields), **times, 'route': list(route)}


def junction(name: str, x: float, y: float) -> Json:
    """An intersection without links."""
    light: Json = {'roadLinkIndices': [], 'lightphases': []}
    place: Json = {'point': {'x': x, 'y': y}, 'width': 0, 'virtual': True}
    return {'id': name, **place, 'roads': [], 'roadLinks': [], 'trafficLight': light}


def road(name: str, start: Json, end: Json, lanes: int = 1, bends: tuple[tuple[float, float], ...] = ()) -> Json:
    ends = [start['point'], *({'x': x, 'y': y} for x, y in bends), end['point']]
    width = [{'width': 4, 'maxSpeed': 20} for _ in range(lanes)]
    return {'id': name, 'startIntersection': start['id'], 'endIntersection': end['id'], 'points': ends, 'lanes': width}


def link(start: str, end: str, *lanes: tuple[int, int], kind: str = 'go_straight') -> Json:
    """A road link; its lane links are not drawn."""
    pairs = [{'startLaneIndex': i, 'endLaneIndex': j} for i, j in lanes or ((0, 0),)]
    return {'type': kind, 'startRoad': start, 'endRoad': end, 'laneLinks': pairs}


def phase(*links: int) -> Json:
    return {'time': 30, 'availableRoadLinks': list(links)}


def joined(junctions: list[Json], roads: list[Json]) -> Json:
    """A network; junctions with links are no virtual ones, and know their roads."""
    for j in junctions:
        j['roads'] = [r['id'] for r in roads if j['id'] in (r['startIntersection'], r['endIntersection'])]
        j['virtual'] = not j['roadLinks']
    return {'intersections': junctions, 'roads': roads}


def line_network(lanes: int = 1) -> Json:
    """One road of 100 m to a signal, 90 m of it before the stop line, and one on. Phase 0 is red, 1 green."""
    a, s, b = (junction(n, x, 0) for n, x in (('a', 0), ('s', 100), ('b', 200)))
    s.update(width=10, roadLinks=[link('in', 'out', *((i, i) for i in range(lanes)))])
    s['trafficLight']['lightphases'] = [phase(), phase(0)]
    return joined([a, s, b], [road('in', a, s, lanes), road('out', s, b, lanes)])


def data_folder(variable: str) -> Path:
    """A folder that an environment variable names; without it the test is skipped."""
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f'{variable} is not set')
    return Path(folder)
