"""The common base of all methods with a replay: schedules, networks and their averages, saving."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from ltos_pyg.algos import ranks
from ltos_pyg.algos.base import Algorithm, Decision, ObservationScaler, SoftUpdate, guarded_step, new_weights
from ltos_pyg.algos.exploration import linear_schedule
from ltos_pyg.data import GraphReplay, Transition
from ltos_pyg.data.replay import least_capacity
from ltos_pyg.data.replay_input import ReplayMemoryError
from ltos_pyg.graph_env import GraphEnvSpec, GraphStep, Symmetries
from ltos_pyg.ranges import LARGEST_WIDTH, check_range
from ltos_pyg.seeding import generator, restore


@dataclass(frozen=True, kw_only=True)
class OffPolicyConfig:
    """Options of every method that learns from a replay."""

    total_steps: int = 500_000  # env steps of training (one step of one graph each); all schedules run over them
    gamma: float = 0.96  # discount per step
    n_step: int = 3  # rewards summed before the bootstrap
    batch_size: int = 32  # graphs per gradient step
    lr: float = 5e-4  # learning rate of Adam at the start
    lr_final_fraction: float = 0.03  # learning rate at the end, as a fraction of the first
    tau: float = 0.01  # soft target update per gradient step
    ema_decay: float = 0.999  # decay of the average of weights that acts without exploration; 0: no averaging
    max_grad_norm: float = 10.0  # gradients are clipped to this norm
    replay_size: int = 50_000  # graphs kept in the replay
    learning_starts: int = 1_000  # env steps before the first gradient step
    train_freq: float = 32.0  # env steps per gradient step
    hidden_channels: int = 128  # width of the hidden layers
    encoder_channels: tuple[int, ...] = (512,)  # widths of the encoder's hidden layers
    augment: bool = True  # train on random symmetric views (rotations, reflections), if the env declares symmetries
    average_views: bool = False  # act greedily on the mean over all symmetric views (with V views, V times the work)
    eval_temperature: float = 0.0  # without exploration: draw from softmax(action values / this); 0: the best action
    precision: Literal['float32', 'bf16'] = 'float32'  # bf16: the networks' matrix products under autocast

    def __post_init__(self) -> None:
        if self.precision not in ('float32', 'bf16'):
            raise ValueError(f"'precision' must be 'float32' or 'bf16' (got {self.precision!r})")
        check_range(self, 'total_steps', 'n_step', 'batch_size', 'replay_size', 'hidden_channels', least=1)
        check_range(self, 'learning_starts', least=0)
        if self.learning_starts >= self.total_steps:
            raise ValueError(
                f"'learning_starts' must lie below 'total_steps', or nothing is learned (got {self.learning_starts} of "
                f'{self.total_steps}). Train for longer, or start to learn earlier.'
            )
        check_range(self, 'encoder_channels', least=1)
        check_range(self, 'hidden_channels', 'encoder_channels', most=LARGEST_WIDTH)
        check_range(self, 'gamma', 'tau', 'ema_decay', 'lr_final_fraction', least=0, most=1)
        check_range(self, 'lr', 'train_freq', 'max_grad_norm', above=0)
        check_range(self, 'eval_temperature', least=0)


class OffPolicy(Algorithm):
    """A method that stores transitions and learns from batches of them.

    A subclass builds its network, acts, and defines its loss. :meth:`learn` is one gradient step on it; a method
    with more than one network overrides it.

    Args:
        spec: What the environment promises.
        config: The options.
        seed: Seeds the weights, the replay's draws and the exploration, each a stream of its own.
        device: Where the networks live; the replay stays in main memory.
    """

    config: OffPolicyConfig
    data_parallel = True
    stores_sharing = False  # whether transitions carry sharing weights
    # Networks that greedy actions do not depend on: a `policy_state` leaves them out. When one is loaded, each of them
    # gets the weights of the network named here, or stays as it is (None).
    training_only: Mapping[str, str | None] = {'network': 'averaged', 'target': 'averaged'}

    def __init__(
        self, spec: GraphEnvSpec, config: OffPolicyConfig, seed: int = 0, device: str | torch.device = 'cpu'
    ) -> None:
        self.spec, self.config, self.device = spec, config, torch.device(device)
        self.env_steps = self.updates = 0
        self.act_in(spec)
        with new_weights(seed):
            self.network = self.build_network().to(self.device)
            self.build_more()
        self.target = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.averaged = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.move_target = SoftUpdate(self.target, self.network)
        self.move_average = SoftUpdate(self.averaged, self.network)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.lr, fused=True)
        self.replay = make_replay(spec, config.replay_size, self.stores_sharing)
        self.replay_rng = generator(seed, 'replay')
        self.explore_rng = generator(seed, 'explore', self.device)
        self.views_rng = generator(seed, 'views', self.device)
        self.play_rng = generator(seed, 'play', self.device)

    @abstractmethod
    def build_network(self) -> nn.Module:
        """The network that acts."""

    def build_more(self) -> None:
        """Additional networks, if a method has any."""

    @abstractmethod
    def loss(self, t: Transition) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one batch, and what to log of it."""

    @property
    def progress(self) -> float:
        """How much of training is done, in [0, 1]."""
        return min(self.env_steps / self.config.total_steps, 1.0)

    def autocast(self) -> torch.autocast:
        """bfloat16 for the matrices, if the configuration asks for it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == 'bf16')

    # acting ------------------------------------------------------------------------------------------------------

    def act_in(self, spec: GraphEnvSpec) -> None:
        self.inputs = ObservationScaler(spec).to(self.device)
        self.symmetries = Symmetries(spec.symmetries).to(self.device) if spec.symmetries else None

    def over_views(self, graph: Batch, values: Callable[[Batch], Tensor]) -> Tensor:
        """Action values (N, A), as the mean over the environment's symmetries if the configuration asks for it."""
        if self.symmetries is None or not self.config.average_views:
            return values(graph)
        return self.symmetries.average(graph, values)

    def observe(self, graph: Batch, decision: Decision, step: GraphStep) -> None:
        self.replay.push(graph, decision.action, decision.sharing, step)
        self.env_steps += graph.num_graphs * ranks.current().size

    def restart_episodes(self) -> None:
        self.replay.start_stream()

    # learning ----------------------------------------------------------------------------------------------------

    @property
    def due_updates(self) -> int:
        c = self.config
        due = max(0, int((self.env_steps - c.learning_starts) / c.train_freq) - self.updates)
        return due if due == 0 or self.replay.num_transitions(c.n_step) > 0 else 0

    def update(self) -> dict[str, float]:
        c = self.config
        t = self.replay.sample(c.batch_size, self.replay_rng, c.n_step, c.gamma).to(self.device)
        t = self.random_views(t)
        with self.inputs.each_batch_once(t.graph, t.successor):
            metrics = self.learn(t)
        self.updates += 1
        return {name: float(value) for name, value in metrics.items()}

    def learn(self, t: Transition) -> dict[str, Tensor]:
        """One gradient step on :meth:`loss`, with the target and the averaged network behind it; what to log."""
        loss, metrics = self.loss(t)
        self.step_optimizer(self.optimizer, loss)
        self.move_target(self.config.tau)
        self.update_average()
        return metrics

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

    def update_average(self) -> None:
        r"""Running average :math:`\bar\theta \leftarrow \beta \bar\theta + (1 - \beta) \theta`, shorter at first."""
        beta = min(self.config.ema_decay, self.updates / (self.updates + 10))
        self.move_average(1 - beta)

    def step_optimizer(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        """One guarded step at the schedule's learning rate."""
        lr_fraction = linear_schedule(1.0, self.config.lr_final_fraction, 1.0, self.progress)
        guarded_step(optimizer, self.modules(), loss, self.config.max_grad_norm, self.updates, lr_fraction)

    # saving ------------------------------------------------------------------------------------------------------

    def modules(self) -> dict[str, nn.Module]:
        """Networks, by name."""
        return {'network': self.network, 'target': self.target, 'averaged': self.averaged}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Optimizers, by name."""
        return {'optimizer': self.optimizer}

    def generators(self) -> dict[str, torch.Generator]:
        """Random generators, by name."""
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
        restore(self.generators(), state['rng'])

    def policy_state(self) -> dict[str, Any]:
        acts = {name: m.state_dict() for name, m in self.modules().items() if name not in self.training_only}
        return {'env_steps': self.env_steps, 'updates': self.updates, 'modules': acts}

    def load_policy(self, state: dict[str, Any]) -> None:
        self.env_steps, self.updates = state['env_steps'], state['updates']
        saved = state['modules']
        for name, module in self.modules().items():
            source = name if name in saved else self.training_only[name]
            if source is not None:
                module.load_state_dict(saved[source])


def make_replay(spec: GraphEnvSpec, replay_size: int, share: bool) -> GraphReplay:
    """The replay of a method.

    Raises:
        ValueError: Names the option ``replay_size`` if that is too small, or too large for the free memory.
    """
    least = least_capacity(spec)
    if replay_size < least:
        raise ValueError(
            f"'replay_size' must be at least {least:,}, three graphs for each of 'num_envs' {spec.num_envs:,} (got "
            f'{replay_size:,}). Raise --replay-size, or lower --num-envs.'
        )
    try:
        return GraphReplay(spec, replay_size, share=share)
    except ReplayMemoryError as error:
        raise ValueError(
            f"'replay_size' of {replay_size:,} graphs, each of up to {spec.max_nodes:,} nodes and {spec.max_edges:,} "
            f'edges, takes {error.needed:,.2f} GiB: expected at most the {error.free:,.2f} GiB that the machine has '
            f'free. Lower --replay-size.'
        ) from error
