"""Processes that train runs: forks of one process that has loaded PyTorch and the library, which takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ONE_THREAD = dict.fromkeys(('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'NUMBA_NUM_THREADS'), '1')


def start_run(arguments: Sequence[str], log: Path) -> BaseProcess:
    """Starts ``ltos ARGUMENTS`` in a process of its own, on one thread; what it prints goes to the end of ``log``.

    As with every process of :mod:`multiprocessing`, a script that calls this needs ``if __name__ == '__main__':``.
    """
    process: Any = _context().Process(target=_run, args=(list(arguments), str(log)))
    process.start()
    return process


def _context() -> Any:
    """How processes start. Windows has no fork, and on macOS it is unsafe: there, each loads everything anew."""
    if sys.platform != 'linux':
        return multiprocessing.get_context('spawn')
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['ltos_pyg.experiments.preloaded'])
    return context


def _run(arguments: list[str], log: str) -> None:
    """In the new process: runs the command, and ends with its exit code."""
    os.environ.update(ONE_THREAD)
    if hasattr(os, 'setsid'):
        os.setsid()  # Ctrl-C reaches the driver alone, which stops its runs once
    with open(log, 'ab') as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    from ltos_pyg.cli import main

    sys.argv = ['ltos', *arguments]
    sys.exit(main())
