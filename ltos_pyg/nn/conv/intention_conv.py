from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch_geometric.nn import Linear, MessagePassing
from torch_geometric.nn.resolver import activation_resolver

from ltos_pyg.nn.validation import (
    check_edge_index,
    check_node_features,
    check_rows,
    check_sizes,
    edge_features,
)


class IntentionConv(MessagePassing):
    r"""Rounds of intention propagation: nodes repeatedly exchange embeddings of their intended actions and update their
    own, after `"Intention Propagation for Multi-agent Reinforcement Learning" <https://arxiv.org/abs/2004.08883>`_.

    .. math::
        \boldsymbol{\mu}^{m}_i = \sigma\Big(\mathbf{W}_1 \mathbf{x}_i + \mathbf{b} + \sum_{j \to i} \big(\mathbf{W}_2
        \boldsymbol{\mu}^{m-1}_j + \mathbf{W}_3 \mathbf{e}_{ji}\big)\Big), \qquad m = 1, \dots, M

    It is the fixed-point iteration of a mean-field approximation in an embedding: with :math:`\mu_i` a probability and
    :math:`\sigma` the logistic function it is the mean-field iteration itself. The weights are the same in every round.

    Args:
        in_channels (int): Size of each node feature. ``-1`` infers it at the first call.
        out_channels (int): Size of each intention :math:`\boldsymbol{\mu}`.
        rounds (int): M.
        edge_dim (int, optional): Size of each edge feature, if there are any.
        aggr (str): ``'add'`` as in the formula, or ``'mean'``, which does not grow with the number of neighbours.
        activation: :math:`\sigma`: a function, a module, or its name, as PyG's ``act``.

    Shapes:
        - **input:** node features :math:`(N, F)`, edge indices :math:`(2, E)` without self-loops, edge features
          :math:`(E, D)` *(if edge_dim)*, for one feature also :math:`(E,)`, first intentions :math:`(N, F')`
          *(optional: zeros)*
        - **output:** intentions :math:`(N, F')`

    Raises:
        ValueError: If ``rounds`` is below 1, or ``edge_index``, ``edge_attr`` or ``start`` does not fit.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        rounds: int = 2,
        edge_dim: int | None = None,
        aggr: str = 'add',
        activation: str | Callable[[Tensor], Tensor] = torch.relu,
    ) -> None:
        if rounds < 1:
            raise ValueError(f"'rounds' must be at least 1 (got {rounds})")
        check_sizes(in_channels, out_channels, edge_dim)
        super().__init__(aggr=aggr, node_dim=0)
        self.in_channels, self.out_channels, self.rounds, self.edge_dim = in_channels, out_channels, rounds, edge_dim
        self.activation = activation_resolver(activation) if isinstance(activation, str) else activation
        self.lin_self = Linear(in_channels, out_channels)
        self.lin_neighbour = Linear(out_channels, out_channels, bias=False)
        self.lin_edge = Linear(edge_dim, out_channels, bias=False) if edge_dim else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new parameters."""
        super().reset_parameters()
        for lin in (self.lin_self, self.lin_neighbour, self.lin_edge):
            if lin is not None:
                lin.reset_parameters()

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None, start: Tensor | None = None
    ) -> Tensor:
        """Runs the rounds; see the class for shapes."""
        check_node_features(x)
        check_edge_index(edge_index, x.size(0))
        own = self.lin_self(x)
        edge = self._edges(edge_attr, edge_index, own)
        if start is not None:
            check_rows('start', start, x.size(0), 'node')
        mu = torch.zeros_like(own) if start is None else start
        for _ in range(self.rounds):
            # propagate_type: (mu: Tensor, edge: Tensor)
            received = self.propagate(edge_index, mu=self.lin_neighbour(mu), edge=edge, size=(x.size(0), x.size(0)))
            mu = self.activation(own + received)
        return mu

    def _edges(self, edge_attr: Tensor | None, edge_index: Tensor, like: Tensor) -> Tensor:
        """Term of the edge features in a message, (E, F') or, without any, (E, 1) of zeros."""
        edge_attr = edge_features(edge_attr, self.edge_dim, edge_index.size(1))
        if self.lin_edge is None or edge_attr is None:
            return like.new_zeros(edge_index.size(1), 1)
        return self.lin_edge(edge_attr.to(like.dtype))

    def message(self, mu_j: Tensor, edge: Tensor) -> Tensor:
        return mu_j + edge

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}({self.in_channels}, {self.out_channels}, rounds={self.rounds})'
