"""Experiments as data: names, commands, TOML files, the catalogue."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from ltos_pyg.cli import main
from ltos_pyg.cli.train import parse_options
from ltos_pyg.envs import DilemmasEnv
from ltos_pyg.envs.traffic.metrics import DESCRIPTIONS
from ltos_pyg.experiments.catalogue import EXPERIMENTS, each_with_seeds, experiment
from ltos_pyg.experiments.experiment import MEASURING, Experiment, Method, Run, Setting, read_experiment
from ltos_pyg.experiments.runner import config_of, plan
from ltos_pyg.registry import scenario
from ltos_pyg.training.metrics import LESS_IS_BETTER, less_is_better
from ltos_pyg.training.run_folder import RunFolder

TOML = """
title = "My table"
seeds = 2
first_seed = 3
metric = "reward"

[[settings]]
label = "N = 10"
scenario = "jungle"
options = { num_agents = 10 }

[[methods]]
algo = "dgn"

[[methods]]
label = "big DQN"
algo = "dqn"
options = { encoder_channels = [64, 32], augment = false }
seeds = 1
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / 'mine.toml'
    path.write_text(text)
    return path


def test_a_toml_file_gives_the_runs(tmp_path):
    mine = read_experiment(write(tmp_path, TOML))
    assert (mine.name, mine.title, mine.metric) == ('mine', 'My table', 'reward')
    assert [run.name for run in mine.runs()] == [
        'jungle-num_agents=10-dgn-seed3',
        'jungle-num_agents=10-dqn-augment=False-encoder_channels=64+32-seed3',
        'jungle-num_agents=10-dgn-seed4',
    ]
    assert list(mine.runs())[1].arguments(Path('out')) == [
        'train', 'jungle', '--algo', 'dqn', '--num-agents', '10', '--no-augment', '--encoder-channels', '64', '32',
        '--seed', '3', '--label', 'dqn-augment=False-encoder_channels=64+32', '--no-media', '--out', 'out',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ('seeds = 2', 'sedes = 2', r"line 3: unknown key 'sedes' in the top level. Allowed: name, title"),
        ('seeds = 1', 'sede = 1', r"line 19: unknown key 'sede' in \[\[methods\]\]. Allowed: label, algo"),
        ('seeds = 2', 'seeds = "two"', r"line 3: 'seeds' must be of type int \(got 'two'\)"),
        ('seeds = 2', 'imports = "mine"', r"line 3: 'imports' must be of type list \(got 'mine'\)"),
        (
            'seeds = 2',
            'report = "pie"',
            r"line 3: 'report' must be one of table, curves, line, sharing, zero_shot \(got 'pie'\)",
        ),
        ('seeds = 2', 'compared = "LToS"', r"'compared' must be the label of a method: .* \(got 'LToS'\)"),
        ('algo = "dqn"', '', r'line 15: \[\[methods\]\] needs algo'),
        ('seeds = 2', 'files = true', r"line 3: unknown key 'files' in the top level"),
        ('seeds = 2', 'imports = [1]', r"line 3: 'imports' must be a list of the names of modules \(got \[1\]\)"),
        ('seeds = 2', 'seeds = 0', r"'seeds' must be at least 1 \(got 0\)"),
        ('seeds = 1', 'seeds = -1', r"'seeds' must be at least 1, or be left out \(got -1\)"),
        ('num_agents = 10', 'seed = 3', r"'seed' cannot be an option of setting 'N = 10'"),
        ('augment = false', 'media = true', r"'media' cannot be an option of method 'big DQN'"),
        ('seeds = 2', 'paper = { DGN = { "N = 10" = 0.5 } }', r"line 3: 'paper' names an unknown method, 'DGN'"),
        ('seeds = 2', 'paper = { dgn = { "N=10" = 0.5 } }', r"line 3: 'paper' names an unknown setting, 'N=10'"),
        ('seeds = 2', 'name = "table1"', r"line 3: the name 'table1' is that of an experiment of ltos_pyg"),
        ('seeds = 2', 'name = "a/b"', r"line 3: the name 'a/b' cannot be that of a folder"),
        ('[[settings]]', '[[places]]', r'line 1: expected one or more tables \[\[settings\]\] \(got None\)'),
        ('seeds = 2', 'seeds = = 2', r'is not valid TOML: .*line 3'),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(tmp_path, old, new, message):
    with pytest.raises(ValueError, match=r"mine.toml'.*" + message):
        read_experiment(write(tmp_path, TOML.replace(old, new)))


def test_a_file_that_is_not_utf_8_is_named(tmp_path):
    (tmp_path / 'mine.toml').write_bytes('title = "Fünf"'.encode('latin-1'))
    with pytest.raises(ValueError, match=r"mine.toml' is not valid TOML: it is not in UTF-8"):
        read_experiment(tmp_path / 'mine.toml')


def test_whole_options_may_be_written_as_powers_of_ten_and_none_as_text(tmp_path):
    """What the plan accepts is what the command of the run accepts."""
    options = 'total_steps = 2e4, gamma = 1.0, eval_every = 1e3, final_episodes = "none"'
    mine = read_experiment(write(tmp_path, TOML.replace('num_agents = 10', f'num_agents = 10.0, {options}')))
    first = next(mine.runs())
    assert first.name == 'jungle-gamma=1.0-num_agents=10-total_steps=20000-dgn-seed3'
    arguments = first.arguments(tmp_path)[1:]
    assert arguments[3:13] == [
        '--eval-every', '1000', '--final-episodes', 'None', '--gamma', '1.0', '--num-agents', '10', '--total-steps',
        '20000',
    ]  # fmt: skip
    _, config = parse_options(scenario('jungle').config('dgn'), arguments)
    assert config.fingerprint() == config_of(first).fingerprint()
    assert config.train.final_episodes is None
    odd = dataclasses.replace(mine, methods=(Method(label='a', algo='dqn', options={'n_step': 1.5, 'augment': 2.0}),))
    with pytest.raises(ValueError, match=r"'augment' must be True or False \(got 2.0\)"):
        plan(odd.runs(), tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none.toml' cannot be read: No such file"):
        read_experiment(tmp_path / 'none.toml')


def test_equal_runs_have_one_folder_and_different_ones_do_not():
    runs = {run for name in ('table1', 'fig3b', 'fig4', 'sharing-jungle') for run in EXPERIMENTS[name].runs()}
    by_name = {}
    for run in runs:
        assert by_name.setdefault(run.name, run) == run
    shared = set(EXPERIMENTS['table1'].runs()) & set(EXPERIMENTS['sharing-jungle'].runs())
    assert {run.algo for run in shared} == {'ltos', 'ltos_edge', 'fixed_ltos', 'dgn'}


def test_options_of_measurement_are_not_in_a_name():
    run = Run('jungle', (('final_episodes', 100), ('num_agents', 10)), 'pack.age:VDN', 'paper', (), 1)
    assert run.name == 'jungle-num_agents=10-VDN-paper-seed1'
    assert run.arguments(Path('x'))[:6] == ['train', 'jungle', '--algo', 'pack.age:VDN', '--preset', 'paper']


def test_runs_come_seed_by_seed():
    one = Experiment(
        name='x', title='x', seeds=2, first_seed=0, settings=(Setting(label='s', scenario='prisoner'),),
        methods=(Method(label='a', algo='dqn'), Method(label='b', algo='dgn', seeds=3)),
    )  # fmt: skip
    assert [(run.algo, run.seed) for run in one.runs()] == [
        ('dqn', 0), ('dgn', 0), ('dqn', 1), ('dgn', 1), ('dgn', 2)
    ]  # fmt: skip
    short = one.limited(seeds=1, only='B', steps=500)
    assert [(run.algo, run.seed, run.options) for run in short.runs()] == [('dgn', 0, {'total_steps': 500})]
    with pytest.raises(ValueError, match=r"no method of 'x' contains 'zzz'. Choose from: a, b"):
        one.limited(only='zzz')


def test_experiments_with_road_networks_need_their_folder(tmp_path):
    with pytest.raises(ValueError, match=r"'table3' needs road networks .*roadnet_6_6.json.*--data \(got None\)"):
        experiment('table3')
    for name in ('roadnet_6_6', 'anon_6_6_small_2570_bi', 'roadnet_1_33', 'anon_1_33_fuhua_0.4x24hto1h'):
        (tmp_path / f'{name}.json').write_text('{}')
    found = experiment('table3', tmp_path)
    assert found.settings[0].options['net'] == (str(tmp_path / 'roadnet_6_6.json'),)
    with pytest.raises(ValueError, match=r"unknown experiment 'tabel1'. Choose from: fig3a"):
        experiment('tabel1')


def test_methods_with_other_seeds_keep_all_else():
    paper = Method(label='a', algo='ltos', preset='paper', options={'phi_every': 4})
    assert each_with_seeds((paper,), 2) == (dataclasses.replace(paper, seeds=2),)


def test_every_paper_number_belongs_to_a_cell():
    for one in EXPERIMENTS.values():
        labels = {method.label for method in one.methods}, {setting.label for setting in one.settings}
        for method, numbers in one.paper.items():
            assert method in labels[0], (one.name, method)
            assert set(numbers) <= labels[1], (one.name, method)


def test_the_metric_of_each_setting_is_one_that_its_environment_reports():
    settings = [setting for known in EXPERIMENTS.values() for setting in known.settings if setting.metric is not None]
    assert settings
    assert {setting.metric for setting in settings if setting.scenario == 'traffic'} <= set(DESCRIPTIONS)
    assert all(setting.scenario == 'traffic' for setting in settings)  # only there is it not the primary metric


def test_less_is_better_in_what_is_lost_and_in_the_metrics_of_traffic_that_tables_compare():
    lost = set()
    for env in (DilemmasEnv(graph=graph) for graph in ('groups', 'double_star', 'offers')):
        none = torch.zeros(env.reset(0).num_nodes, dtype=torch.long)
        lost |= {name for name in env.step(none).info if name.startswith('lost_')}
    assert lost == {name for name in LESS_IS_BETTER if name.startswith('lost_')}
    assert set(LESS_IS_BETTER) <= {*DESCRIPTIONS, 'attacks', 'blanks', *lost}
    assert less_is_better('queue', 'average_travel_time', True)
    assert not less_is_better('return', 'average_travel_time', True)
    assert not less_is_better('finished', 'average_travel_time', True)
    assert less_is_better('attacks', 'reward', False)
    assert less_is_better('mine', 'mine', True)


def test_figure_5_has_three_foods_for_five_agents_as_the_paper_has():
    for setting in EXPERIMENTS['fig5'].settings:
        options = {'num_agents': 20, 'num_foods': 12} | dict(setting.options)
        assert options['num_agents'] == setting.x
        assert 5 * options['num_foods'] == 3 * options['num_agents']


def two(labels: tuple[str, str] = ('one', 'two'), **fields: Any) -> Experiment:
    methods = tuple(Method(label=label, algo='dqn') for label in labels)
    settings = fields.pop('settings', (Setting(label='prisoner', scenario='prisoner'),))
    return Experiment(name='two', title='Two', settings=settings, methods=methods, **fields)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'labels': ('dqn', 'dqn')}, "two methods have the label 'dqn'"),
        ({'settings': (Setting(label='a', scenario='prisoner'),) * 2}, "two settings have the label 'a'"),
        ({'report': 'line'}, "give each of the settings an 'x'"),
        ({'paper': {'dqn': 0.5}}, "'paper' has numbers by method and setting"),
        ({'paper': {'dqn': {'prisoner': '0.5'}}}, "'paper' has numbers by method and setting"),
    ],
)
def test_an_experiment_that_cannot_be_reported_is_refused_before_it_is_trained(fields, message):
    with pytest.raises(ValueError, match=message):
        two(**fields)


