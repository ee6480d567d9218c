"""Zero-shot tables: the trained runs of an experiment, evaluated in settings that they were not trained in."""

from __future__ import annotations

import csv
import dataclasses
import io
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltos_pyg.experiments.experiment import Experiment, Run
from ltos_pyg.experiments.processes import start
from ltos_pyg.experiments.report import Cells, Result, seeds_of, with_interval
from ltos_pyg.experiments.runner import LOG, Failure, at_once, config_of, join_or_stop, why_failed
from ltos_pyg.progress import Progress
from ltos_pyg.ranges import as_option
from ltos_pyg.training import api
from ltos_pyg.training.run_folder import RunFolder, provenance
from ltos_pyg.training.zero_shot import as_result, option_text, result_name, settings_of

EPISODES = 20  # in each setting, where episodes differ; else one of each task


def check_over(experiments: Sequence[Experiment]) -> None:
    """Raises a ``ValueError``, before anything is trained, if an option or a value of ``over`` cannot be."""
    for experiment in experiments:
        if (experiment.report == 'zero_shot') != bool(experiment.over):
            raise ValueError(f"'{experiment.name}': report = 'zero_shot' and 'over' go together (got one of them)")
        for option, values in experiment.over.items():
            if not isinstance(values, list | tuple):
                raise ValueError(f"'{experiment.name}': 'over' needs a list of values of '{option}' (got {values!r})")
            for setting in experiment.settings:
                config = config_of(experiment.run(setting, experiment.methods[0], experiment.first_seed))
                typed = [as_option(type(config.env), option, value) for value in values]
                settings_of(config, {option: typed}, lambda env, changes: dataclasses.replace(env, **changes))


def evaluate_missing(
    experiments: Sequence[Experiment], runs: Path, jobs: int = 1, quiet: bool = False
) -> list[Failure]:
    """Evaluates the finished runs of each experiment over the values of ``experiment.over``, as far as not done yet:
    ``jobs`` at once, each in a process with one thread.

    The results lie in the run folders, where ``ltos evaluate --over`` puts its own. Returns the evaluations that
    failed, such as of a run without a checkpoint (of an archive), or of a policy that cannot act in a setting.
    """
    failures = []
    missing = {
        (RunFolder(runs / name), option): values
        for (name, option), values in missing_values(experiments, runs).items()
        if RunFolder(runs / name).is_finished
    }

    def play(which: tuple[RunFolder, str], stop: threading.Event) -> str | None:
        return _play_alone(*which, missing[which], stop)

    with Progress(total=len(missing), desc='zero-shot', unit='', disable=quiet or not missing) as bar:
        for (folder, option), reason in at_once(play, missing, jobs):
            bar.update()
            if reason is not None:
                failures.append(Failure(f'{folder.path.name} over {option}', reason))
    return failures


def missing_values(experiments: Sequence[Experiment], runs: Path) -> dict[tuple[str, str], list[Any]]:
    """The values that are not stored yet, by the name of the run and option."""
    missing: dict[tuple[str, str], list[Any]] = {}
    for experiment in experiments:
        columns = _columns(experiment)
        for run in experiment.runs() if columns else ():
            for option, value in columns:
                values = missing.get((run.name, option), [])
                if value not in values and option_text(value) not in _stored(RunFolder(runs / run.name), option):
                    missing[run.name, option] = [*values, value]
    return missing


def _play_alone(folder: RunFolder, option: str, values: list[Any], stop: threading.Event) -> str | None:
    """:func:`_evaluate` in a process of its own; returns why it failed, or ``None``."""
    if not folder.store().steps():
        return (
            f"'{folder.path}' is finished and has no checkpoint, which it takes to play {option} = "
            f'{", ".join(map(option_text, values))}. Train it in another folder by --runs.'
        )
    if stop.is_set():
        return None
    log = folder.path / LOG
    before = log.stat().st_size if log.is_file() else 0
    process = start(_play, [folder, option, values], log)
    join_or_stop(process, stop)
    return None if process.exitcode == 0 else why_failed(process.exitcode, log, before)


def _play(folder: RunFolder, option: str, values: list[Any]) -> int:
    """In the process: plays, and prints why it cannot."""
    try:
        _evaluate(folder, option, values)
    except (ValueError, OSError) as error:
        print(error)
        return 1
    return 0


