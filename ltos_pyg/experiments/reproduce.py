"""Trains what an experiment lacks, and writes its tables and figures."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltos_pyg import __version__
from ltos_pyg.experiments import figures
from ltos_pyg.experiments.experiment import Experiment
from ltos_pyg.experiments.report import (
    Result,
    csv_of,
    improvement_table,
    latex,
    marl_eval,
    results_of,
    table_of,
    with_seeds,
)
from ltos_pyg.experiments.runner import Backend, Failure, Planned, ThisMachine, one_driver, plan, train_missing
from ltos_pyg.experiments.tables import markdown
from ltos_pyg.experiments.zero_shot import EPISODES, check_over, evaluate_missing, zero_shot_csv, zero_shot_table
from ltos_pyg.formatting import finite, shortened
from ltos_pyg.training.atomic import write_text
from ltos_pyg.training.run_folder import RunFolder, provenance, write_json

IMPROVEMENT_FROM = 2  # fewest runs of a method with which a probability of improvement has an interval
NEED_CHECKPOINTS = ('zero_shot', 'behaviour', 'selfishness')  # reports that play trained policies
PROFILES_FROM = 4  # fewest runs of a method with which a performance profile is informative
USUAL_FILES = (
    'table.md', 'table.tex', 'table.csv', 'marl_eval.json', 'about.json', 'figure.png', 'figure.svg', 'profile.png',
    'profile.svg', 'panel.png',
)  # fmt: skip


def reproduce(
    experiments: Sequence[Experiment], runs: Path, out: Path, backend: Backend, quiet: bool = False
) -> list[Failure]:
    """Trains the missing runs of all experiments, then writes the report of each into ``out/NAME``.

    Finished runs are reused and interrupted ones resumed, so the same call after an interruption ends in the same
    tables. Returns the runs that failed, without which the reports are written, and the experiments without a report.

    Args:
        experiments: What to make.
        runs: Folder of the run folders.
        out: Folder of the reports.
        backend: Where to train.
        quiet: No progress bar.

    Raises:
        ValueError: If an option is wrong, two experiments have one name, or another driver trains runs in ``runs``.
    """
    planned = plan_all(experiments, runs)
    with one_driver(runs):
        _check_checkpoints(experiments, runs, backend)
        failures = train_missing(planned, backend, quiet)
        failures += evaluate_missing(experiments, runs, backend.jobs if isinstance(backend, ThisMachine) else 1, quiet)
    return failures + write_reports(experiments, runs, out)


def _check_checkpoints(experiments: Sequence[Experiment], runs: Path, backend: Backend) -> None:
    """Raises a ``ValueError`` if the report of an experiment needs checkpoints and its runs would not leave any."""
    for one in experiments:
        unfinished = any(not RunFolder(runs / run.name).is_finished for run in one.runs())
        if one.report in NEED_CHECKPOINTS and unfinished and not backend.leaves_checkpoints(runs):
            raise ValueError(
                f"the report of '{one.name}' plays trained policies, and needs '{runs}' to be a folder that all "
                f'machines of the cluster see (got one that some do not). Choose such a folder by --runs, or leave '
                f'out --ray.'
            )


def write_reports(experiments: Sequence[Experiment], runs: Path, out: Path) -> list[Failure]:
    """Writes the report of each experiment into ``out/NAME``; returns those that have none, or not all of it.

    Raises:
        ValueError: If two experiments have one name.
    """
    _check_names(experiments)
    failures = []
    for experiment in experiments:
        try:
            if not write_report(experiment, runs, out / experiment.name):
                failures.append(Failure(experiment.name, f"none of its runs is finished in '{runs}' (--runs)"))
        except FigureError as error:  # such as of a GIF, which takes a checkpoint
            failures.append(Failure(experiment.name, str(error), has_table=True))
        except ValueError as error:
            failures.append(Failure(experiment.name, str(error)))
    return failures


def plan_all(experiments: Sequence[Experiment], runs: Path) -> list[Planned]:
    """The runs of all experiments, each once.

    Raises:
        ValueError: If two experiments have one name, or as :func:`~ltos_pyg.experiments.zero_shot.check_over` and
            :func:`~ltos_pyg.experiments.runner.plan`.
    """
    _check_names(experiments)
    check_over(experiments)
    return plan((run for experiment in experiments for run in experiment.runs()), runs)


def _check_names(experiments: Sequence[Experiment]) -> None:
    """Raises a ``ValueError`` if the report of one experiment would replace that of another."""
    names = [experiment.name for experiment in experiments]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(
            f"two experiments have the name '{twice}', and one report would replace the other. Give a file of your own "
            f"another 'name', or make them one after the other with another --out."
        )


def check_archive(runs: Path, target: Path) -> None:
    """Raises a ``ValueError`` if the archive is the folder of the runs, whose metrics it would shorten."""
    if target.resolve() == runs.resolve():
        raise ValueError(f"'--archive' must be another folder than --runs, '{runs}' (got '{target}')")


def archive(experiments: Sequence[Experiment], runs: Path, target: Path) -> int:
    """Copies the small files of finished runs: options, evaluations and final results; returns the number of runs.

    Raises:
        ValueError: If ``target`` is the folder of the runs.
    """
    check_archive(runs, target)
    finished = {run.name for experiment in experiments for run in experiment.runs()}
    finished = {name for name in finished if RunFolder(runs / name).is_finished}
    for name in finished:
        RunFolder(runs / name).copy_results(target / name)
    return len(finished)


class FigureError(ValueError):
    """A figure cannot be drawn; the tables are written."""


def write_report(experiment: Experiment, runs: Path, out: Path) -> list[Path]:
    """Writes tables, figures and ``about.json``; returns their paths. Every file is complete or absent. Files of an
    earlier report that this one does not have are removed.

    Raises:
        ValueError: If a result is damaged, or lacks the metric.
        FigureError: If a figure cannot be drawn.
    """
    results = results_of(experiment, runs)
    done = [one for one in results if one.ends]
    if not done:
        return []
    out.mkdir(parents=True, exist_ok=True)
    before = files_of(out)
    zero_shot = experiment.report == 'zero_shot'
    cells = zero_shot_table(experiment, done, runs) if zero_shot else table_of(experiment, results)
    parts = [f'# {experiment.title}', experiment.text, markdown(cells), _how_to_read(experiment, results)]
    parts += _improvements(experiment, results)
    texts = {
        'table.md': '\n\n'.join(part.strip() for part in parts if part) + '\n',
        'table.tex': latex(cells),
        'table.csv': zero_shot_csv(experiment, done, runs) if zero_shot else csv_of(results),
    }
    written = [write_text(out / name, text) for name, text in texts.items()]
    trained_by = _trained_by(done, runs)
    _note_other_versions(experiment, trained_by)
    write_json(out / 'marl_eval.json', finite(marl_eval(results, runs)))
    written += [out / 'marl_eval.json', out / 'about.json']
    try:
        written += _figures(experiment, done, runs, out)
    except ImportError as error:
        print(f'ltos: no figures: {error}', file=sys.stderr)
    except ValueError as error:
        raise FigureError(str(error)) from error
    finally:
        files = [path.name for path in written]
        write_json(out / 'about.json', finite(_about(results) | {'trained_by': trained_by, 'files': files}))
        for name in before - {*files}:
            (out / name).unlink(missing_ok=True)
    return written


def files_of(out: Path) -> set[str]:
    """The names of the files of the report in a folder; of earlier versions, which did not note them, the usual
    ones."""
    try:
        files = json.loads((out / 'about.json').read_text(encoding='utf-8')).get('files', USUAL_FILES)
    except (OSError, ValueError):
        return set()
    return {name for name in files if (out / name).is_file()}


def _how_to_read(experiment: Experiment, results: Sequence[Result]) -> str:
    short = [one for one in results if len(one.ends) < one.planned]
    missing = ' Rows with "n of m" seeds are not finished.' if short else ''
    others = {
        'zero_shot': f' That is the column "as trained"; the others are over {EPISODES} episodes (one of each task, '
        'where there are tasks) of the trained policy in another setting.',
        'sharing': ' The column "second half" is over the evaluations of all seeds in the second half of training; '
        'those to the right of it are plain means over seeds.',
    }
    return (
        'Interquartile mean over seeds of the evaluation at the end of a run, with its 95 % bootstrap interval '
        'in brackets; an interval over fewer than five seeds is too narrow.'
        f'{others.get(experiment.report, "")}{missing}'
    )


def _improvements(experiment: Experiment, results: Sequence[Result]) -> list[str]:
    """The probability of improvement over each method, in settings with two seeds or more, and what is left out."""
    enough, few = with_seeds(results, IMPROVEMENT_FROM)
    compared = experiment.compared or experiment.methods[0].label
    if not enough or len(experiment.methods) == 1:
        return []
    if compared not in {one.method.label for one in enough}:
        return [f'No probability that a run of {compared} is better: it has fewer than {IMPROVEMENT_FROM} seeds.']
    cells = improvement_table(enough, compared)
    without = [f'It needs {IMPROVEMENT_FROM} seeds of a method: without {", ".join(few)}.'] if few else []
    if len(cells) == 1:
        return []
    where = ', as trained,' if experiment.report == 'zero_shot' else ','
    return [
        f'Probability that a run is better{where} with its 95 % bootstrap interval:',
        markdown(cells),
        *without,
    ]


def _about(results: Sequence[Result]) -> dict[str, Any]:
    """The command, the versions, and the hours that the runs took, on one core each."""
    seconds = sum(sum(end.get('seconds', {}).values()) for one in results for end in one.ends)
    return provenance() | {'runs': sum(len(one.ends) for one in results), 'core_hours': round(seconds / 3600, 3)}


def _trained_by(done: Sequence[Result], runs: Path) -> list[dict[str, Any]]:
    """The commits and versions that trained the runs, each with its number of runs."""
    found: list[dict[str, Any]] = []
    for name in sorted({run.name for one in done for run in one.runs}):
        config = RunFolder(runs / name).read()
        versions = {'git_commit': config.get('git_commit'), 'versions': config.get('versions', {})}
        same = next((one for one in found if versions.items() <= one.items()), None)
        if same is None:
            found.append({'runs': 1} | versions)
        else:
            same['runs'] += 1
    return found


def _note_other_versions(experiment: Experiment, trained_by: Sequence[dict[str, Any]]) -> None:
    """Says so if runs were trained by another version of ltos_pyg than this one."""
    by_version = Counter[str]()
    for one in trained_by:
        by_version[one['versions'].get('ltos_pyg', 'unknown')] += one['runs']
    total = by_version.total()
    del by_version[__version__]
    if by_version:
        others = ', '.join(f'{count} by {version}' for version, count in sorted(by_version.items()))
        print(
            f'ltos: {by_version.total()} of the {total} runs of {experiment.name} were trained by another version of '
            f'ltos_pyg ({others}) than this one, {__version__}. To train them again, choose another folder by --runs.',
            file=sys.stderr,
        )


def _figures(experiment: Experiment, done: Sequence[Result], runs: Path, out: Path) -> list[Path]:
    """The figures of the kind of report."""
    from ltos_pyg.viz.curves import save_figure

    if experiment.report == 'behaviour':
        return _behaviour(done, runs, out)
    if experiment.report == 'selfishness':
        return _selfishness(done, runs, out)
    drawn = {}
    labels = [method.label for method in experiment.methods]
    if experiment.report == 'line':
        drawn['figure'] = figures.lines(experiment, done)
    elif experiment.report not in ('sharing', 'zero_shot'):
        drawn['figure'] = figures.curves(done, runs, labels)
    if experiment.report == 'table':
        enough, few = with_seeds(done, PROFILES_FROM)
        if len(enough) > 1 and len({(one.metric, one.lower_is_better) for one in enough}) == 1:
            note = f'without {", ".join(few)}: fewer than {PROFILES_FROM} seeds' if few else ''
            drawn['profile'] = figures.profiles(enough, note, labels)
    return [save_figure(figure, out / f'{name}{end}') for name, figure in drawn.items() for end in ('.png', '.svg')]


def _behaviour(done: Sequence[Result], runs: Path, out: Path) -> list[Path]:
    """A GIF of a greedy episode of the first seed of each method, and a panel of their last pictures."""
    from ltos_pyg.viz.curves import save_figure
    from ltos_pyg.viz.watch import watch_run

    gifs = {
        one.method.label: watch_run(runs / one.runs[0].name, out / shortened(one.runs[0].label, '.gif')) for one in done
    }
    return [*gifs.values(), save_figure(figures.panel(gifs), out / 'panel.png')]


def _selfishness(done: Sequence[Result], runs: Path, out: Path) -> list[Path]:
    """The share kept over an episode and over the map, for the first seed of each method and network."""
    from ltos_pyg.scenarios.traffic.selfishness import draw_selfishness

    written: list[Path] = []
    for one in done:
        name = f'{one.setting.label}-{one.runs[0].label}'
        pictures = [out / shortened(name, end) for end in ('.png', '.svg')]
        written += draw_selfishness(runs / one.runs[0].name, *pictures)
    return written
