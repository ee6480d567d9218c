"""``ltos reproduce``."""

from __future__ import annotations

import dataclasses
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ltos_pyg.cli.options import ImportArg, OwnDefault, parse
from ltos_pyg.ranges import check_range

if TYPE_CHECKING:
    from ltos_pyg.experiments.experiment import Experiment
    from ltos_pyg.experiments.runner import Backend, Planned

Names = Annotated[
    tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar='NAME', help='experiments of --list, or TOML files')
]


@dataclass
class Options:
    """Make tables and figures from scratch: train what is missing, then report."""

    names: Names = ()
    list: bool = False
    """print the names and titles of the built-in experiments"""
    jobs: int = 1
    """number of runs that train at the same time, each on one core"""
    seeds: OwnDefault[int | None] = None
    """largest number of seeds for each method (default: all)"""
    only: str = ''
    """only methods with this text in their name"""
    total_steps: int | None = None
    """env steps of every run, instead of the number in its preset (for a quick look)"""
    runs: Path = Path('runs/reproduce')
    """folder of the run folders; finished runs there are reused"""
    out: Path = Path('results')
    """folder of the tables and figures"""
    data: Path | None = None
    """folder with the road networks of 6x6 and Shenzhen"""
    dry_run: bool = False
    """only print what would be trained and played, and how long training would take"""
    report: bool = False
    """train nothing: make the tables and figures from the runs that are finished"""
    archive: Path | None = None
    """also copy the small files of the runs to this folder: options, evaluations, final results"""
    ray: Annotated[str | None, tyro.conf.arg(metavar='ADDRESS')] = None
    """train on the Ray cluster at this address. auto: the cluster that runs already; local, or no address: a new
    cluster on this machine. Needs the extra 'ray'"""
    slurm: Annotated[str | None, tyro.conf.arg(metavar='PARTITION')] = None
    """train as an array of SLURM jobs in this partition. default, or no partition: the cluster's default partition;
    local: processes on this machine instead. Needs the extra 'slurm'"""
    imports: ImportArg = ()


BARE = {'--ray': 'local', '--slurm': 'default'}  # their values, if they have none


def with_values(args: Sequence[str]) -> list[str]:
    """The arguments, with a value for ``--ray`` and ``--slurm`` where another flag or nothing follows."""
    after = [*args[1:], '--']
    return [
        word
        for arg, following in zip(args, after, strict=True)
        for word in ([arg, BARE[arg]] if arg in BARE and following.startswith('-') else [arg])
    ]


def main(args: Sequence[str]) -> int:
    """Trains and reports; 1 if a run failed, or an experiment has no report."""
    options = parse(Options, with_values(args), 'ltos reproduce')
    check_range(options, 'jobs', least=1)
    check_range(options, 'seeds', least=1, none=', or be left out')
    if options.ray and options.jobs != 1:
        raise ValueError(
            f"'--jobs' is for runs on this machine or for --slurm, and --ray trains on all cores of its cluster (got "
            f'--jobs {options.jobs}). Leave it out.'
        )
    from ltos_pyg.experiments.catalogue import EXPERIMENTS

    if options.list:
        print('\n'.join(f'{name:22}{one.title}' for name, one in EXPERIMENTS.items()))
        return 0
    if not options.names:
        raise ValueError('expected the name of an experiment (got none). See ltos reproduce --list')
    from ltos_pyg import registry

    registry.import_modules(options.imports)
    experiments = [_experiment(name, options) for name in options.names]
    if options.data is not None and not any(one.files for one in experiments):
        raise ValueError(
            f"'--data' is the folder of road networks, which {', '.join(options.names)} does not need (got "
            f"'{options.data}'). Leave it out; a file of your own names its networks in 'options'."
        )
    from ltos_pyg.experiments.reproduce import (  # loads PyTorch
        archive,
        check_archive,
        plan_all,
        reproduce,
        write_reports,
    )
    from ltos_pyg.experiments.runner import check_folder
    from ltos_pyg.experiments.zero_shot import missing_values

    check_folder('runs', options.runs)
    for one in experiments:
        check_folder('out', options.out / one.name)
    if options.archive:
        check_folder('archive', options.archive)
        check_archive(options.runs, options.archive)
    if options.dry_run:
        planned = plan_all(experiments, options.runs)
        _print_plan(planned, options.jobs, missing_values(experiments, options.runs))
        return 0
    if options.report:
        plan_all(experiments, options.runs)
        failures = write_reports(experiments, options.runs, options.out)
    else:
        with stopped_by_signals():
            failures = reproduce(experiments, options.runs, options.out, _backend(options))
    unreported = {failure.name for failure in failures if failure.log is None and not failure.has_table}
    for one in experiments:
        if one.name not in unreported:
            _print_report(options.out / one.name)
    if options.archive:
        count = archive(experiments, options.runs, options.archive)
        print(f'copied the results of {count} runs to {options.archive}')
    for failure in failures:
        if failure.has_table:
            print(f'ltos: {failure.name} has no figure: {failure.reason}', file=sys.stderr)
        elif failure.log is None:
            print(f'ltos: {failure.name} is not reported: {failure.reason}', file=sys.stderr)
        else:
            print(f'ltos: {failure.name} failed: {failure.reason} (see {failure.log})', file=sys.stderr)
    return 1 if failures else 0


