"""How long ``ltos reproduce`` expects runs to take."""

from __future__ import annotations

import json

import pytest

from ltos_pyg.cli import main
from ltos_pyg.experiments.experiment import Run
from ltos_pyg.experiments.runner import Planned, config_of, longest_first
from ltos_pyg.experiments.speeds import START, expected_seconds, measure, speeds


@pytest.mark.parametrize(
    ('scenario', 'options', 'size'),
    [
        ('jungle', {}, 1.0),
        ('jungle', {'num_agents': 10}, 0.5),
        ('jungle', {'num_agents': 50}, 2.5),
        ('prisoner', {}, 1.0),
        ('dilemmas', {'num_agents': 8}, 1.0),  # its usual number depends on the game
    ],
)
def test_the_expected_time_is_proportional_to_the_number_of_agents(scenario, options, size):
    run = Run(scenario, (), 'dgn', 'default', tuple({**options, 'total_steps': 7000}.items()), 0)
    expected = START + 7 * size * speeds()[scenario]['dgn']
    assert expected_seconds(run, config_of(run)) == pytest.approx(expected)


def test_seeds_keep_their_order_and_the_longest_run_of_a_seed_starts_first(tmp_path):
    planned = []
    for seed, name, seconds in ((10, 'dqn', 30.0), (10, 'ltos', 300.0), (10, 'dgn', 100.0), (11, 'dqn', 30.0)):
        run = Run('prisoner', (), name, 'default', (), seed)
        planned.append(Planned(run, config_of(run), tmp_path / f'{name}{seed}', seconds))
    checkpoints = planned[1].folder / 'checkpoints'
    checkpoints.mkdir(parents=True)
    (checkpoints / f'step_{int(0.8 * planned[1].config.total_steps):09d}.pt').touch()
    order = [(one.run.seed, one.run.algo) for one in longest_first(planned)]
    assert order == [(10, 'dgn'), (10, 'ltos'), (10, 'dqn'), (11, 'dqn')]  # 60 s of 'ltos' are left


def test_speeds_are_measured_for_the_usual_number_of_agents(tmp_path):
    for name, agents, seconds in (('a', 20, 30.0), ('b', 60, 90.0)):
        (tmp_path / name).mkdir()
        config = {'scenario': 'jungle', 'algo': 'dgn', 'seed': 0, 'env': {'num_agents': agents}}
        (tmp_path / name / 'config.json').write_text(json.dumps(config))
        final = {'eval': {}, 'env_steps': 10_000, 'seconds': {'train': seconds}}
        (tmp_path / name / 'final.json').write_text(json.dumps(final))
    assert measure([tmp_path / 'a', tmp_path / 'b']) == {'jungle': {'dgn': 3.0}}


def test_a_plan_of_less_than_an_hour_is_in_minutes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('ltos_pyg.experiments.speeds.speeds', lambda: {'prisoner': {'qmix': 0.504}})
    command = ['reproduce', 'fig3a', '--seeds', '2', '--only', 'QMIX', '--total-steps', '5000000', '--jobs', '2']
    assert main([*command, '--runs', str(tmp_path), '--dry-run']) == 0
    assert 'about 1.4 hours of one core, 42.0 minutes with --jobs 2' in capsys.readouterr().out
