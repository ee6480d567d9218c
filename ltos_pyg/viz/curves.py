"""Learning curves and their summary, rendered from run folders only (``config.json`` and ``metrics.jsonl``)."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltos_pyg.training.atomic import atomic_write
from ltos_pyg.training.labels import distinct_labels, run_label
from ltos_pyg.training.run_folder import RunFolder

Array = NDArray[np.float64]

# Okabe and Ito's palette, distinguishable with any colour vision, without its yellow, which is too light for a line.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')
LINES = ('-', '--', ':')
_INTERVALS = 8  # most error bars along a curve
_SEEDS_FOR_BARS = 3  # of two values, Student's t interval is 13 standard deviations wide
_LEGEND_INSIDE = 5  # most curves for a legend inside the panel
_STYLE = {
    'axes.grid': True,
    'axes.spines.right': False,
    'axes.spines.top': False,
    'font.size': 9.0,
    'grid.alpha': 0.3,
    'legend.frameon': False,
    'pdf.fonttype': 42,
    'svg.hashsalt': 'ltos_pyg',  # the same runs give the same file
}
_NO_DATE: dict[str, dict[str, Any]] = {'.svg': {'Date': None}, '.pdf': {'CreationDate': None}}


@dataclass(frozen=True)
class Series:
    """One metric of one run folder: T values over rising steps, NaN where it was NaN or infinite."""

    folder: Path
    scenario: str
    label: str  # the config's `label`, else its algorithm, and its preset if it names one
    seed: int
    step: Array  # (T,) environment steps
    value: Array  # (T,)
    not_finite: int  # rows in which the metric was NaN or infinite


@dataclass(frozen=True)
class Curve:
    """The runs of one scenario and label that differ in the seed only, on the steps that all of them cover."""

    scenario: str
    label: str
    runs: tuple[Series, ...]
    step: Array  # (T,) every step at which some seed has a value, inside the range that all seeds cover
    value: Array  # (n, T) one row per seed, interpolated linearly, never beyond what was observed; NaN beside a NaN

    @property
    def mean(self) -> Array:
        """(T,) mean over the seeds; NaN where the value of one is, as are the others below."""
        return self.value.mean(0)

    @property
    def band(self) -> tuple[Array, Array]:
        """(T,) lowest and (T,) highest value of any seed."""
        return self.value.min(0), self.value.max(0)

    @property
    def interval(self) -> Array:
        """(T,) half the width of the 95 % Student-t interval of the mean; NaN for a single seed."""
        return half_interval(self.value)

    @property
    def area(self) -> Array:
        r"""(n,) area under each seed's curve over the number of steps, :math:`\frac{1}{s_T - s_1} \int v\, ds`: the
        mean value over the run."""
        width = np.diff(self.step)
        if width.size == 0:
            return self.value[:, 0]
        return ((self.value[:, 1:] + self.value[:, :-1]) / 2 * width).sum(1) / width.sum()


@functools.cache
def student_t_quantile(p: float, dof: int) -> float:
    r"""The quantile of Student's t for a whole number of degrees of freedom, without SciPy.

    Finds the angle :math:`\theta = \arctan(t / \sqrt{\nu})` by bisection, for the finite series of
    :math:`P(|T| \le t)` in :math:`\sin\theta` and :math:`\cos\theta` (`Abramowitz and Stegun
    <https://personal.math.ubc.ca/~cbm/aands/page_948.htm>`_, 26.7.3 and 26.7.4).

    Args:
        p: Probability, between 0 and 1: 0.975 for a two-sided 95 % interval.
        dof: Degrees of freedom, at least 1: the number of values less one.
    """
    if not 0 < p < 1:
        raise ValueError(f"'p' must lie between 0 and 1 (got {p}), e.g. 0.975 for a two-sided 95 % interval")
    if dof < 1:
        raise ValueError(f"'dof' must be at least 1 (got {dof}): an interval needs two values or more")
    odd = dof % 2
    k = np.arange(1, (dof - odd) // 2)
    series = np.cumprod([1.0, *(2 * k / (2 * k + 1) if odd else (2 * k - 1) / (2 * k))])
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        theta = (low + high) / 2
        total = math.sin(theta) * float((series * math.cos(theta) ** (2.0 * np.arange(series.size))).sum())
        if odd:
            total = (theta + (math.cos(theta) * total if dof > 1 else 0.0)) * 2 / math.pi
        low, high = (theta, high) if total < abs(2 * p - 1) else (low, theta)
    return math.copysign(math.sqrt(dof) * math.tan((low + high) / 2), p - 0.5)


def half_interval(value: Array, level: float = 0.95) -> Array:
    r"""Half the width of the Student-t interval of the mean along the first axis,
    :math:`t_{n-1} \cdot s / \sqrt{n}` with :math:`s` over :math:`n - 1`.

    Shapes:
        - **input:** :math:`(n, *)`, one row per independent value (a seed)
        - **output:** :math:`(*)`; NaN if :math:`n = 1`
    """
    n = len(value)
    if n < 2:
        return np.full(value.shape[1:], np.nan)
    return student_t_quantile((1 + level) / 2, n - 1) * value.std(0, ddof=1) / math.sqrt(n)


def load_series(folder: Path | str, metric: str = 'eval/return') -> Series:
    """Reads one metric of a run folder. If several rows have the same step, the last one counts.

    Raises:
        ValueError: If the folder is not a run folder, or has no value of the metric.
    """
    run = RunFolder(folder)
    config, logged = run.read(), run.metrics()
    rows = [row for row in logged if metric in row]
    value = {row['step']: math.nan if row[metric] is None else float(row[metric]) for row in rows}
    if not value:
        names = sorted({name for row in logged for name in row} - {'step'})
        raise ValueError(
            f"'{folder}' has no value of '{metric}': expected one of {names} (got no row with it). "
            f'Choose another metric, or continue the run to its first evaluation.'
        )
    step = sorted(value)
    return Series(
        folder=run.path,
        scenario=str(config['scenario']),
        label=run_label(config),
        seed=int(config['seed']),
        step=np.array(step, float),
        value=np.array([value[s] for s in step]),
        not_finite=sum(row[metric] is None for row in rows),
    )


def aggregate(folders: Sequence[Path | str], metric: str = 'eval/return') -> list[Curve]:
    """Groups runs by scenario, label and the options that differ, and puts the seeds of a group on common steps.

    Raises:
        ValueError: If there is no run, a seed counts twice, or the runs of a group share no step.
    """
    if not folders:
        raise ValueError("'runs' must name at least one run folder (got none)")
    labels = distinct_labels([RunFolder(folder).read() for folder in folders])
    series = [load_series(folder, metric) for folder in folders]
    return group([replace(run, label=label) for run, label in zip(series, labels, strict=True)])


def group(series: Sequence[Series]) -> list[Curve]:
    """As :func:`aggregate`, from loaded series."""
    groups: dict[tuple[str, str], list[Series]] = {}
    for run in series:
        groups.setdefault((run.scenario, run.label), []).append(run)
    return [_curve(sorted(runs, key=lambda run: run.seed)) for _, runs in sorted(groups.items())]


def _curve(runs: list[Series]) -> Curve:
    name = f"'{runs[0].label}' on '{runs[0].scenario}'"
    for one, other in itertools.pairwise(runs):
        if one.seed == other.seed:
            raise ValueError(
                f"seeds of {name} must differ: expected each once, got seed {one.seed} in '{one.folder}' and "
                f"'{other.folder}'. Leave one out, or give them a 'label' each."
            )
    low, high = max(run.step[0] for run in runs), min(run.step[-1] for run in runs)
    if low > high:
        ranges = ', '.join(f"'{run.folder}' {run.step[0]:.0f}-{run.step[-1]:.0f}" for run in runs)
        raise ValueError(f'runs of {name} must share steps: got {ranges}. Leave out the ones that broke off early.')
    step = np.unique(np.concatenate([run.step for run in runs]))
    step = step[(step >= low) & (step <= high)]
    value = np.stack([np.interp(step, run.step, run.value) for run in runs])
    return Curve(runs[0].scenario, runs[0].label, tuple(runs), step, value)


def summarise(runs: Sequence[Path | str], metric: str = 'eval/return') -> list[dict[str, Any]]:
    """One row per scenario and label: final value, and area under the curve.

    ``final_*`` is over the last value of each run, ``area_*`` over the area under each curve divided by its steps,
    on the range ``first_step`` to ``last_step`` that all seeds cover. ``*_low`` and ``*_high`` bound the 95 % Student-t
    interval of the mean; they and ``*_std`` (over n - 1) are ``None`` for a single seed. A number that would be
    computed from a NaN or infinite value is ``None``, too.
    """
    return [_summary(curve, metric) for curve in aggregate(runs, metric)]


def _summary(curve: Curve, metric: str) -> dict[str, Any]:
    final = np.array([run.value[-1] for run in curve.runs])
    return {
        'scenario': curve.scenario,
        'label': curve.label,
        'metric': metric,
        'count': len(curve.runs),
        **_moments('final', final),
        **_moments('area', curve.area),
        'first_step': int(curve.step[0]),
        'last_step': int(curve.step[-1]),
        'not_finite': sum(run.not_finite for run in curve.runs),
    }


def _moments(name: str, value: Array) -> dict[str, float | None]:
    mean = float(value.mean())
    if np.isnan(mean):
        return dict.fromkeys(f'{name}_{what}' for what in ('mean', 'std', 'low', 'high'))
    if len(value) < 2:
        return {f'{name}_mean': mean, f'{name}_std': None, f'{name}_low': None, f'{name}_high': None}
    half = float(half_interval(value))
    std = float(value.std(ddof=1))
    return {f'{name}_mean': mean, f'{name}_std': std, f'{name}_low': mean - half, f'{name}_high': mean + half}


def plot_curves(
    runs: Sequence[Path | str],
    metric: str = 'eval/return',
    out: Path | str = Path('curves.png'),
    log: bool = False,
) -> Path:
    """Draws the learning curves of run folders into one file (PNG, SVG or PDF, by the suffix).

    One panel per scenario, one colour per label. The line is the mean over seeds, the band spans the lowest and the
    highest seed, the bars are 95 % Student-t intervals of the mean; ``log`` draws values on a logarithmic scale. The
    same runs give the same file.

    Raises:
        ValueError: As :func:`aggregate`, or for an unknown suffix, or if a value is not above 0 on a logarithmic scale.
        ImportError: Without matplotlib (extra ``plot``).
    """
    out = Path(out)
    check_suffix(out)
    return save_figure(curve_figure(aggregate(runs, metric), metric, log), out)


def check_suffix(out: Path) -> None:
    """Raises a ``ValueError`` unless figures can be written in the format of this suffix."""
    if out.suffix not in ('.png', '.svg', '.pdf'):
        raise ValueError(f"'out' must end in .png, .svg or .pdf (got '{out}')")


def save_figure(figure: Any, out: Path) -> Path:
    """Writes a figure in the format of the suffix; the same figure gives the same file."""
    check_suffix(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with figure_style():
        return atomic_write(
            out, lambda file: figure.savefig(file, format=out.suffix[1:], dpi=150, metadata=_NO_DATE.get(out.suffix))
        )


def curve_figure(
    curves: Sequence[Curve],
    metric: str | Mapping[str, str] = 'eval/return',
    log: bool = False,
    labels: Sequence[str] = (),
) -> Any:
    """The :class:`matplotlib.figure.Figure` of :func:`plot_curves`, to be modified further. It is not part of any
    window or ``pyplot`` state. ``metric`` may name one for each scenario. Labels have the colours of their places in
    ``labels``, by default in alphabetical order."""
    everything = np.concatenate([curve.value.ravel() for curve in curves])
    if np.isnan(everything).all():
        raise ValueError(f"no run has a finite value of '{metric}' that could be drawn: choose another metric")
    least = float(np.nanmin(everything))
    if log and least <= 0:
        raise ValueError(f"'{metric}' must be above 0 on a logarithmic scale (got {least:.4g}): draw it without --log")
    with figure_style():
        from matplotlib.figure import Figure

        scenarios = sorted({curve.scenario for curve in curves})
        labels = labels or sorted({curve.label for curve in curves})
        beside = len(labels) > _LEGEND_INSIDE
        figure = Figure(figsize=(1 + (6.2 if beside else 4.6) * len(scenarios), 4.2), layout='constrained')
        panels = figure.subplots(1, len(scenarios), squeeze=False)[0]
        for axes, scenario in zip(panels, scenarios, strict=True):
            for curve in curves:
                if curve.scenario == scenario:
                    _draw(axes, curve, labels.index(curve.label), len(labels))
            _annotate(axes, scenario, metric if isinstance(metric, str) else metric[scenario])
            if log:
                axes.set_yscale('log')
            axes.legend(**({'loc': 'upper left', 'bbox_to_anchor': (1.0, 1.0)} if beside else {'loc': 'best'}))
        figure.supxlabel(_caption(curves), fontsize=7.5, color='0.35')
    return figure


@contextmanager
def figure_style() -> Iterator[None]:
    """A fixed style, whatever the user's settings, which are restored afterwards."""
    try:
        import matplotlib.style
    except ImportError as error:
        raise ImportError("plots need matplotlib: install it with pip install 'ltos_pyg[plot]'") from error
    with matplotlib.style.context(['default', _STYLE]):
        yield


