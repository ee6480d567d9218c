"""Mixers: from one value per node to one value per graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.nn import MLP

from ltos_pyg.nn.functional import at_least_float32
from ltos_pyg.nn.validation import check_below, check_rows, check_tensor


class QMixer(nn.Module):
    r"""The monotone mixing network of QMIX on a batch of graphs of any size, after `"QMIX: Monotonic Value Function
    Factorisation for Deep Multi-Agent Reinforcement Learning" <https://arxiv.org/abs/1803.11485>`_.

    .. math::
        Q_{tot} = |\mathbf{w}_2(s)|^\top\, \mathrm{ELU}\Big(\sum_i Q_i\, |\mathbf{w}_1^i(s)| + \mathbf{b}_1(s)\Big)
        + V(s)

    The weights come from networks of the graph's state (hypernetworks). Their absolute values make
    :math:`\partial Q_{tot} / \partial Q_i \ge 0`, so that the nodes' greedy actions maximise the value of the graph.

    A node's row :math:`\mathbf{w}_1^i` is defined in one of two ways:

    - ``num_slots``: each node has a slot, and each slot its own rows. This is QMIX as published, where node i of
      every graph is the same agent; slots may be empty.
    - ``node_channels``: one network for all rows, of the state and the node's own features. This works for any number
      of nodes and is permutation-equivariant; it is ours.

    Args:
        state_channels (int): Size :math:`S` of each graph's state.
        embed_channels (int): Size of the mixing network's hidden layer.
        hidden_channels (int, optional): Size of the hidden layer of the networks that make the weights; ``None``: they
            are linear, as in the paper.
        num_slots (int, optional): Number of slots :math:`K`.
        node_channels (int, optional): Size :math:`F` of each node's features, instead of ``num_slots``.
        activation (torch.nn.Module, optional): Between the two layers; it must be non-decreasing. ``None``: ELU.

    Shapes:
        - **input:** values :math:`(N,)`, states :math:`(B, S)`, graph of each node :math:`(N,)`, and of each node its
          slot :math:`(N,)` or its features :math:`(N, F)`
        - **output:** one value per graph :math:`(B,)`, float32 also under autocast

    The sum over the nodes of an empty graph is 0, so its value depends on its state alone.

    Raises:
        ValueError: Unless exactly one of ``num_slots`` and ``node_channels`` is given, or if an input does not fit.
    """

    def __init__(
        self,
        state_channels: int,
        embed_channels: int = 32,
        hidden_channels: int | None = 64,
        *,
        num_slots: int | None = None,
        node_channels: int | None = None,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if (num_slots is None) == (node_channels is None):
            raise ValueError(
                f"exactly one of 'num_slots' and 'node_channels' must be given (got {num_slots} and {node_channels}): "
                f'rows of its own for each slot, or rows made from the features of each node.'
            )
        self.state_channels, self.embed_channels = state_channels, embed_channels
        self.num_slots, self.node_channels = num_slots, node_channels
        hidden = [] if hidden_channels is None else [hidden_channels]
        self.hyper_w1 = MLP(
            [state_channels + (node_channels or 0), *hidden, embed_channels * (num_slots or 1)], norm=None
        )
        self.hyper_b1 = MLP([state_channels, embed_channels], norm=None)
        self.hyper_w2 = MLP([state_channels, *hidden, embed_channels], norm=None)
        self.value = MLP([state_channels, embed_channels, 1], norm=None)
        self.activation = nn.ELU() if activation is None else activation

    def reset_parameters(self) -> None:
        """Draws new parameters."""
        for module in (self.hyper_w1, self.hyper_b1, self.hyper_w2, self.value):
            module.reset_parameters()

    def forward(self, q: Tensor, state: Tensor, batch: Tensor, node: Tensor) -> Tensor:
        self._check(q, state, batch, node)
        w1 = self._rows(state, batch, node).abs()
        b1, w2, value = (at_least_float32(hyper(state)) for hyper in (self.hyper_b1, self.hyper_w2, self.value))
        hidden = self.activation(b1.index_add(0, batch, q.unsqueeze(-1) * w1))
        return (hidden * w2.abs()).sum(-1) + value.squeeze(-1)

    def _rows(self, state: Tensor, batch: Tensor, node: Tensor) -> Tensor:
        """First-layer weights of each node (N, embed_channels)."""
        if self.num_slots is None:
            return at_least_float32(self.hyper_w1(torch.cat([state.index_select(0, batch), node], dim=-1)))
        rows = at_least_float32(self.hyper_w1(state)).view(-1, self.embed_channels)
        return rows.index_select(0, batch * self.num_slots + node)

    def _check(self, q: Tensor, state: Tensor, batch: Tensor, node: Tensor) -> None:
        check_tensor('q', q)
        check_tensor('state', state)
        if q.dim() != 1:
            raise ValueError(
                f"'q' must have shape (N,), the value of the action that each node takes (got {tuple(q.shape)}). "
                f'Gather it from the values of all actions first.'
            )
        check_rows('batch', batch, q.size(0), 'node')
        check_rows('node', node, q.size(0), 'node')
        if state.dim() != 2 or state.size(1) != self.state_channels:
            raise ValueError(
                f"'state' must have shape (B, state_channels={self.state_channels}), one row per graph "
                f'(got {tuple(state.shape)})'
            )
        width = () if self.node_channels is None else (self.node_channels,)
        if node.shape[1:] != width or (self.num_slots is not None and node.is_floating_point()):
            wanted = 'the slot of each node, (N,) integers' if width == () else f'features, (N, {self.node_channels})'
            raise ValueError(f"'node' must hold {wanted} (got {tuple(node.shape)} of {node.dtype})")
        check_below('batch', batch, state.size(0), 'a graph for each node')
        if self.num_slots is not None:
            check_below('node', node, self.num_slots, 'a slot for each node')

    def __repr__(self) -> str:
        which = f'num_slots={self.num_slots}' if self.num_slots is not None else f'node_channels={self.node_channels}'
        return f'{self.__class__.__name__}({self.state_channels}, {self.embed_channels}, {which})'
