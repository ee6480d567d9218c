"""One run on several processes (ranks), data-parallel: how they join, start alike, fail together, save and load.

``torchrun --nproc-per-node 2 -m ltos_pyg train …`` starts the processes. What they exchange while they learn is in
:mod:`ltos_pyg.algos.ranks`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ltos_pyg.algos import Algorithm
from ltos_pyg.algos.ranks import Ranks, training_with
from ltos_pyg.launch import launched_rank, local_rank, under_torchrun
from ltos_pyg.seeding import seed_stream
from ltos_pyg.training.checkpoint import CheckpointStore, load_file
from ltos_pyg.training.config import RunConfig, check_device

TIMEOUT = timedelta(days=1)  # that ranks wait for rank 0's evaluations; where one dies, torchrun ends the others

LAST_WORDS = 60.0  # seconds that the other ranks wait for one that failed to close its files and to print its error


@contextmanager
def join(device: str) -> Iterator[Ranks]:
    """Context in which this process is one of the ranks of its run: those that torchrun started, or of the process
    group that the program has already made; else it is the only one.

    CPU tensors are exchanged by gloo, CUDA tensors by nccl; each rank takes the GPU of its number on the machine.

    Raises:
        ValueError: If ``device`` names one GPU for all ranks, this machine has not enough of them, or the program's own
            process group cannot exchange CPU tensors.
    """
    if _has_group():
        _check_group(device)
        with training_with(Ranks(dist.get_rank(), dist.get_world_size())) as ranks:
            yield ranks
    elif under_torchrun():
        cuda = device.startswith('cuda')
        if cuda:
            torch.cuda.set_device(own_device(device))
        dist.init_process_group('cpu:gloo,cuda:nccl' if cuda else 'gloo', timeout=TIMEOUT)
        try:
            with training_with(Ranks(dist.get_rank(), dist.get_world_size())) as ranks:
                yield ranks
        finally:
            dist.destroy_process_group()
    else:
        yield Ranks()


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _check_group(device: str) -> None:
    """Raises a ``ValueError`` unless the program's own process group can train a run."""
    backends = dist.get_backend_config()
    if 'cpu:' not in backends:
        raise ValueError(
            f"the process group must exchange CPU tensors, too: expected 'gloo' or 'cpu:gloo,cuda:nccl' as its backend "
            f"(got '{backends}')"
        )
    if device.startswith('cuda') and dist.get_world_size() > 1 and 'LOCAL_RANK' not in os.environ:
        raise ValueError(
            'each process needs the environment variable LOCAL_RANK, the number of its GPU on this machine (got none). '
            'Set it before the run, or start the processes by torchrun.'
        )


def own_rank() -> int:
    """The rank of this process among those of its run; 0 if the run has one process."""
    return dist.get_rank() if _has_group() else launched_rank()


def own_device(device: str) -> str:
    """The device of this rank."""
    if not device.startswith('cuda'):
        return device
    if device != 'cuda':
        raise ValueError(
            f"'device' must be 'cpu' or 'cuda' under torchrun, where each process has a GPU of its own (got {device!r})"
        )
    device = f'cuda:{local_rank()}'
    check_device(device)
    return device


def own_config(config: RunConfig, ranks: Ranks) -> RunConfig:
    """The configuration by which this rank plays: with its own device, and from rank 1 on with its own seed."""
    if ranks.size == 1:
        return config
    seed = config.train.seed if ranks.first else seed_stream(config.train.seed, 'rank', str(ranks.rank)) >> 32
    train = dataclasses.replace(config.train, seed=seed, device=own_device(config.train.device))
    return dataclasses.replace(config, train=train)


@contextmanager
def together(ranks: Ranks) -> Iterator[None]:
    """Context of work that may fail on some ranks; it ends when all ranks are through. Nothing is exchanged in it.

    If ranks fail, all of them end: the lowest that failed raises its error, the others exit quietly with code 1. They
    wait until it has ended, for torchrun kills all processes when one exits, and it must first close its files and
    print its error.
    """
    failed: Exception | None = None
    try:
        yield
    except Exception as error:
        failed = error
    every = ranks.gather(failed is not None)
    if failed is not None and ranks.rank == every.index(True):
        raise failed
    if any(every):
        ranks.wait_for_end(LAST_WORDS)
        raise SystemExit(1)


