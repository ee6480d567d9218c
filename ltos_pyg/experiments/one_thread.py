"""Importing this limits the numerical libraries of a process to one thread: they read it when they are loaded."""

import os

from ltos_pyg.experiments.processes import ONE_THREAD

os.environ.update(ONE_THREAD)
