"""LIO: agents learn payments to their neighbours that change what the neighbours learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp, vmap
from torch.nn.functional import one_hot
from torch_geometric.data import Batch

from ltos_pyg.algos import ranks
from ltos_pyg.algos.base import NonFiniteLossError, first_nonfinite, guarded_step
from ltos_pyg.algos.exploration import linear_schedule
from ltos_pyg.algos.losses import discounted_returns, masked
from ltos_pyg.algos.on_policy import Memory, OnPolicy, OnPolicyConfig, View
from ltos_pyg.graph_env import GraphEnvSpec
from ltos_pyg.nn import AgentMLP, gather_slots
from ltos_pyg.ranges import LARGEST_WIDTH, check_range

Weights = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class LIOConfig(OnPolicyConfig):
    """Options of LIO."""

    reward_max: float = 2.0  # maximum payment to one neighbour per step; 0: no payments
    lr_actor: float = 0.1  # learning rate of the policies' plain gradient steps, which payers differentiate
    lr_reward: float = 1e-3  # learning rate of the incentive networks (Adam)
    lr_value: float = 1e-3  # learning rate of the values for baseline and bootstrap (Adam)
    pay_cost: float = 0.0  # weight of the payments in the payer's objective
    entropy: float = 0.01  # weight of the policies' entropy
    epsilon_start: float = 0.5  # weight of the uniform part of the policy at the start
    epsilon_end: float = 0.05  # the same at the end
    epsilon_fraction: float = 0.3  # fraction of training over which epsilon falls
    max_grad_norm: float = 10.0  # gradients of incentive networks and values are clipped to this norm
    policy_channels: tuple[int, ...] = (64, 32)  # widths of a policy's hidden layers
    incentive_channels: tuple[int, ...] = (64, 16)  # widths of an incentive network's hidden layers

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 'lr_actor', 'lr_reward', 'lr_value', 'max_grad_norm', above=0)
        check_range(self, 'reward_max', 'pay_cost', 'entropy', least=0)
        check_range(self, 'epsilon_start', 'epsilon_end', 'epsilon_fraction', least=0, most=1)
        check_range(self, 'policy_channels', 'incentive_channels', least=1)
        check_range(self, 'policy_channels', 'incentive_channels', most=LARGEST_WIDTH)


class LIONetwork(nn.Module):
    """For each agent by itself: a policy, payments to each neighbour, and values with and without received payments."""

    def __init__(
        self, num_agents: int, in_channels: int, num_actions: int, max_neighbours: int, config: LIOConfig
    ) -> None:
        super().__init__()
        n, c = num_agents, config
        self.policy = AgentMLP(n, [in_channels, *c.policy_channels, num_actions], gain=0.01)
        self.incentive = AgentMLP(
            n,
            [in_channels + max_neighbours * num_actions, *c.incentive_channels, max_neighbours],
            bias=False,
            gain=0.01,
        )
        self.value = AgentMLP(n, [in_channels, *c.policy_channels, 2], gain=0.01)
        self.num_agents = n

    def initial(self, num_graphs: int) -> Memory:
        """No recurrent state."""
        nothing = next(self.parameters()).new_zeros(self.num_agents, num_graphs, 0)
        return Memory(nothing, nothing, nothing)


@dataclass(frozen=True)
class Segment:
    """A segment with its M = T G moments stacked: agent i at moment m is in row i M + m."""

    x: Tensor  # (n, M, F)
    hot: Tensor  # (n, M, A) actions
    mask: Tensor  # (n, M, A)
    present: Tensor  # (n, M)
    rows: Tensor  # (n M, K): row of the neighbour in each slot; n M: empty
    reward: Tensor  # (T, n, G)
    bootstrap: Tensor  # (T, n, G, 2)
    goes_on: Tensor  # (T, n, G)
    epsilon: float  # of the policy that acted

    @classmethod
    def of(cls, steps: dict[str, Tensor], epsilon: float) -> Segment:
        """From the tensors of a :class:`~ltos_pyg.data.Rollout`."""
        T, n, G, A = steps['mask'].shape
        join = lambda name: steps[name].transpose(0, 1).flatten(1, 2)
        rows, moments = steps['rows'], torch.arange(T, device=steps['rows'].device).view(T, 1, 1)
        rows = torch.where(rows == n * G, n * T * G, rows // G * (T * G) + moments * G + rows % G)
        rows = rows.view(T, n, G, -1).transpose(0, 1).flatten(0, 2)
        present = join('present')
        hot = one_hot(join('action'), A) * present.unsqueeze(-1).float()
        reward, bootstrap, goes_on = (steps[name] for name in ('reward', 'bootstrap', 'goes_on'))
        return cls(join('x'), hot, join('mask'), present, rows, reward, bootstrap, goes_on, epsilon)

    def by_step(self, value: Tensor) -> Tensor:
        """(…, n, M) to (T, …, n, G)."""
        T, _, G = self.reward.shape
        return value.unflatten(-1, (T, G)).movedim(-2, 0)

    def by_agent(self, value: Tensor) -> Tensor:
        """(T, …, n, G) to (…, n, M)."""
        return value.movedim(0, -2).flatten(-2)

    def returns(self, reward: Tensor, which: int, gamma: float) -> Tensor:
        """Returns (n, M) of rewards (n, M); ``which`` of the two bootstraps."""
        bootstrap = self.bootstrap[..., which]
        return self.by_agent(discounted_returns(self.by_step(reward), bootstrap, self.goes_on, gamma))

    def minus_graph_mean(self, surplus: Tensor) -> Tensor:
        """(n, M) less its mean over the graphs of all ranks at each step, where an agent is in several: this removes,
        for example, payments that do not depend on the agent's action."""
        by_step, here = self.by_step(surplus), self.by_step(self.present)
        sums = [by_step.sum(-1, keepdim=True), here.sum(-1, keepdim=True).to(by_step.dtype)]
        total, count = (part * ranks.current().size for part in ranks.current().average(sums))
        return self.by_agent(by_step - total / count.clamp(min=1) * (here & (count > 1)))

    def credit(self, inner: Tensor, gamma: float) -> Tensor:
        r"""Weight of a unit of payment at each moment in the learning from earlier actions, the mirror of
        :meth:`returns`: :math:`C_t = g_t + \gamma C_{t-1}`, (n, n, M) from (n, n, M)."""
        steps, credit, out = self.by_step(inner), torch.zeros_like(self.by_step(inner)[0]), []
        for t, now in enumerate(steps):
            credit = now + (gamma * self.goes_on[t - 1] * credit if t > 0 else 0)
            out.append(credit)
        return self.by_agent(torch.stack(out))


