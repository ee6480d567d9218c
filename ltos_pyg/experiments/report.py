"""Tables and figures of an experiment, from the run folders alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ltos_pyg import registry
from ltos_pyg.experiments.experiment import Experiment, Method, Run, Setting
from ltos_pyg.experiments.runner import config_of
from ltos_pyg.experiments.statistics import (
    Array,
    bootstrap_interval,
    improvement_interval,
    iqm,
    probability_of_improvement,
)
from ltos_pyg.formatting import rounded
from ltos_pyg.training.config import RunConfig
from ltos_pyg.training.evaluate import act_once, final_episodes, metric_names
from ltos_pyg.training.metrics import MEASURES, OWN_METRICS, SWITCHED, is_own, less_is_better
from ltos_pyg.training.run import make_algorithm, on_device, without_replay
from ltos_pyg.training.run_folder import RunFolder

Cells = list[list[str]]  # rows of a table, the header first


@dataclass(frozen=True)
class Result:
    """The final results of one method in one setting."""

    method: Method
    setting: Setting
    metric: str
    lower_is_better: bool
    runs: tuple[Run, ...]  # those that finished, by seed
    ends: tuple[Mapping[str, Any], ...]  # their final.json
    late: tuple[tuple[float, ...], ...]  # the metric at their evaluations in the second half of training
    planned: int

    @property
    def values(self) -> Array:
        """(n,) the metric of each seed."""
        return np.array([end['eval']['policy'][self.metric]['mean'] for end in self.ends], float)


def results_of(experiment: Experiment, folder: Path) -> list[Result]:
    """The results of every method in every setting, as far as runs are finished.

    Raises:
        ValueError: If a run lacks the metric, or its ``final.json`` is damaged.
    """
    found = []
    for method in experiment.methods:
        for setting in experiment.settings:
            scenario = registry.scenario(setting.scenario)
            metric = setting.metric or experiment.metric or scenario.primary_metric
            runs = experiment.runs_of(setting, method)
            done = [run for run in runs if RunFolder(folder / run.name).is_finished]
            ends = [RunFolder(folder / run.name).final() for run in done]
            for run, end in zip(done, ends, strict=True):
                known = end['eval']['policy']
                if metric not in known:
                    raise ValueError(
                        f"'{folder / run.name}' has no metric '{metric}'. Choose from: {', '.join(sorted(known))}"
                    )
            lower = experiment.lower_is_better
            if lower is None:
                lower = less_is_better(metric, scenario.primary_metric, scenario.lower_is_better)
            late = tuple(_second_half(RunFolder(folder / run.name), metric) for run in done)
            found.append(Result(method, setting, metric, lower, tuple(done), tuple(ends), late, len(runs)))
    return found


def _second_half(run: RunFolder, metric: str) -> tuple[float, ...]:
    """A metric at the evaluations from half of a run's training on."""
    rows = [row for row in run.metrics() if f'eval/{metric}' in row]
    last = max((row['step'] for row in rows), default=0)
    late = [row[f'eval/{metric}'] for row in rows if 2 * row['step'] >= last]
    return tuple(float('nan') if value is None else value for value in late)


def check_metric(experiment: Experiment, setting: Setting) -> None:
    """Raises a ``ValueError`` if a setting does not have the metric that the experiment names for it.

    The environment's metrics are found by playing an episode with random actions. A metric of sharing weights is
    refused if one of the methods has no sharing weights.
    """
    metric = setting.metric or experiment.metric
    if metric is None:
        return
    if is_own(metric):
        always = [name for name in OWN_METRICS if name not in MEASURES]
        for method in experiment.methods if metric not in always else ():
            shares = sharing_metrics(config_of(experiment.run(setting, method, experiment.first_seed)))
            if experiment.report not in ('line', 'sharing'):  # curves: only the final evaluation has the others
                shares = [name for name in shares if name in MEASURES]
            if metric not in shares:
                raise ValueError(
                    f"'{experiment.name}': report '{experiment.report}' has no metric '{metric}' of method "
                    f"'{method.label}' in setting '{setting.label}'. Choose from: {', '.join([*always, *shares])}, and "
                    f'those of the environment'
                )
        return
    config = config_of(experiment.run(setting, experiment.methods[0], experiment.first_seed))
    with closing(registry.scenario(setting.scenario).make_env(config)(1)) as env:
        known = metric_names(env)
    if known is not None and metric not in known:
        raise ValueError(
            f"'{experiment.name}': unknown metric '{metric}' of setting '{setting.label}'. Choose from: "
            f'{", ".join([*known, *MEASURES])}'
        )


