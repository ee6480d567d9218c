"""``ltos bench``."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ltos_pyg.cli.options import parse


@dataclass
class Options:
    """Measure speed, against other libraries in the same run."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar='NAME')] = ()
    """jungle, nn, replay, traffic, training (default: all)"""
    json: bool = False
    """print the rows as JSON"""


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
    print(json.dumps(rows, indent=2) if options.json else format_bench(rows))
    return 0
