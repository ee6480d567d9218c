"""Tables: plain text for the terminal, and Markdown of final results."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltos_pyg import formatting
from ltos_pyg.experiments.statistics import Array, bootstrap_interval, iqm
from ltos_pyg.formatting import rounded
from ltos_pyg.training.labels import distinct_labels
from ltos_pyg.training.metrics import MEASURES, SWITCHED, WITHOUT_INTERVAL
from ltos_pyg.training.run_folder import RunFolder

End = Mapping[str, Mapping[str, float]]  # one evaluation of one run: metric -> mean, std, count


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell; the first is left-aligned, the others right-aligned."""
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ['  '.join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
             for row in cells]  # fmt: skip
    return '\n'.join([lines[0], '  '.join('-' * w for w in widths), *lines[1:]])


def format_stats(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Evaluation results: one row per metric, a column for the policy and for each of the other weights, and how many
    episodes each has played. Cells are the mean and its 95 % interval over episodes."""
    names = dict.fromkeys(name for stats in results.values() for name in stats)
    episodes = [max((int(stat['count']) for stat in stats.values()), default=0) for stats in results.values()]
    rows = [[name, *(_with_interval(name, stats.get(name)) for stats in results.values())] for name in names]
    return table(['mean ± 95 %', *results], [*rows, ['episodes', *map(str, episodes)]])


def _with_interval(name: str, stat: Mapping[str, float] | None) -> str:
    if stat is None:
        return ''
    if stat['count'] == 1 or name == WITHOUT_INTERVAL:
        return rounded(stat['mean'])[0]
    return ' ± '.join(rounded(stat['mean'], 1.96 * stat['std'] / stat['count'] ** 0.5))


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


def final_table(folders: Sequence[Path], metrics: Sequence[str], measures: bool = False, format: str = 'md') -> str:
    """Final results over seeds, per algorithm (and, for LToS, per sharing mode of the evaluation) and metric.

    These are the mean, the interquartile mean with its 95 % bootstrap interval
    (:func:`~ltos_pyg.experiments.statistics.bootstrap_interval`), the number of seeds, the episodes of each, and each
    seed's value by rising seed; of one seed just the value. All are from ``final.json``, the final evaluation. A row
    without the metric has no entry.

    Args:
        folders: The run folders.
        metrics: The columns; each run's own policy must have them.
        measures: Whether to add the measures of the weights, if any run has them.
        format: ``'md'``, a Markdown table with a row per algorithm, or ``'csv'``, a line per algorithm and metric with
            all digits.

    Raises:
        ValueError: If a folder holds no finished run, a run lacks a metric, or a seed counts twice.
    """
    ends = _ends(folders, metrics)
    if measures:
        known = dict.fromkeys(name for seeds in ends.values() for end in seeds.values() for name in end)
        found = [*(m for m in MEASURES if m in known), *(name for name in known if name.startswith(SWITCHED))]
        metrics = [*dict.fromkeys([*metrics, *found])]
    rows = {name: [_of_seeds(seeds, metric) for metric in metrics] for name, seeds in ends.items()}
    if format == 'csv':
        lines = [
            (name, metric, values) for name, row in rows.items() for metric, values in zip(metrics, row, strict=True)
        ]
        return _csv([(name, metric, values) for name, metric, values in lines if values is not None])
    head = ['mean, IQM [95 % interval] (each seed)', 'seeds', 'episodes', *metrics]
    cells = [[name, str(len(ends[name])), _episodes(ends[name]), *map(_cell_of, row)] for name, row in rows.items()]
    return markdown([head, *cells])


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, the header first; a ``|`` in a cell is text."""
    header, *rows = [[cell.replace('|', r'\|') for cell in line] for line in cells]
    return formatting.markdown(header, rows)


def _ends(folders: Sequence[Path], metrics: Sequence[str]) -> dict[str, dict[int, End]]:
    """The final evaluations by row and seed."""
    ends: dict[str, dict[int, End]] = {}
    configs = [RunFolder(folder).read() for folder in folders]
    for folder, config, label in zip(folders, configs, distinct_labels(configs), strict=True):
        run = RunFolder(folder)
        for mode, end in run.final()['eval'].items():
            unknown = [name for name in metrics if name not in end]
            if unknown and mode == 'policy':
                raise ValueError(f"'{folder}' has no metric {unknown}. Choose from: {', '.join(end)}")
            seeds = ends.setdefault(f'{config["scenario"]}: {label}{_played_with(mode)}', {})
            if config['seed'] in seeds:
                raise ValueError(
                    f"'{folder}' is a second run of {label} with seed {config['seed']}. Leave one out, or "
                    f'name each by ltos train --label.'
                )
            seeds[config['seed']] = end
    return ends


def _played_with(mode: str) -> str:
    """Suffix of a row's name for the weights used instead of the policy's."""
    if mode == 'policy':
        return ''
    return ', played with all kept' if mode == 'keep' else f', played with {mode} weights'


def _episodes(seeds: Mapping[int, End]) -> str:
    """How many episodes each seed played: ``'20'``, or ``'20 to 100'`` if seeds differ."""
    counts = [int(stat['count']) for end in seeds.values() for stat in end.values() if 'count' in stat]
    if not counts:
        return ''
    return str(min(counts)) if min(counts) == max(counts) else f'{min(counts)} to {max(counts)}'


def _of_seeds(seeds: Mapping[int, End], metric: str) -> Array | None:
    """The values of a metric by rising seed, ``None`` unless all seeds have it."""
    by_seed = [seeds[seed].get(metric) for seed in sorted(seeds)]
    return None if None in by_seed else np.array([stat['mean'] for stat in by_seed if stat])


def _cell_of(values: Array | None) -> str:
    if values is None:
        return ''
    if len(values) == 1:
        return rounded(*values)[0]
    *each, mean, middle, low, high = rounded(*values, values.mean(), iqm(values), *bootstrap_interval(values))
    return f'{mean}, {middle} [{low}, {high}] ({", ".join(each)})'


def _csv(lines: Sequence[tuple[str, str, Array]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow(['run', 'metric', 'seeds', 'mean', 'iqm', 'low', 'high', 'by_seed'])
    for name, metric, values in lines:
        middle = ['', '', ''] if len(values) == 1 else [float(iqm(values)), *bootstrap_interval(values)]
        by_seed = ' '.join(str(value) for value in values.tolist())
        writer.writerow([name, metric, len(values), float(values.mean()), *middle, by_seed])
    return out.getvalue().rstrip('\n')
