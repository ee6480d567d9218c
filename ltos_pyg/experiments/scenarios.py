"""The scenarios by name: their environments, the options that each algorithm starts from, and how they are drawn."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltos_pyg.algos import ALGORITHMS, Algorithm
from ltos_pyg.envs import DilemmasConfig, DilemmasEnv, JungleConfig, JungleEnv, PrisonerEnv
from ltos_pyg.envs.traffic import TrafficConfig, make_traffic
from ltos_pyg.graph_env import GraphEnv
from ltos_pyg.training.config import TrainConfig, check_device
from ltos_pyg.training.run import MakeEnv, RunConfig, load_algorithm

Options = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class PrisonerConfig:
    """The options of :class:`~ltos_pyg.envs.PrisonerEnv`."""

    length: int = 9  # cells of the corridor
    horizon: int = 50  # steps after which an episode is cut off
    cost: float = 0.01  # of each action


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A named environment with the options that runs on it start from."""

    name: str
    env_config: type
    make: Callable[[Any, int, str], GraphEnv]  # from (env options, number of graphs, device)
    headline: str  # the metric that says how good a policy is
    train: Options = field(default_factory=dict)
    algorithm: Options = field(default_factory=dict)  # for every algorithm
    # (algorithm, preset) -> options of the algorithm; 'num_envs' is the loop's, and 'env' holds the environment's
    presets: Mapping[tuple[str, str], Options] = field(default_factory=dict)

    def config(self, algo: str, preset: str = 'default') -> RunConfig:
        """The options of a preset.

        Raises:
            ValueError: If there is no such algorithm or preset; lists those that there are.
        """
        if algo not in ALGORITHMS:
            raise ValueError(f"unknown algorithm '{algo}'. Choose one of: {', '.join(ALGORITHMS)}")
        known = sorted({'default', *(p for a, p in self.presets if a == algo)})
        if preset not in known:
            raise ValueError(f"unknown preset '{preset}' of {algo} on {self.name}. Choose one of: {', '.join(known)}")
        config_class = ALGORITHMS[algo][1]
        names = {f.name for f in dataclasses.fields(config_class)}
        chosen = dict(self.presets.get((algo, preset), {}))
        train = dict(self.train) | ({'num_envs': chosen.pop('num_envs')} if 'num_envs' in chosen else {})
        chosen_env = chosen.pop('env', {})
        options = {k: v for k, v in self.algorithm.items() if k in names} | chosen
        return RunConfig(
            scenario=self.name,
            algo=algo,
            preset=preset,
            env=self.env_config(**chosen_env),
            algorithm=config_class(**options),
            train=TrainConfig(**train),
        )

    def make_env(self, config: RunConfig) -> MakeEnv:
        """Makes the environment of a run with any number of graphs."""
        check_device(config.train.device)
        return lambda num_envs: self.make(config.env, num_envs, config.train.device)


def _jungle(config: JungleConfig, num_envs: int, device: str) -> GraphEnv:
    backend = 'numba' if device == 'cpu' else 'torch'
    return JungleEnv(num_envs=num_envs, backend=backend, device=device, **dataclasses.asdict(config))


def _prisoner(config: PrisonerConfig, num_envs: int, device: str) -> GraphEnv:
    return PrisonerEnv(num_envs=num_envs, device=device, **dataclasses.asdict(config))


def _dilemmas(config: DilemmasConfig, num_envs: int, device: str) -> GraphEnv:
    return DilemmasEnv(num_envs=num_envs, device=device, **dataclasses.asdict(config))


def _traffic(config: TrafficConfig, num_envs: int, device: str) -> GraphEnv:
    return make_traffic(config, num_envs, device)


# What the authors of DGN published for the jungle.
PAPER_DGN: dict[str, Any] = {
    'gamma': 0.96,
    'n_step': 1,
    'double_q': False,
    'huber': None,
    'lr': 1e-4,
    'lr_end': 1.0,
    'average': 0.0,
    'augment': False,
    'average_views': False,
    'action_gap': 0.0,
    'greedy_fraction': 0.0,
    'encoder_channels': (512,),
}
# The high level as the paper and the code of its authors have it: phi climbs the low level's own critic, starts from an
# own share of 0.8, and takes one step in 70 of Q's (250 of 17,500 there), with small noise on its logits that is held
# for 15 steps. Every fourth env step brings a gradient step, or Q is far from convergence when phi moves.
PAPER_LTOS: dict[str, Any] = {
    'objective': 'gradient',
    'initial_own': 0.8,
    'phi_lr': 1e-3,
    'phi_starts': 0.1,
    'phi_every': 70,
    'wide_start': 0.0,
    'wide_end': 0.0,
    'noise_joint': 0.0,
    'noise_own': 0.25,
    'noise_received': 0.25,
    'noise_local': 1.0,
    'hold_steps': 15,
    'steps_per_update': 4.0,
}

