"""The command line: ``ltos train | evaluate | plot | table | watch | bench | traffic``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltos_pyg import __version__
from ltos_pyg.cli_traffic import add_traffic_commands

INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if not args:
        parser.print_help(sys.stderr)
        return 2
    if args[0] != 'train':
        chosen = parser.parse_args(args)
        rest: list[str] = []
    else:
        chosen, rest = parser.parse_known_args(args)
    from ltos_pyg.algos import NonFiniteLossError
    from ltos_pyg.training.trainer import Interrupted

    try:
        return int(chosen.run(chosen, rest) or 0)
    except Interrupted:
        print('\nStopped. The run was saved; go on with it by adding --resume.', file=sys.stderr)
        return INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    except (ValueError, OSError, ImportError, NonFiniteLossError) as error:
        print(f'ltos: {error}', file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='ltos', description='Learning to share on graphs of agents.')
    parser.add_argument('--version', action='version', version=f'ltos_pyg {__version__}')
    commands = parser.add_subparsers(required=True, metavar='COMMAND')

    train = commands.add_parser('train', help='train an algorithm on a scenario', add_help=False, allow_abbrev=False)
    train.add_argument('scenario', nargs='?')
    train.add_argument('--algo', default='ltos')
    train.add_argument('--preset', default='default')
    train.add_argument('--label')
    train.add_argument('--out', type=Path)
    train.add_argument('--resume', action='store_true')
    train.add_argument('-h', '--help', action='store_true')
    train.set_defaults(run=_train)

    evaluate = commands.add_parser('evaluate', help='play greedy episodes with a trained run')
    evaluate.add_argument('folder', type=Path, metavar='RUN')
    evaluate.add_argument(
        '--episodes',
        type=int,
        help='default: 100, or as many as closed the training if fewer. LToS also plays at most 20 of them under each '
        'other way to share',
    )
    evaluate.add_argument('--seed', type=int, default=2_000_000, help='seed of the episodes')
    evaluate.add_argument('--json', action='store_true', help='print mean, std and count of every metric as JSON')
    evaluate.add_argument('--device', help='where the network runs, e.g. cuda (default: as in training)')
    evaluate.add_argument(
        '--temperature', type=float, help='draw actions from softmax(Q / temperature) (default: as in training, greedy)'
    )
    evaluate.add_argument(
        '--env', nargs='+', default=[], metavar='NAME=VALUE', help='other options of the environment than in training'
    )
    evaluate.set_defaults(run=_evaluate)

    plot = commands.add_parser('plot', help='draw the learning curves of runs, seeds of one algorithm together')
    plot.add_argument('folders', type=Path, metavar='RUN', nargs='+')
    plot.add_argument('--metric', help="default: the scenario's own, e.g. eval/reward on the jungle")
    plot.add_argument('--out', type=Path, default=Path('curves.png'))
    plot.add_argument('--log', action='store_true', help='a logarithmic scale')
    plot.add_argument('--json', action='store_true', help='print the summary as JSON')
    plot.set_defaults(run=_plot)

    table = commands.add_parser('table', help='a table of how runs ended, seeds of one algorithm together')
    table.add_argument('folders', type=Path, metavar='RUN', nargs='+')
    table.add_argument(
        '--metric', nargs='+', metavar='NAME', help="default: the scenario's own, e.g. reward on the jungle"
    )
    table.add_argument(
        '--measures',
        action='store_true',
        help='also how the sharing weights are: share kept, its spread over nodes and over states, how unevenly the '
        'rest is given, and which part of the actions other weights would change',
    )
    table.add_argument(
        '--format',
        choices=['md', 'csv'],
        default='md',
        help='Markdown, or CSV with a line per row and metric (default: md). Both have the mean over seeds, the '
        'interquartile mean (IQM) with its 95 %% bootstrap interval, and the value of each seed',
    )
    table.set_defaults(run=_table)

    watch = commands.add_parser('watch', help='draw an episode of a trained run')
    watch.add_argument('folder', type=Path, metavar='RUN')
    watch.add_argument('--out', type=Path, help='a .gif, or a folder for PNGs (default: RUN/episode.gif)')
    watch.add_argument('--seed', type=int, default=2_000_000, help='seed of the episode')
    watch.add_argument('--fps', type=int, default=8)
    watch.add_argument('--steps', type=int, help='draw so many steps only')
    watch.add_argument('--device', help='where the network runs, e.g. cpu (default: as in training)')
    watch.add_argument('--terminal', action='store_true', help='draw in the terminal instead')
    watch.add_argument(
        '--figure',
        choices=['selfishness'],
        help='draw a figure of the episode instead: on traffic, what everyone keeps',
    )
    watch.set_defaults(run=_watch)

    bench = commands.add_parser('bench', help='measure speed, beside peers in the same run')
    bench.add_argument('names', nargs='*', metavar='NAME', help='jungle, nn, replay, traffic, training (default: all)')
    bench.add_argument('--json', action='store_true')
    bench.set_defaults(run=_bench)

    traffic = commands.add_parser('traffic', help='road networks: generate, simulate, replay, export a signal plan')
    add_traffic_commands(traffic)
    return parser


def _train(args: argparse.Namespace, rest: list[str]) -> int:
    from ltos_pyg.algos import ALGORITHMS
    from ltos_pyg.experiments.scenarios import SCENARIOS, load_config, scenario
    from ltos_pyg.training.run import train_run

    if args.scenario is None:
        print(
            'usage: ltos train SCENARIO [--algo ALGO] [--preset PRESET] [--label TEXT] [--out FOLDER] [--resume]'
            ' [options]\n\n'
            '--label: what tables and plots call the run (default: the algorithm and its preset)\n'
            f'scenarios:  {", ".join(SCENARIOS)}\n'
            f'algorithms: {", ".join(ALGORITHMS)}\n'
            'all options of one: ltos train SCENARIO --algo ALGO --help'
        )
        return 0 if args.help else 2
    chosen = scenario(args.scenario)
    rest = [*rest, *(['--help'] if args.help else [])]
    config = _parse_options(chosen.config(args.algo, args.preset), rest)
    folder = args.out or Path('runs') / _folder_name(config)
    if args.resume and (folder / 'config.json').is_file():  # the flags of the first call need not be given again
        config = _parse_options(load_config(folder), rest)
        if config.scenario != chosen.name:
            raise ValueError(f"'{folder}' holds a run on {config.scenario} (got '{chosen.name}'). Name that one.")
    config = dataclasses.replace(config, label=args.label)
    result = train_run(config, chosen.make_env(config), folder, args.resume, chosen.headline)
    _print_result(folder, result)
    if config.train.media:
        _leave_media(folder, f'eval/{chosen.headline}')
    return 0


def _folder_name(config: Any) -> str:
    preset = '' if config.preset == 'default' else f'-{config.preset}'
    return f'{config.scenario}-{config.algo}{preset}-seed{config.train.seed}'


def _parse_options(config: Any, args: list[str]) -> Any:
    """Options of the environment, the algorithm and the loop as flat flags, starting from a preset's values."""
    import tyro

    fields = [(name, type(getattr(config, name)), getattr(config, name)) for name in ('train', 'algorithm', 'env')]
    options = dataclasses.make_dataclass('Options', fields, frozen=True)
    parsed: Any = tyro.cli(
        options,
        args=args,
        prog=f'ltos train {config.scenario} --algo {config.algo}',
        description=f'Options of {config.algo} on {config.scenario}, with the defaults of preset {config.preset!r}.',
        config=(tyro.conf.OmitArgPrefixes,),
    )
    return dataclasses.replace(config, train=parsed.train, algorithm=parsed.algorithm, env=parsed.env)


