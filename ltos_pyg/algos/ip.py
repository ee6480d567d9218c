"""IP, intention propagation: agents exchange embeddings of their intended actions before they act."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch_geometric.data import Batch
from torch_geometric.nn import MLP, Linear
from torch_geometric.utils import scatter

from ltos_pyg.algos.base import Decision
from ltos_pyg.algos.exploration import softmax_choice
from ltos_pyg.algos.losses import masked, mean, soft_value, td_loss, td_target
from ltos_pyg.algos.off_policy import OffPolicy, OffPolicyConfig
from ltos_pyg.data import Transition, batch_to
from ltos_pyg.graph_env import GraphEnvSpec
from ltos_pyg.nn import IntentionConv
from ltos_pyg.ranges import check_range
from ltos_pyg.seeding import generator


@dataclass(frozen=True, kw_only=True)
class IPConfig(OffPolicyConfig):
    """Options of IP; the hidden size is that of an intention, too."""

    n_step: int = 1  # rewards summed before the bootstrap; entropy counts at the last step only
    beta: float = 0.05  # weight of the policies' entropy: reward per nat
    rounds: int = 2  # rounds of message passing per step; messages reach rounds - 1 hops
    aggr: Literal['add', 'mean'] = 'add'  # how messages are aggregated; 'mean' does not grow with the neighbours
    gumbel: float = 1.0  # temperature of the relaxation through which an action's gradient reaches its agent

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.aggr not in ('add', 'mean'):
            raise ValueError(f"'aggr' must be one of ('add', 'mean') (got {self.aggr!r})")
        check_range(self, 'rounds', least=1)
        check_range(self, 'gumbel', above=0)
        check_range(self, 'beta', least=0)


class IntentionPolicy(nn.Module):
    """Observations to intentions, exchanged for some rounds; intentions to action logits, (N, A)."""

    def __init__(self, spec: GraphEnvSpec, c: IPConfig) -> None:
        super().__init__()
        self.encoder = MLP([spec.num_features, *c.encoder_channels, c.hidden_channels], norm=None, plain_last=False)
        self.conv = IntentionConv(c.hidden_channels, c.hidden_channels, c.rounds, spec.edge_dim, c.aggr)
        self.head = Linear(c.hidden_channels, spec.num_actions)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None) -> Tensor:
        return self.head(self.conv(self.encoder(x), edge_index, edge_attr)).float()


class NeighbourCritic(nn.Module):
    r"""Values (N, O) of each node from its one-hop neighbourhood: :math:`f(h_i, \sum_{j \to i} g(h_j, a_j, e_{ji}))`.

    With ``actions_as_input`` neighbours' actions are an input, (N, A) of any numbers on the simplex.
    """

    def __init__(self, spec: GraphEnvSpec, c: IPConfig, out_channels: int, actions_as_input: bool) -> None:
        super().__init__()
        H, extra = c.hidden_channels, (spec.num_actions if actions_as_input else 0) + (spec.edge_dim or 0)
        self.aggr = 'sum' if c.aggr == 'add' else c.aggr
        self.encoder = MLP([spec.num_features, *c.encoder_channels, H], norm=None, plain_last=False)
        self.lin_message = Linear(H + extra, H)
        self.out = MLP([2 * H, H, out_channels], norm=None)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None, action: Tensor | None = None) -> Tensor:
        h = self.encoder(x)
        sender, receiver = edge_index
        sent = [h if action is None else torch.cat([h, action.to(h.dtype)], dim=-1)]
        sent = [sent[0].index_select(0, sender)] + ([] if edge_attr is None else [edge_attr.to(h.dtype)])
        message = self.lin_message(torch.cat(sent, dim=-1)).relu()
        received = scatter(message, receiver, dim_size=x.size(0), reduce=self.aggr)
        return self.out(torch.cat([h, received], dim=-1)).float()


class IPNetwork(nn.Module):
    """The policy and the two critics, one of each for all nodes."""

    def __init__(self, spec: GraphEnvSpec, config: IPConfig) -> None:
        super().__init__()
        self.policy = IntentionPolicy(spec, config)
        self.q = NeighbourCritic(spec, config, spec.num_actions, actions_as_input=True)
        self.v = NeighbourCritic(spec, config, 1, actions_as_input=False)


class IP(OffPolicy):
    r"""Soft actor-critic on a graph, with a policy that approaches its mean field by exchanging intentions.

    .. math::
        J_Q &= \tfrac12 \big(Q_i(o, a_i, a_{\mathcal{N}_i}) - r_i - \gamma V^{-}_i(o')\big)^2 \\
        J_V &= \tfrac12 \big(V_i(o) - \mathbb{E}_{a \sim q} [Q_i(o, a_i, a_{\mathcal{N}_i})
        - \beta \log q_i(a_i)]\big)^2 \\
        J_\pi &= \mathbb{E}_{a \sim q} \textstyle\sum_i
        \big[\beta \log q_i(a_i) - Q_i(o, a_i, a_{\mathcal{N}_i})\big]

    after `"Intention Propagation for Multi-agent Reinforcement Learning" <https://arxiv.org/abs/2004.08883>`_ (later
    "Variational Policy Propagation"). Each node learns the value of its own reward. Since :math:`J_\pi` is summed over
    nodes, an action is also trained on the values of the neighbours that have it as input. This is the only mechanism
    for cooperation here: rewards are not shared.

    No code of its authors was found, and what follows is ours: actions are discrete, the expectation over an agent's
    own action is exact, its neighbours' actions are resampled from the policy for :math:`J_V` and :math:`J_\pi` (never
    taken from the replay), with the straight-through Gumbel relaxation as the path of the gradient; critics cover one
    hop by a sum of messages, so the number of neighbours may vary; sizes, rounds and :math:`\beta`. Replay, soft
    targets, running average and learning rates are those of all off-policy methods here.
    """

    config: IPConfig
    network: IPNetwork
    target: IPNetwork

    def __init__(self, spec: GraphEnvSpec, config: IPConfig, seed: int = 0, device: str | torch.device = 'cpu') -> None:
        super().__init__(spec, config, seed, device)
        self.relax_rng = generator(seed, 'relax', self.device)

    def build_network(self) -> nn.Module:
        return IPNetwork(self.spec, self.config)

    def generators(self) -> dict[str, torch.Generator]:
        return super().generators() | {'relax': self.relax_rng}

    def log_policy(self, network: nn.Module, graph: Batch) -> Tensor:
        """Log-probabilities of the actions of each node, (N, A), before an action mask."""
        with self.autocast():
            return network.policy(*self.inputs(graph)).log_softmax(-1)  # type: ignore[operator]

    @torch.no_grad()
    def act(self, graph: Batch, explore: bool = False) -> Decision:
        graph = batch_to(graph, self.device)
        mask = graph.get('action_mask')
        with self.inputs.each_batch_once(graph):
            if explore:
                return Decision(softmax_choice(self.log_policy(self.network, graph), 1.0, self.explore_rng, mask))
            logits = self.over_views(graph, lambda view: self.log_policy(self.averaged, view))
        return Decision(softmax_choice(logits, self.config.eval_temperature, self.play_rng, mask))

    def relaxed(self, log_policy: Tensor) -> Tensor:
        """One action of each node as a one-hot (N, A), drawn from the policy, with the gradient of a softmax."""
        noise = -torch.empty_like(log_policy).exponential_(generator=self.relax_rng).log()
        soft = ((log_policy + noise) / self.config.gumbel).softmax(-1)
        hard = one_hot(soft.argmax(-1), soft.size(-1)).to(soft.dtype)
        return hard + soft - soft.detach()

    def loss(self, t: Transition) -> tuple[Tensor, dict[str, Tensor]]:
        c, seen = self.config, self.inputs(t.graph)
        with self.autocast():
            with torch.no_grad():
                next_value = self.target.v(*self.inputs(t.successor)).squeeze(-1)
                y = td_target(t.reward, torch.ones_like(t.discount), t.bootstrap(next_value))
            taken = one_hot(t.action, self.spec.num_actions).float()
            q = (self.network.q(*seen, taken) * taken).sum(-1)
            log_policy = masked(self.network.policy(*seen), t.graph.get('action_mask')).log_softmax(-1)
            frozen = {name: p.detach() for name, p in self.network.q.named_parameters()}
            fresh = torch.func.functional_call(self.network.q, frozen, (*seen, self.relaxed(log_policy)))
            value = self.network.v(*seen).squeeze(-1)
        soft = soft_value(fresh, log_policy, c.beta)
        q_loss, v_loss = td_loss(q, y, None), td_loss(value, soft.detach(), None)
        policy_loss = -soft.sum() / max(len(soft), 1)
        entropy = soft_value(torch.zeros_like(fresh), log_policy, 1.0).detach()
        metrics = {
            'loss': q_loss.detach(),
            'v_loss': v_loss.detach(),
            'q': mean(q.detach()),
            'entropy': mean(entropy),
        }
        return q_loss + v_loss + policy_loss, metrics