def _experiment(name: str, options: Options) -> Experiment:
    from ltos_pyg.experiments.catalogue import experiment
    from ltos_pyg.experiments.experiment import read_experiment

    is_file = name.endswith('.toml')
    found = read_experiment(Path(name)) if is_file else experiment(name, options.data)
    found = dataclasses.replace(found, imports=tuple(dict.fromkeys([*found.imports, *options.imports])))
    if is_file:
        _check_options(found, Path(name))
    return found.limited(options.seeds, options.only, options.total_steps)


def _check_options(experiment: Experiment, path: Path) -> None:
    """Raises a ``ValueError`` with the line of the first option in the file that is unknown, or the metric that is."""
    from ltos_pyg.experiments.experiment import line_of_option
    from ltos_pyg.experiments.report import check_metric
    from ltos_pyg.experiments.runner import config_of
    from ltos_pyg.training.api import UnknownOptionError

    for setting in experiment.settings:
        for method in experiment.methods:
            try:
                config_of(experiment.run(setting, method, experiment.first_seed))
            except ValueError as error:
                if not isinstance(error.__cause__, UnknownOptionError):
                    raise
                where = line_of_option(path, experiment, setting, method, error.__cause__.option)
                raise ValueError(f"'{path}', line {where}: {error.__cause__}") from error
        check_metric(experiment, setting)


def _backend(options: Options) -> Backend:
    from ltos_pyg.experiments.runner import ThisMachine

    if options.ray and options.slurm:
        raise ValueError("'--ray' and '--slurm' exclude each other (got both)")
    if options.ray:
        from ltos_pyg.experiments.clusters import RayCluster

        return RayCluster(options.ray)
    if options.slurm:
        from ltos_pyg.experiments.clusters import Slurm

        return Slurm(options.slurm, options.runs / 'slurm', options.jobs)
    return ThisMachine(options.jobs)


def _print_plan(
    planned: Sequence[Planned], jobs: int, missing: Mapping[tuple[str, str], Sequence[Any]] | None = None
) -> None:
    from ltos_pyg.experiments.runner import wall_seconds
    from ltos_pyg.training.zero_shot import option_text

    left = 0.0
    for one in planned:
        seconds = one.seconds * (1 - one.fraction)
        left += seconds
        time = 'to be played' if one.state == 'to measure' else f'{seconds / 60:8.1f} min'
        print(f'{one.state:12}{time}  {one.run.name}')
        if one.state != 'finished':
            print(f'{"":12}{"":12}  {shlex.join(["ltos", *one.arguments])}')
    for (name, option), values in (missing or {}).items():
        print(f'{"zero-shot":12}to be played  {name} over {option} = {", ".join(map(option_text, values))}')
    states = [one.state for one in planned]
    known = ('finished', *(['to measure'] if 'to measure' in states else []), 'interrupted', 'missing')
    counts = ', '.join(f'{states.count(state)} {state}' for state in known)
    wall = wall_seconds(planned, jobs)
    print(f'{len(planned)} runs: {counts}; about {_time(left)} of one core, {_time(wall)} with --jobs {jobs}')
    number = sum(map(len, (missing or {}).values())) + states.count('to measure')
    if number:
        print(f'not counted in this time: {number} {"evaluation" if number == 1 else "evaluations"} of trained runs')


def _time(seconds: float) -> str:
    """A duration: minutes below one hour."""
    return f'{seconds / 60:.1f} minutes' if seconds < 3600 else f'{seconds / 3600:.1f} hours'


def _print_report(out: Path) -> None:
    from ltos_pyg.experiments.reproduce import files_of

    print(f'\n{(out / "table.md").read_text(encoding="utf-8")}')
    print(f'wrote {", ".join(str(out / name) for name in sorted(files_of(out)))}')


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP stop as Ctrl-C does: the runs save first."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ('SIGTERM', 'SIGHUP') if hasattr(signal, name)]
    before = {number: signal.signal(number, stop) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