def _print_result(folder: Path, result: dict[str, Any]) -> None:
    from ltos_pyg.experiments.tables import format_stats

    print(f'\n{folder}: {result["env_steps"]:,} env steps, {result["updates"]:,} gradient steps')
    print(format_stats(result['eval']))


def _leave_media(folder: Path, metric: str) -> None:
    from ltos_pyg.experiments.curves import plot_curves
    from ltos_pyg.experiments.watch import watch_run

    try:
        print(f'curve:   {plot_curves([folder], metric, folder / "curve.png")}')
        print(f'episode: {watch_run(folder, folder / "episode.gif")}')
    except ImportError as error:
        print(f'no curve and no GIF: {error}', file=sys.stderr)


def _evaluate(args: argparse.Namespace, rest: list[str]) -> int:
    from ltos_pyg.experiments.scenarios import load_config, scenario
    from ltos_pyg.experiments.tables import format_stats
    from ltos_pyg.training.evaluate import evaluate_modes
    from ltos_pyg.training.run import as_plain, load_algorithm

    if args.episodes is not None and args.episodes < 1:
        raise ValueError(f"'--episodes' must be at least 1 (got {args.episodes})")
    config = load_config(args.folder)
    if args.device:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, device=args.device))
    algorithm = load_algorithm(config, scenario(config.scenario).make_env(config), args.folder)
    if args.temperature is not None:
        algorithm.config = dataclasses.replace(algorithm.config, play_temperature=args.temperature)
    config = dataclasses.replace(config, env=_other_options(config.env, args.env))
    make_env = scenario(config.scenario).make_env(config)
    results = evaluate_modes(algorithm, make_env, args.episodes or min(100, config.train.final_episodes), args.seed)
    plain = {mode: as_plain(stats) for mode, stats in results.items()}
    print(json.dumps(plain, indent=2) if args.json else format_stats(plain))
    return 0


