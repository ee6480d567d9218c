"""Algorithms on graph batches: one file each, one interface (:class:`Algorithm`)."""

from ltos_pyg.algos.base import Algorithm, Decision, NonFiniteLossError
from ltos_pyg.algos.dgn import DGN
from ltos_pyg.algos.dqn import DQN, DQNConfig
from ltos_pyg.algos.fixed_ltos import FixedLToS, FixedLToSConfig
from ltos_pyg.algos.ltos import LToS, LToSConfig

ALGORITHMS: dict[str, tuple[type[DQN], type[DQNConfig]]] = {
    'dqn': (DQN, DQNConfig),
    'dgn': (DGN, DQNConfig),
    'fixed_ltos': (FixedLToS, FixedLToSConfig),
    'ltos': (LToS, LToSConfig),
}

__all__ = [
    'ALGORITHMS',
    'DGN',
    'DQN',
    'Algorithm',
    'DQNConfig',
    'Decision',
    'FixedLToS',
    'FixedLToSConfig',
    'LToS',
    'LToSConfig',
    'NonFiniteLossError',
]
