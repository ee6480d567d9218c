"""LToS: the update (`ltos.py`), the low level's critics, the high level's search, exploration."""

from ltos_pyg.algos.ltos.config import LToSConfig
from ltos_pyg.algos.ltos.critics import CRITICS, EdgeCritic, NodeCritic
from ltos_pyg.algos.ltos.fixed import FixedLToS, FixedLToSConfig
from ltos_pyg.algos.ltos.ltos import LToS, LToSEdge
from ltos_pyg.algos.ltos.search import BestConstant, JointActionCritic, JointSearch
from ltos_pyg.algos.ltos.weights import HeldNoise, JointNoise

__all__ = [
    'CRITICS',
    'BestConstant',
    'EdgeCritic',
    'FixedLToS',
    'FixedLToSConfig',
    'HeldNoise',
    'JointActionCritic',
    'JointNoise',
    'JointSearch',
    'LToS',
    'LToSConfig',
    'LToSEdge',
    'NodeCritic',
]
