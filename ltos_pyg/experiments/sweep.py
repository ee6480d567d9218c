"""Searches for good options with Optuna: trials are runs, the study is a SQLite file, and both can be resumed."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from ltos_pyg import registry
from ltos_pyg.experiments.experiment import Run
from ltos_pyg.experiments.runner import LOG, ONE_THREAD, POLL, config_of, last_line, one_driver
from ltos_pyg.training.api import train
from ltos_pyg.training.callbacks import Callback, Metrics
from ltos_pyg.training.checkpoint import atomic_write
from ltos_pyg.training.run_folder import RunFolder, hold_lock, write_json
from ltos_pyg.training.trainer import Interrupted

if TYPE_CHECKING:
    from ltos_pyg.training.trainer import Trainer

STUDY = 'study.db'
FIRST_SEED = 100  # trials use this seed and the next ones, and results other seeds: nothing is chosen on the evaluation


@dataclass(frozen=True)
class Dimension:
    """The values of one option: ``choices``, or all numbers from ``low`` to ``high``."""

    name: str
    choices: tuple[Any, ...] | None = None
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    def __post_init__(self) -> None:
        if self.choices is None and not self.low < self.high:
            raise ValueError(f"'{self.name}': the range must rise (got {self.low}..{self.high})")
        if self.log and self.low <= 0:
            raise ValueError(f"'{self.name}': a logarithmic range must be above 0 (got {self.low}..{self.high})")

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def suggest(self, trial: Any) -> Any:
        """A value, from an Optuna trial."""
        if self.choices is not None:
            return self.choices[trial.suggest_categorical(self.name, range(len(self.choices)))]
        draw = trial.suggest_int if self.whole else trial.suggest_float
        return draw(self.name, self.low, self.high, log=self.log)


def parse_dimension(text: str) -> Dimension:
    """``lr=1e-4..1e-2:log``, ``phi_every=1..8`` or ``hidden_channels=64,128``.

    Raises:
        ValueError: If it is none of these.
    """
    name, equals, values = text.partition('=')
    name = name.strip().removeprefix('--').replace('-', '_')
    if not equals or not name or not values:
        raise ValueError(
            f"'--vary' takes NAME=A,B,C for choices or NAME=LOW..HIGH for a range, :log for a logarithmic one (got "
            f"'{text}'), e.g. --vary lr=1e-4..1e-2:log"
        )
    if '..' in values:
        body, colon, scale = values.partition(':')
        low, _, high = body.partition('..')
        if scale not in ('', 'log'):
            raise ValueError(f"'--vary {text}': expected ':log' or nothing after the range (got ':{scale}')")
        bounds = [_value(low), _value(high)]
        if not all(isinstance(b, int | float) and not isinstance(b, bool) for b in bounds):
            raise ValueError(f"'--vary {text}': the bounds of a range must be numbers (got '{body}')")
        return Dimension(name, None, bounds[0], bounds[1], bool(colon))
    return Dimension(name, tuple(_value(part) for part in values.split(',')))


def _value(text: str) -> Any:
    """A number, a truth value, or the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {'true': True, 'false': False, 'none': None}.get(text.strip().lower(), text.strip())


@dataclass(frozen=True)
class Sweep:
    """What to search, and how.

    Args:
        scenario: A scenario, or ``package.module:Name``.
        algo: An algorithm, or ``package.module:Name``.
        preset: The options to start from.
        options: Other options of every trial.
        space: The options to vary.
        sampler: ``'grid'`` (all combinations of choices), ``'random'`` or ``'tpe'`` (learns from earlier trials).
        trials: How many; unused with ``'grid'``.
        seeds: Runs of a trial; its value is their mean.
        metric: The final metric; ``None``: the primary one.
        lower_is_better: ``None``: as the scenario says of its primary metric.
        prune: Stop a trial early if it is worse than the median of the earlier ones at the same step.
        imports: Modules that register the scenario or the algorithm.
    """

    scenario: str
    algo: str
    preset: str
    options: tuple[tuple[str, Any], ...]
    space: tuple[Dimension, ...]
    sampler: str = 'tpe'
    trials: int = 20
    seeds: int = 1
    metric: str | None = None
    lower_is_better: bool | None = None
    prune: bool = False
    imports: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.space:
            raise ValueError('a sweep needs at least one option to vary, e.g. --vary lr=1e-4..1e-2:log (got none)')
        if self.sampler == 'grid' and any(d.choices is None for d in self.space):
            ranges = [d.name for d in self.space if d.choices is None]
            raise ValueError(f'the grid sampler needs choices, as NAME=A,B,C (got a range for {", ".join(ranges)})')
        for name, value in (('trials', self.trials), ('seeds', self.seeds)):
            if value < 1:
                raise ValueError(f"'--{name}' must be at least 1 (got {value})")

    @property
    def number_of_trials(self) -> int:
        """All combinations of a grid, else ``trials``."""
        return len(self.grid()) if self.sampler == 'grid' else self.trials

    def grid(self) -> list[dict[str, int]]:
        """All combinations, as numbers of the choices."""
        numbers = [range(len(d.choices or ())) for d in self.space]
        return [dict(zip([d.name for d in self.space], one, strict=True)) for one in itertools.product(*numbers)]

    def run(self, values: Mapping[str, Any], seed: int) -> Run:
        """One run of a trial."""
        method = tuple(sorted({**dict(self.options), **values}.items()))
        return Run(self.scenario, (), self.algo, self.preset, method, seed, self.imports)

    def goal(self) -> tuple[str, bool]:
        """The metric, and whether lower is better."""
        scenario = registry.scenario(self.scenario)
        metric = self.metric or scenario.primary_metric
        lower = scenario.lower_is_better and metric == scenario.primary_metric
        return metric, lower if self.lower_is_better is None else self.lower_is_better


