"""Recurrent advantage actor-critic with separate networks per agent: the common base of NeurComm and ConseNet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from ltos_pyg.algos.base import guarded_step
from ltos_pyg.algos.exploration import linear_schedule, softmax_choice
from ltos_pyg.algos.losses import discounted_returns, masked
from ltos_pyg.algos.on_policy import Memory, OnPolicy, OnPolicyConfig, View
from ltos_pyg.graph_env import GraphEnvSpec
from ltos_pyg.nn import AgentLayout, AgentLinear, AgentLSTMCell, gather_slots, spatial_discount, spatial_weights
from ltos_pyg.ranges import LARGEST_WIDTH, check_range


@dataclass(frozen=True, kw_only=True)
class ActorCriticConfig(OnPolicyConfig):
    """Options of the recurrent actor-critics."""

    lr: float = 5e-4  # learning rate of RMSprop (decay 0.99, eps 1e-5) at the start; one step per segment
    lr_final_fraction: float = 1.0  # learning rate at the end, as a fraction of the first
    entropy: float = 0.01  # weight of the policies' entropy
    value_coef: float = 0.25  # weight of the critic's squared error
    max_grad_norm: float = 40.0  # gradients of all agents together are clipped to this norm
    hidden_channels: int = 64  # size of each layer and of the recurrent state
    alpha: float | None = 0.9  # spatial discount per hop; 0: own reward only; None: global reward (weight 1 for all)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 'hidden_channels', least=1)
        check_range(self, 'hidden_channels', most=LARGEST_WIDTH)
        check_range(self, 'lr_final_fraction', least=0, most=1)
        check_range(self, 'alpha', least=0, most=1, none=', or be None for the whole graph')
        check_range(self, 'lr', 'max_grad_norm', above=0)
        check_range(self, 'entropy', 'value_coef', least=0)


class RecurrentActorCritic(nn.Module):
    r"""Separate networks for each agent: its observation goes through a ReLU layer and an LSTM. The LSTM's state gives
    the policy, and with the neighbours' actions the value :math:`V_i(h_i, a_{\mathcal{N}_i})`. Weights start orthogonal
    and biases at zero.
    """

    def __init__(
        self, num_agents: int, in_channels: int, num_actions: int, max_neighbours: int, hidden_channels: int
    ) -> None:
        super().__init__()
        self.sizes = num_agents, hidden_channels, num_actions
        self.obs = AgentLinear(num_agents, in_channels, hidden_channels)
        self.lstm = AgentLSTMCell(num_agents, hidden_channels, hidden_channels)
        self.actor = AgentLinear(num_agents, hidden_channels, num_actions, gain=0.01)  # near uniform at the start
        self.critic: nn.Module = AgentLinear(num_agents, hidden_channels + max_neighbours * num_actions, 1)

    def initial(self, num_graphs: int) -> Memory:
        """Recurrent state at the start of an episode."""
        n, H, A = self.sizes
        zeros = lambda size: self.obs.weight.new_zeros(n, num_graphs, size)
        return Memory(zeros(H), zeros(H), zeros(A))

    def encode(self, view: View, memory: Memory) -> Tensor:
        """The input of the LSTM, (n, G, ·)."""
        return self.obs(view.x).relu()

    def forward(self, view: View, memory: Memory) -> tuple[Tensor, Memory]:
        """One step: logits (n, G, A), forbidden actions at minus infinity, and the recurrent state after it."""
        h, c = self.lstm(self.encode(view, memory), (memory.h, memory.c))
        logits = masked(self.actor(h), view.mask)
        return logits, Memory(h, c, logits.detach().softmax(-1)).where(view.present)

    def value(self, h: Tensor, view: View, action: Tensor) -> Tensor:
        """Values (n, G) of states ``h`` under the joint action ``action``, one-hot (n, G, A)."""
        return self.critic(torch.cat([h, gather_slots(action, view.rows)], dim=-1)).squeeze(-1)


class ActorCritic(OnPolicy):
    r"""Advantage actor-critic on segments of ``rollout_steps`` steps, one recurrent network per agent.

    .. math::
        L = \sum_i \frac{1}{T} \sum_t \big[ -A_{i,t} \log \pi_i(a_{i,t}) - c_e \mathcal{H}(\pi_i)
        + c_v (R_{i,t} - V_{i,t})^2 \big], \qquad A = R - V, \qquad
        R_{i,t} = \tilde r_{i,t} + \gamma R_{i,t+1}

    with :math:`\tilde r_i = \sum_j \alpha^{d_{ji}} r_j`, the rewards of other agents discounted by their distance in
    hops. The return bootstraps with V at the segment's end and at truncations; it does not bootstrap at terminations
    and where an agent left. Gradients run back through the recurrent state to the segment's start, not beyond.

    It follows the reference code of `"Multi-agent Reinforcement Learning for Networked System Control"
    <https://arxiv.org/abs/2004.01339>`_, with these differences: the loss is the mean over several graphs; the value is
    computed from the same recurrent step as the policy, whereas that code advances the state once more; truncation is
    not treated as termination; policies start near uniform.
    """

    config: Any

    def __init__(self, spec: GraphEnvSpec, config: Any, seed: int = 0, device: str | torch.device = 'cpu') -> None:
        super().__init__(spec, config, seed, device)
        self.optimizer = torch.optim.RMSprop(self.parameter_groups(), lr=config.lr, alpha=0.99, eps=1e-5)
        self.distance: tuple[Tensor, Tensor, Tensor] | None = None  # edges, places and the spatial weights of them

    def build_network(self) -> RecurrentActorCritic:
        sizes = self.num_agents, self.spec.num_features, self.spec.num_actions, self.max_neighbours
        return RecurrentActorCritic(*sizes, self.config.hidden_channels)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer, with learning rates where they differ."""
        return [{'params': list(self.network.parameters())}]

    def policy(self, view: View, memory: Memory, explore: bool) -> tuple[Tensor, Memory]:
        return self.network(view, memory)

    def learning_reward(self, graph: Batch, layout: AgentLayout, reward: Tensor) -> Tensor:
        """Rewards discounted in space. Hop distances are recomputed only when the edges change."""
        if self.config.alpha == 0:
            return reward
        edges, place = graph.edge_index, layout.place
        if self.distance is None or not (torch.equal(edges, self.distance[0]) and torch.equal(place, self.distance[1])):
            weights = spatial_weights(edges, place, layout.num_graphs, layout.num_agents, self.config.alpha)
            self.distance = edges, place, weights
        return spatial_discount(reward, self.distance[2]) * layout.present()

    def bootstrap(self, successor: Batch, memory: Memory) -> Tensor:
        view, layout, _ = self.view(successor)
        logits, after = self.network(view, memory)
        action = softmax_choice(layout.from_dense(logits), 1.0, self.explore_rng, successor.get('action_mask'))
        return self.network.value(after.h, view, self.hot(layout.to_dense(action), view)).unsqueeze(-1)

    def loss(self, segment: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one segment, and what to log of it."""
        c, s = self.config, segment
        returns = discounted_returns(s['reward'], s['bootstrap'].squeeze(-1), s['goes_on'], c.gamma)
        assert self.start is not None
        memory, policy_loss, value_loss, entropy = self.start, [], [], []
        for t in range(len(returns)):
            view = View(*(s[name][t] for name in View._fields))
            logits, memory = self.network(view, memory)
            hot = self.hot(s['action'][t], view)
            value = self.network.value(memory.h, view, hot)
            log_policy = logits.log_softmax(-1).masked_fill(~view.mask, 0.0)
            advantage = self.advantage(returns[t], value, log_policy.exp() * view.mask, view, hot).detach()
            policy_loss.append(-advantage * (log_policy * hot).sum(-1))
            value_loss.append((returns[t] - value).square())
            entropy.append(-(log_policy.exp() * view.mask * log_policy).sum(-1))
            memory = memory.where(s['goes_on'][t])
        parts = [(torch.stack(part) * s['present']).mean((0, 2)).sum() for part in (policy_loss, value_loss, entropy)]
        loss = parts[0] + c.value_coef * parts[1] - c.entropy * parts[2]
        everyone = s['present'].float().mean((0, 2)).sum().clamp(min=1e-6)
        metrics = dict(
            zip(('policy_loss', 'value_loss', 'entropy'), (p.detach() / everyone for p in parts), strict=True)
        )
        return loss, {'loss': loss.detach(), **metrics, 'dropped_edges': s['dropped_edges'].float().mean()}

    def advantage(self, returns: Tensor, value: Tensor, policy: Tensor, view: View, hot: Tensor) -> Tensor:
        """Advantages of the actions taken, (n, G)."""
        return returns - value

    def update(self) -> dict[str, float]:
        loss, metrics = self.loss(self.rollout.read())
        lr_fraction = linear_schedule(1.0, self.config.lr_final_fraction, 1.0, self.progress)
        guarded_step(self.optimizer, self.modules(), loss, self.config.max_grad_norm, self.updates, lr_fraction)
        self.rollout.clear()
        self.update_more()
        self.updates += 1
        return {name: float(value) for name, value in metrics.items()}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {'optimizer': self.optimizer}

    def update_more(self) -> None:
        """Hook after each gradient step."""
