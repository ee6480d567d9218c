"""Prints agent-steps a second of the jungle, and of MAgent's engine where it is installed; ``--json`` for machines.

The same as ``ltos bench jungle``.
"""

from __future__ import annotations

import json
import sys

from ltos_pyg.experiments.bench.jungle import bench_jungle
from ltos_pyg.experiments.tables import format_bench

if __name__ == '__main__':
    rows = bench_jungle()
    print(json.dumps(rows, indent=2) if '--json' in sys.argv[1:] else format_bench(rows))