def _other_options(env: Any, changes: list[str]) -> Any:
    """The options of an environment with some of them changed, each given as ``name=value``."""
    import tyro

    flags: list[str] = []
    for change in changes:
        name, equals, value = change.partition('=')
        if not equals:
            raise ValueError(f"'--env' takes options as NAME=VALUE (got '{change}'), e.g. --env horizon=100")
        flags += [f'--{name.replace("_", "-")}', *value.split()]
    return tyro.cli(type(env), default=env, args=flags, prog='ltos evaluate RUN --env')


def _plot(args: argparse.Namespace, rest: list[str]) -> int:
    from ltos_pyg.experiments.curves import plot_curves, run_config, summarise
    from ltos_pyg.experiments.scenarios import scenario
    from ltos_pyg.experiments.tables import format_summary

    metric = args.metric or f'eval/{scenario(run_config(args.folders[0])["scenario"]).headline}'
    summary = summarise(args.folders, metric)
    print(json.dumps(summary, indent=2) if args.json else format_summary(summary))
    out = plot_curves(args.folders, metric, args.out, args.log)
    print(f'wrote {out}', file=sys.stderr)
    return 0


def _table(args: argparse.Namespace, rest: list[str]) -> int:
    from ltos_pyg.experiments.curves import run_config
    from ltos_pyg.experiments.scenarios import scenario
    from ltos_pyg.experiments.tables import final_table

    metrics = args.metric or [scenario(run_config(args.folders[0])['scenario']).headline]
    print(final_table(args.folders, metrics, args.measures, args.format))
    return 0


def _watch(args: argparse.Namespace, rest: list[str]) -> int:
    from ltos_pyg.experiments.traffic import draw_selfishness
    from ltos_pyg.experiments.watch import show_run, watch_run

    if args.terminal:
        show_run(args.folder, args.seed, args.fps, args.steps, args.device)
        return 0
    if args.figure:
        out = args.out or args.folder / f'{args.figure}.png'
        draw_selfishness(args.folder, out, args.device)
        print(f'wrote {out}')
        return 0
    out = args.out or args.folder / 'episode.gif'
    watch_run(args.folder, out, args.seed, args.fps, args.steps, args.device)
    print(f'wrote {out}')
    return 0


def _bench(args: argparse.Namespace, rest: list[str]) -> int:
    import ltos_pyg
    from ltos_pyg.experiments.tables import format_bench

    root = Path(ltos_pyg.__file__).resolve().parents[1]
    if not (root / 'benchmarks' / '__init__.py').is_file():
        raise ValueError(
            f"'ltos bench' needs a checkout of the repository, for the installed package has no benchmarks (looked for "
            f"'benchmarks' in '{root}'). Clone it, run pip install -e . there, and try again."
        )
    sys.path.insert(0, str(root))
    from benchmarks import run_benchmarks

    rows = run_benchmarks(args.names)
    print(json.dumps(rows, indent=2) if args.json else format_bench(rows))
    return 0


if __name__ == '__main__':
    sys.exit(main())
