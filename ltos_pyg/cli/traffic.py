"""``ltos traffic generate | simulate | replay | plan``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro

from ltos_pyg.cli.options import OwnDefault, RunArg, parse
from ltos_pyg.formatting import finite

ALL = 'all'  # every controller, to compare them
COLUMNS = ('duration', 'average_travel_time', 'entered', 'finished', 'queue', 'red_lights_delay', 'red_lights_queue')
OneRoad = Literal['strict', 'legacy']


@dataclass
class Generate:
    """Write a grid with the demand of the paper, as CityFlow reads it."""

    out: Path
    """the folder"""
    rows: int = 6
    """of intersections"""
    cols: int = 6
    """of intersections"""
    block_length: float = 100.0
    """metres"""
    seed: int = 0
    """of the demand"""
    scale: float = 1.0
    """factor on the numbers of vehicles"""
    turn: float = 0.0
    """probability that a vehicle turns at an intersection"""


@dataclass
class Simulate:
    """Simulate an hour under a fixed (not learned) controller."""

    net: str = '6x6'
    """ROWSxCOLS of a generated grid, or a CityFlow road network file"""
    flow: OwnDefault[str | None] = None
    """a CityFlow flow file (default: generated demand)"""
    controller: str = 'max-pressure'
    """fixed, random, longest-queue, greedy-count, max-pressure, max-pressure-queues; or all of them"""
    phases: int = 4
    """largest number of phases that a signal chooses from; 0: all of its phases"""
    yellow: int = 5
    """seconds of yellow when a signal changes its phase"""
    fixed_seconds: int = 20
    """seconds of each phase, for the controller 'fixed'"""
    horizon: int = 3600
    """seconds"""
    demand_seed: int = 0
    """seed of the generated demand"""
    demands: int = 1
    """number of generated demands, with --demand-seed and the next seeds"""
    turn: float = 0.0
    """probability that a generated vehicle turns at an intersection"""
    one_road: OneRoad = 'strict'
    """what to do with routes of a single road: strict drops them, legacy drives them"""
    episodes: int = 1
    """episodes of each demand; they differ only if the controller is random"""
    seed: int = 0
    """seed of the controller 'random'"""
    backend: Literal['native', 'cityflow'] = 'native'
    """simulation engine; cityflow needs that module"""
    json: bool = False
    """print mean, std and count of every metric as JSON"""


@dataclass
class Replay:
    """Apply a trace's phases second by second, and write the resulting trace."""

    roadnet: Path
    """a CityFlow road network file"""
    flow: Path
    """a CityFlow flow file"""
    phases: Path
    """the trace whose phases are applied, an .npz file"""
    out: Path
    """the trace to write, an .npz file"""
    one_road: OneRoad = 'strict'
    """what to do with routes of a single road: strict drops them, legacy drives them"""
    viewer: Path | None = None
    """a folder: let CityFlow write its viewer's files there (needs module cityflow)"""


@dataclass
class Plan:
    """Write the signal plan that a trained run chooses, as CSV."""

    folder: RunArg
    out: Path = Path('plan.csv')
    """file to write: .csv, or .npz for ltos traffic replay"""


Command = Union[  # noqa: UP007 (tyro reads it at run time)
    Annotated[Generate, tyro.conf.subcommand('generate')],
    Annotated[Simulate, tyro.conf.subcommand('simulate')],
    Annotated[Replay, tyro.conf.subcommand('replay')],
    Annotated[Plan, tyro.conf.subcommand('plan')],
]


@dataclass
class Options:
    """Road networks: generate, simulate, replay, export a signal plan."""

    command: Annotated[Command, tyro.conf.arg(name='')]


def main(args: Sequence[str]) -> int:
    """Runs one of them."""
    command = parse(Options, args, 'ltos traffic').command
    commands: dict[type, Any] = {Generate: _generate, Simulate: _simulate, Replay: _replay, Plan: _plan}
    return int(commands[type(command)](command))


def _generate(args: Generate) -> int:
    from ltos_pyg.envs.traffic.files.generate import write_scenario

    options: dict[str, Any] = {
        'block_length': args.block_length,
        'seed': args.seed,
        'scale': args.scale,
        'turn': args.turn,
    }
    for path in write_scenario(args.out, args.rows, args.cols, **options):
        print(f'wrote {path}')
    return 0


