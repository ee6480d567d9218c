"""``ltos plot``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ltos_pyg.cli.options import ImportArg, OwnDefault, RunArgs, check_runs, parse
from ltos_pyg.formatting import finite


@dataclass
class Options:
    """Draw the learning curves of runs: one curve per algorithm, over its seeds."""

    folders: RunArgs
    metric: OwnDefault[str | None] = None
    """metric to draw (default: the scenario's primary metric, e.g. eval/reward on the jungle)"""
    out: Path = Path('curves.png')
    """file to write: .png, .svg or .pdf"""
    log: bool = False
    """draw the values on a logarithmic scale"""
    json: bool = False
    """print the summary as JSON"""
    imports: ImportArg = ()


def main(args: Sequence[str]) -> int:
    """Draws, and prints the summary."""
    options = parse(Options, args, 'ltos plot')
    check_runs(options.folders)
    from ltos_pyg import registry
    from ltos_pyg.experiments.tables import format_summary
    from ltos_pyg.training.run_folder import RunFolder
    from ltos_pyg.viz.curves import plot_curves, summarise

    registry.import_modules(options.imports)
    metric = options.metric or f'eval/{RunFolder(options.folders[0]).primary_metric()}'
    summary = summarise(options.folders, metric)
    print(json.dumps(finite(summary), indent=2) if options.json else format_summary(summary))
    out = plot_curves(options.folders, metric, options.out, options.log)
    print(f'wrote {out}', file=sys.stderr)
    return 0
