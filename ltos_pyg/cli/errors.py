"""What the command line adds to errors: where a user's own code raised one, and what to do if stderr is closed."""

from __future__ import annotations

import os
import signal
import sysconfig
import traceback
from types import FrameType
from typing import Any

_LIBRARIES = tuple({path for name, path in sysconfig.get_paths().items() if 'lib' in name})


def users_line(error: BaseException) -> str | None:
    """Where an error was raised in code that is neither ours nor of an installed library, e.g. in the environment that
    is trained on: ``'FILE, line 12, in step'``; ``None`` if no such code took part."""
    found = None
    cause: BaseException | None = error
    while cause is not None:
        for frame, line in traceback.walk_tb(cause.__traceback__):
            if _is_users(frame):
                found = f'{frame.f_code.co_filename}, line {line}, in {frame.f_code.co_name}'
        cause = cause.__cause__
    return found


def _is_users(frame: FrameType) -> bool:
    module, file = frame.f_globals.get('__name__', ''), frame.f_code.co_filename
    ours = module == '__main__' or module.partition('.')[0] == 'ltos_pyg'  # __main__ is the script `ltos`
    return not (ours or file.startswith('<') or file.startswith(_LIBRARIES))


class Stderr:
    """Standard error that survives a closed pipe, as in ``ltos train … 2>&1 | head``: a run is then asked to stop, so
    that it is saved.

    Args:
        stream: The stream to write to.
    """

    def __init__(self, stream: Any) -> None:
        self.stream, self.closed_by_reader = stream, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Writes the text; once the pipe is closed, drops it."""
        if not self.closed_by_reader:
            try:
                self.stream.write(text)
                self.stream.flush()
            except BrokenPipeError:
                if not self._stops_a_run():
                    raise
        return len(text)

    def flush(self) -> None:
        """:meth:`write` has flushed."""

    def _stops_a_run(self) -> bool:
        """Asks the run in this process to save and stop; false if none is being trained."""
        if signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, signal.SIG_IGN, None):
            return False
        self.closed_by_reader = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        os.kill(os.getpid(), signal.SIGTERM)
        return True
