"""The low level's two critics: action values under given sharing weights, and their targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from ltos_pyg.algos.base import Seen as Seen
from ltos_pyg.algos.dgn import trunk_options
from ltos_pyg.algos.dqn import DQNConfig
from ltos_pyg.algos.losses import gap_to_best, gather_next_value, masked, mean, td_loss, td_target
from ltos_pyg.algos.ltos.config import SharingQConfig
from ltos_pyg.data import Transition
from ltos_pyg.graph_env import GraphEnvSpec
from ltos_pyg.nn import DGN, DGNTrunk, EdgeQHead, Sharing, share_value
from ltos_pyg.nn.conv.by_name import Conv


class Successors(NamedTuple):
    """The successors of a batch, for the low level's bootstrap."""

    seen: Seen
    sharing: Sharing  # the weights there, from the target high level
    action: Tensor  # (N',) greedy actions there under these weights


class LowLevelBatch(NamedTuple):
    """A batch of transitions, ready for the low level."""

    t: Transition
    seen: Seen  # of t.graph
    successors: Successors | None  # None where all discounts are 0, as in one-step games
    extra_pairs: Tensor  # (2, P) more pairs to train the edge critic on, see random_pairs


def random_pairs(graph: Batch, rng: torch.Generator) -> Tensor:
    """Pairs of different agents of one graph, (2, P): about as many as edges, each reward owner equally likely."""
    N = graph.num_nodes
    owner = torch.arange(max(graph.num_edges, N), device=graph.ptr.device) % max(N, 1)
    first, size = (part[graph.batch[owner]] for part in (graph.ptr[:-1], graph.ptr.diff()))
    chance = torch.rand(len(owner), generator=rng, device=owner.device)
    other = first + (chance * size).long().minimum(size - 1)
    return torch.stack([owner, other])[:, other != owner]


def find_edges(edge_index: Tensor, pairs: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """For each pair (2, P) of nodes the number of the edge that joins them, (P,), and whether there is one."""
    if edge_index.size(1) == 0:
        none = torch.zeros(pairs.size(1), dtype=torch.int64, device=pairs.device)
        return none, none.bool()
    key, order = (edge_index[1] * num_nodes + edge_index[0]).sort()
    wanted = pairs[1] * num_nodes + pairs[0]
    at = torch.searchsorted(key, wanted).clamp(max=key.numel() - 1)
    return order[at], key[at] == wanted


def features_of(pairs: Tensor, seen: Seen) -> Tensor | None:
    """Edge features (P, D) of pairs (2, P): zeros for pairs without an edge; ``None`` if edges have no features."""
    x, edge_index, edge_attr = seen
    if edge_attr is None:
        return None
    if edge_index.size(1) == 0:
        return edge_attr.new_zeros(pairs.size(1), edge_attr.size(1))
    at, joined = find_edges(edge_index, pairs, x.size(0))
    return torch.where(joined.unsqueeze(-1), edge_attr[at], 0.0)


class Critic(Protocol):
    """A critic of the low level: a module that gives action values under given weights, and the loss to train it."""

    pair_values: ClassVar[bool]  # whether it learns a value per pair of agents, also of pairs without an edge

    def __call__(
        self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None, sharing: Sharing, copies: int = 1
    ) -> Tensor:
        """Action values (N, A). With ``copies`` K, the inputs are K copies of the same graphs, one after another, each
        copy under its own weights."""

    def loss(self, target: Any, batch: LowLevelBatch, config: DQNConfig) -> tuple[Tensor, dict[str, Tensor]]:
        """The temporal-difference loss of one batch, and what to log of it."""


class NodeCritic(DGN):
    r"""The paper's critic: :math:`Q_i(o, a; w)`, the discounted *shaped* reward of node :math:`i`.

    .. math::
        Q_i(o, a_i; w) \to R^w_i + \gamma^n Q^-_i(o', a'_i; \phi'(o')), \qquad
        R^w_i = w_{ii} R_i + \sum_{j \to i} w_{ji} R_j

    with the n-step returns :math:`R` of own rewards. The weights :math:`w` that share these returns are also inputs of
    the network (see :class:`~ltos_pyg.nn.DGNTrunk`), so the target depends on no weights that the network does not
    see. For weights that never change, ``sees_weights`` is false and they are not inputs.

    Shapes:
        - **input:** node features :math:`(N, F)`, edge indices :math:`(2, E)`, edge features :math:`(E, D)`, weights
        - **output:** action values :math:`(N, A)`
    """

    pair_values: ClassVar[bool] = False

    def __init__(
        self,
        spec: GraphEnvSpec,
        config: SharingQConfig,
        sees_weights: bool = True,
        conv: Conv | None = None,
    ) -> None:
        super().__init__(spec.num_features, spec.num_actions, **trunk_options(spec, config, conv), sharing=sees_weights)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor | None = None,
        sharing: Sharing | None = None,
        copies: int = 1,
    ) -> Tensor:
        return super().forward(x, edge_index, edge_attr, sharing if self.trunk.sharing else None, copies)

    def loss(self, target: NodeCritic, batch: LowLevelBatch, config: DQNConfig) -> tuple[Tensor, dict[str, Tensor]]:
        """The temporal-difference loss of one batch, and what to log of it."""
        t = batch.t
        assert t.sharing is not None
        y = share_value(t.reward, t.graph.edge_index, t.sharing)
        if batch.successors is not None:
            with torch.no_grad():
                next_q = taken(target(*batch.successors.seen, batch.successors.sharing), batch.successors.action)
                y = td_target(y, t.discount, gather_next_value(next_q, t.successor_node))
        values = self(*batch.seen, t.sharing)
        y = y - config.action_gap * gap_below_best(values.detach(), t)
        q = taken(values, t.action)
        loss = td_loss(q, y, config.huber)
        return loss, {'loss': loss.detach(), 'q': mean(q.detach())}


