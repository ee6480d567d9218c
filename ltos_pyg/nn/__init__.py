"""Layers and models of learned reward sharing, for any PyTorch Geometric model."""

from ltos_pyg.nn.conv import DGNConv, LToSConv
from ltos_pyg.nn.functional import Sharing, constant_sharing, keep_all, sender_softmax, share_value
from ltos_pyg.nn.heads import EdgePolicyHead, EdgeQHead, QHead
from ltos_pyg.nn.models import DGN, DGNTrunk, SharingPolicy
from ltos_pyg.nn.validation import check_sharing

__all__ = [
    'DGN',
    'DGNConv',
    'DGNTrunk',
    'EdgePolicyHead',
    'EdgeQHead',
    'LToSConv',
    'QHead',
    'Sharing',
    'SharingPolicy',
    'check_sharing',
    'constant_sharing',
    'keep_all',
    'sender_softmax',
    'share_value',
]
