"""``ltos bench``."""

from __future__ import annotations

import csv
import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ltos_pyg.cli.options import parse
from ltos_pyg.formatting import finite


@dataclass
class Options:
    """Measure speed, and compare it with other libraries on this machine."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar='NAME')] = ()
    """jungle, nn, replay, traffic, training (default: all of these); gpu: a GPU compared with one CPU core;
    ranks: two processes compared with one; scale: graphs of up to 100,000 agents (takes minutes and some GB)"""
    json: bool = False
    """print the rows as JSON"""
    out: Path | None = None
    """folder for the rows (bench.json and bench.csv), and for the figure of 'scale' (scale.png)"""


def main(args: Sequence[str]) -> int:
    """Measures, and prints a table or JSON."""
    options = parse(Options, args, 'ltos bench')
    import ltos_pyg
    from ltos_pyg.experiments.tables import format_bench

    root = Path(ltos_pyg.__file__).resolve().parents[1]
    if not (root / 'benchmarks' / '__init__.py').is_file():
        raise ValueError(
            f"'ltos bench' needs a checkout of the repository, for the installed package has no benchmarks (looked for "
            f"'benchmarks' in '{root}'). Clone it, run pip install -e . there, and try again."
        )
    sys.path.insert(0, str(root))
    benchmarks = importlib.import_module('benchmarks')  # not in the wheel
    rows = benchmarks.run_benchmarks(list(options.names))
    print(json.dumps(finite(rows), indent=2) if options.json else format_bench(rows))
    if options.out is not None:
        _leave(rows, options.out)
    return 0


def _leave(rows: list[dict[str, Any]], folder: Path) -> None:
    """Writes the rows, and the picture if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'bench.json').write_text(json.dumps(finite(rows), indent=1) + '\n', encoding='utf-8')
    with (folder / 'bench.csv').open('w', encoding='utf-8', newline='') as file:
        names = dict.fromkeys(name for row in rows for name in row)
        writer = csv.DictWriter(file, list(names), lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    scale = [row for row in rows if 'agents' in row]
    if scale:
        print(importlib.import_module('benchmarks.scale').plot_scale(scale, folder / 'scale.png'))