def sharing_metrics(config: RunConfig) -> list[str]:
    """The metrics of sharing weights in the final evaluation of a run; none if its algorithm does not share."""
    config = on_device(config, 'cpu')  # the runs may be trained elsewhere
    with closing(registry.scenario(config.scenario).make_env(config)(1)) as env:
        algorithm: Any = make_algorithm(without_replay(config, env.spec), env.spec)
        if act_once(algorithm, env, config.train.seed).sharing is None:
            return []
        others = getattr(algorithm, 'sharing_modes', ())[1:]
        played = final_episodes(config.train.final_episodes, config.total_steps, env.spec.horizon, len(others))[1]
    return [*MEASURES, *(SWITCHED + mode for mode in others if played > 0)]


# tables --------------------------------------------------------------------------------------------------------------


def main_table(experiment: Experiment, results: Sequence[Result]) -> Cells:
    """One row per method; for each setting the interquartile mean (IQM) with its 95 % bootstrap interval, the seeds,
    and the paper's number."""
    with_paper = [s for s in experiment.settings if any(s.label in row for row in experiment.paper.values())]
    header = ['method']
    for setting in experiment.settings:
        metric = next(r.metric for r in results if r.setting is setting)
        header += [f'{setting.label}: {metric}', 'seeds', *(['paper'] if setting in with_paper else [])]
    rows = [header]
    for method in experiment.methods:
        row = [method.label]
        for setting in experiment.settings:
            one = next(r for r in results if r.method is method and r.setting is setting)
            row += [with_interval(one.values), seeds_of(one)]
            if setting in with_paper:
                number = experiment.paper.get(method.label, {}).get(setting.label)
                row.append('' if number is None else f'{number:g}')
        rows.append(row)
    return rows


def sharing_table(results: Sequence[Result]) -> Cells:
    """One row per method and setting: the result, the mean and the worst evaluation in the second half of training, the
    measures of the weights, and for each of the other weights the fraction of actions that they change and the result
    under them."""
    swaps = ('constant', 'uniform', 'keep', 'random')
    measures = {'kept': 'kept', 'sd states': 'kept_std_states', 'sd nodes': 'kept_std_nodes', 'uneven': 'uneven'}
    several = len({one.setting.label for one in results}) > 1
    metrics = ' or '.join(dict.fromkeys(one.metric for one in results))
    changed = f'actions changed by {", ".join(swaps)}'
    has_phi = any('phi' in end['eval'] for one in results for end in one.ends)  # the policy on the others' episodes
    modes = (*(['phi'] if has_phi else []), *swaps)
    header = ['trained with', 'seeds', metrics, 'each', 'second half: mean, worst', *measures, changed]
    rows = [[*header, *(f'played with {mode}' for mode in modes)]]
    for one in results:
        each = ' '.join(rounded(*one.values))
        shares = [_mean(one, 'policy', name) for name in measures.values()]
        switched = ' '.join(_mean(one, 'policy', f'switched_{mode}') for mode in swaps).strip()
        swapped = [_mean(one, mode, one.metric) for mode in modes]
        label = f'{one.method.label}, {one.setting.label}' if several else one.method.label
        rows.append([label, seeds_of(one), with_interval(one.values), each, _late(one), *shares, switched, *swapped])
    return rows


def improvement_table(results: Sequence[Result], compared: str | None = None) -> Cells:
    """The probability that a run of one method, by default the first, is better than one of each other, over the
    settings in which both have results."""
    by_method: dict[str, dict[str, Result]] = {}
    for one in results:
        by_method.setdefault(one.method.label, {})[one.setting.label] = one
    label = compared or next(iter(by_method))
    mine = by_method.pop(label)
    rows = [['other method', f'P({label} is better)']]
    for other, theirs in by_method.items():
        pairs = [(a, theirs[setting]) for setting, a in mine.items() if setting in theirs]
        if pairs:
            x, y = [
                [-one.values if one.lower_is_better else one.values for one in side]
                for side in zip(*pairs, strict=True)
            ]
            low, high = improvement_interval(x, y)
            rows.append([other, f'{probability_of_improvement(x, y):.2f} [{low:.2f}, {high:.2f}]'])
    return rows


