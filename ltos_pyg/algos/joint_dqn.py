"""JointDQN: one Q-network for a whole graph, over all its joint actions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from ltos_pyg.algos.base import Decision
from ltos_pyg.algos.dqn import DQN, DQNConfig
from ltos_pyg.algos.exploration import epsilon_greedy, softmax_choice
from ltos_pyg.algos.losses import double_q_value, gap_to_best, masked, td_loss, td_target
from ltos_pyg.algos.team import TeamReward, check_team_reward, joint_mask, team_discount, team_reward
from ltos_pyg.data import Transition, batch_to
from ltos_pyg.graph_env import GraphEnvSpec
from ltos_pyg.nn import DGN, Sharing

MAX_JOINT_ACTIONS = 4096


@dataclass(frozen=True, kw_only=True)
class JointDQNConfig(DQNConfig):
    """Options of JointDQN."""

    team_reward: TeamReward = 'mean'  # over the nodes

    def __post_init__(self) -> None:
        super().__post_init__()
        check_team_reward(self.team_reward)


class JointDQN(DQN):
    r"""Centralised Q-learning: a value for each joint action of a graph, from the concatenated observations.

    .. math::
        L = \frac{1}{B} \sum_b \mathrm{Huber}\Big(R_b + \gamma^n Q^{-}(s'_b, \arg\max_{\mathbf{a}} Q(s'_b, \mathbf{a}))
        - Q(s_b, \mathbf{a}_b)\Big), \qquad \mathbf{a} \in \{0, \dots, A - 1\}^N

    `"Learning to Share in Multi-Agent RL" <https://arxiv.org/abs/2112.08702>`_ names it as the centralised reference on
    its prisoner, without details; reward (the mean over the agents; the sum would do as well), network (DQN's, on the
    concatenated observations) and schedules are ours. Joint action :math:`(a_1, \dots, a_N)` has the number
    :math:`\sum_i a_i A^{N-i}`. Edges are not used, and acting is centralised too.

    Raises:
        ValueError: If the agents of a graph may change, or there are more than 4096 joint actions: their number
            grows as :math:`A^N`.
    """

    config: JointDQNConfig

    def __init__(
        self, spec: GraphEnvSpec, config: JointDQNConfig, seed: int = 0, device: str | torch.device = 'cpu'
    ) -> None:
        if not spec.fixed_nodes:
            raise ValueError(
                'joint_dqn needs fixed agents (spec.fixed_nodes): it has one input for each. Take qmix, '
                'which trains for the team as well.'
            )
        if spec.num_actions**spec.max_nodes > MAX_JOINT_ACTIONS:
            raise ValueError(
                f'joint_dqn has one value for each joint action, at most {MAX_JOINT_ACTIONS}: expected a small game '
                f'such as the prisoner, got {spec.num_actions}^{spec.max_nodes} ({spec.num_actions} actions, '
                f'{spec.max_nodes} agents). Take qmix, which trains for the team as well.'
            )
        self.num_agents = spec.max_nodes
        super().__init__(spec, config, seed, device)
        self.digit = spec.num_actions ** torch.arange(self.num_agents - 1, -1, -1, device=self.device)

    def build_network(self) -> nn.Module:
        c, spec = self.config, self.spec
        return DGN(
            self.num_agents * spec.num_features,
            spec.num_actions**self.num_agents,
            hidden_channels=c.hidden_channels,
            encoder_channels=c.encoder_channels,
            num_layers=0,
        )

    # joint actions -----------------------------------------------------------------------------------------------

    def encode(self, action: Tensor) -> Tensor:
        """The numbers of joint actions, (M,), from each agent's, (M * K,) in node order."""
        return (action.view(-1, self.num_agents) * self.digit).sum(-1)

    def decode(self, joint: Tensor) -> Tensor:
        """Each agent's action, (M * K,) in node order, from the numbers of joint ones, (M,)."""
        return (joint.unsqueeze(-1) // self.digit % self.spec.num_actions).flatten()

    def mask(self, graph: Batch) -> Tensor | None:
        """Which joint actions are allowed, (B, A^K)."""
        mask = graph.get('action_mask')
        return None if mask is None else joint_mask(mask.view(graph.num_graphs, self.num_agents, -1))

    # acting ------------------------------------------------------------------------------------------------------

    def q_values(self, network: nn.Module, graph: Batch, sharing: Sharing | None = None) -> Tensor:
        """Values of all joint actions of each graph, (B, A^K)."""
        x, edge_index, _ = self.inputs(graph)
        with self.autocast():
            return network(x.view(graph.num_graphs, -1), edge_index)

    @torch.no_grad()
    def act(self, graph: Batch, explore: bool = False) -> Decision:
        graph = batch_to(graph, self.device)
        sizes = graph.ptr.diff()
        if bool((sizes != self.num_agents).any()):
            raise ValueError(
                f'joint_dqn needs all agents in each graph: expected {self.num_agents} nodes in each, '
                f'got {sizes.tolist()}. Take qmix, which allows absent agents.'
            )
        mask = self.mask(graph)
        with self.inputs.each_batch_once(graph):
            if explore:
                q = self.q_values(self.network, graph, None)
                rate = self.epsilon(graph)[:: self.num_agents]
                return Decision(self.decode(epsilon_greedy(q, rate, self.explore_rng, mask)))
            q = self.over_views(graph, lambda view: self.q_values(self.averaged, view, None))
        return Decision(self.decode(softmax_choice(q, self.config.eval_temperature, self.play_rng, mask)))

    def over_views(self, graph: Batch, values: Callable[[Batch], Tensor]) -> Tensor:
        if self.symmetries is None or not self.config.average_views:
            return values(graph)
        every = self.decode(torch.arange(self.spec.num_actions**self.num_agents, device=self.device))
        columns = [self.encode(renamed[every]) for renamed in self.symmetries.action]
        parts = [values(v)[:, column] for v, column in zip(self.symmetries.views(graph), columns, strict=True)]
        return torch.stack(parts).mean(0)

    # learning ----------------------------------------------------------------------------------------------------

    def loss(self, t: Transition) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            target = self.q_values(self.target, t.successor, None)
            online = self.q_values(self.network, t.successor, None) if self.config.double_q else target
            next_value = double_q_value(online, target, self.mask(t.successor))
            reward = team_reward(t.reward, t.graph, self.config.team_reward)
            y = td_target(reward, team_discount(t.discount, t.graph), next_value)
        values, joint = self.q_values(self.network, t.graph, None), self.encode(t.action)
        q = values.gather(-1, joint.unsqueeze(-1)).squeeze(-1)
        best = masked(values.detach(), self.mask(t.graph)).argmax(-1)
        y = y - self.config.action_gap * gap_to_best(values.detach(), best, joint)
        loss = td_loss(q, y, self.config.huber)
        return loss, {'loss': loss.detach(), 'q': q.detach().mean()}
