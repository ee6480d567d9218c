"""The native engine by hand on small roads, and its laws on a grid. What equals CityFlow is in ``test_trace``."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traffic_files import GRID, Json, Write, entry, joined, junction, line_network, link, phase, road

from ltos_pyg.envs.traffic import make_engine
from ltos_pyg.envs.traffic.engine import native
from ltos_pyg.envs.traffic.engine.native import NativeEngine

GREEN, RED = np.array([[1]]), np.array([[0]])


def random_phases(engine: NativeEngine, steps: int, seed: int = 0) -> np.ndarray:
    """(steps, B, I)"""
    shape = (steps, engine.num_envs, engine.network.num_signals)
    return np.random.default_rng(seed).integers(0, engine.network.num_phases, shape)


def play(engine: NativeEngine, phases: np.ndarray, seconds: int = 10) -> None:
    for shown in phases:
        engine.set_phases(shown)
        engine.step(seconds)


def assert_equal_engines(a: NativeEngine, b: NativeEngine, envs: list[tuple[int, int]]) -> None:
    """Episode i of a and episode j of b are in the same place."""
    for i, j in envs:
        for name in ('lane_vehicle_count', 'lane_waiting_count', 'waiting_seconds', 'average_travel_time'):
            np.testing.assert_array_equal(getattr(a, name)()[i], getattr(b, name)()[j], err_msg=name)
        x, y = a.vehicles(i), b.vehicles(j)
        assert x.vehicle_ids == y.vehicle_ids
        for name in ('drivable', 'distance', 'speed'):
            np.testing.assert_array_equal(getattr(x, name), getattr(y, name))
        for name in ('entered', 'left_signal', 'left_last_signal', 'finished'):
            np.testing.assert_array_equal(getattr(a.trips(), name)[i], getattr(b.trips(), name)[j], err_msg=name)


def test_a_lone_car_by_hand(write: Write):
    """2 m/s faster each second up to 10, so 1, 4, 9, 16, 25 m, then 10 m a second; the stop line is at 90 m."""
    engine = make_engine(*write(line_network(), entry('in', 'out', start=3)))
    engine.set_phases(GREEN)
    engine.step(3)
    assert engine.vehicles(0).vehicle_ids == ()
    places = []
    for _ in range(12):
        engine.step()
        table = engine.vehicles(0)
        places.append((table.drivable[0], table.distance[0], table.speed[0]))
    assert places == [
        *((0, s, v) for s, v in zip((1, 4, 9, 16, 25), (2, 4, 6, 8, 10), strict=True)),
        *((0, s, 10) for s in (35, 45, 55, 65, 75, 85)),
        (2, 5, 10),
    ]
    engine.step(2)
    assert (engine.vehicles(0).drivable[0], engine.vehicles(0).distance[0]) == (1, 5)
    engine.step(9)
    trips = engine.trips()
    assert (trips.scheduled[0], trips.entered[0, 0], trips.left_last_signal[0, 0]) == (3, 3, 14)
    assert trips.left_signal[0, 0] == 14
    assert trips.finished[0, 0] == 25
    assert (trips.num_signals[0], trips.length[0], trips.length_to_last_signal[0]) == (1, 200, 90)
    assert (trips.free_time[0], trips.free_time_to_last_signal[0]) == (20, 9)
    assert engine.average_travel_time()[0] == 22
    assert engine.time == 26


def test_red_stops_and_green_lets_go(write: Write):
    engine = make_engine(*write(line_network(), *(entry('in', 'out', start=k) for k in range(0, 40, 4))))
    engine.set_phases(RED)
    engine.step(200)
    assert engine.lane_vehicle_count().tolist() == [[10, 0]]
    assert engine.lane_waiting_count().tolist() == [[10, 0]]
    table = engine.vehicles(0)
    assert 89 < table.distance.max() <= 90
    behind = np.sort(table.distance)
    assert (np.diff(behind) >= 5).all()
    assert np.isnan(engine.trips().left_signal).all()
    waited = engine.waiting_seconds()
    engine.step(50)
    np.testing.assert_array_equal(engine.waiting_seconds() - waited, [[500, 0]])
    engine.set_phases(GREEN)
    engine.step(100)
    assert np.isfinite(engine.trips().finished).all()
    assert engine.lane_vehicle_count().sum() == 0


def test_waiting_seconds_are_the_counts_before_each_step(grid):
    engine, total = NativeEngine(*grid), 0
    for shown in random_phases(engine, 30):
        engine.set_phases(shown)
        for _ in range(10):
            total = total + engine.lane_waiting_count()
            engine.step()
    np.testing.assert_array_equal(engine.waiting_seconds(), total)
    assert engine.waiting_seconds().sum() > 100


def test_vehicles_are_somewhere_and_never_overlap(grid):
    engine = NativeEngine(*grid)
    for shown in random_phases(engine, 60):
        play(engine, shown[None])
        trips, table, L = engine.trips(), engine.vehicles(0), engine.network.num_lanes
        entered, finished = np.isfinite(trips.entered[0]), np.isfinite(trips.finished[0])
        assert len(table.vehicle_ids) == (entered & ~finished).sum()
        assert engine.lane_vehicle_count().sum() == (table.drivable < L).sum()
        by_lane = np.bincount(table.drivable[table.drivable < L], minlength=L)
        np.testing.assert_array_equal(engine.lane_vehicle_count()[0], by_lane)
        slow = table.drivable[(table.drivable < L) & (table.speed < 0.1)]
        np.testing.assert_array_equal(engine.lane_waiting_count()[0], np.bincount(slow, minlength=L))
        for d in np.unique(table.drivable):
            assert (np.diff(np.sort(table.distance[table.drivable == d])) >= 5 - 1e-9).all()
        for before, after in (('entered', 'left_signal'), ('left_last_signal', 'finished')):
            early, late = getattr(trips, before)[0], getattr(trips, after)[0]
            assert (late >= early)[np.isfinite(late) & np.isfinite(early)].all()


def test_average_travel_time_counts_vehicles_that_wait_to_enter(write: Write):
    engine = NativeEngine(*write(line_network(), entry('in', 'out', end=400, interval=5)))
    assert engine.average_travel_time().tolist() == [0]
    play(engine, np.array([GREEN, RED]), 250)  # more than the road holds
    trips = engine.trips()
    until = np.where(np.isnan(trips.finished), engine.time, trips.finished)
    assert np.isnan(trips.entered).any()
    np.testing.assert_array_equal(engine.average_travel_time(), (until - trips.scheduled).mean(1))


def test_steps_add_up(grid):
    one, many = NativeEngine(*grid), NativeEngine(*grid)
    shown = random_phases(one, 20)
    play(one, shown)
    for each in shown:
        many.set_phases(each)
        for seconds in (1, 4, 0, 5):
            many.step(seconds)
    assert_equal_engines(one, many, [(0, 0)])


@pytest.mark.parametrize('threads', [1, 2])
def test_phases_shown_in_one_call_are_those_shown_one_by_one(grid, threads):
    together, apart = (NativeEngine(*grid, num_envs=3, threads=threads) for _ in range(2))
    for yellow, green in random_phases(apart, 40).reshape(20, 2, 3, -1):
        together.play([(yellow, 3), (green, 7)])
        play(apart, yellow[None], 3)
        play(apart, green[None], 7)
    assert_equal_engines(together, apart, [(b, b) for b in range(3)])
    before = together.state_dict()
    for wrong in ([(green, 1), (green + 9, 1)], [(green, 1), (green, -1)]):
        with pytest.raises(ValueError, match=r"'phase' of signal|'seconds' must be"):
            together.play(wrong)
    np.testing.assert_array_equal(together.state_dict()['vehicle'], before['vehicle'])  # nothing moved
    together.close()
    apart.close()


@pytest.mark.parametrize('threads', [1, 2, 3])
def test_episodes_side_by_side_are_episodes_alone(grid, threads):
    batch = NativeEngine(*grid, num_envs=5, threads=threads)
    shown = random_phases(batch, 30)
    play(batch, shown)
    for b in range(5):
        alone = NativeEngine(*grid)
        play(alone, shown[:, b : b + 1])
        assert_equal_engines(batch, alone, [(b, 0)])
    batch.close()


def test_a_reset_starts_again(grid):
    engine, fresh = NativeEngine(*grid, num_envs=2), NativeEngine(*grid, num_envs=2)
    shown = random_phases(engine, 20)
    play(engine, random_phases(engine, 15, seed=1))
    engine.reset()
    assert engine.time == 0
    for e in (engine, fresh):
        play(e, shown)
    assert_equal_engines(engine, fresh, [(0, 0), (1, 1)])


@settings(max_examples=10, deadline=None)
@given(before=st.integers(0, 40), after=st.integers(0, 40))
def test_a_saved_state_continues_identically(grid, before, after):
    engine, other = NativeEngine(*grid, num_envs=2), NativeEngine(*grid, num_envs=2)
    shown = random_phases(engine, before + after)
    play(engine, shown[:before])
    state = copy.deepcopy(engine.state_dict())
    play(other, shown[::-1])
    other.load_state_dict(state)
    for e in (engine, other):
        play(e, shown[before:])
    assert_equal_engines(engine, other, [(0, 0), (1, 1)])


def test_a_state_is_a_copy(grid):
    engine = NativeEngine(*grid)
    play(engine, random_phases(engine, 10))
    state = engine.state_dict()
    for _ in range(2):  # a state may be loaded more than once
        engine.load_state_dict(state)
        assert engine.time == 100
        engine.step(50)
        assert engine.time == 150


def test_states_of_others_are_refused(grid, write: Write):
    engine = NativeEngine(*grid)
    for other, message in (
        (NativeEngine(*write(line_network(), entry('in', 'out'))), 'of another network, flow or seed'),
        (NativeEngine(*grid, seed=1), 'of another network, flow or seed'),
        (NativeEngine(*grid, num_envs=2), r'of 2 episodes, expected num_envs=1'),
    ):
        with pytest.raises(ValueError, match=message):
            engine.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match=r'it lacks .*vehicle'):
        engine.load_state_dict({'of': 'x', 'until': 3})
    state = engine.state_dict()
    for name, wrong in (('queued', state['queued'][:, 1:]), ('waited', state['waited'].astype(float))):
        with pytest.raises(ValueError, match=f"'state' must have '{name}' of shape"):
            engine.load_state_dict({**state, 'until': 7200, name: wrong})
    engine.step(10)


def test_departures_are_worked_out_as_far_as_needed(monkeypatch, write: Write):
    """However early the table ends at first, the episode is the same; also across a saved state."""
    flow = [entry('in', 'out', end=-1, interval=7.3), entry('in', 'out', start=120, end=-1, interval=11)]
    loaded, engines = write(line_network(3), *flow), []
    for first in (1000, 50, 1):
        monkeypatch.setattr(native, 'FIRST_TABLE', first)
        engines.append(NativeEngine(*loaded, num_envs=2, seed=3))
    shown = random_phases(engines[0], 40, seed=2)
    for engine in engines:
        play(engine, shown)
    assert_equal_engines(engines[0], engines[1], [(0, 0), (1, 1)])
    assert_equal_engines(engines[0], engines[2], [(0, 0), (1, 1)])
    monkeypatch.setattr(native, 'FIRST_TABLE', 1)
    late = NativeEngine(*loaded, num_envs=2, seed=3)
    late.load_state_dict(engines[0].state_dict())
    engines[0].step(500)
    late.step(500)
    assert_equal_engines(engines[0], late, [(0, 0), (1, 1)])


def test_phases_are_checked_by_name(grid):
    engine = NativeEngine(*grid, num_envs=2)
    with pytest.raises(ValueError, match=r"'phase' needs .* expected shape \(2, 6\), got \(6,\)"):
        engine.set_phases(np.zeros(6, int))
    with pytest.raises(ValueError, match="'phase' must hold integers"):
        engine.set_phases(np.zeros((2, 6)))
    for wrong in (-1, 9):
        phases = np.zeros((2, 6), int)
        phases[1, 2] = wrong
        with pytest.raises(
            ValueError, match=rf"signal 'intersection_1_3' in episode 1 must lie in \[0, 8\] \(got {wrong}\)"
        ):
            engine.set_phases(phases)
    assert not engine.state_dict()['phase'].any()


def test_options_are_checked(grid):
    for options, message in (
        ({'num_envs': 0}, "'num_envs' must be"),
        ({'threads': 0}, "'threads' must be"),
        ({'seed': -1}, "'seed' must be"),
        ({'seed': 2**32}, "'seed' must be less"),
        ({'backend': 'sumo'}, "'backend' must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            make_engine(*grid, **options)
    engine = NativeEngine(*grid)
    with pytest.raises(ValueError, match="'seconds' must be"):
        engine.step(-1)
    with pytest.raises(ValueError, match=r"'b' must lie in \[0, 0\]"):
        engine.vehicles(1)


def test_a_flow_without_vehicles(write: Write):
    engine = NativeEngine(*write(line_network()), num_envs=3)
    engine.step(5000)
    assert engine.time == 5000
    assert engine.average_travel_time().tolist() == [0, 0, 0]
    assert engine.trips().entered.shape == (3, 0)
    assert engine.vehicles(2).vehicle_ids == ()
    engine.load_state_dict(engine.state_dict())


def without_lights(network: Json) -> Json:
    network['intersections'][1]['trafficLight']['lightphases'] = []
    return network


def test_without_lights_all_links_are_open(write: Write):
    engine = NativeEngine(*write(without_lights(line_network()), entry('in', 'out')))
    engine.set_phases(np.zeros((1, 0), int))
    engine.step(100)
    trips = engine.trips()
    assert trips.finished[0, 0] == 22
    assert np.isnan(trips.left_signal[0, 0])
    assert np.isnan(trips.left_last_signal[0, 0])
    assert (trips.num_signals[0], trips.length_to_last_signal[0]) == (0, 0)


def test_routes_of_one_road_in_legacy(write: Write):
    network, flow = write(line_network(), entry('in'), entry('out'), one_road='legacy')
    engine = NativeEngine(network, flow)
    engine.set_phases(RED)
    engine.step(60)
    trips = engine.trips()
    assert np.isfinite(trips.finished).all()
    assert trips.left_signal[0, 0] == trips.finished[0, 0]  # the end of its way leads to lights
    assert np.isnan(trips.left_last_signal[0]).all()
    assert np.isnan(trips.left_signal[0, 1])


def test_parts_that_are_not_joined(write: Write):
    one, two = (
        line_network(),
        json.loads(json.dumps(line_network()).replace('"in"', '"in2"').replace('"out"', '"out2"')),
    )
    for i in two['intersections']:
        i['id'] += '2'
    for r in two['roads']:
        r['startIntersection'] += '2'
        r['endIntersection'] += '2'
    both = {key: one[key] + two[key] for key in one}
    with pytest.warns(UserWarning, match='1 of 3 entries are dropped'):
        loaded = write(both, entry('in', 'out'), entry('in2', 'out2'), entry('in', 'out2'))
    engine = NativeEngine(*loaded)
    engine.set_phases(np.array([[1, 0]]))
    engine.step(100)
    assert np.isfinite(engine.trips().finished).tolist() == [[True, False]]


def crossroads(north: str) -> Json:
    """A road from the west and one from the south that go straight on, each 100 m; the lights are always green."""
    names = {'w': (-100, 0), 'e': (100, 0), 's': (0, -100), 'n': (0, 100), 'm': (0, 0)}
    place = {name: junction(name, *xy) for name, xy in names.items()}
    m = place['m']
    m.update(width=12, roadLinks=[link('wm', 'me'), link('sm', 'mn', kind=north)])
    m['trafficLight']['lightphases'] = [phase(0, 1)]
    roads = [road(a + b, place[a], place[b]) for a, b in ('wm', 'me', 'sm', 'mn')]
    return joined(list(place.values()), roads)


@pytest.mark.parametrize('kind', ['go_straight', 'turn_left', 'turn_right'])
def test_the_vehicle_that_must_yield_yields(write: Write, kind):
    """Two vehicles that would meet at a crossing: the one that turns waits; of two that go straight, one."""
    engine = NativeEngine(*write(crossroads(kind), entry('wm', 'me'), entry('sm', 'mn')))
    engine.step(60)
    west, south = engine.trips().finished[0]
    alone = NativeEngine(*write(crossroads('go_straight'), entry('wm', 'me')))
    alone.step(60)
    if kind != 'go_straight':
        assert west == alone.trips().finished[0, 0]
        assert south > west
    else:
        assert west != south


def test_four_vehicles_that_wait_for_each_other_do_not_block(write: Write):
    """All lights green on a full grid: circles of yielding are broken, and everyone arrives."""
    network = json.loads((GRID / 'grid_2x3_roadnet.json').read_text())
    for i in network['intersections']:
        if not i['virtual']:
            i['trafficLight']['lightphases'] = [phase(*range(len(i['roadLinks'])))]
    flow = json.loads((GRID / 'grid_2x3_flow.json').read_text())
    engine = NativeEngine(*write(network, *flow))
    engine.step(3000)
    assert np.isfinite(engine.trips().finished).all()


def test_short_links_are_skipped(write: Write):
    """A vehicle passes a link of 0.4 m within a second, and the vehicle behind it still keeps its distance."""
    network = line_network()
    network['intersections'][1]['width'] = 0.2
    points = [{'x': 99.8, 'y': -2}, {'x': 100.2, 'y': -2}]
    network['intersections'][1]['roadLinks'][0]['laneLinks'][0]['points'] = points
    engine = NativeEngine(*write(network, *(entry('in', 'out', start=3 * k) for k in range(4))))
    engine.set_phases(GREEN)
    for _ in range(60):
        engine.step()
        table = engine.vehicles(0)
        start = np.array([0, 100.2, 99.8])
        place = np.sort(start[table.drivable] + table.distance)
        assert all(b - a > 5 for a, b in pairwise(place))
    assert np.isfinite(engine.trips().finished).all()


PROCESS = """
import sys
import numpy as np
from ltos_pyg.envs.traffic import load_flow, load_network, make_engine
network = load_network(sys.argv[1])
engine = make_engine(network, load_flow(sys.argv[2], network))
engine.set_phases(np.ones((1, 6), int))
engine.step(300)
print(engine.average_travel_time()[0], engine.vehicles(0).distance.sum())
"""


@pytest.mark.slow
def test_processes_that_compile_at_once_agree(tmp_path):
    command = [sys.executable, '-c', PROCESS, str(GRID / 'grid_2x3_roadnet.json'), str(GRID / 'grid_2x3_flow.json')]
    env = {**os.environ, 'NUMBA_CACHE_DIR': str(tmp_path)}
    for _ in range(2):  # with an empty cache, then with a full one
        running = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(4)]
        assert len({process.communicate(timeout=600)[0] for process in running}) == 1
        assert all(process.returncode == 0 for process in running)
