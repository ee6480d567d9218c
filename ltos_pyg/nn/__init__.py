"""Layers and models of learned reward sharing, for any PyTorch Geometric model."""

from ltos_pyg.nn.conv import DGNConv, IntentionConv, LToSConv
from ltos_pyg.nn.functional import Sharing, check_sharing, constant_sharing, keep_all, sender_softmax, share_value
from ltos_pyg.nn.heads import EdgePolicyHead, EdgeQHead, QHead
from ltos_pyg.nn.mixers import QMixer
from ltos_pyg.nn.models import DGN, DGNTrunk, SharingPolicy
from ltos_pyg.nn.networked import (
    consensus_matrix,
    consensus_weights,
    hop_distance,
    mix,
    spatial_discount,
    spatial_weights,
)
from ltos_pyg.nn.per_agent import AgentLayout, AgentLinear, AgentLSTMCell, AgentMLP, gather_slots

__all__ = [
    'DGN',
    'AgentLSTMCell',
    'AgentLayout',
    'AgentLinear',
    'AgentMLP',
    'DGNConv',
    'DGNTrunk',
    'EdgePolicyHead',
    'EdgeQHead',
    'IntentionConv',
    'LToSConv',
    'QHead',
    'QMixer',
    'Sharing',
    'SharingPolicy',
    'check_sharing',
    'consensus_matrix',
    'consensus_weights',
    'constant_sharing',
    'gather_slots',
    'hop_distance',
    'keep_all',
    'mix',
    'sender_softmax',
    'share_value',
    'spatial_discount',
    'spatial_weights',
]
