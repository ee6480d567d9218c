"""LToS: a high level that learns how to share rewards, a low level that learns to act for what it receives."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from ltos_pyg.algos.base import soft_update
from ltos_pyg.algos.dgn import DGN
from ltos_pyg.algos.dqn import DQNConfig
from ltos_pyg.algos.exploration import HeldShares, linear_schedule
from ltos_pyg.algos.losses import follow, gap_to_best, masked, sharing_gain, td_loss, td_target
from ltos_pyg.data import Transition
from ltos_pyg.graph_env import GraphEnvSpec, GraphStep
from ltos_pyg.nn import DGN as DGNNetwork
from ltos_pyg.nn import (
    DGNTrunk,
    EdgeQHead,
    QHead,
    Sharing,
    SharingPolicy,
    constant_sharing,
    keep_all,
    sender_softmax,
)
from ltos_pyg.seeding import generator

CRITICS = ('edge', 'node')
HIGH_LEVEL_CRITICS = ('gain', 'shared', 'global')


@dataclass(frozen=True, kw_only=True)
class LToSConfig(DQNConfig):
    """Options of LToS."""

    critic: Literal['edge', 'node'] = 'edge'  # Q_i = sum of w_ji U_ji over the edges, or w is an input of Q (the paper)
    high_level_critic: Literal['gain', 'global', 'shared'] = 'gain'  # what phi climbs; 'shared' is the paper's
    initial_own: float | None = 0.4  # share that phi keeps at the start; None: uniform over itself and neighbours
    phi_lr: float = 1e-4  # Adam
    phi_every: int = 4  # gradient steps of the low level per one of the high level
    phi_starts: float = 0.05  # part of training before the first one
    phi_channels: int = 64
    pair_channels: int = 64  # hidden size of the edge critic's pair values
    pair_estimates: int = 2  # of pair values, each learned from frames of its own; the gain judges one by others
    temperature: float = 0.3  # of the softmax in the gain, as a part of the spread of values over actions
    random_fraction: float = 0.5  # part of the episodes under random held own shares, at the start of training
    random_until: float = 0.5  # part of training over which that falls to none; 0: it stays
    random_low: float = 0.25  # least own share drawn
    random_high: float = 1.0
    random_hold: int = 120  # steps that a draw is held
    global_newest: int = 2_000  # the global critic learns from the newest frames only
    w_noise: float = 0.0  # standard deviation of Gaussian noise on phi's logits in training

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (('critic', CRITICS), ('high_level_critic', HIGH_LEVEL_CRITICS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"'{name}' must be one of {allowed} (got {getattr(self, name)!r})")
        if self.high_level_critic == 'gain' and self.critic != 'edge':
            raise ValueError("high_level_critic='gain' needs critic='edge': it reads the pair values U_ji")
        if self.high_level_critic == 'shared' and self.critic != 'node':
            raise ValueError("high_level_critic='shared' needs critic='node': it reads Q(o, a; w)")
        for name in ('random_fraction', 'phi_starts'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"'{name}' must lie in [0, 1] (got {getattr(self, name)})")
        for name in ('phi_every', 'phi_channels', 'pair_channels', 'pair_estimates', 'random_hold', 'global_newest'):
            if getattr(self, name) < 1:
                raise ValueError(f"'{name}' must be at least 1 (got {getattr(self, name)})")
        for name in ('phi_lr', 'temperature'):
            if not getattr(self, name) > 0:
                raise ValueError(f"'{name}' must be above 0 (got {getattr(self, name)})")
        if not self.w_noise >= 0:
            raise ValueError(f"'w_noise' must be at least 0 (got {self.w_noise})")
        if self.initial_own is not None and not 0 < self.initial_own < 1:
            raise ValueError(f"'initial_own' must lie strictly between 0 and 1, or be None (got {self.initial_own})")
        if not 0 <= self.random_low <= self.random_high <= 1:
            raise ValueError(
                f"'random_low' and 'random_high' must satisfy 0 <= low <= high <= 1 (got {self.random_low} and "
                f'{self.random_high})'
            )


def features_of_pairs(pairs: Tensor, edge_index: Tensor, edge_attr: Tensor, num_nodes: int) -> Tensor:
    """Edge features (P, D) of pairs (2, P) of nodes: zeros where the graph has no such edge."""
    if edge_index.size(1) == 0:
        return edge_attr.new_zeros(pairs.size(1), edge_attr.size(1))
    place, order = (edge_index[1] * num_nodes + edge_index[0]).sort()
    wanted = pairs[1] * num_nodes + pairs[0]
    at = torch.searchsorted(place, wanted).clamp(max=place.numel() - 1)
    is_edge = (place[at] == wanted).unsqueeze(-1)
    return torch.where(is_edge, edge_attr[order[at]], 0.0)


def of_estimate(values: Tensor, which: Tensor) -> Tensor:
    """Of K estimates (K, M, A), for each row the one that is asked for: (M, A) by (M,)."""
    return values[which, torch.arange(values.size(1), device=values.device)]


class EdgeQNetwork(nn.Module):
    """:class:`~ltos_pyg.nn.DGNTrunk` with an :class:`~ltos_pyg.nn.EdgeQHead`."""

    def __init__(
        self, trunk: DGNTrunk, num_actions: int, pair_channels: int, edge_dim: int | None, estimates: int
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = EdgeQHead(trunk.out_channels, num_actions, pair_channels, edge_dim, estimates)


class ValueNetwork(nn.Module):
    """One value per node, (N,), given the sharing weights."""

    def __init__(self, trunk: DGNTrunk) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = QHead(trunk.out_channels, 1)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None, sharing: Sharing) -> Tensor:
        return self.head(self.trunk(x, edge_index, edge_attr, sharing)).squeeze(-1)


class LToS(DGN):
    r"""Learning to share, after `"Learning to Share in Multi-Agent Reinforcement Learning"
    <https://arxiv.org/abs/2112.08702>`_.

    The high level :math:`\phi` maps one hop of observations to weights :math:`w`; the low level maximises the shaped
    reward :math:`r^w_i = \sum_j w_{ji} r_j`. Both learn in turns: ``phi_every`` low steps, one high step.

    **Low level.** ``critic='node'`` is the paper's: :math:`Q_i(o, a; w)` with :math:`w` an input of the network,
    trained on :math:`r^w`. ``critic='edge'`` learns :math:`U_{ii}(o, a)`, the discounted return of *i's own* reward
    after *i* does :math:`a`, and :math:`U_{ji}(o, a)`, what that adds to *j's own* return beyond what *j* foresees:

    .. math::
        U_{ji}(o, a_i) \to \delta_j + \gamma^n U^-_{ji}(o', a'_i), \qquad
        \delta_j = R_j + \gamma^n U^-_{jj}(o', a'_j) - U_{jj}(o, a_j),

    with the greedy actions :math:`a'`, and uses :math:`Q_i = \sum_j w_{ji} U_{ji}`: what is learned depends on no
    distribution of weights, the gradient through :math:`w` is exact, and pairs learn small effects, not whole returns.

    **High level.** ``'shared'`` is the paper's: maximise :math:`\sum_i \max_a Q_i(o, a; \phi(o))`, Q frozen.
    ``'global'``: maximise :math:`\sum_i G_i(o, \phi(o))` of a critic of each node's own, unshaped return.
    ``'gain'``: maximise :func:`~ltos_pyg.algos.losses.sharing_gain`, what each node's answer to the weights does to
    its neighbourhood: the answer by one estimate of the pair values, what it does by another, which learns from other
    frames. By the same one, sharing would always seem to pay, since the answer would follow the errors that judge it.

    In a part of the training episodes the weights are not :math:`\phi`'s but random own shares, held for a while, so
    that the low level answers to any weights. :attr:`sharing_mode` chooses the weights of :meth:`act` without
    exploration: ``'phi'``, ``'keep'`` (nobody shares) or ``'uniform'``.
    """

    config: LToSConfig
    stores_sharing = True
    sharing_modes = ('phi', 'keep', 'uniform')
    sharing_mode = 'phi'

    def __init__(
        self, spec: GraphEnvSpec, config: LToSConfig, seed: int = 0, device: str | torch.device = 'cpu'
    ) -> None:
        super().__init__(spec, config, seed, device)
        self.held = HeldShares(config.random_low, config.random_high, config.random_hold)
        self.shares_rng = generator(seed, 'shares', self.device)

    def trunk(self, sharing: bool) -> DGNTrunk:
        """A trunk of the configured size."""
        c = self.config
        return DGNTrunk(
            self.spec.num_features, c.hidden_channels, c.num_layers, c.heads, c.encoder_channels, self.spec.edge_dim,
            sharing,
        )  # fmt: skip

    def build_network(self) -> nn.Module:
        c, spec = self.config, self.spec
        if c.critic == 'edge':
            trunk = self.trunk(sharing=False)
            return EdgeQNetwork(trunk, spec.num_actions, c.pair_channels, spec.edge_dim, c.pair_estimates)
        return DGNNetwork(
            spec.num_features, spec.num_actions, hidden_channels=c.hidden_channels, num_layers=c.num_layers,
            heads=c.heads, encoder_channels=c.encoder_channels, edge_dim=spec.edge_dim, sharing=True,
        )  # fmt: skip

    def build_more(self) -> None:
        c, spec = self.config, self.spec
        self.phi = SharingPolicy(
            spec.num_features, c.phi_channels, encoder_channels=(c.phi_channels,), edge_dim=spec.edge_dim,
            initial_own=c.initial_own,
        ).to(self.device)  # fmt: skip
        self.averaged_phi = copy.deepcopy(self.phi).requires_grad_(False)
        self.phi_optimizer = torch.optim.Adam(self.phi.parameters(), lr=c.phi_lr, fused=True)
        self.value: ValueNetwork | None = None
        if c.high_level_critic == 'global':
            self.value = ValueNetwork(self.trunk(sharing=True)).to(self.device)
            self.value_target = ValueNetwork(self.trunk(sharing=True)).to(self.device).requires_grad_(False)
            self.value_target.load_state_dict(self.value.state_dict())
            self.value_optimizer = torch.optim.Adam(self.value.parameters(), lr=c.lr, fused=True)

    # sharing -----------------------------------------------------------------------------------------------------

    def phi_sharing(self, phi: SharingPolicy, graph: Batch, noise: float = 0.0) -> Sharing:
        """What the high level says, with Gaussian noise of that standard deviation on its logits."""
        x, edge_index, edge_attr = self.inputs(graph)
        with self.autocast():
            edge_logit, self_logit = phi.logits(x, edge_index, edge_attr)
        if noise > 0:
            edge_logit, self_logit = (
                logit + noise * torch.randn(logit.shape, generator=self.shares_rng, device=self.device)
                for logit in (edge_logit, self_logit)
            )
        return sender_softmax(edge_logit, self_logit, edge_index)

    def greedy_sharing(self, graph: Batch) -> Sharing:
        """The weights of the averaged high level, as the mean over all views if actions are chosen so."""
        if self.symmetries is None or not self.config.average_views:
            return self.phi_sharing(self.averaged_phi, graph)
        views = [self.phi_sharing(self.averaged_phi, view) for view in self.symmetries.views(graph)]
        return Sharing(*(torch.stack(parts).mean(0) for parts in zip(*views, strict=True)))

    def choose_sharing(self, graph: Batch, explore: bool) -> Sharing:
        edge_index, num_nodes = graph.edge_index, graph.num_nodes
        if not explore:
            if self.sharing_mode == 'keep':
                return keep_all(edge_index, num_nodes)
            if self.sharing_mode == 'uniform':
                return constant_sharing(edge_index, num_nodes)
            return self.greedy_sharing(graph)
        sharing = self.phi_sharing(self.phi, graph, self.config.w_noise)
        fraction = self.config.random_fraction
        if self.config.random_until > 0:
            fraction = linear_schedule(fraction, 0.0, self.config.random_until, self.progress)
        if fraction == 0:
            return sharing
        own = self.held.own(graph.batch, graph.num_graphs, self.shares_rng)
        random = constant_sharing(edge_index, num_nodes, own)
        # The first streams of the batch run under random weights, the others under phi's.
        is_random = graph.batch < round(fraction * graph.num_graphs)
        return Sharing(
            torch.where(is_random[edge_index[0]], random.given, sharing.given),
            torch.where(is_random, random.kept, sharing.kept),
        )

    def observe(self, graph: Batch, decision: Any, step: GraphStep) -> None:
        super().observe(graph, decision, step)
        self.held.step(step.ended)

    def restart_episodes(self) -> None:
        super().restart_episodes()
        self.held.restart()

    def next_sharing(self, t: Transition) -> Sharing | None:
        """The weights stored with the successors; where an episode ended and nobody acted any more, phi's."""
        if t.sharing_next is None or bool(t.sharing_next_known.all()):
            return t.sharing_next
        phi = self.phi_sharing(self.phi, t.successor)
        known = t.sharing_next_known[t.successor.batch]
        given = torch.where(known[t.successor.edge_index[0]], t.sharing_next.given, phi.given)
        return Sharing(given, torch.where(known, t.sharing_next.kept, phi.kept))

    # low level ---------------------------------------------------------------------------------------------------

    def pair_values(self, network: Any, graph: Batch, pairs: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """:math:`U_{ii}` (N, A) and K estimates of :math:`U_{ji}` (K, E, A), for the edges or the pairs given."""
        x, edge_index, edge_attr = self.inputs(graph)
        with self.autocast():
            h = network.trunk(x, edge_index, edge_attr)
            if pairs is not None and edge_attr is not None:
                edge_attr = features_of_pairs(pairs, edge_index, edge_attr, x.size(0))
            own, pair = network.head(h, edge_index if pairs is None else pairs, edge_attr)
        return own, pair if pair.dim() == 3 else pair.unsqueeze(0)

    def q_values(self, network: nn.Module, graph: Batch, sharing: Sharing | None) -> Tensor:
        assert sharing is not None
        x, edge_index, edge_attr = self.inputs(graph)
        if self.config.critic == 'edge':
            own, pair = self.pair_values(network, graph)
            return EdgeQHead.combine(own, pair.mean(0), edge_index, sharing)
        with self.autocast():
            return network(x, edge_index, edge_attr, sharing)

    def reward(self, t: Transition) -> Tensor:
        return t.shaped

    def loss(self, t: Transition) -> tuple[Tensor, dict[str, Tensor]]:
        c = self.config
        if c.critic == 'node':
            return super().loss(t)
        owner, actor = t.graph.edge_index
        own, pair = self.pair_values(self.network, t.graph)
        self._values = own.detach(), pair.detach()  # the high level reads them
        with torch.no_grad():
            best = self.best_actions(t.graph, t.sharing, own, pair)
        pair = of_estimate(pair, self.estimate_of(t)[t.graph.batch[actor]])
        own_taken = own.gather(-1, t.action.unsqueeze(-1)).squeeze(-1)
        pair_taken = pair.gather(-1, t.action[actor].unsqueeze(-1)).squeeze(-1)
        with torch.no_grad():
            own_next, pair_next = self.next_values(t)
            own_target = td_target(t.reward, t.discount, own_next) - c.action_gap * gap_to_best(own, best, t.action)
            surprise = (own_target - own_taken)[owner]
            both = t.discount[owner] * (t.discount[actor] > 0)
            pair_gap = gap_to_best(pair, best[actor], t.action[actor])
            pair_target = td_target(surprise, both, pair_next) - c.action_gap * pair_gap
        own_loss = td_loss(own_taken, own_target, c.huber)
        pair_loss = td_loss(pair_taken, pair_target, c.huber)
        metrics = {'loss': own_loss.detach(), 'pair_loss': pair_loss.detach(), 'q': own_taken.detach().mean()}
        return own_loss + pair_loss, metrics

    def best_actions(self, graph: Batch, sharing: Sharing | None, own: Tensor, pair: Tensor) -> Tensor:
        """Greedy actions (N,) of the estimates' mean under the weights."""
        assert sharing is not None
        q = EdgeQHead.combine(own, pair.mean(0), graph.edge_index, sharing)
        return masked(q, graph.get('action_mask')).argmax(-1)

    def estimate_of(self, t: Transition) -> Tensor:
        """Which estimate learns from each graph of the batch, (B,): always the same one from the same frame."""
        return t.index.to(self.device) % self.config.pair_estimates

    def next_values(self, t: Transition) -> tuple[Tensor, Tensor]:
        """Values of the best actions n steps on: of each node (N,), and of the two agents of each edge (E,)."""
        edge_index = t.graph.edge_index
        if t.successor.num_nodes == 0:  # nobody is left
            return torch.zeros_like(t.reward), t.reward.new_zeros(edge_index.size(1))
        online = self.q_values(self.network if self.config.double_q else self.target, t.successor, self.next_sharing(t))
        best = masked(online, t.successor.get('action_mask')).argmax(-1)
        pairs = t.successor_node[edge_index]  # known in training even if they are no longer neighbours
        own, pair = self.pair_values(self.target, t.successor, pairs)
        pair = of_estimate(pair, self.estimate_of(t)[t.successor.batch[pairs[1]]])
        own = follow(own.gather(-1, best.unsqueeze(-1)).squeeze(-1), t.successor_node)
        return own, pair.gather(-1, best[pairs[1]].unsqueeze(-1)).squeeze(-1)

    # high level --------------------------------------------------------------------------------------------------

    def update_more(self, t: Transition) -> dict[str, Tensor]:
        c = self.config
        metrics = {} if self.value is None else {'value_loss': self.update_value()}
        if self.updates % c.phi_every == 0 and self.progress >= c.phi_starts:
            metrics |= self.update_phi(t)
        return metrics

    def update_value(self) -> Tensor:
        r"""One step of the global critic: :math:`G_i(o, w) \to R_i + \gamma^n G_i^-(o', w')` on the newest frames."""
        assert self.value is not None
        c = self.config
        t = self.replay.sample(c.batch_size, self.replay_rng, c.n_step, c.gamma, newest=c.global_newest).to(self.device)
        x, edge_index, edge_attr = self.inputs(t.graph)
        with self.autocast():
            with torch.no_grad():
                value = self.value_target(*self.inputs(t.successor), self.next_sharing(t))
                y = td_target(t.reward, t.discount, follow(value, t.successor_node))
            value = self.value(x, edge_index, edge_attr, t.sharing)
        loss = td_loss(value, y, c.huber)
        self.step_optimizer(self.value_optimizer, loss)
        soft_update(self.value_target, self.value, c.tau)
        return loss.detach()

    def objective(self, t: Transition, sharing: Sharing) -> Tensor:
        """What the high level climbs, one number per node; the gradient runs through ``sharing`` alone."""
        c = self.config
        x, edge_index, edge_attr = self.inputs(t.graph)
        if c.high_level_critic == 'gain':
            own, pair = self._values
            around = own.expand(len(pair), -1, -1).index_add(1, edge_index[1], pair)
            judges = around if len(pair) == 1 else (around.sum(0) - around) / (len(pair) - 1)
            mask = t.graph.get('action_mask')
            answers = [masked(EdgeQHead.combine(own, one, edge_index, sharing), mask) for one in pair]
            gains = [sharing_gain(q, judge, c.temperature) for q, judge in zip(answers, judges, strict=True)]
            return torch.stack(gains).mean(0)
        if c.high_level_critic == 'global':
            assert self.value is not None
            with self.autocast():
                return self.value(x, edge_index, edge_attr, sharing)
        q = self.q_values(self.network, t.graph, sharing)
        return masked(q, t.graph.get('action_mask')).amax(-1)

    def update_phi(self, t: Transition) -> dict[str, Tensor]:
        """One step of the high level on the low level's batch."""
        sharing = self.phi_sharing(self.phi, t.graph)
        frozen = [p for m in (self.network, self.value) if m is not None for p in m.parameters()]
        for p in frozen:
            p.requires_grad_(False)
        gain = self.objective(t, sharing).mean()
        self.step_optimizer(self.phi_optimizer, -gain)
        self.update_average(self.averaged_phi, self.phi, self.config.phi_every)
        for p in frozen:
            p.requires_grad_(True)
        grad = torch.stack([p.grad.norm() for p in self.phi.parameters() if p.grad is not None]).norm()
        kept = sharing.kept.detach()
        return {
            'phi/objective': gain.detach(),
            'phi/grad_norm': grad,
            'phi/selfishness': kept.mean(),
            'phi/selfishness_std': kept.std(correction=0),
        }

    # saving ------------------------------------------------------------------------------------------------------

    def modules(self) -> dict[str, nn.Module]:
        more: dict[str, nn.Module] = {'phi': self.phi, 'averaged_phi': self.averaged_phi}
        if self.value is not None:
            more |= {'value': self.value, 'value_target': self.value_target}
        return super().modules() | more

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        more = {'phi_optimizer': self.phi_optimizer}
        if self.value is not None:
            more['value_optimizer'] = self.value_optimizer
        return super().optimizers() | more

    def generators(self) -> dict[str, torch.Generator]:
        return super().generators() | {'shares': self.shares_rng}

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        state['held'] = self.held.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.held.load_state_dict(state['held'])
