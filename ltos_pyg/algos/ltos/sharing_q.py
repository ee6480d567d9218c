"""Q-learning on shaped rewards: the common base of LToS and fixed LToS."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from ltos_pyg.algos.dgn import DGN
from ltos_pyg.algos.losses import masked
from ltos_pyg.algos.ltos.config import SharingQConfig
from ltos_pyg.algos.ltos.critics import CRITICS, LowLevelBatch, Successors, find_edges, random_pairs
from ltos_pyg.data import Transition, batch_to
from ltos_pyg.graph_env import GraphEnvSpec
from ltos_pyg.nn import Sharing
from ltos_pyg.seeding import generator


class SharingQ(DGN):
    """DGN whose action values depend on sharing weights and are trained on shaped rewards."""

    stores_sharing = True
    critic: str  # 'node' or 'edge'
    sees_weights = True  # whether the weights are inputs of the networks
    config: SharingQConfig
    network: Any
    target: Any
    averaged: Any

    def __init__(
        self, spec: GraphEnvSpec, config: SharingQConfig, seed: int = 0, device: str | torch.device = 'cpu'
    ) -> None:
        super().__init__(spec, config, seed, device)
        self.pairs_rng = generator(seed, 'pairs', self.device)

    def build_network(self) -> nn.Module:
        network: Any = CRITICS[self.critic](self.spec, self.config, self.sees_weights, self.conv)
        if not network.pair_values and self.config.pair_channels != SharingQConfig.pair_channels:
            raise ValueError(
                f"'pair_channels' is an option of the edge critic (got {self.config.pair_channels} with the "
                f'{self.critic} critic, which has no pair values). Leave it out, or choose that critic.'
            )
        return cast(nn.Module, network)

    def q_values(self, network: nn.Module, graph: Batch, sharing: Sharing | None = None) -> Tensor:
        with self.autocast():
            return network(*self.inputs(graph), sharing)

    @torch.no_grad()
    def greedy_action(self, graph: Batch, sharing: Sharing) -> Tensor:
        """The best action of each node under given weights, (N,), as :meth:`act` chooses without a temperature."""
        graph = batch_to(graph, self.device)
        with self.inputs.each_batch_once(graph):
            q = self.over_views(graph, lambda views: self.averaged_values(views, graph, sharing))
        return masked(q, graph.get('action_mask')).argmax(-1)

    @abstractmethod
    def next_sharing(self, t: Transition) -> Sharing:
        """The weights at the successors of a batch."""

    def draw_extra_pairs(self, t: Transition) -> Tensor:
        """Random pairs (2, P) for the edge critic, if some neighbours of the batch are no longer neighbours in the
        successor; else none."""
        if self.network.pair_values:
            there = (t.discount > 0)[t.graph.edge_index].all(0)
            then = t.successor_node[t.graph.edge_index[:, there]]
            if not find_edges(t.successor.edge_index, then, t.successor.num_nodes)[1].all():
                return random_pairs(t.graph, self.pairs_rng)
        return t.graph.edge_index[:, :0]

    def loss(self, t: Transition) -> tuple[Tensor, dict[str, Tensor]]:
        successors = None
        if bool((t.discount > 0).any()):
            with torch.no_grad(), self.autocast():
                seen, sharing = self.inputs(t.successor), self.next_sharing(t)
                q = (self.network if self.config.double_q else self.target)(*seen, sharing)
                successors = Successors(seen, sharing, masked(q, t.successor.get('action_mask')).argmax(-1))
        self.batch = LowLevelBatch(t, self.inputs(t.graph), successors, self.draw_extra_pairs(t))
        with self.autocast():
            return self.network.loss(self.target, self.batch, self.config)

    def generators(self) -> dict[str, torch.Generator]:
        return super().generators() | {'pairs': self.pairs_rng}
