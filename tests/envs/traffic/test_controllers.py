"""Controllers: their rules where one can count by hand, and the measured tables of the paper's networks."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from traffic_files import data_folder

from ltos_pyg.envs.traffic import Flow, RoadNetwork, load_flow, load_network, load_tasks, make_engine
from ltos_pyg.envs.traffic.controllers import CONTROLLERS, FixedTime, MostPressing, RandomPhase, drive, make_controller
from ltos_pyg.envs.traffic.metrics import TrafficMetrics
from ltos_pyg.envs.traffic.signals import play_decision, signal_choices

FILES = {
    '6x6': ('6x6/roadnet_6_6.json', '6x6/anon_6_6_small_2570_bi.json'),
    'shenzhen': ('shenzhen/roadnet_1_33.json', 'shenzhen/anon_1_33_fuhua_0.4x24hto1h.json'),
}

# Of CityFlow itself, one hour, a decision every 10 s: controller, phases, seconds of each (fixed only), yellow;
# average travel time, authors' duration, vehicle-seconds of waiting on incoming lanes per vehicle that entered.
MEASURED = [
    ('6x6', 'fixed', 2, 10, 5, 135.3, 122.6, 36.5),
    ('6x6', 'fixed', 2, 20, 5, 136.8, 125.2, 51.9),
    ('6x6', 'fixed', 2, 30, 5, 137.9, 126.1, 56.4),
    ('6x6', 'fixed', 2, 60, 5, 137.9, 125.9, 60.0),
    ('6x6', 'fixed', 2, 10, 0, 119.7, 106.9, 25.2),
    ('6x6', 'fixed', 2, 60, 0, 127.4, 115.5, 49.7),
    ('6x6', 'fixed', 4, 10, 5, 352.7, None, None),
    ('6x6', 'fixed', 4, 30, 0, 254.8, None, None),
    ('6x6', 'max-pressure', 2, None, 5, 107.6, 95.9, 21.9),
    ('6x6', 'max-pressure', 4, None, 5, 107.6, 95.9, 21.9),
    ('6x6', 'max-pressure', 2, None, 0, 84.2, 72.6, 6.2),
    ('6x6', 'max-pressure', 8, None, 5, 109.9, 98.2, 23.3),
    ('6x6', 'max-pressure', 8, None, 0, 84.7, 73.1, 6.6),
    ('6x6', 'greedy-count', 2, None, 5, 108.4, 96.6, 22.8),
    ('6x6', 'greedy-count', 2, None, 0, 86.4, 74.9, 7.9),
    ('6x6', 'longest-queue', 2, None, 5, 129.5, 117.3, 37.3),
    ('6x6', 'longest-queue', 4, None, 5, 129.5, 117.3, 37.3),
    ('6x6', 'longest-queue', 2, None, 0, 103.4, 91.2, 16.4),
    ('6x6', 'max-pressure-queues', 2, None, 5, 128.0, 115.9, 36.5),
    ('6x6', 'max-pressure-queues', 2, None, 0, 101.5, 89.5, 15.4),
    ('shenzhen', 'fixed', 4, 10, 5, 586.5, 413.4, 364.9),
    ('shenzhen', 'fixed', 4, 10, 0, 322.1, 293.5, 154.4),
    ('shenzhen', 'fixed', 4, 20, 5, 500.6, None, None),
    ('shenzhen', 'fixed', 4, 30, 0, 432.9, None, None),
    ('shenzhen', 'max-pressure', 4, None, 5, 201.7, 195.1, 57.8),
    ('shenzhen', 'max-pressure', 4, None, 0, 160.6, 154.2, 24.3),
    ('shenzhen', 'max-pressure', 8, None, 5, 191.0, 185.1, 47.7),
    ('shenzhen', 'max-pressure', 8, None, 0, 155.4, 148.9, 20.8),
    ('shenzhen', 'greedy-count', 4, None, 5, 199.4, 192.8, 57.4),
    ('shenzhen', 'greedy-count', 4, None, 0, 166.4, 159.9, 31.4),
    ('shenzhen', 'longest-queue', 4, None, 5, 223.9, 216.4, 73.8),
    ('shenzhen', 'longest-queue', 4, None, 0, 167.4, 161.4, 23.4),
    ('shenzhen', 'max-pressure-queues', 4, None, 5, 230.4, 222.8, 78.8),
    ('shenzhen', 'max-pressure-queues', 4, None, 0, 170.8, 164.7, 25.3),
]  # fmt: skip

# Random phases with yellow, a single episode each: average travel times. (Of two phases on 6x6, 237.7 was noted; 12
# episodes here lie at 189 +- 5, so that one was drawn by other rules, and is left out.)
RANDOM = [('6x6', 4, 564.3), ('6x6', 8, 598.6), ('shenzhen', 4, 662.3), ('shenzhen', 8, 661.6)]


@cache
def paper_network(name: str) -> tuple[RoadNetwork, Flow]:
    network_file, flow_file = (data_folder('LTOS_ROADNETSZ') / file for file in FILES[name])
    network = load_network(network_file)
    return network, load_flow(flow_file, network)


@pytest.mark.filterwarnings('ignore:flow .* entries are dropped')
@pytest.mark.parametrize(('name', 'controller', 'phases', 'seconds', 'yellow', 'travel', 'duration', 'wait'), MEASURED)
def test_the_measured_tables_come_out(
    name: str,
    controller: str,
    phases: int,
    seconds: int | None,
    yellow: int,
    travel: float,
    duration: float | None,
    wait: float | None,
) -> None:
    network, flow = paper_network(name)
    choices, engine = signal_choices(network, phases), make_engine(network, flow)
    drive(engine, make_controller(controller, network, choices, seconds or 20), choices, yellow=yellow)
    got = {metric: float(value[0]) for metric, value in TrafficMetrics(engine)().items()}
    assert got['average_travel_time'] == pytest.approx(travel, abs=0.051)  # as many digits as were noted
    if duration is not None:
        assert got['duration'] == pytest.approx(duration, abs=0.1)
    if wait is not None:  # CityFlow counts waiting vehicles after each second, we before it
        assert got['queue_time'] == pytest.approx(wait, rel=1e-3, abs=0.1)


@pytest.mark.filterwarnings('ignore:flow .* entries are dropped')
@pytest.mark.parametrize(('name', 'phases', 'travel'), RANDOM)
def test_random_phases_are_about_as_bad_as_measured(name: str, phases: int, travel: float) -> None:
    network, flow = paper_network(name)
    choices, engine = signal_choices(network, phases), make_engine(network, flow, 6)
    drive(engine, RandomPhase(choices, seed=1), choices)
    assert engine.average_travel_time().mean() == pytest.approx(travel, rel=0.1)


# --- on a small grid -------------------------------------------------------------------------------------------------


def small(num_envs: int = 1) -> tuple[RoadNetwork, Any, Any]:
    ((network, flow),) = load_tasks(('2x2',), turn=0.3)
    return network, signal_choices(network), make_engine(network, flow, num_envs)


def test_fixed_time_shows_each_choice_in_turn_for_its_seconds() -> None:
    _, choices, engine = small(num_envs=2)
    plan = drive(engine, FixedTime(choices, seconds=30), choices, horizon=240)
    assert plan.shape == (24, 2, 4)
    assert (plan == plan[:, :1, :1]).all()
    assert plan[:, 0, 0].tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4] * 2


def test_fixed_time_that_decisions_cannot_keep_is_refused() -> None:
    _, choices, engine = small()
    for seconds in (5, 15):
        with pytest.raises(ValueError, match=rf"must be a multiple of a decision's 10 s, .* \(got {seconds}\)"):
            drive(engine, FixedTime(choices, seconds), choices, horizon=240)


def test_random_phases_are_all_drawn_equally_often_and_again_from_a_seed() -> None:
    _, choices, engine = small(num_envs=50)
    draw = RandomPhase(choices, seed=3)
    first = np.stack([draw(engine) for _ in range(20)])
    assert np.bincount(first.ravel())[1:] == pytest.approx(1000, abs=150)
    again = RandomPhase(choices, seed=3)
    assert (np.stack([again(engine) for _ in range(20)]) == first).all()


@pytest.mark.parametrize('of', ['counts', 'queues'])
@pytest.mark.parametrize('outgoing', [True, False])
def test_pressure_is_what_the_formula_says(of: Any, outgoing: bool) -> None:
    network, choices, engine = small()
    controller = MostPressing(network, choices, of, outgoing)
    drive(engine, RandomPhase(choices), choices, horizon=300)
    count = (engine.lane_vehicle_count() if of == 'counts' else engine.lane_waiting_count())[0]
    assert count.sum() > 20
    got = controller.pressure(engine)
    for i, phases in enumerate(choices.phase):
        for a, phase in enumerate(phases):
            expected = 0.0
            for m, link in enumerate(network.signal_road_links[i]):
                if not network.phase_open[i, phase, m] or network.phase_open[i, phases, m].all():
                    continue
                lanes = network.link_road_link == link
                expected += count[np.unique(network.link_start[lanes])].sum()
                if outgoing:
                    expected -= count[np.unique(network.link_end[lanes])].mean()
            assert got[0, i, a] == pytest.approx(expected)
    best = got[0].argmax(1)
    assert controller(engine).tolist() == [choices.phase[np.arange(4), best].tolist()]


def test_an_empty_network_shows_the_first_choice() -> None:
    network, choices, engine = small()
    for name in CONTROLLERS:
        if name != 'random':
            assert (make_controller(name, network, choices)(engine) == 1).all()


def test_a_change_is_yellow_first_and_a_signal_that_stays_is_not() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.said: list[Any] = []

        def play(self, shown: Any) -> None:
            self.said += [(phase.tolist(), seconds) for phase, seconds in shown]

    _, choices, _ = small()
    before, after = np.array([[1, 2, 3, 4]]), np.array([[1, 3, 3, 1]])
    for yellow, expected in ((5, [([[1, 0, 3, 0]], 5), ([[1, 3, 3, 1]], 5)]), (0, [([[1, 3, 3, 1]], 10)])):
        engine: Any = Recorder()
        play_decision(engine, choices, before, after, 10, yellow)
        assert engine.said == expected
    engine = Recorder()
    play_decision(engine, choices, before, before)
    assert engine.said == [(before.tolist(), 10)]


def test_what_can_be_chosen_is_counted_from_phase_1_where_0_is_yellow() -> None:
    network, choices, _ = small()
    assert choices.yellow.all()
    assert choices.phase.tolist() == [[1, 2, 3, 4]] * 4
    assert signal_choices(network, 2).phase.tolist() == [[1, 2]] * 4
    assert signal_choices(network, None).phase.tolist() == [list(range(1, 9))] * 4


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'seconds': 5, 'yellow': 5}, r"'yellow' must be shorter than a decision of 5 s \(got 5\)"),
        ({'yellow': -1}, r"'yellow' must be an integer of at least 0 \(got -1\)"),
        ({'horizon': 35}, r"'horizon' must be a multiple of a decision's 10 s \(got 35\)"),
    ],
)
def test_a_timing_that_makes_no_sense_is_refused(options: dict[str, int], message: str) -> None:
    _, choices, engine = small()
    with pytest.raises(ValueError, match=message):
        drive(engine, RandomPhase(choices), choices, **options)


def test_an_unknown_controller_is_refused() -> None:
    network, choices, _ = small()
    with pytest.raises(ValueError, match=r"unknown controller 'clever'. Choose one of: fixed, random"):
        make_controller('clever', network, choices)
    with pytest.raises(ValueError, match=r"'of' must be 'counts' or 'queues' \(got 'cars'\)"):
        MostPressing(network, choices, 'cars')  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'phases' must be an integer of at least 1 \(got 0\)"):
        signal_choices(network, 0)
