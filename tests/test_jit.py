"""Compilation where there is no folder for its cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

NO_CACHE = """
import numba.core.caching as caching
caching.CacheImpl._locator_classes = []
import ltos_pyg.data.ring_kernels as kernels
import ltos_pyg.envs.jungle_numba, ltos_pyg.envs.jungle_large, ltos_pyg.nn.kernels_numba, ltos_pyg.envs.traffic.jit
print(kernels.table_size(5))
"""


def test_everything_is_imported_and_runs_on_a_read_only_machine():
    root = str(Path(__file__).parents[1])
    env = os.environ | {'PYTHONPATH': root}
    done = subprocess.run([sys.executable, '-c', NO_CACHE], capture_output=True, text=True, env=env, check=True)
    assert int(done.stdout) >= 5
