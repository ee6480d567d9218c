"""Flows: what is read, which way they go, when they depart, and what is refused."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from traffic_files import GRID, Json, Loaded, Write, entry, joined, junction, line_network, link, road

from ltos_pyg.envs.traffic import load_flow, load_network
from ltos_pyg.envs.traffic.engine.schedule import Schedule, departures
from ltos_pyg.envs.traffic.files.routes import Router


def test_grid(grid):
    network, flow = grid
    entries = json.loads((GRID / 'grid_2x3_flow.json').read_text())
    assert flow.num_entries == len(entries)
    assert not flow.dropped.any()
    assert [network.road_ids[r] for r in flow.route[0]] == entries[0]['route']
    assert flow.start.tolist() == [e['startTime'] for e in entries]
    np.testing.assert_allclose(flow.max_speed, [e['vehicle']['maxSpeed'] for e in entries])


def ladder(short: float = 100) -> Json:
    """Roads from a to d over b (``short`` aside) or over c (200 aside), with links through all; and a lone road."""
    a, b, c, d, e, f = (
        junction(n, x, y)
        for n, x, y in (('a', 0, 0), ('b', 100, short), ('c', 100, -200), ('d', 200, 0), ('e', 300, 0), ('f', -100, 0))
    )
    a['roadLinks'] = [link('fa', 'ab'), link('fa', 'ac', kind='turn_right')]
    b['roadLinks'] = [link('ab', 'bd')]
    c['roadLinks'] = [link('ac', 'cd')]
    d['roadLinks'] = [link('bd', 'de'), link('cd', 'de')]
    roads = [
        road(x['id'] + y['id'], x, y) for x, y in ((f, a), (a, b), (a, c), (b, d), (c, d), (d, e), (e, f))
    ]  # fmt: skip
    return joined([a, b, c, d, e, f], roads)


@pytest.mark.parametrize(('short', 'way'), [(100, 'fa ab bd de'), (300, 'fa ac cd de')])
def test_the_shortest_way_joins_the_named_roads(write: Write, short: float, way: str):
    network, flow = write(ladder(short), entry('fa', 'de'))
    assert ' '.join(network.road_ids[r] for r in flow.route[0]) == way


def test_named_roads_on_the_way_are_kept(write: Write):
    network, flow = write(ladder(), entry('fa', 'ac', 'de'), entry('fa', 'fa', 'ab', 'ab'))
    names = [' '.join(network.road_ids[r] for r in route) for route in flow.route]
    assert names == ['fa ac cd de', 'fa ab']


def test_routes_of_one_road_or_without_a_way_are_dropped_and_reported_once(write: Write):
    entries = (entry('fa'), entry('de', 'fa'), entry('fa', 'ab'), entry('ef', 'ef'))
    with pytest.warns(UserWarning, match='3 of 4 entries are dropped') as caught:
        _, flow = write(ladder(), *entries)
    assert len(caught) == 1
    assert flow.dropped.tolist() == [True, True, False, True]
    with pytest.warns(UserWarning, match='1 of 4 entries are dropped'):
        _, flow = write(ladder(), *entries, one_road='legacy')
    assert [len(r) for r in flow.route] == [1, 0, 2, 1]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        write(ladder(), entry('fa', 'ab'))


def test_the_way_takes_the_link_that_shifts_least_and_leads_on(write: Write):
    a, b, c, d = (junction(n, x, 0) for n, x in zip('abcd', (0, 100, 200, 300), strict=True))
    b['roadLinks'] = [link('ab', 'bc', (0, 1), (0, 2), (1, 0), (1, 2), (1, 1))]
    c['roadLinks'] = [link('bc', 'cd', (2, 0), (0, 0))]
    n, flow = write(
        joined([a, b, c, d], [road('ab', a, b, 2), road('bc', b, c, 3), road('cd', c, d, 1)]),
        entry('ab', 'bc'),
        entry('ab', 'bc', 'cd'),
    )
    router = Router(n)

    def lanes(route: int, first: str) -> list[str]:
        path = router.path(flow.route[route], n.lane_ids.index(first))
        links = [d - n.num_lanes for d in path[1::2]]
        assert [(n.link_start[k], n.link_end[k]) for k in links] == list(zip(path[:-2:2], path[2::2], strict=True))
        return [n.lane_ids[d] for d in path[::2]]

    assert lanes(0, 'ab_0') == ['ab_0', 'bc_1']
    assert lanes(0, 'ab_1') == ['ab_1', 'bc_1']
    assert lanes(1, 'ab_0') == ['ab_0', 'bc_2', 'cd_0']  # bc_1 does not lead on
    assert lanes(1, 'ab_1') == ['ab_1', 'bc_0', 'cd_0']  # both shift by one: the first


def test_a_lane_that_does_not_lead_on_ends_the_way(write: Write):
    a, b, c, d = (junction(n, x, 0) for n, x in zip('abcd', (0, 100, 200, 300), strict=True))
    b['roadLinks'] = [link('ab', 'bc', (0, 0), (1, 1))]
    c['roadLinks'] = [link('bc', 'cd', (1, 0))]
    n, flow = write(
        joined([a, b, c, d], [road('ab', a, b, 2), road('bc', b, c, 2), road('cd', c, d, 1)]),
        entry('ab', 'bc', 'cd'),
    )
    assert len(Router(n).path(flow.route[0], n.lane_ids.index('ab_0'))) == 1
    assert len(Router(n).path(flow.route[0], n.lane_ids.index('ab_1'))) == 5


def departure_times(start: int, end: int, interval: float, until: int) -> list[int]:
    """The rule in words: a debt that starts at one interval, grows by a second each second, and is paid in vehicles."""
    times, due = [], interval
    for second in range(start, until):
        if end != -1 and second > end:
            break
        while due >= interval:
            times.append(second)
            due -= interval
        due += 1.0
    return times


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(-1, 60), st.sampled_from([0.3, 1.0, 1.5, 2.0, 7.0, 0.1])), max_size=5
    ),
    st.integers(0, 50),
)
def test_departures(rows, until):
    rows = [(s, e if e == -1 or e >= s else s, i) for s, e, i in rows]
    start, end = (np.array([r[c] for r in rows], dtype=np.int64) for c in range(2))
    interval, none = np.array([r[2] for r in rows], dtype=np.float64), np.zeros(len(rows), bool)
    count = departures(start, end, interval, none, until, np.empty((0, 3), np.int64))
    out = np.empty((count, 3), np.int64)
    departures(start, end, interval, none, until, out)
    for k, row in enumerate(rows):
        own = out[out[:, 1] == k]
        assert own[:, 0].tolist() == departure_times(*row, until)
        assert own[:, 2].tolist() == list(range(len(own)))


def test_several_vehicles_of_one_entry(write: Write):
    network, flow = write(line_network(), entry('in', 'out', start=2, end=9, interval=3), entry('in', 'out', start=5))
    schedule = Schedule(network, flow, 0, 100)
    assert schedule.depart.tolist() == [2, 5, 5, 8]
    assert schedule.ids == ['flow_0_0', 'flow_0_1', 'flow_1_0', 'flow_0_2']


def test_random_numbers_are_cityflows(write: Write):
    """MT19937 with seed 5489 begins 3499211612, 581869302, 3890346734, 3586334585, 545404204, 4161255391."""
    with pytest.warns(UserWarning, match='dropped'):
        network, flow = write(
            line_network(3), entry('in', 'out'), entry('in'), entry('in', 'out'), entry('in', 'out', start=1)
        )
    schedule = Schedule(network, flow, 5489, 10)
    known = [3499211612, 581869302, 3890346734, 3586334585, 545404204, 4161255391, 3922919429, 949333985, 2715962298]
    # Second 0: two numbers each for entries 0, 1 (dropped) and 2, then the lanes of 0 and 2; second 1 follows.
    signed = [k - 2**32 if k >= 2**31 else k for k in known]
    lanes = [schedule.paths[p][0] for p in schedule.path]
    assert schedule.entry.tolist() == [0, 2, 3]
    assert schedule.priority[:2].tolist() == [signed[0], signed[4]]
    assert lanes[:2] == [known[6] % 3, known[7] % 3]
    assert schedule.priority[2] == signed[8]


@pytest.fixture(scope='module')
def mixed(tmp_path_factory) -> Loaded:
    """Entries of several vehicles, one of them without end, on three lanes."""
    folder = tmp_path_factory.mktemp('mixed')
    (folder / 'net.json').write_text(json.dumps(line_network(3)))
    frequent = entry('in', 'out', start=50, end=300, interval=0.7)
    (folder / 'flow.json').write_text(json.dumps([entry('in', 'out', end=-1, interval=3.7), frequent]))
    network = load_network(folder / 'net.json')
    return network, load_flow(folder / 'flow.json', network)


@given(st.integers(1, 200), st.integers(0, 3))
def test_a_longer_table_begins_as_a_shorter_one(mixed, until, seed):
    short, long = Schedule(*mixed, seed, until), Schedule(*mixed, seed, 400)
    for name in ('depart', 'entry', 'number', 'priority', 'path'):
        np.testing.assert_array_equal(getattr(short, name), getattr(long, name)[: short.num_vehicles])
    assert short.paths == long.paths[: len(short.paths)]


def test_a_flow_without_entries(write: Write):
    network, flow = write(line_network())
    assert flow.num_entries == 0
    assert Schedule(network, flow, 0, 100).num_vehicles == 0


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'interval': 0}, r"entry 1: field 'interval' must be a number in \[0.01, 1e\+09\] \(got 0\)"),
        ({'interval': float('nan')}, r"'interval' .*got nan"),
        ({'interval': -1}, r"'interval' .*got -1"),
        ({'interval': None}, r"'interval' .*got None"),
        ({'startTime': -5}, r"'startTime' must be a whole number in \[0, .*got -5"),
        ({'startTime': 1.5}, r"'startTime' must be a whole number .*got 1.5"),
        ({'startTime': 10, 'endTime': 9}, r"'endTime' must not be before startTime, 10, unless it is -1 \(got 9\)"),
        ({'endTime': -2}, r"'endTime' must be a whole number in \[-1, "),
        ({'endTime': float('inf')}, r"'endTime' .*got inf"),
        ({'route': []}, r"'route' must have at least 1 items"),
        ({'route': ['in', 'nowhere']}, r"'route' item 1 must be the id of a known road \(got 'nowhere'\)"),
        ({'route': 'in'}, r"'route' must be an array \(got 'in'\)"),
        ({'vehicle': 3}, r"field 'vehicle': must be an object"),
        ({'vehicle': {}}, r"field 'vehicle': field 'length' is missing"),
    ],
)
def test_faults_are_named(write: Write, fields, message):
    with pytest.raises(ValueError, match=message) as error:
        write(line_network(), entry('in', 'out'), {**entry('in', 'out'), **fields})
    assert 'flow.json' in str(error.value)


@pytest.mark.parametrize('field', ['length', 'maxPosAcc', 'maxNegAcc', 'usualPosAcc', 'usualNegAcc', 'maxSpeed'])
@pytest.mark.parametrize('value', [0, -1, float('nan'), 1e9, '5', True])
def test_vehicles_must_be_possible(write: Write, field, value):
    with pytest.raises(ValueError, match=f"field 'vehicle': field '{field}' must be a number in"):
        write(line_network(), entry('in', 'out', **{field: value}))


def test_too_many_vehicles(write: Write):
    network, flow = write(line_network(), *[entry('in', 'out', end=-1, interval=0.01)] * 10)
    with pytest.raises(ValueError, match=r'sends 3\d{6} vehicles within 3600 s: more than 2000000 are refused'):
        Schedule(network, flow, 0, 3600)


def test_options_and_files(grid, tmp_path):
    with pytest.raises(ValueError, match="'one_road' must be 'strict' or 'legacy'"):
        load_flow(GRID / 'grid_2x3_flow.json', grid[0], one_road='maybe')
    (tmp_path / 'flow.json').write_text('{}')
    with pytest.raises(ValueError, match=r"must be JSON that begins with '\['"):
        load_flow(tmp_path / 'flow.json', grid[0])
    (tmp_path / 'flow.json').write_text('[' * 100_000)
    with pytest.raises(ValueError, match='nested too deep'):
        load_flow(tmp_path / 'flow.json', grid[0])
