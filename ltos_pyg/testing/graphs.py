"""Random graphs to test with."""

from __future__ import annotations

import torch
from torch import Tensor

from ltos_pyg.data.snapshot import Snapshot


def random_snapshot(
    num_nodes: int,
    num_edges: int,
    num_features: int,
    edge_dim: int | None = None,
    generator: torch.Generator | None = None,
    symmetric: bool = False,
) -> Snapshot:
    r"""A random graph of exactly the given size, free of self-loops and duplicate edges.

    Args:
        num_nodes (int): Nodes :math:`N`; 0 is ordinary.
        num_edges (int): Edges :math:`E`, at most :math:`N(N - 1)`.
        num_features (int): Columns of ``x``, normally distributed.
        edge_dim (int, optional): Columns of ``edge_attr``, normally distributed; ``None``: no ``edge_attr``.
        generator (torch.Generator, optional): The random generator. ``None``: one seeded with 0, so that the same
            arguments always give the same graph.
        symmetric (bool): If ``True``, each edge :math:`j \to i` has its reverse :math:`i \to j`; ``num_edges`` must
            then be even.
    """
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    fields = {'x': torch.randn(num_nodes, num_features, generator=generator)}
    fields['edge_index'] = _random_edges(num_nodes, num_edges, generator, symmetric)
    if edge_dim is not None:
        fields['edge_attr'] = torch.randn(num_edges, edge_dim, generator=generator)
    return Snapshot(node_id=torch.arange(num_nodes), **fields)


def _random_edges(num_nodes: int, num_edges: int, generator: torch.Generator, symmetric: bool) -> Tensor:
    possible = num_nodes * (num_nodes - 1)
    if not 0 <= num_edges <= possible:
        raise ValueError(
            f"'num_edges' must lie in [0, {possible}] for {num_nodes} nodes without self-loops (got {num_edges})"
        )
    if symmetric and num_edges % 2:
        raise ValueError(f"'num_edges' must be even in a symmetric graph: each edge has its way back (got {num_edges})")
    if symmetric:
        pairs = torch.triu_indices(num_nodes, num_nodes, offset=1)
        chosen = pairs[:, torch.randperm(pairs.size(1), generator=generator)[: num_edges // 2]]
        return torch.cat([chosen, chosen.flip(0)], dim=1)
    code = torch.randperm(possible, generator=generator)[:num_edges]
    sender, other = code // max(num_nodes - 1, 1), code % max(num_nodes - 1, 1)
    return torch.stack([sender, other + (other >= sender)])
