"""The scenarios: one file each, with an environment's options, the presets of each algorithm, and its pictures."""

from ltos_pyg.scenarios.base import Scenario
from ltos_pyg.scenarios.custom import scenario_of

__all__ = ['Scenario', 'scenario_of']
