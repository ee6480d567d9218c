"""Statistics over seeds, after `"Deep Reinforcement Learning at the Edge of the Statistical Precipice"
<https://arxiv.org/abs/2108.13264>`_."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RESAMPLES = 10_000
BOOTSTRAP_SEED = 0  # the same values give the same interval


def iqm(values: Array) -> Any:
    r"""The interquartile mean along the last axis: the mean of what is left without the
    :math:`\lfloor n / 4 \rfloor` lowest and the :math:`\lfloor n / 4 \rfloor` highest values. Of fewer than four
    values it is the mean."""
    n = values.shape[-1]
    return np.sort(values, axis=-1)[..., n // 4 : n - n // 4].mean(-1)


def bootstrap_interval(*strata: Array, level: float = 0.95) -> tuple[float, float]:
    r"""The stratified percentile bootstrap interval of the :func:`iqm` over all values.

    Each of ``RESAMPLES`` resamples draws from each stratum as many values as it has, with replacement; the bounds are
    the :math:`(1 \mp \text{level}) / 2` quantiles of what the resamples give. No bound lies beyond the lowest or
    the highest value, so with few seeds the interval is too narrow: of normal values, the 95 % interval covers the
    true mean in about 76 % of the cases with three seeds, 90 % with five and 94 % with ten.

    Args:
        strata: The values of each task :math:`(n,)`, one per seed; a row of a table is one task.
        level: How much of the resamples lies within.
    """
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    draws = [values[rng.integers(len(values), size=(RESAMPLES, len(values)))] for values in strata]
    low, high = np.quantile(iqm(np.concatenate(draws, axis=1)), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
