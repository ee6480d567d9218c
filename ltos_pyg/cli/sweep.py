"""``ltos sweep``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ltos_pyg import registry
from ltos_pyg.cli.options import ImportArg, OwnDefault, parse
from ltos_pyg.cli.reproduce import stopped_by_signals, with_values


@dataclass
class Options:
    """Search for good options: each trial is one or more runs."""

    scenario: Annotated[str, tyro.conf.Positional]
    """a scenario, or your own environment as package.module:Name"""
    algo: str = 'ltos'
    """the algorithm, or package.module:Name"""
    preset: str = 'default'
    """the options to start from"""
    vary: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """an option to vary: NAME=A,B,C (choices), NAME=LOW..HIGH (a range) or NAME=LOW..HIGH:log. If both bounds are whole
    numbers, only whole numbers are tried: write gamma=0.0..1.0 for fractions. For an option that takes several values,
    write 'NAME=[A,B],[C]'"""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """an option that is the same in every trial, as NAME=VALUE, or 'NAME=[A,B]' if it takes several values"""
    sampler: Literal['tpe', 'random', 'grid'] = 'tpe'
    """tpe learns from earlier trials; grid runs all combinations of choices"""
    trials: int = 20
    """number of trials; unused with the grid"""
    seeds: int = 1
    """number of runs in each trial, with seeds 100, 101, ...; the value of a trial is the mean over its runs"""
    metric: OwnDefault[str | None] = None
    """metric to optimise, at the end of a run (default: the scenario's primary metric)"""
    minimise: OwnDefault[bool] = False
    """lower values of --metric are better (default: as the scenario declares for its primary metric)"""
    prune: bool = False
    """stop a trial early if it is worse than the median of the earlier trials at the same step"""
    jobs: int = 1
    """number of trials that run at the same time, each on one core"""
    out: OwnDefault[Path | None] = None
    """folder of the sweep (default: runs/sweep-SCENARIO-ALGO); the same command continues it"""
    ray: Annotated[str | None, tyro.conf.arg(metavar='ADDRESS')] = None
    """run trials on the Ray cluster at this address. auto: the cluster that runs already; local, or no address: a new
    cluster on this machine. --out must be a folder that all machines of the cluster share"""
    imports: ImportArg = ()


def main(args: Sequence[str]) -> int:
    """Searches, and prints the best options."""
    options = parse(Options, with_values(args), 'ltos sweep')
    registry.import_modules(options.imports)
    registry.check_scenario(options.scenario)  # before PyTorch is loaded, which takes seconds
    registry.check_algorithm(options.algo)
    from ltos_pyg.experiments.runner import check_folder
    from ltos_pyg.experiments.search_space import Sweep, parse_dimension
    from ltos_pyg.experiments.sweep import run_sweep

    settings = []
    for text in options.set:
        name, _, value = text.partition('=')
        one = parse_dimension(text) if name and value else None
        if one is None or one.choices is None or len(one.choices) != 1:
            raise ValueError(
                f"'--set' takes NAME=VALUE (got '{text}'). Give an option that takes several values as "
                f"'NAME=[A,B]', and use --vary to vary one."
            )
        settings.append((one.name, one.choices[0]))
    sweep = Sweep(
        scenario=options.scenario,
        algo=options.algo,
        preset=options.preset,
        options=tuple(settings),
        space=tuple(parse_dimension(text) for text in options.vary),
        sampler=options.sampler,
        trials=options.trials,
        seeds=options.seeds,
        metric=options.metric,
        lower_is_better=True if options.minimise else None,
        prune=options.prune,
        imports=options.imports,
    )
    short = '-'.join(name.rpartition(':')[2] for name in (options.scenario, options.algo))
    out = options.out or Path('runs') / f'sweep-{short}'
    check_folder('out', out)
    cluster = None
    if options.ray:
        from ltos_pyg.experiments.clusters import RayCluster

        cluster = RayCluster(options.ray)
    with stopped_by_signals():
        best = run_sweep(sweep, out, options.jobs, cluster)
    print(f'best of {out}: {sweep.goal()[0]} {best["value"]:.4g} in trial {best["trial"]}')
    for name, value in best['options'].items():
        print(f'  {name} = {value}')
    print(f'train with it: ltos train --config {out / "best.toml"}', file=sys.stderr)
    return 0
