"""ConseNet: actor-critic whose agents learn the team's value from their own rewards, by agreeing on their critics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from ltos_pyg.algos import ranks
from ltos_pyg.algos.actor_critic import ActorCritic, ActorCriticConfig, RecurrentActorCritic
from ltos_pyg.algos.base import Decision
from ltos_pyg.algos.on_policy import View
from ltos_pyg.data import batch_to
from ltos_pyg.graph_env import GraphStep
from ltos_pyg.nn import AgentLinear, consensus_matrix, mix
from ltos_pyg.nn.networked import CONSENSUS_RULES
from ltos_pyg.ranges import check_range

CRITICS = ('joint', 'recurrent')


@dataclass(frozen=True, kw_only=True)
class ConseNetConfig(ActorCriticConfig):
    """Options of ConseNet."""

    alpha: float | None = 0.0  # spatial discount per hop; 0: own reward only (the theory); 0.9: reference code
    critic: Literal['joint', 'recurrent'] = 'joint'  # sees all agents, or the actor's LSTM
    consensus: Literal['metropolis', 'uniform'] = 'metropolis'  # how neighbours average
    critic_lr: float = 2.0  # the joint critic's learning rate, as a multiple of the actors'

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (('critic', CRITICS), ('consensus', CONSENSUS_RULES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"'{name}' must be one of {allowed} (got {getattr(self, name)!r})")
        check_range(self, 'critic_lr', above=0)


class JointCritic(nn.Module):
    r"""For each agent a critic :math:`Q_i(s, a)` of all agents' observations and actions, ordered by agent number. All
    critics have the same inputs, so averaging their weights is meaningful. Absent agents are zeros.
    """

    def __init__(self, num_agents: int, in_channels: int, num_actions: int, hidden_channels: int) -> None:
        super().__init__()
        self.state = AgentLinear(num_agents, num_agents * in_channels, hidden_channels)
        self.action = AgentLinear(num_agents, num_agents * num_actions, hidden_channels, bias=False)
        self.out = AgentLinear(num_agents, hidden_channels, 1)

    def hidden(self, x: Tensor, action: Tensor) -> Tensor:
        """(n, G, H), before the ReLU."""
        n, everything = len(x), lambda part: part.transpose(0, 1).flatten(1)
        return self.state(everything(x).expand(n, -1, -1)) + self.action(everything(action).expand(n, -1, -1))

    def forward(self, x: Tensor, action: Tensor) -> Tensor:
        """Values (n, G) of observations (n, G, F) and one-hot actions (n, G, A)."""
        return self.out(self.hidden(x, action).relu()).squeeze(-1)

    def alternatives(self, x: Tensor, action: Tensor) -> Tensor:
        """Values (n, G, A) of each own action of an agent, with the other agents' actions as taken."""
        n, G, A = action.shape
        own = torch.stack([weight[i * A : (i + 1) * A] for i, weight in enumerate(self.action.weight)])  # (n, A, H)
        others = self.hidden(x, action) - torch.bmm(action, own)
        every = others.unsqueeze(2) + own.unsqueeze(1)  # (n, G, A, H)
        return self.out(every.relu().flatten(1, 2)).view(n, G, A)


class JointNetwork(RecurrentActorCritic):
    """Recurrent actors on their own observations, beside :class:`JointCritic`."""

    def __init__(
        self, num_agents: int, in_channels: int, num_actions: int, max_neighbours: int, hidden_channels: int
    ) -> None:
        super().__init__(num_agents, in_channels, num_actions, max_neighbours, hidden_channels)
        self.critic: Any = JointCritic(num_agents, in_channels, num_actions, hidden_channels)

    def value(self, h: Tensor, view: View, action: Tensor) -> Tensor:
        return self.critic(view.x, action)


