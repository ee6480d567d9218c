"""The benchmarks of ``ltos bench``, from a checkout of the repository: speed, compared with a peer in the same run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

Row = dict[str, Any]  # name, value, unit, ratio, target, note

BENCHMARKS = {
    'gpu': 'bench_gpu',
    'jungle': 'bench_jungle',
    'nn': 'bench_nn',
    'ranks': 'bench_ranks',
    'replay': 'bench_replay',
    'scale': 'bench_scale',
    'traffic': 'bench_traffic',
    'training': 'bench_training',
}
LONG = ('gpu', 'ranks', 'scale')  # a GPU, minutes, two cores or gigabytes of memory: only where named


def run_benchmarks(names: Sequence[str] = ()) -> list[Row]:
    """Runs benchmarks by name (if none is named, all but the long ones), one after the other, on one thread.

    Raises:
        ValueError: If there is no such benchmark; lists the known ones.
    """
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        raise ValueError(f"unknown benchmark '{unknown[0]}'. Choose from: {', '.join(BENCHMARKS)}")
    rows: list[Row] = []
    for name in names or [name for name in BENCHMARKS if name not in LONG]:
        module = import_module(f'benchmarks.{name}')
        run: Callable[[], list[Row]] = getattr(module, BENCHMARKS[name])
        rows += run()
    return rows
