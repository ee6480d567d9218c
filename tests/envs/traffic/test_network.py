"""Road networks: what is read, and what is refused."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from traffic_files import Json, data_folder, joined, junction, line_network, link, phase, road

from ltos_pyg.envs.traffic import load_network
from ltos_pyg.envs.traffic.files.network import LEFT, RIGHT, STRAIGHT, RoadNetwork


@pytest.fixture
def load(tmp_path):
    def save(network: Any) -> RoadNetwork:
        text = network if isinstance(network, str) else json.dumps(network)
        (tmp_path / 'net.json').write_text(text)
        return load_network(tmp_path / 'net.json')

    return save


def test_grid(grid):
    network = grid[0]
    assert (network.num_intersections, network.num_roads, network.num_lanes, network.num_links) == (16, 34, 102, 216)
    assert network.num_signals == 6
    assert network.signal_ids[0] == 'intersection_1_1'
    assert network.num_phases.tolist() == [9] * 6
    assert network.lane_ids == tuple(sorted(network.lane_ids))
    assert set(network.lane_length) == {168.0, 184.0}  # 200 m less 16 m at each end with lights
    assert np.flatnonzero(network.phase_open[0, 0]).tolist() == [2, 5, 8, 11]
    first = network.signal_road_links[0, 0]
    assert network.road_ids[network.road_link_start[first]] == 'road_0_1_0'
    assert set(network.road_link_type) == {STRAIGHT, LEFT, RIGHT}


def test_every_reference_fits(grid):
    n = grid[0]
    assert [n.lane_ids[k] for k in n.road_lanes[:3]] == [f'{n.road_ids[0]}_{i}' for i in range(3)]
    for k in range(n.num_links):
        m = n.link_road_link[k]
        assert n.lane_road[n.link_start[k]] == n.road_link_start[m]
        assert n.lane_road[n.link_end[k]] == n.road_link_end[m]
        assert n.road_to[n.road_link_start[m]] == n.road_link_intersection[m] == n.road_from[n.road_link_end[m]]
    for i, row in enumerate(n.incoming):
        roads = n.lane_road[row]
        assert (n.road_to[roads] == n.signals[i]).all()
        starts = n.road_link_start[n.signal_road_links[i]]
        assert list(dict.fromkeys(roads)) == list(dict.fromkeys(starts))
        assert n.lane_index[row].tolist() == [0, 1, 2] * 4


def test_links_join_their_lanes(grid):
    n = grid[0]
    for k in range(n.num_links):
        points = n.link_points[n.link_points_ptr[k] : n.link_points_ptr[k + 1]]
        start = n.lane_points[n.lane_points_ptr[n.link_start[k] + 1] - 1]
        end = n.lane_points[n.lane_points_ptr[n.link_end[k]]]
        np.testing.assert_allclose(points[[0, -1]], [start, end], atol=1e-9)


def test_crossings_come_in_pairs_sorted_by_distance(grid):
    n = grid[0]
    owner = np.repeat(np.arange(n.num_links), np.diff(n.cross_ptr))
    every = np.arange(len(owner))
    assert len(every) == 2 * 6 * 252
    assert (n.cross_twin[n.cross_twin] == every).all()
    assert (owner[n.cross_twin] == n.cross_link).all()
    same = owner[1:] == owner[:-1]
    assert (np.diff(n.cross_distance)[same] >= 0).all()
    assert ((n.cross_distance >= 0) & (n.cross_distance <= n.link_length[owner] + 1e-9)).all()
    place = [point_at(n, owner[x], n.cross_distance[x]) for x in every[:400]]
    twin = [point_at(n, n.cross_link[x], n.cross_distance[n.cross_twin[x]]) for x in every[:400]]
    np.testing.assert_allclose(place, twin, atol=1e-6)


def point_at(n: RoadNetwork, k: int, distance: float) -> np.ndarray:
    points = n.link_points[n.link_points_ptr[k] : n.link_points_ptr[k + 1]]
    along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    return np.array([np.interp(distance, along, points[:, c]) for c in range(2)])


@pytest.mark.parametrize(
    ('file', 'lanes', 'links', 'crossings', 'signals'),
    [('6x6/roadnet_6_6.json', 504, 1296, 9072, 36), ('shenzhen/roadnet_1_33.json', 504, 1188, 8316, 33)],
)
def test_networks_of_the_paper(file, lanes, links, crossings, signals):
    n = load_network(data_folder('LTOS_ROADNETSZ') / file)
    assert (n.num_lanes, n.num_links, len(n.cross_link) // 2, n.num_signals) == (lanes, links, crossings, signals)


def test_a_bent_road_keeps_its_lanes_apart(load):
    a, b = junction('a', 0, 0), junction('b', 50, 50)
    n = load(joined([a, b], [road('r', a, b, 2, bends=((50, 0),))]))
    inner, outer = (n.lane_points[n.lane_points_ptr[k] : n.lane_points_ptr[k + 1]] for k in range(2))
    np.testing.assert_allclose(inner[[0, 2]], [(0, -2), (52, 50)], atol=1e-12)  # to the right of the centre line
    np.testing.assert_allclose(outer[[0, 2]], [(0, -6), (56, 50)], atol=1e-12)
    shift = 2 / math.sqrt(2)
    np.testing.assert_allclose(inner[1], (50 + shift, -shift))
    assert n.lane_length[0] < n.lane_length[1]


def test_undrawn_links_are_curves(load):
    network = line_network()
    s, out = network['intersections'][1], network['roads'][1]
    out['points'] = [{'x': 100, 'y': 0}, {'x': 100, 'y': 100}]
    s['roadLinks'][0].update(type='turn_left')
    n = load(network)
    points = n.link_points
    assert len(points) == 11
    np.testing.assert_allclose(points[[0, -1]], [(90, -2), (102, 10)])
    assert math.hypot(12, 12) < n.link_length[0] < 24
    network['intersections'][1]['roadLinks'][0]['laneLinks'][0]['points'] = []
    np.testing.assert_array_equal(load(network).link_points, points)


def test_lanes_and_phases_may_differ_from_place_to_place(load):
    a, b, c, d = (junction(n, x, 0) for n, x in zip('abcd', (0, 100, 200, 300), strict=True))
    b.update(width=5, roadLinks=[link('ab', 'bc', (0, 0), (0, 1), (0, 2))])
    c.update(width=5, roadLinks=[link('bc', 'cd', (0, 0), (2, 1)), link('bc', 'cd', (1, 0))])
    b['trafficLight']['lightphases'] = [phase(0)]
    c['trafficLight']['lightphases'] = [phase(), phase(1), phase(0, 1)]
    n = load(joined([a, b, c, d], [road('ab', a, b, 1), road('bc', b, c, 3), road('cd', c, d, 2)]))
    assert n.num_phases.tolist() == [1, 3]
    assert n.phase_open.tolist() == [[[1, 0], [0, 0], [0, 0]], [[0, 0], [0, 1], [1, 1]]]
    assert n.signal_road_links.tolist() == [[0, -1], [1, 2]]
    assert [[n.lane_ids[k] for k in row if k >= 0] for row in n.incoming] == [['ab_0'], ['bc_0', 'bc_1', 'bc_2']]


def test_lights_need_a_phase_and_a_place_that_is_not_virtual(load):
    network = line_network()
    network['intersections'][1]['trafficLight']['lightphases'] = []
    assert load(network).num_signals == 0
    del network['intersections'][1]['trafficLight']
    assert load(network).num_signals == 0
    network = line_network()
    network['intersections'][1]['virtual'] = True
    n = load(network)
    assert (n.num_signals, n.num_links) == (0, 0)


SHORT = {'links.': 'intersections.1.roadLinks.0.', 'phases.': 'intersections.1.trafficLight.lightphases.'}


def change(network: Json, place: str, value: Any) -> Json:
    """A copy with one field changed, such as ``roads.0.id``; ``...`` takes it away."""
    new = json.loads(json.dumps(network))  # so that no part is the same object as another
    *path, last = [int(k) if k.isdigit() else k for k in place.split('.')]
    at: Any = new
    for key in path:
        at = at[key]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return new


@pytest.mark.parametrize(
    ('place', 'value', 'message'),
    [
        ('roads', ..., r"field 'roads' is missing"),
        ('roads', [], r"field 'roads' must have at least 1 items"),
        ('intersections', {}, r"field 'intersections' must be an array \(got \{\}\)"),
        ('intersections.0', 7, r"'intersections', item 0: must be an object \(got 7\)"),
        ('intersections.0.id', 's', r"intersection 's'\).*field 'id' must be unique"),
        ('intersections.0.id', 3, r"field 'id' must be a text"),
        ('intersections.0.point.x', float('nan'), r"'a'\): field 'point': field 'x' must be a number .*got nan"),
        ('intersections.0.virtual', 1, r"field 'virtual' must be true or false"),
        ('intersections.1.width', -1, r"'s'\): field 'width' must be a number in \[0, .*got -1"),
        ('intersections.1.width', 100, r"'in'\): field 'points' must not leave lane 0 without length"),
        ('intersections.0.roads.0', 'x', r"field 'roads' item 0 must be the id of a known road \(got 'x'\)"),
        ('roads.1.id', 'in', r"field 'id' must be unique: another road is 'in'"),
        ('roads.0.startIntersection', 'x', r"'in'\): field 'startIntersection' must be the id of a known intersection"),
        ('roads.0.startIntersection', 's', r"field 'endIntersection' .* the road is a loop"),
        ('roads.0.points', [{'x': 0, 'y': 0}], r"field 'points' must have at least 2 items \(got 1\)"),
        ('roads.0.points.1', {'x': 0}, r"field 'points', item 1: field 'y' is missing"),
        ('roads.0.points.1', {'x': 0, 'y': 0}, r"two points coincide"),
        ('roads.0.points.1.x', 1e300, r"field 'points', item 1: field 'x' must be a number"),
        ('roads.0.lanes', [], r"'in'\): field 'lanes' must have at least 1 items"),
        ('roads.0.lanes.0.maxSpeed', 0, r"field 'lanes', item 0: field 'maxSpeed' must be a number in \(0, 1000\]"),
        ('roads.0.lanes.0.width', '4', r"field 'width' must be a number .*got '4'"),
        ('links.type', 'fly', r"field 'type' must be one of go_straight, turn_left, turn_right"),
        ('links.startRoad', 'out', r"'startRoad' must end at this intersection \('out' does not"),
        ('links.endRoad', 'in', r"'endRoad' must start at this intersection \('in' does not"),
        ('links.endRoad', 'x', r"'endRoad' must be the id of a known road"),
        ('links.laneLinks.0.startLaneIndex', 1, r"'startLaneIndex' must be a whole number in \[0, 0\]"),
        ('links.laneLinks.0.endLaneIndex', -1, r"'endLaneIndex' must be a whole number in \[0, 0\]"),
        ('phases.1.availableRoadLinks', [1], r"'availableRoadLinks' must hold indices"),
        ('phases.1.time', -1, r"field 'lightphases', item 1: field 'time'"),
        ('intersections.1.trafficLight', [], r"field 'trafficLight': must be an object"),
    ],
)  # fmt: skip
def test_faults_are_named(load, place, value, message):
    for short, long in SHORT.items():
        place = place.replace(short, long)
    with pytest.raises(ValueError, match=message) as error:
        load(change(line_network(), place, value))
    assert 'net.json' in str(error.value)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', "is empty: expected JSON that begins with '{'"),
        ('  \n', 'is empty'),
        ('[]', "must be JSON that begins with '{'"),
        ('{"roads": ', 'is not valid JSON'),
        ('{"roads": 1' + '0' * 5000 + '}', 'is not valid JSON'),
        ('{"roads": ' + '[' * 200_000, 'nested too deep'),
        ('{"a": "' + 'x' * 1_000_000, 'is not valid JSON'),
    ],
)
def test_files_that_are_no_networks(load, text, message):
    with pytest.raises(ValueError, match=message) as error:
        load(text)
    assert len(str(error.value)) < 1000


def test_junk_bytes_missing_files_and_folders(tmp_path):
    (tmp_path / 'junk').write_bytes(b'\x00\xff' * 1000)
    with pytest.raises(ValueError, match='is not text in UTF-8'):
        load_network(tmp_path / 'junk')
    with pytest.raises(ValueError, match=r"none' cannot be read: No such file"):
        load_network(tmp_path / 'none')
    with pytest.raises(ValueError, match='cannot be read'):
        load_network(tmp_path)


def test_a_huge_file_of_junk_is_refused_at_once(tmp_path):
    with (tmp_path / 'huge').open('wb') as file:
        file.truncate(100 * 2**20)  # zeros, without the disk space
    with pytest.raises(ValueError, match='must be JSON that begins with'):
        load_network(tmp_path / 'huge')
    with (tmp_path / 'huge').open('wb') as file:
        file.truncate(2**30)
    with pytest.raises(ValueError, match='is too large'):
        load_network(tmp_path / 'huge')