class EdgeCritic(nn.Module):
    r"""The edge critic (ours): one value per *pair* of agents, so that :math:`Q_i(o, a; w) = w_{ii} U_{ii}(o, a; w) +
    \sum_{j \to i} w_{ji} U_{ji}(o, a; w)`.

    :math:`U_{ii}` is the discounted return of i's *own* reward, and :math:`U_{ji}(o, a_i)` what i's action adds to
    *j's own* return beyond j's own estimate:

    .. math::
        U_{ii} \to R_i + \gamma^n U^-_{ii}(o', a'_i), \qquad
        U_{ji} \to \delta_j + \gamma^n U^-_{ji}(o', a'_i), \qquad
        \delta_j = R_j + \gamma^n U^-_{jj}(o', a'_j) - U_{jj}(o, a_j).

    With ``action_gap`` each target, that of :math:`\delta_j` included, is lowered by that fraction of the gap to the
    greedy action.

    Each reward is learned once, unmixed, and the effect of i's action is separated from the rest of j's return. The
    weights are also network inputs (other agents react to them), so :math:`Q_i` is linear in :math:`w` only while other
    agents do not react.

    Two agents may stop being neighbours while the effect of an action lasts. So where the graph changes, :math:`U_{ji}`
    is also trained on random pairs of a graph, with zeros for edge features where there is no edge: the bootstrap then
    uses trained values.

    Shapes: as :class:`NodeCritic`.
    """

    pair_values: ClassVar[bool] = True

    def __init__(
        self,
        spec: GraphEnvSpec,
        config: SharingQConfig,
        sees_weights: bool = True,
        conv: Conv | None = None,
    ) -> None:
        super().__init__()
        self.trunk = DGNTrunk(spec.num_features, **trunk_options(spec, config, conv), sharing=sees_weights)
        self.head = EdgeQHead(self.trunk.out_channels, spec.num_actions, config.pair_channels, spec.edge_dim)

    def values(
        self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None, sharing: Sharing, copies: int = 1
    ) -> tuple[Tensor, Tensor]:
        """:math:`U_{ii}` (N, A) and :math:`U_{ji}` (E, A)."""
        h = self.trunk(x, edge_index, edge_attr, sharing if self.trunk.sharing else None, copies)
        own, pair = self.head(h, edge_index, edge_attr)
        return own, pair

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None, sharing: Sharing, copies: int = 1
    ) -> Tensor:
        return EdgeQHead.combine(*self.values(x, edge_index, edge_attr, sharing, copies), edge_index, sharing)

    def loss(self, target: EdgeCritic, batch: LowLevelBatch, config: DQNConfig) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the losses of own and of pair values, and what to log of them."""
        t, edge_index = batch.t, batch.t.graph.edge_index
        assert t.sharing is not None
        pairs = torch.cat([edge_index, batch.extra_pairs], dim=1)
        own, pair = self._pair_values(batch.seen, t.sharing, pairs)
        owner, actor = pairs
        own_taken, pair_taken = taken(own, t.action), taken(pair, t.action[actor])
        with torch.no_grad():
            q = EdgeQHead.combine(own, pair[: edge_index.size(1)], edge_index, t.sharing)
            best = masked(q, t.graph.get('action_mask')).argmax(-1)
            own_next, pair_next = self._next_values(target, batch, pairs)
            own_target = td_target(t.reward, t.discount, own_next) - config.action_gap * gap_to_best(
                own, best, t.action
            )
            surprise = (own_target - own_taken)[owner]
            both = t.discount[owner] * (t.discount[actor] > 0)
            pair_target = td_target(surprise, both, pair_next)
            pair_target -= config.action_gap * gap_to_best(pair, best[actor], t.action[actor])
        own_loss = td_loss(own_taken, own_target, config.huber)
        pair_loss = td_loss(pair_taken, pair_target, config.huber)
        metrics = {'loss': own_loss.detach(), 'pair_loss': pair_loss.detach(), 'q': mean(own_taken.detach())}
        return own_loss + pair_loss, metrics

    def _pair_values(self, seen: Seen, sharing: Sharing, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """:math:`U_{ii}` (N, A), and :math:`U_{ji}` (P, A) of any pairs (2, P)."""
        h = self.trunk(*seen, sharing if self.trunk.sharing else None)
        own, pair = self.head(h, pairs, features_of(pairs, seen))
        return own, pair

    def _next_values(self, target: EdgeCritic, batch: LowLevelBatch, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Values n steps on: of each node that acted (N,), and of each pair (P,)."""
        t, successors = batch.t, batch.successors
        if successors is None:
            return torch.zeros_like(t.reward), t.reward.new_zeros(pairs.size(1))
        then = t.successor_node[pairs]
        own, pair = target._pair_values(successors.seen, successors.sharing, then)
        return gather_next_value(taken(own, successors.action), t.successor_node), taken(
            pair, successors.action[then[1]]
        )


MakeCritic: TypeAlias = Callable[[GraphEnvSpec, SharingQConfig, bool, Conv | None], Critic]

CRITICS: dict[str, MakeCritic] = {'node': NodeCritic, 'edge': EdgeCritic}


def taken(values: Tensor, action: Tensor) -> Tensor:
    """The values (M,) of the actions taken, from those of all actions (M, A)."""
    return values.gather(-1, action.unsqueeze(-1)).squeeze(-1)


def gap_below_best(values: Tensor, t: Transition) -> Tensor:
    """:func:`~ltos_pyg.algos.losses.gap_to_best` of the actions taken in a batch, (N,)."""
    best = masked(values, t.graph.get('action_mask')).argmax(-1)
    return gap_to_best(values, best, t.action)