# ConseNet as in the code of NeurComm's authors.
REFERENCE_CONSENET: dict[str, Any] = {'critic': 'recurrent', 'consensus': 'uniform', 'alpha': 0.9}

SMALL: dict[str, Any] = {
    'hidden_channels': 32,
    'encoder_channels': (32,),
    'num_layers': 1,
    'heads': 2,
    'phi_channels': 32,
}

SCENARIOS: dict[str, Scenario] = {
    'jungle': Scenario(
        name='jungle',
        env_config=JungleConfig,
        make=_jungle,
        headline='reward',
        train={'eval_every': 20_000, 'eval_episodes': 20, 'final_episodes': 100},
        algorithm={
            'total_steps': 120_000,
            'gamma': 0.9,
            'action_gap': 0.5,
            'average_views': True,
            'encoder_channels': (256,),
            'steps_per_update': 16.0,
        },
        presets={
            ('ltos', 'paper'): PAPER_DGN | PAPER_LTOS | {'env': {'edge_features': False}},
            ('dgn', 'paper'): PAPER_DGN,
            ('dqn', 'paper'): PAPER_DGN,
            ('fixed_ltos', 'paper'): PAPER_DGN | {'kept': 0.8},
            # On-policy: one gradient step a segment, so few graphs at once, or there are few gradient steps.
            ('neurcomm', 'default'): {'num_envs': 8, 'rollout_steps': 10, 'slots': 8, 'reward_norm': 5.0},
            ('consenet', 'default'): {'num_envs': 8, 'rollout_steps': 10, 'slots': 8},
            ('consenet', 'reference'): (
                {'num_envs': 8, 'rollout_steps': 10, 'slots': 8, 'reward_norm': 5.0} | REFERENCE_CONSENET
            ),
            # LIO: an odd number of segments an episode, or policies would learn from every other one alone.
            ('lio', 'default'): {'num_envs': 8, 'rollout_steps': 8, 'slots': 8, 'pay_cost': 1e-4},
            ('ip', 'default'): {'aggr': 'mean'},
        },
    ),
    'dilemmas': Scenario(
        name='dilemmas',
        env_config=DilemmasConfig,
        make=_dilemmas,
        headline='optimality',
        train={
            'num_envs': 16,
            'eval_every': 4_000,
            'eval_episodes': 50,
            'final_episodes': 200,
            'checkpoint_every': 12_000,
            'log_every': 1_000,
        },
        algorithm=SMALL
        | {
            'total_steps': 40_000,
            'hidden_channels': 64,
            'encoder_channels': (64,),
            'gamma': 0.0,  # one-step games
            'n_step': 1,
            'batch_size': 64,
            'lr': 3e-3,
            'huber': None,
            'replay_size': 50_000,
            'learning_starts': 500,
            'steps_per_update': 16.0,
            'epsilon_end': 0.05,
        },
        presets={('ltos', 'paper'): PAPER_LTOS},
    ),
    'prisoner': Scenario(
        name='prisoner',
        env_config=PrisonerConfig,
        make=_prisoner,
        headline='return',
        train={'num_envs': 16, 'eval_every': 2_000, 'checkpoint_every': 10_000, 'log_every': 500},
        algorithm=SMALL
        | {
            'total_steps': 20_000,
            'gamma': 0.99,
            'n_step': 1,
            'batch_size': 64,
            'lr': 1e-3,
            'replay_size': 5_000,
            'learning_starts': 500,
            'steps_per_update': 16.0,
            'epsilon_end': 0.05,
        },
        presets={
            ('ltos', 'default'): {'total_steps': 12_000},  # it needs no more; the others get 20,000
            ('ltos_edge', 'default'): {'total_steps': 12_000},
            ('ltos', 'paper'): PAPER_LTOS,
            ('qmix', 'default'): {'steps_per_update': 4.0},  # with fewer, a mixing weight often dies, see deviations.md
            ('fixed_ltos', 'default'): {'kept': 0.4},  # at one half, cooperation and a way out of it are worth the same
            ('neurcomm', 'default'): {'rollout_steps': 10, 'alpha': 1.0},  # the sum of both rewards
            ('consenet', 'default'): {'rollout_steps': 5, 'entropy': 0.03, 'critic_lr': 4.0},
            ('consenet', 'reference'): {'rollout_steps': 5} | REFERENCE_CONSENET,
            # From about 1 on, the pay at the start, half of the most, makes the longer way home worth it by itself.
            ('lio', 'default'): {'rollout_steps': 5, 'reward_max': 0.5, 'lr_reward': 1e-2},
            ('ip', 'default'): {'beta': 0.2},  # with 0.05 it never meets cooperation often enough to learn it
        },
    ),
    'traffic': Scenario(
        name='traffic',
        env_config=TrafficConfig,
        make=_traffic,
        headline='duration',  # lower is better
        train={
            'num_envs': 16,
            'eval_every': 14_400,  # 40 episodes of 360 decisions
            'eval_episodes': 1,  # one task, nothing drawn at random: all greedy episodes are one and the same
            'final_episodes': 1,
            'checkpoint_every': 28_800,
            'log_every': 2_880,
        },
        algorithm={
            'total_steps': 144_000,  # 400 episodes
            'gamma': 0.8,
            'action_gap': 0.5,
            'hidden_channels': 64,
            'encoder_channels': (128,),
            'heads': 4,
            'learning_starts': 2_880,
            'steps_per_update': 16.0,
            'replay_size': 20_000,
        },
        presets={
            ('ltos', 'paper'): PAPER_LTOS | {'env': {'edge_features': False}},
            ('neurcomm', 'default'): {'num_envs': 4, 'slots': 4, 'alpha': None, 'reward_norm': 36.0},  # signals of 6x6
            ('consenet', 'default'): {'num_envs': 4, 'slots': 4},
            ('consenet', 'reference'): {'num_envs': 4, 'slots': 4, 'reward_norm': 5.0} | REFERENCE_CONSENET,
            ('lio', 'default'): {'num_envs': 4, 'rollout_steps': 24, 'slots': 4, 'pay_cost': 1e-4},
        },
    ),
}


