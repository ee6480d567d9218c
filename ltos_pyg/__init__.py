"""Learning to Share (LToS) and graph multi-agent reinforcement learning on PyTorch Geometric."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltos_pyg.registry import register_algorithm, register_scenario
    from ltos_pyg.training.api import Run, load_policy, train
    from ltos_pyg.training.policy import Policy

__version__ = '0.1.0'

__all__ = ['Policy', 'Run', 'load_policy', 'register_algorithm', 'register_scenario', 'train']

_LAZY = {  # loaded on first access: importing the package does not load PyTorch
    'Policy': 'ltos_pyg.training.policy',
    'Run': 'ltos_pyg.training.api',
    'load_policy': 'ltos_pyg.training.api',
    'register_algorithm': 'ltos_pyg.registry',
    'register_scenario': 'ltos_pyg.registry',
    'train': 'ltos_pyg.training.api',
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'ltos_pyg' has no attribute '{name}'")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
