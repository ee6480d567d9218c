"""``ltos table``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ltos_pyg.cli.options import ImportArg, OwnDefault, RunArgs, check_runs, parse


@dataclass
class Options:
    """Print a table of final results: one row per algorithm, over its seeds."""

    folders: RunArgs
    metric: OwnDefault[tuple[str, ...]] = ()
    """metrics to show (default: the scenario's primary metric, e.g. reward on the jungle)"""
    measures: bool = False
    """also show measures of the sharing weights: the share kept, its spread over nodes and over states, the unevenness
    of the shares given, and the fraction of actions that other weights would change"""
    format: Literal['md', 'csv'] = 'md'
    """Markdown, or CSV with a line per row and metric. Both have the mean over seeds, the interquartile mean (IQM)
    with its 95 % bootstrap interval, and the value of each seed"""
    imports: ImportArg = ()


def main(args: Sequence[str]) -> int:
    """Prints the table."""
    options = parse(Options, args, 'ltos table')
    check_runs(options.folders)
    from ltos_pyg import registry
    from ltos_pyg.experiments.tables import final_table
    from ltos_pyg.training.run_folder import RunFolder

    registry.import_modules(options.imports)
    metrics = options.metric or [RunFolder(options.folders[0]).primary_metric()]
    print(final_table(options.folders, metrics, options.measures, options.format))
    return 0