def test_a_run_cannot_have_two_evaluations_at_once(tmp_path):
    def run(*options: tuple[str, int]) -> Run:
        return Run('prisoner', options, 'dqn', 'default', (), 10)

    usual = config_of(run()).train.final_episodes
    assert usual is not None
    (one,) = plan([run(), run(('final_episodes', usual))], tmp_path)
    assert one.run == run()
    for name in MEASURING:
        with pytest.raises(ValueError, match=f"'prisoner-dqn-seed10' is asked for twice, with {name} = .* Give both"):
            plan([run(), run((name, 7))], tmp_path)


def test_a_number_and_its_whole_float_are_planned_under_both_names(tmp_path):
    runs = [Run('jungle', (), 'fixed_ltos', 'default', (('kept', kept),), 10) for kept in (1, 1.0)]
    assert [one.run.name for one in plan([*runs, *runs], tmp_path)] == [run.name for run in runs]
    assert runs[0].name != runs[1].name


def test_a_finished_run_of_other_evaluation_episodes_is_refused(tmp_path):
    run = Run('prisoner', (), 'dqn', 'default', (), 10)
    folder = RunFolder(tmp_path / run.name)
    folder.write_config(config_of(run))
    folder.write_final({'eval': {'policy': {}}, 'env_steps': 1})
    assert plan([run], tmp_path)[0].state == 'finished'
    with pytest.raises(ValueError, match=r'train\.eval_seed is 1000000, not 7'):
        plan([dataclasses.replace(run, setting=(('eval_seed', 7),))], tmp_path)


