"""Algorithms on graph batches: one file each, one interface (:class:`Algorithm`)."""

from collections.abc import Callable
from typing import Any

from ltos_pyg.algos.actor_critic import ActorCritic, ActorCriticConfig
from ltos_pyg.algos.base import Algorithm, Decision, NonFiniteLossError
from ltos_pyg.algos.coco_q import CocoQ, CocoQConfig
from ltos_pyg.algos.consenet import ConseNet, ConseNetConfig
from ltos_pyg.algos.dgn import DGN, DGNConfig
from ltos_pyg.algos.dqn import DQN, DQNConfig, IndependentQConfig
from ltos_pyg.algos.ip import IP, IPConfig
from ltos_pyg.algos.joint_dqn import JointDQN, JointDQNConfig
from ltos_pyg.algos.lio import LIO, LIOConfig
from ltos_pyg.algos.ltos import FixedLToS, FixedLToSConfig, LToS, LToSConfig, LToSEdge
from ltos_pyg.algos.neurcomm import NeurComm
from ltos_pyg.algos.off_policy import OffPolicy, OffPolicyConfig
from ltos_pyg.algos.qmix import QMIX, QMIXConfig

ALGORITHMS: dict[str, tuple[Callable[..., Algorithm], type[Any]]] = {
    'dqn': (DQN, IndependentQConfig),
    'dgn': (DGN, DGNConfig),
    'fixed_ltos': (FixedLToS, FixedLToSConfig),
    'ltos': (LToS, LToSConfig),
    'ltos_edge': (LToSEdge, LToSConfig),
    'qmix': (QMIX, QMIXConfig),
    'joint_dqn': (JointDQN, JointDQNConfig),
    'coco_q': (CocoQ, CocoQConfig),
    'neurcomm': (NeurComm, ActorCriticConfig),
    'consenet': (ConseNet, ConseNetConfig),
    'ip': (IP, IPConfig),
    'lio': (LIO, LIOConfig),
}

__all__ = [
    'ALGORITHMS',
    'DGN',
    'DQN',
    'IP',
    'LIO',
    'QMIX',
    'ActorCritic',
    'ActorCriticConfig',
    'Algorithm',
    'CocoQ',
    'CocoQConfig',
    'ConseNet',
    'ConseNetConfig',
    'DGNConfig',
    'DQNConfig',
    'Decision',
    'FixedLToS',
    'FixedLToSConfig',
    'IPConfig',
    'IndependentQConfig',
    'JointDQN',
    'JointDQNConfig',
    'LIOConfig',
    'LToS',
    'LToSConfig',
    'LToSEdge',
    'NeurComm',
    'NonFiniteLossError',
    'OffPolicy',
    'OffPolicyConfig',
    'QMIXConfig',
]
