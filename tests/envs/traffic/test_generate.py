"""Generated grids against every countable fact of the 6x6 network and its demand, and against the real file."""

from __future__ import annotations

import copy
import json
import math
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltos_pyg.envs.traffic.files.generate import TABLE_2, VEHICLE_RANGES, generate_flow, generate_grid, write_scenario
from ltos_pyg.envs.traffic.files.network import load_network

DATA = os.environ.get('LTOS_ROADNETSZ', '')
needs_data = pytest.mark.skipif(not DATA, reason='needs the 6x6 data set: set LTOS_ROADNETSZ to its folder')


@pytest.fixture(scope='module')
def grid() -> dict[str, Any]:
    return generate_grid()


@pytest.fixture(scope='module')
def flow(grid: dict[str, Any]) -> list[dict[str, Any]]:
    return generate_flow(grid)


def inner(network: dict[str, Any]) -> list[dict[str, Any]]:
    return [i for i in network['intersections'] if not i['virtual']]


def length(points: list[dict[str, float]]) -> float:
    return sum(math.hypot(b['x'] - a['x'], b['y'] - a['y']) for a, b in pairwise(points))


def test_counts_of_the_6x6_network(grid):
    assert (len(grid['intersections']), len(inner(grid)), len(grid['roads'])) == (60, 36, 168)
    assert sum(len(road['lanes']) for road in grid['roads']) == 504
    assert sum(len(link['laneLinks']) for i in inner(grid) for link in i['roadLinks']) == 1296
    assert {lane['maxSpeed'] for road in grid['roads'] for lane in road['lanes']} == {11.111}
    assert {lane['width'] for road in grid['roads'] for lane in road['lanes']} == {4}
    assert {length(road['points']) for road in grid['roads']} == {100}
    assert {i['width'] for i in inner(grid)} == {11}


def test_intersections_and_roads_lie_where_their_names_say(grid):
    at = {i['id']: (i['point']['x'], i['point']['y']) for i in grid['intersections']}
    ahead = [(1, 0), (0, 1), (-1, 0), (0, -1)]
    for place, point in at.items():
        x, y = map(int, place.split('_')[1:])
        assert point == ((x - 1) * 100, (y - 1) * 100)
    for road in grid['roads']:
        x, y, d = map(int, road['id'].split('_')[1:])
        start, end = f'intersection_{x}_{y}', f'intersection_{x + ahead[d][0]}_{y + ahead[d][1]}'
        assert (road['startIntersection'], road['endIntersection']) == (start, end)
        assert [(p['x'], p['y']) for p in road['points']] == [at[start], at[end]]


def test_movements_and_their_curves(grid):
    lengths = {
        'go_straight': [22.38, 22.0, 22.38],
        'turn_left': [19.09, 22.04, 25.29],
        'turn_right': [10.23, 6.67, 4.73],
    }
    kinds = ['go_straight', 'turn_left', 'turn_right', 'turn_right', 'go_straight', 'turn_left']
    kinds += ['turn_right', 'go_straight', 'turn_left', 'turn_left', 'turn_right', 'go_straight']
    for i in inner(grid):
        assert [link['type'] for link in i['roadLinks']] == kinds
        for link in i['roadLinks']:
            own = {'turn_left': 0, 'go_straight': 1, 'turn_right': 2}[link['type']]
            assert [(k['startLaneIndex'], k['endLaneIndex']) for k in link['laneLinks']] == [(own, j) for j in range(3)]
            assert {len(k['points']) for k in link['laneLinks']} == {11}
            assert [round(length(k['points']), 2) for k in link['laneLinks']] == lengths[link['type']]


def test_phases(grid):
    always = {2, 3, 6, 10}
    more = [set(), {0, 7}, {4, 11}, {1, 8}, {5, 9}, {0, 1}, {7, 8}, {4, 5}, {9, 11}]
    for i in inner(grid):
        assert i['trafficLight']['roadLinkIndices'] == list(range(12))
        phases = i['trafficLight']['lightphases']
        assert [set(p['availableRoadLinks']) for p in phases] == [always | links for links in more]
        assert [p['time'] for p in phases] == [5] + [30] * 8


def test_demand_of_table_2(flow):
    starts = [v['startTime'] for v in flow]
    assert len(flow) == 2570
    assert starts == sorted(starts)
    assert starts[-1] == 3598
    gaps = {}
    for start, end, vehicles in TABLE_2:
        inside = [t for t in starts if start <= t < end]
        assert len(inside) == vehicles
        gaps[start] = set(np.diff(inside))
    assert gaps == {0: {1}, 600: {4}, 1200: {3}, 1800: {0, 1}, 2400: {5}, 3000: {2}}
    assert all(v['endTime'] == v['startTime'] and v['interval'] == 1 for v in flow)


