"""The real CityFlow behind the interface, in lockstep with the native engine. Needs the ``cityflow`` module."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from traffic_files import GRID

from ltos_pyg.envs.traffic.engine import TrafficEngine, make_engine
from ltos_pyg.envs.traffic.engine.cityflow import CityFlowEngine
from ltos_pyg.envs.traffic.files.flow import Flow, load_flow
from ltos_pyg.envs.traffic.files.generate import write_scenario
from ltos_pyg.envs.traffic.files.network import RoadNetwork, load_network

pytest.importorskip('cityflow', reason="needs CityFlow's own module, which is built from source")

DATA = Path(os.environ.get('LTOS_ROADNETSZ', ''))
FILES = {
    'grid_2x3': (GRID / 'grid_2x3_roadnet.json', GRID / 'grid_2x3_flow.json'),
    '6x6': (DATA / '6x6' / 'roadnet_6_6.json', DATA / '6x6' / 'anon_6_6_small_2570_bi.json'),
    'shenzhen': (DATA / 'shenzhen' / 'roadnet_1_33.json', DATA / 'shenzhen' / 'anon_1_33_fuhua_0.4x24hto1h.json'),
}


def load(roads: Path, cars: Path) -> tuple[RoadNetwork, Flow]:
    network = load_network(roads)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # one-road routes are dropped
        return network, load_flow(cars, network)


@pytest.fixture(scope='module')
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[RoadNetwork, Flow]:
    folder = tmp_path_factory.mktemp('small')
    return load(*write_scenario(folder, 2, 2, lanes=(1, 2, 1), profile=[(0, 120, 120)], turn=0.4, block_length=120))


@contextmanager
def cityflow(network: RoadNetwork, flow: Flow, num_envs: int = 1, **options: object) -> Iterator[CityFlowEngine]:
    with closing(CityFlowEngine(network, flow, num_envs, **options)) as engine:  # type: ignore[arg-type]
        yield engine


def random_plan(network: RoadNetwork, seconds: int, hold: int, seed: int, num_envs: int = 1) -> np.ndarray:
    """(seconds, B, I): phases held for so long each, of all that there are."""
    shape = (-(-seconds // hold), num_envs, network.num_signals)
    return np.random.default_rng(seed).integers(0, network.num_phases, shape).repeat(hold, 0)[:seconds]


def assert_equal(a: TrafficEngine, b: TrafficEngine) -> None:
    np.testing.assert_array_equal(a.lane_vehicle_count(), b.lane_vehicle_count())
    np.testing.assert_array_equal(a.lane_waiting_count(), b.lane_waiting_count())


def assert_equal_in_all(a: TrafficEngine, b: TrafficEngine) -> None:
    """What takes longer to compare."""
    assert a.time == b.time
    np.testing.assert_array_equal(a.waiting_seconds(), b.waiting_seconds())
    np.testing.assert_allclose(a.average_travel_time(), b.average_travel_time(), rtol=1e-12)
    for k in range(a.num_envs):
        ours, theirs = a.vehicles(k), b.vehicles(k)
        assert ours.vehicle_ids == theirs.vehicle_ids
        for name in ('drivable', 'distance', 'speed'):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
    ours, theirs = a.trips(), b.trips()
    assert ours.vehicle_ids == theirs.vehicle_ids
    for name in vars(ours):
        if name != 'vehicle_ids':
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)


def lockstep(network: RoadNetwork, flow: Flow, plan: np.ndarray, every: int = 50) -> None:
    num_envs = plan.shape[1]
    with cityflow(network, flow, num_envs) as real, closing(make_engine(network, flow, num_envs)) as native:
        for second, phase in enumerate(plan):
            for engine in (real, native):
                engine.set_phases(phase)
                engine.step()
            assert_equal(real, native)
            if second % every == 0:
                assert_equal_in_all(real, native)
        for engine in (real, native):
            engine.play([(plan[0], 5), (plan[-1], 5)])
        assert_equal_in_all(real, native)


def test_lockstep_on_grid_2x3():
    network, flow = load(*FILES['grid_2x3'])
    lockstep(network, flow, random_plan(network, 1200, 10, seed=0))


@pytest.mark.parametrize(('seed', 'lanes'), [(0, (1, 1, 1)), (1, (1, 2, 1)), (2, (2, 3, 2)), (3, (0, 2, 0))])
def test_lockstep_on_generated_grids(seed, lanes, tmp_path):
    files = write_scenario(
        tmp_path, 2, 3, lanes=lanes, block_length=150, profile=[(0, 200, 300)], seed=seed, turn=0.5 * (lanes[0] > 0)
    )
    network, flow = load(*files)
    lockstep(network, flow, random_plan(network, 400, [1, 5, 10, 30][seed], seed, num_envs=2))


@pytest.mark.skipif(not DATA.name, reason='needs the 6x6 and Shenzhen data sets: set LTOS_ROADNETSZ to their folder')
@pytest.mark.parametrize('name', ['6x6', 'shenzhen'])
def test_lockstep_on_the_data_sets(name):
    network, flow = load(*FILES[name])
    lockstep(network, flow, random_plan(network, 600, 10, seed=1), every=100)


def test_a_reset_engine_is_a_new_one(small):
    network, flow = small
    plan = random_plan(network, 100, 5, seed=0)
    with cityflow(network, flow, seed=7) as again, cityflow(network, flow, seed=7) as new:
        for phase in random_plan(network, 60, 3, seed=1):
            again.set_phases(phase)
            again.step()
        again.reset()
        assert again.time == 0
        assert_equal_in_all(again, new)
        for phase in plan:
            for engine in (again, new):
                engine.set_phases(phase)
                engine.step()
        assert_equal_in_all(again, new)


def test_a_saved_state_continues_alike(small):
    network, flow = small
    plan = random_plan(network, 120, 7, seed=0, num_envs=2)
    with cityflow(network, flow, 2) as one, cityflow(network, flow, 2) as other:
        for phase in plan[:60]:
            one.set_phases(phase)
            one.step()
        one.set_phases(plan[60])
        other.load_state_dict(one.state_dict())
        assert_equal_in_all(one, other)
        for engine in (one, other):
            engine.step(3)  # the phases set before saving hold
        assert_equal_in_all(one, other)
        for phase in plan[63:]:
            for engine in (one, other):
                engine.set_phases(phase)
                engine.step()
        assert_equal_in_all(one, other)


def test_states_of_others_are_refused(small, tmp_path):
    network, flow = small
    elsewhere = load(*write_scenario(tmp_path, 1, 1, profile=[(0, 50, 10)]))
    with cityflow(network, flow) as engine, cityflow(network, flow, 2) as two, cityflow(*elsewhere) as other:
        with pytest.raises(ValueError, match="'state' is of another network"):
            engine.load_state_dict(other.state_dict())
        with pytest.raises(ValueError, match="'state' is of another network, flow, seed or backend"):
            engine.load_state_dict(make_engine(network, flow).state_dict())
        with pytest.raises(ValueError, match="'state' is of 2 episodes, expected num_envs=1"):
            engine.load_state_dict(two.state_dict())


@pytest.mark.parametrize(
    ('phase', 'message'),
    [
        (np.zeros((1, 3), int), r'expected shape \(1, 4\), got \(1, 3\)'),
        (np.zeros((1, 4)), "'phase' must hold integers"),
        (np.array([[0, 0, 9, 0]]), r"'phase' of signal 'intersection_2_1' in episode 0 must lie in \[0, 8\] \(got 9\)"),
        (np.array([[0, -1, 0, 0]]), r"signal 'intersection_1_2' .* \(got -1\)"),
    ],
)
def test_phases_are_checked_before_cityflow_sees_them(small, phase, message):
    with cityflow(*small) as engine, pytest.raises(ValueError, match=message):
        engine.set_phases(phase)


def test_bad_options_and_calls(small):
    for options, message in (({'num_envs': 0}, 'num_envs'), ({'threads': 0}, 'threads'), ({'seed': -1}, 'seed')):
        with pytest.raises(ValueError, match=f"'{message}' must be an integer"):
            CityFlowEngine(*small, **options)
    with cityflow(*small, record=False) as engine:
        engine.step(5)
        with pytest.raises(RuntimeError, match=r'waiting_seconds\(\) needs records of every step'):
            engine.waiting_seconds()
        with pytest.raises(RuntimeError, match=r'trips\(\) needs records of every step'):
            engine.trips()
        with pytest.raises(ValueError, match=r"'b' must be an episode in \[0, 0\]"):
            engine.vehicles(1)
    engine.close()  # twice is once
    with pytest.raises(RuntimeError, match='the engine is closed'):
        engine.step()


def test_files_that_changed_or_vanished(tmp_path):
    roads, cars = write_scenario(tmp_path, 1, 1, profile=[(0, 50, 10)])
    network, flow = load(roads, cars)
    write_scenario(tmp_path, 1, 2, profile=[(0, 50, 10)])
    with pytest.raises(ValueError, match='CityFlow reads other lanes'):
        CityFlowEngine(network, flow)
    roads.write_text('{')
    with pytest.raises(ValueError, match='CityFlow reads other lanes'):
        CityFlowEngine(network, flow)
    cars.unlink()
    with pytest.raises(ValueError, match=r"CityFlow reads the files itself, and '.*flow.json' is gone"):
        CityFlowEngine(network, flow)


def test_cityflow_drives_no_one_road_routes(small, tmp_path):
    network = small[0]
    cars = tmp_path / 'flow.json'
    text = small[1].source.read_text()
    first = text.index('"route":') + len('"route":')
    cars.write_text(text[:first] + f'["{network.road_ids[0]}"]' + text[text.index(']', first) + 1 :])
    with pytest.raises(ValueError, match='has one road only, which CityFlow does not drive'):
        CityFlowEngine(network, load_flow(cars, network, one_road='legacy'))


def test_intersections_without_phases_are_refused(small, tmp_path):
    document = json.loads(small[0].source.read_text())
    dark = next(i for i in document['intersections'] if not i['virtual'])
    dark['trafficLight']['lightphases'] = []
    roads = tmp_path / 'roadnet.json'
    roads.write_text(json.dumps(document))
    network = load_network(roads)
    with pytest.raises(ValueError, match=f"'{dark['id']}' of .* no light phases, on which CityFlow crashes"):
        CityFlowEngine(network, load_flow(small[1].source, network))


def test_without_the_module_the_error_says_what_to_do(small, monkeypatch):
    monkeypatch.setitem(sys.modules, 'cityflow', None)
    with pytest.raises(ImportError, match=r"not on PyPI.*backend='native' computes the same"):
        make_engine(*small, backend='cityflow')


def test_an_engine_that_was_not_closed_does_not_hang_the_interpreter(small):
    network, flow = small
    code = f"""
from ltos_pyg.envs.traffic.engine import make_engine
from ltos_pyg.envs.traffic.files.flow import load_flow
from ltos_pyg.envs.traffic.files.network import load_network
network = load_network({str(network.source)!r})
engine = make_engine(network, load_flow({str(flow.source)!r}, network), 4, backend='cityflow')
engine.step(20)
"""
    subprocess.run([sys.executable, '-c', code], check=True, timeout=300)  # a busy machine imports slowly
