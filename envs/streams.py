"""One random stream per graph: SplitMix64 counters in an int64 tensor, with the same numbers on every device.

A graph's stream depends only on the seed and on its position in the batch, so it draws the same numbers in a batch of
any size, and its state is one integer. The generator is that of Steele, Lea and Flood, `"Fast Splittable Pseudorandom
Number Generators" <https://doi.org/10.1145/2660193.2660195>`_.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def _signed(bits: int) -> int:
    """The int64 with this 64-bit pattern."""
    return bits - 2**64 if bits >= 2**63 else bits


STEP, FIRST, SECOND = (_signed(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def first_streams(seed: int, num_envs: int, game: str) -> Tensor:
    """The streams of ``num_envs`` graphs :math:`(B,)` int64, from one seed. Games with the same seed differ.

    Raises:
        ValueError: If the seed is not an integer, or below 0.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"'seed' must be an integer of at least 0 (got {seed!r}). Convert arrays with int(seed).")
    state = np.random.SeedSequence([seed, *game.encode()]).generate_state(num_envs, np.uint64)
    return torch.from_numpy(state.view(np.int64))


def draw(streams: Tensor, bound: int) -> Tensor:
    """Advances every stream by one, in place, and returns a number in [0, bound) from each (B,) int64.

    ``bound`` may be up to 2^31; the upper 32 bits are scaled to it, so the probabilities of two numbers differ by at
    most one part in ``2^32 / bound``.
    """
    streams += STEP
    return (_bits(streams) * bound) >> 32


def draw_rows(streams: Tensor, bound: int | Tensor, count: int) -> Tensor:
    """``count`` numbers in [0, bound) from each stream, (B, count): those of ``count`` calls of :func:`draw`. The
    bounds may differ, (count,) or (B, count)."""
    counters = streams.unsqueeze(1) + STEP * torch.arange(1, count + 1, device=streams.device)
    streams.copy_(counters[:, -1])
    return (_bits(counters) * bound) >> 32


def _bits(counters: Tensor) -> Tensor:
    """32 mixed bits of each counter, as numbers of at least 0."""
    z = (counters ^ _shift(counters, 30)) * FIRST
    z = (z ^ _shift(z, 27)) * SECOND
    return _shift(z ^ _shift(z, 31), 32)


def _shift(x: Tensor, by: int) -> Tensor:
    """Logical shift to the right: torch has no unsigned one."""
    return (x >> by) & (2 ** (64 - by) - 1)
