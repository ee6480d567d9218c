"""Figures of an experiment, readable in grey and with any colour vision: methods differ in colour, and in marker or
dash."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltos_pyg.experiments.experiment import Experiment
from ltos_pyg.experiments.report import Result
from ltos_pyg.experiments.statistics import performance_profile
from ltos_pyg.viz.curves import (
    COLOURS,
    Curve,
    curve_figure,
    figure_style,
    group,
    load_series,
    look_of,
)

# of lines without markers; more than COLOURS, so that no two of the first 56 lines look alike
DASHES: tuple[Any, ...] = ('-', '--', ':', '-.', (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (5, 4)))
PANEL_COLUMNS = 5  # most pictures side by side


def curves(results: Sequence[Result], folder: Path, labels: Sequence[str] = ()) -> Any:
    """Learning curves: one panel per setting, the mean over seeds, and a band from the lowest to the highest seed.

    Nothing is smoothed. The last point of a curve is the last evaluation of the training. The scale is logarithmic
    where less is better and all values are above 0: queues of an untrained policy are a hundred times as long. Methods
    have the colours of their places in ``labels``, by default of the results.
    """
    found: list[Curve] = []
    for one in results:
        series = [load_series(folder / run.name, f'eval/{one.metric}') for run in one.runs]
        named = [dataclasses.replace(s, scenario=one.setting.label, label=one.method.label) for s in series]
        found += group(named) if named else []
    log = all(one.lower_is_better for one in results) and not any(bool((curve.value <= 0).any()) for curve in found)
    labels = labels or [*dict.fromkeys(one.method.label for one in results)]
    return curve_figure(found, {one.setting.label: one.metric for one in results}, log, labels)


def lines(experiment: Experiment, results: Sequence[Result]) -> Any:
    """The final result over the setting's ``x``: one line per method, a band over the seeds, the paper's numbers
    dotted."""
    with figure_style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.2), layout='constrained')
        axes = figure.subplots()
        for rank, method in enumerate(experiment.methods):
            mine = [one for one in results if one.method is method and one.setting.x is not None]
            mine.sort(key=_x)
            look = look_of(rank)
            x = [_x(one) for one in mine]
            axes.plot(x, [one.values.mean() for one in mine], label=method.label, **look)
            low, high = [one.values.min() for one in mine], [one.values.max() for one in mine]
            axes.fill_between(x, low, high, color=look['color'], alpha=0.16, linewidth=0)
            paper = experiment.paper.get(method.label, {})
            numbers = sorted((s.x, paper[s.label]) for s in experiment.settings if s.label in paper and s.x is not None)
            if numbers:
                axes.plot(*zip(*numbers, strict=True), **look | {'linestyle': ':'}, alpha=0.6, markerfacecolor='none',
                          label=f'{method.label}, paper')  # fmt: skip
        axes.set_xlabel(_x_label(experiment))
        axes.set_ylabel(' or '.join(dict.fromkeys(one.metric for one in results)))
        axes.set_title(experiment.title)
        axes.legend(loc='best', fontsize=7.5)
        figure.supxlabel('line: mean over seeds; band: lowest to highest seed', fontsize=7.5, color='0.35')
    return figure


def _x(one: Result) -> float:
    """The place of a result on the horizontal axis."""
    return float(one.setting.x or 0.0)


def _x_label(experiment: Experiment) -> str:
    """What all settings name before ``' = '``, else ``'x'``."""
    names = {name if equals else 'x' for name, equals, _ in (s.label.partition(' = ') for s in experiment.settings)}
    return names.pop() if len(names) == 1 else 'x'


def profiles(results: Sequence[Result], note: str = '', labels: Sequence[str] = ()) -> Any:
    """Performance profiles: the fraction of runs whose result is better than a threshold, with a note below. All
    results are of one metric. Methods have the colours of their places in ``labels``, by default of the results."""
    worse = -1.0 if results[0].lower_is_better else 1.0
    by_method: dict[str, list[np.ndarray[Any, Any]]] = {}
    for one in results:
        if one.ends:
            by_method.setdefault(one.method.label, []).append(worse * one.values)
    everything = np.concatenate([values for tasks in by_method.values() for values in tasks])
    finite = everything[np.isfinite(everything)]  # a run whose result is NaN is better than no threshold
    everything = finite if len(finite) else np.zeros(1)
    span = max(float(np.ptp(everything)), 1e-6)
    threshold = np.linspace(everything.min() - 0.05 * span, everything.max() + 0.05 * span, 400)
    with figure_style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.2), layout='constrained')
        axes = figure.subplots()
        ranks = {label: rank for rank, label in enumerate(labels or by_method)}
        for label, tasks in by_method.items():
            colour, dash = COLOURS[ranks[label] % len(COLOURS)], DASHES[ranks[label] % len(DASHES)]
            axes.step(worse * threshold, performance_profile(tasks, threshold), color=colour, linestyle=dash,
                      label=label, where='post')  # fmt: skip
        if worse < 0:
            axes.invert_xaxis()
        axes.set_xlabel(f'{results[0].metric}, threshold')
        axes.set_ylabel('fraction of runs that are better')
        axes.legend(loc='best', fontsize=7.5)
        figure.supxlabel(note, fontsize=7.5, color='0.35')
    return figure


def panel(episodes: Mapping[str, Path]) -> Any:
    """The last picture of each method's episode, side by side, from GIFs by the method's label."""
    from PIL import Image

    columns = min(PANEL_COLUMNS, len(episodes))
    rows = math.ceil(len(episodes) / columns)
    with figure_style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3.2 * columns, 3.4 * rows), layout='constrained')
        places = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in places:
            axes.axis('off')
        for axes, (label, path) in zip(places, episodes.items(), strict=False):
            with Image.open(path) as gif:
                gif.seek(getattr(gif, 'n_frames', 1) - 1)
                axes.imshow(np.asarray(gif.convert('RGB')))
            axes.set_title(label)
    return figure
