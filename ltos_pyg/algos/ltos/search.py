"""The high level's search over joint weights (ours)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch_geometric.nn import MLP, Linear

from ltos_pyg.algos import ranks
from ltos_pyg.algos.base import SoftUpdate
from ltos_pyg.algos.losses import gather_next_value, masked, mean, td_loss, td_target
from ltos_pyg.algos.ltos.critics import LowLevelBatch, Seen, taken
from ltos_pyg.algos.ltos.objective import HighLevelBatch
from ltos_pyg.algos.ltos.subgraphs import Near, both_ways, part_of, random_parts, repeated_edges, within_hops
from ltos_pyg.algos.ltos.weights import JointNoise, Logits, constant_logits
from ltos_pyg.graph_env import GraphEnvSpec
from ltos_pyg.nn.functional import softmax_by_sender

if TYPE_CHECKING:
    from ltos_pyg.algos.ltos.config import LToSConfig

SHARES = (None, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7)  # constant shares that are compared; None: uniform
FIRST_SHARE = 0.4  # the one that training starts from
NODES_AT_ONCE = 2**18  # of all candidates together: bounds the memory of a step
DEVIATIONS = 16  # parts of the agents of a graph that deviate one after another
Parts = TypeVar('Parts', list[Logits], Tensor)


class JointActionCritic(nn.Module):
    r"""The return of each node's *own, unshaped* reward after a joint action, :math:`G_i(o, \mathbf{a})`, (N,).

    .. math::
        \mathbf{h}^0_i = \mathrm{MLP}(\mathrm{ReLU}(\mathbf{W} x_i + \mathbf{w}_{a_i})), \qquad
        \mathbf{h}^{l}_i = \mathrm{ReLU}\Big(\mathbf{W}_l \Big[\mathbf{h}^{l-1}_i, \sum_{j \to i}
        \mathrm{ReLU}(\mathbf{M}_l \mathbf{h}^{l-1}_j + \mathbf{E}_l \mathbf{e}_{ji})\Big]\Big), \qquad
        G_i = \mathrm{MLP}(\mathbf{h}^0_i \Vert \dots \Vert \mathbf{h}^L_i)

    with one layer a hop, L = ``hops``. On one-way edges messages run both ways (:math:`\mathbf{e}` of an added reverse
    is 0): :math:`j` shares with :math:`i` for what :math:`i` does for it, so :math:`G_j` must see the action of
    :math:`i`. Messages are summed, not averaged: the value of a joint action may depend on
    whether *all* neighbours take part, and attention, which averages, learns that several times more slowly.

    Shapes:
        - **input:** node features :math:`(N, F)`, edge indices :math:`(2, E)`, edge features :math:`(E, D)`, joint
          actions :math:`(N,)`, or :math:`(K, N)` for K of them at once
        - **output:** returns, of the shape of the actions
    """

    def __init__(self, spec: GraphEnvSpec, config: LToSConfig) -> None:
        super().__init__()
        H, L = config.search_channels, config.hops
        self.observation = Linear(spec.num_features, H)
        self.action = nn.Embedding(spec.num_actions, H)
        self.encoder = MLP([H, H], norm=None, plain_last=False)
        self.message = nn.ModuleList(Linear(H, H) for _ in range(L))
        self.edge = nn.ModuleList(Linear(spec.edge_dim, H, bias=False) for _ in range(L if spec.edge_dim else 0))
        self.update = nn.ModuleList(Linear(2 * H, H) for _ in range(L))
        self.out = MLP([(L + 1) * H, H, 1], norm=None)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None, action: Tensor) -> Tensor:
        sender, receiver = edge_index
        many = action.dim() == 2
        joint = action.t() if many else action.unsqueeze(1)  # (N, K): gathering is fastest along the first dimension
        outs = [self.encoder((self.observation(x).unsqueeze(1) + self.action(joint)).relu())]  # (N, K, H)
        for layer, (message, update) in enumerate(zip(self.message, self.update, strict=True)):
            h = outs[-1]
            sent = message(h).index_select(0, sender)
            if edge_attr is not None:
                sent += self.edge[layer](edge_attr).unsqueeze(1)
            received = torch.zeros_like(h).index_add_(0, receiver, sent.relu_().to(h.dtype))
            outs.append(update(torch.cat([h, received], dim=-1)).relu())
        value = self.out(torch.cat(outs, dim=-1)).squeeze(-1).float()
        return value.t() if many else value.squeeze(1)


class BestConstant(nn.Module):
    r"""The best constant value of the share kept that was found so far, as judged by two critics of joint actions.

    Each visit compares one candidate share :math:`r` with uniform sharing on a batch:

    .. math::
        D_c(r) \leftarrow D_c(r) + \alpha_n \Big(\frac1N \sum_i \big[G_{c,i}(o, \mathbf{a}_r) -
        G_{c,i}(o, \mathbf{a}_{uniform})\big] - D_c(r)\Big), \qquad \alpha_n = \max(1/n, 0.05).

    with :math:`D_c(uniform) = 0`. It starts with ``FIRST_SHARE`` and changes to
    :math:`\arg\max_r \min_c (D_c(r) - D_c(best) - \mathrm{SE}_c(r))` only where that is above 0: both critics find
    the new share better, by more than a standard error. Shares that lead to the same actions never displace it.
    """

    best: Tensor
    value: Tensor
    square: Tensor
    visits: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('best', torch.tensor(SHARES.index(FIRST_SHARE)))  # number of the share in SHARES
        self.register_buffer('value', torch.zeros(2, len(SHARES)))
        self.register_buffer('square', torch.zeros(2, len(SHARES)))
        self.register_buffer('visits', torch.zeros(len(SHARES), dtype=torch.int64))

    @property
    def kept(self) -> float | None:
        """The share, ``None`` for uniform."""
        return SHARES[int(self.best)]

    def due(self) -> int:
        """Number of the share that was compared least often; never that of uniform sharing."""
        return 1 + int(self.visits[1:].argmin())

    def compare(self, which: int, difference: Tensor) -> None:
        """Updates the estimates with the gain of the share over uniform sharing, by both critics (2,)."""
        self.visits[which] += 1
        n = int(self.visits[which])
        alpha = max(1 / n, 0.05)
        self.value[:, which] += alpha * (difference - self.value[:, which])
        self.square[:, which] += alpha * (difference.square() - self.square[:, which])
        if int(self.visits[1:].min()) >= 3:
            variance = (self.square - self.value.square()).clamp(min=0) / min(n, 39)  # 39: of alpha = 0.05
            best = int(self.best)
            error = (variance + variance[:, best : best + 1]).sqrt()
            margin = (self.value - self.value[:, best : best + 1] - error).amin(0)
            if float(margin.max()) > 0:
                self.best.copy_(margin.argmax())


class JointSearch:
    r"""Moves :math:`\phi` towards joint weights whose *induced joint actions* are worth more, in unshaped reward.

    Weights affect the environment only through the actions that they induce, those of all agents at once:
    :math:`\mathbf{a}(L) = \arg\max_a Q(o, a; \mathrm{softmax}(L))` for logits :math:`L`. Two critics :math:`G_c` of the
    unshaped return, each learned from its own half of the transitions, score joint actions. With :math:`C(i)` all nodes
    within ``hops`` of i, :math:`L` the logits of :math:`\phi` and :math:`L^{const}` those of the best constant, a step
    has two parts.

    **Search.** K joint candidates :math:`L_k` are drawn for each state, half of them with wide noise around the
    constant share ``FIRST_SHARE``, half with small noise around :math:`\phi`:

    .. math::
        F_{cki} &= \sum_{j \in C(i)} G_{cj}(o, \mathbf{a}(L_k)) \text{ less its mean over } k, \qquad
        V_i = \tfrac{1}{2K} \sum_{c,k} F_{cki}^2, \qquad
        T_i = \mathrm{clip}\Big(\tfrac1K \sum_k F_{1ki} F_{2ki} / V_i,\ 0,\ 1\Big) \\
        p_{ki} &= \mathrm{softmax}_k\big(\beta\,T_i\,\tfrac12 \textstyle\sum_c F_{cki} / \sqrt{V_i}\big), \qquad
        d_i = \sum_k p_{ki} L_{ki} - \big[T_i L_i + (1 - T_i) \tfrac1K \textstyle\sum_k L_{ki}\big]
        - (1 - T_i) (L_i - L^{const}_i)

    This finds actions that pay only if all take part. It moves towards the better candidates with weight
    :math:`T_i`, the agreement of the critics, and back to the best constant with weight :math:`1 - T_i`.

    **Aim.** Which single agent should act otherwise, and which weights would make it do so? With
    :math:`\mathbf{a} = \mathbf{a}(L)` and :math:`b_i` another action of i, taken from a random candidate
    (:math:`a_i` if no candidate has another):

    .. math::
        D_{ci} &= \sum_{j \in C(i)} \big[G_{cj}(o, b_i, \mathbf{a}_{-i}) - G_{cj}(o, \mathbf{a})\big], \qquad
        m_i = \max(\min_c D_{ci}, 0) - \max(\min_c -D_{ci}, 0) \\
        L^{s+1} &= L^s + \eta\,\nabla_{L^s} \sum_i |m_i| \log \sigma\big(\mathrm{sign}(m_i)
        [Q_i(o, b_i; L^s) - Q_i(o, a_i; L^s)] / \kappa\big), \qquad L^0 = L

    with :math:`\kappa` the mean size of the differences of Q, and each component g of the gradient replaced by
    :math:`g / (|g| + \mathrm{rms}(g))`. Where both critics find
    :math:`\sum_{j \in C(i)} G_{cj}(o, \mathbf{a}(L^S)) > \sum_{j \in C(i)} G_{cj}(o, \mathbf{a})`,
    :math:`L^S_i - L_i` is added to :math:`d_i`. This finds the neighbour that should receive more.

    The gradient step moves :math:`L_i` along :math:`d_i`.

    Args:
        spec: What the environment promises.
        config: The options.
        device: Where the critics live.
        rng: The generator that draws the candidates.
    """

    def __init__(self, spec: GraphEnvSpec, config: LToSConfig, device: torch.device, rng: torch.Generator) -> None:
        self.config, self.rng, self.num_envs = config, rng, spec.num_envs
        self.num_tasks = spec.num_tasks or 1
        self.critics = nn.ModuleList(JointActionCritic(spec, config) for _ in range(2)).to(device)
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.move_targets = SoftUpdate(self.targets, self.critics)
        self.constant = BestConstant().to(device)
        self.optimizer = torch.optim.Adam(self.critics.parameters(), lr=config.lr, fused=True)
        self.one_way = not spec.symmetric
        self.noise = JointNoise(config.noise_joint, config.noise_own, config.noise_received)

    first_kept: float | None = FIRST_SHARE  # the share kept that phi starts from

    @property
    def constant_kept(self) -> float | None:
        """The best constant value of the share kept that was found so far, ``None`` for uniform sharing."""
        return self.constant.kept

    def modules(self) -> dict[str, nn.Module]:
        """Its additional networks, by name."""
        return {'search_critics': self.critics, 'search_targets': self.targets, 'constant': self.constant}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Its additional optimizers, by name."""
        return {'search_optimizer': self.optimizer}

    # the critics -------------------------------------------------------------------------------------------------

    def _critics_see(self, seen: Seen) -> Seen:
        return both_ways(seen) if self.one_way else seen

    def critic_loss(self, batch: LowLevelBatch) -> Tensor:
        r"""Half the mean square error of :math:`G_c(o, \mathbf{a}) \to R + \gamma^n G^-_c(o', \mathbf{a}')`. The number
        of a transition decides which critic c learns from it (:func:`half_of`).

        The error is squared even if the low level uses the Huber loss: the search compares *mean* returns, and the
        Huber loss gives too little weight to rare, large values, such as the loss of an agent that is attacked.
        """
        t = batch.t
        which = half_of(t.index, self.num_envs, self.num_tasks)  # (B,) the same for the same frame in every batch
        which = which.to(t.reward.device)
        now = self._critics_see(batch.seen)
        ahead = None if batch.successors is None else self._critics_see(batch.successors.seen)
        losses = []
        for c, (critic, target) in enumerate(zip(self.critics, self.targets, strict=True)):
            mine = which == c
            node, seen = part_of(now, t.graph.batch, mine)
            value = critic(*seen, t.action[node])
            y = t.reward[node]
            if batch.successors is not None and ahead is not None:
                with torch.no_grad():
                    node_next, seen_next = part_of(ahead, t.successor.batch, mine)
                    next_value = t.reward.new_zeros(t.successor.num_nodes)
                    next_value[node_next] = target(*seen_next, batch.successors.action[node_next])
                    y = td_target(y, t.discount[node], gather_next_value(next_value, t.successor_node[node]))
            losses.append(td_loss(value, y, delta=None))
        return torch.stack(losses).mean()

    def update_targets(self) -> None:
        """Moves the target critics after a gradient step."""
        self.move_targets(self.config.tau)

    # the high level ----------------------------------------------------------------------------------------------

    def step_loss(self, batch: HighLevelBatch, q_values: Callable[..., Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss whose gradient moves the logits of phi along :math:`d`, and what to log."""
        edge_index, logits = batch.seen[1], batch.logits
        sender, N = edge_index[0], batch.seen[0].size(0)
        base = constant_logits(edge_index, N, self.constant.kept)
        phi = Logits(*(part.detach() for part in logits))
        with torch.no_grad():
            near = within_hops(self._critics_see(batch.seen)[1], N, self.config.hops)
            due = self.constant.due()
            constants = [constant_logits(edge_index, N, kept) for kept in (None, SHARES[due])]
            draws = self._candidates(phi, batch)
            action = self._actions(batch, [*constants, phi, *draws], q_values)  # (K + 3, N)
            value = self._returns(batch, action)  # (2, K + 3, N)
            difference = (value[:, 1] - value[:, 0]).sum(-1) / max(N, 1)
            self.constant.compare(due, *ranks.current().average([difference]))
            own, edge, trust = self._target(value[:, 3:], draws, phi, base, edge_index, near)
            metrics = {'phi/trust': mean(trust), 'phi/constant': mean_kept(self.constant.kept, edge_index, N)}
            if self.config.aim_steps:
                aimed = self._aim(phi, action[2], action[3:], near, batch, q_values)
                gain = self._returns(batch, self._actions(batch, [aimed], q_values))[:, 0] - value[:, 2]
                better = (summed(gain, near).amin(0) > 0).float()  # (N,)
                own = own + better * (aimed.own - phi.own)
                edge = edge + better[sender] * (aimed.edge - phi.edge)
                metrics['phi/aimed'] = mean(better)
        move = 0.5 * ((logits.own - own).square().sum() + (logits.edge - edge).square().sum())
        return move / max(N, 1), metrics

    def _candidates(self, phi: Logits, batch: HighLevelBatch) -> list[Logits]:
        """The joint candidates: the first half wide around the first share, the others close around phi."""
        edge_index, K = batch.seen[1], self.config.candidates
        first = constant_logits(edge_index, batch.seen[0].size(0), FIRST_SHARE)
        around = [(first, 1.0)] * (K // 2) + [(phi, self.config.noise_local)] * (K - K // 2)
        draws = [self.noise.draw(batch.graph_of_node, batch.num_graphs, self.rng) for _ in range(K)]
        return [noise.on(logits, edge_index, scale) for noise, (logits, scale) in zip(draws, around, strict=True)]

    def _actions(self, batch: HighLevelBatch, candidates: list[Logits], q_values: Callable[..., Tensor]) -> Tensor:
        """The joint greedy actions under each of K candidates, (K, N)."""
        N, actions = batch.seen[0].size(0), []
        for some in in_parts(candidates, N):
            K = len(some)
            edge_index, edge_attr = repeated_edges(batch.seen, K)
            stacked = Logits(*(torch.cat(parts) for parts in zip(*some, strict=True)))
            q = q_values(batch.seen[0], edge_index, edge_attr, softmax_by_sender(*stacked, edge_index), copies=K)
            mask = None if batch.mask is None else batch.mask.repeat(K, 1)
            actions.append(masked(q, mask).argmax(-1).view(K, N))
        return torch.cat(actions)

    def _returns(self, batch: HighLevelBatch, actions: Tensor) -> Tensor:
        """The two critics' returns of each node after each of K joint actions (K, N), as (2, K, N)."""
        seen, parts = self._critics_see(batch.seen), in_parts(actions, actions.size(1))
        return torch.stack([torch.cat([critic(*seen, part) for part in parts]) for critic in self.critics])

    def _target(
        self, value: Tensor, draws: list[Logits], phi: Logits, base: Logits, edge_index: Tensor, near: Near
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Targets of the self logits (N,) and edge logits (E,), and the critics' agreement (N,)."""
        F = summed(value, near)
        F = F - F.mean(1, keepdim=True)
        V = F.square().mean((0, 1)).clamp(min=1e-12)
        trust = ((F[0] * F[1]).mean(0) / V).clamp(0, 1)
        p = (self.config.sharpness * trust * F.mean(0) / V.sqrt()).softmax(0)  # (K, N)
        sender = edge_index[0]
        own = toward(p, trust, torch.stack([draw.own for draw in draws]), phi.own, base.own)
        edge = toward(p[:, sender], trust[sender], torch.stack([draw.edge for draw in draws]), phi.edge, base.edge)
        return own, edge, trust

    def _aim(
        self,
        phi: Logits,
        action: Tensor,
        drawn: Tensor,
        near: Near,
        batch: HighLevelBatch,
        q_values: Callable[..., Tensor],
    ) -> Logits:
        """Logits near those of phi under which agents would act as the critics want: :math:`L^S`.

        Args:
            phi: The logits of phi.
            action: Its joint actions, (N,).
            drawn: The joint actions of the candidates, (K, N).
            near: The pairs within ``hops``.
            batch: The graphs.
            q_values: The low level.
        """
        chance = torch.rand(drawn.shape, generator=self.rng, device=drawn.device) * (drawn != action)
        other = drawn.gather(0, chance.argmax(0, keepdim=True)).squeeze(0)
        gain = self._gains(batch, action, other, near)
        wanted = gain.amin(0).clamp(min=0) - (-gain).amin(0).clamp(min=0)
        logits, scale = phi, None
        for _ in range(self.config.aim_steps):
            with torch.enable_grad():
                logits = Logits(*(part.detach().requires_grad_() for part in logits))
                q = q_values(*batch.seen, softmax_by_sender(*logits, batch.seen[1]))
                margin = taken(q, other) - taken(q, action)
                scale = mean(margin.detach().abs()).clamp(min=1e-9) if scale is None else scale
                objective = (wanted.abs() * logsigmoid(wanted.sign() * margin / scale)).sum()
                slope = torch.autograd.grad(objective, logits)
            steps = (g / (g.abs() + g.square().mean().sqrt() + 1e-12) for g in slope)
            logits = Logits(*(part + self.config.aim_size * s for part, s in zip(logits, steps, strict=True)))
        return Logits(*(part.detach() for part in logits))

    def _gains(self, batch: HighLevelBatch, action: Tensor, other: Tensor, near: Near) -> Tensor:
        """What the neighbourhood of each node gains if the node takes its other action, by both critics, (2, N).

        The agents of a graph are divided into ``DEVIATIONS`` parts at random, and all agents of a part deviate at the
        same time. In graphs of up to ``DEVIATIONS`` agents each agent therefore deviates alone; in larger graphs the
        effects of the agents of a part may overlap.
        """
        node, partner = near
        part = random_parts(batch.graph_of_node, batch.num_graphs, DEVIATIONS, self.rng)
        joint = torch.where(part == torch.arange(DEVIATIONS, device=part.device).unsqueeze(1), other, action)
        value = self._returns(batch, torch.cat([action.unsqueeze(0), joint]))
        effect = value[:, 1 + part[node], partner] - value[:, 0, partner]
        return torch.zeros_like(value[:, 0]).index_add(1, node, effect)


def half_of(index: Tensor, num_envs: int, num_tasks: int = 1) -> Tensor:
    """Which of two critics learns from each transition, 0 or 1, by the number of its frame.

    With four or more streams and an odd number of tasks, it is whether the number is odd. Otherwise odd and even
    numbers may differ systematically: of two streams one may be the near-greedy one, one-step episodes use every other
    number, and with an even number of tasks odd streams never play some of them. In these cases the number is hashed.
    """
    alternate = num_envs >= 4 and num_tasks % 2 == 1
    return (index if alternate else (index * 2654435761) >> 16) % 2


def summed(value: Tensor, near: Near) -> Tensor:
    """The sum of values (..., N) over the nodes near each node, (..., N)."""
    node, partner = near
    return torch.zeros_like(value).index_add(-1, node, value.index_select(-1, partner))


def in_parts(candidates: Parts, num_nodes: int) -> list[Parts]:
    """Splits the candidates into parts, so small that one part fits into memory even on a large graph."""
    size = max(NODES_AT_ONCE // max(num_nodes, 1), 1)
    return [candidates[first : first + size] for first in range(0, len(candidates), size)]


def toward(p: Tensor, trust: Tensor, draws: Tensor, phi: Tensor, base: Tensor) -> Tensor:
    """:math:`L + d` of :class:`JointSearch`: targets of logits (M,), from K draws (K, M) with weights p (K, M)."""
    d = (p * draws).sum(0) - (trust * phi + (1 - trust) * draws.mean(0)) - (1 - trust) * (phi - base)
    return phi + d


def mean_kept(kept: float | None, edge_index: Tensor, num_nodes: int) -> Tensor:
    """Mean share kept under constant weights."""
    logits = constant_logits(edge_index, num_nodes, kept)
    return mean(softmax_by_sender(*logits, edge_index).kept)