def test_two_runs_that_would_share_a_folder_are_refused(tmp_path):
    runs = [Run('traffic', (('net', (f'{place}/roadnet.json',)),), 'dqn', 'default', (), 10) for place in ('a', 'b')]
    assert runs[0].name == runs[1].name
    with pytest.raises(ValueError, match=r"two different runs have the same name, 'traffic-net=roadnet-dqn-seed10'"):
        plan(runs, tmp_path)


def test_files_are_compared_by_their_content_and_not_by_where_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ('a', 'b', 'c'):
        Path(folder).mkdir()
        for name in ('roadnet_6_6.json', 'anon_6_6_small_2570_bi.json'):
            (Path(folder) / name).write_text('{"c": 1}' if folder == 'c' else '{}')

    def planned(data: Path) -> Any:
        (one,) = plan(experiment('fig3c', data).limited(1, 'DQN').runs(), tmp_path / 'runs')
        return one

    first = planned(Path('a'))
    run = RunFolder(first.folder)
    run.write_config(first.config)
    run.write_final({'eval': {'policy': {}}, 'env_steps': 1})
    assert len(run.read()['files']) == 2
    assert {planned(data).state for data in (Path('a'), tmp_path / 'a', Path('b'))} == {'finished'}
    with pytest.raises(ValueError, match=r"env.net is \['a/roadnet_6_6.json'\], not \['c/roadnet_6_6.json'\]"):
        planned(Path('c'))
    Path('a/roadnet_6_6.json').write_text('{"new": 1}')
    with pytest.raises(ValueError, match=r"env.net is \['a/roadnet_6_6.json'\], with other content"):
        planned(Path('a'))
    assert planned(Path('b')).state == 'finished'  # it is known what it was trained with
    (one,) = experiment('fig3c', Path('a')).limited(1, 'DQN').runs()
    for file in Path('a').iterdir():
        file.unlink()
    assert plan([one], tmp_path / 'runs')[0].state == 'finished'  # as far as it is known


