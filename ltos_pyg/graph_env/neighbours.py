"""Neighbour rules: edge indices of fully connected, k-nearest and radius graphs, one graph at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from ltos_pyg.nn.validation import check_tensor


def fully_connected(num_nodes: int) -> Tensor:
    """Edges between all pairs of ``num_nodes`` nodes, in both directions: (2, N (N - 1)) int64, ordered by sender."""
    return _off_diagonal(torch.ones(num_nodes, num_nodes, dtype=torch.bool))


def k_nearest(position: Tensor, k: int, symmetric: bool = True) -> Tensor:
    r"""Edges from each node's ``k`` nearest others, by Euclidean distance.

    Args:
        position (Tensor): Where each node is :math:`(N, D)`.
        k (int): Number of senders for each node. With fewer than ``k`` others, all of them.
        symmetric (bool): If ``True``, two nodes are connected in both directions if either is among the other's ``k``
            nearest (a node may then have more than ``k`` neighbours). If ``False``, each node receives messages from
            exactly its ``k`` nearest.

    Returns:
        Tensor: Edge indices :math:`(2, E)` int64 ordered by sender, free of self-loops and duplicates. Ties in distance
            go to the lower node number.

    Raises:
        ValueError: If ``k`` is negative, or ``position`` is not a finite tensor (N, D).
    """
    _check_position(position)
    if k < 0:
        raise ValueError(f"'k' must be at least 0 (got {k})")
    N = position.size(0)
    distance = _squared_distance(position)
    distance.fill_diagonal_(float('inf'))
    nearest = distance.sort(dim=1, stable=True).indices[:, : min(k, max(N - 1, 0))]
    receives = torch.zeros(N, N, dtype=torch.bool, device=position.device).scatter_(1, nearest, True)
    sends = receives | receives.t() if symmetric else receives.t()
    return sends.nonzero().t().contiguous()


def within_radius(position: Tensor, radius: float) -> Tensor:
    """Edges, in both directions, between all pairs of nodes of ``position`` (N, D) that are at most ``radius``
    apart.

    Raises:
        ValueError: If the radius is negative, or ``position`` is not a finite tensor (N, D).
    """
    _check_position(position)
    if not radius >= 0:
        raise ValueError(f"'radius' must be at least 0 (got {radius})")
    return _off_diagonal(_squared_distance(position) <= radius**2)


def _check_position(position: Tensor) -> None:
    check_tensor('position', position)
    if position.dim() != 2 or not bool(position.isfinite().all()):
        raise ValueError(
            f"'position' must be a finite (N, D) tensor (got shape {tuple(position.shape)}, "
            f'{int((~position.isfinite()).sum())} NaN or infinite entries). Give one row of coordinates per node.'
        )


def _squared_distance(position: Tensor) -> Tensor:
    # Summed differences, not torch.cdist: its matrix product rounds, which would break ties arbitrarily.
    position = position.double()  # before subtracting: differences of small integers would wrap around
    return ((position.unsqueeze(1) - position.unsqueeze(0)) ** 2).sum(-1)


def _off_diagonal(sends: Tensor) -> Tensor:
    return sends.fill_diagonal_(False).nonzero().t().contiguous()