def with_seeds(results: Sequence[Result], least: int) -> tuple[list[Result], list[str]]:
    """Splits results by their number of runs: those of at least ``least`` runs, and the names of those of fewer. A name
    is the method, and if there are several settings also the setting. Results without any run are in neither."""
    several = len({one.setting.label for one in results}) > 1
    few = [one for one in results if 0 < len(one.ends) < least]
    names = [f'{one.method.label} in {one.setting.label}' if several else one.method.label for one in few]
    return [one for one in results if len(one.ends) >= least], names


def _late(one: Result) -> str:
    """The mean and the worst of the evaluations in the second half of training, over all seeds."""
    values = [value for run in one.late for value in run]
    worst = np.max if one.lower_is_better else np.min  # NaN if any is
    return ', '.join(rounded(float(np.mean(values)), float(worst(values)))) if values else ''


def _mean(one: Result, mode: str, metric: str) -> str:
    ends = [end['eval'][mode] for end in one.ends if mode in end['eval']]
    values = [end[metric]['mean'] for end in ends if metric in end]
    return rounded(float(np.mean(values)))[0] if values else ''


def with_interval(values: Array) -> str:
    """IQM with its 95 % bootstrap interval; of one value just that."""
    if len(values) < 2:
        return rounded(*values)[0] if len(values) else 'not run'
    middle, low, high = rounded(iqm(values), *bootstrap_interval(values))
    return f'{middle} [{low}, {high}]'


def seeds_of(one: Result) -> str:
    """Number of finished seeds; if some are missing, ``'n of m'``."""
    return str(len(one.ends)) if len(one.ends) == one.planned else f'{len(one.ends)} of {one.planned}'


def latex(cells: Cells) -> str:
    """A LaTeX table; needs the package booktabs."""
    lines = [' & '.join(map(_escaped, line)) + r' \\' for line in cells]
    columns = 'l' + 'r' * (len(cells[0]) - 1)
    body = [r'\toprule', lines[0], r'\midrule', *lines[1:], r'\bottomrule']
    return '\n'.join([rf'\begin{{tabular}}{{{columns}}}', *body, r'\end{tabular}']) + '\n'


_ESCAPES = {ord(sign): f'\\{sign}' for sign in '&%_#${}'} | {
    ord('\\'): r'\textbackslash{}', ord('~'): r'\textasciitilde{}', ord('^'): r'\textasciicircum{}'
}  # fmt: skip


def _escaped(text: str) -> str:
    escaped = text.translate(_ESCAPES)
    # after \\ or \midrule, [ would start an argument, and * a variant
    return f'{{{escaped[0]}}}{escaped[1:]}' if escaped.startswith(('[', '*')) else escaped


def csv_of(results: Sequence[Result]) -> str:
    """One line per run, with all digits: setting, method, seed, metric, value, and the name of the run folder."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow(['setting', 'method', 'seed', 'metric', 'value', 'run'])
    for one in results:
        for run, value in zip(one.runs, one.values.tolist(), strict=True):
            writer.writerow([one.setting.label, one.method.label, run.seed, one.metric, value, run.name])
    return out.getvalue()


def marl_eval(results: Sequence[Result], folder: Path) -> dict[str, Any]:
    """The evaluations of all runs as `marl-eval <https://github.com/instadeepai/marl-eval>`_ reads them."""
    data: dict[str, Any] = {}
    for one in results:
        task = data.setdefault(one.setting.scenario, {}).setdefault(one.setting.label, {})
        for run, end in zip(one.runs, one.ends, strict=True):
            rows = [row for row in RunFolder(folder / run.name).metrics() if f'eval/{one.metric}' in row]
            steps: dict[str, Any] = {
                f'step_{i}': {'step_count': row['step'], one.metric: [row[f'eval/{one.metric}']]}
                for i, row in enumerate(rows)
            }
            last = {one.metric: [end['eval']['policy'][one.metric]['mean']]}
            task.setdefault(one.method.label, {})[f'seed_{run.seed}'] = steps | {'absolute_metrics': last}
    return data


def table_of(experiment: Experiment, results: Sequence[Result]) -> Cells:
    """The table of an experiment."""
    return sharing_table(results) if experiment.report == 'sharing' else main_table(experiment, results)