def _draw(axes: Any, curve: Curve, rank: int, ranks: int) -> None:
    look, n = look_of(rank), len(curve.runs)
    axes.fill_between(curve.step, *curve.band, color=look['color'], alpha=0.16, linewidth=0)
    axes.plot(
        curve.step,
        curve.mean,
        **look,
        markersize=5,
        markevery=sorted({*_spread(curve.step.size, rank, ranks), *_isolated(curve.mean)}),
        label=f'{curve.label} ({n} seed{"" if n == 1 else "s"})',
    )
    if n >= _SEEDS_FOR_BARS:
        at = _spread(curve.step.size, rank, ranks)
        axes.errorbar(
            curve.step[at], curve.mean[at], curve.interval[at], fmt='none', ecolor=look['color'], elinewidth=1,
            capsize=2.5,
        )  # fmt: skip


def look_of(rank: int) -> dict[str, Any]:
    """How the line of the method of this rank looks: colour and marker, and from the eighth method on dashes."""
    dash = LINES[rank // len(COLOURS) % len(LINES)]
    return {'color': COLOURS[rank % len(COLOURS)], 'marker': MARKERS[rank % len(MARKERS)], 'linestyle': dash}


def _isolated(values: Array) -> list[int]:
    """Where a number stands between two that are NaN, or beside one at an end: no line leads there."""
    finite = np.isfinite(values)
    beside = np.pad(finite, 1)
    return [int(i) for i in np.flatnonzero(finite & ~beside[:-2] & ~beside[2:])]


def _spread(size: int, rank: int, ranks: int) -> list[int]:
    """The steps at which intervals are drawn: evenly spaced, shifted from curve to curve, so that they do not
    overlap."""
    share = (np.arange(_INTERVALS) + (rank + 1) / (ranks + 1)) / (_INTERVALS + 0.5)
    return sorted({int(i) for i in np.rint(share * (size - 1))} | {size - 1})


def _annotate(axes: Any, scenario: str, metric: str) -> None:
    from matplotlib.ticker import EngFormatter

    axes.set_title(scenario)
    axes.set_xlabel('environment steps')
    axes.set_ylabel(metric)
    axes.xaxis.set_major_formatter(EngFormatter(sep=''))
    axes.margins(x=0.01)


def _caption(curves: Sequence[Curve]) -> str:
    parts = ['line: the single seed']
    if any(len(curve.runs) > 1 for curve in curves):
        parts = ['line: mean over seeds', 'band: lowest to highest seed']
    if any(len(curve.runs) >= _SEEDS_FOR_BARS for curve in curves):
        parts.append('bars: 95 % Student-t interval of the mean')
    if any(np.isnan(curve.value).any() for curve in curves):
        parts.append('gap: a value that is not finite')
    return '; '.join(parts)