def test_a_name_that_is_too_long_for_a_folder_has_a_hash_and_others_are_as_they_were():
    def run(seed: int, **options: Any) -> Run:
        return Run('prisoner', tuple(options.items()), 'dqn', 'default', (), seed)

    assert run(10, gamma=0.5).name == 'prisoner-gamma=0.5-dqn-seed10'
    edge = run(10, net='x' * (200 - len('prisoner-net=-dqn-seed10')))
    assert len(edge.name) == 200
    assert edge.name.endswith('x-dqn-seed10')
    many = {f'option_{i}': i for i in range(30)}
    first, other, second = run(10, **many), run(10, **many | {'option_29': 0}), run(11, **many)
    assert len(first.name) == 200
    assert first.name.startswith('prisoner-option_0=0-option_1=1-')
    assert first.name != other.name
    assert first.name.removesuffix('-seed10') == second.name.removesuffix('-seed11')


def test_two_environments_of_one_name_do_not_share_a_folder(tmp_path):
    code = """
from ltos_pyg.envs import PrisonerEnv

class Walk(PrisonerEnv):
    pass
"""
    for name in ('walks_a', 'walks_b'):
        (tmp_path / f'{name}.py').write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        runs = [Run(f'{module}:Walk', (), 'dqn', 'default', (), 10) for module in ('walks_a', 'walks_b')]
        with pytest.raises(ValueError, match="two different runs have the same name, 'Walk-dqn-seed10'"):
            plan(runs, tmp_path / 'runs')


def test_a_finished_run_that_cannot_be_measured_again_keeps_its_result(tmp_path):
    options = {'total_steps': 80, 'num_envs': 4, 'learning_starts': 40, 'eval_every': 40, 'eval_episodes': 2}

    def run(**more: int) -> Run:
        return Run('prisoner', tuple((options | more).items()), 'dqn', 'default', (), 10)

    first = run(final_episodes=2)
    assert main([*first.arguments(tmp_path / first.name)]) == 0
    (planned,) = plan([run(final_episodes=4)], tmp_path)
    assert planned.remeasure
    with pytest.raises(ValueError, match='must keep its other evaluations: eval_every is 40, not 20'):
        plan([run(final_episodes=4, eval_every=20)], tmp_path)
