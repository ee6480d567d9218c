"""Plain-text tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell; the first is left-aligned, the others right-aligned."""
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ['  '.join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
             for row in cells]  # fmt: skip
    return '\n'.join([lines[0], '  '.join('-' * w for w in widths), *lines[1:]])


def format_stats(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Evaluation results, one line per sharing mode and metric."""
    rows = []
    for mode, stats in results.items():
        for name, s in stats.items():
            half = 1.96 * s['std'] / s['count'] ** 0.5
            rows.append([mode, name, f'{s["mean"]:.4f}', f'{half:.4f}', f'{s["std"]:.4f}', str(s['count'])])
    return table(['weights', 'metric', 'mean', '± 95 %', 'std', 'episodes'], rows)


def format_summary(summary: Sequence[Mapping[str, Any]]) -> str:
    """Summaries of learning curves, one line per algorithm."""
    keys = list(summary[0])
    return table(keys, [[_cell(row[key]) for key in keys] for row in summary])


def format_bench(rows: Sequence[Mapping[str, Any]]) -> str:
    """Benchmark rows."""
    keys = ['name', 'value', 'unit', 'ratio', 'target', 'note']
    return table(keys, [[_cell(row.get(key)) for key in keys] for row in rows])


def _cell(value: Any) -> str:
    if value is None:
        return ''
    if isinstance(value, float):
        return f'{value:,.4g}' if abs(value) < 1000 else f'{value:,.0f}'
    return str(value)
