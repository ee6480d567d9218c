"""Processes that train runs are forks of one that has loaded everything, but not where there is a GPU."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from ltos_pyg.experiments import processes
from ltos_pyg.experiments.processes import start_run
from ltos_pyg.training.run_folder import RunFolder

pytestmark = pytest.mark.skipif(sys.platform == 'win32', reason='sessions are those of POSIX')


@pytest.mark.parametrize('gpu', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_has_a_session_and_a_log_of_its_own_and_ends_with_its_exit_code(tmp_path, monkeypatch, gpu):
    monkeypatch.setattr(processes, 'GPUS', (os.devnull,) if gpu else ())
    log = tmp_path / 'log.txt'
    log.write_text('what was there\n')
    ended = start_run(['train', 'no_such_game'], log)
    ended.join()
    assert ended.exitcode == 1
    assert log.read_text().startswith('what was there\nltos: ')
    assert 'no_such_game' in log.read_text()
    one = start_run(['train', 'prisoner', '--algo', 'dqn', '--total-steps', '1000000', '--out', str(tmp_path)], log)
    try:
        while 'training' not in log.read_text():
            assert one.is_alive(), log.read_text()
            one.join(0.05)
        assert os.getsid(one.pid) == one.pid != os.getsid(0)
        if sys.platform == 'linux':
            assert is_fork(one) != gpu
    finally:
        one.terminate()
        one.join()
    assert one.exitcode == 130, log.read_text()[-300:]


DRIVER = """
import sys, time
from pathlib import Path
from ltos_pyg.experiments.processes import start_run

if __name__ == '__main__':
    start_run(sys.argv[2:], Path(sys.argv[1]))
    time.sleep(600)
"""


def test_a_run_whose_driver_is_killed_saves_and_ends(tmp_path):
    script, run, log = tmp_path / 'driver.py', RunFolder(tmp_path / 'run'), tmp_path / 'log.txt'
    script.write_text(DRIVER)
    options = ['--algo', 'dqn', '--total-steps', '1000000', '--no-media', '--out', str(run.path)]
    driver = subprocess.Popen([sys.executable, str(script), str(log), 'train', 'prisoner', *options])
    try:
        while not (run.metrics_path.is_file() and run.last_step() > 0):
            assert driver.poll() is None
            time.sleep(0.1)
    finally:
        driver.kill()
        driver.wait()
    trainer = int(run.lock_path.read_text().split()[1])
    try:
        for _ in range(600):
            if not run.is_locked:
                break
            time.sleep(0.1)
        assert not run.is_locked, 'the run went on'
        assert run.store().steps(), log.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(trainer, signal.SIGKILL)


def is_fork(one: BaseProcess) -> bool:
    """Whether the parent of the process is another than this one, and has loaded PyTorch."""
    parent = int(Path(f'/proc/{one.pid}/stat').read_text().rpartition(')')[2].split()[1])
    return parent != os.getpid() and 'libtorch' in Path(f'/proc/{parent}/maps').read_text()
