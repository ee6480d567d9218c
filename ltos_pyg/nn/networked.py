"""Functions for networked agents: hop distances, spatial weights of rewards, and consensus."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch_geometric.utils import degree, to_undirected

from ltos_pyg.nn.validation import check_edge_index, check_rows

CONSENSUS_RULES = ('metropolis', 'uniform')


def hop_distance(adjacency: Tensor) -> Tensor:
    r"""Fewest edges from each node to each other, :math:`(\dots, n, n)` bool to int64; -1 where no path leads.

    ``adjacency[..., j, i]`` says whether there is an edge :math:`j \to i`.
    """
    eye = torch.eye(adjacency.size(-1), dtype=torch.bool, device=adjacency.device)
    reached = frontier = eye.expand_as(adjacency)
    distance = torch.where(reached, 0, -1)
    for hops in range(1, adjacency.size(-1)):
        frontier = ((frontier.float() @ adjacency.float()) > 0) & ~reached
        if not bool(frontier.any()):
            break
        reached = reached | frontier
        distance = distance.masked_fill(frontier, hops)
    return distance


def spatial_weights(edge_index: Tensor, place: Tensor, num_graphs: int, num_agents: int, alpha: float | None) -> Tensor:
    r"""Weight of the reward of agent j for agent i: :math:`\alpha^{d_{ji}}`, :math:`(G, n, n)` by graph, j and i.

    :math:`d_{ji}` is the number of hops from j to i along the edges; where no path leads the weight is 0, and with
    :math:`\alpha = 0` each agent has only its own reward. ``alpha=None`` gives 1 for all pairs of a graph, connected or
    not.

    Args:
        edge_index (Tensor): :math:`(2, E)`.
        place (Tensor): :math:`(N,)`, agent * num_graphs + graph, as in :class:`~ltos_pyg.nn.AgentLayout`.
    """
    if alpha is None:
        return torch.ones(num_graphs, num_agents, num_agents, device=place.device)
    agent, graph = place // num_graphs, place % num_graphs
    adjacency = torch.zeros(num_graphs, num_agents, num_agents, dtype=torch.bool, device=place.device)
    sender, receiver = edge_index
    adjacency[graph[sender], agent[sender], agent[receiver]] = True
    distance = hop_distance(adjacency)
    return torch.where(distance < 0, 0.0, torch.tensor(alpha, device=place.device) ** distance.clamp(min=0))


def spatial_discount(value: Tensor, weights: Tensor) -> Tensor:
    r""":math:`\tilde r_i = \sum_j \alpha^{d_{ji}} r_j`, (n, G) from (n, G) and the :func:`spatial_weights`.

    After Chu et al., `"Multi-agent Reinforcement Learning for Networked System Control"
    <https://arxiv.org/abs/2004.01339>`_.
    """
    return torch.einsum('jg,gji->ig', value, weights)


def consensus_weights(
    edge_index: Tensor, num_nodes: int, rule: Literal['metropolis', 'uniform'] = 'metropolis'
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Weight of neighbour j in the consensus step of node i, :math:`c_{ij}` along :math:`j \to i`, and of its own
    value, :math:`c_{ii}`.

    ``'uniform'``: the plain mean over a node and its in-neighbours, :math:`c_{ij} = 1 / (1 + d_i)`; the mean over all
    nodes is kept on regular graphs only. ``'metropolis'``: :math:`c_{ij} = 1 / (1 + \max(d_i, d_j))` on the graph made
    undirected, :math:`c_{ii}` the rest; rows and columns sum to one, so the mean is kept.

    Returns:
        The edges that the weights belong to (2, E'), their weights (E',), and the weight of each node for itself (N,).

    Raises:
        ValueError: If the rule is unknown, or ``edge_index`` does not fit the nodes.
    """
    check_edge_index(edge_index, num_nodes)
    if rule == 'metropolis':
        edge_index = to_undirected(edge_index, num_nodes=num_nodes)
    elif rule != 'uniform':
        raise ValueError(f"'rule' must be one of {CONSENSUS_RULES} (got {rule!r})")
    sender, receiver = edge_index
    in_degree = degree(receiver, num_nodes)
    largest = torch.maximum(in_degree[sender], in_degree[receiver]) if rule == 'metropolis' else in_degree[receiver]
    weight = 1 / (1 + largest)
    return edge_index, weight, 1 - torch.zeros_like(in_degree).index_add(0, receiver, weight)


def consensus_matrix(
    edge_index: Tensor,
    place: Tensor,
    num_graphs: int,
    num_agents: int,
    rule: Literal['metropolis', 'uniform'] = 'metropolis',
) -> Tensor:
    r"""The matrix :math:`C` (n, n) of one consensus step between agents: the mean of the :func:`consensus_weights` over
    the graphs of a batch. In a graph where an agent is absent, its weight for itself is 1."""
    check_rows('place', place, place.numel(), 'node')
    edge_index, weight, kept = consensus_weights(edge_index, place.numel(), rule)
    agent = place // num_graphs
    matrix = torch.zeros(num_agents, num_agents, device=place.device)
    matrix.index_put_((agent[edge_index[1]], agent[edge_index[0]]), weight, accumulate=True)
    matrix.index_put_((agent, agent), kept, accumulate=True)
    absent = num_graphs - degree(agent, num_agents)
    return (matrix + absent.diag()) / num_graphs


@torch.no_grad()
def mix(stack: Tensor, matrix: Tensor) -> None:
    r"""One synchronous consensus step :math:`P_i \leftarrow \sum_j c_{ij} P_j` on parameters stacked along the agents,
    (n, …), in place: every agent reads before any writes."""
    stack.copy_(torch.tensordot(matrix, stack, dims=1))
