"""Road networks read from CityFlow's JSON."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .geometry import crossings, curve, lane_lines, length_of
from .reading import FARTHEST, Element, read_json, show
from .road_network import LEFT, RIGHT, ROAD_LINK_TYPES, STRAIGHT, RoadNetwork

__all__ = ['LEFT', 'RIGHT', 'STRAIGHT', 'RoadNetwork', 'load_network']

Array = npt.NDArray[Any]

MOST_PHASES = 256  # of one intersection, as the next two
MOST_ROAD_LINKS = 256
MOST_LINK_PAIRS = 2 * 10**9  # pairs of segments that are tried for a crossing
MOST_SPEED = 1000.0


class Junction(NamedTuple):
    """An intersection without its links."""

    element: Element
    id: str
    xy: tuple[float, float]
    width: float
    virtual: bool


class Road(NamedTuple):
    element: Element
    id: str
    ends: tuple[int, int]  # intersections
    points: Array
    lines: list[Array]  # one per lane
    widths: list[float]
    speeds: list[float]


class Links(NamedTuple):
    """Road links and lane links in file order."""

    road_links: list[tuple[int, int, int, int]]  # intersection, start, end, type
    links: list[tuple[int, int, int]]  # road link, start lane, end lane, counted in file order
    points: list[Array]


class Lights(NamedTuple):
    intersection: int
    opens: list[list[int]]  # per phase, road links of the intersection
    time: list[float]


def load_network(path: str | Path) -> RoadNetwork:
    """Reads a road network.

    Raises:
        ValueError: If the file is not a valid road network; the message names file, element and field.
    """
    root = Element(read_json(path, 'road network', '{'), f"road network '{path}'")
    junctions = [_junction(e) for e in root.elements('intersections', 1)]
    junction_index = _index(junctions, 'intersection')
    roads = [_road(e, junction_index, junctions) for e in root.elements('roads', 1)]
    road_index = _index(roads, 'road')
    first_lane = list(accumulate((len(r.lines) for r in roads), initial=0))
    found, lights, listed = Links([], [], []), [], []
    for n, junction in enumerate(junctions):
        before = len(found.road_links)
        listed.append(junction.element.indices_of('roads', road_index, 'road'))
        if junction.virtual:
            continue
        _read_links(junction, n, road_index, roads, first_lane, found)
        light = _read_lights(n, junction.element, len(found.road_links) - before)
        if light is not None:
            lights.append(light)
    return _assemble(Path(path), junctions, roads, listed, found, lights)


def _index(items: list[Any], kind: str) -> dict[str, int]:
    index: dict[str, int] = {}
    for item in items:
        if item.id in index:
            raise item.element.fault(f"field 'id' must be unique: another {kind} is {show(item.id)} too")
        index[item.id] = len(index)
    return index


def _named(element: Element, kind: str) -> str:
    """The id; later errors name the element by it."""
    name = element.text('id')
    element.place = f'{element.place} ({kind} {show(name)})'
    return name


def _junction(element: Element) -> Junction:
    name = _named(element, 'intersection')
    point = element.element('point')
    xy = (point.number('x', -FARTHEST, FARTHEST), point.number('y', -FARTHEST, FARTHEST))
    virtual = element.flag('virtual', False)
    width = element.number('width', 0, 1e5) if element.has('width') or not virtual else 0.0
    return Junction(element, name, xy, width, virtual)


def _road(element: Element, index: dict[str, int], junctions: list[Junction]) -> Road:
    name = _named(element, 'road')
    start = element.index_of('startIntersection', index, 'intersection')
    end = element.index_of('endIntersection', index, 'intersection')
    if start == end:
        raise element.fault_at('endIntersection', 'must be another than startIntersection: the road is a loop')
    points = element.points('points', 2)
    lanes = list(element.elements('lanes', 1, 1000))
    widths = [lane.number('width', 0, 1000) for lane in lanes]
    speeds = [lane.number('maxSpeed', 0, MOST_SPEED, above=True) for lane in lanes]
    cuts = [0.0 if junctions[n].virtual else junctions[n].width for n in (start, end)]
    lines = lane_lines(points, cuts[0], cuts[1], widths)
    for i, line in enumerate(lines):
        if not length_of(line) > 1e-6:  # NaN as well
            raise element.fault_at(
                'points', f'must not leave lane {i} without length: two points coincide, or the intersections, of '
                f'widths {cuts[0]:g} and {cuts[1]:g}, cover the road'
            )  # fmt: skip
    return Road(element, name, (start, end), points, lines, widths, speeds)


def _read_links(
    junction: Junction, n: int, road_index: dict[str, int], roads: list[Road], first_lane: list[int], found: Links
) -> None:
    """Appends the links of a junction, intersection n."""
    if not junction.element.has('roadLinks'):
        return
    first_link = len(found.links)
    for element in junction.element.elements('roadLinks', 0, MOST_ROAD_LINKS):
        kind = element.get('type')
        if not isinstance(kind, str) or kind not in ROAD_LINK_TYPES:
            raise element.fault_at('type', f'must be one of {", ".join(ROAD_LINK_TYPES)} (got {show(kind)})')
        start = element.index_of('startRoad', road_index, 'road')
        end = element.index_of('endRoad', road_index, 'road')
        if roads[start].ends[1] != n:
            raise element.fault_at('startRoad', f'must end at this intersection ({show(roads[start].id)} does not)')
        if roads[end].ends[0] != n:
            raise element.fault_at('endRoad', f'must start at this intersection ({show(roads[end].id)} does not)')
        m = len(found.road_links)
        found.road_links.append((n, start, end, ROAD_LINK_TYPES[kind]))
        for lane_link in element.elements('laneLinks', 0, 10_000):
            i = lane_link.integer('startLaneIndex', 0, len(roads[start].lines) - 1)
            j = lane_link.integer('endLaneIndex', 0, len(roads[end].lines) - 1)
            drawn = lane_link.has('points') and len(lane_link.array('points')) > 0
            points = (
                lane_link.points('points', 2) if drawn else _undrawn(roads[start], i, roads[end], j, junction.width)
            )
            found.links.append((m, first_lane[start] + i, first_lane[end] + j))
            found.points.append(points)
    segments = sum(len(points) - 1 for points in found.points[first_link:])
    if segments * segments // 2 > MOST_LINK_PAIRS:
        raise junction.element.fault_at(
            'roadLinks', f'must not have lane links of more than 60000 pieces (got {segments})'
        )


def _undrawn(start: Road, i: int, end: Road, j: int, width: float) -> Array:
    """The curve between lanes of two roads."""
    lines = [lane_lines(road.points, 0.0, 0.0, road.widths) for road in (start, end)]
    return curve(lines[0][i], lines[1][j], width)


def _read_lights(n: int, junction: Element, num_road_links: int) -> Lights | None:
    """The phases; None if there are none."""
    if not junction.has('trafficLight'):
        return None
    light = junction.element('trafficLight')
    phases = list(light.elements('lightphases', 0, MOST_PHASES))
    opens, time = [], []
    for phase in phases:
        time.append(phase.number('time', 0, 1e9) if phase.has('time') else 0.0)
        links = phase.array('availableRoadLinks')
        for m in links:
            if not isinstance(m, int) or isinstance(m, bool) or not 0 <= m < num_road_links:
                raise phase.fault_at(
                    'availableRoadLinks', f'must hold indices of the {num_road_links} road links of the intersection '
                    f'(got {show(m)})'
                )  # fmt: skip
        opens.append(links)
    return Lights(n, opens, time) if phases else None


def _assemble(
    source: Path,
    junctions: list[Junction],
    roads: list[Road],
    listed: list[list[int]],
    found: Links,
    lights: list[Lights],
) -> RoadNetwork:
    lanes = _lane_arrays(roads)
    rank: Array = lanes.pop('rank')
    road_link = np.array(found.road_links, dtype=np.int64).reshape(-1, 4)
    link = np.array(found.links, dtype=np.int64).reshape(-1, 3)
    link_ptr, link_points = _ragged(found.points)
    per_intersection = np.bincount(road_link[link[:, 0], 0], minlength=len(junctions))
    ptr, distance, other, twin = crossings(_ptr(per_intersection), link_ptr, link_points)
    road_ptr, road_points = _ragged([r.points for r in roads])
    ends = np.array([r.ends for r in roads], dtype=np.int64)
    return RoadNetwork(
        source=source,
        intersection_ids=tuple(j.id for j in junctions),
        intersection_xy=np.array([j.xy for j in junctions]),
        intersection_width=np.array([j.width for j in junctions]),
        intersection_virtual=np.array([j.virtual for j in junctions], dtype=bool),
        intersection_roads_ptr=_ptr(np.array([len(row) for row in listed])),
        intersection_roads=np.array([r for row in listed for r in row], dtype=np.int64),
        road_ids=tuple(r.id for r in roads),
        road_from=ends[:, 0].copy(),
        road_to=ends[:, 1].copy(),
        road_points_ptr=road_ptr,
        road_points=road_points,
        road_link_intersection=road_link[:, 0].copy(),
        road_link_start=road_link[:, 1].copy(),
        road_link_end=road_link[:, 2].copy(),
        road_link_type=road_link[:, 3].copy(),
        link_road_link=link[:, 0].copy(),
        link_start=rank[link[:, 1]],
        link_end=rank[link[:, 2]],
        link_length=np.array([length_of(p) for p in found.points], dtype=np.float64),
        link_points_ptr=link_ptr,
        link_points=link_points,
        cross_ptr=ptr,
        cross_distance=distance,
        cross_link=other,
        cross_twin=twin,
        **lanes,
        **_signal_arrays(lights, road_link, lanes['road_lanes_ptr'], lanes['road_lanes']),
    )


def _lane_arrays(roads: list[Road]) -> dict[str, Any]:
    """The lanes, sorted by id, and ``rank``, the new index of each lane of the file."""
    ids = [f'{r.id}_{i}' for r in roads for i in range(len(r.lines))]
    order = sorted(range(len(ids)), key=ids.__getitem__)
    rank = np.empty(len(ids), dtype=np.int64)
    rank[order] = np.arange(len(ids))
    count = np.array([len(r.lines) for r in roads])
    lines = [line for r in roads for line in r.lines]
    points_ptr, points = _ragged([lines[k] for k in order])
    return {
        'rank': rank,
        'road_lanes_ptr': _ptr(count),
        'road_lanes': rank.copy(),
        'lane_ids': tuple(ids[k] for k in order),
        'lane_road': np.repeat(np.arange(len(roads)), count)[order],
        'lane_index': np.concatenate([np.arange(n) for n in count])[order],
        'lane_length': np.array([length_of(lines[k]) for k in order]),
        'lane_max_speed': np.array([s for r in roads for s in r.speeds])[order],
        'lane_points_ptr': points_ptr,
        'lane_points': points,
    }


def _signal_arrays(lights: list[Lights], road_link: Array, lanes_ptr: Array, lanes: Array) -> dict[str, Any]:
    signals = np.array([light.intersection for light in lights], dtype=np.int64)
    first, last = (np.searchsorted(road_link[:, 0], signals, side) for side in ('left', 'right'))  # in rising order
    own = [np.arange(lo, hi) for lo, hi in zip(first, last, strict=True)]
    num_phases = np.array([len(light.time) for light in lights], dtype=np.int64)
    phase_open = np.zeros((len(lights), num_phases.max(initial=0), max(map(len, own), default=0)), dtype=bool)
    phase_time = np.zeros(phase_open.shape[:2])
    incoming = []
    for i, light in enumerate(lights):
        phase_time[i, : len(light.time)] = light.time
        for p, opened in enumerate(light.opens):
            phase_open[i, p, opened] = True
        starts = dict.fromkeys(road_link[own[i], 1].tolist())  # in order of appearance
        incoming.append(
            np.array([lane for r in starts for lane in lanes[lanes_ptr[r] : lanes_ptr[r + 1]]], dtype=np.int64)
        )
    return {
        'signals': signals,
        'num_phases': num_phases,
        'phase_open': phase_open,
        'phase_time': phase_time,
        'signal_road_links': _padded(own),
        'incoming': _padded(incoming),
    }


def _ptr(count: Array) -> Array:
    return np.concatenate([[0], np.cumsum(count)]).astype(np.int64)


def _ragged(rows: list[Array]) -> tuple[Array, Array]:
    ptr = _ptr(np.array([len(row) for row in rows], dtype=np.int64))
    return ptr, np.concatenate([*rows, np.empty((0, 2))])


def _padded(rows: list[Array]) -> Array:
    table = np.full((len(rows), max(map(len, rows), default=0)), -1, dtype=np.int64)
    for row, values in zip(table, rows, strict=True):
        row[: len(values)] = values
    return table
