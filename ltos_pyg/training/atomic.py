"""Atomic file writes."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_NO_ROOM = {
    errno.ENOSPC: 'the disk is full',
    errno.EDQUOT: 'the disk quota is used up',
    errno.EFBIG: 'the file is larger than allowed here',
}


def atomic_write(path: Path | str, write: Callable[[BinaryIO], None]) -> Path:
    """Writes a file atomically: ``path`` has either its old content or the complete new one, even if the process dies.

    ``write`` fills a temporary file beside ``path``, which is synced to disk and then replaces it.

    Args:
        path: The file to write; its folder must exist.
        write: Called with the open binary file.

    Raises:
        OSError: If the disk is full or the file may not be written. It has the original ``errno`` and names the file,
            the free space and what to do; the earlier file is unchanged and the temporary one is removed.
    """
    path = Path(path)
    temp = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.tmp')
    try:
        with temp.open('xb') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temp.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        message = _explain(error, path) if isinstance(error, OSError) else ''  # before the temporary file is removed
        with contextlib.suppress(OSError):
            temp.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, message) from error
        raise
    return path


def write_text(path: Path | str, text: str) -> Path:
    """As :func:`atomic_write`, for text in UTF-8."""
    return write_bytes(path, text.encode())


def write_bytes(path: Path | str, content: bytes) -> Path:
    """As :func:`atomic_write`, for bytes."""

    def write(file: BinaryIO) -> None:
        file.write(content)

    return atomic_write(path, write)


def _sync_folder(folder: Path) -> None:
    """Syncs the renaming itself to disk, on systems that can open folders."""
    if hasattr(os, 'O_DIRECTORY'):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _explain(error: OSError, path: Path) -> str:
    # os.path: Path.exists raises for a name that no file can have
    before = 'the earlier file is untouched' if os.path.exists(path) else 'there was no earlier file'
    if not path.parent.is_dir():
        return f"cannot write '{path}': the folder '{path.parent}' does not exist. Create it first."
    free = shutil.disk_usage(path.parent).free
    reason = _NO_ROOM.get(error.errno or 0, error.strerror or str(error))
    move = 'Free some space' if error.errno in _NO_ROOM else 'Check the permissions of the folder'
    if error.errno == errno.ENAMETOOLONG:
        move = 'Give it a shorter name'
    return (
        f"cannot write '{path}': {reason} ({free:,} bytes free; {before}). {move}, or choose another folder, and go on."
    )
