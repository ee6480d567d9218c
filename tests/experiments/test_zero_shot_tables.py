"""Zero-shot tables of an experiment: trained runs, evaluated under other options of the environment."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil

import pytest

from ltos_pyg.cli import main
from ltos_pyg.experiments.experiment import Experiment, Method, Setting
from ltos_pyg.experiments.reproduce import archive, reproduce, write_report
from ltos_pyg.experiments.runner import ThisMachine
from ltos_pyg.experiments.zero_shot import _evaluate, missing_values
from ltos_pyg.training.api import Run
from ltos_pyg.training.run_folder import RunFolder

OPTIONS = {'total_steps': 200, 'learning_starts': 100, 'final_episodes': 2, 'eval_episodes': 2, 'hidden_channels': 8}
FAR = Experiment(
    name='far', title='Far', report='zero_shot', seeds=2, over={'horizon': [3, 5]},
    settings=(Setting(label='prisoner', scenario='prisoner', options=OPTIONS),),
    methods=(Method(label='DQN', algo='dqn'), Method(label='DGN', algo='dgn')),
)  # fmt: skip


def test_a_zero_shot_table_evaluates_each_run_once_and_can_be_made_from_an_archive(tmp_path):
    runs, out = tmp_path / 'runs', tmp_path / 'out'
    far = dataclasses.replace(FAR, methods=FAR.methods[:1])
    assert reproduce([far], runs, out, ThisMachine(2), quiet=True) == []
    rows = list(csv.DictReader((out / 'far/table.csv').read_text().splitlines()))
    assert [(r['method'], r['seed'], r['option'], r['set_to']) for r in rows[:4]] == [
        ('DQN', '10', '', ''), ('DQN', '10', 'horizon', '3'), ('DQN', '10', 'horizon', '5'), ('DQN', '11', '', '')
    ]  # fmt: skip
    for row in rows:
        if row['option']:
            stats = Run(runs / row['run']).evaluate(episodes=20, horizon=int(row['set_to']))
            assert float(row['value']) == stats['return'].mean
    table = (out / 'far/table.md').read_text()
    assert '| trained by | seeds | return, as trained | horizon = 3 | horizon = 5 |' in table
    assert 'That is the column "as trained"; the others are over 20 episodes' in table
    assert 'not run' not in table

    files = {path: path.stat().st_mtime_ns for path in runs.glob('*/zero_shot/*.json')}
    assert len(files) == 2
    assert reproduce([far], runs, out, ThisMachine(), quiet=True) == []
    assert {path: path.stat().st_mtime_ns for path in runs.glob('*/zero_shot/*.json')} == files
    path = min(files)
    _evaluate(RunFolder(path.parents[1]), 'horizon', [5])  # as another process may at the same time
    assert [one['options'] for one in json.loads(path.read_text())['settings']] == [{'horizon': 3}, {'horizon': 5}]

    shutil.copytree(runs, tmp_path / 'some')
    removed = next((tmp_path / 'some').glob('*/zero_shot/*.json'))
    removed.unlink()
    shutil.rmtree(removed.parents[1] / 'checkpoints')
    (failure,) = reproduce([far], tmp_path / 'some', tmp_path / 'few', ThisMachine(), quiet=True)
    assert 'has no checkpoint, which it takes to play horizon = 3, 5. Train it' in failure.reason
    assert (tmp_path / 'few/far/table.md').read_text().count(' (1 of 2 seeds) |') == 2

    archive([far], runs, tmp_path / 'archive')
    write_report(far, tmp_path / 'archive', tmp_path / 'again')
    assert (tmp_path / 'again/table.md').read_bytes() == (out / 'far/table.md').read_bytes()


def test_a_whole_number_may_be_written_as_a_float(tmp_path):
    one = dataclasses.replace(FAR, methods=FAR.methods[:1], seeds=1, over={'horizon': [3e0]})
    assert reproduce([one], tmp_path / 'runs', tmp_path / 'out', ThisMachine(), quiet=True) == []
    assert missing_values([one], tmp_path / 'runs') == {}
    table = (tmp_path / 'out/far/table.md').read_text()
    assert '| horizon = 3 |' in table
    assert 'not run' not in table


def test_a_setting_without_the_metric_is_a_gap_in_the_table_and_each_metric_is_named(tmp_path):
    runs = tmp_path / 'runs'
    two = (*FAR.settings, Setting(label='length', scenario='prisoner', options=OPTIONS, metric='length'))
    one = dataclasses.replace(FAR, methods=FAR.methods[:1], seeds=1, settings=two)
    assert reproduce([one], runs, tmp_path / 'out', ThisMachine(), quiet=True) == []
    (path,) = runs.glob('*/zero_shot/*.json')
    result = json.loads(path.read_text())
    del result['settings'][0]['eval']['length']  # as of an environment that reports it in some settings only
    path.write_text(json.dumps(result))
    write_report(one, runs, tmp_path / 'again')
    rows = (tmp_path / 'again/table.md').read_text().splitlines()
    assert rows[2].startswith('| trained by | seeds | return or length, as trained |')
    assert [row.count('not run') for row in rows if row.startswith('| DQN')] == [0, 1]


@pytest.mark.slow
def test_values_that_are_missing_are_evaluated_and_runs_without_a_checkpoint_are_named(tmp_path):
    runs = tmp_path / 'runs'
    few = dataclasses.replace(FAR, over={'horizon': [3]}, seeds=1)
    assert reproduce([few], runs, tmp_path / 'out', ThisMachine(), quiet=True) == []
    more = dataclasses.replace(FAR, over={'horizon': [3, 7]}, seeds=1)
    first, second = (run.name for run in more.runs())
    shutil.rmtree(runs / first / 'checkpoints')
    (failure,) = reproduce([more], runs, tmp_path / 'out', ThisMachine(), quiet=True)
    assert failure.name == f'{first} over horizon'
    assert 'is finished and has no checkpoint, which it takes to play horizon = 7' in failure.reason
    assert [len(RunFolder(runs / name).zero_shot()[0]['settings']) for name in (first, second)] == [1, 2]
    lines = (tmp_path / 'out/far/table.md').read_text().splitlines()
    assert next(line for line in lines if line.startswith('| DQN')).endswith(' | not run |')


@pytest.mark.slow
def test_a_value_that_is_a_list_is_found_again(tmp_path):
    traffic = Setting(label='grid', scenario='traffic', options={**OPTIONS, 'net': ('2x2',), 'horizon': 4})
    grids = dataclasses.replace(FAR, settings=(traffic,), over={'net': (('1x2',), ('2x3',))}, seeds=1)
    assert reproduce([grids], tmp_path / 'runs', tmp_path / 'out', ThisMachine(), quiet=True) == []
    lines = (tmp_path / 'out/far/table.md').read_text().splitlines()
    assert lines[2].endswith('| net = 1x2 | net = 2x3 |')
    assert not any('not run' in line for line in lines)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'over': {'horizn': [3]}}, "unknown option 'horizn' of prisoner. Choose from: "),
        ({'over': {'horizon': [0]}}, r"setting horizon=0: 'horizon' must be an integer of at least 1 \(got 0\)"),
        ({'over': {'horizon': [2.5]}}, r"'horizon' must be a whole number \(got 2.5\)"),
        ({'over': {'horizon': 3}}, r"'far': 'over' needs a list of values of 'horizon' \(got 3\)"),
        ({'over': {}}, "'far': report = 'zero_shot' and 'over' go together"),
        ({'report': 'table'}, "'far': report = 'zero_shot' and 'over' go together"),
    ],
)
def test_values_that_cannot_be_are_refused_before_training(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        reproduce([dataclasses.replace(FAR, **change)], tmp_path / 'runs', tmp_path / 'out', ThisMachine(), quiet=True)
    assert not (tmp_path / 'runs').exists()


def test_a_quick_look_does_not_replace_what_the_table_measures(tmp_path):
    runs, out = tmp_path / 'runs', tmp_path / 'out'
    far = dataclasses.replace(FAR, methods=FAR.methods[:1], seeds=1, over={'horizon': [3]})
    assert reproduce([dataclasses.replace(far, report='table', over={})], runs, out, ThisMachine(), quiet=True) == []
    (run,) = runs.glob('prisoner-*')
    assert main(['evaluate', str(run), '--over', 'horizon=3', '--episodes', '1', '--seed', '5']) == 0
    assert reproduce([far], runs, out, ThisMachine(), quiet=True) == []
    (row,) = [r for r in csv.DictReader((out / 'far/table.csv').read_text().splitlines()) if r['option']]
    assert 20 in {result['episodes'] for result in RunFolder(run).zero_shot()}  # measured anew, not taken from the look
    assert float(row['value']) == Run(run).evaluate(episodes=20, horizon=3)['return'].mean


def test_experiments_that_share_runs_keep_each_others_values_and_one_that_cannot_be_played_is_named(tmp_path):
    runs, out = tmp_path / 'runs', tmp_path / 'out'
    one, other = (
        dataclasses.replace(FAR, name=name, methods=FAR.methods[:1], seeds=1, over=over)
        for name, over in (('one', {'horizon': [3, 5]}), ('other', {'horizon': [4]}))
    )
    assert reproduce([one, other], runs, out, ThisMachine(), quiet=True) == []
    assert 'not run' not in (out / 'one/table.md').read_text() + (out / 'other/table.md').read_text()
    (path,) = runs.glob('*/zero_shot/*.json')
    before = path.stat().st_mtime_ns
    assert reproduce([other, one], runs, out, ThisMachine(), quiet=True) == []
    assert path.stat().st_mtime_ns == before  # nothing is measured again

    main(['evaluate', str(path.parents[1]), '--over', 'horizon=9'])  # 100 episodes: a file of its own
    reproduce([one], runs, out, ThisMachine(), quiet=True)
    assert 'not run' not in (out / 'one/table.md').read_text()

    jungle = Setting(label='jungle', scenario='jungle', options={**OPTIONS, 'num_agents': 3, 'size': 9, 'horizon': 4})
    wide = dataclasses.replace(one, name='wide', settings=(jungle,), over={'edge_features': [False]})
    failed = reproduce([wide, one], runs, out, ThisMachine(), quiet=True)
    assert len(failed) == 1
    assert failed[0].name.endswith(' over edge_features')
    assert "Here: 'edge_features'." in failed[0].reason
    assert 'not run' not in (out / 'one/table.md').read_text()


def test_where_there_are_tasks_one_episode_of_each_is_played_and_twenty_equal_ones_still_count(tmp_path):
    runs, out = tmp_path / 'runs', tmp_path / 'out'
    grid = Setting(label='grid', scenario='traffic', options={**OPTIONS, 'net': ('1x2',), 'horizon': 4})
    grids = dataclasses.replace(FAR, settings=(grid,), methods=FAR.methods[:1], over={'net': (('1x1',),)}, seeds=1)
    assert reproduce([grids], runs, out, ThisMachine(), quiet=True) == []
    (path,) = runs.glob('*/zero_shot/net.json')
    result = json.loads(path.read_text())
    assert result['episodes'] is None
    (setting,) = result['settings']
    assert {stat['count'] for stat in setting['eval'].values()} == {1}
    table = (out / 'far/table.csv').read_bytes()
    assert b'net,1x1' in table

    for flags, episodes in (['--episodes', '20'], 20), ([], None):
        main(['evaluate', str(path.parents[1]), '--over', 'net=1x1', *flags])
        assert json.loads(path.read_text())['episodes'] == episodes
        before = path.stat().st_mtime_ns
        assert reproduce([grids], runs, out, ThisMachine(), quiet=True) == []
        assert path.stat().st_mtime_ns == before  # not measured again
        assert (out / 'far/table.csv').read_bytes() == table