class ConseNet(ActorCritic):
    r"""Networked actor-critic with consensus: agents exchange the weights of their critics, never their rewards.

    After each gradient step, neighbours average their critics, :math:`w_i \leftarrow \sum_j c_{ij} w_j`, all agents
    synchronously, so that every critic comes to estimate the team's mean return, though each agent learns from its own
    reward. (With ``consensus='uniform'`` on a graph that is not regular, it is a mean weighted by degree plus one.)
    The averaged weights start equal for all agents. If they were drawn independently for n agents, their mean would be
    only :math:`1/\sqrt{n}` as large.

    ``critic='joint'`` is the method of Zhang et al., `"Fully Decentralized Multi-Agent Reinforcement Learning with
    Networked Agents" <https://arxiv.org/abs/1802.08757>`_, its first algorithm: :math:`Q_i(s, a)` sees all observations
    and all actions, the whole critic is averaged, rewards are own (``alpha=0``), and the actor follows

    .. math::
        A_i = Q_i(s, a) - \sum_{a'_i} \pi_i(a'_i \mid o_i)\, Q_i(s, a'_i, a_{-i})

    Ours are the neural networks (actors are recurrent), the discount in place of the long-run mean reward, and n-step
    returns within a segment as the critic's target.

    ``critic='recurrent'`` (``--preset reference``) is what the code of `"Multi-agent Reinforcement Learning for
    Networked System Control" <https://arxiv.org/abs/2004.01339>`_ calls ConseNet: the critic is a layer on the actor's
    own LSTM and neighbours' actions, only the LSTMs are averaged (so actors' features are averaged too), and rewards
    are discounted in space, which does exchange rewards. That code averages in place, one agent after the other; here
    all agents read before any writes. With own rewards only, this form does not optimise the team's return: its
    advantages are computed from own returns.

    Weights belong to agents and not to graphs, so the consensus matrix is the mean over the graphs of the segment's
    last step; ``'metropolis'`` keeps the mean of all weights, ``'uniform'`` is the reference's plain mean. Neighbours
    also average the squared gradients by which RMSprop divides, so that all take steps of one size: otherwise an agent
    with rare or noisy rewards would count less, and critics would not agree on the mean return.
    """

    config: ConseNetConfig
    matrix: Tensor | None = None  # (n, n), of the segment that is complete

    def build_network(self) -> RecurrentActorCritic:
        sizes = self.num_agents, self.spec.num_features, self.spec.num_actions, self.max_neighbours
        kind = JointNetwork if self.config.critic == 'joint' else RecurrentActorCritic
        network = kind(*sizes, self.config.hidden_channels)
        for weight in self.agreed(network):
            weight.data.copy_(weight.data[:1].expand_as(weight))
        return network

    def agreed(self, network: RecurrentActorCritic) -> list[nn.Parameter]:
        """What neighbours average."""
        return list((network.critic if self.config.critic == 'joint' else network.lstm).parameters())

    def parameter_groups(self) -> list[dict[str, Any]]:
        if self.config.critic == 'recurrent':
            return super().parameter_groups()
        critic = list(self.network.critic.parameters())
        actors = [p for p in self.network.parameters() if not any(p is q for q in critic)]
        return [{'params': actors}, {'params': critic, 'lr': self.config.critic_lr * self.config.lr}]

    def advantage(self, returns: Tensor, value: Tensor, policy: Tensor, view: View, hot: Tensor) -> Tensor:
        if self.config.critic == 'recurrent':
            return super().advantage(returns, value, policy, view, hot)
        with torch.no_grad():
            return value - (policy * self.network.critic.alternatives(view.x, hot)).sum(-1)

    def loss(self, segment: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().loss(segment)
        if self.config.critic == 'joint':  # agents receive no messages
            del metrics['dropped_edges']
        return loss, metrics

    def observe(self, graph: Batch, decision: Decision, step: GraphStep) -> None:
        super().observe(graph, decision, step)
        if self.rollout.full:
            graph = batch_to(graph, self.device)
            place = self.layout(graph).place
            rule = self.config.consensus
            matrix = consensus_matrix(graph.edge_index, place, graph.num_graphs, self.num_agents, rule)
            (self.matrix,) = ranks.current().average([matrix])

    def update_more(self) -> None:
        assert self.matrix is not None
        for weight in self.agreed(self.network):
            mix(weight, self.matrix)
            mix(self.optimizer.state[weight]['square_avg'], self.matrix)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {'matrix': self.matrix}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.matrix = None if state['matrix'] is None else state['matrix'].to(self.device)
