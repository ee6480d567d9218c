from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.nn import Linear, MessagePassing
from torch_geometric.nn.inits import glorot, zeros

from ltos_pyg.nn.functional import Sharing, as_sharing, at_least_float32, softmax_by_sender
from ltos_pyg.nn.validation import check_edge_index, check_node_features, check_rows, check_sizes, edge_features


class LToSConv(MessagePassing):
    r"""Distributes each node's value over its out-neighbours and itself, with learned weights, after
    `"Learning to Share in Multi-Agent Reinforcement Learning" <https://arxiv.org/abs/2112.08702>`_.

    .. math::
        \mathbf{x}^{\prime}_i = \big\Vert_{h=1}^{H} \Big( w^h_{ii} \mathbf{v}^h_i + \sum_{j \to i} w^h_{ji}
        \mathbf{v}^h_j \Big) + \mathbf{b}, \qquad \mathbf{v} = \mathbf{W} \mathbf{x}, \qquad
        w^h_{ji} \ge 0, \quad w^h_{jj} + \sum_i w^h_{ji} = 1

    The weights are a softmax over each **sender's** out-edges and itself,

    .. math::
        w^h_{ji} \propto \exp \sigma \big( \mathbf{a}_s^{h\top} \mathbf{v}^h_j + \mathbf{a}_r^{h\top} \mathbf{v}^h_i +
        \mathbf{a}_e^{h\top} \mathbf{e}_{ji} \big), \qquad
        w^h_{jj} \propto \exp \sigma \big( \mathbf{a}_o^{h\top} \mathbf{v}^h_j \big)

    with :math:`\sigma` a LeakyReLU. Attention layers normalise over each receiver's in-edges and so average; here value
    is *moved*: :math:`\sum_i \mathbf{x}^{\prime}_i = \sum_i \mathbf{v}_i + N \mathbf{b}`.

    Args:
        in_channels (int): Size of each node feature. ``-1`` infers it at the first call.
        out_channels (int): Size of each output feature, all heads together.
        heads (int): Number of heads; must divide ``out_channels``.
        edge_dim (int, optional): Size of each edge feature, if there are any.
        negative_slope (float): Slope of the LeakyReLU below zero.
        bias (bool): If ``False``, no bias is added, and the layer conserves :math:`\sum_i \mathbf{v}_i` exactly.

    Shapes:
        - **input:** node features :math:`(N, F)`, edge indices :math:`(2, E)` without self-loops, edge features
          :math:`(E, D)` *(if edge_dim)*, for one feature also :math:`(E,)`
        - **output:** node features :math:`(N, F^{\prime})` in the dtype of the parameters, so float32 under autocast;
          :meth:`share` gives weights :math:`(E, H)` and :math:`(N, H)`, or :math:`(E,)` and :math:`(N,)` with one
          head, in float32 at least

    A node without out-edges keeps everything; :math:`N = 0` and :math:`E = 0` are ordinary.

    Neighbour sampling changes the weights: a sampled subgraph lacks out-edges of its outer nodes, so the softmax over
    what is left gives more to each of the others. Compute the weights on the whole graph, and take those of the sampled
    edges and nodes along::

        share = conv.share(x, edge_index)
        node, sub_index, mapping, edge_mask = k_hop_subgraph(target, 1, edge_index, relabel_nodes=True)
        sampled = Sharing(share.given[edge_mask], share.kept[node])
        out = conv(x[node], sub_index, share=sampled)[mapping]  # as on the whole graph

    ``torch.jit.script`` (deprecated by PyTorch) is not supported; ``torch.compile``, ``torch.export`` and
    ``torch.jit.trace`` are.

    Raises:
        ValueError: If ``heads`` does not divide ``out_channels``, or ``edge_index``, ``edge_attr`` or ``share`` does
            not fit the graph or the layer.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        heads: int = 1,
        edge_dim: int | None = None,
        negative_slope: float = 0.2,
        bias: bool = True,
    ) -> None:
        check_sizes(in_channels, out_channels, edge_dim)
        super().__init__(aggr='add', node_dim=0)
        if heads < 1 or out_channels % heads != 0:
            raise ValueError(f"'heads' must divide 'out_channels' (got {heads} heads, {out_channels} channels)")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.heads = heads
        self.edge_dim = edge_dim
        self.negative_slope = negative_slope
        self.lin = Linear(in_channels, out_channels, bias=False, weight_initializer='glorot')
        self.att_sender = torch.nn.Parameter(torch.empty(1, heads, out_channels // heads))
        self.att_receiver = torch.nn.Parameter(torch.empty(1, heads, out_channels // heads))
        self.att_own = torch.nn.Parameter(torch.empty(1, heads, out_channels // heads))
        self.lin_edge = Linear(edge_dim, heads, bias=False, weight_initializer='glorot') if edge_dim else None
        self.bias = torch.nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new parameters."""
        super().reset_parameters()
        self.lin.reset_parameters()
        for weight in (self.att_sender, self.att_receiver, self.att_own):
            glorot(weight)
        if self.lin_edge is not None:
            self.lin_edge.reset_parameters()
        zeros(self.bias)

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None, share: Sharing | None = None
    ) -> Tensor:
        """Runs the layer.

        Args:
            x (Tensor): Node features.
            edge_index (Tensor): Edge indices.
            edge_attr (Tensor, optional): Edge features.
            share (Sharing, optional): Weights to use in place of the learned ones, as :meth:`share` gives them, or one
                weight per edge and node for all heads. They are used as they are: any numbers, also weights that do not
                sum to one.
        """
        check_node_features(x)
        check_edge_index(edge_index, x.size(0))
        value = self._value(x)
        if share is None:
            share = self._share(value, edge_index, edge_attr)
        else:
            if edge_attr is not None:
                edge_features(edge_attr, self.edge_dim, edge_index.size(1))
            share = as_sharing(share)
            given = self._per_head('share.given', share.given, edge_index.size(1), 'edge')
            share = Sharing(given, self._per_head('share.kept', share.kept, x.size(0), 'node'))
        # propagate_type: (value: Tensor, alpha: Tensor)
        out = self.propagate(edge_index, value=value, alpha=share.given, size=(x.size(0), x.size(0)))
        out = (out + share.kept.unsqueeze(-1) * value).view(-1, self.out_channels)
        out = out if self.bias is None else out + self.bias
        return out.to(self.lin.weight.dtype)

    def share(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> Sharing:
        """Returns the learned weights."""
        check_node_features(x)
        check_edge_index(edge_index, x.size(0))
        share = self._share(self._value(x), edge_index, edge_attr)
        return Sharing(share.given.squeeze(-1), share.kept.squeeze(-1)) if self.heads == 1 else share

    def _value(self, x: Tensor) -> Tensor:
        return at_least_float32(self.lin(x)).view(-1, self.heads, self.out_channels // self.heads)

    def _per_head(self, name: str, weight: Tensor, rows: int, what: str) -> Tensor:
        check_rows(name, weight, rows, what)
        weight = weight.unsqueeze(-1) if weight.dim() == 1 else weight
        if weight.dim() != 2 or weight.size(1) not in (1, self.heads):
            raise ValueError(
                f"'{name}' needs one weight per {what}, or one per {what} and head: expected ({rows},) or "
                f'({rows}, {self.heads}), got {tuple(weight.shape)}. Was it made by a layer with other heads?'
            )
        return weight

    def _share(self, value: Tensor, edge_index: Tensor, edge_attr: Tensor | None) -> Sharing:
        edge_attr = edge_features(edge_attr, self.edge_dim, edge_index.size(1))
        edge_logit = torch.zeros(edge_index.size(1), self.heads, dtype=value.dtype, device=value.device)
        if self.lin_edge is not None and edge_attr is not None:
            edge_logit = self.lin_edge(edge_attr.to(self.lin_edge.weight.dtype)).to(value.dtype)
        sender = (value * self.att_sender).sum(-1)
        receiver = (value * self.att_receiver).sum(-1)
        # edge_updater_type: (sender: Tensor, receiver: Tensor, edge_logit: Tensor)
        edge_logit = self.edge_updater(edge_index, sender=sender, receiver=receiver, edge_logit=edge_logit)
        own = torch.nn.functional.leaky_relu((value * self.att_own).sum(-1), self.negative_slope)
        return softmax_by_sender(edge_logit, own, edge_index)

    def edge_update(self, sender_j: Tensor, receiver_i: Tensor, edge_logit: Tensor) -> Tensor:
        return torch.nn.functional.leaky_relu(sender_j + receiver_i + edge_logit, self.negative_slope)

    def message(self, value_j: Tensor, alpha: Tensor) -> Tensor:  # `alpha`: the name that PyG's explainer looks for
        return alpha.unsqueeze(-1) * value_j

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}({self.in_channels}, {self.out_channels}, heads={self.heads})'
