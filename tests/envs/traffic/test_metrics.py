"""Metrics: by hand on a single road's worth of traffic, and against the engine where a vehicle is alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from traffic_files import Loaded, data_folder, entry

from ltos_pyg.envs.traffic import load_flow, load_network, load_tasks, make_engine
from ltos_pyg.envs.traffic.controllers import drive, make_controller
from ltos_pyg.envs.traffic.free_flow import FreeFlow, free_flow
from ltos_pyg.envs.traffic.metrics import DESCRIPTIONS, TrafficMetrics
from ltos_pyg.envs.traffic.signals import signal_choices

nan = float('nan')
FILES = {
    '6x6': ('6x6/roadnet_6_6.json', '6x6/anon_6_6_small_2570_bi.json'),
    'shenzhen': ('shenzhen/roadnet_1_33.json', 'shenzhen/anon_1_33_fuhua_0.4x24hto1h.json'),
}


def noted(**trips: Any) -> TrafficMetrics:
    """Metrics of one episode of 100 s with two signals, whose lanes 0 and 2 are incoming, from given trips."""
    network = SimpleNamespace(num_signals=2, incoming=np.array([[0, -1], [2, -1]]))
    table = SimpleNamespace(**{name: np.array(value) for name, value in trips.items()})
    engine: Any = SimpleNamespace(
        network=network,
        num_envs=1,
        time=100,
        trips=lambda: table,
        waiting_seconds=lambda: np.array([[30.0, 1000.0, 50.0]]),
        average_travel_time=lambda: np.array([44.0]),
    )
    metrics = TrafficMetrics(engine)
    metrics.free = FreeFlow(np.array([10.0, 20.0, nan]), np.array([12.0, 22.0, 5.0]), np.array([1, 2, 0]))
    return metrics


def test_metrics_worked_by_hand() -> None:
    metrics = noted(
        entry=[0, 1, 1, 2, 0],
        entered=[[0.0, 10.0, 20.0, 30.0, nan]],
        left_signal=[[25.0, 60.0, nan, nan, nan]],  # there; between two signals; still before the first; never; not in
        finished=[[27.0, nan, nan, 35.0, nan]],
    )
    got = {name: value.item() for name, value in metrics().items()}
    assert got.keys() == DESCRIPTIONS.keys()
    durations = [25, 50, 80]
    delay = sum(durations) - (10 + 20 + 20)
    assert got == pytest.approx({
        'duration': sum(durations) / 3,
        'average_travel_time': 44,
        'scheduled': 5,
        'entered': 4,
        'finished': 2,
        'queue': 80 / 100 / 2,
        'queue_time': 80 / 3,
        'delay': delay / 3,
        'red_lights_delay': delay / (1 + 2 + 2) / 10,
        'red_lights_queue': 80 / (1 + 2 + 2) / 10,
    })  # fmt: skip


def test_without_a_vehicle_all_is_zero() -> None:
    metrics = noted(entry=np.zeros(0, int), **{n: np.zeros((1, 0)) for n in ('entered', 'left_signal', 'finished')})
    got = {name: value.item() for name, value in metrics().items()}
    assert got.pop('queue') == 0.4
    assert got.pop('average_travel_time') == 44
    assert set(got.values()) == {0}


@pytest.mark.parametrize('speed', [5.0, 10.0, 15.0])
@pytest.mark.parametrize('acceleration', [1.3, 2.5])
def test_a_lone_vehicle_at_green_lights_takes_its_free_flow_time(
    grid: Loaded, tmp_path: Path, speed: float, acceleration: float
) -> None:
    network, _ = grid
    route = straight_route(network)
    lone = entry(*route, maxSpeed=speed, maxPosAcc=acceleration, start=7)
    (tmp_path / 'flow.json').write_text(json.dumps([lone]))
    flow = load_flow(tmp_path / 'flow.json', network)
    free, engine, choices = free_flow(network, flow), make_engine(network, flow), signal_choices(network, 2)
    metrics, trips = {}, {}
    for phase in (1, 2):  # one of them lets it through all the way
        always = np.full((1, network.num_signals), phase)
        drive(engine, lambda engine, always=always: always, choices, 600, yellow=0)
        metrics[phase], trips[phase] = TrafficMetrics(engine)(), engine.trips()
    green, red = sorted((1, 2), key=lambda phase: metrics[phase]['duration'].item())
    assert trips[green].entered.item() == 7
    assert trips[green].finished.item() - 7 == free.trip.item()
    assert metrics[green]['duration'].item() == free.duration.item()
    assert metrics[green]['delay'].item() == metrics[green]['red_lights_delay'].item() == 0
    assert np.isnan(trips[red].finished.item())
    assert metrics[red]['red_lights_queue'].item() > 10
    assert free.crossings.item() == len(route) - 1


def straight_route(network: Any) -> list[str]:
    """The roads of the first row, from end to end."""
    road = next(r for r, start in enumerate(network.road_from) if start not in network.signals)
    route = [road]
    while True:
        following = (network.road_link_start == route[-1]) & (network.road_link_type == 3)
        if not following.any():
            return [network.road_ids[r] for r in route]
        route.append(int(network.road_link_end[following][0]))


def test_no_vehicle_exceeds_the_speed_limit() -> None:
    ((network, flow),) = load_tasks(('2x3',), turn=0.5)
    free = free_flow(network, flow)
    speed = np.minimum(flow.max_speed, 11.111)
    roads = np.array([len(route) for route in flow.route])
    assert (free.trip > (roads - 1) * 89 / speed).all()
    assert (free.trip > free.duration).all()
    assert np.isfinite(free.duration).all()


def test_times_of_lone_vehicles_on_the_shenzhen_network() -> None:
    data = data_folder('LTOS_ROADNETSZ') / 'shenzhen'
    network = load_network(data / 'roadnet_1_33.json')
    with pytest.warns(UserWarning, match='137 of 1775 entries are dropped'):
        flow = load_flow(data / 'anon_1_33_fuhua_0.4x24hto1h.json', network)
    free = free_flow(network, flow)
    driven = ~np.isnan(free.trip)
    assert driven.sum() == 1638
    assert free.duration[driven].mean() == pytest.approx(122.7, abs=0.05)  # measured with CityFlow, each vehicle alone
    assert free.trip[driven].mean() == pytest.approx(128.3, abs=0.05)
    assert free.crossings[driven].mean() == pytest.approx(7.116, abs=5e-4)


# As measured with CityFlow: definition A (not on 6x6, where it was measured with other free-flow times) and B.
RED_LIGHTS = [
    ('6x6', 'max-pressure', 2, None, 0.36),
    ('6x6', 'longest-queue', 2, None, 0.62),
    ('6x6', 'fixed', 2, None, 0.86),
    ('shenzhen', 'max-pressure', 4, 1.02, 0.81),
    ('shenzhen', 'longest-queue', 4, 1.32, 1.04),
]


@pytest.mark.filterwarnings('ignore:flow .* entries are dropped')
@pytest.mark.parametrize(('name', 'controller', 'phases', 'delay', 'queue'), RED_LIGHTS)
def test_red_lights_in_both_definitions(
    name: str, controller: str, phases: int, delay: float | None, queue: float
) -> None:
    data, (network_file, flow_file) = data_folder('LTOS_ROADNETSZ'), FILES[name]
    network = load_network(data / network_file)
    flow = load_flow(data / flow_file, network)
    choices, engine = signal_choices(network, phases), make_engine(network, flow)
    drive(engine, make_controller(controller, network, choices), choices)
    got = TrafficMetrics(engine)()
    assert got['red_lights_queue'].item() == pytest.approx(queue, abs=0.006)
    if delay is not None:
        assert got['red_lights_delay'].item() == pytest.approx(delay, abs=0.006)
