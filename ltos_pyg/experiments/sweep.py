"""Searches for good options with Optuna: trials are runs, the study is a SQLite file, and both can be resumed."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ltos_pyg.experiments.processes import ONE_THREAD
from ltos_pyg.experiments.runner import LOG, POLL, one_driver, why_failed
from ltos_pyg.experiments.search_space import Sweep, check, read_sweep
from ltos_pyg.experiments.sweep_worker import counted, import_optuna, open_study, work
from ltos_pyg.progress import Progress
from ltos_pyg.training.atomic import write_text
from ltos_pyg.training.run_folder import write_json


def run_sweep(sweep: Sweep, out: Path, jobs: int = 1, ray: Any = None, quiet: bool = False) -> dict[str, Any]:
    """Runs the trials that are missing, ``jobs`` at once; returns the best one.

    The study is ``out/study.db``, each run a folder in ``out``, ``trials.csv`` a table of all, and ``best.toml`` a
    configuration for ``ltos train --config``. The same call continues an interrupted sweep: interrupted trials are
    resumed, finished ones are kept.

    Args:
        sweep: What to search.
        out: The folder.
        jobs: Trials at once, one core each.
        ray: A :class:`~ltos_pyg.experiments.clusters.RayCluster` to run them on, instead of processes here. ``out``
            must then be a folder that all machines share.
        quiet: No progress bar.

    Raises:
        ValueError: If the folder has another sweep, or another driver runs there, or no trial succeeded.
        ImportError: Without Optuna (extra ``sweep``).
    """
    import_optuna()
    check(sweep)
    if jobs < 1:
        raise ValueError(f"'--jobs' must be at least 1 (got {jobs})")
    with one_driver(out):
        _write_sweep(sweep, out)
        study = open_study(sweep, out)
        _queue_missing(study, sweep)
        workers = _ray_workers(out, jobs, ray) if ray else _processes(out, jobs)
        with workers as states:
            _watch(study, sweep, states, quiet)
        write_table(study, sweep, out / 'trials.csv')
        for line in failures_of(study, out):
            print(f'ltos: {line}', file=sys.stderr)
        best = _best(study, out)
        values = best.user_attrs['values']
        write_best(sweep, values, out / 'best.toml')
    return {'value': best.value, 'options': values, 'trial': best.number}


def _write_sweep(sweep: Sweep, out: Path) -> None:
    """Writes ``sweep.json``; an earlier one may differ in the number of trials only.

    Raises:
        ValueError: If the folder has another sweep.
    """
    path = out / 'sweep.json'
    if path.is_file():
        before = read_sweep(out)
        if dataclasses.replace(before, trials=sweep.trials) != sweep:
            old, new = dataclasses.asdict(before), dataclasses.asdict(sweep)
            differ = ', '.join(f'{k} was {old[k]!r}' for k in new if k != 'trials' and old[k] != new[k])
            raise ValueError(f"'{out}' holds another sweep: {differ}. Choose another folder by --out.")
    write_json(path, dataclasses.asdict(sweep))


def _queue_missing(study: Any, sweep: Sweep) -> None:
    """Queues what a grid lacks, and the trials that were interrupted, which keep their run folders."""
    if sweep.sampler == 'grid':
        there = [_point(trial) for trial in study.trials]
        for values in sweep.grid():
            if values not in there:
                study.enqueue_trial(values)
    resumed = {trial.user_attrs.get('resumes') for trial in study.trials}
    for trial in study.trials:
        if trial.state.name == 'RUNNING':
            study.tell(trial.number, state=trial.state.__class__.FAIL)
    for trial in study.trials:
        if trial.state.name == 'FAIL' and 'error' not in trial.user_attrs and trial.number not in resumed:
            folder = trial.user_attrs.get('folder', trial.number)
            study.enqueue_trial(_point(trial), user_attrs={'resumes': trial.number, 'folder': folder})


def _point(trial: Any) -> dict[str, Any]:
    """The values of a trial, also of one that was queued and has not begun, or has only some of them yet."""
    return {**trial.system_attrs.get('fixed_params', {}), **trial.params}


@contextmanager
def _processes(out: Path, jobs: int) -> Iterator[Callable[[], list[str | None]]]:
    """Starts worker processes on this machine. Yields a function that returns the state of each: ``None`` while it
    runs, ``''`` if it succeeded, else what went wrong. The workers stop, and save, whenever and however this process
    ends."""
    command = [sys.executable, '-m', 'ltos_pyg.experiments.sweep_worker', str(out)]
    with (out / LOG).open('ab') as log:
        workers = [
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=os.environ | ONE_THREAD,
                start_new_session=True,
            )
            for _ in range(jobs)
        ]  # fmt: skip
        try:
            yield lambda: [_state_of(worker.poll(), out) for worker in workers]
        finally:
            for worker in workers:
                assert worker.stdin is not None
                worker.stdin.close()
            for worker in workers:
                worker.wait()


def _state_of(code: int | None, out: Path) -> str | None:
    return None if code is None else '' if code == 0 else why_failed(code, out / LOG)


@contextmanager
def _ray_workers(out: Path, jobs: int, ray: Any) -> Iterator[Callable[[], list[str | None]]]:
    """As :func:`_processes`, as tasks of a Ray cluster."""
    with ray.tasks(work, [str(out.resolve())] * jobs) as states:
        yield states


def _watch(study: Any, sweep: Sweep, states: Callable[[], list[str | None]], quiet: bool) -> None:
    """Shows the progress until all workers ended; raises a ``ValueError`` if one failed."""
    with Progress(total=sweep.number_of_trials, desc='trials', unit=' trials', disable=quiet) as bar:
        while True:
            now = states()
            ended = [t for t in counted(study.get_trials(deepcopy=False)) if t.state.is_finished()]
            values = [t.value for t in ended if t.state.name == 'COMPLETE']
            if values:
                best = min(values) if sweep.goal()[1] else max(values)
                bar.set_postfix_str(f'best {best:.4g}', refresh=False)
            bar.n = len(ended)
            bar.refresh()
            if all(state is not None for state in now):
                break
            time.sleep(POLL)
    failed = [state for state in now if state]
    if failed:
        raise ValueError(f'a worker ended early ({failed[0]}). Call the same command again to resume its trial.')


def _best(study: Any, out: Path) -> Any:
    """The best trial; raises a ``ValueError`` if none succeeded."""
    if not any(trial.state.name == 'COMPLETE' for trial in study.trials):
        errors = [trial.user_attrs['error'] for trial in study.trials if 'error' in trial.user_attrs]
        raise ValueError(f"no trial of '{out}' succeeded. The last error: {errors[-1] if errors else 'none'}")
    return study.best_trial


def failures_of(study: Any, out: Path) -> list[str]:
    """A line for each trial that failed: why, and its run folders."""
    lines = []
    for trial in study.trials:
        if 'error' in trial.user_attrs:
            folders = sorted(map(str, out.glob(f'trial{trial.user_attrs["folder"]:04d}-seed*')))
            where = f' (see {", ".join(folders)})' if folders else ''
            lines.append(f'trial {trial.number} failed: {trial.user_attrs["error"]}{where}')
    return lines


def write_best(sweep: Sweep, values: Mapping[str, Any], path: Path) -> None:
    """Writes a configuration for ``ltos train --config``."""
    lines = [f'scenario = {json.dumps(sweep.scenario)}', f'algo = {json.dumps(sweep.algo)}']
    lines += [f'preset = {json.dumps(sweep.preset)}']
    lines += [f'imports = {json.dumps(sweep.imports)}'] if sweep.imports else []
    lines += ['', '[options]']
    options = {**dict(sweep.options), **values}
    for name, value in options.items():
        key = json.dumps(name) if '.' in name else name
        lines.append(f'{key} = {_toml(value)}')
    write_text(path, '\n'.join(lines) + '\n')


def _toml(value: Any) -> str:
    """A value in TOML, which writes inf and nan where JSON has Infinity and NaN, and has no null."""
    if isinstance(value, list | tuple):
        return f'[{", ".join(map(_toml, value))}]'
    return repr(value) if isinstance(value, float) else json.dumps('none' if value is None else value)


def write_table(study: Any, sweep: Sweep, path: Path) -> None:
    """Writes all trials that count as CSV, in their order."""
    out = io.StringIO()
    names = [dimension.name for dimension in sweep.space]
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow(['trial', 'state', sweep.goal()[0], *names, 'error'])
    for trial in counted(study.trials):
        values = trial.user_attrs.get('values', {})
        which, of = [trial.number, trial.state.name.lower(), trial.value], [values.get(name) for name in names]
        writer.writerow([*which, *of, trial.user_attrs.get('error')])
    write_text(path, out.getvalue())
