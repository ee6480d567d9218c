"""Q-learning on rewards that neighbours share: what LToS and fixed LToS have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from ltos_pyg.algos.dgn import DGN
from ltos_pyg.algos.losses import masked
from ltos_pyg.algos.ltos.critics import CRITICS, LowLevelBatch
from ltos_pyg.data import Transition
from ltos_pyg.nn import Sharing


class SharingQ(DGN):
    """DGN whose agents act on values under sharing weights, and learn them from shaped rewards."""

    stores_sharing = True
    critic: str  # 'node' or 'edge'
    network: Any
    target: Any
    averaged: Any

    def build_network(self) -> nn.Module:
        return CRITICS[self.critic](self.spec, self.config, getattr(self.config, 'pair_channels', 64))

    def q_values(self, network: nn.Module, graph: Batch, sharing: Sharing | None) -> Tensor:
        with self.autocast():
            return network(*self.inputs(graph), sharing)

    def next_sharing(self, t: Transition) -> Sharing:
        """The weights at the successors of a batch."""
        raise NotImplementedError

    def loss(self, t: Transition) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            then, sharing_next = self.inputs(t.successor), self.next_sharing(t)
            chooser = self.network if self.config.double_q else self.target
            with self.autocast():
                q = chooser(*then, sharing_next)
            action_next = masked(q, t.successor.get('action_mask')).argmax(-1)
        self.batch = LowLevelBatch(t, self.inputs(t.graph), then, sharing_next, action_next)
        with self.autocast():
            return self.network.loss(self.target, self.batch, self.config)
