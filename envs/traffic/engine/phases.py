"""Input check of phases."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..files.road_network import RoadNetwork


def check_phases(phase: npt.NDArray[np.integer[Any]], network: RoadNetwork, num_envs: int) -> npt.NDArray[np.int64]:
    """The phases of all signals, (B, I), as int64; raises a ``ValueError`` if a signal has no such phase."""
    array = np.asarray(phase)
    if array.shape != (num_envs, network.num_signals):
        raise ValueError(
            f"'phase' needs one entry per episode and signal: expected shape {(num_envs, network.num_signals)}, got "
            f'{array.shape}'
        )
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"'phase' must hold integers (got {array.dtype}). Convert it with .astype(int).")
    wrong = (array < 0) | (array >= network.num_phases)
    if wrong.any():
        b, i = (int(n[0]) for n in wrong.nonzero())
        raise ValueError(
            f"'phase' of signal '{network.signal_ids[i]}' in episode {b} must lie in [0, {network.num_phases[i] - 1}] "
            f'(got {array[b, i]})'
        )
    return array.astype(np.int64)
