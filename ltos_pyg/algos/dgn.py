"""DGN: Q-learning with message passing between neighbours, each node on its own reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ltos_pyg.algos.dqn import DQN, DQNConfig, IndependentQConfig
from ltos_pyg.graph_env import GraphEnvSpec
from ltos_pyg.nn import DGN as DGNNetwork
from ltos_pyg.nn.conv.by_name import Conv
from ltos_pyg.ranges import check_range


@dataclass(frozen=True, kw_only=True)
class MessageQConfig(DQNConfig):
    """Options of the methods of the DQN family whose nodes exchange messages."""

    num_layers: int = 2  # message-passing layers
    heads: int = 8  # attention heads of a layer
    conv: str = 'DGNConv'  # message-passing layer: a name in ltos_pyg.nn or torch_geometric.nn, or package.module:Name

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 'heads', least=1)
        check_range(self, 'num_layers', least=0)
        if self.conv == 'DGNConv' and self.num_layers > 0 and self.hidden_channels % self.heads:
            raise ValueError(
                f"'heads' must divide 'hidden_channels' (got {self.heads} heads, {self.hidden_channels} channels)"
            )


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
