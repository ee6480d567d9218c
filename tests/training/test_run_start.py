"""How a run starts: sinks, locks, options that make no sense, options of earlier versions."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from run_zoo import FLAGS

from ltos_pyg import cli
from ltos_pyg.cli.train import parse_options
from ltos_pyg.registry import SCENARIOS, scenario
from ltos_pyg.training import lock_file
from ltos_pyg.training.config import RunConfig
from ltos_pyg.training.evaluate import eval_episodes, final_episodes
from ltos_pyg.training.run import train_run
from ltos_pyg.training.run_folder import RunFolder, provenance

# --- other places for the numbers ------------------------------------------------------------------------------------


def tiny(**train: Any) -> RunConfig:
    config = scenario('prisoner').config('dqn')
    small = {'num_envs': 4, 'eval_episodes': 2, 'final_episodes': 2, 'log_every': 20}
    return dataclasses.replace(
        config,
        algorithm=dataclasses.replace(config.algorithm, total_steps=40, learning_starts=8, hidden_channels=8),
        train=dataclasses.replace(config.train, **{**small, **train}),
    )


def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip('tensorboard')
    config = tiny(tensorboard=True)
    train_run(config, scenario('prisoner'), tmp_path)
    assert len(list((tmp_path / 'tensorboard').glob('events.*'))) == 1


def test_wandb_is_asked_for_by_name(tmp_path):
    if shutil.which('wandb'):
        pytest.skip('wandb is installed: this would report to it')
    config = tiny(wandb=True)
    with pytest.raises(ImportError, match=r"the wandb log needs the package 'wandb': install it with pip install"):
        train_run(config, scenario('prisoner'), tmp_path)


# --- what else can go wrong ------------------------------------------------------------------------------------------


def test_two_processes_cannot_train_in_one_folder(tmp_path, capsys):
    folder = tmp_path / 'shared'
    with RunFolder(folder).lock():
        assert cli.main([*FLAGS, '--out', str(folder)]) == 1
        said = capsys.readouterr().err
        assert re.search(rf"'{folder}' is in use: process \d+ on \S+ \(since .*\) trains in it\. Wait for it", said)
    assert not folder.exists()


def test_the_lock_of_a_process_that_died_counts_for_nothing(tmp_path):
    (tmp_path / 'run.lock').write_text('process 1 on elsewhere')
    with RunFolder(tmp_path).lock():
        assert 'on elsewhere' not in (tmp_path / 'run.lock').read_text()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path('/proc/self/fd').is_dir(), reason='lists the open files in /proc')
def test_the_lock_file_is_closed_first_where_open_files_are_not_removed(tmp_path, monkeypatch):
    def unlink(path: Path, missing_ok: bool = False) -> None:  # as on Windows
        if any(file.is_symlink() and os.readlink(file) == str(path) for file in Path('/proc/self/fd').iterdir()):
            raise OSError(f'{path} is open')
        os.unlink(path)

    monkeypatch.setattr(lock_file, 'fcntl', None)
    monkeypatch.setattr(Path, 'unlink', unlink)
    with RunFolder(tmp_path).lock():
        assert (tmp_path / 'run.lock').exists()
    assert not (tmp_path / 'run.lock').exists()


def test_a_start_that_fails_leaves_nothing_and_blocks_nothing(tmp_path):
    config = tiny()
    bad = dataclasses.replace(config, train=dataclasses.replace(config.train, wandb=True))
    if shutil.which('wandb') is None:
        with pytest.raises(ImportError, match='wandb'):
            train_run(bad, scenario('prisoner'), tmp_path / 'run')
        assert list(tmp_path.iterdir()) == []
    (tmp_path / 'config.json').write_text('{"name": "of another program"}')
    with pytest.raises(ValueError, match=r"config.json' was not written by a run, and is not changed"):
        train_run(config, scenario('prisoner'), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['config.json']
    (tmp_path / 'config.json').write_text(json.dumps(config.as_dict()))  # without checkpoints it counts as empty
    (tmp_path / 'metrics.jsonl').write_text('{"step": 0}\n')
    assert train_run(config, scenario('prisoner'), tmp_path)['env_steps'] == 40


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--out', ''], r"'--out' must name a folder \(got ''\)"),
        (['--resume'], r"runs/prisoner-ltos-seed0' holds no run to resume: expected a config\.json in it"),
        (['--n-step', '10000'], r"'n_step' must be at most 624, .* or nothing is learned \(got 10,000\)"),
        (['--algo', 'ltosedge'], r"unknown algorithm 'ltosedge'\. .* Did you mean 'ltos_edge'\?"),
    ],
)
def test_a_start_that_makes_no_sense_is_refused(tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*FLAGS, *args]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_whole_numbers_may_be_written_with_an_exponent():
    base = scenario('prisoner').config('ltos')
    _, config = parse_options(base, ['prisoner', '--total-steps', '2e4', '--lr=1e-4', '--num-envs=1.6e1'])
    assert (config.algorithm.total_steps, config.algorithm.lr, config.train.num_envs) == (20_000, 1e-4, 16)


def test_evaluations_are_sized_to_the_run():
    assert eval_episodes(7, 100, 10) == 7
    assert [eval_episodes(None, steps, 120) for steps in (6_000, 120_000, 10**7)] == [4, 20, 100]
    assert final_episodes(30, 100, 10, 4) == (30, 20)
    assert (eval_episodes(None, 10**7, 120, 25), eval_episodes(7, 10**7, 120, 25)) == (25, 7)
    assert final_episodes(None, 10**7, 120, 4, 25) == (25, 25)  # one of each task, under all modes
    assert final_episodes(None, 6_000, 120, 4) == (4, 0)  # too short for other modes
    assert final_episodes(None, 20_000, 120, 4) == (5, 2)
    policy, swap = final_episodes(None, 120_000, 120, 4)
    assert 0.07 < (policy + 4 * swap) * 120 / 120_000 <= 0.08


def test_the_results_of_earlier_versions_can_be_read():
    """Those of the repository: their options have other names by now, their numbers are the same."""
    folders = sorted((Path(__file__).parents[2] / 'docs' / 'results' / 'first_version').iterdir())
    assert len(folders) > 100
    for folder in folders:
        plain = RunFolder(folder)
        assert plain.read()['scenario'] in SCENARIOS
        assert plain.final()['eval']
        assert plain.metrics()


RENAMED_OPTIONS = [('fixed_ltos', 'own', 'kept'), ('ltos', 'initial_own', 'initial_kept')]


@pytest.mark.parametrize(('algo', 'old', 'new'), RENAMED_OPTIONS)
def test_options_of_earlier_versions_have_their_names_of_today(tmp_path, algo, old, new):
    config = scenario('prisoner').config(algo)
    plain = json.loads(json.dumps(config.as_dict()))
    plain['algorithm'][old] = plain['algorithm'].pop(new)
    (tmp_path / 'config.json').write_text(json.dumps(plain))
    assert RunFolder(tmp_path).config() == config


def test_the_stored_command_can_be_typed_again(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['/somewhere/bin/ltos', 'reproduce', 'fig5', '--only', 'fixed LToS'])
    assert provenance()['command'] == "ltos reproduce fig5 --only 'fixed LToS'"