def test_routes_are_straight_and_drawn_evenly(flow):
    routes = Counter(tuple(v['route']) for v in flow)
    assert len(routes) == 24
    assert all(len(route) == 7 and len({road[-1] for road in route}) == 1 for route in routes)
    expected = len(flow) / 24
    assert sum((n - expected) ** 2 / expected for n in routes.values()) < 49.7  # chi2, 23 degrees of freedom, p = 0.001


def test_vehicles_are_uniform_in_their_ranges(flow):
    for name, (low, high) in VEHICLE_RANGES.items():
        drawn = np.sort([v['vehicle'][name] for v in flow])
        ideal = low + (high - low) * (np.arange(len(drawn)) + 0.5) / len(drawn)
        assert np.abs(drawn - ideal).max() / (high - low) < 1.95 / math.sqrt(len(drawn))  # Kolmogorov, p = 0.001
    fixed = {(v['vehicle']['length'], v['vehicle']['width'], v['vehicle']['minGap']) for v in flow}
    assert fixed == {(5, 2, 2.5)}
    assert {v['vehicle']['headwayTime'] for v in flow} == {2}


def test_the_loader_measures_the_lanes_of_the_facts(tmp_path):
    network = load_network(write_scenario(tmp_path)[0])
    assert (network.num_signals, network.num_lanes, network.num_links) == (36, 504, 1296)
    assert len(network.cross_link) == 9072 * 2  # each crossing is in both links' rows
    ends = network.intersection_virtual[network.road_from] | network.intersection_virtual[network.road_to]
    np.testing.assert_allclose(network.lane_length, np.where(ends[network.lane_road], 89.0, 78.0))


@pytest.mark.parametrize(('rows', 'cols'), [(1, 1), (1, 3), (4, 2)])
@pytest.mark.parametrize('lanes', [(1, 1, 1), (0, 2, 0), (2, 3, 1)])
def test_any_size_is_a_whole_network(rows, cols, lanes, tmp_path):
    network = generate_grid(rows, cols, lanes=lanes, block_length=150)
    flow = generate_flow(network, [(0, 60, 200)], turn=0.5)
    signals, roads = inner(network), {road['id']: road for road in network['roads']}
    assert (len(signals), len(roads)) == (rows * cols, 2 * (rows * (cols + 1) + cols * (rows + 1)))
    joined = set()
    for i in signals:
        for link in i['roadLinks']:
            assert roads[link['startRoad']]['endIntersection'] == roads[link['endRoad']]['startIntersection'] == i['id']
            joined.add((link['startRoad'], link['endRoad']))
        opened = [p['availableRoadLinks'] for p in i['trafficLight']['lightphases']]
        assert set().union(*opened) == set(range(len(i['roadLinks'])))
        assert len({tuple(links) for links in opened}) == len(opened) > 2
    for v in flow:
        assert set(pairwise(v['route'])) <= joined
        assert roads[v['route'][0]]['startIntersection'] not in {i['id'] for i in signals}
        assert roads[v['route'][-1]]['endIntersection'] not in {i['id'] for i in signals}
    load_network(write_scenario(tmp_path, rows, cols, lanes=lanes, block_length=150)[0])


def test_turns_are_as_frequent_as_asked(grid):
    flow = generate_flow(grid, turn=0.3, seed=3)
    kinds = {(k['startRoad'], k['endRoad']): k['type'] for i in inner(grid) for k in i['roadLinks']}
    taken = Counter(kinds[pair] for v in flow for pair in pairwise(v['route']))
    share = {kind: n / taken.total() for kind, n in taken.items()}
    assert share == pytest.approx({'go_straight': 0.7, 'turn_left': 0.15, 'turn_right': 0.15}, abs=0.015)


def test_demand_needs_no_more_of_a_network_than_the_loader(grid):
    short = copy.deepcopy(grid)
    for intersection in short['intersections']:
        if intersection['virtual']:
            del intersection['roadLinks']
        else:
            del intersection['virtual']
    assert generate_flow(short, turn=0.3, seed=3) == generate_flow(grid, turn=0.3, seed=3)


def test_seeds_and_scale(grid):
    assert generate_flow(grid, seed=1) == generate_flow(grid, seed=1)
    assert generate_flow(grid, seed=1) != generate_flow(grid, seed=2)
    assert len(generate_flow(grid, scale=0.5)) == 1285
    assert generate_flow(grid, scale=0) == generate_flow(grid, []) == []


