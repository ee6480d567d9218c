"""Runs by the command: what they leave, killed and resumed, finished and damaged."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from run_zoo import FLAGS, LAST
from torch import Tensor

from ltos_pyg import cli
from ltos_pyg.registry import scenario
from ltos_pyg.training import lock_file, run
from ltos_pyg.training.checkpoint import CheckpointStore
from ltos_pyg.training.logging import read_metrics
from ltos_pyg.training.run import load_algorithm
from ltos_pyg.training.run_folder import RunFolder


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    """The run in a process of its own."""
    command = [sys.executable, '-m', 'ltos_pyg.cli', *FLAGS, '--out', str(folder), *more]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests may run under nohup
    )


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    for _ in range(15_000):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError('nothing happened for five minutes')


def steps_in(folder: Path) -> list[int]:
    return CheckpointStore(folder / 'checkpoints').steps()


def flat(value: Any, name: str = '') -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flat(item, f'{name}.{key}')
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from flat(item, f'{name}[{i}]')
    else:
        yield name, value


def assert_same_end(folder: Path, other: Path) -> None:
    """The last checkpoints hold the same bits, and the logs and results the same numbers, but for the clock."""
    (step, state), (step_other, expected) = (CheckpointStore(f / 'checkpoints').load_latest() for f in (folder, other))
    assert step == step_other == LAST
    got, want = dict(flat(state)), dict(flat(expected))
    assert got.keys() == want.keys()
    for name, value in want.items():
        if 'seconds' not in name:
            same = torch.equal(got[name], value) if isinstance(value, Tensor) else got[name] == value
            assert same, name
    assert rows(folder) == rows(other)
    final, final_other = (json.loads((f / 'final.json').read_text()) for f in (folder, other))
    final.pop('seconds'), final_other.pop('seconds')
    assert final == final_other


def rows(folder: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if 'seconds' not in name}
        for row in read_metrics(folder / 'metrics.jsonl')
    ]


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp('run') / 'whole'
    assert cli.main([*FLAGS, '--out', str(folder)]) == 0
    return folder


@pytest.fixture
def broken_off(whole: Path, tmp_path: Path) -> Path:
    """A copy of that run as if it had been killed before its last checkpoint."""
    folder = tmp_path / 'broken_off'
    shutil.copytree(whole, folder)
    (folder / 'final.json').unlink()
    (folder / 'checkpoints' / f'step_{LAST:09d}.pt').unlink()
    return folder


def resume(folder: Path, *more: str) -> int:
    return cli.main([*FLAGS, '--out', str(folder), '--resume', *more])


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob('*')
        if path.is_file()
    }


# --- what a run leaves behind ----------------------------------------------------------------------------------------


def test_a_run_leaves_its_options_its_versions_its_numbers_and_its_result(whole):
    config = json.loads((whole / 'config.json').read_text())
    assert (config['scenario'], config['algo'], config['preset'], config['seed']) == ('prisoner', 'ltos', 'default', 0)
    assert config['algorithm']['hidden_channels'] == 16
    assert config['versions']['torch'] == torch.__version__
    assert {'python', 'ltos_pyg', 'torch_geometric', 'numpy'} < config['versions'].keys()
    assert config['git_commit'] is None or re.fullmatch(r'[0-9a-f]{40}(-dirty)?', config['git_commit'])
    assert steps_in(whole) == [1440, LAST]
    assert [row['step'] for row in rows(whole) if 'eval/return' in row] == [0, 400, 800, 1200, LAST]
    assert len(rows(whole)) == 5 + LAST // 160


def test_the_result_has_mean_deviation_and_count_of_every_metric(whole):
    final = json.loads((whole / 'final.json').read_text())
    assert (final['env_steps'], final['updates']) == (LAST, (LAST - 80) // 16)
    assert final['eval_seed'] == RunFolder(whole).config().train.eval_seed + 1
    assert list(final['eval']) == ['policy', 'constant', 'uniform', 'keep', 'random']
    for stats in final['eval'].values():
        assert {'return', 'reward', 'length', 'kept', 'kept_std_nodes', 'kept_std_states', 'uneven'} <= stats.keys()
        for stat in stats.values():
            assert stat.keys() == {'mean', 'std', 'count'}
            assert stat['count'] == 6
            assert stat['std'] >= 0
    assert {f'switched_{mode}' for mode in final['eval']} - {'switched_policy'} <= final['eval']['policy'].keys()
    assert final['eval']['keep']['kept'] == {'mean': 1.0, 'std': 0.0, 'count': 6}


def test_the_configuration_of_a_folder_is_the_one_it_was_made_with(whole):
    written = json.loads((whole / 'config.json').read_text())
    read = json.loads(json.dumps(RunFolder(whole).config().as_dict()))
    assert read == {name: written[name] for name in read}
    assert RunFolder(whole).config().algorithm.encoder_channels == (16,)


def test_the_trained_algorithm_of_a_folder_acts_as_it_was_evaluated(whole):
    config = RunFolder(whole).config()
    make_env = scenario('prisoner').make_env(config)
    algorithm = load_algorithm(config, make_env(1).spec, whole)
    assert algorithm.env_steps == LAST
    again = run.final_evaluation(algorithm, make_env, config)
    assert again['eval'] == json.loads((whole / 'final.json').read_text())['eval']


# --- killed, stopped, taken up again ---------------------------------------------------------------------------------


def test_a_run_that_was_killed_ends_in_the_same_weights(whole, tmp_path):
    folder = tmp_path / 'killed'
    process = start(folder)
    until(lambda: len(steps_in(folder)) > 0, process)
    time.sleep(random.uniform(0, 0.15))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / 'final.json').exists()
    assert resume(folder) == 0
    assert_same_end(folder, whole)


def test_ctrl_c_saves_and_the_run_continues_where_it_was(whole, tmp_path):
    folder = tmp_path / 'stopped'
    process = start(folder, '--checkpoint-every', '100000')
    metrics = folder / 'metrics.jsonl'
    until(lambda: metrics.exists() and len(metrics.read_bytes().splitlines()) > 2, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == cli.INTERRUPTED == 130
    assert said.endswith('Stopped. The run was saved; continue it with --resume.\n')
    assert len(steps_in(folder)) == 1
    assert 0 < steps_in(folder)[0] < LAST
    assert resume(folder) == 0
    assert_same_end(folder, whole)


def test_a_run_that_ends_while_another_waits_for_its_folder_is_left_as_it_is(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(lock_file, 'PATIENCE', 60)
    folder = tmp_path / 'shared'
    folder.mkdir()
    with ThreadPoolExecutor() as pool:
        with RunFolder(folder).lock():
            config = RunFolder(whole).config()
            waits = pool.submit(run.train_run, config, scenario('prisoner'), folder)
            time.sleep(1)
            for path in whole.iterdir():
                shutil.copytree(path, folder / path.name) if path.is_dir() else shutil.copy(path, folder)
        with pytest.raises(ValueError, match=r'already holds a run\. Continue it with --resume'):
            waits.result()
    assert_same_end(folder, whole)


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(whole, broken_off):
    shutil.rmtree(broken_off / 'checkpoints')
    assert resume(broken_off) == 0
    assert_same_end(broken_off, whole)


def test_a_checkpoint_that_was_cut_off_is_passed_over(whole, broken_off):
    shutil.copy(whole / 'checkpoints' / f'step_{LAST:09d}.pt', broken_off / 'checkpoints')
    newest = broken_off / 'checkpoints' / f'step_{LAST:09d}.pt'
    newest.write_bytes(newest.read_bytes()[:-1000])
    with pytest.warns(UserWarning, match=rf"checkpoint '{newest}' is damaged .* skipped"):
        assert resume(broken_off) == 0
    assert_same_end(broken_off, whole)


def test_a_log_that_was_cut_off_loses_its_last_line_only(whole, broken_off):
    metrics = broken_off / 'metrics.jsonl'
    lines = metrics.read_bytes().splitlines(keepends=True)
    assert json.loads(lines[-3])['step'] == 1440
    metrics.write_bytes(b''.join(lines[:-2]) + lines[-2][:40])
    with pytest.warns(UserWarning, match=rf"dropped an unfinished last line of '{metrics}' \(40 bytes\)"):
        assert resume(broken_off) == 0
    assert_same_end(broken_off, whole)


def test_rows_after_the_checkpoint_are_not_there_twice(whole, broken_off):
    assert rows(broken_off)[-1]['step'] == LAST  # the log had gone on
    assert resume(broken_off) == 0
    logged = [(row['step'], 'eval/return' in row) for row in rows(broken_off)]
    assert len(logged) == len(set(logged))
    assert_same_end(broken_off, whole)


def test_a_run_killed_in_its_last_evaluation_only_evaluates(whole, broken_off, capsys):
    shutil.copy(whole / 'checkpoints' / f'step_{LAST:09d}.pt', broken_off / 'checkpoints')
    assert resume(broken_off) == 0
    assert '1,600 env steps, 95 gradient steps' in capsys.readouterr().out
    assert_same_end(broken_off, whole)


def test_what_is_recorded_may_change_and_what_is_learnt_may_not(whole, broken_off, capsys):
    more = ('--checkpoint-every', '90', '--final-episodes', '5')
    assert resume(broken_off, *more, '--gamma', '0.5', '--horizon', '7') == 1
    said = capsys.readouterr().err
    assert "'algorithm.gamma' expected 0.5, got 0.99; 'env.horizon' expected 7, got 50" in said
    assert 'belongs to another config' in said
    assert resume(broken_off, *more) == 0
    final, expected = (CheckpointStore(f / 'checkpoints').load_latest()[1] for f in (broken_off, whole))
    weights, wanted = (dict(flat(state['algorithm']['modules'])) for state in (final, expected))
    assert all(torch.equal(weights[name], value) for name, value in wanted.items())


# --- finished, occupied, damaged -------------------------------------------------------------------------------------


def test_a_finished_run_gives_its_result_and_changes_nothing(whole, capsys):
    before = contents(whole)
    assert resume(whole) == 0
    assert '1,600 env steps, 95 gradient steps' in capsys.readouterr().out
    assert contents(whole) == before


def test_a_finished_run_is_measured_again_and_renamed(whole, tmp_path, monkeypatch, capsys):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / 'copy'
    shutil.copytree(whole, folder)
    before = contents(folder)
    assert resume(folder, '--label', 'LToS, small') == 0
    assert json.loads((folder / 'config.json').read_text()) == json.loads((whole / 'config.json').read_text()) | {
        'label': 'LToS, small'
    }
    assert {name for name, content in contents(folder).items() if content != before[name]} == {'config.json'}
    (folder / 'zero_shot').mkdir()
    (folder / 'zero_shot' / 'horizon.json').write_text('{}')
    assert resume(folder, '--final-episodes', '3') == 0
    assert 'evaluated again: final_episodes was 6 and is 3 now' in capsys.readouterr().err
    final = json.loads((folder / 'final.json').read_text())
    assert (final['env_steps'], final['updates']) == (LAST, (LAST - 80) // 16)
    assert {stats['return']['count'] for stats in final['eval'].values()} == {3}
    config = json.loads((folder / 'config.json').read_text())
    assert (config['label'], config['train']['final_episodes']) == ('LToS, small', 3)
    assert rows(folder) == rows(whole)
    assert (folder / 'zero_shot' / 'horizon.json').is_file()  # still true
    before = contents(folder)
    with monkeypatch.context() as patch:
        patch.setattr(run, 'final_evaluation', interrupted)
        assert resume(folder, '--final-episodes', '4') != 0
    for name in ('final.json', 'config.json'):  # of three episodes, until they are measured again
        assert contents(folder)[name] == before[name]
    assert resume(folder) == 0  # six, as FLAGS say
    assert (
        json.loads((folder / 'final.json').read_text())['eval']
        == json.loads((whole / 'final.json').read_text())['eval']
    )


def test_a_finished_run_of_another_configuration_is_not_passed_off_as_this_one(whole, capsys):
    before = contents(whole)
    assert resume(whole, '--seed', '4') == 1
    assert "'seed' expected 4, got 0; 'train.seed' expected 4, got 0" in capsys.readouterr().err
    assert contents(whole) == before


def test_a_folder_that_holds_a_run_is_not_written_over(whole, capsys):
    before = contents(whole)
    assert cli.main([*FLAGS, '--out', str(whole)]) == 1
    said = capsys.readouterr().err
    assert f"'{whole}' already holds a run. Continue it with --resume, or choose another folder with --out." in said
    assert contents(whole) == before


def test_no_sound_checkpoint_is_an_error_and_not_a_new_start(broken_off, capsys):
    for step in steps_in(broken_off):
        (broken_off / 'checkpoints' / f'step_{step:09d}.pt').write_bytes(b'')
    before = contents(broken_off)
    with pytest.warns(UserWarning, match='is damaged'):
        assert resume(broken_off) == 1
    assert 'can be loaded: expected a sound file, got 1 damaged' in capsys.readouterr().err
    assert contents(broken_off) == before


FULL_DISK = """
import resource, sys
from ltos_pyg import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.exit(cli.main(sys.argv[2:]))
"""


def test_a_full_disk_is_reported_and_the_earlier_checkpoint_continues(whole, tmp_path):
    folder = tmp_path / 'full'
    room = int(0.8 * (whole / 'checkpoints' / f'step_{LAST:09d}.pt').stat().st_size)  # checkpoints grow with the replay
    command = [sys.executable, '-c', FULL_DISK, str(room), *FLAGS, '--out', str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    kept = steps_in(folder)
    assert done.returncode == 1
    assert kept
    assert re.search(
        rf"ltos: .*cannot write '.*step_{kept[-1] + 160:09d}.pt': the file is larger than allowed here "
        rf'\([\d,]+ bytes free; there was no earlier file\)\. Free some space, or choose another folder, and go on\. '
        rf'Earlier checkpoints are kept: steps \[{", ".join(map(str, kept))}\]\.\n$',
        done.stderr,
    )
    assert 'Traceback' not in done.stderr
    assert not list(folder.rglob('*.tmp'))
    assert resume(folder) == 0
    assert_same_end(folder, whole)


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (
            lambda c: c['algorithm'].update(warp=9),
            r'options that this version .* does not know: warp\. Use the version',
        ),
        (lambda c: c['train'].update(a=1, b=2), r'does not know: a, b\.'),
        (lambda c: c.pop('algo'), r"config.json' is not what a run writes: .* \(got no \['algo'\]\)\. Restore it"),
        (lambda c: c['algorithm'].update(gamma='high'), r"'gamma' must be a number \(got 'high'\)"),
        (lambda c: c['algorithm'].update(gamma=7), r"'gamma' must lie in \[0, 1\] \(got 7\)"),
        (lambda c: c.update(algo='sarsa'), r"unknown algorithm 'sarsa'\. Choose one of: dqn, dgn, fixed_ltos, ltos"),
        (lambda c: c.update(scenario='moon'), r"unknown scenario 'moon'\. Choose one of: jungle, dilemmas, prisoner"),
        (lambda c: c.update(scenario='moon'), r'by its name with --import my_module\. If a script'),
        (lambda c: c.update(scenario='moon:Landing'), r'from the folder that holds it, or install its package\. If a'),
    ],
)
def test_a_configuration_that_was_tampered_with_is_refused(whole, tmp_path, damage, message):
    config = json.loads((whole / 'config.json').read_text())
    damage(config)
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        RunFolder(tmp_path).config()


@pytest.mark.parametrize('content', ['', '{"scenario": ', '[1]', '"text"'])
def test_a_configuration_that_is_none_is_refused(tmp_path, content):
    (tmp_path / 'config.json').write_text(content)
    with pytest.raises(ValueError, match=r"config.json' is not what a run writes"):
        RunFolder(tmp_path).config()


def test_a_folder_without_checkpoint_has_no_algorithm(whole, tmp_path):
    shutil.copy(whole / 'config.json', tmp_path)
    config = RunFolder(tmp_path).config()
    with pytest.raises(ValueError, match=rf"'{tmp_path}' has no checkpoint yet"):
        load_algorithm(config, scenario('prisoner').make_env(config)(1).spec, tmp_path)


def test_a_checkpoint_of_another_configuration_is_not_loaded(whole):
    config = RunFolder(whole).config()
    other = dataclasses.replace(config, algorithm=dataclasses.replace(config.algorithm, hidden_channels=32))
    with pytest.raises(ValueError, match=r"'algorithm.hidden_channels' expected 32, got 16"):
        load_algorithm(other, scenario('prisoner').make_env(other)(1).spec, whole)


# --- what else can go wrong -------------------------------------------------------------------------------------------


def test_a_run_is_resumed_as_what_it_is(whole, capsys):
    again = ['train', 'prisoner', '--out', str(whole), '--resume']
    assert cli.main([*again, '--algo', 'dqn']) == 1
    assert 'holds a run with --algo ltos (got --algo dqn)' in capsys.readouterr().err
    assert cli.main([*again, '--preset', 'paper']) == 1
    assert 'holds a run with --preset default (got --preset paper)' in capsys.readouterr().err


def test_a_broken_result_is_named(broken_off, capsys):
    (broken_off / 'final.json').write_text('{"eval": ')
    assert cli.main(['table', str(broken_off)]) == 1
    assert "final.json' is not what a run writes: it is not valid JSON" in capsys.readouterr().err


def test_ctrl_c_in_the_closing_evaluation_says_that_the_run_was_saved(broken_off, whole, monkeypatch, capsys):
    def stopped(*args: Any, **more: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, 'final_evaluation', stopped)
        assert resume(broken_off) == cli.INTERRUPTED
    assert 'Stopped. The run was saved; continue it with --resume.' in capsys.readouterr().err
    assert resume(broken_off) == 0
    assert_same_end(broken_off, whole)


@pytest.mark.slow  # by the same path as Ctrl-C
def test_a_closed_terminal_saves(whole, tmp_path):
    folder = tmp_path / 'closed'
    process = start(folder, '--checkpoint-every', '100000')
    metrics = folder / 'metrics.jsonl'
    until(lambda: metrics.exists() and len(metrics.read_bytes().splitlines()) > 2, process)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == cli.INTERRUPTED
    assert len(steps_in(folder)) == 1


def test_a_reader_that_leaves_is_no_error(whole):
    command = f'{sys.executable} -m ltos_pyg.cli table {" ".join([str(whole)] * 1)} --measures | head -c 10'
    done = subprocess.run(['bash', '-c', f'set -o pipefail; {command}'], capture_output=True, text=True, check=False)
    assert done.stderr == ''


def test_a_film_is_no_folder(whole, tmp_path, capsys):
    assert cli.main(['watch', str(whole), '--out', str(tmp_path / 'foo.mp4')]) == 1
    assert "'out' must end in .gif, or name a folder for PNGs (got" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_closed_stderr_saves(tmp_path):
    folder = tmp_path / 'closed'
    often = 'from ltos_pyg import cli, progress; progress.SECONDS = 0.1; raise SystemExit(cli.main())'
    flags = [*FLAGS, '--checkpoint-every', '100000', '--out', str(folder)]
    command = shlex.join([sys.executable, '-c', often, *flags])
    shell = f'set -o pipefail; {command} 2>&1 | head -c 400'  # closes before the end of the training
    done = subprocess.run(['bash', '-c', shell], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == cli.INTERRUPTED
    (step,) = steps_in(folder)
    assert 0 < step < LAST
