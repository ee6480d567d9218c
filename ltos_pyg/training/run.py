"""A run and its folder: what was asked for, what came of it, and how to take it up again."""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ltos_pyg import __version__
from ltos_pyg.algos import ALGORITHMS, Algorithm
from ltos_pyg.graph_env import GraphEnv, GraphEnvSpec
from ltos_pyg.training.checkpoint import CheckpointStore, atomic_write
from ltos_pyg.training.config import TrainConfig, check_device
from ltos_pyg.training.evaluate import Stat, evaluate_modes
from ltos_pyg.training.logging import MetricsLogger, Sink, TensorBoardSink, WandbSink
from ltos_pyg.training.trainer import Trainer

# Options that may differ when a run is taken up again: they change what is recorded, not what is learned.
RECORDING = ('device', 'threads', 'log_every', 'checkpoint_every', 'tensorboard', 'wandb', 'media', 'final_episodes')

MakeEnv = Callable[[int], GraphEnv]  # from a number of graphs


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run."""

    scenario: str
    algo: str
    preset: str
    env: Any  # options of the environment, a dataclass
    algorithm: Any  # options of the algorithm, a dataclass
    train: TrainConfig
    label: str | None = None  # what tables and plots call the run; it decides nothing

    def __post_init__(self) -> None:
        if self.label is not None and not self.label.strip():
            raise ValueError(f"'label' must not be empty (got {self.label!r}): name the run, or leave it out")

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        named = {} if self.label is None else {'label': self.label}
        return named | {
            'scenario': self.scenario,
            'algo': self.algo,
            'preset': self.preset,
            'seed': self.train.seed,
            'env': dataclasses.asdict(self.env),
            'algorithm': dataclasses.asdict(self.algorithm),
            'train': dataclasses.asdict(self.train),
        }

    def fingerprint(self) -> dict[str, Any]:
        """What a checkpoint must agree with."""
        plain = self.as_dict()
        plain.pop('label', None)
        plain['train'] = {k: v for k, v in plain['train'].items() if k not in RECORDING}
        return plain


def make_algorithm(config: RunConfig, spec: GraphEnvSpec) -> Algorithm:
    """Builds the algorithm that a run asks for."""
    check_device(config.train.device)
    return ALGORITHMS[config.algo][0](spec, config.algorithm, config.train.seed, config.train.device)


def train_run(config: RunConfig, make_env: MakeEnv, folder: Path, resume: bool, headline: str) -> dict[str, Any]:
    """Trains in a run folder, to the end, and returns the final evaluation (also in ``final.json``).

    The folder holds ``config.json`` (options, versions, commit), ``metrics.jsonl``, ``checkpoints/`` and at the end
    ``final.json``.

    Args:
        config: The run.
        make_env: Makes the environment with that many graphs.
        folder: The run folder.
        resume: Whether to go on with what is in the folder.
        headline: The metric that the progress bar shows.

    Raises:
        ValueError: If the folder holds a run and ``resume`` is not asked for, or holds a run of another configuration.
        Interrupted: If the user stopped the run; its state was saved.
    """
    final = folder / 'final.json'
    store = CheckpointStore(folder / 'checkpoints', fingerprint=config.fingerprint())
    saved = store.load_latest(expect=config.fingerprint()) if resume else None
    if resume and final.exists():
        return json.loads(final.read_text(encoding='utf-8'))
    if not resume and (folder / 'config.json').exists():
        raise ValueError(
            f"'{folder}' already holds a run. Go on with it by --resume, or choose another folder by --out."
        )
    torch.set_num_threads(config.train.threads)
    env = make_env(config.train.num_envs)
    algorithm = make_algorithm(config, env.spec)
    write_json(folder / 'config.json', _label_of(folder) | config.as_dict() | provenance())
    sinks = _sinks(config, folder, saved)
    with closing(env), MetricsLogger(folder / 'metrics.jsonl', _resume_step(resume, saved), sinks) as log:
        trainer = Trainer(algorithm, env, make_env, config.train, config.algorithm.total_steps, log, store, headline)
        if saved is not None:
            trainer.load(saved[1])
        trainer.run()
        result = final_evaluation(algorithm, make_env, config.train) | {'seconds': dict(trainer.seconds)}
    write_json(final, result)
    return result


def _label_of(folder: Path) -> dict[str, str]:
    """The label that a run to be resumed was given before, if any."""
    path = folder / 'config.json'
    plain = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
    return {'label': plain['label']} if plain.get('label') else {}


def _resume_step(resume: bool, saved: tuple[int, Any] | None) -> int | None:
    if not resume:
        return None
    return saved[0] if saved is not None else -1  # killed before the first checkpoint: every row is written again


def _sinks(config: RunConfig, folder: Path, saved: tuple[int, Any] | None) -> list[Sink]:
    sinks: list[Sink] = []
    if config.train.tensorboard:
        sinks.append(TensorBoardSink(folder / 'tensorboard', resume_step=None if saved is None else saved[0]))
    if config.train.wandb:
        sinks.append(WandbSink(folder, name=folder.name, config=config.as_dict()))
    return sinks


def final_evaluation(algorithm: Algorithm, make_env: MakeEnv, config: TrainConfig) -> dict[str, Any]:
    """The evaluation that closes a run, on seeds that neither training nor its evaluations used: the policy, and its
    network under other weights, see :func:`~ltos_pyg.training.evaluate.evaluate_modes`."""
    seed = config.eval_seed + 1
    results = evaluate_modes(algorithm, make_env, config.final_episodes, seed)
    return {
        'env_steps': algorithm.env_steps,
        'updates': algorithm.updates,
        'eval_seed': seed,
        'eval': {mode: as_plain(stats) for mode, stats in results.items()},
    }


def as_plain(stats: Mapping[str, Stat]) -> dict[str, dict[str, float]]:
    """Mean, standard deviation and count of every metric, for JSON."""
    return {name: dataclasses.asdict(stat) for name, stat in stats.items()}


def load_algorithm(config: RunConfig, make_env: MakeEnv, folder: Path) -> Algorithm:
    """The trained algorithm of a run folder, from its newest sound checkpoint.

    Raises:
        ValueError: If the folder has no checkpoint, or one of another configuration, or of other networks.
    """
    saved = CheckpointStore(folder / 'checkpoints').load_latest(expect=config.fingerprint(), older=True)
    if saved is None:
        raise ValueError(f"'{folder}' has no checkpoint yet. Train it with: ltos train --resume …")
    with closing(make_env(1)) as env:
        algorithm = make_algorithm(config, env.spec)
    try:
        algorithm.load_policy(saved[1]['algorithm'])
    except (KeyError, RuntimeError) as error:
        found = ' '.join(str(error).split())[:200]
        raise ValueError(
            f"'{folder}' was trained by a version with other networks than this one ({found}). Use that version, see "
            f"'git_commit' in its config.json, or train again."
        ) from error
    return algorithm


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file so that it is either there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2) + '\n'
    atomic_write(path, lambda file: _write(file, text.encode()))


def _write(file: Any, data: bytes) -> None:
    file.write(data)


def provenance() -> dict[str, Any]:
    """What a result was made with: versions, commit, command."""
    import numpy
    import torch_geometric

    return {
        'versions': {
            'ltos_pyg': __version__,
            'python': platform.python_version(),
            'torch': torch.__version__,
            'torch_geometric': torch_geometric.__version__,
            'numpy': numpy.__version__,
        },
        'git_commit': _git_commit(),
        'command': ' '.join(['ltos', *sys.argv[1:]]),
    }


def _git_commit() -> str | None:
    """The commit of the checkout that this code runs from; ``None`` for an installed package."""
    try:
        _git('ls-files', '--error-unmatch', Path(__file__).name)  # a package installed inside a checkout is not of it
        return _git('describe', '--always', '--dirty', '--abbrev=40', '--exclude=*')
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*args: str) -> str:
    command = ['git', '-C', str(Path(__file__).parent), *args]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
