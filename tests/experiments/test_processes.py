"""Processes that train runs are forks of one that has loaded everything, but not where there is a GPU."""

import os
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from ltos_pyg.experiments import processes
from ltos_pyg.experiments.processes import start_run

pytestmark = pytest.mark.skipif(sys.platform == 'win32', reason='sessions are those of POSIX')


@pytest.mark.parametrize('gpu', [False, True])
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


def is_fork(one: BaseProcess) -> bool:
    """Whether the parent of the process is another than this one, and has loaded PyTorch."""
    parent = int(Path(f'/proc/{one.pid}/stat').read_text().rpartition(')')[2].split()[1])
    return parent != os.getpid() and 'libtorch' in Path(f'/proc/{parent}/maps').read_text()
