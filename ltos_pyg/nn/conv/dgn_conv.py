from __future__ import annotations

import math

import torch
from torch import Tensor
from torch_geometric.nn import Linear, MessagePassing
from torch_geometric.nn.aggr import SumAggregation

from ltos_pyg.nn.functional import at_least_float32
from ltos_pyg.nn.kernels import can_use_kernel, neighbour_attention
from ltos_pyg.nn.validation import check_edge_index, check_node_features, check_sizes, edge_features


class DGNConv(MessagePassing):
    r"""The relation kernel of DGN: multi-head attention over each node itself and its in-neighbours, after
    `"Graph Convolutional Reinforcement Learning" <https://arxiv.org/abs/1810.09202>`_.

    .. math::
        \mathbf{x}^{\prime}_i = \mathrm{ReLU}\Big(\mathbf{W}_O \big\Vert_{h=1}^{H}
        \sum_{j \in \{i\} \cup \mathcal{N}_i} \alpha^h_{ij} \mathbf{v}^h_j + \mathbf{b}_O\Big), \qquad
        \alpha^h_{ij} = \underset{j}{\mathrm{softmax}}\,
        \frac{\mathbf{q}^{h\top}_i \mathbf{k}^h_j}{\sqrt{C}}

    with :math:`\mathbf{q}, \mathbf{k}, \mathbf{v} = \mathrm{ReLU}(\mathbf{W}_{Q,K,V}\,\mathbf{x} + \mathbf{b})` and
    :math:`C = \text{out\_channels} / H`. Edge features :math:`\mathbf{e}_{ji}` (if ``edge_dim`` is given) join the
    keys and values, :math:`\mathbf{k}^h_{ji} = \mathbf{k}^h_j + \mathbf{W}^h_K \mathbf{e}_{ji}` and
    :math:`\mathbf{v}^h_{ji} = \mathbf{v}^h_j + \mathbf{W}^h_V \mathbf{e}_{ji}`, without bias: zero edge features are
    equivalent to no edge features. The attention of a node to itself uses none.

    Both edge terms are computed per node, :math:`\mathbf{q}^\top \mathbf{W}_K \mathbf{e} = (\mathbf{W}_K^\top
    \mathbf{q})^\top \mathbf{e}` and :math:`\sum \alpha \mathbf{W}_V \mathbf{e} = \mathbf{W}_V \sum \alpha \mathbf{e}`,
    so no tensor of size :math:`E \times \text{out\_channels}` is made for them.

    On the CPU in float32 the attention runs in one compiled kernel (Numba; see :mod:`ltos_pyg.nn.kernels`), from 64
    edges on, or from 16 where gradients are off (``torch.no_grad()``); elsewhere, under ``torch.compile``,
    ``torch.export``, ``torch.jit.trace`` and ``torch.func``, while message hooks or an explainer are attached, and in
    subclasses with messages of their own, in plain PyTorch. The kernel has a first derivative only, by backward (no
    second one, no forward mode, no vectorised Jacobian): set ``ltos_pyg.nn.kernels.MIN_EDGES`` to ``sys.maxsize`` for
    them. ``torch.jit.script``, deprecated by PyTorch, is not supported.

    Args:
        in_channels (int): Size of each node feature. ``-1`` infers it at the first call.
        out_channels (int): Size of each output feature, all heads together.
        heads (int): Number of attention heads; must divide ``out_channels``.
        edge_dim (int, optional): Size of each edge feature, if there are any.
        bias (bool): If ``False``, the layers have no additive bias.

    Shapes:
        - **input:** node features :math:`(N, F)`, edge indices :math:`(2, E)` without self-loops, edge features
          :math:`(E, D)` *(if edge_dim)*, for one feature also :math:`(E,)`
        - **output:** node features :math:`(N, F^{\prime})`

    A node without neighbours attends to itself alone; :math:`N = 0` and :math:`E = 0` are ordinary. The output is one
    of a ReLU, which PyTorch does not let you change in place (``h += 1``, ``ReLU(inplace=True)``) before the backward.

    Raises:
        ValueError: If ``heads`` does not divide ``out_channels``, ``edge_index`` does not fit ``x``, or ``edge_attr``
            does not fit ``edge_dim``.
    """

    def __init__(
        self, in_channels: int, out_channels: int, heads: int = 8, edge_dim: int | None = None, bias: bool = True
    ) -> None:
        check_sizes(in_channels, out_channels, edge_dim)
        super().__init__(aggr='add', node_dim=0)
        if heads < 1 or out_channels % heads != 0:
            raise ValueError(
                f"'heads' must divide 'out_channels' (got {heads} heads, {out_channels} channels). 'heads' is 8 if not "
                f'given: give another number.'
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.heads = heads
        self.edge_dim = edge_dim
        self.lin_qkv = Linear(in_channels, 3 * out_channels, bias=bias)
        self.lin_edge_key = Linear(edge_dim, out_channels, bias=False) if edge_dim else None
        self.lin_edge_value = Linear(edge_dim, out_channels, bias=False) if edge_dim else None
        self.lin_out = Linear(out_channels, out_channels, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new parameters."""
        super().reset_parameters()
        for lin in (self.lin_qkv, self.lin_edge_key, self.lin_edge_value, self.lin_out):
            if lin is not None:
                lin.reset_parameters()

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> Tensor:
        """Runs the layer; see the class for shapes."""
        check_node_features(x)
        check_edge_index(edge_index, x.size(0))
        H, C = self.heads, self.out_channels // self.heads
        qkv = at_least_float32(self.lin_qkv(x)).view(-1, 3, H, C)
        edge_attr, edge_key, edge_value = self._edge_terms(qkv, edge_index, edge_attr)
        fast = can_use_kernel(qkv, edge_index) and not self._needs_messages()
        attend = neighbour_attention if fast else self._attend
        out = attend(qkv, edge_attr, edge_key, edge_value, edge_index)
        return self.lin_out(out.reshape(-1, self.out_channels).to(self.lin_out.weight.dtype)).relu()

    def attention(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r"""The attention weights :math:`\alpha`: of each edge, from its receiver to its sender (E, H), and of each node
        to itself (N, H). For each receiver they sum to one.
        """
        check_node_features(x)
        check_edge_index(edge_index, x.size(0))
        qkv = at_least_float32(self.lin_qkv(x)).view(-1, 3, self.heads, self.out_channels // self.heads)
        edge_attr, edge_key, _ = self._edge_terms(qkv, edge_index, edge_attr)
        q, k, _ = qkv.relu().unbind(1)
        weight, self_weight, total = self._weights(q, k, edge_attr, edge_key, edge_index)
        return weight / total.index_select(0, edge_index[1]), self_weight / total

    def _edge_terms(self, qkv: Tensor, edge_index: Tensor, edge_attr: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Edge features (E, D) and their maps to keys and to values (D, H, C); D = 0 if the layer has none."""
        H, C = qkv.size(2), qkv.size(3)
        edge_attr = edge_features(edge_attr, self.edge_dim, edge_index.size(1))
        if self.lin_edge_key is None or self.lin_edge_value is None or edge_attr is None:
            return qkv.new_zeros(edge_index.size(1), 0), qkv.new_zeros(0, H, C), qkv.new_zeros(0, H, C)
        maps = [lin.weight.t().reshape(-1, H, C).to(qkv.dtype) for lin in (self.lin_edge_key, self.lin_edge_value)]
        return edge_attr.to(qkv.dtype), maps[0], maps[1]

    def _needs_messages(self) -> bool:
        """Whether single messages are needed, which the kernel does not compute: by a hook, an explainer, a subclass
        that overrides one of the steps, or another aggregation."""
        steps = ('message', 'aggregate', 'edge_update')
        hooks = (getattr(self, f'_{s}_forward{pre}_hooks') for s in ('propagate', *steps) for pre in ('_pre', ''))
        own = (getattr(type(self), step) is not getattr(DGNConv, step) for step in (*steps, 'update'))
        return bool(self.explain) or any(hooks) or any(own) or not isinstance(self.aggr_module, SumAggregation)

    def _attend(
        self, qkv: Tensor, edge_attr: Tensor, edge_key: Tensor, edge_value: Tensor, edge_index: Tensor
    ) -> Tensor:
        """What :func:`~ltos_pyg.nn.kernels.neighbour_attention` computes, in plain PyTorch."""
        q, k, v = qkv.relu().unbind(1)
        weight, self_weight, total = self._weights(q, k, edge_attr, edge_key, edge_index)
        receiver = edge_index[1]
        if self._needs_messages():  # hooks and explainers read the attention itself, which sums to one
            weight, self_weight = weight / total.index_select(0, receiver), self_weight / total
            total = torch.ones_like(total)
        # propagate_type: (v: Tensor, alpha: Tensor)
        out = self.propagate(edge_index, v=v, alpha=weight, size=(v.size(0), v.size(0)))
        sent = weight.unsqueeze(-1) * edge_attr.unsqueeze(1)
        mean_attr = sent.new_zeros(v.size(0), *sent.shape[1:]).index_add(0, receiver, sent) / total.unsqueeze(-1)
        out = (out + self_weight.unsqueeze(-1) * v) / total.unsqueeze(-1)
        return out + torch.einsum('nhd,dhc->nhc', mean_attr, edge_value)

    def _weights(
        self, q: Tensor, k: Tensor, edge_attr: Tensor, edge_key: Tensor, edge_index: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Weights of edges (E, H) and of nodes themselves (N, H), and their sum for each receiver (N, H)."""
        scale = 1 / math.sqrt(q.size(-1))
        self_score = (q * k).sum(-1) * scale
        q_edge = torch.einsum('nhc,dhc->nhd', q, edge_key).to(q.dtype)
        # edge_updater_type: (q: Tensor, k: Tensor, q_edge: Tensor, edge_attr: Tensor)
        score = self.edge_updater(edge_index, q=q, k=k, q_edge=q_edge, edge_attr=edge_attr) * scale
        receiver = edge_index[1]
        index = receiver.unsqueeze(-1).expand_as(score)
        top = self_score.detach().scatter_reduce(0, index, score.detach(), 'amax', include_self=True)
        weight, self_weight = (score - top.index_select(0, receiver)).exp(), (self_score - top).exp()
        return weight, self_weight, self_weight.index_add(0, receiver, weight)

    def edge_update(self, q_i: Tensor, k_j: Tensor, q_edge_i: Tensor, edge_attr: Tensor) -> Tensor:
        return (q_i * k_j).sum(-1) + (q_edge_i * edge_attr.unsqueeze(1)).sum(-1)

    def message(self, v_j: Tensor, alpha: Tensor) -> Tensor:  # `alpha`: the name that PyG's explainer looks for
        return alpha.unsqueeze(-1) * v_j

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}({self.in_channels}, {self.out_channels}, heads={self.heads})'
