"""Tables: plain text for the terminal, and Markdown of how runs end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltos_pyg.experiments.curves import half_interval, run_config, run_label

SHARING = {'policy': '', 'keep': ', nobody shares', 'uniform': ', uniform weights'}  # modes of a final evaluation


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


def final_table(folders: Sequence[Path], metrics: Sequence[str]) -> str:
    """How runs end, as a Markdown table: a row per algorithm (and, for LToS, per way to share), a column per metric.

    A cell holds the mean over the seeds, half the 95 % Student-t interval of it, and the values by rising seed; of one
    run just the value. All are from ``final.json``, the evaluation that closes a training.

    Raises:
        ValueError: If a folder holds no finished run, a run lacks a metric, or a seed counts twice.
    """
    ends: dict[str, dict[int, Mapping[str, Any]]] = {}
    for folder in folders:
        config = run_config(folder)
        if not (folder / 'final.json').is_file():
            raise ValueError(
                f"'{folder}' has no 'final.json': its training has not ended. Go on with ltos train --resume."
            )
        for mode, values in json.loads((folder / 'final.json').read_text(encoding='utf-8'))['eval'].items():
            unknown = [name for name in metrics if name not in values]
            if unknown:
                raise ValueError(f"'{folder}' has no metric {unknown}. Choose from: {', '.join(values)}")
            seeds = ends.setdefault(f'{config["scenario"]}: {run_label(config)}{SHARING[mode]}', {})
            if config['seed'] in seeds:
                raise ValueError(
                    f"'{folder}' is a second run of {run_label(config)} with seed {config['seed']}. Leave one out, or "
                    f"give each a 'label' in its config.json."
                )
            seeds[config['seed']] = values
    lines = [['', 'seeds', *metrics], ['---'] * (2 + len(metrics))]
    for name, seeds in ends.items():
        by_seed = [seeds[seed] for seed in sorted(seeds)]
        cells = [_ends(np.array([values[metric]['mean'] for values in by_seed])) for metric in metrics]
        lines.append([name, str(len(seeds)), *cells])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _ends(values: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    digits = 1 if np.abs(values).max() >= 10 else 3
    each = [f'{value:.{digits}f}' for value in values]
    if len(values) == 1:
        return each[0]
    return f'{values.mean():.{digits}f} ± {half_interval(values):.{digits}f} ({", ".join(each)})'
