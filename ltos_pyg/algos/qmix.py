"""QMIX: Q-values of each node, trained so that a monotone mix of them predicts the reward of the whole team."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch_geometric.data import Batch
from torch_geometric.nn import Linear, global_mean_pool

from ltos_pyg.algos.dqn import DQN, DQNConfig
from ltos_pyg.algos.losses import masked, td_loss, td_target
from ltos_pyg.algos.team import TeamReward, check_team_reward, side_by_side, slots, team_discount, team_reward
from ltos_pyg.data import Transition
from ltos_pyg.graph_env import GraphEnvSpec
from ltos_pyg.nn import DGN, QMixer, Sharing
from ltos_pyg.nn.validation import check_below
from ltos_pyg.ranges import LARGEST_WIDTH, check_range


@dataclass(frozen=True, kw_only=True)
class QMIXConfig(DQNConfig):
    """Options of QMIX."""

    mixing: Literal['slots', 'shared'] = 'slots'  # by agent identity (the paper's), or by features only (ours)
    team_reward: TeamReward = 'mean'  # over the nodes; the paper's objective is the sum: N times as much
    mixer_channels: int = 32  # hidden layer of the mixing network
    hyper_channels: int = 64  # hidden layer of the networks that make its weights

    def __post_init__(self) -> None:
        super().__post_init__()
        check_team_reward(self.team_reward)
        if self.mixing not in ('slots', 'shared'):
            raise ValueError(f"'mixing' must be 'slots' or 'shared' (got {self.mixing!r})")
        check_range(self, 'mixer_channels', 'hyper_channels', least=1)
        check_range(self, 'mixer_channels', 'hyper_channels', most=LARGEST_WIDTH)


class QMIXNetwork(nn.Module):
    """The agents' network and the mixer, with their inputs: own features, agent identity, the state of the graph."""

    def __init__(self, spec: GraphEnvSpec, config: QMIXConfig) -> None:
        super().__init__()
        c, features = config, spec.num_features
        self.num_slots = spec.max_nodes if c.mixing == 'slots' else 0
        self.agent = DGN(
            features + self.num_slots,
            spec.num_actions,
            hidden_channels=c.hidden_channels,
            encoder_channels=c.encoder_channels,
            num_layers=0,
        )
        if self.num_slots:
            self.mixer = QMixer(self.num_slots * features, c.mixer_channels, c.hyper_channels, num_slots=self.num_slots)
        else:
            self.pool = Linear(features, c.hyper_channels)
            self.mixer = QMixer(c.hyper_channels, c.mixer_channels, c.hyper_channels, node_channels=features)

    def forward(self, x: Tensor, edge_index: Tensor, slot: Tensor | None) -> Tensor:
        """Action values of each node, (N, A)."""
        if slot is not None:
            check_below('slot', slot, self.num_slots, 'the number of an agent of training (or take --mixing shared)')
            x = torch.cat([x, one_hot(slot, self.num_slots).to(x.dtype)], dim=-1)
        return self.agent(x, edge_index)

    def mix(self, q: Tensor, x: Tensor, graph: Batch, slot: Tensor | None) -> Tensor:
        """The value of each graph, (B,), from the values of the actions taken, (N,)."""
        if slot is not None:
            return self.mixer(q, side_by_side(x, graph, slot, self.num_slots), graph.batch, slot)
        state = global_mean_pool(self.pool(x).relu(), graph.batch, graph.num_graphs)
        return self.mixer(q, state, graph.batch, x.to(state.dtype))


class QMIX(DQN):
    r"""Q-learning for one reward of the whole team, with values that can be maximised node by node.

    .. math::
        L = \frac{1}{B} \sum_b \mathrm{Huber}\big(R_b + \gamma^n Q_{tot}^{-}(s'_b, \mathbf{a}^*) -
        Q_{tot}(s_b, \mathbf{a}_b)\big), \qquad
        Q_{tot} = f_s(Q_1(o_1, a_1), \dots, Q_N(o_N, a_N)), \quad \frac{\partial f_s}{\partial Q_i} \ge 0

    with :math:`a^*_i = \arg\max_a Q_i(o'_i, a)` and :math:`f_s` of :class:`~ltos_pyg.nn.QMixer`. Nodes act on their own
    observation alone; state and team reward are used in training only, and edges are not used.

    From the paper (`"QMIX" <https://arxiv.org/abs/1803.11485>`_): the mixing network, one agent network for all with
    the agent's number as an input, the target. The `authors' code <https://github.com/oxwhirl/pymarl>`_: hidden layer
    64 in the networks that make the mixing weights, 32 in the mixing network, double-Q. Ours: agents without memory, on
    replayed transitions (the authors' have a GRU and replay whole episodes; the `extended code
    <https://github.com/uoe-agents/epymarl>`_ has none by default), with the encoder, optimiser and schedules that DQN
    and DGN have here. The LToS paper does not define the state; here it is all observations of the graph in the order
    of the agents.

    Changing graphs: with ``mixing='slots'`` an agent is identified by its position (or by ``node_id``, where agents
    enter and leave), and slots of absent agents are empty. With ``mixing='shared'`` the mixing rows are computed from a
    node's features and the mean of a layer over the graph: this holds for any number of agents, without identities.
    With ``n_step`` above 1, rewards of agents that enter within the n steps are not part of the team reward; and if
    every agent of step t has left n steps later, the target does not bootstrap.

    Raises:
        ValueError: If a ``node_id`` exceeds the number of slots.
    """

    config: QMIXConfig
    network: QMIXNetwork
    target: QMIXNetwork

    def build_network(self) -> nn.Module:
        return QMIXNetwork(self.spec, self.config)

    def act_in(self, spec: GraphEnvSpec) -> None:
        super().act_in(spec)
        self.by_place = spec.fixed_nodes

    def slot(self, graph: Batch) -> Tensor | None:
        """The slot of each node, (N,), if the mixer uses slots."""
        return slots(graph, self.spec.max_nodes, self.by_place) if self.config.mixing == 'slots' else None

    def q_values(self, network: nn.Module, graph: Batch, sharing: Sharing | None = None) -> Tensor:
        x, edge_index, _ = self.inputs(graph)
        with self.autocast():
            return network(x, edge_index, self.slot(graph))

    def total(self, network: QMIXNetwork, graph: Batch, q: Tensor, action: Tensor) -> Tensor:
        """The value of each graph (B,) under these actions, from the values of all their actions (N, A)."""
        x, _, _ = self.inputs(graph)
        with self.autocast():
            return network.mix(q.gather(-1, action.unsqueeze(-1)).squeeze(-1), x, graph, self.slot(graph))

    def loss(self, t: Transition) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            next_q = self.q_values(self.target, t.successor, None)
            online = self.q_values(self.network, t.successor, None) if self.config.double_q else next_q
            best = masked(online, t.successor.get('action_mask')).argmax(-1)
            next_total = self.total(self.target, t.successor, next_q, best)
            reward = team_reward(t.reward, t.graph, self.config.team_reward)
            y = td_target(reward, team_discount(t.discount, t.graph), next_total)
        values = self.q_values(self.network, t.graph, None)
        total = self.total(self.network, t.graph, values, t.action)
        if self.config.action_gap > 0:
            with torch.no_grad():
                best = masked(values, t.graph.get('action_mask')).argmax(-1)
                gap = self.total(self.network, t.graph, values, best) - total
                y = y - self.config.action_gap * gap
        peopled = t.graph.ptr.diff() > 0
        loss = td_loss(total[peopled], y[peopled], self.config.huber)
        return loss, {'loss': loss.detach(), 'q': total.detach().mean()}
