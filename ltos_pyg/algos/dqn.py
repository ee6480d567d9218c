"""DQN on graph batches: independent Q-learning with shared weights. The other value methods build on it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from ltos_pyg.algos.base import Algorithm, Decision, Inputs, guarded_step, new_weights, soft_update
from ltos_pyg.algos.exploration import epsilon_greedy, linear_schedule, softmax_choice
from ltos_pyg.algos.losses import double_q_value, follow, gap_to_best, masked, mean, td_loss, td_target
from ltos_pyg.data import GraphReplay, Transition
from ltos_pyg.graph_env import GraphEnvSpec, GraphStep, Symmetries
from ltos_pyg.nn import DGN, Sharing
from ltos_pyg.ranges import LARGEST_WIDTH, check_range
from ltos_pyg.seeding import generator

REWARDS = ('own', 'neighbourhood', 'team')


@dataclass(frozen=True, kw_only=True)
class DQNConfig:
    """Options of DQN, and of every method that learns Q-values as it does."""

    total_steps: int = 500_000  # env steps (one graph, one step) over which the schedules run
    gamma: float = 0.96  # discount per step
    n_step: int = 3  # rewards summed before the bootstrap
    batch_size: int = 32  # graphs per gradient step
    lr: float = 5e-4  # Adam, at the start
    lr_end: float = 0.03  # its last value, as a part of the first
    tau: float = 0.01  # soft target update per gradient step
    average: float = 0.999  # greedy actions come from a running average of the weights; 0: from the weights themselves
    double_q: bool = True  # the online network chooses the successor's action
    action_gap: float = 0.0  # advantage learning: part of the gap to the best action that targets lose
    huber: float | None = 1.0  # where the loss turns linear; None: mean square
    max_grad_norm: float = 10.0
    epsilon_start: float = 1.0  # chance of a random action at the start
    epsilon_end: float = 0.02
    epsilon_fraction: float = 0.3  # part of training over which it falls
    greedy_fraction: float = 0.5  # part of the episodes in which it falls to 0: they show where greed is stuck
    replay_size: int = 50_000  # graphs kept
    learning_starts: int = 1_000  # env steps before the first gradient step
    steps_per_update: float = 32.0  # env steps per gradient step
    hidden_channels: int = 128
    encoder_channels: tuple[int, ...] = (512,)
    num_layers: int = 2  # relation kernels (0 for DQN: no node sees another)
    heads: int = 8
    augment: bool = True  # train on random views, where the env declares symmetries
    average_views: bool = False  # act greedily on the mean over all views (as many times the work)
    play_temperature: float = 0.0  # without exploration: draw from softmax(Q / this), in units of value; 0: greedy
    precision: Literal['float32', 'bf16'] = 'float32'  # bf16: the networks' matrix products under autocast

    def __post_init__(self) -> None:
        if self.precision not in ('float32', 'bf16'):
            raise ValueError(f"'precision' must be 'float32' or 'bf16' (got {self.precision!r})")
        check_range(self, 'total_steps', 'n_step', 'batch_size', 'replay_size', 'hidden_channels', 'heads', least=1)
        check_range(self, 'learning_starts', 'num_layers', least=0)
        if self.learning_starts >= self.total_steps:
            raise ValueError(
                f"'learning_starts' must lie below 'total_steps', or nothing is learned (got {self.learning_starts} of "
                f'{self.total_steps}). Train for longer, or start to learn earlier.'
            )
        check_range(self, 'encoder_channels', least=1)
        check_range(self, 'hidden_channels', 'encoder_channels', most=LARGEST_WIDTH)
        chances = ('epsilon_start', 'epsilon_end', 'epsilon_fraction', 'greedy_fraction')
        check_range(self, 'gamma', 'tau', 'average', 'lr_end', 'action_gap', *chances, least=0, most=1)
        check_range(self, 'lr', 'steps_per_update', 'max_grad_norm', above=0)
        check_range(self, 'play_temperature', least=0)
        if self.huber is not None and not self.huber > 0:
            raise ValueError(f"'huber' must be above 0, or None for the mean square (got {self.huber})")


@dataclass(frozen=True, kw_only=True)
class IndependentQConfig(DQNConfig):
    """Options of DQN and DGN."""

    reward: Literal['own', 'neighbourhood', 'team'] = 'own'  # what a node maximises; see DQN

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reward not in REWARDS:
            raise ValueError(f"'reward' must be one of {', '.join(REWARDS)} (got {self.reward!r})")


def reward_of(kind: str, graph: Batch, reward: Tensor) -> Tensor:
    r"""What each node maximises, (N,): its ``'own'`` reward, the sum :math:`r_i + \sum_{j \to i} r_j` over its
    ``'neighbourhood'``, or the mean over its graph (``'team'``)."""
    if kind == 'own':
        return reward
    if kind == 'neighbourhood':
        sender, receiver = graph.edge_index.to(reward.device)
        return reward.index_add(0, receiver, reward.index_select(0, sender))
    batch = graph.batch.to(reward.device)
    total = reward.new_zeros(graph.num_graphs).index_add(0, batch, reward)
    return (total / graph.ptr.to(reward.device).diff().clamp(min=1)).index_select(0, batch)


class DQN(Algorithm):
    r"""Independent Q-learning on each node's own observation and own reward; one network for all nodes.

    .. math::
        L = \frac{1}{N} \sum_i \mathrm{Huber}\big(R_i + \gamma^n Q^{-}(o'_i, \arg\max_a Q(o'_i, a))
        - Q(o_i, a_i)\big)

    after `"Human-level control through deep reinforcement learning" <https://doi.org/10.1038/nature14236>`_, with
    double-Q choice, n-step returns :math:`R_i` and soft target updates. With ``reward='neighbourhood'`` or ``'team'``
    (:func:`reward_of`) it is a control for learned sharing: the usual sums, which lie on no simplex.

    Args:
        spec: What the environment promises.
        config: The options.
        seed: Seeds the weights, the replay's draws and the exploration, each a stream of its own.
        device: Where the networks live; the replay stays in main memory.
    """

    config: DQNConfig
    messages = False  # whether nodes see each other
    stores_sharing = False  # whether transitions carry sharing weights

    def __init__(
        self, spec: GraphEnvSpec, config: DQNConfig, seed: int = 0, device: str | torch.device = 'cpu'
    ) -> None:
        self.spec, self.config, self.device = spec, config, torch.device(device)
        self.env_steps = self.updates = 0
        self.inputs = Inputs(spec).to(self.device)
        self.symmetries = Symmetries(spec.symmetries).to(self.device) if spec.symmetries else None
        with new_weights(seed):
            self.network = self.build_network().to(self.device)
            self.build_more()
        self.target = copy.deepcopy(self.network).requires_grad_(False)
        self.averaged = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.lr, fused=True)
        self.replay = GraphReplay(spec, config.replay_size, share=self.stores_sharing)
        self.replay_rng = generator(seed, 'replay')
        self.explore_rng = generator(seed, 'explore', self.device)
        self.views_rng = generator(seed, 'views', self.device)
        self.play_rng = generator(seed, 'play', self.device)

    def build_network(self) -> nn.Module:
        """The Q-network."""
        c = self.config
        return DGN(
            self.spec.num_features,
            self.spec.num_actions,
            hidden_channels=c.hidden_channels,
            encoder_channels=c.encoder_channels,
            num_layers=c.num_layers if self.messages else 0,
            heads=c.heads,
            edge_dim=self.spec.edge_dim if self.messages else None,
        )

    def build_more(self) -> None:
        """Networks beside the Q-network, where a method has any."""

    @property
    def progress(self) -> float:
        """How much of training is done, in [0, 1]."""
        return min(self.env_steps / self.config.total_steps, 1.0)

    def epsilon(self, graph: Batch) -> Tensor:
        """Chance of a random action now, for each node (N,); the last graphs of the batch fall to 0."""
        c = self.config
        ends = (c.epsilon_end, 0.0)
        rate, greedy_rate = (linear_schedule(c.epsilon_start, e, c.epsilon_fraction, self.progress) for e in ends)
        greedy = graph.batch >= graph.num_graphs - round(c.greedy_fraction * graph.num_graphs)
        return torch.where(greedy, greedy_rate, rate)

    def autocast(self) -> torch.autocast:
        """bfloat16 for the matrices, if the configuration asks for it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == 'bf16')

    # acting ------------------------------------------------------------------------------------------------------

    def q_values(self, network: nn.Module, graph: Batch, sharing: Sharing | None) -> Tensor:
        """Action values of every node, (N, A)."""
        x, edge_index, edge_attr = self.inputs(graph)
        with self.autocast():
            return network(x, edge_index, edge_attr if self.messages else None)

    def choose_sharing(self, graph: Batch, explore: bool) -> Sharing | None:
        """The weights in force, where a method has any."""
        return None

    def next_sharing(self, t: Transition) -> Sharing | None:
        """The weights at the successors of a batch, where a method has any."""
        return t.sharing_next

    @torch.no_grad()
    def act(self, graph: Batch, explore: bool = False) -> Decision:
        graph = graph.to(self.device)
        mask = graph.get('action_mask')
        with self.inputs.each_batch_once(graph):
            sharing = self.choose_sharing(graph, explore)
            if explore:
                q = self.q_values(self.network, graph, sharing)
                return Decision(epsilon_greedy(q, self.epsilon(graph), self.explore_rng, mask), sharing)
            q = self.over_views(graph, lambda view: self.q_values(self.averaged, view, sharing))
        return Decision(softmax_choice(q, self.config.play_temperature, self.play_rng, mask), sharing)

    def over_views(self, graph: Batch, values: Callable[[Batch], Tensor]) -> Tensor:
        """Action values (N, A), as the mean over the environment's symmetries if the configuration asks for it."""
        if self.symmetries is None or not self.config.average_views:
            return values(graph)
        return self.symmetries.average(graph, values)

    def observe(self, graph: Batch, decision: Decision, step: GraphStep) -> None:
        kind = getattr(self.config, 'reward', 'own')
        if kind != 'own':
            step = replace(step, reward=reward_of(kind, graph, step.reward))
        self.replay.push(graph, decision.action, decision.sharing, step)
        self.env_steps += graph.num_graphs

    def restart_episodes(self) -> None:
        self.replay.start_stream()

    # learning ----------------------------------------------------------------------------------------------------

    def loss(self, t: Transition) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one batch, and what to log of it."""
        with torch.no_grad():
            online = self.q_values(self.network, t.successor, self.next_sharing(t))
            target = self.q_values(self.target, t.successor, self.next_sharing(t))
            mask = t.successor.get('action_mask')
            if not self.config.double_q:
                online = target
            next_value = follow(double_q_value(online, target, mask), t.successor_node)
            y = td_target(self.reward(t), t.discount, next_value)
        values = self.q_values(self.network, t.graph, t.sharing)
        q = values.gather(-1, t.action.unsqueeze(-1)).squeeze(-1)
        best = masked(values.detach(), t.graph.get('action_mask')).argmax(-1)
        y = y - self.config.action_gap * gap_to_best(values.detach(), best, t.action)
        loss = td_loss(q, y, self.config.huber)
        return loss, {'loss': loss.detach(), 'q': mean(q.detach())}

    def reward(self, t: Transition) -> Tensor:
        """The reward that this method learns from, per node."""
        return t.reward

    @property
    def due_updates(self) -> int:
        c = self.config
        due = max(0, int((self.env_steps - c.learning_starts) / c.steps_per_update) - self.updates)
        return due if due == 0 or self.replay.num_transitions(c.n_step) > 0 else 0

    def update(self) -> dict[str, float]:
        c = self.config
        t = self.replay.sample(c.batch_size, self.replay_rng, c.n_step, c.gamma).to(self.device)
        t = self.random_views(t)
        with self.inputs.each_batch_once(t.graph, t.successor):
            loss, metrics = self.loss(t)
            self.step_optimizer(self.optimizer, loss)
            soft_update(self.target, self.network, c.tau)
            self.update_average(self.averaged, self.network)
            metrics |= self.update_more(t)
        self.updates += 1
        return {name: float(value) for name, value in metrics.items()}

    def random_views(self, t: Transition) -> Transition:
        """The batch with each graph, and each successor, under a random one of the environment's symmetries."""
        if self.symmetries is None or not self.config.augment:
            return t
        count, size = self.symmetries.count, (2, t.num_graphs)
        now, then = torch.randint(count, size, generator=self.views_rng, device=self.device)
        return replace(
            t,
            graph=self.symmetries.view(t.graph, now),
            action=self.symmetries.actions(t.action, now[t.graph.batch]),
            successor=self.symmetries.view(t.successor, then),
        )

    def update_more(self, t: Transition) -> dict[str, Tensor]:
        """Updates networks beside the Q-network, where a method has any, after each of its gradient steps."""
        return {}

    def update_average(self, averaged: nn.Module, online: nn.Module, every: int = 1) -> None:
        r"""Running average :math:`\bar\theta \leftarrow \beta \bar\theta + (1 - \beta) \theta`, shorter at first.

        ``every`` is the number of gradient steps since the last call: :math:`\beta` is ``average`` to that power.
        """
        beta = self.config.average**every
        soft_update(averaged, online, 1 - min(beta, self.updates / (self.updates + 10)))

    def step_optimizer(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        """One guarded step at the schedule's learning rate."""
        lr_fraction = linear_schedule(1.0, self.config.lr_end, 1.0, self.progress)
        guarded_step(optimizer, self.modules(), loss, self.config.max_grad_norm, self.updates, lr_fraction)

    # saving ------------------------------------------------------------------------------------------------------

    def modules(self) -> dict[str, nn.Module]:
        """Networks, by name."""
        return {'network': self.network, 'target': self.target, 'averaged': self.averaged}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Optimizers, by name."""
        return {'optimizer': self.optimizer}

    def generators(self) -> dict[str, torch.Generator]:
        """Streams of chance, by name."""
        own = {'explore': self.explore_rng, 'views': self.views_rng, 'play': self.play_rng}
        return {'replay': self.replay_rng, **own}

    def state_dict(self) -> dict[str, Any]:
        return {
            'env_steps': self.env_steps,
            'updates': self.updates,
            'modules': {name: module.state_dict() for name, module in self.modules().items()},
            'optimizers': {name: opt.state_dict() for name, opt in self.optimizers().items()},
            'replay': self.replay.state_dict(),
            'rng': {name: rng.get_state() for name, rng in self.generators().items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.load_policy(state)
        for name, opt in self.optimizers().items():
            opt.load_state_dict(state['optimizers'][name])
        self.replay.load_state_dict(state['replay'])
        for name, rng in self.generators().items():
            rng.set_state(state['rng'][name])

    def load_policy(self, state: dict[str, Any]) -> None:
        self.env_steps, self.updates = state['env_steps'], state['updates']
        for name, module in self.modules().items():
            module.load_state_dict(state['modules'][name])
