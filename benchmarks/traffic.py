"""An hour of signal control on the 6x6 grid, compared with CityFlow in the same run if it can be imported."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from ltos_pyg.envs.traffic.controllers import drive, make_controller
from ltos_pyg.envs.traffic.engine import TrafficEngine, make_engine
from ltos_pyg.envs.traffic.files.flow import Flow, load_flow
from ltos_pyg.envs.traffic.files.generate import write_scenario
from ltos_pyg.envs.traffic.files.network import RoadNetwork, load_network
from ltos_pyg.envs.traffic.signals import Ints, play_decision, signal_choices

ROUNDS = 5
EPISODES = 64


def bench_traffic() -> list[dict[str, Any]]:
    """Times loading, one episode on one thread, and 64 episodes on one and on two threads.

    An episode is 3600 s of the paper's demand on a generated 6x6 grid; max-pressure reads the counts and decides every
    10 s, with 5 s of yellow. One episode is measured in CPU time, CityFlow's own threads included; the two engines
    alternate. The 64 play the recorded phases, in wall time; one and two threads alternate, and the shortest round is
    reported.
    """
    with tempfile.TemporaryDirectory() as folder:
        roads, cars = write_scenario(folder)
        network, flow = load_network(roads), load_flow(cars, load_network(roads))
        rows = [_row('load network and flow', _load_time(roads, cars), 's CPU', None, '< 0.3', 'after the first time')]
        plan, single = _single(network, flow)
        return rows + single + _parallel(network, flow, plan)


def _load_time(roads: Path, cars: Path) -> float:
    return median(_took(time.process_time, lambda: load_flow(cars, load_network(roads))) for _ in range(ROUNDS))


def _single(network: RoadNetwork, flow: Flow) -> tuple[Ints, list[dict[str, Any]]]:
    """The phases chosen, (decisions, 1, I), and the times of one episode."""
    choices = signal_choices(network)
    controller = make_controller('max-pressure', network, choices)
    engines: dict[str, TrafficEngine] = {'native': make_engine(network, flow)}
    if find_spec('cityflow') is not None:
        from ltos_pyg.envs.traffic.engine.cityflow import CityFlowEngine

        engines['cityflow'] = CityFlowEngine(network, flow, record=False)
    took: dict[str, list[float]] = {name: [] for name in engines}
    plan = drive(engines['native'], controller, choices)
    for _ in range(ROUNDS):
        for name, engine in engines.items():
            took[name].append(_took(time.process_time, partial(drive, engine, controller, choices)))
    for engine in engines.values():
        engine.close()
    seconds = {name: median(times) for name, times in took.items()}
    ratio = seconds['cityflow'] / seconds['native'] if 'cityflow' in seconds else None
    rows = [
        _row('1 episode, native', seconds['native'], 's CPU', ratio, '>= 10', '6x6, max-pressure, counts every 10 s')
    ]
    if 'cityflow' in seconds:
        rows.append(_row('1 episode, CityFlow', seconds['cityflow'], 's CPU', None, None, 'the same calls, 1 thread'))
    return plan, rows


def _parallel(network: RoadNetwork, flow: Flow, plan: Ints) -> list[dict[str, Any]]:
    took: dict[int, list[float]] = {1: [], 2: []}
    with (
        closing(make_engine(network, flow, EPISODES)) as one,
        closing(make_engine(network, flow, EPISODES, threads=2)) as two,
    ):
        for engine in (one, two):
            _play(engine, plan[:3])
        for _ in range(ROUNDS):
            for threads, engine in ((1, one), (2, two)):
                took[threads].append(_took(time.perf_counter, partial(_play, engine, plan)))
    seconds = {threads: min(times) for threads, times in took.items()}  # other load only adds time
    return [
        _row(f'{EPISODES} episodes, 1 thread', seconds[1], 's', None, None, 'recorded phases, counts every 10 s'),
        _row(f'{EPISODES} episodes, 2 threads', seconds[2], 's', seconds[1] / seconds[2], '>= 1.8', 'against 1 thread'),
    ]


def _play(engine: TrafficEngine, plan: Ints) -> None:
    choices = signal_choices(engine.network)
    engine.reset()
    current = choices.first(engine.num_envs)
    for phase in plan:
        target = phase.repeat(engine.num_envs, 0)
        play_decision(engine, choices, current, target)
        engine.lane_vehicle_count()
        current = target


def _took(clock: Callable[[], float], play: Callable[[], object]) -> float:
    start = clock()
    play()
    return clock() - start


def _row(name: str, value: float, unit: str, ratio: float | None, target: str | None, note: str) -> dict[str, Any]:
    return {'name': f'traffic: {name}', 'value': value, 'unit': unit, 'ratio': ratio, 'target': target, 'note': note}
