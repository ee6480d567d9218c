"""Policies in settings that they were not trained in: the same numbers as one by one, a table, and what is refused."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

import ltos_pyg
from ltos_pyg.cli import main
from ltos_pyg.envs import JungleEnv
from ltos_pyg.envs.traffic import TrafficConfig
from ltos_pyg.formatting import markdown
from ltos_pyg.graph_env import Symmetries
from ltos_pyg.training import zero_shot
from ltos_pyg.training.evaluate import evaluate, playing_in
from ltos_pyg.training.run_folder import RunFolder
from ltos_pyg.training.zero_shot import as_csv, metrics_of, result_name, table_cells

LOOP: dict[str, Any] = {
    'num_envs': 8,
    'learning_starts': 100,
    'eval_episodes': 2,
    'final_episodes': 3,
    'hidden_channels': 8,
    'encoder_channels': (8,),
}
JUNGLE: dict[str, Any] = {'num_agents': 5, 'num_foods': 4, 'size': 10, 'horizon': 12}


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> ltos_pyg.Run:
    """A short run of LToS on a small jungle."""
    out = tmp_path_factory.mktemp('zero_shot') / 'run'
    return ltos_pyg.train('jungle', 'ltos', 400, out=out, heads=2, **LOOP, **JUNGLE)


@pytest.fixture(scope='module')
def networked(tmp_path_factory: pytest.TempPathFactory) -> ltos_pyg.Run:
    """A short run of a method with networks per agent."""
    out = tmp_path_factory.mktemp('zero_shot') / 'neurcomm'
    return ltos_pyg.train('jungle', 'neurcomm', 200, out=out, num_envs=4, final_episodes=2, eval_episodes=2, **JUNGLE)


def test_numbers_that_are_not_finite_are_null_in_the_file_and_nan_in_the_table(tmp_path):
    stat = {'mean': math.nan, 'std': math.inf, 'count': 2}
    result = {'settings': [{'options': {'radius': math.inf}, 'trained': False, 'eval': {'reward': stat}}]}
    path = RunFolder(tmp_path).write_zero_shot('radius', result)
    (found,) = RunFolder(tmp_path).zero_shot()
    assert json.loads(path.read_text())['settings'][0]['eval']['reward'] == {'mean': None, 'std': None, 'count': 2}
    assert table_cells(found, ['reward'])[1] == [['radius=inf', 'nan ± nan']]
    assert as_csv(found, ['reward']).splitlines()[-1] == 'inf,false,reward,nan,nan,nan,nan,2'


def test_one_number_for_all_episodes_has_no_interval():
    stats = {'kept_std_states': {'mean': 0.25, 'std': 0.0, 'count': 3}}
    result = {'settings': [{'options': {'size': 9}, 'trained': False, 'eval': stats}]}
    assert table_cells(result, ['kept_std_states'])[1] == [['size=9', '0.250']]
    assert as_csv(result, ['kept_std_states']).splitlines()[-1] == '9,false,kept_std_states,0.25,,,,3'


def test_each_setting_has_the_numbers_of_an_evaluation_of_its_own(run):
    settings = run.evaluate_over(episodes=4, seed=7, num_agents=[5, 8], size=[10, 14], num_foods=3)
    assert [setting.options for setting in settings] == [
        {'num_agents': n, 'size': size} for n in (5, 8) for size in (10, 14)
    ]
    for setting in settings:
        assert setting.stats == run.evaluate(episodes=4, seed=7, num_foods=3, **setting.options)
    assert not any(setting.trained for setting in settings)  # three foods, not four
    with_training = run.evaluate_over(episodes=4, seed=7, num_agents=[5, 8, 5])
    assert [(str(setting), setting.trained) for setting in with_training] == [
        ('num_agents=5', True), ('num_agents=8', False)
    ]  # fmt: skip
    assert with_training[0].stats == run.evaluate(episodes=4, seed=7)


def test_on_another_board_the_policy_sees_that_boards_scale_and_symmetries(run):
    algorithm, spec = run.policy.algorithm, run.policy.spec
    env = JungleEnv(2, num_agents=7, num_foods=4, size=17)
    graph = env.reset(3)
    before = algorithm.inputs(graph)[0].clone()
    boards = Symmetries(env.spec.symmetries)
    with playing_in(algorithm, spec, env.spec), torch.no_grad():
        assert torch.equal(algorithm.inputs(graph)[0], graph.x * env.spec.scale())

        def values(g: Any) -> torch.Tensor:
            sharing = algorithm.sharing_under(g, 'phi')
            return algorithm.over_views(g, lambda views: algorithm.averaged_values(views, g, sharing))

        straight = values(graph)
        for number, view in enumerate(boards.views(graph)):
            torch.testing.assert_close(values(view)[:, boards.action[number]], straight)
    assert torch.equal(algorithm.inputs(graph)[0], before)
    assert not torch.equal(before, graph.x * env.spec.scale())


def test_the_command_prints_a_table_and_leaves_the_same_numbers(run, capsys):
    folder = str(run.folder)
    args = ['evaluate', folder, '--over', 'num_agents=5,8', '--over', 'graph=knn,radius', '--episodes', '4']
    assert main([*args, '--json']) == 0
    printed = json.loads(capsys.readouterr().out)
    path = run.folder / 'zero_shot' / 'num_agents+graph.json'
    assert json.loads(path.read_text()) == printed
    assert [setting['trained'] for setting in printed['settings']] == [True, False, False, False]
    alone = run.evaluate(episodes=4, num_agents=8, graph='radius')['reward']
    assert printed['settings'][-1]['eval']['reward'] == {'mean': alone.mean, 'std': alone.std, 'count': 4}

    assert main([*args, '--metric', 'reward', 'attacks']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ['setting', 'reward', 'attacks']
    assert lines[2].startswith('num_agents=5, graph=knn (as trained)')
    assert f'{alone.mean:.3f} ± {alone.ci95:.3f}' in lines[-1]

    assert main([*args, '--format', 'md']) == 0
    shown = capsys.readouterr().out.rstrip('\n')
    (stored,) = [result for result in RunFolder(folder).zero_shot() if len(result['settings']) == 4]
    assert shown == markdown(*table_cells(stored, metrics_of(stored, 'reward')))
    assert 'kept_std_nodes' not in shown.splitlines()[0]
    assert main([*args, '--format', 'csv', '--metric', 'reward']) == 0
    shown = capsys.readouterr().out.rstrip('\n')
    assert shown == as_csv(stored, ['reward'])
    rows = list(csv.DictReader(shown.splitlines()))
    assert [row['trained'] for row in rows] == ['true', 'false', 'false', 'false']
    assert float(rows[-1]['high']) == pytest.approx(alone.mean + alone.ci95)


def test_options_for_all_settings_are_part_of_the_name(run, capsys):
    fixed = ['--env', 'num_foods=2', '--env', 'horizon=3e0']
    args = ['evaluate', str(run.folder), '--over', 'size=10,12', *fixed, '--json']
    assert main([*args, '--episodes', '2']) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed['env'] == {'num_foods': 2, 'horizon': 3}
    assert printed['settings'][0]['eval']['length']['mean'] == 3
    assert (run.folder / 'zero_shot' / 'size--num_foods=2--horizon=3.json').is_file()
    assert main(['evaluate', str(run.folder), '--over', 'size=10', '--episodes', '2', '--temperature', '0.5']) == 0
    stored = json.loads((run.folder / 'zero_shot' / 'size--temperature=0.5.json').read_text())
    assert stored['temperature'] == 0.5


def test_a_name_of_many_files_is_cut():
    names = [result_name(['demands'], [f'net={"/folder/of/someone/" * 20}{i}.json']) for i in (1, 2)]
    assert all(len(name) <= 200 and name.startswith('demands--net=_folder_of_someone') for name in names)
    assert names[0] != names[1]
    assert result_name(['size'], ['horizon=3']) == 'size--horizon=3'


def test_one_episode_has_no_interval(run):
    stat = {'mean': 12.5, 'std': 0.0, 'count': 1}
    result = {'settings': [{'options': {'net': ('4x4', '6x6')}, 'trained': False, 'eval': {'duration': stat}}]}
    assert table_cells(result, ['duration']) == (['setting', 'duration'], [['net=4x4 6x6', '12.5']])
    assert as_csv(result, ['duration']).splitlines()[1] == '4x4 6x6,false,duration,12.5,,,0.0,1'


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (
            ['--over', 'num_agent=1,2'],
            "unknown option 'num_agent' of jungle. Choose from: num_agents, num_foods",
        ),
        (['--over', 'num_agents'], "'--over' takes options as NAME=VALUE,VALUE (got 'num_agents')"),
        (['--over', 'num_agents=5,,6'], "'--over' takes options as NAME=VALUE,VALUE (got 'num_agents=5,,6')"),
        (['--over', 'size=10', '--over', 'size=12'], "'--over' names 'size' twice"),
        (['--over', 'size=10', '--env', 'size=12'], "'size' is given by both --env and --over"),
        (['--over', 'size=10', '--env', 'siz=12'], "unknown option 'siz' of the environment. Choose from: num_agents"),
        (['--metric', 'reward'], "'--metric' and '--format' are of the table of --over (got no --over)"),
        (
            ['--over', 'view=5,3', '--env', 'num_foods=2'],
            "setting view=3: the policy cannot act in this environment: 'num_features' expected 123, got 51. Leave out "
            "the options that change what agents observe or do, or train with them. Here: 'view'.",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused_by_name(run, capsys, args, message):
    before = {path: path.read_bytes() for path in run.folder.rglob('*.json')}
    assert main(['evaluate', str(run.folder), *args, '--episodes', '2']) == 1
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.folder.rglob('*.json')} == before


def test_python_refuses_what_makes_no_sense(run):
    with pytest.raises(ValueError, match='needs a list for at least one option'):
        run.evaluate_over(num_agents=10)
    with pytest.raises(ValueError, match="unknown option 'num_agnets'"):
        run.evaluate_over(size=[10], num_agnets=3)
    with pytest.raises(ValueError, match=r"setting num_agents=0: 'num_agents' must be an integer of at least 1"):
        run.evaluate_over(num_agents=[5, 0])
    with pytest.raises(ValueError, match=r"'size' needs at least one value"):
        run.evaluate_over(size=[])


def test_a_method_with_networks_per_agent_says_which_setting_has_too_many_agents(networked):
    with pytest.raises(ValueError, match=r"setting num_agents=9: neurcomm cannot act in it: .*'max_agents'"):
        networked.evaluate_over(episodes=2, num_agents=[3, 5, 9])
    assert [s.stats['length'].mean for s in networked.evaluate_over(episodes=2, num_agents=[3, 5])] == [12.0, 12.0]


def test_an_unknown_metric_costs_one_setting_only(run, monkeypatch, capsys):
    played = []
    monkeypatch.setattr(zero_shot, 'evaluate', lambda *args, **more: played.append(1) or evaluate(*args, **more))
    over = ['--over', 'num_agents=5,6,7', '--episodes', '2']
    assert main(['evaluate', str(run.folder), *over, '--metric', 'rewart']) == 1
    assert "unknown metric 'rewart'. Choose from:" in capsys.readouterr().err
    assert len(played) == 1


def test_flows_of_training_are_not_played_on_another_network():
    trained = TrafficConfig(net=('6x6',), flow=('a.json',))
    for allowed in (trained, replace(trained, net=('4x4',), flow=()), replace(trained, net=('4x4',), flow=('b.json',))):
        zero_shot.check_evaluation(trained, allowed)
    with pytest.raises(
        ValueError, match=r"'net' was changed to 4x4, but 'flow' is still that of training \('a.json'\)"
    ):
        zero_shot.check_evaluation(trained, replace(trained, net=('4x4',)))
    zero_shot.check_evaluation(JUNGLE, JUNGLE)  # options without such a rule