def _simulate(args: Simulate) -> int:
    from ltos_pyg.envs.traffic.controllers import CONTROLLERS
    from ltos_pyg.experiments.tables import table
    from ltos_pyg.training.run import as_plain

    names = CONTROLLERS if args.controller == ALL else (args.controller,)
    print('ltos: simulating; the first run here compiles kernels, which takes up to a minute', file=sys.stderr)
    results = {name: as_plain(stats) for name, stats in simulate(args, names).items()}
    if args.json:
        print(json.dumps(finite(results), indent=2))
    elif len(names) == 1:
        print(_metric_table(results[names[0]]))
    else:
        rows = [[name, *(f'{stats[metric]["mean"]:.2f}' for metric in COLUMNS)] for name, stats in results.items()]
        print(table(['controller', *COLUMNS], rows))
    return 0


def simulate(args: Simulate, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Statistics over the demands and episodes of every metric, for each controller."""
    import numpy as np
    import torch

    from ltos_pyg.envs.checks import check_count
    from ltos_pyg.envs.traffic.controllers import drive, make_controller
    from ltos_pyg.envs.traffic.engine import make_engine
    from ltos_pyg.envs.traffic.metrics import TrafficMetrics
    from ltos_pyg.envs.traffic.signals import signal_choices
    from ltos_pyg.envs.traffic.tasks import load_tasks
    from ltos_pyg.progress import Progress
    from ltos_pyg.training.evaluate import Stat

    check_count('--episodes', args.episodes, 1)
    check_count('--seed', args.seed, 0)
    flows = () if args.flow is None else (args.flow,)
    tasks = load_tasks((args.net,), flows, args.demand_seed, args.demands, args.turn, args.one_road)
    values: dict[str, dict[str, list[Any]]] = {name: {} for name in names}
    for k, (network, flow) in enumerate(tasks):
        choices = signal_choices(network, args.phases or None)
        engine = make_engine(network, flow, args.episodes, args.backend)
        measure = TrafficMetrics(engine)
        try:
            for name in Progress(names, desc=f'demand {k + 1} of {len(tasks)}', unit='', leave=False, delay=1):
                controller = make_controller(name, network, choices, args.fixed_seconds, args.seed + k)
                drive(engine, controller, choices, args.horizon, yellow=args.yellow)
                for metric, value in measure().items():
                    values[name].setdefault(metric, []).append(value)
        finally:
            engine.close()
    return {
        name: {metric: Stat.of(torch.from_numpy(np.concatenate(parts))) for metric, parts in metrics.items()}
        for name, metrics in values.items()
    }


def _metric_table(stats: dict[str, dict[str, float]]) -> str:
    from ltos_pyg.envs.traffic.metrics import DESCRIPTIONS

    width = max(map(len, stats))
    lines = [f'{name.ljust(width)}  {stat["mean"]:>10.3f}  {DESCRIPTIONS[name]}' for name, stat in stats.items()]
    return '\n'.join(lines)


def _replay(args: Replay) -> int:
    from ltos_pyg.envs.traffic.trace import replay

    replay(args.roadnet, args.flow, args.phases, args.out, args.one_road)
    print(f'wrote {args.out}')
    if args.viewer:
        for path in _write_viewer_files(args, args.viewer):
            print(f'wrote {path}')
    return 0


def _write_viewer_files(args: Replay, viewer: Path) -> list[Path]:
    """Replays the trace in CityFlow itself, which writes the (undocumented) format of its own viewer."""
    from contextlib import closing

    from ltos_pyg.envs.traffic import load_flow, load_network
    from ltos_pyg.envs.traffic.engine.cityflow import VIEWER_REPLAY, VIEWER_ROADNET, CityFlowEngine
    from ltos_pyg.envs.traffic.trace import load_phases

    network = load_network(args.roadnet)
    phase = load_phases(args.phases, network)
    viewer.mkdir(parents=True, exist_ok=True)
    flow = load_flow(args.flow, network, args.one_road)
    with closing(CityFlowEngine(network, flow, record=False, viewer=viewer)) as engine:
        for shown in phase:
            engine.set_phases(shown[None])
            engine.step()
    return [viewer / VIEWER_ROADNET, viewer / VIEWER_REPLAY]


def _plan(args: Plan) -> int:
    from ltos_pyg.scenarios.traffic.plan import write_plan

    rows = write_plan(args.folder, args.out)
    print(f'wrote {args.out}: {rows} rows')
    return 0
