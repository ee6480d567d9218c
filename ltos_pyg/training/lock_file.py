"""Lock files: one process at a time in a folder."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # no such locks on Windows: two processes in one folder are not detected there
    fcntl = None  # type: ignore[assignment]

PATIENCE = 0.5  # seconds before a lock is taken to be in use: is_locked() holds one for a moment, too


def is_locked(path: Path) -> bool:
    """Whether a process holds this lock file now; false where it cannot be locked, which :func:`hold_lock` says."""
    if fcntl is None:
        return False
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is none, or the file system has no locks
        return False
    return False


@contextmanager
def hold_lock(path: Path, doing: str, wait: bool = False) -> Iterator[None]:
    """Within this context, no other process can hold this lock file. The lock of a process that died is ignored.

    Args:
        path: The lock file.
        doing: What the process does that holds it, for the message.
        wait: Wait while another process holds it.

    Raises:
        ValueError: If another process holds it, and ``wait`` is false; the message names it.
        OSError: If the file system has no locks.
    """
    file = _acquire(path, doing, wait)
    try:
        yield
    finally:
        if fcntl is None:  # Windows removes no open file
            os.close(file)
            with suppress(PermissionError):  # another process has it open
                path.unlink(missing_ok=True)
        else:  # while it is locked: another process could lock it before it is removed
            path.unlink(missing_ok=True)
            os.close(file)


def _acquire(path: Path, doing: str, wait: bool) -> int:
    """The open lock file, locked until this process ends or closes it."""
    until = time.monotonic() + PATIENCE
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError as error:
                if time.monotonic() < until:
                    os.close(file)
                    time.sleep(0.02)
                    continue
                with os.fdopen(file) as opened:
                    owner = opened.read().strip() or 'another process'
                raise ValueError(
                    f"'{path.parent}' is in use: {owner} {doing}. Wait for it, stop it, or choose another folder."
                ) from error
            except OSError as error:
                os.close(file)
                raise OSError(
                    error.errno, f"cannot lock '{path}': {error.strerror}. Choose a folder on a disk that has locks."
                ) from error
        with suppress(FileNotFoundError):  # its owner has just removed it
            if os.path.samestat(os.fstat(file), path.stat()):
                break
        os.close(file)
    now = time.strftime('%Y-%m-%d %H:%M:%S')
    with suppress(OSError):  # a full disk: the lock holds without a name in it
        os.truncate(file, 0)
        os.write(file, f'process {os.getpid()} on {socket.gethostname()} (since {now})'.encode())
    return file
