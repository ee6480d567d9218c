"""Whole networks: the DGN trunk with its action values, and the policy that shares rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import MLP, Linear

from ltos_pyg.nn.conv.by_name import Conv, make_conv
from ltos_pyg.nn.conv.dgn_conv import DGNConv
from ltos_pyg.nn.functional import Sharing, single_sharing
from ltos_pyg.nn.heads import EdgePolicyHead, QHead
from ltos_pyg.nn.validation import check_edge_index, check_node_features, edge_features

SMALL_SHARE = 0.02  # shares below it have nearly the same features


def sharing_features(edge_index: Tensor, sharing: Sharing) -> tuple[Tensor, Tensor]:
    """Input features made of the sharing weights: (N, 4) and (E, 2), all zero under "keep all"."""
    kept, given = sharing.kept, sharing.given
    received = torch.zeros_like(kept).index_add(0, edge_index[1], given)
    of_node = [
        kept - 1,
        ((kept + SMALL_SHARE) / (1 + SMALL_SHARE)).log(),
        received,
        (received / SMALL_SHARE).log1p() / 4,
    ]
    return torch.stack(of_node, dim=-1), torch.stack([given, (given / SMALL_SHARE).log1p() / 4], dim=-1)


class DGNTrunk(nn.Module):
    r"""Encoder, then ``num_layers`` relation kernels; returns all their outputs concatenated.

    .. math::
        \mathbf{h}^0 = \mathrm{MLP}(\mathbf{x}) , \qquad
        \mathbf{h}^{l} = \mathrm{DGNConv}(\mathbf{h}^{l-1}), \qquad
        \mathbf{z} = \mathbf{h}^0 \,\Vert\, \mathbf{h}^1 \,\Vert\, \dots \,\Vert\, \mathbf{h}^L

    With ``sharing=True`` the weights are an input too. Edge :math:`(j \to i)` gets the features
    :math:`(w_{ji}, \tfrac14 \log(1 + w_{ji} / \epsilon))`, and node :math:`i`, with
    :math:`\hat w_i = \sum_{j \to i} w_{ji}`, gets

    .. math::
        \Big(w_{ii} - 1,\ \log\frac{w_{ii} + \epsilon}{1 + \epsilon},\ \hat w_i,\
        \tfrac14 \log(1 + \hat w_i / \epsilon)\Big), \qquad \epsilon = 0.02,

    which join the encoder's first layer through a linear map without bias. The logarithms resolve small shares: the
    best action can change at a share of a few percent. Under "keep all" every one of these features is zero, so the
    network equals the one without these inputs, to the bit.

    Args:
        in_channels (int): Size of each node feature. ``-1`` infers it at the first call, but not with ``sharing=True``.
        hidden_channels (int): Size of the encoder's output and of each layer.
        num_layers (int): Number of relation kernels L. With 0 there is no communication.
        heads (int): Attention heads of each.
        encoder_channels (sequence of int): Sizes of the encoder's hidden layers.
        edge_dim (int, optional): Size of each edge feature, if there are any.
        sharing (bool): Whether the sharing weights are an input.
        conv: The message-passing layer, instead of the relation kernel: the class of any PyTorch Geometric layer that
            takes ``(x, edge_index, edge_attr)``, its name, or ``'package.module:Name'``. A ReLU follows it.

    Shapes:
        - **input:** node features :math:`(N, F)`, edge indices :math:`(2, E)`, edge features :math:`(E, D)`
        - **output:** node features :math:`(N, (L + 1) \cdot \text{hidden\_channels})`

    Raises:
        ValueError: If ``sharing`` is missing, or given to a trunk without it, or does not fit the graph; for the edges
            see :class:`DGNConv`.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int = 128,
        num_layers: int = 2,
        heads: int = 8,
        encoder_channels: Sequence[int] = (512,),
        edge_dim: int | None = None,
        sharing: bool = False,
        conv: Conv = DGNConv,
    ) -> None:
        super().__init__()
        self.out_channels = (num_layers + 1) * hidden_channels
        self.sharing = sharing
        self.encoder = MLP([in_channels, *encoder_channels, hidden_channels], norm=None, plain_last=False)
        first = [*encoder_channels, hidden_channels][0]
        if sharing and in_channels < 0:
            raise ValueError(
                f"'in_channels' must be the size of a node feature in a trunk with sharing weights, whose initial "
                f'parameters depend on it (got {in_channels})'
            )
        self.lin_sharing = Linear(4, first, bias=False) if sharing else None
        self.edge_dim = edge_dim
        size = (edge_dim or 0) + (2 if sharing else 0)
        self.convs = nn.ModuleList(make_conv(conv, hidden_channels, heads, size or None) for _ in range(num_layers))
        self._scale_sharing()

    def reset_parameters(self) -> None:
        """Draws new parameters."""
        for module in (self.encoder, self.lin_sharing, *self.convs):
            if module is not None:
                module.reset_parameters()
        self._scale_sharing()

    def _scale_sharing(self) -> None:
        """Brings the map of the weights' features to the scale of the first layer's other columns.

        With the scale for 4 inputs alone it dominates a wide and sparse observation, and slows learning.
        """
        if self.lin_sharing is not None:
            with torch.no_grad():
                self.lin_sharing.weight.mul_((4 / (4 + self.encoder.lins[0].in_channels)) ** 0.5)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor | None = None,
        sharing: Sharing | None = None,
        copies: int = 1,
    ) -> Tensor:
        """Runs the trunk; ``sharing`` is required if and only if the trunk was built with it.

        With ``copies=K`` it runs K copies of one batch that differ in their weights only: edges and weights are those
        of all copies, ``x`` (N, F) is that of one, whose part of the first layer is then computed once.
        """
        check_node_features(x)
        if (sharing is not None) != self.sharing:
            raise ValueError(
                f"'sharing' must {'be given to' if self.sharing else 'not be given to'} a trunk built with "
                f'sharing={self.sharing}'
            )
        if sharing is None:
            h = self.encoder(x) if copies == 1 else self.encoder(x).repeat(copies, 1)
        else:
            check_edge_index(edge_index, copies * x.size(0))
            sharing = single_sharing(sharing, edge_index.size(1), copies * x.size(0))
            of_node, of_edge = sharing_features(edge_index, sharing)
            h = self._encode(x, of_node, copies)
            edge_attr = edge_features(edge_attr, self.edge_dim, edge_index.size(1))
            edge_attr = of_edge if edge_attr is None else torch.cat([of_edge, edge_attr.to(of_edge.dtype)], dim=-1)
        outs = [h]
        for conv in self.convs:
            outs.append(conv(outs[-1], edge_index, edge_attr))
        return torch.cat(outs, dim=-1)

    def _encode(self, x: Tensor, of_node: Tensor, copies: int) -> Tensor:
        """The encoder, with the features of the weights joining its first layer."""
        assert self.lin_sharing is not None
        first, *rest = self.encoder.lins
        h = first(x) if copies == 1 else first(x).repeat(copies, 1)
        h = (h + self.lin_sharing(of_node.to(self.lin_sharing.weight.dtype))).relu()
        for lin in rest:
            h = lin(h).relu()
        return h