def log_probs(policy: nn.Module, weights: Weights, s: Segment) -> tuple[Tensor, Tensor]:
    """Log-probabilities (n, M) of the actions taken, 0 for absent agents; and the entropies (n, M)."""
    probs = mixed(masked(functional_call(policy, weights, (s.x,)), s.mask), s.mask, s.epsilon)
    log = probs.clamp(min=1e-12).log()
    return (log * s.hot).sum(-1), -(probs * log).sum(-1) * s.present


def mixed(logits: Tensor, mask: Tensor, epsilon: float) -> Tensor:
    """The policy with a uniform part: :math:`(1 - \\epsilon) softmax + \\epsilon / |A|` over the legal actions."""
    return (1 - epsilon) * logits.softmax(-1) + epsilon * mask / mask.sum(-1, keepdim=True)


def incentive_gradient(
    policy: nn.Module,
    old: Weights,
    new: Weights,
    first: Segment,
    second: Segment,
    gain: Tensor,
    lr: float,
    gamma: float,
) -> Tensor:
    r"""Gain of agent i from a unit of payment to j at each moment: :math:`\partial J_i / \partial m_{ij,t}`.

    .. math::
        \frac{\partial J_i}{\partial m_{ij,t}} = \lambda \sum_{t' \le t} \gamma^{t - t'}
        \big\langle \nabla \log \pi_j(a_{t'}), g_{ij} \big\rangle, \qquad
        g_{ij} = \nabla_{\hat\theta_j} \sum_{\hat t} \log \pi_{\hat\theta_j}(\hat a^j_{\hat t})\, \hat G^i_{\hat t}

    The step of j is linear in its received payments, so this is exact, without second derivatives, and covers only the
    payments of i: differentiating all agents' objectives at once would also credit i for payments of other agents.

    Args:
        policy: The stacked policies.
        old: Weights that played the first segment.
        new: Weights after the policies' step, that played the second.
        gain: :math:`\hat G^i`, the gain of i at each moment of the second segment, (n, M).
        lr: :math:`\lambda`, of the policies' step; their objective is summed over time and averaged over graphs.

    Returns:
        (n, n, M) by payer i, paid j and moment; 0 where i = j.
    """
    n, graphs = len(gain), second.reward.size(-1)
    together = second.present.unsqueeze(0) & second.present.unsqueeze(1)
    others = ~torch.eye(n, dtype=torch.bool, device=gain.device).unsqueeze(-1)
    weight = gain.unsqueeze(1) * (together & others) / graphs  # (i, j, M)
    pull: Any = vjp(lambda w: log_probs(policy, w, second)[0], new)[1]
    ahead: Any = lambda g: jvp(lambda w: log_probs(policy, w, first)[0], (old,), (g,))[1]
    inner = vmap(lambda w: ahead(pull(w)[0]))(weight)  # (i, j, M)
    return lr / first.reward.size(-1) * first.credit(inner, gamma) * others


