"""NeurComm: actor-critic whose agents send observations, recurrent states and policies to their neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from ltos_pyg.algos.actor_critic import ActorCritic, ActorCriticConfig, RecurrentActorCritic
from ltos_pyg.algos.on_policy import Memory, View
from ltos_pyg.nn import AgentLinear, AgentLSTMCell, gather_slots


class CommunicatingActorCritic(RecurrentActorCritic):
    r"""The input of each agent's LSTM is

    .. math::
        \mathrm{ReLU}(W^x_i [o_i, o_j]), \quad \mathrm{ReLU}(W^p_i [\pi_j^{t-1}]), \quad
        \mathrm{ReLU}(W^h_i [h_j^{t-1}]), \qquad j \in \mathcal{N}_i \text{ in the order of their numbers}

    An agent without neighbours has the first part alone.
    """

    def __init__(
        self, num_agents: int, in_channels: int, num_actions: int, max_neighbours: int, hidden_channels: int
    ) -> None:
        super().__init__(num_agents, in_channels, num_actions, max_neighbours, hidden_channels)
        self.obs = AgentLinear(num_agents, (1 + max_neighbours) * in_channels, hidden_channels)
        self.fingerprint = AgentLinear(num_agents, max_neighbours * num_actions, hidden_channels)
        self.message = AgentLinear(num_agents, max_neighbours * hidden_channels, hidden_channels)
        self.lstm = AgentLSTMCell(num_agents, 3 * hidden_channels, hidden_channels)

    def encode(self, view: View, memory: Memory) -> Tensor:
        n, G = view.present.shape
        has_neighbours = (view.rows < n * G).any(-1).view(n, G, 1)
        x = self.obs(torch.cat([view.x, gather_slots(view.x, view.rows)], dim=-1)).relu()
        policy = self.fingerprint(gather_slots(memory.policy, view.rows)).relu() * has_neighbours
        h = self.message(gather_slots(memory.h, view.rows)).relu() * has_neighbours
        return torch.cat([x, policy, h], dim=-1)


class NeurComm(ActorCritic):
    r"""Recurrent actor-critic over differentiable messages, after `"Multi-agent Reinforcement Learning for Networked
    System Control" <https://arxiv.org/abs/2004.01339>`_ and its authors' code (``ma2c_nc``).

    At each step an agent receives its neighbours' observations, and their policies and recurrent states of the step
    before. Information travels one hop per step, and gradients of an agent's loss reach its neighbours' networks
    through the recurrent states (policies are sent without gradient). The critic's input includes the neighbours'
    actions. Rewards are those of :class:`~ltos_pyg.algos.actor_critic.ActorCritic`: discounted in space by ``alpha``;
    ``alpha=None`` is the reference's global reward, the sum over the graph.

    Besides what :class:`~ltos_pyg.algos.actor_critic.ActorCritic` lists, one thing differs from the authors' code: at
    the first step of an episode the policies of the step before are zeros, there uniform.

    Each agent's weights are per slot, so an agent whose neighbours change receives messages from different agents in
    the same slot: where the graph changes, the method is not well defined, as the LToS paper reports.
    """

    config: ActorCriticConfig

    def build_network(self) -> CommunicatingActorCritic:
        sizes = self.num_agents, self.spec.num_features, self.spec.num_actions, self.max_neighbours
        return CommunicatingActorCritic(*sizes, self.config.hidden_channels)
