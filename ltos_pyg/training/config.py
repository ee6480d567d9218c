"""Options of the training loop itself."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ltos_pyg.ranges import check_range

if TYPE_CHECKING:
    from ltos_pyg.graph_env import GraphEnv

MakeEnv = Callable[[int], 'GraphEnv']  # from a number of graphs

# Options that may differ when a run is resumed: they change what is recorded, not what is learned. (But rounding may
# differ, and another device draws other random numbers.)
RECORDING = ('device', 'threads', 'log_every', 'checkpoint_every', 'tensorboard', 'wandb', 'media', 'final_episodes')
# Renamed options: name in earlier versions -> current name.
RENAMED: dict[str, dict[str, str]] = {
    'algorithm': {
        'own': 'kept',  # of fixed_ltos
        'initial_own': 'initial_kept',
        'average': 'ema_decay',
        'lr_end': 'lr_final_fraction',
        'steps_per_update': 'train_freq',
        'play_temperature': 'eval_temperature',
        'slots': 'max_neighbours',
    },
    'env': {},
    'train': {},
}
# Options that earlier versions had where they changed nothing: those of message passing, in dqn, qmix and joint_dqn.
WITHOUT_EFFECT = {'algorithm': ('num_layers', 'heads', 'conv'), 'env': (), 'train': ()}
MAX_THREADS = 1024  # several thousand crash the process
ENV_PREFIX = 'env.'  # of an option of the environment whose name is also that of another option
# What determines a run besides its options; an option of an environment may have the same name.
RUN_NAMES = ('scenario', 'algo', 'preset', 'label', 'out', 'config', 'resume', 'imports', 'import', 'help')


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Options of the training loop. All steps are env steps: one step of one graph."""

    seed: int = 0  # seed of all random numbers of the run
    num_envs: int = 32  # parallel episodes
    device: str = 'cpu'  # device of the networks: 'cpu' or 'cuda'
    threads: int = 1  # PyTorch threads; more than one rarely helps at these sizes
    log_every: int = 2_000  # steps between rows of metrics.jsonl
    eval_every: int = 25_000  # steps between greedy evaluations
    eval_episodes: int | None = 100  # episodes of an evaluation; None: one per task, else 4 to 100 by the run's length
    eval_seed: int = 1_000_000  # seed of the evaluation episodes, never used in training
    final_episodes: int | None = 400  # episodes of the final evaluation; None: one per task, else 4 to 400
    checkpoint_every: int = 50_000  # steps between checkpoints (one more at the end and on Ctrl-C)
    tensorboard: bool = False  # write TensorBoard files too (extra 'tensorboard')
    wandb: bool = False  # report to Weights & Biases too (extra 'wandb')
    media: bool = True  # save a learning curve and a GIF of an episode in the run folder at the end (extra 'plot')

    def __post_init__(self) -> None:
        check_range(self, 'num_envs', 'threads', 'log_every', 'eval_every', 'checkpoint_every', least=1)
        check_range(self, 'eval_episodes', 'final_episodes', least=1, none=', or None for a number that fits the run')
        if self.threads > MAX_THREADS:
            raise ValueError(
                f"'threads' must be at most {MAX_THREADS} (got {self.threads}). More than the {os.cpu_count()} cores "
                f'of this machine never help.'
            )
        if self.seed < 0 or self.seed >= 2**32:
            raise ValueError(f"'seed' must lie in [0, 2**32) (got {self.seed})")
        check_range(self, 'eval_seed', least=0)
        if self.seed in (self.eval_seed, self.eval_seed + 1):
            raise ValueError(
                f"'seed' must differ from those of the evaluations, {self.eval_seed} and {self.eval_seed + 1} "
                f'(got {self.seed})'
            )


def check_device(name: str) -> None:
    """Raises a ``ValueError`` unless networks can run on the device and this machine has it."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device('meta')
    if device.type not in ('cpu', 'cuda'):
        raise ValueError(f"'device' must be 'cpu', 'cuda' or 'cuda:N' (got {name!r})")
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"'device' is {name!r}, but PyTorch finds {torch.cuda.device_count()} CUDA devices here. Use --device cpu."
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that determines a run."""

    scenario: str
    algo: str
    preset: str
    env: Any  # options of the environment, a dataclass
    algorithm: Any  # options of the algorithm, a dataclass
    train: TrainConfig
    label: str | None = None  # name of the run in tables and plots; no effect on the results
    imports: tuple[str, ...] = ()  # modules that register the scenario and the algorithm, where a plug-in does

    def __post_init__(self) -> None:
        if self.label is not None and not self.label.strip():
            raise ValueError(f"'label' must not be empty (got {self.label!r}): name the run, or leave it out")

    @property
    def total_steps(self) -> int:
        """Env steps of the run, over which the schedules of its algorithm run."""
        return int(self.algorithm.total_steps)

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        named = {} if self.label is None else {'label': self.label}
        plain = named | {
            'scenario': self.scenario,
            'algo': self.algo,
            'preset': self.preset,
            'seed': self.train.seed,
            'env': dataclasses.asdict(self.env),
            'algorithm': dataclasses.asdict(self.algorithm),
            'train': dataclasses.asdict(self.train),
        }
        return plain | ({'imports': list(self.imports)} if self.imports else {})

    def fingerprint(self) -> dict[str, Any]:
        """The part of the configuration that a checkpoint must match."""
        plain = self.as_dict()
        plain.pop('label', None)
        plain.pop('imports', None)
        plain['train'] = {k: v for k, v in plain['train'].items() if k not in RECORDING}
        return plain


def shared_names(config: RunConfig) -> set[str]:
    """The options of the environment whose name is also that of another option."""
    names = {
        part: {f.name for f in dataclasses.fields(getattr(config, part))} for part in ('train', 'algorithm', 'env')
    }
    return names['env'] & {*names['train'], *names['algorithm'], *RUN_NAMES}


def flags_of(name: str, value: Any) -> list[str]:
    """An option as flags of ``ltos train``, e.g. ``['--num-agents', '20']`` or ``['--no-media']``."""
    prefix = ENV_PREFIX if name.startswith(ENV_PREFIX) else ''
    flag = name.removeprefix(ENV_PREFIX).replace('_', '-')
    if isinstance(value, bool):
        return [f'--{prefix}{flag}' if value else f'--{prefix}no-{flag}']
    values = value if isinstance(value, list | tuple) else [value]
    return [f'--{prefix}{flag}', *map(str, values)]
