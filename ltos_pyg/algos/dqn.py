"""DQN on graph batches: independent Q-learning with shared weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from ltos_pyg.algos import ranks
from ltos_pyg.algos.base import Decision, repeat_sharing
from ltos_pyg.algos.exploration import epsilon_greedy, linear_schedule, softmax_choice
from ltos_pyg.algos.losses import double_q_value, gap_to_best, gather_next_value, masked, mean, td_loss, td_target
from ltos_pyg.algos.off_policy import OffPolicy, OffPolicyConfig
from ltos_pyg.algos.team import REWARDS, reward_of
from ltos_pyg.data import Transition, batch_to
from ltos_pyg.graph_env import GraphStep
from ltos_pyg.nn import DGN, Sharing
from ltos_pyg.ranges import check_range


@dataclass(frozen=True, kw_only=True)
class DQNConfig(OffPolicyConfig):
    """Options of every method of the DQN family."""

    double_q: bool = True  # the online network chooses the successor's action
    action_gap: float = 0.0  # advantage learning: fraction of the action gap subtracted from targets
    huber: float | None = 1.0  # Huber loss: error above which it is linear; None: mean square
    epsilon_start: float = 1.0  # chance of a random action at the start
    epsilon_end: float = 0.02  # chance of a random action at the end
    epsilon_fraction: float = 0.3  # fraction of training over which epsilon falls
    greedy_fraction: float = 0.5  # fraction of the parallel episodes in which epsilon falls to 0 instead of epsilon_end

    def __post_init__(self) -> None:
        super().__post_init__()
        chances = ('epsilon_start', 'epsilon_end', 'epsilon_fraction', 'greedy_fraction')
        check_range(self, 'action_gap', *chances, least=0, most=1)
        check_range(self, 'huber', above=0, none=', or be None for the mean square')


@dataclass(frozen=True, kw_only=True)
class IndependentQConfig(DQNConfig):
    """Options of DQN."""

    reward: Literal['own', 'neighbourhood', 'team'] = 'own'  # the reward of a node; see DQN

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reward not in REWARDS:
            raise ValueError(f"'reward' must be one of {', '.join(REWARDS)} (got {self.reward!r})")


class DQN(OffPolicy):
    r"""Independent Q-learning on each node's own observation and own reward; one network for all nodes.

    .. math::
        L = \frac{1}{N} \sum_i \mathrm{Huber}\big(R_i + \gamma^n Q^{-}(o'_i, \arg\max_a Q(o'_i, a))
        - Q(o_i, a_i)\big)

    after `"Human-level control through deep reinforcement learning" <https://doi.org/10.1038/nature14236>`_, with
    double-Q choice, n-step returns :math:`R_i` and soft target updates. With ``reward='neighbourhood'`` or ``'team'``
    (:func:`~ltos_pyg.algos.team.reward_of`) it is a control for learned sharing: the usual reward sums, which are not
    shares of a simplex.
    """

    config: DQNConfig
    messages = False  # whether nodes exchange messages

    def build_network(self) -> nn.Module:
        c, spec = self.config, self.spec
        sizes = {'hidden_channels': c.hidden_channels, 'encoder_channels': c.encoder_channels}
        return DGN(spec.num_features, spec.num_actions, num_layers=0, **sizes)

    def q_values(self, network: nn.Module, graph: Batch, sharing: Sharing | None = None) -> Tensor:
        """Action values of every node, (N, A)."""
        x, edge_index, edge_attr = self.inputs(graph)
        with self.autocast():
            return network(x, edge_index, edge_attr if self.messages else None)

    def averaged_values(self, views: Batch, graph: Batch, sharing: Sharing | None) -> Tensor:
        """Action values of the averaged network in some views of a batch, each under the same weights."""
        times = views.num_graphs // graph.num_graphs
        return self.q_values(self.averaged, views, repeat_sharing(sharing, times))

    def epsilon(self, graph: Batch) -> Tensor:
        """Current chance of a random action, for each node (N,); in the last graphs of the batch, counted over all
        ranks, it falls to 0."""
        c, all_ranks = self.config, ranks.current()
        ends = (c.epsilon_end, 0.0)
        rate, greedy_rate = (linear_schedule(c.epsilon_start, e, c.epsilon_fraction, self.progress) for e in ends)
        total = graph.num_graphs * all_ranks.size
        greedy = graph.batch + all_ranks.rank * graph.num_graphs >= total - round(c.greedy_fraction * total)
        return torch.where(greedy, greedy_rate, rate)

    def choose_sharing(self, graph: Batch, explore: bool) -> Sharing | None:
        """The current sharing weights, if a method has any."""
        return None

    @torch.no_grad()
    def act(self, graph: Batch, explore: bool = False) -> Decision:
        graph = batch_to(graph, self.device)
        mask = graph.get('action_mask')
        with self.inputs.each_batch_once(graph):
            sharing = self.choose_sharing(graph, explore)
            if explore:
                q = self.q_values(self.network, graph, sharing)
                return Decision(epsilon_greedy(q, self.epsilon(graph), self.explore_rng, mask), sharing)
            q = self.over_views(graph, lambda views: self.averaged_values(views, graph, sharing))
        return Decision(softmax_choice(q, self.config.eval_temperature, self.play_rng, mask), sharing)

    def observe(self, graph: Batch, decision: Decision, step: GraphStep) -> None:
        kind = getattr(self.config, 'reward', 'own')
        if kind != 'own':
            step = replace(step, reward=reward_of(kind, graph, step.reward))
        super().observe(graph, decision, step)

    def loss(self, t: Transition) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            online, target = (self.q_values(network, t.successor) for network in (self.network, self.target))
            best_by = online if self.config.double_q else target
            next_value = gather_next_value(
                double_q_value(best_by, target, t.successor.get('action_mask')), t.successor_node
            )
            y = td_target(t.reward, t.discount, next_value)
        values = self.q_values(self.network, t.graph)
        q = values.gather(-1, t.action.unsqueeze(-1)).squeeze(-1)
        best = masked(values.detach(), t.graph.get('action_mask')).argmax(-1)
        y = y - self.config.action_gap * gap_to_best(values.detach(), best, t.action)
        loss = td_loss(q, y, self.config.huber)
        return loss, {'loss': loss.detach(), 'q': mean(q.detach())}