def scenario(name: str) -> Scenario:
    """The scenario of that name.

    Raises:
        ValueError: If there is none; lists those that there are.
    """
    if name not in SCENARIOS:
        raise ValueError(f"unknown scenario '{name}'. Choose one of: {', '.join(SCENARIOS)}")
    return SCENARIOS[name]


def load_config(folder: Path) -> RunConfig:
    """The configuration of a run folder.

    Raises:
        ValueError: If the folder is no run folder, or its configuration has options that this version does not know.
    """
    path = folder / 'config.json'
    if not path.is_file():
        raise ValueError(f"'{folder}' is no run folder: it has no config.json. Train first: ltos train SCENARIO")
    try:
        plain = json.loads(path.read_text(encoding='utf-8'))
        base = scenario(plain['scenario']).config(plain['algo'])
        return RunConfig(
            scenario=plain['scenario'],
            algo=plain['algo'],
            preset=plain['preset'],
            env=_from_plain(type(base.env), plain['env'], path),
            algorithm=_from_plain(type(base.algorithm), plain['algorithm'], path),
            train=_from_plain(TrainConfig, plain['train'], path),
        )
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"'{path}' is not what a run writes ({type(error).__name__}: {error}). Restore it, or train again."
        ) from error


def load_run(folder: Path, device: str | None = None) -> tuple[Algorithm, GraphEnv]:
    """The trained algorithm of a run folder, and its environment with one graph.

    Args:
        folder: The run folder.
        device: Where the network runs, if not as in training.

    Raises:
        ValueError: As :func:`load_config`, or if there is no checkpoint yet.
    """
    config = load_config(folder)
    if device:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, device=device))
    make_env = scenario(config.scenario).make_env(config)
    return load_algorithm(config, make_env, folder), make_env(1)


def _from_plain(cls: type, plain: dict[str, Any], path: Path) -> Any:
    known = {f.name for f in dataclasses.fields(cls)}
    unknown = sorted(set(plain) - known)
    if unknown:
        raise ValueError(
            f"'{path}' has options that this version of ltos_pyg does not know: {', '.join(unknown)}. "
            f'Use the version named there.'
        )
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()})
