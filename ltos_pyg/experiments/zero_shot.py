"""Zero-shot tables: the trained runs of an experiment, evaluated in settings that they were not trained in."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltos_pyg.experiments.experiment import Experiment, Run
from ltos_pyg.experiments.report import Cells, Result, seeds_of, with_interval
from ltos_pyg.experiments.runner import config_of
from ltos_pyg.progress import Progress
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
                settings_of(config, {option: values}, lambda env, changes: dataclasses.replace(env, **changes))


def evaluate_missing(experiments: Sequence[Experiment], runs: Path, quiet: bool = False) -> None:
    """Evaluates the finished runs of each experiment over the values of ``experiment.over``, as far as not done yet.

    The results lie in the run folders, where ``ltos evaluate --over`` puts them too. Runs without a checkpoint (of an
    archive) are left as they are.
    """
    jobs = {
        (run.name, option): values
        for experiment in experiments
        for run in experiment.runs()
        for option, values in experiment.over.items()
        if RunFolder(runs / run.name).is_finished and _stored(runs, run, option, values) is None
    }
    jobs = {(name, option): values for (name, option), values in jobs.items() if RunFolder(runs / name).store().steps()}
    with Progress(jobs.items(), desc='zero-shot', unit='', disable=quiet or not jobs, dynamic_ncols=True) as bar:
        for (name, option), values in bar:
            bar.set_postfix_str(f'{name} over {option}')
            run = api.Run(runs / name)
            over: dict[str, Any] = {option: list(values)}
            episodes = EPISODES if run.policy.spec.num_tasks is None else None
            settings = run.evaluate_over(episodes, **over)
            result = as_result(run.config, settings, {}, episodes, api.SEED) | provenance()
            RunFolder(runs / name).write_zero_shot(result_name([option], []), result)


def zero_shot_table(experiment: Experiment, results: Sequence[Result], runs: Path) -> Cells:
    """A row a method: the IQM over seeds with its 95 % bootstrap interval, as trained and with each other value."""
    columns = list(_columns(experiment))
    header = ['trained by', 'seeds', f'{results[0].metric}, as trained']
    rows = [[*header, *(f'{name} = {option_text(value)}' for name, value in columns)]]
    for one in results:
        label = one.method.label if len(experiment.settings) == 1 else f'{one.method.label}, {one.setting.label}'
        values = [[_mean_of(one.metric, runs, run, *column) for run in one.runs] for column in columns]
        known = [np.array([v for v in row if v is not None], float) for row in values]
        rows.append([label, seeds_of(one), *map(with_interval, [one.values, *known])])
    return rows


def zero_shot_csv(experiment: Experiment, results: Sequence[Result], runs: Path) -> str:
    """A line for each run and value, with all digits."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow(['setting', 'method', 'seed', 'option', 'set_to', 'metric', 'value', 'run'])
    for one in results:
        for run, trained in zip(one.runs, one.values.tolist(), strict=True):
            values = [(name, v, _mean_of(one.metric, runs, run, name, v)) for name, v in _columns(experiment)]
            for name, value, mean in [('', '', trained), *values]:
                if mean is not None:
                    where = [one.setting.label, one.method.label, run.seed]
                    writer.writerow([*where, name, option_text(value), one.metric, mean, run.name])
    return out.getvalue()


def _columns(experiment: Experiment) -> Iterator[tuple[str, Any]]:
    return ((option, value) for option, values in experiment.over.items() for value in values)


def _mean_of(metric: str, runs: Path, run: Run, option: str, value: Any) -> float | None:
    """The stored mean of a metric with the option set to this value."""
    stored = _stored(runs, run, option, [value])
    return None if stored is None else float(stored[option_text(value)][metric]['mean'])


def _stored(runs: Path, run: Run, option: str, values: Sequence[Any]) -> dict[str, Any] | None:
    """What is stored of a run, by value; ``None`` if one of the values is missing. Where there are tasks, 20 episodes,
    which earlier versions played, are as good as one of each."""
    for result in RunFolder(runs / run.name).zero_shot():
        right_number = result['episodes'] in (EPISODES, None)  # None: one of each task
        if result['env'] or 'temperature' in result or not right_number or result['eval_seed'] != api.SEED:
            continue  # of another question
        settings = [s for s in result['settings'] if [*s['options']] == [option]]
        by_value = {option_text(s['options'][option]): s['eval'] for s in settings}
        if all(option_text(value) in by_value for value in values):
            return by_value
    return None