class LIO(OnPolicy):
    r"""Learning to incentivise others, after `"Learning to Incentivize Other Learning Agents"
    <https://arxiv.org/abs/2006.06051>`_.

    At each step agent i pays each in-neighbour j :math:`m_{ij} = R_{max}\, \sigma(f_i(o_i,
    a_{\mathcal{N}_i}))_j`. Two segments make one round:

    1. play; every policy takes a plain gradient step on its own reward plus received payments,
       :math:`\hat\theta_j = \theta_j + \lambda \sum_t \nabla \log \pi_j(a_t) (G^j_t - b_j)` with a baseline b (plus an
       entropy term);
    2. play with :math:`\hat\theta`; every incentive network ascends its agent's return *without* received payments,
       :math:`\sum_{j \ne i} \sum_t \log \pi_{\hat\theta_j}(\hat a_t) \hat G^i_t - c \sum_t \gamma^t |m_i|`, through
       the effect of its payments on :math:`\hat\theta_j` (:func:`incentive_gradient`). Then :math:`\hat\theta` becomes
       the new :math:`\theta`.

    Both segments count as env steps, and each ends in an update. As in the `authors' code
    <https://github.com/011235813/lio>`_: policies mixed with a uniform part, plain gradient steps inside and Adam
    outside, incentive heads without bias, payments that are not subtracted from the payer's reward but penalised by
    ``pay_cost``.
    Ours: payments go to neighbours, by slot, instead of to all agents (with two agents this is the same); segments of a
    fixed length in many graphs at once instead of whole episodes, so returns bootstrap with a learned value, which is
    also the baseline, together with the mean over the graphs (treated as constant); the exact closed form instead of
    automatic second derivatives. In that code, with more than two agents, these also train a payer on the returns of
    the other payers.

    Payments are indexed by slot: where the graph changes, a slot holds different neighbours over time, and the method
    is not well defined, as the LToS paper reports. Payers see their neighbours' parameters (in training); fitting
    models of them instead, as the LIO paper proposes, is not offered.
    """

    config: LIOConfig
    num_values = 2

    def __init__(
        self, spec: GraphEnvSpec, config: LIOConfig, seed: int = 0, device: str | torch.device = 'cpu'
    ) -> None:
        super().__init__(spec, config, seed, device)
        lrs = {'value': config.lr_value}
        if config.reward_max > 0 and self.max_neighbours > 0:  # else there are no payments and no payers to train
            lrs['incentive'] = config.lr_reward
        groups = [{'params': list(self.network.get_submodule(name).parameters()), 'lr': lr} for name, lr in lrs.items()]
        self.optimizer = torch.optim.Adam(groups)
        self.segment_epsilon = config.epsilon_start  # of the segment being played: one policy must have played it all
        self.round: dict[str, Any] | None = None  # between its two segments: the first one's steps, epsilon and weights

    def build_network(self) -> LIONetwork:
        sizes = self.num_agents, self.spec.num_features, self.spec.num_actions, self.max_neighbours
        return LIONetwork(*sizes, self.config)

    # acting ------------------------------------------------------------------------------------------------------

    @property
    def epsilon(self) -> float:
        """The current uniform part of the policies."""
        c = self.config
        return linear_schedule(c.epsilon_start, c.epsilon_end, c.epsilon_fraction, self.progress)

    def policy(self, view: View, memory: Memory, explore: bool) -> tuple[Tensor, Memory]:
        logits = masked(self.network.policy(view.x), view.mask)
        if explore:
            if len(self.rollout) == 0:
                self.segment_epsilon = self.epsilon
            logits = mixed(logits, view.mask, self.segment_epsilon).log()
        return logits, memory

    def bootstrap(self, successor: Batch, memory: Memory) -> Tensor:
        return self.network.value(self.view(successor)[0].x)

    def restart_episodes(self) -> None:
        super().restart_episodes()
        self.round = None

    # learning ----------------------------------------------------------------------------------------------------

    def payments(self, s: Segment) -> Tensor:
        """What is paid in each slot, (n, M, K); nothing in an empty one."""
        n, M, _ = s.x.shape
        inputs = torch.cat([s.x, gather_slots(s.hot, s.rows)], dim=-1)
        return self.config.reward_max * torch.sigmoid(self.network.incentive(inputs)) * (s.rows < n * M).view(n, M, -1)

    def received(self, s: Segment, paid: Tensor) -> Tensor:
        """Payments received by each agent, (n, M) from (n, M, K)."""
        n, M, _ = paid.shape
        total = paid.new_zeros(n * M + 1).index_add(0, s.rows.flatten(), paid.flatten())
        return total[:-1].view(n, M)

    def update(self) -> dict[str, float]:
        steps = self.rollout.read()
        s = Segment.of(steps, self.segment_epsilon)
        own = s.by_agent(s.reward)
        shaped = own + self.received(s, self.payments(s).detach())
        values = self.network.value(s.x)
        returns = [s.returns(r, which, self.config.gamma) for which, r in enumerate((own, shaped))]
        surplus = [s.minus_graph_mean((returns[k] - values[..., k].detach()) * s.present) for k in (0, 1)]
        error = ((torch.stack(returns, -1) - values).square() * s.present.unsqueeze(-1)).mean()
        # Every check comes before the first change: a step that is refused leaves all networks as they were.
        if self.round is None:
            grads, metrics = self.policy_gradient(s, surplus[1])
            self.step(error)
            self.round = {'steps': steps, 'epsilon': s.epsilon, 'weights': self.policy_weights()}
            with torch.no_grad():
                for parameter, grad in zip(self.network.policy.parameters(), grads, strict=True):
                    parameter.add_(grad, alpha=self.config.lr_actor)
        else:
            loss, metrics = self.incentive_loss(s, surplus[0])
            self.step(error + loss)
            self.round = None
        self.rollout.clear()
        self.updates += 1
        received = (shaped - own).sum() / s.present.sum().clamp(min=1)
        dropped_edges = steps['dropped_edges'].float().mean()
        metrics |= {'value_loss': error.detach(), 'received': received, 'dropped_edges': dropped_edges}
        return {name: float(value) for name, value in metrics.items()}

    def policy_weights(self) -> Weights:
        """The current weights of the policies."""
        return {name: p.detach().clone() for name, p in self.network.policy.named_parameters()}

    def policy_gradient(self, s: Segment, advantage: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The gradient of every policy's plain step, on rewards plus received payments."""
        log, entropy = log_probs(self.network.policy, dict(self.network.policy.named_parameters()), s)
        objective = (log * advantage + self.config.entropy * entropy).sum() / s.reward.size(-1)
        own = torch.autograd.grad(objective, list(self.network.policy.parameters()))
        objective, *grads = ranks.current().average([objective.detach(), *own])
        names = [f'gradient of network.policy.{name}' for name, _ in self.network.policy.named_parameters()]
        bad = first_nonfinite({'objective of the policies': objective, **dict(zip(names, grads, strict=True))})
        if bad is not None:
            raise NonFiniteLossError(
                f'{bad} is NaN or infinite at gradient step {self.updates + 1}; the weights were left as they were. '
                f'Lower the learning rate (lr_actor={self.config.lr_actor}), or look for extreme rewards.'
            )
        return grads, {
            'policy_objective': objective,
            'entropy': entropy.sum().detach() / s.present.sum().clamp(min=1),
        }

    def incentive_loss(self, second: Segment, gain: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the payers, given their gains after the policies' step."""
        assert self.round is not None
        c, first = self.config, Segment.of(self.round['steps'], self.round['epsilon'])
        worth = incentive_gradient(
            self.network.policy, self.round['weights'], self.policy_weights(), first, second, gain, c.lr_actor, c.gamma
        )
        n, M = gain.shape
        paid = self.payments(first)
        # Row j M + m of payer i's table is the gain of i from paying j at moment m; an empty slot has gain 0.
        table = torch.cat([worth.flatten(1), worth.new_zeros(n, 1)], dim=1)
        worth_of_slot = table.gather(1, first.rows.view(n, -1)).view(n, M, -1)
        late = c.gamma ** torch.arange(len(first.reward), device=paid.device)
        cost = (first.by_step(paid.sum(-1)).mean(-1).sum(-1) * late).sum()
        loss = c.pay_cost * cost - (paid * worth_of_slot).sum()
        return loss, {'incentive_loss': loss.detach(), 'cost': cost.detach()}

    def step(self, loss: Tensor) -> None:
        """One guarded step of Adam, for the values and the incentives."""
        guarded_step(self.optimizer, self.modules(), loss, self.config.max_grad_norm, self.updates)

    # saving ------------------------------------------------------------------------------------------------------

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {'optimizer': self.optimizer}

    def state_dict(self) -> dict[str, Any]:
        round_ = None
        if self.round is not None:
            round_ = {name: dict(part) if isinstance(part, dict) else part for name, part in self.round.items()}
        return super().state_dict() | {'round': round_, 'epsilon': self.segment_epsilon}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.segment_epsilon, self.round = state['epsilon'], None
        if state['round'] is not None:
            move = lambda part: {name: value.to(self.device) for name, value in part.items()}
            self.round = {name: move(p) if isinstance(p, dict) else p for name, p in state['round'].items()}
