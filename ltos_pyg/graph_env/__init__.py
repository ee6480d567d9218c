"""The contract between environments and algorithms: batched graph episodes, with adapters and a checker."""

from ltos_pyg.graph_env.adapters.pettingzoo import (
    FullyConnected,
    KNearest,
    NeighbourRule,
    PettingZooEnv,
    from_pettingzoo,
)
from ltos_pyg.graph_env.base import GraphEnv, GraphStep
from ltos_pyg.graph_env.checker import EnvCheckError, EnvCheckWarning, check_env
from ltos_pyg.graph_env.neighbours import fully_connected, k_nearest, within_radius
from ltos_pyg.graph_env.spec import GraphEnvSpec
from ltos_pyg.graph_env.symmetry import Symmetries, Symmetry
from ltos_pyg.graph_env.vector import SingleGraphEnv, SingleStep, VectorGraphEnv

__all__ = [
    'EnvCheckError',
    'EnvCheckWarning',
    'FullyConnected',
    'GraphEnv',
    'GraphEnvSpec',
    'GraphStep',
    'KNearest',
    'NeighbourRule',
    'PettingZooEnv',
    'SingleGraphEnv',
    'SingleStep',
    'Symmetries',
    'Symmetry',
    'VectorGraphEnv',
    'check_env',
    'from_pettingzoo',
    'fully_connected',
    'k_nearest',
    'within_radius',
]
