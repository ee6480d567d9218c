"""Parts and copies of batches of graphs, and which of their nodes are near each other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.utils import coalesce

from ltos_pyg.algos.base import Seen

Near = tuple[Tensor, Tensor]  # pairs of nodes that are near each other, each (P,)


def within_hops(edge_index: Tensor, num_nodes: int, hops: int) -> Near:
    """All pairs (i, j) such that a path of at most ``hops`` edges leads from j to i, i itself included."""
    sender, receiver = edge_index
    order = receiver.argsort(stable=True)
    neighbour = sender[order]
    degree = torch.bincount(receiver, minlength=num_nodes)
    start = degree.cumsum(0) - degree
    key = torch.arange(num_nodes, device=edge_index.device) * (num_nodes + 1)  # i * N + i
    for _ in range(hops):
        i, j = key // max(num_nodes, 1), key % max(num_nodes, 1)
        count = degree[j]
        first = (count.cumsum(0) - count).repeat_interleave(count)
        at = start[j].repeat_interleave(count) + torch.arange(len(first), device=key.device) - first
        key = torch.cat([key, i.repeat_interleave(count) * num_nodes + neighbour[at]]).unique()
    return key // max(num_nodes, 1), key % max(num_nodes, 1)


def repeated_edges(seen: Seen, times: int) -> tuple[Tensor, Tensor | None]:
    """The edges of the graphs repeated ``times`` times, as one batch, and their features."""
    x, edge_index, edge_attr = seen
    shift = x.size(0) * torch.arange(times, device=x.device).repeat_interleave(edge_index.size(1))
    return edge_index.repeat(1, times) + shift, None if edge_attr is None else edge_attr.repeat(times, 1)


def both_ways(seen: Seen) -> Seen:
    """The graphs with the reverse of every edge; a reverse that is new has edge features 0."""
    x, edge_index, edge_attr = seen
    edges = torch.cat([edge_index, edge_index.flip(0)], dim=1)
    if edge_attr is None:
        return x, coalesce(edges, num_nodes=x.size(0)), None
    edges, features = coalesce(edges, torch.cat([edge_attr, torch.zeros_like(edge_attr)]), num_nodes=x.size(0))
    return x, edges, features


def first_graphs(seen: Seen, ptr: Tensor, most: int) -> Seen:
    """The first graphs of a batch, at most ``most``; ``ptr`` (B + 1,) has the first node of each."""
    x, edge_index, edge_attr = seen
    if len(ptr) - 1 <= most:
        return seen
    nodes = int(ptr[most])
    edges = int((edge_index[0] < nodes).sum())  # edges lie graph by graph
    return x[:nodes], edge_index[:, :edges], None if edge_attr is None else edge_attr[:edges]


def part_of(seen: Seen, graph_of_node: Tensor, chosen: Tensor) -> tuple[Tensor, Seen]:
    """Those graphs of a batch that are chosen (B,): the numbers of their nodes, and their network inputs."""
    x, edge_index, edge_attr = seen
    mine = chosen[graph_of_node]
    node = mine.nonzero().squeeze(-1)
    row = mine.cumsum(0) - 1
    edge = mine[edge_index[0]].nonzero().squeeze(-1)
    return node, (x[node], row[edge_index[:, edge]], None if edge_attr is None else edge_attr[edge])


def random_parts(graph_of_node: Tensor, num_graphs: int, parts: int, rng: torch.Generator) -> Tensor:
    """Divides the nodes of each graph at random into ``parts`` parts of nearly equal size; returns the part of each
    node, 0 to ``parts`` - 1, (N,)."""
    device = graph_of_node.device
    chance = torch.rand(len(graph_of_node), generator=rng, device=device)
    order = chance.argsort()
    order = order[graph_of_node[order].argsort(stable=True)]  # graph by graph, at random within each
    first = torch.searchsorted(graph_of_node, torch.arange(num_graphs, device=device))
    part = torch.empty_like(order)
    part[order] = (torch.arange(len(order), device=device) - first[graph_of_node]) % parts
    return part
