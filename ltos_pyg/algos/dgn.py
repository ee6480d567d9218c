"""DGN: Q-learning with message passing between neighbours, each node on its own reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ltos_pyg.algos.dqn import DQN, IndependentQConfig, MessageQConfig
from ltos_pyg.graph_env import GraphEnvSpec
from ltos_pyg.nn import DGN as DGNNetwork
from ltos_pyg.nn.conv.by_name import Conv


@dataclass(frozen=True, kw_only=True)
class DGNConfig(MessageQConfig, IndependentQConfig):
    """Options of DGN."""


class DGN(DQN):
    r"""Graph convolutional reinforcement learning: DQN whose Q-network sees ``num_layers`` hops of the graph.

    After `"Graph Convolutional Reinforcement Learning" <https://arxiv.org/abs/1810.09202>`_, without its temporal
    relation regularisation (the authors' jungle code has none either).
    """

    config: MessageQConfig
    messages = True
    conv: Conv | None = None  # message-passing layer, if other than the configuration's

    def build_network(self) -> nn.Module:
        sizes = trunk_options(self.spec, self.config, self.conv)
        return DGNNetwork(self.spec.num_features, self.spec.num_actions, **sizes)


def trunk_options(spec: GraphEnvSpec, config: MessageQConfig, conv: Conv | None = None) -> dict[str, Any]:
    """Sizes of a :class:`~ltos_pyg.nn.DGNTrunk`."""
    return {
        'hidden_channels': config.hidden_channels,
        'num_layers': config.num_layers,
        'heads': config.heads,
        'encoder_channels': config.encoder_channels,
        'edge_dim': spec.edge_dim,
        'conv': conv or config.conv,
    }
