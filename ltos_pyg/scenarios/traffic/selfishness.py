"""The paper's Figure 7: the share that each signal keeps, over time and over the map."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ltos_pyg.algos import Algorithm
from ltos_pyg.envs.traffic import TrafficEnv
from ltos_pyg.scenarios.traffic.moments import Floats, Ints, load_traffic_run, traffic_moments
from ltos_pyg.training.atomic import write_text
from ltos_pyg.viz.curves import check_suffix, figure_style, save_figure

CONSTANT = 1e-4  # a mean share that varies by less than this counts as constant


@dataclass(frozen=True, eq=False)
class Selfishness:
    """The shares kept in an episode of T decisions by I signals."""

    time: Ints  # (T,) seconds
    kept: Floats  # (T, I)
    vehicles: Ints  # (T,) in the network
    position: Floats  # (I, 2) metres
    roads: Floats  # (R, 2, 2) ends of the roads between signals, metres

    @property
    def correlation(self) -> float:
        """Pearson's correlation of the mean share kept with the number of vehicles; NaN if one is constant."""
        mean = self.kept.mean(1)
        if np.ptp(mean) < CONSTANT or np.ptp(self.vehicles) == 0:
            return float('nan')
        return float(np.corrcoef(mean, self.vehicles)[0, 1])

    def csv(self) -> str:
        """One row per decision: seconds, vehicles, the share kept by each signal."""
        signals = ','.join(f'signal {i}' for i in range(self.kept.shape[1]))
        rows = (
            f'{time},{vehicles},{",".join(f"{share:.4f}" for share in kept)}'
            for time, vehicles, kept in zip(self.time, self.vehicles, self.kept, strict=True)
        )
        return '\n'.join([f'seconds,vehicles,{signals}', *rows]) + '\n'


def selfishness_of(algorithm: Algorithm, env: TrafficEnv, seed: int = 0) -> Selfishness:
    """Plays a greedy episode and records the share kept by each signal.

    Raises:
        ValueError: If the algorithm has no sharing weights.
    """
    moments = list(traffic_moments(algorithm, env, seed))
    kept = [moment.kept for moment in moments if moment.kept is not None]
    if not kept:
        raise ValueError('this run has no sharing weights: expected one of ltos, ltos_edge or fixed_ltos')
    network = env.engines[0].network
    position = network.intersection_xy[network.signals]
    return Selfishness(
        time=np.array([moment.time for moment in moments]),
        kept=np.stack(kept),
        vehicles=np.array([moment.vehicles.sum() for moment in moments]),
        position=position,
        roads=position[moments[0].edge_index.T],
    )


def draw_selfishness(folder: Path, out: Path, *more: Path, device: str | None = None, seed: int = 0) -> list[Path]:
    """Draws selfishness over time per agent, and over the map at six moments: the paper's Figure 7.

    Args:
        folder: A run on traffic.
        out: Where to leave the figure, .png, .svg or .pdf. Its numbers are left beside it, as .csv.
        more: Other places for the same figure.
        device: Device of the network, by default as in training.
        seed: Seed of the episode.

    Raises:
        ValueError: If the folder has no run of a sharing algorithm on traffic, or the suffix is not .png, .svg or
            .pdf.
        ImportError: Without matplotlib (extra ``plot``).
    """
    for path in (out, *more):
        check_suffix(path)
    algorithm, env = load_traffic_run(folder, device)
    with closing(env):
        data = selfishness_of(algorithm, env, seed)
    with figure_style():
        figure = selfishness_figure(data)
    return [*(save_figure(figure, path) for path in (out, *more)), write_text(out.with_suffix('.csv'), data.csv())]


def selfishness_figure(data: Selfishness, maps: int = 6) -> Any:
    """The :class:`matplotlib.figure.Figure` of :func:`draw_selfishness`."""
    from matplotlib.figure import Figure

    width, height = np.ptp(data.position, axis=0)
    map_height = 11 / maps * min(1.0, height / max(width, 1.0)) + 1.2  # inches, with title and colour bar
    figure = Figure(figsize=(11, 3.2 + map_height), layout='constrained')
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[3.2, map_height])[:, 0]
    axes = above.subplots()
    minutes = data.time / 60
    busy = axes.twinx()
    busy.fill_between(minutes, data.vehicles, color='0.9', linewidth=0)
    busy.set_ylabel('vehicles', color='0.5')
    busy.set_zorder(0)
    busy.grid(False)
    axes.set_zorder(1)
    axes.patch.set_visible(False)
    inner = _is_inner(data)
    for name, which, colour in (('edge', ~inner, '#D55E00'), ('inner', inner, '#0072B2')):
        axes.plot(minutes, data.kept[:, which], color=colour, alpha=0.3, linewidth=0.7)
        if which.any():
            axes.plot(minutes, data.kept[:, which].mean(1), color=colour, linewidth=2, label=f'{name} agents, mean')
    axes.set_xlabel('minutes')
    axes.set_ylabel('share kept (selfishness)')
    related = data.correlation
    also = '' if np.isnan(related) else f', correlation with the mean share {related:.2f}'
    axes.set_title(f'one line per agent; grey: vehicles on the roads{also}')
    axes.legend(loc='best', ncols=2)
    low, high = float(data.kept.min()), float(data.kept.max())
    if high - low < CONSTANT:  # one colour for a constant
        low, high = low - 0.05, high + 0.05
    panels = np.atleast_1d(below.subplots(1, maps))
    for axis, k in zip(panels, np.linspace(0, len(data.time) - 1, 2 * maps + 1).astype(int)[1::2], strict=True):
        for a, b in data.roads:
            axis.plot(*np.stack([a, b], 1), color='0.85', linewidth=1, zorder=0)
        dots = axis.scatter(*data.position.T, c=data.kept[k], cmap='Blues', vmin=low, vmax=high, s=60, edgecolor='0.3')
        axis.set_title(f'{minutes[k]:.0f} min')
        axis.set_aspect('equal')
        axis.margins(0.1)  # room for the dots at the border
        axis.axis('off')
    below.colorbar(dots, ax=list(panels), label='share kept', location='bottom', shrink=0.4)
    return figure


def _is_inner(data: Selfishness) -> npt.NDArray[np.bool_]:
    """Agents with the largest number of neighbours."""
    degree = (data.roads[:, None, 1] == data.position).all(-1).sum(0)
    return degree == degree.max(initial=0)