def check(sweep: Sweep) -> None:
    """Raises a ``ValueError`` if an option is unknown, or a value at an end of its range is not allowed."""
    registry.import_modules(sweep.imports)
    for pick in (0, -1):
        values = {d.name: (d.choices[pick] if d.choices else (d.low, d.high)[pick]) for d in sweep.space}
        config_of(sweep.run(values, FIRST_SEED))


# the driver ----------------------------------------------------------------------------------------------------------


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
    open_study = _study_opener()
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
        best = _best(study, out)
        values = best.user_attrs['values']
        write_best(sweep, values, out / 'best.toml')
    return {'value': best.value, 'options': values, 'trial': best.number}


def _study_opener() -> Callable[[Sweep, Path], Any]:
    """The function that opens a study; raises an ``ImportError`` without Optuna."""
    try:
        import optuna
    except ImportError as error:
        raise ImportError("'ltos sweep' needs Optuna: install it with pip install 'ltos_pyg[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def open_study(sweep: Sweep, out: Path) -> Any:
        storage = optuna.storages.RDBStorage(
            f'sqlite:///{(out / STUDY).resolve()}', engine_kwargs={'connect_args': {'timeout': 60}}
        )
        early = optuna.pruners.MedianPruner(n_startup_trials=4) if sweep.prune else optuna.pruners.NopPruner()
        return optuna.create_study(
            storage=storage, study_name='sweep', load_if_exists=True, pruner=early,
            direction='minimize' if sweep.goal()[1] else 'maximize',
        )  # fmt: skip

    return open_study


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


def read_sweep(out: Path) -> Sweep:
    """The sweep of a folder."""
    plain = json.loads((out / 'sweep.json').read_text(encoding='utf-8'))
    space = [
        Dimension(**{**one, 'choices': None if one['choices'] is None else _tuples(one['choices'])})
        for one in plain['space']
    ]
    whole = {'options': _tuples(plain['options']), 'space': tuple(space), 'imports': tuple(plain['imports'])}
    return Sweep(**{**plain, **whole})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _queue_missing(study: Any, sweep: Sweep) -> None:
    """Queues the whole grid of a new sweep, and the trials that were interrupted, which keep their run folders."""
    if not study.trials and sweep.sampler == 'grid':
        for values in sweep.grid():
            study.enqueue_trial(values)
    resumed = {trial.user_attrs.get('resumes') for trial in study.trials}
    for trial in study.trials:
        if trial.state.name == 'RUNNING':
            study.tell(trial.number, state=trial.state.__class__.FAIL)
    for trial in study.trials:
        if trial.state.name == 'FAIL' and 'error' not in trial.user_attrs and trial.number not in resumed:
            folder = trial.user_attrs.get('folder', trial.number)
            study.enqueue_trial(trial.params, user_attrs={'resumes': trial.number, 'folder': folder})


def counted(trials: Sequence[Any]) -> list[Any]:
    """The trials that count: all but those that were interrupted."""
    return [t for t in trials if t.state.name != 'FAIL' or 'error' in t.user_attrs]


@contextmanager
def _processes(out: Path, jobs: int) -> Iterator[Callable[[], list[str | None]]]:
    """Worker processes here; yields a function that says of each ``None`` while it runs, ``''`` if it ended well, or
    what went wrong. They stop, and save, when this process ends, however it ends."""
    command = [sys.executable, '-m', 'ltos_pyg.experiments.sweep', str(out)]
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
    return None if code is None else '' if code == 0 else f'exit code {code}: {last_line(out / LOG)}'


@contextmanager
def _ray_workers(out: Path, jobs: int, ray: Any) -> Iterator[Callable[[], list[str | None]]]:
    """As :func:`_processes`, as tasks of a Ray cluster."""
    with ray.tasks(work, [str(out.resolve())] * jobs) as states:
        yield states


def _watch(study: Any, sweep: Sweep, states: Callable[[], list[str | None]], quiet: bool) -> None:
    """Shows the progress until all workers ended; raises a ``ValueError`` if one failed."""
    with tqdm(total=sweep.number_of_trials, desc='trials', unit=' trials', disable=quiet) as bar:
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


def write_best(sweep: Sweep, values: Mapping[str, Any], path: Path) -> None:
    """Writes a configuration for ``ltos train --config``."""
    lines = [f'scenario = {json.dumps(sweep.scenario)}', f'algo = {json.dumps(sweep.algo)}']
    lines += [f'preset = {json.dumps(sweep.preset)}', '', '[options]']
    options = {**dict(sweep.options), **values}
    lines += [f'{name} = {json.dumps(value)}' for name, value in options.items() if value is not None]
    atomic_write(path, lambda file: _put(file, '\n'.join(lines) + '\n'))


def write_table(study: Any, sweep: Sweep, path: Path) -> None:
    """Writes all trials that count as CSV, in their order."""
    out = io.StringIO()
    names = [dimension.name for dimension in sweep.space]
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow(['trial', 'state', sweep.goal()[0], *names])
    for trial in counted(study.trials):
        values = trial.user_attrs.get('values', {})
        writer.writerow([trial.number, trial.state.name.lower(), trial.value, *(values.get(name) for name in names)])
    atomic_write(path, lambda file: _put(file, out.getvalue()))


def _put(file: Any, text: str) -> None:
    file.write(text.encode())


# a worker ------------------------------------------------------------------------------------------------------------


def work(out: str) -> None:
    """Runs trials until there are enough."""
    folder = Path(out)
    sweep = read_sweep(folder)
    registry.import_modules(sweep.imports)
    study = _study_opener()(sweep, folder)
    while (trial := _next_trial(study, sweep, folder)) is not None:
        _run_trial(study, trial, sweep, folder)


def _next_trial(study: Any, sweep: Sweep, folder: Path) -> Any:
    """The next queued trial, else a new one, or ``None`` if there are enough. One worker at a time asks."""
    import optuna

    with hold_lock(folder / 'ask.lock', 'asks for a trial', wait=True):
        trials = study.get_trials(deepcopy=False)
        queued = any(trial.state.name == 'WAITING' for trial in trials)
        if not queued and len(counted(trials)) >= sweep.number_of_trials:
            return None
        samplers = {'tpe': optuna.samplers.TPESampler, 'random': optuna.samplers.RandomSampler}
        # Seeded by the trial's number: the same in each worker and after an interruption.
        study.sampler = samplers.get(sweep.sampler, optuna.samplers.RandomSampler)(seed=len(trials))
        trial = study.ask()
        values = {dimension.name: dimension.suggest(trial) for dimension in sweep.space}
        trial.set_user_attr('values', values)
        if 'folder' not in trial.user_attrs:
            trial.set_user_attr('folder', trial.number)
        return trial


def _run_trial(study: Any, trial: Any, sweep: Sweep, folder: Path) -> None:
    """Trains the runs of a trial, and tells the study the mean of their final results."""
    import optuna

    state = optuna.trial.TrialState
    metric, _ = sweep.goal()
    scores = []
    try:
        for seed in range(FIRST_SEED, FIRST_SEED + sweep.seeds):
            run = sweep.run(trial.user_attrs['values'], seed)
            path = folder / f'trial{trial.user_attrs["folder"]:04d}-seed{seed}'
            pruning = PruneTrial(trial, metric) if sweep.prune and seed == FIRST_SEED else None
            scores.append(_train(run, path, pruning)[metric]['mean'])
            if pruning is not None and pruning.pruned:
                study.tell(trial, state=state.PRUNED)
                return
    except Interrupted:
        study.tell(trial, state=state.FAIL)  # without an error: it is resumed by the next call
        raise
    except Exception as error:
        trial.set_user_attr('error', f'{type(error).__name__}: {error}')
        study.tell(trial, state=state.FAIL)
        return
    study.tell(trial, float(np.mean(scores)))


def _train(run: Run, folder: Path, pruning: PruneTrial | None) -> Mapping[str, Any]:
    """Trains or resumes one run; returns its final evaluation."""
    here = RunFolder(folder)
    while here.is_locked:  # by a worker that outlived its driver
        time.sleep(POLL)
    trained = train(
        run.scenario, run.algo, seed=run.seed, out=folder, preset=run.preset, label=run.label,
        resume=here.holds_run, callbacks=[] if pruning is None else [pruning], media=False, **run.options,
    )  # fmt: skip
    evaluation: Mapping[str, Any] = trained.result['eval']['policy']
    return evaluation


class PruneTrial(Callback):
    """Reports each evaluation to Optuna, and stops the run if the pruner says so."""

    def __init__(self, trial: Any, metric: str) -> None:
        self.trial, self.metric, self.pruned = trial, metric, False

    def on_evaluation(self, trainer: Trainer, metrics: Metrics) -> None:
        self.trial.report(metrics[f'eval/{self.metric}'], trainer.algorithm.env_steps)
        if trainer.algorithm.env_steps > 0 and self.trial.should_prune():
            self.pruned = True
            trainer.stop('pruned: worse than the median of the earlier trials')

    def state_dict(self) -> dict[str, Any]:
        return {'pruned': self.pruned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pruned = state['pruned']


def _stop_with_driver() -> None:
    """Stops this process, as SIGTERM does, once the driver is gone: its end of the pipe closes."""

    def watch() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock would be held when the process exits
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == '__main__':
    _stop_with_driver()
    try:
        work(sys.argv[1])
    except Interrupted:
        sys.exit(130)
