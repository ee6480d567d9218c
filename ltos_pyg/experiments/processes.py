"""Processes that train runs: forks of one process that has loaded PyTorch and the library, which takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ONE_THREAD = dict.fromkeys(('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'NUMBA_NUM_THREADS'), '1')
GPUS = ('/dev/nvidiactl', '/dev/kfd', '/dev/dxg')  # what the drivers of NVIDIA, AMD and WSL leave


def start_run(arguments: Sequence[str], log: Path) -> BaseProcess:
    """Starts ``ltos ARGUMENTS`` in a process of its own; see :func:`start`."""
    return start(_ltos, [list(arguments)], log)


def start(function: Callable[..., int], arguments: Sequence[Any], log: Path) -> BaseProcess:
    """Starts ``function(*arguments)`` in a process of its own, on one thread, which ends with the exit code that it
    returns; what it prints goes to the end of ``log``.

    If this process is killed, the other one stops as by SIGTERM: it saves its run.

    As with every process of :mod:`multiprocessing`, a script that calls this needs ``if __name__ == '__main__':``.
    """
    context = process_context(['ltos_pyg.experiments.preloaded'])
    process: Any = context.Process(target=_run, args=(function, list(arguments), str(log)))
    process.start()
    return process


def process_context(preload: Sequence[str]) -> Any:
    """How processes start: as forks of one that has imported the modules ``preload``, where that is safe.

    Windows has no fork, and on macOS it is unsafe. Where there is a GPU, imports may start its driver, and then PyTorch
    fails in a fork ("CUDA error: initialization error"), also if it trains on the CPU. There, each process imports
    everything anew.
    """
    if sys.platform != 'linux' or any(Path(gpu).exists() for gpu in GPUS):
        return multiprocessing.get_context('spawn')
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(list(preload))
    return context


def _stop_with_parent() -> None:
    """Stops this process, as SIGTERM does, once the one that started it is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _run(function: Callable[..., int], arguments: list[Any], log: str) -> None:
    """In the new process: calls the function, and ends with the exit code that it returns."""
    os.environ.update(ONE_THREAD)
    if hasattr(os, 'setsid'):
        os.setsid()  # Ctrl-C reaches the driver alone, which stops its runs once
    with open(log, 'ab') as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    sys.exit(function(*arguments))


def _ltos(arguments: list[str]) -> int:
    """Runs a command, which a run notes as its own."""
    from ltos_pyg.cli import main

    sys.argv = ['ltos', *arguments]
    return main()
