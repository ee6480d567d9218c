"""Progress bars on terminals, and now and then a line in log files."""

from __future__ import annotations

import io
import sys
import time
from typing import Any

from tqdm import tqdm

SECONDS = 30.0  # least time between two lines where stderr is no terminal


class Progress(tqdm):
    """A tqdm bar. Where stderr is no terminal (``nohup ltos train … > log``) all bars together print a line every
    ``SECONDS`` at most; one that stays (``leave``) also prints its last state.

    Notebooks draw bars as terminals do.
    """

    _last = float('-inf')  # when one of them printed a line

    def __init__(self, *args: Any, **options: Any) -> None:
        to_terminal = sys.stderr is not None and sys.stderr.isatty()
        self.plain = not to_terminal and 'ipykernel' not in sys.modules
        if self.plain:
            options['file'] = io.StringIO()  # what tqdm writes to move and clear bars
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        if not self.plain:
            return super().display(msg, pos)
        now = time.monotonic()
        if msg is None and now - Progress._last >= SECONDS:
            Progress._last = now
            print(self, file=sys.stderr, flush=True)
        return True

    def close(self) -> None:
        if self.plain and not self.disable and self.leave:
            Progress._last = float('-inf')
        super().close()
