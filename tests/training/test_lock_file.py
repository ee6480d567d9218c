"""Lock files: what counts as in use."""

from __future__ import annotations

import errno
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ltos_pyg.training import lock_file
from ltos_pyg.training.lock_file import hold_lock, is_locked

fcntl = pytest.importorskip('fcntl')


def test_only_a_lock_that_is_held_is_in_use(tmp_path: Path) -> None:
    path = tmp_path / 'run.lock'
    assert not is_locked(path)
    with hold_lock(path, 'tests it'):
        assert is_locked(path)
    (tmp_path / 'file').touch()
    assert not is_locked(tmp_path / 'file' / 'run.lock')


def test_a_disk_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'run.lock'
    path.touch()

    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(lock_file.fcntl, 'flock', no_locks)
    assert not is_locked(path)
    message = r"cannot lock '.*run.lock': No locks available. Choose a folder on a disk"
    with pytest.raises(OSError, match=message), hold_lock(path, 'tests it'):
        pass


@pytest.mark.skipif(sys.platform == 'win32', reason='needs resource limits')
def test_a_full_disk_leaves_no_lock_behind(tmp_path: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with hold_lock(tmp_path / 'run.lock', 'tests it'):
            assert is_locked(tmp_path / 'run.lock')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not is_locked(tmp_path / 'run.lock')
    with hold_lock(tmp_path / 'run.lock', 'tests it'):
        assert 'process' in (tmp_path / 'run.lock').read_text()


def test_a_lock_that_another_process_only_looks_at_is_not_in_use(tmp_path: Path) -> None:
    path, looking = tmp_path / 'run.lock', threading.Event()

    def look() -> None:
        with path.open('w') as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            looking.set()
            time.sleep(0.1)

    thread = threading.Thread(target=look)
    thread.start()
    looking.wait()
    with hold_lock(path, 'tests it'):
        assert is_locked(path)
    thread.join()
