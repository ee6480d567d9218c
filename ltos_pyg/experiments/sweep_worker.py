"""A process of ``ltos sweep``: takes trials from the study and trains their runs until there are enough."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ltos_pyg import registry
from ltos_pyg.experiments.experiment import Run
from ltos_pyg.experiments.runner import POLL
from ltos_pyg.experiments.search_space import FIRST_SEED, Sweep, read_sweep
from ltos_pyg.training.api import train
from ltos_pyg.training.callbacks import Callback, Metrics
from ltos_pyg.training.lock_file import hold_lock
from ltos_pyg.training.run_folder import RunFolder
from ltos_pyg.training.trainer import Interrupted

if TYPE_CHECKING:
    from ltos_pyg.training.trainer import Trainer

STUDY = 'study.db'
PRUNED = 'pruned: worse than the median of the earlier trials'


def import_optuna() -> Any:
    """Optuna, without its log; raises an ``ImportError`` that names the extra if it is missing."""
    try:
        import optuna
    except ImportError as error:
        raise ImportError("'ltos sweep' needs Optuna: install it with pip install 'ltos_pyg[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def open_study(sweep: Sweep, out: Path) -> Any:
    """The study of a folder; it is created if there is none."""
    optuna = import_optuna()
    from sqlalchemy import URL  # what Optuna stores by

    url = URL.create('sqlite', database=str((out / STUDY).resolve()))  # escapes what means something in a URL
    storage = optuna.storages.RDBStorage(
        url.render_as_string(hide_password=False), engine_kwargs={'connect_args': {'timeout': 60}}
    )
    early = optuna.pruners.MedianPruner(n_startup_trials=4) if sweep.prune else optuna.pruners.NopPruner()
    return optuna.create_study(
        storage=storage, study_name='sweep', load_if_exists=True, pruner=early,
        direction='minimize' if sweep.goal()[1] else 'maximize',
    )  # fmt: skip


def counted(trials: Sequence[Any]) -> list[Any]:
    """The trials that count: all but those that were interrupted."""
    return [t for t in trials if t.state.name != 'FAIL' or 'error' in t.user_attrs]


def work(out: str) -> None:
    """Runs trials until there are enough."""
    folder = Path(out)
    sweep = read_sweep(folder)
    registry.import_modules(sweep.imports)
    study = open_study(sweep, folder)
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
        # Seeded by the number of trials that count: the same in each worker and after an interruption.
        study.sampler = samplers.get(sweep.sampler, optuna.samplers.RandomSampler)(seed=len(counted(trials)))
        trial = study.ask()
        values = {dimension.name: dimension.suggest(trial) for dimension in sweep.space}
        trial.set_user_attr('values', values)
        if 'folder' not in trial.user_attrs:
            trial.set_user_attr('folder', trial.number)
        return trial


def _run_trial(study: Any, trial: Any, sweep: Sweep, folder: Path) -> None:
    """Trains the runs of a trial, and reports the mean of their final results to the study."""
    import optuna

    state = optuna.trial.TrialState
    metric, _ = sweep.goal()
    scores = []
    resumes = trial.user_attrs.get('resumes')
    earlier = {} if resumes is None else study.get_trials(deepcopy=False)[resumes].intermediate_values
    try:
        for seed in range(FIRST_SEED, FIRST_SEED + sweep.seeds):
            run = sweep.run(trial.user_attrs['values'], seed)
            path = folder / f'trial{trial.user_attrs["folder"]:04d}-seed{seed}'
            pruning = [PruneTrial(trial, metric, earlier)] if sweep.prune and seed == FIRST_SEED else []
            result = _train(run, path, [CheckMetric(metric), *pruning])
            if result.get('stopped') == PRUNED:
                study.tell(trial, state=state.PRUNED)
                return
            scores.append(result['eval']['policy'][metric]['mean'])
        score = float(np.mean(scores))
        if np.isnan(score):
            raise ValueError(f"the final '{metric}' is not a number")
    except Interrupted:
        study.tell(trial, state=state.FAIL)  # without an error: it is resumed by the next call
        raise
    except Exception as error:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise  # such as a full disk, on which all other trials would fail too; the next call resumes this one
        trial.set_user_attr('error', f'{type(error).__name__}: {error}')
        study.tell(trial, state=state.FAIL)
        return
    study.tell(trial, score)


def _train(run: Run, folder: Path, callbacks: Sequence[Callback]) -> Mapping[str, Any]:
    """Trains or resumes one run; returns its result."""
    here = RunFolder(folder)
    while here.is_locked:  # by a worker that outlived its driver
        time.sleep(POLL)
    trained = train(
        run.scenario, run.algo, seed=run.seed, out=folder, preset=run.preset, label=run.label,
        resume=here.holds_run, callbacks=callbacks, media=False, **run.options,
    )  # fmt: skip
    return trained.result


class CheckMetric(Callback):
    """Raises at the first evaluation if it does not have the metric that the sweep compares."""

    def __init__(self, metric: str) -> None:
        self.metric = metric

    def on_evaluation(self, trainer: Trainer, metrics: Metrics) -> None:
        if f'eval/{self.metric}' not in metrics:
            no_result = ('eval/episodes',)  # a count, which the final evaluation does not have
            known = sorted(
                name.removeprefix('eval/') for name in metrics if not name.endswith('_std') and name not in no_result
            )
            raise ValueError(f"'--metric' must be one of {', '.join(known)} (got '{self.metric}')")


class PruneTrial(Callback):
    """Reports each evaluation to Optuna, and stops the run if the pruner says so.

    Args:
        trial: The trial.
        metric: What it reports.
        earlier: What the trial that it resumes has reported, by step.
    """

    def __init__(self, trial: Any, metric: str, earlier: Mapping[int, float] | None = None) -> None:
        self.trial, self.metric, self.earlier = trial, metric, dict(earlier or {})
        for step, value in self.earlier.items():
            trial.report(value, step)

    def on_evaluation(self, trainer: Trainer, metrics: Metrics) -> None:
        if trainer.algorithm.env_steps not in self.earlier:  # else it is the same again
            self.trial.report(metrics[f'eval/{self.metric}'], trainer.algorithm.env_steps)
        if trainer.algorithm.env_steps > 0 and self.trial.should_prune():
            trainer.stop(PRUNED)


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