def _evaluate(folder: RunFolder, option: str, values: list[Any]) -> None:
    """Plays a run with other values of an option, and stores the results beside those of other values."""
    run = api.Run(folder.path)
    episodes = EPISODES if run.policy.spec.num_tasks is None else None
    over: dict[str, Any] = {option: values}
    settings = run.evaluate_over(episodes, **over)
    result = as_result(run.config, settings, {}, episodes, api.SEED) | provenance()
    name = result_name([option], [f'episodes={episodes}'] if episodes else [])
    played = [setting['options'] for setting in result['settings']]  # by this process, and perhaps by another, too
    for stored in [one for one in folder.zero_shot(name) if _answers(one, option)]:
        others = [setting for setting in stored['settings'] if setting['options'] not in played]
        result['settings'] = [*others, *result['settings']]
    folder.write_zero_shot(name, result)


def zero_shot_table(experiment: Experiment, results: Sequence[Result], runs: Path) -> Cells:
    """One row per method: the interquartile mean (IQM) over seeds with its 95 % bootstrap interval, as trained and with
    each other value. If some seeds lack a value, the cell says how many have it."""
    columns = _columns(experiment)
    metrics = ' or '.join(dict.fromkeys(one.metric for one in results))
    header = ['trained by', 'seeds', f'{metrics}, as trained']
    rows = [[*header, *(f'{name} = {option_text(value)}' for name, value in columns)]]
    for one in results:
        label = one.method.label if len(experiment.settings) == 1 else f'{one.method.label}, {one.setting.label}'
        values = [[_mean_of(one.metric, runs, run, *column) for run in one.runs] for column in columns]
        known = [np.array([v for v in row if v is not None], float) for row in values]
        cells = [with_interval(of) + _few(len(of), len(one.runs)) for of in [one.values, *known]]
        rows.append([label, seeds_of(one), *cells])
    return rows


def _few(number: int, seeds: int) -> str:
    return f' ({number} of {seeds} seeds)' if 0 < number < seeds else ''


def zero_shot_csv(experiment: Experiment, results: Sequence[Result], runs: Path) -> str:
    """A line for each run and value, with all digits."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow(['setting', 'method', 'seed', 'option', 'set_to', 'metric', 'value', 'run'])
    columns = _columns(experiment)
    for one in results:
        for run, trained in zip(one.runs, one.values.tolist(), strict=True):
            values = [(name, v, _mean_of(one.metric, runs, run, name, v)) for name, v in columns]
            for name, value, mean in [('', '', trained), *values]:
                if mean is not None:
                    where = [one.setting.label, one.method.label, run.seed]
                    writer.writerow([*where, name, option_text(value), one.metric, mean, run.name])
    return out.getvalue()


def _columns(experiment: Experiment) -> list[tuple[str, Any]]:
    """The options with their values, each as results hold it: 10 for 1e1, if the option is a whole number."""
    if not experiment.over:
        return []
    env = type(config_of(experiment.run(experiment.settings[0], experiment.methods[0], experiment.first_seed)).env)
    return [(option, as_option(env, option, value)) for option, values in experiment.over.items() for value in values]


def _mean_of(metric: str, runs: Path, run: Run, option: str, value: Any) -> float | None:
    """The stored mean of a metric with the option set to this value; ``None`` if it was not played, or has none."""
    stored = _stored(RunFolder(runs / run.name), option).get(option_text(value), {})
    return float(stored[metric]['mean']) if metric in stored else None


def _stored(folder: RunFolder, option: str) -> dict[str, Any]:
    """What is stored of a run with other values of an option, by the value's text."""
    answers = [result for result in folder.zero_shot() if _answers(result, option)]
    return {option_text(s['options'][option]): s['eval'] for result in answers for s in result['settings']}


def _answers(result: Mapping[str, Any], option: str) -> bool:
    """Whether a stored evaluation varies this option alone, with our number of episodes and seed. Where there are
    tasks, 20 episodes, which earlier versions played, are as good as one of each."""
    right_number = result['episodes'] in (EPISODES, None)  # None: one of each task
    alike = not result['env'] and 'temperature' not in result and result['eval_seed'] == api.SEED
    return alike and right_number and all([*s['options']] == [option] for s in result['settings'])
