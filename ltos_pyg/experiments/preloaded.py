"""Importing this loads what every run needs. The process that runs are forked from does it once for all of them."""

import importlib
import os

from ltos_pyg.experiments.processes import ONE_THREAD


def load() -> None:
    """Limits the numerical libraries to one thread, which they read when they are loaded, and loads them and ours."""
    os.environ.update(ONE_THREAD)
    for module in ('training.run', 'cli.train', 'cli.options', 'algos', 'envs'):
        importlib.import_module(f'ltos_pyg.{module}')
    importlib.import_module('ltos_pyg.data.ring_kernels').table_size(1)  # the first kernel loads Numba's own modules


load()