class DGN(nn.Module):
    r"""The Q-network of DGN: :class:`DGNTrunk`, then one linear layer to the action values, after
    `"Graph Convolutional Reinforcement Learning" <https://arxiv.org/abs/1810.09202>`_.

    .. math::
        Q_i(a) = (\mathbf{W} \mathbf{z}_i + \mathbf{b})_a

    Args:
        in_channels (int): Size of each node feature.
        out_channels (int): Number of actions :math:`A`.
        kwargs: Those of :class:`DGNTrunk`.

    Shapes:
        - **input:** node features :math:`(N, F)`, edge indices :math:`(2, E)`, edge features :math:`(E, D)`
        - **output:** action values :math:`(N, A)`
    """

    def __init__(self, in_channels: int, out_channels: int, **kwargs: Any) -> None:
        super().__init__()
        self.trunk = DGNTrunk(in_channels, **kwargs)
        self.head = QHead(self.trunk.out_channels, out_channels)

    def reset_parameters(self) -> None:
        """Draws new parameters."""
        self.trunk.reset_parameters()
        self.head.reset_parameters()

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor | None = None,
        sharing: Sharing | None = None,
        copies: int = 1,
    ) -> Tensor:
        return self.head(self.trunk(x, edge_index, edge_attr, sharing, copies))


class SharingPolicy(nn.Module):
    r"""The high-level policy :math:`\phi` of LToS: from observations to the sharing weights.

    A :class:`DGNTrunk`, then an :class:`EdgePolicyHead`, then the softmax over each sender. The head joins the features
    of both ends of an edge, and each has received messages over ``num_layers`` hops: with one layer, the weights of an
    agent depend on what agents up to two hops away observe.

    Args:
        in_channels (int): Size of each node feature.
        hidden_channels (int): Size of the hidden layers.
        heads (int): Attention heads.
        num_layers (int): Number of message-passing layers.
        encoder_channels (sequence of int): Sizes of the encoder's hidden layers.
        edge_dim (int, optional): Size of each edge feature, if there are any.
        initial_kept (float, optional): The share in (0, 1) that a node with neighbours keeps at the start; ``None`` is
            uniform over itself and its neighbours.

    Shapes:
        - **input:** node features :math:`(N, F)`, edge indices :math:`(2, E)`, edge features :math:`(E, D)`
        - **output:** :class:`Sharing` with weights :math:`(E,)` and :math:`(N,)`
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int = 64,
        heads: int = 4,
        num_layers: int = 1,
        encoder_channels: Sequence[int] = (),
        edge_dim: int | None = None,
        initial_kept: float | None = None,
    ) -> None:
        super().__init__()
        self.trunk = DGNTrunk(in_channels, hidden_channels, num_layers, heads, encoder_channels, edge_dim)
        self.head = EdgePolicyHead(self.trunk.out_channels, hidden_channels, edge_dim, initial_kept=initial_kept)

    def reset_parameters(self) -> None:
        """Draws new parameters; the first weights are those of ``initial_kept``."""
        self.trunk.reset_parameters()
        self.head.reset_parameters()

    def logits(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The weights before the softmax: edge logits :math:`(E,)` and self logits :math:`(N,)`."""
        edge_logit, self_logit = self.head(self.trunk(x, edge_index, edge_attr), edge_index, edge_attr)
        return edge_logit, self_logit

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> Sharing:
        return self.head.share(self.trunk(x, edge_index, edge_attr), edge_index, edge_attr)
