"""Heads: from node features to one number per edge, per action, or per edge and action."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import leaky_relu
from torch_geometric.nn import Linear

from ltos_pyg.nn.functional import Sharing, at_least_float32, kept_logit, softmax_by_sender, weighted_sum
from ltos_pyg.nn.validation import check_edge_index, check_node_features, check_pairs, edge_features


def add_edges(pair: Tensor, lin_edge: Linear | None, edge_attr: Tensor | None) -> Tensor:
    """Adds ``lin_edge`` of the edge features to the values of pairs (E, C), in place.

    Raises:
        ValueError: If there are features but no layer for them, a layer but no features, or they do not fit.
    """
    features = edge_features(edge_attr, lin_edge.in_channels if lin_edge is not None else None, pair.size(0))
    if lin_edge is not None and features is not None:
        pair += lin_edge(features.to(pair.dtype))
    return pair


class EdgePolicyHead(nn.Module):
    r"""One logit per edge and one per node, from the features of the nodes that it joins.

    .. math::
        e_{ji} = \mathbf{a}^\top \sigma(\mathbf{W}_s \mathbf{h}_j + \mathbf{W}_r \mathbf{h}_i
        + \mathbf{W}_e \mathbf{e}_{ji} + \mathbf{b}) + a_0, \qquad
        s_i = \mathbf{c}^\top \sigma(\mathbf{W}_o \mathbf{h}_i + \mathbf{b}_o) + c_0
        + \log \Big( \frac{\rho}{1 - \rho} \max(d_i, 1) \Big)

    with :math:`\sigma` a LeakyReLU of slope 0.2 (units of a ReLU can die, and the weights are constant then) and
    :math:`d_i` the out-degree of :math:`i`. The last layers start at zero, so at the start the softmax over each
    sender (:func:`~ltos_pyg.nn.sender_softmax`) keeps exactly the share :math:`\rho` and splits the rest evenly,
    whatever the degree.

    Args:
        in_channels (int): Size of each node feature.
        hidden_channels (int): Size of the hidden layer.
        edge_dim (int, optional): Size of each edge feature, if there are any.
        out_channels (int): Number of logits per edge and per node (heads).
        initial_kept (float, optional): The share :math:`\rho` in (0, 1) that a node with neighbours keeps at the
            start. ``None`` is uniform over itself and its neighbours.

    Shapes:
        - **input:** node features :math:`(N, F)`, edge indices :math:`(2, E)`, edge features :math:`(E, D)`
        - **output:** edge logits :math:`(E,)`, self logits :math:`(N,)`; with ``out_channels`` H > 1
          :math:`(E, H)` and :math:`(N, H)`; float32 also under autocast

    Raises:
        ValueError: If ``initial_kept`` lies outside (0, 1), or ``edge_index`` or ``edge_attr`` does not fit.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int = 64,
        edge_dim: int | None = None,
        out_channels: int = 1,
        initial_kept: float | None = None,
    ) -> None:
        super().__init__()
        if initial_kept is not None and not 0 < initial_kept < 1:
            raise ValueError(f"'initial_kept' must lie strictly between 0 and 1 (got {initial_kept})")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.edge_dim = edge_dim
        self.initial_kept = initial_kept
        self.lin_sender = Linear(in_channels, hidden_channels)
        self.lin_receiver = Linear(in_channels, hidden_channels, bias=False)
        self.lin_edge = Linear(edge_dim, hidden_channels, bias=False) if edge_dim else None
        self.lin_own = Linear(in_channels, hidden_channels)
        self.edge_logit = Linear(hidden_channels, out_channels, bias=True)
        self.self_logit = Linear(hidden_channels, out_channels, bias=True)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new parameters; the last layers start at zero."""
        for lin in (self.lin_sender, self.lin_receiver, self.lin_edge, self.lin_own):
            if lin is not None:
                lin.reset_parameters()
        for lin in (self.edge_logit, self.self_logit):
            nn.init.zeros_(lin.weight)
            nn.init.zeros_(lin.bias)

    def forward(self, h: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns (edge logits, self logits)."""
        check_node_features(h, 'h')
        check_edge_index(edge_index, h.size(0))
        pair = self.lin_sender(h).index_select(0, edge_index[0])
        pair += self.lin_receiver(h).index_select(0, edge_index[1])
        pair = add_edges(pair, self.lin_edge, edge_attr)
        edge_logit = at_least_float32(self.edge_logit(leaky_relu(pair, 0.2)))
        self_logit = at_least_float32(self.self_logit(leaky_relu(self.lin_own(h), 0.2)))
        if self.initial_kept is not None:
            start = kept_logit(edge_index, h.size(0), self.initial_kept)
            self_logit = self_logit + start.to(self_logit.dtype).unsqueeze(-1)
        if self.out_channels == 1:
            return edge_logit.squeeze(-1), self_logit.squeeze(-1)
        return edge_logit, self_logit

    def share(self, h: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> Sharing:
        """Returns the weights: the softmax of the logits over each sender."""
        edge_logit, self_logit = self(h, edge_index, edge_attr)
        return softmax_by_sender(edge_logit, self_logit, edge_index)


class QHead(nn.Module):
    r"""Action values of each node, :math:`Q_i(a) = (\mathbf{W} \mathbf{h}_i + \mathbf{b})_a`.

    Args:
        in_channels (int): Size of each node feature.
        num_actions (int): Number of actions :math:`A`.

    Shapes:
        - **input:** node features :math:`(N, F)`
        - **output:** action values :math:`(N, A)`, float32 also under autocast
    """

    def __init__(self, in_channels: int, num_actions: int) -> None:
        super().__init__()
        self.lin = Linear(in_channels, num_actions)

    def reset_parameters(self) -> None:
        """Draws new parameters."""
        self.lin.reset_parameters()

    def forward(self, h: Tensor) -> Tensor:
        return at_least_float32(self.lin(h))


class EdgeQHead(nn.Module):
    r"""Action values of each *pair*: the value of :math:`i`'s action for itself and for each node that shares with it.

    .. math::
        U_{ji}(a) = \big(\mathbf{W}_U\,\mathrm{ReLU}(\mathbf{W}_s \mathbf{h}_j + \mathbf{W}_r \mathbf{h}_i +
        \mathbf{W}_e \mathbf{e}_{ji} + \mathbf{b}_s) + \mathbf{b}_U\big)_a, \qquad
        U_{ii}(a) = (\mathbf{W} \mathbf{h}_i + \mathbf{b})_a

    :math:`U_{ji}(a)` estimates what action :math:`a` of :math:`i` adds to :math:`j`'s own discounted return (how it is
    learned: :class:`~ltos_pyg.algos.ltos.EdgeCritic`). For given node features
    :math:`Q_i(a) = w_{ii} U_{ii}(a) + \sum_{j \to i} w_{ji} U_{ji}(a)` is linear in the weights (:meth:`combine`).

    Args:
        in_channels (int): Size of each node feature.
        num_actions (int): Number of actions :math:`A`.
        hidden_channels (int): Size of the hidden layer.
        edge_dim (int, optional): Size of each edge feature, if there are any. Without them, neighbours are
            distinguished by their node features alone.

    Shapes:
        - **input:** node features :math:`(N, F)`, pairs :math:`(2, P)` (row 0: whose reward, row 1: whose action), edge
          features :math:`(P, D)`
        - **output:** own values :math:`(N, A)`, pair values :math:`(P, A)`; float32 also under autocast

    Raises:
        ValueError: If ``h``, ``pairs`` or ``edge_attr`` does not fit.
    """

    def __init__(
        self,
        in_channels: int,
        num_actions: int,
        hidden_channels: int = 128,
        edge_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.own = QHead(in_channels, num_actions)
        self.lin_owner = Linear(in_channels, hidden_channels)
        self.lin_actor = Linear(in_channels, hidden_channels, bias=False)
        self.lin_edge = Linear(edge_dim, hidden_channels, bias=False) if edge_dim else None
        self.pair = Linear(hidden_channels, num_actions)

    def reset_parameters(self) -> None:
        """Draws new parameters."""
        for module in (self.own, self.lin_owner, self.lin_actor, self.lin_edge, self.pair):
            if module is not None:
                module.reset_parameters()

    def forward(self, h: Tensor, pairs: Tensor, edge_attr: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns (own values, pair values)."""
        check_node_features(h, 'h')
        check_pairs(pairs, h.size(0))
        hidden = self.lin_owner(h).index_select(0, pairs[0])
        hidden += self.lin_actor(h).index_select(0, pairs[1])
        hidden = add_edges(hidden, self.lin_edge, edge_attr).relu_()
        return self.own(h), at_least_float32(self.pair(hidden))

    @staticmethod
    def combine(own: Tensor, pair: Tensor, pairs: Tensor, sharing: Sharing) -> Tensor:
        r"""Values under given weights, :math:`Q_i(a) = w_{ii} U_{ii}(a) + \sum_{j \to i} w_{ji} U_{ji}(a)`, (N, A).

        Args:
            own: Own values, (N, A).
            pair: Pair values, (P, A).
            pairs: The pairs, (2, P).
            sharing: Weights: ``given`` (P,), ``kept`` (N,).
        """
        return weighted_sum(own, pair, pairs[1], sharing)
