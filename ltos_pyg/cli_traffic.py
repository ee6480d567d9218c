"""The traffic part of the command line: ``ltos traffic generate | simulate | replay | plan``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ALL = 'all'  # every controller, to compare them
COLUMNS = ('duration', 'average_travel_time', 'entered', 'finished', 'queue', 'red_lights_delay', 'red_lights_queue')


def add_traffic_commands(parser: argparse.ArgumentParser) -> None:
    """Adds the commands to the parser of ``ltos traffic``."""
    commands = parser.add_subparsers(required=True, metavar='COMMAND')

    generate = commands.add_parser('generate', help='write a grid with the demand of the paper, as CityFlow reads it')
    generate.add_argument('--rows', type=int, default=6)
    generate.add_argument('--cols', type=int, default=6)
    generate.add_argument('--out', type=Path, required=True, metavar='FOLDER')
    generate.add_argument('--block-length', type=float, default=100.0, help='metres')
    generate.add_argument('--seed', type=int, default=0, help='of the demand')
    generate.add_argument('--scale', type=float, default=1.0, help='what the numbers of vehicles are multiplied by')
    generate.add_argument('--turn', type=float, default=0.0, help='chance of a vehicle to turn at an intersection')
    generate.set_defaults(run=_generate)

    simulate = commands.add_parser('simulate', help='play an hour under a controller that learns nothing')
    simulate.add_argument('--net', default='6x6', help='ROWSxCOLS of a generated grid, or a CityFlow road network file')
    simulate.add_argument('--flow', help='a CityFlow flow file (default: generated demand)')
    simulate.add_argument('--controller', default='max-pressure', help='its name, or all')
    simulate.add_argument('--phases', type=int, default=4, help='that a signal chooses from, at most; 0: all')
    simulate.add_argument('--yellow', type=int, default=5, help='seconds of yellow at a change')
    simulate.add_argument('--fixed-seconds', type=int, default=20, help='of each phase of the controller fixed')
    simulate.add_argument('--horizon', type=int, default=3600, help='seconds')
    simulate.add_argument('--demand-seed', type=int, default=0, help='of the generated demand')
    simulate.add_argument('--demands', type=int, default=1, help='generated demands, of this seed and the next ones')
    simulate.add_argument('--turn', type=float, default=0.0, help='chance of a generated vehicle to turn')
    simulate.add_argument('--one-road', choices=('strict', 'legacy'), default='strict')
    simulate.add_argument('--episodes', type=int, default=1, help='of each demand: they differ if chance decides')
    simulate.add_argument('--seed', type=int, default=0, help='of the controller random')
    simulate.add_argument('--backend', choices=('native', 'cityflow'), default='native')
    simulate.add_argument('--json', action='store_true', help='print mean, std and count of every metric as JSON')
    simulate.set_defaults(run=_simulate)

    replay = commands.add_parser('replay', help="apply a trace's phases second by second, and write what comes of it")
    replay.add_argument('--roadnet', type=Path, required=True)
    replay.add_argument('--flow', type=Path, required=True)
    replay.add_argument('--phases', type=Path, required=True, metavar='TRACE.npz')
    replay.add_argument('--out', type=Path, required=True, metavar='OUT.npz')
    replay.add_argument('--one-road', choices=('strict', 'legacy'), default='strict')
    replay.add_argument(
        '--viewer', type=Path, metavar='FOLDER', help="let CityFlow write its viewer's files (needs module cityflow)"
    )
    replay.set_defaults(run=_replay)

    plan = commands.add_parser('plan', help='write the signal plan that a trained run chooses, as CSV')
    plan.add_argument('folder', type=Path, metavar='RUN')
    plan.add_argument('--out', type=Path, default=Path('plan.csv'))
    plan.set_defaults(run=_plan)


def _generate(args: argparse.Namespace, rest: list[str]) -> int:
    from ltos_pyg.envs.traffic.files.generate import write_scenario

    options = {'block_length': args.block_length, 'seed': args.seed, 'scale': args.scale, 'turn': args.turn}
    for path in write_scenario(args.out, args.rows, args.cols, **options):
        print(f'wrote {path}')
    return 0


def _simulate(args: argparse.Namespace, rest: list[str]) -> int:
    from ltos_pyg.envs.traffic.controllers import CONTROLLERS
    from ltos_pyg.experiments.tables import table
    from ltos_pyg.training.run import as_plain

    names = CONTROLLERS if args.controller == ALL else (args.controller,)
    results = {name: as_plain(stats) for name, stats in simulate(args, names).items()}
    if args.json:
        print(json.dumps(results, indent=2))
    elif len(names) == 1:
        print(_metric_table(results[names[0]]))
    else:
        rows = [[name, *(f'{stats[metric]["mean"]:.2f}' for metric in COLUMNS)] for name, stats in results.items()]
        print(table(['controller', *COLUMNS], rows))
    return 0


def simulate(args: argparse.Namespace, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Statistics over the demands and episodes of every metric, for each controller."""
    import numpy as np
    import torch

    from ltos_pyg.envs.checks import check_count
    from ltos_pyg.envs.traffic.controllers import drive, make_controller
    from ltos_pyg.envs.traffic.engine import make_engine
    from ltos_pyg.envs.traffic.metrics import TrafficMetrics
    from ltos_pyg.envs.traffic.signals import signal_choices
    from ltos_pyg.envs.traffic.tasks import load_tasks
    from ltos_pyg.training.evaluate import Stat

    check_count('--episodes', args.episodes, 1)
    flows = () if args.flow is None else (args.flow,)
    tasks = load_tasks((args.net,), flows, args.demand_seed, args.demands, args.turn, args.one_road)
    values: dict[str, dict[str, list[Any]]] = {name: {} for name in names}
    for k, (network, flow) in enumerate(tasks):
        choices = signal_choices(network, args.phases or None)
        engine = make_engine(network, flow, args.episodes, args.backend)
        measure = TrafficMetrics(engine)
        try:
            for name in names:
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


def _replay(args: argparse.Namespace, rest: list[str]) -> int:
    from ltos_pyg.envs.traffic.trace import replay

    replay(args.roadnet, args.flow, args.phases, args.out, args.one_road)
    print(f'wrote {args.out}')
    if args.viewer:
        for path in _write_viewer_files(args):
            print(f'wrote {path}')
    return 0


def _write_viewer_files(args: argparse.Namespace) -> list[Path]:
    """Replays the trace in CityFlow itself, which writes what its own viewer reads: a format that it nowhere
    describes."""
    from contextlib import closing

    from ltos_pyg.envs.traffic import load_flow, load_network
    from ltos_pyg.envs.traffic.engine.cityflow import VIEWER_REPLAY, VIEWER_ROADNET, CityFlowEngine
    from ltos_pyg.envs.traffic.trace import load_phases

    network = load_network(args.roadnet)
    phase = load_phases(args.phases, network)
    args.viewer.mkdir(parents=True, exist_ok=True)
    flow = load_flow(args.flow, network, args.one_road)
    with closing(CityFlowEngine(network, flow, record=False, viewer=args.viewer)) as engine:
        for shown in phase:
            engine.set_phases(shown[None])
            engine.step()
    return [args.viewer / VIEWER_ROADNET, args.viewer / VIEWER_REPLAY]


def _plan(args: argparse.Namespace, rest: list[str]) -> int:
    from ltos_pyg.experiments.traffic import write_plan

    rows = write_plan(args.folder, args.out)
    print(f'wrote {args.out}: {rows} rows')
    return 0
