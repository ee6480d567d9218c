"""Message-passing layers."""

from ltos_pyg.nn.conv.dgn_conv import DGNConv
from ltos_pyg.nn.conv.intention_conv import IntentionConv
from ltos_pyg.nn.conv.ltos_conv import LToSConv

__all__ = ['DGNConv', 'IntentionConv', 'LToSConv']
