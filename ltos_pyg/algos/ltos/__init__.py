"""LToS: the update (`ltos.py`), the low level's critics, the high level's objectives, exploration."""

from ltos_pyg.algos.ltos.config import LToSConfig
from ltos_pyg.algos.ltos.critics import CRITICS, Critic, EdgeCritic, NodeCritic
from ltos_pyg.algos.ltos.fixed import FixedLToS, FixedLToSConfig
from ltos_pyg.algos.ltos.ltos import OBJECTIVES, LToS, LToSEdge
from ltos_pyg.algos.ltos.objective import HighLevelBatch, Objective, ShapedGradient
from ltos_pyg.algos.ltos.search import BestConstant, JointActionCritic, JointSearch
from ltos_pyg.algos.ltos.weights import HeldNoise, JointNoise

__all__ = [
    'CRITICS',
    'OBJECTIVES',
    'BestConstant',
    'Critic',
    'EdgeCritic',
    'FixedLToS',
    'FixedLToSConfig',
    'HeldNoise',
    'HighLevelBatch',
    'JointActionCritic',
    'JointNoise',
    'JointSearch',
    'LToS',
    'LToSConfig',
    'LToSEdge',
    'NodeCritic',
    'Objective',
    'ShapedGradient',
]
