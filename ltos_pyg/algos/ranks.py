"""The processes (ranks) that train one run together: what they exchange. In a run of one process, nothing."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class RankError(RuntimeError):
    """Another rank of this run ended, failed, or did not answer in time."""


class Ranks:
    """The ranks of a run, seen by one of them. Every rank must call the same methods in the same order.

    Args:
        rank: This process.
        size: Their number; 1: no process group is needed, and every method returns at once.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    def __repr__(self) -> str:
        return f'{type(self).__name__}(rank={self.rank}, size={self.size})'

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which logs, evaluates and writes results."""
        return self.rank == 0

    def average(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The mean of each tensor over the ranks, equal to the bit on all of them. One rank gets its own tensors."""
        if self.size == 1 or not tensors:
            return list(tensors)
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        with _peers():
            dist.all_reduce(flat)
        parts = flat.div_(self.size).split([tensor.numel() for tensor in tensors])
        return [part.view_as(tensor).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]

    def average_gradients(self, parameters: Sequence[Tensor], loss: Tensor) -> Tensor:
        """Replaces each gradient by its mean over the ranks; returns the mean loss.

        A parameter without a gradient counts as zero where others have one, and stays without where none has.
        """
        if self.size == 1:
            return loss.detach()
        missing = torch.tensor([p.grad is None for p in parameters], dtype=loss.dtype, device=loss.device)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        *means, lacks, mean_loss = self.average([*grads, missing, loss])
        for parameter, mean, lack in zip(parameters, means, lacks.tolist(), strict=True):
            parameter.grad = None if lack == 1 else mean
        return mean_loss

    def least(self, number: int) -> int:
        """The smallest of the ranks' numbers."""
        return self._reduce([number], 'MIN')[0]

    def any(self, *flags: bool) -> list[bool]:
        """Which of the flags are set on any rank."""
        return [flag > 0 for flag in self._reduce(list(map(int, flags)), 'MAX')]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank: plain data, small."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _peers():
            dist.all_gather_object(values, value)
        return values

    def from_first(self, value: Any) -> Any:
        """Rank 0's value: plain data, small."""
        if self.size == 1:
            return value
        box = [value]
        with _peers():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait_for_end(self, seconds: float) -> None:
        """Waits until a rank that does not wait has ended, at most so long."""
        with suppress(RuntimeError):  # its connection was closed, or the time is over
            dist.all_reduce(torch.zeros(1), async_op=True).wait(timedelta(seconds=seconds))
        time.sleep(1)  # it closes the connection before it prints its error

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrites each tensor by rank 0's."""
        if self.size > 1:
            with _peers(), torch.no_grad():
                for tensor in tensors:
                    whole = tensor.contiguous()
                    dist.broadcast(whole, src=0)
                    tensor.copy_(whole)

    def _reduce(self, numbers: list[int], how: str) -> list[int]:
        if self.size == 1:
            return numbers
        tensor = torch.tensor(numbers)  # on the CPU, whatever the device of the networks
        with _peers():
            dist.all_reduce(tensor, getattr(dist.ReduceOp, how))
        return tensor.tolist()


@contextmanager
def _peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        found = textwrap.shorten(str(error), 160, placeholder=' …')
        raise RankError(
            f'another process of this run ended, or did not answer in time ({found}). Look for its own message; then '
            f'start all processes again with --resume, which continues from the last checkpoint, if there is one.'
        ) from error


_ranks = Ranks()


def current() -> Ranks:
    """The ranks of the run that this process trains."""
    return _ranks


@contextmanager
def training_with(ranks: Ranks) -> Iterator[Ranks]:
    """Context in which :func:`current` is these ranks."""
    global _ranks
    before, _ranks = _ranks, ranks
    try:
        yield ranks
    finally:
        _ranks = before