def test_files_hold_what_was_generated(grid, flow, tmp_path):
    roads, cars = write_scenario(tmp_path / 'new' / 'folder')
    assert json.loads(roads.read_text()) == grid
    assert json.loads(cars.read_text()) == flow
    assert sorted(p.name for p in roads.parent.iterdir()) == ['flow.json', 'roadnet.json']


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    before = [p.read_bytes() for p in write_scenario(tmp_path, 1, 1, scale=0.01)]

    def full(_: int) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'):
        write_scenario(tmp_path, 2, 2)
    assert [p.read_bytes() for p in sorted(tmp_path.iterdir(), reverse=True)] == before


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'rows': 0}, "'rows' must be an integer of at least 1"),
        ({'cols': 2.0}, "'cols' must be an integer"),
        ({'lanes': (1, 0, 1)}, "'lanes: straight' must be an integer of at least 1"),
        ({'lanes': (1, 1)}, "'lanes' must be three counts"),
        ({'block_length': 22.0}, "'block_length' must be more than two intersection widths"),
        ({'block_length': math.nan}, "'block_length' must be a positive, finite number"),
        ({'max_speed': -1.0}, "'max_speed' must be a positive"),
    ],
)
def test_bad_grids(options, message):
    with pytest.raises(ValueError, match=message):
        generate_grid(**options)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'scale': math.nan}, "'scale' must be a finite number"),
        ({'scale': -1.0}, "'scale' must be a finite number"),
        ({'turn': 1.5}, "'turn' must be a probability"),
        ({'turn': math.nan}, "'turn' must be a probability"),
        ({'profile': [(0, 0, 5)]}, r"'profile\[0\]' must have 0 <= start < end"),
        ({'profile': [(0, 60, math.nan)]}, r"'profile\[0\]' must be three integers"),
        ({'seed': -1}, "'seed' must be an integer"),
    ],
)
def test_bad_demand(grid, options, message):
    with pytest.raises(ValueError, match=message):
        generate_flow(grid, **options)


def test_networks_without_entries_or_exits(grid):
    closed = grid | {'intersections': [i | {'virtual': False} for i in grid['intersections']]}
    with pytest.raises(ValueError, match='no vehicle can enter'):
        generate_flow(closed)
    links = [('in', 'a'), ('a', 'b'), ('b', 'a')]
    ring = {
        'intersections': [
            {'id': 'edge', 'virtual': True, 'roadLinks': []},
            {
                'id': 'ring',
                'virtual': False,
                'roadLinks': [{'startRoad': a, 'endRoad': b, 'type': 'go_straight'} for a, b in links],
            },
        ],
        'roads': [
            {'id': 'in', 'startIntersection': 'edge'},
            {'id': 'a', 'startIntersection': 'ring'},
            {'id': 'b', 'startIntersection': 'ring'},
        ],
    }
    with pytest.raises(ValueError, match='does not let vehicles out'):
        generate_flow(ring, [(0, 1, 1)])


@needs_data
def test_the_6x6_network_is_the_real_one(grid):
    real = json.loads((Path(DATA) / '6x6' / 'roadnet_6_6.json').read_text())
    assert grid['roads'] == real['roads']
    for ours, theirs in zip(grid['intersections'], real['intersections'], strict=True):
        for name in ('id', 'point', 'width', 'virtual'):
            assert ours[name] == theirs[name]
        assert set(ours['roads']) == set(theirs['roads'])
        for a, b in zip(ours['roadLinks'], theirs['roadLinks'], strict=True):
            assert {k: v for k, v in a.items() if k != 'laneLinks'} == {k: v for k, v in b.items() if k != 'laneLinks'}
            for k, m in zip(a['laneLinks'], b['laneLinks'], strict=True):
                assert (k['startLaneIndex'], k['endLaneIndex']) == (m['startLaneIndex'], m['endLaneIndex'])
                apart = [abs(p[c] - q[c]) for p, q in zip(k['points'], m['points'], strict=True) for c in 'xy']
                assert max(apart) < 1e-9
        if not ours['virtual']:
            phases = [[(p['time'], sorted(p['availableRoadLinks'])) for p in i['trafficLight']['lightphases']]
                      for i in (ours, theirs)]  # fmt: skip
            assert phases[0] == phases[1]


@needs_data
def test_the_6x6_demand_is_the_real_one(flow):
    real = json.loads((Path(DATA) / '6x6' / 'anon_6_6_small_2570_bi.json').read_text())
    assert [v['startTime'] for v in flow] == [v['startTime'] for v in real]
    assert {tuple(v['route']) for v in flow} == {tuple(v['route']) for v in real}
    assert set(flow[0]) == set(real[0])
    assert set(flow[0]['vehicle']) == set(real[0]['vehicle'])
