"""The signal plan of a trained run."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ltos_pyg.envs.traffic.trace import save_trace
from ltos_pyg.scenarios.traffic.moments import Ints, Moment, load_traffic_run, traffic_moments
from ltos_pyg.training.atomic import write_text

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

    A CSV has a row (``time,signal,phase``) for every change of lights. As ``.npz`` it is a trace for ``ltos
    traffic replay``: ``intersections`` (I,) and ``phase`` (seconds, I), the phase in each second.

    Raises:
        ValueError: If the folder has no run on traffic, or ``out`` does not end in .csv or .npz.
    """
    if out.suffix not in ('.csv', '.npz'):
        raise ValueError(f"'out' must end in .csv or .npz (got '{out}')")
    algorithm, env = load_traffic_run(folder)
    tasks = env.spec.num_tasks or 1
    if tasks > 1:
        print(f'ltos: the run has {tasks} networks or demands; the plan is of the first', file=sys.stderr)
    names = env.engines[0].network.signal_ids
    rows = signal_plan(traffic_moments(algorithm, env), env.choices[0].yellow, env.yellow)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == '.csv':
        write_text(out, _csv(rows, names))
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
