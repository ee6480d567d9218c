"""Named random streams: every generator of a run depends only on the run's seed and on its own name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import torch


def seed_stream(seed: int, *names: str) -> int:
    r"""The 64-bit seed of one named stream, from numpy's
    `SeedSequence <https://numpy.org/doc/stable/reference/random/parallel.html>`_ over the seed and the name's bytes.

    Adding, dropping or reordering other streams does not change it: draws of a replay do not depend on whether an
    explorer exists. Several names form a path, so ``seed_stream(0, 'env', '3')`` is ``seed_stream(0, 'env/3')``.

    Args:
        seed: The seed of the run, in :math:`[0, 2^{32})`.
        names: The name of the stream.

    Raises:
        ValueError: If the seed is out of range or a name is missing or empty.
    """
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise ValueError(f"'seed' must be an integer in [0, 2**32) (got {seed!r}). Use a small one, such as 0.")
    if not names or not all(names):
        raise ValueError(f"'names' must be non-empty (got {names}). Say what the stream is for, e.g. 'replay'.")
    entropy = [int(seed), *'/'.join(names).encode()]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64).item())


def generator(seed: int, name: str, device: torch.device | str = 'cpu') -> torch.Generator:
    """A separate generator for the stream ``name``; the global generators are not used.

    The numbers are reproducible per device: CPU and CUDA draw different numbers from the same seed.
    """
    return torch.Generator(device).manual_seed(seed_stream(seed, name))


def restore(generators: Mapping[str, torch.Generator], states: Mapping[str, torch.Tensor]) -> None:
    """Sets generators to their saved states. A state that was saved on another kind of device has another size and
    cannot be set. The generator then starts again from a seed that the saved state determines."""
    moved = []
    for name, rng in generators.items():
        state = states[name]
        if len(state) == len(rng.get_state()):
            rng.set_state(state)
        else:
            rng.manual_seed(int(np.random.SeedSequence(state.tolist()).generate_state(1, np.uint64).item()))
            moved.append(name)
    if moved:
        warnings.warn(
            'this run was saved on another kind of device, so its random streams cannot be continued: they start anew',
            stacklevel=2,
        )