def check_support(algorithm: Algorithm, name: str, ranks: Ranks) -> None:
    """Raises a ``ValueError`` unless several ranks can train the algorithm."""
    if ranks.size > 1 and not algorithm.data_parallel:
        raise ValueError(
            f"'{name}' cannot be trained by {ranks.size} processes together: not all that it learns is the mean of "
            f'gradients. Train it in one process, without torchrun.'
        )


def same_weights(algorithm: Any, ranks: Ranks) -> None:
    """Gives every rank the networks of rank 0."""
    if ranks.size > 1:
        ranks.copy_from_first(list(_weights(algorithm).values()))


def check_same_weights(algorithm: Any, ranks: Ranks) -> None:
    """Raises a ``ValueError`` if the networks of the ranks differ in any bit."""
    if ranks.size == 1:
        return
    digest = hashlib.blake2b()
    for weight in _weights(algorithm).values():
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    every = ranks.gather(digest.hexdigest())
    with together(ranks):
        if len(set(every)) > 1:
            raise ValueError(
                f'the networks of the {ranks.size} processes differ at step {algorithm.env_steps:,}: '
                f'{type(algorithm).__name__} changes weights by something that is not equal on all of them. Step '
                f'optimizers by guarded_step only and average all else with ltos_pyg.algos.ranks, or train it in one '
                f'process.'
            )


def _weights(algorithm: Any) -> dict[str, Tensor]:
    modules = algorithm.modules().items()
    return {f'{m}.{n}': weight for m, module in modules for n, weight in module.state_dict().items()}


# --- checkpoints -----------------------------------------------------------------------------------------------------


def check_number(before: int, ranks: Ranks) -> None:
    """Raises a ``ValueError`` unless a run is resumed by as many ranks as trained it."""
    if before != ranks.size:
        how = f'torchrun --nproc-per-node {before} -m ltos_pyg train … --resume' if before > 1 else 'without torchrun'
        raise ValueError(
            f'the run was trained by {before} process{"es" if before > 1 else ""}, each with a replay and episodes of '
            f'its own, and resumes with as many only (got {ranks.size}): {how}'
        )


def save_part(store: CheckpointStore, step: int, state: dict[str, Any], ranks: Ranks) -> None:
    """Saves each rank's part of a checkpoint in its own store; rank 0's last, so that where it exists all others do."""
    with together(ranks):
        if not ranks.first:
            store.save(step, state)
    with together(ranks):
        if ranks.first:
            store.save(step, state)


def load_part(
    store: CheckpointStore, ranks: Ranks, expect: Mapping[str, Any], ignore: Collection[str]
) -> tuple[int, dict[str, Any]] | None:
    """This rank's part of the newest checkpoint whose parts are all valid, as (step, state); ``None`` if no checkpoint
    was completed. Parts of later steps are removed: the resumed run writes them again.

    Raises:
        ValueError: As :meth:`~ltos_pyg.training.checkpoint.CheckpointStore.load_latest`.
    """
    if ranks.size == 1:
        return store.load_latest(expect, ignore=ignore)
    every = ranks.gather(store.sound_steps())
    common = set.intersection(*map(set, every))
    saved = None
    with together(ranks):
        if common:
            saved = load_file(store.path(max(common)), expect, ignore=ignore)
        elif ranks.first and store.steps():
            raise ValueError(
                f"no checkpoint in '{store.folder}' has valid parts of all {ranks.size} processes (steps "
                f'{dict(enumerate(every))}). Restore one from a backup, or start a new run in another folder.'
            )
    forget_after(store, -1 if saved is None else saved[0])
    return saved


def forget_after(store: CheckpointStore, step: int) -> None:
    """Removes the checkpoints of later steps."""
    for later in store.steps():
        if later > step:
            store.path(later).unlink()
