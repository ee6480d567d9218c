"""Every layer, head and model, each callable as module(x, edge_index) or module(x, edge_index, edge_attr)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ltos_pyg.nn import (
    DGN,
    DGNConv,
    DGNTrunk,
    EdgePolicyHead,
    EdgeQHead,
    IntentionConv,
    LToSConv,
    QHead,
    SharingPolicy,
    sender_softmax,
)
from ltos_pyg.testing import random_snapshot

SIZES = [(0, 0), (1, 0), (4, 0), (2, 1), (6, 14), (9, 20)]  # empty, lone, isolated, one-way, ordinary
FEATURES = 4


class OnNodes(nn.Module):
    """A head that needs no edges, called as if it did."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.head(x)


class UnderWeights(nn.Module):
    """A DGN with sharing weights as an input, which depend on the node features here."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        pair = x[:, 0].index_select(0, edge_index[0]) * x[:, 1].index_select(0, edge_index[1])
        return self.net(x, edge_index, None, sender_softmax(pair, x[:, 2], edge_index))


class AsTuple(nn.Module):
    """torch.export knows plain tuples only."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> tuple[Tensor, Tensor]:
        given, kept = self.net(x, edge_index, edge_attr)
        return given, kept


@dataclass(frozen=True)
class Case:
    name: str
    build: type | object
    outputs: str | tuple[str, ...] = 'node'
    edge_dim: int | None = None

    def __str__(self) -> str:
        return self.name

    def module(self) -> nn.Module:
        """A new module without a parameter at zero (where heads start), so that nothing is invisible."""
        module = self.build()
        for parameter in module.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.3)
        return module

    def graph(self, nodes: int = 6, edges: int = 14, seed: int = 0):
        rng = torch.Generator().manual_seed(seed)
        return random_snapshot(nodes, edges, FEATURES, self.edge_dim, rng)

    def inputs(self, nodes: int = 6, edges: int = 14, seed: int = 0) -> tuple[Tensor, ...]:
        graph = self.graph(nodes, edges, seed)
        args = graph.x, graph.edge_index
        return args if self.edge_dim is None else (*args, graph.edge_attr)


F = FEATURES
SMALL = {'hidden_channels': 4, 'heads': 2, 'encoder_channels': (3,)}
CASES = [
    Case('LToSConv', lambda: LToSConv(F, 6)),
    Case('LToSConv-heads-edges', lambda: LToSConv(F, 6, heads=3, edge_dim=2), edge_dim=2),
    Case('DGNConv', lambda: DGNConv(F, 8, heads=2)),
    Case('DGNConv-edges', lambda: DGNConv(F, 8, heads=4, edge_dim=3), edge_dim=3),
    Case('IntentionConv', lambda: IntentionConv(F, 6, rounds=2)),
    Case('IntentionConv-edges', lambda: IntentionConv(F, 6, rounds=3, edge_dim=2, aggr='mean'), edge_dim=2),
    Case('EdgePolicyHead', lambda: EdgePolicyHead(F, 5), ('edge', 'node')),
    Case('EdgePolicyHead-edges', lambda: EdgePolicyHead(F, 5, 2, 3, initial_kept=0.3), ('edge', 'node'), 2),
    Case('QHead', lambda: OnNodes(QHead(F, 3))),
    Case('EdgeQHead', lambda: EdgeQHead(F, 3, 5), ('node', 'edge')),
    Case('EdgeQHead-edges', lambda: EdgeQHead(F, 3, 5, edge_dim=2), ('node', 'edge'), 2),
    Case('DGNTrunk-edges', lambda: DGNTrunk(F, edge_dim=2, **SMALL), edge_dim=2),
    Case('DGN', lambda: DGN(F, 3, num_layers=1, **SMALL)),
    Case('DGN-sharing', lambda: UnderWeights(DGN(F, 3, num_layers=1, sharing=True, **SMALL))),
    Case('SharingPolicy', lambda: AsTuple(SharingPolicy(F, 4, 2, initial_kept=0.4)), ('edge', 'node')),
    Case('SharingPolicy-edges', lambda: AsTuple(SharingPolicy(F, 4, 2, edge_dim=2)), ('edge', 'node'), 2),
]
PORTED = [
    c
    for c in CASES
    if c.name.split('-')[0] in ('LToSConv', 'DGNConv', 'IntentionConv', 'EdgePolicyHead', 'DGN', 'SharingPolicy')
]
