"""``ltos reproduce``: finds, resumes and trains runs; failed and killed ones; reports."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ltos_pyg.cli import main
from ltos_pyg.cli.reproduce import _print_plan, _print_report, with_values
from ltos_pyg.experiments.catalogue import EXPERIMENTS
from ltos_pyg.experiments.experiment import Experiment, Method, Setting, read_experiment
from ltos_pyg.experiments.figures import curves, lines, profiles
from ltos_pyg.experiments.report import improvement_table, latex, results_of, table_of, with_seeds
from ltos_pyg.experiments.reproduce import archive, reproduce, write_report, write_reports
from ltos_pyg.experiments.runner import (
    ThisMachine,
    at_once,
    config_of,
    one_driver,
    plan,
    train_here,
    train_missing,
    wall_seconds,
)
from ltos_pyg.experiments.zero_shot import missing_values
from ltos_pyg.training.run_folder import RunFolder

STEPS = {'total_steps': 300, 'learning_starts': 100, 'final_episodes': 4, 'eval_episodes': 2, 'eval_every': 150}


def tiny(*methods: Method, **options) -> Experiment:
    return Experiment(
        name='tiny', title='Tiny', settings=(Setting(label='prisoner', scenario='prisoner', options=STEPS),),
        methods=methods or (Method(label='DQN', algo='dqn'), Method(label='DGN', algo='dgn')),
        **{'seeds': 2, 'first_seed': 0} | options,
    )  # fmt: skip


@pytest.fixture(scope='module')
def finished(tmp_path_factory) -> Path:
    """A folder with the four runs and the report of the tiny experiment."""
    folder = tmp_path_factory.mktemp('reproduce')
    assert reproduce([tiny()], folder / 'runs', folder / 'out', ThisMachine(2), quiet=True) == []
    return folder


def test_the_report_has_what_the_runs_have(finished):
    out = finished / 'out' / 'tiny'
    assert {path.name for path in out.iterdir()} == {
        'about.json', 'figure.png', 'figure.svg', 'marl_eval.json', 'table.csv', 'table.md', 'table.tex'
    }  # fmt: skip
    rows = list(csv.DictReader((out / 'table.csv').read_text().splitlines()))
    assert [(row['method'], row['seed']) for row in rows] == [('DQN', '0'), ('DQN', '1'), ('DGN', '0'), ('DGN', '1')]
    for row in rows:
        end = RunFolder(finished / 'runs' / row['run']).final()
        assert float(row['value']) == end['eval']['policy']['return']['mean']
    data = json.loads((out / 'marl_eval.json').read_text())['prisoner']['prisoner']['DGN']
    assert data['seed_1']['absolute_metrics']['return'] == [float(rows[3]['value'])]
    assert next(step['step_count'] for step in data['seed_1'].values() if 'step_count' in step) == 0
    assert '| DQN |' in (out / 'table.md').read_text()
    assert r'\toprule' in (out / 'table.tex').read_text()
    about = json.loads((out / 'about.json').read_text())
    assert about['runs'] == 4
    assert about['core_hours'] >= 0
    assert 'torch' in about['versions']
    assert {*about['files']} == {path.name for path in out.iterdir()}
    assert about['trained_by'] == [{'runs': 4, 'git_commit': about['git_commit'], 'versions': about['versions']}]


@pytest.mark.parametrize(
    ('report', 'expected'),
    [
        ('line', {'figure.png', 'figure.svg'}),
        ('sharing', set()),
        ('curves', {'figure.png', 'figure.svg'}),
        ('behaviour', {'dqn.gif', 'dgn.gif', 'panel.png'}),
    ],
)
def test_every_kind_of_report(finished, tmp_path, report, expected):
    one = tiny()
    one = dataclasses.replace(one, report=report, settings=(dataclasses.replace(one.settings[0], x=2.0),))
    written = {path.name for path in write_report(one, finished / 'runs', tmp_path)}
    assert written == {path.name for path in tmp_path.iterdir()}
    assert written - {'about.json', 'marl_eval.json', 'table.csv', 'table.md', 'table.tex'} == expected


def test_a_report_compares_the_method_it_is_told_to(finished, tmp_path):
    for compared, other in (('DGN', 'DQN'), ('DQN', 'DGN'), (None, 'DGN')):
        write_report(tiny(compared=compared), finished / 'runs', tmp_path)
        table = (tmp_path / 'table.md').read_text()
        assert f'| other method | P({compared or "DQN"} is better) |\n| --- | --- |\n| {other} |' in table
    assert tiny(compared='DGN').limited(only='DQN').compared is None


def test_a_report_says_what_is_missing(finished, tmp_path):
    more = tiny(Method(label='DQN', algo='dqn'), Method(label='none & all', algo='qmix'), seeds=3)
    write_report(more, finished / 'runs', tmp_path)
    table = (tmp_path / 'table.md').read_text()
    assert '| DQN |' in table
    assert '2 of 3' in table
    assert '| none & all | not run | 0 of 3 |' in table
    assert 'Probability' not in table
    assert r'none \& all' in (tmp_path / 'table.tex').read_text()
    write_report(dataclasses.replace(more, report='sharing'), finished / 'runs', tmp_path / 'sharing')
    assert '| none & all | 0 of 3 | not run |' in (tmp_path / 'sharing' / 'table.md').read_text()
    nothing = tiny(Method(label='x', algo='qmix'))
    assert write_report(nothing, finished / 'runs', tmp_path / 'none') == []
    assert not (tmp_path / 'none').exists()


def test_a_method_with_too_few_seeds_is_left_out_of_comparisons_by_name(finished, tmp_path):
    one_seed = Method(label='other DQN', algo='dqn', seeds=1)
    write_report(tiny(*tiny().methods, one_seed), finished / 'runs', tmp_path)
    table = (tmp_path / 'table.md').read_text()
    assert '| other method | P(DQN is better) |\n| --- | --- |\n| DGN |' in table
    assert 'It needs 2 seeds of a method: without other DQN.' in table
    write_report(tiny(one_seed, *tiny().methods), finished / 'runs', tmp_path)
    table = (tmp_path / 'table.md').read_text()
    assert 'No probability that a run of other DQN is better: it has fewer than 2 seeds.' in table
    write_report(tiny(one_seed, dataclasses.replace(one_seed, label='third')), finished / 'runs', tmp_path)
    assert 'probability' not in (tmp_path / 'table.md').read_text()


def test_profiles_leave_out_a_method_with_too_few_seeds(finished, tmp_path, monkeypatch):
    monkeypatch.setattr('ltos_pyg.experiments.reproduce.PROFILES_FROM', 2)
    few = Method(label='few', algo='dqn', seeds=1)
    write_report(tiny(*tiny().methods, few), finished / 'runs', tmp_path)
    assert 'without few: fewer than 2 seeds' in (tmp_path / 'profile.svg').read_text()
    write_report(tiny(tiny().methods[0], few), finished / 'runs', tmp_path / 'one')
    assert not (tmp_path / 'one/profile.svg').exists()


@pytest.mark.parametrize('every', [False, True])
def test_a_result_that_is_not_a_number_is_below_every_threshold_of_a_profile(finished, every):
    results = results_of(tiny(), finished / 'runs')
    for end in [end for one in results for end in one.ends][: None if every else 1]:
        end['eval']['policy']['return']['mean'] = float('nan')
    axes = profiles(results).axes[0]
    assert all(np.isfinite(line.get_xdata()).all() for line in axes.lines)
    assert [max(line.get_ydata()) for line in axes.lines] == ([0, 0] if every else [0.5, 1])


def test_figures_of_settings_with_metrics_of_their_own_name_each_and_draw_no_common_profile(
    finished, tmp_path, monkeypatch
):
    monkeypatch.setattr('ltos_pyg.experiments.reproduce.PROFILES_FROM', 1)
    first = tiny().settings[0]
    mixed = dataclasses.replace(tiny(), settings=(first, dataclasses.replace(first, label='how long', metric='length')))
    write_report(mixed, finished / 'runs', tmp_path)
    assert not (tmp_path / 'profile.svg').exists()
    panels = curves(results_of(mixed, finished / 'runs'), finished / 'runs').axes
    assert {axes.get_title(): axes.get_ylabel() for axes in panels} == {first.label: 'return', 'how long': 'length'}


def test_rows_of_a_sharing_report_name_their_setting(finished):
    settings = (*tiny().settings, Setting(label='long', scenario='prisoner', options={'length': 9}, metric='length'))
    more = dataclasses.replace(tiny(), report='sharing', settings=settings)
    header, *rows = table_of(more, results_of(more, finished / 'runs'))
    assert header[2] == 'return or length'
    assert [row[0] for row in rows] == ['DQN, prisoner', 'DQN, long', 'DGN, prisoner', 'DGN, long']


def test_a_sharing_report_has_the_mean_and_the_worst_evaluation_of_the_second_half(finished):
    sharing = dataclasses.replace(tiny(), report='sharing')
    results = results_of(sharing, finished / 'runs')
    run = RunFolder(finished / 'runs' / results[0].runs[0].name)
    rows = [row for row in run.metrics() if 'eval/return' in row]
    half = max(row['step'] for row in rows) / 2
    empty = dataclasses.replace(results[0], late=((float('nan'),),))
    assert table_of(sharing, [empty])[1][4] == 'nan, nan'
    assert results[0].late[0] == tuple(row['eval/return'] for row in rows if row['step'] >= half)
    for late in (((float('nan'), 1.0),), ((1.0,), (float('nan'),))):
        assert table_of(sharing, [dataclasses.replace(results[0], late=late)])[1][4] == 'nan, nan'
    late = ((1.0, 3.0), (2.0,))
    made = [dataclasses.replace(results[0], late=late, lower_is_better=lower) for lower in (False, True)]
    header, *found = table_of(sharing, made)
    assert [row[header.index('second half: mean, worst')] for row in found] == ['2.000, 1.000', '2.000, 3.000']


def test_a_sharing_report_has_the_policy_on_the_episodes_of_the_other_weights_where_it_was_measured(finished):
    sharing = dataclasses.replace(tiny(), report='sharing')
    results = results_of(sharing, finished / 'runs')
    assert table_of(sharing, results)[0][-4:] == [f'played with {w}' for w in ('constant', 'uniform', 'keep', 'random')]
    results[0].ends[0]['eval']['phi'] = {'return': {'mean': 0.25, 'std': 0.0, 'count': 2}}
    header, first, second = table_of(sharing, results)
    column = header.index('played with phi')
    assert header[column + 1] == 'played with constant'
    assert (first[column], second[column]) == ('0.250', '')


def test_a_report_names_the_versions_that_trained_its_runs(finished, tmp_path, capsys):
    runs = tmp_path / 'runs'
    shutil.copytree(finished / 'runs', runs)
    write_report(tiny(), runs, tmp_path / 'same')
    assert 'another version' not in capsys.readouterr().err
    path = runs / 'prisoner-learning_starts=100-total_steps=300-dqn-seed1/config.json'
    config = json.loads(path.read_text())
    old = config['versions'] | {'ltos_pyg': '0.0.1'}
    path.write_text(json.dumps(config | {'git_commit': 'abc', 'versions': old}))
    write_report(tiny(), runs, tmp_path / 'out')
    assert '1 of the 4 runs of tiny were trained by another version of ltos_pyg (1 by 0.0.1)' in capsys.readouterr().err
    found = json.loads((tmp_path / 'out/about.json').read_text())['trained_by']
    assert [one['runs'] for one in found] == [3, 1]
    assert found[1] == {'runs': 1, 'git_commit': 'abc', 'versions': old}


def test_the_archive_has_the_evaluations_only(finished, tmp_path):
    assert archive([tiny()], finished / 'runs', tmp_path) == 4
    write_report(tiny(), tmp_path, tmp_path / 'out')
    assert (tmp_path / 'out/table.md').read_bytes() == (finished / 'out/tiny/table.md').read_bytes()
    one = next(tmp_path.glob('*dqn-seed0'))
    assert {path.name for path in one.iterdir()} == {'config.json', 'final.json', 'metrics.jsonl'}
    assert all('"eval/' in line for line in (one / 'metrics.jsonl').read_text().splitlines())


def test_an_archive_onto_the_runs_is_refused_before_it_takes_rows_from_them(finished, capsys):
    runs = finished / 'runs'
    before = {path: path.read_bytes() for path in runs.glob('*/metrics.jsonl')}
    places = ['--runs', str(runs), '--out', str(finished / 'out'), '--archive', str(runs / '..' / 'runs')]
    assert main(['reproduce', 'fig3a', '--report', *places]) == 1
    assert "'--archive' must be another folder than --runs" in capsys.readouterr().err
    with pytest.raises(ValueError, match="'--archive' must be another folder than --runs"):
        archive([tiny()], runs, runs)
    assert {path: path.read_bytes() for path in runs.glob('*/metrics.jsonl')} == before


def test_two_experiments_of_one_name_are_refused(finished, tmp_path):
    for call in (reproduce, write_reports):
        with pytest.raises(ValueError, match="two experiments have the name 'tiny', and one report would replace"):
            call([tiny(), tiny(seeds=1)], finished / 'runs', tmp_path, *([ThisMachine()] if call is reproduce else []))
    assert list(tmp_path.iterdir()) == []


def test_a_report_has_no_files_of_an_earlier_one_and_keeps_those_of_the_user(finished, tmp_path, capsys):
    write_report(dataclasses.replace(tiny(), report='behaviour'), finished / 'runs', tmp_path)
    (tmp_path / 'notes.md').write_text('mine')
    written = write_report(dataclasses.replace(tiny(), report='sharing'), finished / 'runs', tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {'notes.md', *(path.name for path in written)}
    _print_report(tmp_path)
    assert 'notes.md' not in capsys.readouterr().out


def test_a_report_says_that_its_experiment_was_limited(finished, tmp_path):
    write_report(tiny().limited(seeds=1), finished / 'runs', tmp_path)
    assert 'A quick look: at most 1 seed a method (--seeds).' in (tmp_path / 'table.md').read_text()
    assert 'A quick look' not in (finished / 'out/tiny/table.md').read_text()
    assert tiny(text='So.').limited(steps=5000).text == 'So.\n\nA quick look: 5,000 env steps a run (--total-steps).'
    assert tiny().limited(seeds=2).text == ''


def test_experiments_without_a_report_are_listed_at_the_end(finished, tmp_path, capsys):
    archive([tiny()], finished / 'runs', tmp_path / 'runs')  # without checkpoints, from which no GIF can be made
    options = ', '.join(f'{key} = {value}' for key, value in STEPS.items())
    text = (
        f'seeds = 2\nfirst_seed = FIRST\n[[settings]]\nscenario = "prisoner"\noptions = {{ {options} }}\n'
        '[[methods]]\nalgo = "dqn"\n'
    )
    (tmp_path / 'never.toml').write_text(text.replace('FIRST', '7'))
    (tmp_path / 'tiny.toml').write_text(text.replace('FIRST', '0'))
    picture = dataclasses.replace(tiny(), name='pictures', report='behaviour')
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EXPERIMENTS, 'pictures', picture)
        names = ['pictures', str(tmp_path / 'never.toml'), str(tmp_path / 'tiny.toml')]
        places = ['--runs', str(tmp_path / 'runs'), '--out', str(tmp_path / 'out')]
        assert main(['reproduce', *names, '--report', *places]) == 1
    printed, said = capsys.readouterr()
    assert '# tiny' in printed
    assert '# Tiny' in printed  # its table does not take a checkpoint
    assert (tmp_path / 'out/tiny/figure.png').is_file()
    first, second = said.splitlines()[-2:]
    assert first.startswith('ltos: pictures has no figure: ')
    assert 'checkpoint' in first
    assert second == f"ltos: never is not reported: none of its runs is finished in '{tmp_path / 'runs'}' (--runs)"


def test_finished_runs_are_reused(finished):
    runs = finished / 'runs'
    before = {path: path.stat().st_mtime_ns for path in runs.glob('*/final.json')}
    table = (finished / 'out' / 'tiny' / 'table.md').read_bytes()
    assert reproduce([tiny()], runs, finished / 'out', ThisMachine(), quiet=True) == []
    assert {path: path.stat().st_mtime_ns for path in runs.glob('*/final.json')} == before
    assert (finished / 'out' / 'tiny' / 'table.md').read_bytes() == table


@pytest.mark.parametrize(('option', 'value'), [('gamma', 0.99), ('eval_temperature', 0.0)])
def test_a_run_of_other_options_is_refused(finished, option, value):
    name = 'prisoner-learning_starts=100-total_steps=300-dqn-seed0'
    other = tiny(Method(label='DQN', algo='dqn'))
    assert plan(other.runs(), finished / 'runs')[0].folder.name == name
    config = finished / 'runs' / name / 'config.json'
    text = config.read_text()
    old, new = f'"{option}": {value}', f'"{option}": 0.8'
    assert old in text
    config.write_text(text.replace(old, new))
    try:
        with pytest.raises(
            ValueError, match=rf'seed0. was trained with other .*algorithm.{option} is 0.8, not {value}'
        ):
            plan(other.runs(), finished / 'runs')
    finally:
        config.write_text(text)


def test_a_run_that_is_not_finished_must_have_the_same_evaluations_to_go_on(finished, tmp_path):
    runs = tmp_path / 'runs'
    shutil.copytree(finished / 'runs', runs)
    method = Method(label='DQN', algo='dqn', options={'eval_episodes': 3})
    other = tiny(method, seeds=1)
    (planned,) = plan(other.runs(), runs)
    assert planned.state == 'finished'  # its result is the same
    (planned.folder / 'final.json').unlink()
    with pytest.raises(ValueError, match=r'train.eval_episodes is 2, not 3'):
        plan(other.runs(), runs)


def test_a_file_in_place_of_a_run_is_named_before_anything_is_trained(tmp_path):
    one = tiny(Method(label='DQN', algo='dqn'), seeds=1)
    path = tmp_path / next(one.runs()).name
    path.write_text('mine')
    with pytest.raises(ValueError, match=r"seed0' must be the folder of a run \(got a file\)"):
        plan(one.runs(), tmp_path)


def test_an_interrupted_run_is_trained_up_to_its_newest_checkpoint(tmp_path):
    (planned,) = plan(tiny(Method(label='DQN', algo='dqn'), seeds=1).runs(), tmp_path)
    here = RunFolder(planned.folder)
    checkpoint = here.store().path(120)
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    here.metrics_path.write_text('{"step": 240}\n')
    assert planned.fraction == 0.4
    with here.lock():  # while it trains, that is how far it is
        assert planned.fraction == 0.8


class Killed:
    """A process that was killed."""

    exitcode = -signal.SIGKILL

    def is_alive(self) -> bool:
        return False


def test_a_killed_process_is_reported_as_such_and_not_by_an_earlier_line_of_the_log(tmp_path, monkeypatch):
    (planned,) = plan(tiny(Method(label='DQN', algo='dqn'), seeds=1).runs(), tmp_path)
    planned.folder.mkdir()
    (planned.folder / 'log.txt').write_text('ltos: no such option\n')
    monkeypatch.setattr('ltos_pyg.experiments.runner.start_run', lambda *_: Killed())
    assert train_here(planned.run, planned.folder) == 'killed by SIGKILL, usually because memory ran out'
    monkeypatch.setattr(Killed, 'exitcode', 3)
    assert train_here(planned.run, planned.folder) == 'exit code 3'


@pytest.mark.slow
def test_a_failed_run_does_not_stop_the_others(tmp_path):
    plugin = tmp_path / 'broken_env.py'
    plugin.write_text(
        'from ltos_pyg.envs import PrisonerEnv\n'
        'class Broken(PrisonerEnv):\n'
        '    def step(self, action):\n'
        "        raise OSError('the wire is cut')\n"
    )
    one = Experiment(
        name='half', title='Half', seeds=1, methods=(Method(label='DQN', algo='dqn', options=STEPS),),
        settings=(Setting(label='good', scenario='prisoner'), Setting(label='bad', scenario='broken_env:Broken',
                                                                    metric='return')),
    )  # fmt: skip
    environment = os.environ | {'PYTHONPATH': os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')])}
    toml = tmp_path / 'half.toml'
    options = ', '.join(f'{key} = {value}' for key, value in STEPS.items())
    toml.write_text(
        f'seeds = 1\n[[settings]]\nlabel = "good"\nscenario = "prisoner"\n[[settings]]\nlabel = "bad"\n'
        f'scenario = "broken_env:Broken"\nmetric = "return"\n[[methods]]\nalgo = "dqn"\noptions = {{ {options} }}\n'
    )
    command = [sys.executable, '-m', 'ltos_pyg.cli', 'reproduce', str(toml), '--runs', 'runs', '--out', 'out']
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1, ended.stderr
    assert 'the wire is cut' in ended.stderr
    assert 'Broken-dqn' in ended.stderr
    assert 'log.txt' in ended.stderr
    assert 'not run' in (tmp_path / 'out/half/table.md').read_text()
    assert '0 of 1' in (tmp_path / 'out/half/table.md').read_text()
    assert one.run(one.settings[0], one.methods[0], 10).name in os.listdir(tmp_path / 'runs')


def test_a_second_driver_is_refused_by_name(tmp_path):
    with one_driver(tmp_path), pytest.raises(ValueError, match=rf'in use: process {os.getpid()} .*trains runs there'):
        reproduce([tiny()], tmp_path, tmp_path / 'out', ThisMachine(), quiet=True)


@pytest.mark.slow
def test_a_run_that_another_process_trains_is_waited_for(tmp_path):
    one = tiny(Method(label='DQN', algo='dqn'), seeds=1)
    folder = plan(one.runs(), tmp_path)[0].folder
    folder.mkdir()
    holder = subprocess.Popen(
        [sys.executable, '-c',
         'import sys, time, pathlib\nfrom ltos_pyg.training.lock_file import hold_lock\n'
         f'with hold_lock(pathlib.Path({str(folder / "run.lock")!r}), "trains in it"):\n'
         '    print("held", flush=True); time.sleep(2)\n'],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == 'held\n'
    started = time.monotonic()
    assert reproduce([one], tmp_path, tmp_path / 'out', ThisMachine(), quiet=True) == []
    holder.communicate()
    assert holder.returncode == 0
    assert time.monotonic() - started > 1.0


def test_a_wrong_option_is_found_before_any_run_starts(tmp_path):
    wrong = tiny(Method(label='DQN', algo='dqn'), Method(label='typo', algo='dgn', options={'gama': 0.5}))
    with pytest.raises(ValueError, match=r"run 'prisoner-.*gama=0.5.*': unknown option 'gama'.*Did you mean 'gamma'"):
        reproduce([wrong], tmp_path / 'runs', tmp_path / 'out', ThisMachine(), quiet=True)
    assert not (tmp_path / 'runs').exists()


def test_dry_run_and_list(tmp_path, capsys):
    assert main(['reproduce', '--list']) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in EXPERIMENTS)
    assert main(['reproduce', 'fig3a', '--seeds', '1', '--only', 'QMIX', '--runs', str(tmp_path), '--dry-run']) == 0
    printed = capsys.readouterr().out
    assert '1 runs: 0 finished, 0 interrupted, 1 missing' in printed
    assert 'ltos train prisoner --algo qmix' in printed
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_refuses_what_the_call_would_refuse(tmp_path, capsys):
    file = tmp_path / 'mine.toml'
    file.write_text('report = "zero_shot"\n[[settings]]\nscenario = "prisoner"\n[[methods]]\nalgo = "dqn"\n')
    assert main(['reproduce', str(file), '--runs', str(tmp_path), '--dry-run']) == 1
    assert "report = 'zero_shot' and 'over' go together" in capsys.readouterr().err
    assert main(['reproduce', 'fig3a', '--data', str(tmp_path), '--dry-run']) == 1
    assert "'--data' is the folder of road networks, which fig3a does not need" in capsys.readouterr().err
    assert main(['reproduce', 'fig3a', '--ray', 'local', '--jobs', '2']) == 1
    assert "'--jobs' is for runs on this machine or for --slurm" in capsys.readouterr().err


def test_the_commands_of_a_dry_run_work_as_printed(tmp_path, capsys):
    runs = tmp_path / 'my runs'
    one = tiny(Method(label='DQN', algo='dqn'), seeds=1)
    (planned,) = plan(one.runs(), runs)
    here = RunFolder(planned.folder)
    with here.lock():
        here.write_config(planned.config)
        here.store(planned.config).save(100, {})
    _print_plan(plan(one.runs(), runs), 1)
    (command,) = [line for line in capsys.readouterr().out.splitlines() if 'ltos train' in line]
    assert shlex.split(command) == ['ltos', *planned.run.arguments(planned.folder), '--resume']


def test_the_expected_time_of_a_plan_is_that_of_its_runs_in_the_order_in_which_they_start(tmp_path, capsys):
    runs = plan(tiny(Method(label='DQN', algo='dqn'), seeds=3).runs(), tmp_path)
    same_seed = [
        dataclasses.replace(one, run=runs[0].run, seconds=seconds)
        for one, seconds in zip(runs, (200.0, 600.0, 300.0), strict=True)
    ]
    assert [wall_seconds(same_seed, jobs) for jobs in (1, 2, 8)] == [1100, 600, 600]
    assert wall_seconds([], 2) == 0
    _print_plan(same_seed[:1], 8)
    assert 'about 3.3 minutes of one core, 3.3 minutes with --jobs 8' in capsys.readouterr().out


def test_a_dry_run_lists_the_zero_shot_evaluations_that_are_missing(tmp_path, capsys):
    few = ['--seeds', '1', '--only', 'DGN', '--runs', str(tmp_path)]
    assert main(['reproduce', 'zero-shot-jungle', *few, '--dry-run']) == 0
    printed = capsys.readouterr().out
    assert 'zero-shot   to be played  jungle-dgn-seed10 over num_agents = 10, 50, 100\n' in printed
    assert 'not counted in this time: 11 evaluations of trained runs' in printed
    both = [EXPERIMENTS['zero-shot-jungle']] * 2  # experiments that share runs
    assert missing_values(both, tmp_path) == missing_values(both[:1], tmp_path)


def test_a_flag_without_a_value_means_this_machine_or_the_default_partition():
    assert with_values(['fig3a', '--ray']) == ['fig3a', '--ray', 'local']
    assert with_values(['--slurm', '--jobs', '2']) == ['--slurm', 'default', '--jobs', '2']
    given = ['--ray', 'auto', '--slurm=debug', 'fig3a']
    assert with_values(given) == given


@pytest.mark.parametrize('option', ['runs', 'out', 'archive'])
def test_a_file_in_place_of_a_folder_is_refused_before_anything_is_trained(tmp_path, capsys, option):
    (tmp_path / 'file').write_text('mine')
    assert main(['reproduce', 'fig3a', '--runs', str(tmp_path / 'runs'), f'--{option}', str(tmp_path / 'file')]) == 1
    assert f"'--{option}' must be a folder (got '{tmp_path}/file" in capsys.readouterr().err
    assert not (tmp_path / 'runs').exists()


def test_a_run_that_cannot_start_is_a_failure_of_its_own(tmp_path):
    def do(task: int, _: object) -> None:
        if task == 1:
            raise OSError(24, 'Too many open files')

    assert sorted(at_once(do, [1, 2], 1)) == [(1, '[Errno 24] Too many open files'), (2, None)]
    planned = plan(tiny(Method(label='DQN', algo='dqn')).runs(), tmp_path)
    for one in planned:
        one.folder.write_text('in the way')
    assert [reason.startswith('[Errno 17] File exists') for _, reason in ThisMachine().train(planned)] == [True] * 2


class Far:
    """A backend that leaves no checkpoints."""

    def train(self, planned):
        raise AssertionError('must not be called')

    def leaves_checkpoints(self, folder):
        return False


def test_a_report_that_takes_checkpoints_is_refused_where_none_will_be(tmp_path):
    with pytest.raises(ValueError, match=r"report of 'tiny' plays trained policies, and needs '.*runs' to be a folder"):
        reproduce([tiny(report='behaviour')], tmp_path / 'runs', tmp_path / 'out', Far(), quiet=True)


def test_jobs_must_be_positive():
    with pytest.raises(ValueError, match=r"'--jobs' must be at least 1 \(got 0\)"):
        ThisMachine(0)


def test_the_plan_is_the_config_of_the_command(tmp_path):
    """What the driver checks is what its command trains."""
    run = next(iter(EXPERIMENTS['sharing-groups'].runs()))
    from ltos_pyg.cli.train import parse_options, read_head
    from ltos_pyg.registry import scenario

    arguments = run.arguments(tmp_path)[1:]
    head = read_head(arguments)
    _, config = parse_options(scenario(head.scenario).config(head.algo, 'default'), arguments)
    assert config.fingerprint() == config_of(run).fingerprint()


@pytest.mark.slow
def test_ten_kills_end_in_the_same_table(finished, tmp_path):
    """The driver and its runs are killed ten times; the table at the end is that of undisturbed runs, to the bit."""
    longer = {**STEPS, 'total_steps': 10_000, 'checkpoint_every': 200, 'eval_every': 1000}
    toml = tmp_path / 'kills.toml'
    options = ', '.join(f'{key} = {value}' for key, value in longer.items())
    toml.write_text(
        f'seeds = 2\nfirst_seed = 0\n[[settings]]\nlabel = "p"\nscenario = "prisoner"\n[[methods]]\nalgo = "dqn"\n'
        f'options = {{ {options} }}\n[[methods]]\nalgo = "ltos"\noptions = {{ {options} }}\n'
    )
    command = [sys.executable, '-m', 'ltos_pyg.cli', 'reproduce', str(toml), '--jobs', '2', '--out']

    def call(where: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*command, f'{where}/out', '--runs', f'{where}/runs'], cwd=tmp_path, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def saved() -> set[Path]:
        return set(tmp_path.glob('killed/runs/*/checkpoints/*.pt'))

    assert call('calm').wait() == 0
    for kill in range(10):
        before, driver = saved(), call('killed')
        while saved() <= before and driver.poll() is None:
            time.sleep(0.05)
        time.sleep(0.15 * (kill % 4))  # not always at a checkpoint
        assert driver.poll() is None, f'the runs ended before kill {kill + 1}'
        for pid in _runs_in(tmp_path / 'killed') if kill % 2 else []:
            with contextlib.suppress(ProcessLookupError):  # a lock outlives a run that was killed
                os.kill(pid, signal.SIGKILL)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    assert call('killed').wait() == 0
    for name in ('table.md', 'table.csv'):
        assert (tmp_path / 'killed/out/kills' / name).read_bytes() == (tmp_path / 'calm/out/kills' / name).read_bytes()


def _runs_in(folder: Path) -> list[int]:
    """The processes that train in a folder."""
    locks = [path.read_text() for path in folder.glob('runs/*/run.lock')]
    return [int(text.split()[1]) for text in locks if text.startswith('process ')]


class Lost:
    """A backend all of whose runs fail."""

    def train(self, planned):
        yield from ((one, 'lost') for one in planned)


def test_a_run_that_is_to_be_measured_otherwise_is_evaluated_again(finished, tmp_path, capsys):
    runs = tmp_path / 'runs'
    shutil.copytree(finished / 'runs', runs)
    other = tiny(Method(label='DQN', algo='dqn', options={'final_episodes': 7}), seeds=1)
    (planned,) = plan(other.runs(), runs)
    assert planned.state == 'to measure'
    _print_plan([planned], 1)
    printed = capsys.readouterr().out
    assert printed.startswith(f'to measure  to be played  {planned.run.name}\n')
    assert 'not counted in this time: 1 evaluation of trained runs' in printed
    RunFolder(planned.folder).write_zero_shot('mine', {'settings': []})
    assert [failure.reason for failure in train_missing([planned], Lost(), quiet=True)] == ['lost']
    assert RunFolder(planned.folder).is_finished  # it keeps its result until it is measured again
    assert reproduce([other], runs, tmp_path / 'out', ThisMachine(1), quiet=True) == []
    again, before = RunFolder(planned.folder), RunFolder(finished / 'runs' / planned.run.name)
    assert again.final()['eval']['policy']['return']['count'] == 7
    assert before.final()['eval']['policy']['return']['count'] == 4
    assert again.metrics() == before.metrics()  # nothing was trained
    assert (again.zero_shot_path / 'mine.json').is_file()  # its policy is the same
    assert plan(other.runs(), runs)[0].state == 'finished'


def test_a_run_is_measured_again_over_the_usual_episodes_of_its_scenario_too(finished, tmp_path, capsys):
    runs = tmp_path / 'runs'
    shutil.copytree(finished / 'runs', runs)
    usual = {name: value for name, value in STEPS.items() if name != 'final_episodes'}
    setting = Setting(label='prisoner', scenario='prisoner', options=usual)
    other = dataclasses.replace(tiny(Method(label='DQN', algo='dqn'), seeds=1), settings=(setting,))
    (planned,) = plan(other.runs(), runs)
    assert planned.state == 'to measure'
    _print_plan([planned], 1)
    assert '--final-episodes 400 --resume' in capsys.readouterr().out
    assert reproduce([other], runs, tmp_path / 'out', ThisMachine(1), quiet=True) == []
    assert RunFolder(planned.folder).final()['eval']['policy']['return']['count'] == 400
    assert plan(other.runs(), runs)[0].state == 'finished'


def test_a_report_of_another_environments_runs_is_refused(tmp_path, monkeypatch, capsys):
    file, runs = tmp_path / 'mine.toml', tmp_path / 'runs'
    code = 'from ltos_pyg.envs import PrisonerEnv\n\n\nclass Game(PrisonerEnv):\n    pass\n'
    for module in ('game_a', 'game_b'):
        (tmp_path / f'{module}.py').write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = '[[settings]]\nscenario = "MODULE:Game"\n[[methods]]\nalgo = "dqn"\n'
    file.write_text(text.replace('MODULE', 'game_a'))
    (planned,) = plan(read_experiment(file).limited(1).runs(), runs)
    folder = RunFolder(planned.folder)
    folder.write_config(planned.config)
    folder.write_final({'eval': {'policy': {'return': {'mean': 1.0, 'std': 0.0, 'count': 1}}}, 'env_steps': 1})
    folder.metrics_path.write_text('{"step": 0, "eval/return": 1.0}\n')
    arguments = ['reproduce', str(file), '--seeds', '1', '--report', '--runs', str(runs), '--out', str(tmp_path / 'o')]
    assert main(arguments) == 0
    file.write_text(text.replace('MODULE', 'game_b'))
    capsys.readouterr()
    assert main(arguments) == 1
    assert "scenario is 'game_a:Game', not 'game_b:Game'" in capsys.readouterr().err


def test_an_experiment_says_whether_less_of_its_metric_is_better(finished, tmp_path):
    shutil.copytree(finished / 'runs', tmp_path, dirs_exist_ok=True)
    for run in tiny().runs():
        folder = RunFolder(tmp_path / run.name)
        final = folder.final()
        final['eval']['policy']['return']['mean'] = 1.0 if run.algo == 'dqn' else 2.0
        folder.write_final(final)
    for lower, chance in ((None, 0), (True, 1), (False, 0)):
        results = results_of(tiny(lower_is_better=lower), tmp_path)
        assert improvement_table(results)[1] == ['DGN', f'{chance}.00 [{chance}.00, {chance}.00]']  # DQN is better


def test_an_unknown_option_in_a_file_is_named_with_its_line(tmp_path, capsys):
    file = tmp_path / 'mine.toml'
    text = '[[settings]]\nscenario = "prisoner"\n[[methods]]\nalgo = "dqn"\n[[methods]]\nalgo = "dgn"\n'
    file.write_text(text + 'options = { n_step = 1, gama = 0.5 }\n')
    assert main(['reproduce', str(file), '--dry-run']) == 1
    assert (
        f"'{file}', line 7: unknown option 'gama' of dgn on prisoner. Did you mean 'gamma'?" in capsys.readouterr().err
    )
    file.write_text(text.replace('"prisoner"', '"prisoner"\noptions = { kost = 1 }'))
    assert main(['reproduce', str(file), '--dry-run']) == 1
    assert f"'{file}', line 3: unknown option 'kost'" in capsys.readouterr().err


def test_an_unknown_metric_in_a_file_is_named_before_anything_is_trained(tmp_path, capsys):
    file = tmp_path / 'mine.toml'
    text = 'seeds = 1\n[[settings]]\nscenario = "prisoner"\nMETRIC\n[[methods]]\nalgo = "ltos"\n'
    for metric in ('races', 'kept', 'return'):  # of the environment, of the weights, of every episode
        file.write_text(text.replace('METRIC', f'metric = "{metric}"'))
        assert main(['reproduce', str(file), '--dry-run']) == 0
    file.write_text('metric = "luck"\n' + text.replace('METRIC', ''))
    assert main(['reproduce', str(file), '--runs', str(tmp_path / 'runs'), '--out', str(tmp_path / 'out')]) == 1
    assert "'mine': unknown metric 'luck' of setting 'prisoner'. Choose from: return, reward" in capsys.readouterr().err
    assert not (tmp_path / 'runs').exists()


@pytest.mark.parametrize(
    ('algo', 'report', 'metric', 'known'),
    [
        ('dqn', 'table', 'kept', 'return, reward, length, and'),
        ('ltos', 'table', 'switched_uniform', 'kept, kept_std_nodes, kept_std_states, uneven, and'),
        ('ltos', 'line', 'switched_uniform', None),
        ('ltos', 'sharing', 'switched_phi', 'switched_constant, switched_uniform, switched_keep, switched_random, and'),
        ('fixed_ltos', 'line', 'switched_uniform', 'uneven, and'),
        ('fixed_ltos', 'table', 'kept_std_nodes', None),
    ],
)
def test_a_metric_of_sharing_weights_must_be_one_of_the_report(tmp_path, capsys, algo, report, metric, known):
    file = tmp_path / 'mine.toml'
    file.write_text(
        f'metric = "{metric}"\nreport = "{report}"\n[[settings]]\nscenario = "prisoner"\nx = 1\n'
        f'[[methods]]\nalgo = "{algo}"\n'
    )
    assert main(['reproduce', str(file), '--dry-run']) == (known is not None)
    if known is not None:
        said = capsys.readouterr().err
        assert f"report '{report}' has no metric '{metric}' of method '{algo}' in setting 'prisoner'" in said
        assert f'{known} those of the environment' in said


@pytest.mark.parametrize(
    ('labels', 'name'), [(('k = 4', 'k = 2'), 'k'), (('k = 4', 'N = 2'), 'x'), (('four', 'two'), 'x')]
)
def test_a_line_goes_from_the_left_to_the_right(finished, labels, name):
    first, second = (
        dataclasses.replace(tiny().settings[0], label=label, x=x) for label, x in zip(labels, (4.0, 2.0), strict=True)
    )
    paper = {'DQN': {first.label: 0.4, second.label: 0.2}}
    one = dataclasses.replace(tiny(paper=paper), report='line', settings=(first, second))
    axes = lines(one, results_of(one, finished / 'runs')).axes[0]
    assert axes.get_xlabel() == name
    assert [list(line.get_xdata()) for line in axes.lines] == [[2, 4]] * 3
    assert list(axes.lines[1].get_ydata()) == [0.2, 0.4]


def two_settings() -> Experiment:
    """The tiny experiment, with the same runs in a second setting."""
    first, few = tiny().settings[0], {'learning_starts': 100, 'total_steps': 300, 'eval_seed': 7}
    return dataclasses.replace(tiny(), settings=(first, dataclasses.replace(first, label='second', options=few)))


def test_too_few_seeds_in_one_setting_leave_out_that_setting_alone(finished):
    results = results_of(two_settings(), finished / 'runs')
    short = dataclasses.replace(results[-1], runs=results[-1].runs[:1], ends=results[-1].ends[:1])
    enough, few = with_seeds([*results[:-1], short], 2)
    assert few == ['DGN in second']
    assert [(one.method.label, one.setting.label) for one in enough] == [
        ('DQN', 'prisoner'), ('DQN', 'second'), ('DGN', 'prisoner')
    ]  # fmt: skip
    assert improvement_table(enough) == improvement_table([results[0], results[2]])


def test_a_bar_in_a_label_does_not_end_a_cell_of_the_table(finished, tmp_path):
    write_report(tiny(Method(label='D|N', algo='dqn')), finished / 'runs', tmp_path)
    assert r'| D\|N |' in (tmp_path / 'table.md').read_text()


def test_a_method_has_one_colour_in_all_figures_whichever_others_are_there(finished):
    names = [f'm{i}' for i in range(8)]
    one = tiny(*(Method(label=name, algo='dqn' if name == 'm7' else 'qmix') for name in ('x', *names[1:7], 'm7')))
    one = dataclasses.replace(one, report='line', settings=(dataclasses.replace(one.settings[0], x=2.0),))
    labels = [method.label for method in one.methods]
    done = [result for result in results_of(one, finished / 'runs') if result.ends]
    assert [result.method.label for result in done] == ['m7']
    line = next(line for line in lines(one, done).axes[0].lines if line.get_label() == 'm7')
    curve, profile = (
        curves(done, finished / 'runs', labels).axes[0].lines[0],
        profiles(done, '', labels).axes[0].lines[0],
    )
    assert line.get_color() == curve.get_color() == profile.get_color()
    assert (line.get_linestyle(), line.get_marker()) == (curve.get_linestyle(), curve.get_marker()) == ('--', 'o')


def test_lines_of_a_profile_differ_without_their_colours(finished):
    (one, _) = results_of(tiny(), finished / 'runs')
    results = [dataclasses.replace(one, method=Method(label=f'm{i}', algo='dqn')) for i in range(8)]
    drawn = profiles(results).axes[0].lines
    assert len({repr(line._dash_pattern) for line in drawn}) == 8


def test_any_label_is_text_in_latex():
    assert latex([['a', 'b'], ['[1] $x^2$', r'{50 %} ~ \alpha_2'], ['*', '']]).splitlines()[4:6] == [
        r'{[}1] \$x\textasciicircum{}2\$ & \{50 \%\} \textasciitilde{} \textbackslash{}alpha\_2 \\',
        r'{*} &  \\',
    ]


@pytest.mark.parametrize(('lower', 'scale'), [(True, 'log'), (False, 'linear')])
def test_curves_of_what_should_be_low_have_a_logarithmic_scale(finished, lower, scale):
    results = [dataclasses.replace(one, lower_is_better=lower) for one in results_of(tiny(), finished / 'runs')]
    axes = curves(results, finished / 'runs').axes[0]
    assert axes.get_yscale() == scale
