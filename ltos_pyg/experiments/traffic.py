"""What a trained run does at its signals: moments of an episode, the signal plan, and the patterns of selfishness."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ltos_pyg.algos import Algorithm
from ltos_pyg.envs.traffic import TrafficEnv
from ltos_pyg.envs.traffic.trace import save_trace
from ltos_pyg.experiments.scenarios import load_run
from ltos_pyg.training.checkpoint import atomic_write

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Moment:
    """A decision in an episode: what I signals saw, and what they decided."""

    time: int  # seconds since the start
    before: Ints  # (I,) phases shown so far
    phase: Ints  # (I,) phases chosen
    vehicles: Ints  # (L,) on each lane
    waiting: Ints  # (L,)
    kept: Floats | None  # (I,) share of its reward that each keeps; None: no sharing
    edge_index: Ints  # (2, E)
    given: Floats | None  # (E,)


@torch.no_grad()
def traffic_moments(algorithm: Algorithm, env: TrafficEnv, seed: int = 0) -> Iterator[Moment]:
    """The decisions of one greedy episode, of the first graph of the environment."""
    graph = env.reset(seed)
    engine = env.engines[0]
    for k in range(env.horizon):
        decision = algorithm.act(graph)
        nodes, edges = int(graph.ptr[1]), graph.batch[graph.edge_index[0]] == 0
        before, sharing = env.phases[0][0], decision.sharing
        yield Moment(
            time=k * env.seconds,
            before=before,
            phase=env.choices[0].of(decision.action[:nodes].cpu().numpy()),
            vehicles=engine.lane_vehicle_count()[0].astype(np.int64),
            waiting=engine.lane_waiting_count()[0].astype(np.int64),
            kept=None if sharing is None else sharing.kept[:nodes].double().cpu().numpy(),
            edge_index=graph.edge_index[:, edges].cpu().numpy(),
            given=None if sharing is None else sharing.given[edges].double().cpu().numpy(),
        )
        graph = env.step(decision.action).graph


def load_traffic_run(folder: Path, device: str | None = None) -> tuple[Algorithm, TrafficEnv]:
    """The trained algorithm of a run folder, and its environment with one graph.

    Raises:
        ValueError: If the folder holds no run of a traffic scenario.
    """
    algorithm, env = load_run(folder, device)
    if not isinstance(env, TrafficEnv):
        raise ValueError(f"'{folder}' is a run without signals: expected one on 'traffic'")
    return algorithm, env


# --- signal plans ----------------------------------------------------------------------------------------------------

PlanRow = tuple[int, int, int]  # second, number of the signal, phase from then on


def signal_plan(moments: Iterable[Moment], yellows: npt.NDArray[np.bool_], yellow: int) -> list[PlanRow]:
    """The changes of lights, in order of time, yellow (phase 0) included; every signal has a first row at 0.

    Args:
        moments: The decisions of an episode.
        yellows: (I,) whether a signal has a yellow.
        yellow: Seconds of it.
    """
    rows: list[PlanRow] = []
    for moment in moments:
        changed = moment.phase != moment.before
        pauses = changed & yellows & (yellow > 0)
        shown = np.where(pauses, 0, moment.phase)
        now = changed if moment.time > 0 else np.ones_like(changed)
        rows += [(moment.time, int(i), int(shown[i])) for i in np.flatnonzero(now)]
        rows += [(moment.time + yellow, int(i), int(moment.phase[i])) for i in np.flatnonzero(pauses)]
    return rows


def plan_phases(rows: Iterable[PlanRow], num_signals: int, seconds: int) -> Ints:
    """The phase that each signal shows in each second, (seconds, I)."""
    phase = np.zeros((seconds, num_signals), np.int64)
    for time, signal, shown in rows:
        phase[time:, signal] = shown
    return phase


def write_plan(folder: Path, out: Path) -> int:
    """Writes the signal plan of a trained run's greedy episode, and returns its number of rows.

    As CSV, it has a row (``time,signal,phase``) for every change of lights. As ``.npz`` it is a trace for ``ltos
    traffic replay``: ``intersections`` (I,) and ``phase`` (seconds, I), what each shows in each second.

    Raises:
        ValueError: If the folder holds no run on traffic, or ``out`` ends in neither .csv nor .npz.
    """
    if out.suffix not in ('.csv', '.npz'):
        raise ValueError(f"'out' must end in .csv or .npz (got '{out}')")
    algorithm, env = load_traffic_run(folder)
    names = env.engines[0].network.signal_ids
    rows = signal_plan(traffic_moments(algorithm, env), env.choices[0].yellow, env.yellow)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == '.csv':
        atomic_write(out, lambda file: _write(file, _csv(rows, names).encode()))
    else:
        phase = plan_phases(rows, len(names), env.horizon * env.seconds).astype(np.uint8)
        save_trace(out, {'intersections': np.array(names), 'phase': phase})
    env.close()
    return len(rows)


def _csv(rows: list[PlanRow], names: tuple[str, ...]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['time', 'signal', 'phase'])
    writer.writerows((time, names[signal], phase) for time, signal, phase in rows)
    return text.getvalue()


def _write(file: Any, data: bytes) -> None:
    file.write(data)


# --- the paper's Figure 7 --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Selfishness:
    """The shares kept in an episode of T decisions by I signals."""

    time: Ints  # (T,) seconds
    kept: Floats  # (T, I)
    vehicles: Ints  # (T,) in the network
    position: Floats  # (I, 2) metres
    roads: Floats  # (R, 2, 2) ends of the roads between signals, metres


def selfishness_of(algorithm: Algorithm, env: TrafficEnv) -> Selfishness:
    """Plays a greedy episode and notes what everyone keeps.

    Raises:
        ValueError: If the algorithm shares nothing.
    """
    moments = list(traffic_moments(algorithm, env))
    kept = [moment.kept for moment in moments if moment.kept is not None]
    if not kept:
        raise ValueError('this run has no sharing weights: expected one of ltos or fixed_ltos')
    network = env.engines[0].network
    position = network.intersection_xy[network.signals]
    return Selfishness(
        time=np.array([moment.time for moment in moments]),
        kept=np.stack(kept),
        vehicles=np.array([moment.vehicles.sum() for moment in moments]),
        position=position,
        roads=position[moments[0].edge_index.T],
    )


def draw_selfishness(folder: Path, out: Path, device: str | None = None) -> Path:
    """Draws selfishness over time per agent, and over the map at six moments: the paper's Figure 7.

    Raises:
        ValueError: If the folder holds no run of a sharing algorithm on traffic, or the suffix is not .png, .svg or
            .pdf.
        ImportError: Without matplotlib (extra ``plot``).
    """
    from ltos_pyg.experiments.curves import check_suffix, figure_style, save_figure

    check_suffix(out)
    algorithm, env = load_traffic_run(folder, device)
    with figure_style():
        figure = selfishness_figure(selfishness_of(algorithm, env))
    env.close()
    return save_figure(figure, out)


def selfishness_figure(data: Selfishness, maps: int = 6) -> Any:
    """The :class:`matplotlib.figure.Figure` of :func:`draw_selfishness`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout='constrained')
    above, below = figure.subfigures(2, 1, squeeze=False)[:, 0]
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
    axes.set_title('one line per agent; grey: vehicles on the roads')
    axes.legend(loc='best', ncols=2)
    low, high = float(data.kept.min()), float(data.kept.max())
    panels = np.atleast_1d(below.subplots(1, maps))
    for axis, k in zip(panels, np.linspace(0, len(data.time) - 1, 2 * maps + 1).astype(int)[1::2], strict=True):
        for a, b in data.roads:
            axis.plot(*np.stack([a, b], 1), color='0.85', linewidth=1, zorder=0)
        dots = axis.scatter(*data.position.T, c=data.kept[k], cmap='Blues', vmin=low, vmax=high, s=60, edgecolor='0.3')
        axis.set_title(f'{minutes[k]:.0f} min')
        axis.set_aspect('equal')
        axis.axis('off')
    below.colorbar(dots, ax=list(panels), label='share kept', location='bottom', shrink=0.4)
    return figure


def _is_inner(data: Selfishness) -> npt.NDArray[np.bool_]:
    """Agents with as many neighbours as anyone has."""
    degree = (data.roads[:, None, 1] == data.position).all(-1).sum(0)
    return degree == degree.max(initial=0)
