"""Options of the training loop itself."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from ltos_pyg.ranges import check_range

MAX_THREADS = 1024  # some thousands crash the process


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a run is driven and recorded. Steps are env steps: one graph, one step."""

    seed: int = 0
    num_envs: int = 32  # episodes played at once
    device: str = 'cpu'  # or 'cuda'
    threads: int = 1  # of PyTorch; more rarely helps at these sizes
    log_every: int = 2_000  # steps between rows of metrics.jsonl
    eval_every: int = 25_000  # steps between greedy evaluations
    eval_episodes: int = 100  # episodes of each
    eval_seed: int = 1_000_000  # seed of the evaluation episodes, never used in training
    final_episodes: int = 400  # episodes of the evaluation at the end
    checkpoint_every: int = 50_000  # steps between checkpoints (one more at the end and on Ctrl-C)
    tensorboard: bool = False  # write TensorBoard files too (extra 'tensorboard')
    wandb: bool = False  # report to Weights & Biases too (extra 'wandb')
    media: bool = True  # leave a curve and a GIF in the run folder at the end (extra 'plot')

    def __post_init__(self) -> None:
        check_range(self, 'num_envs', 'threads', 'log_every', 'eval_every', 'checkpoint_every', least=1)
        check_range(self, 'eval_episodes', 'final_episodes', least=1)
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
    """Raises a ``ValueError`` unless the device is one that networks can live on, and this machine has it."""
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
