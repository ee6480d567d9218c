"""Statistics over seeds, after `"Deep Reinforcement Learning at the Edge of the Statistical Precipice"
<https://arxiv.org/abs/2108.13264>`_."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RESAMPLES = 10_000
IMPROVEMENT_RESAMPLES = 2_000
BOOTSTRAP_SEED = 0  # the same values give the same interval


def iqm(values: Array) -> Any:
    r"""The interquartile mean along the last axis: the mean of what is left without the
    :math:`\lfloor n / 4 \rfloor` lowest and the :math:`\lfloor n / 4 \rfloor` highest values. Of fewer than four
    values it is the mean. It is NaN if one of the values is: a run that diverged is no extreme to leave out."""
    n = values.shape[-1]
    middle = np.sort(values, axis=-1)[..., n // 4 : n - n // 4].mean(-1)
    return np.where(np.isnan(values).any(-1), np.nan, middle)[()]


def bootstrap_interval(*strata: Array, level: float = 0.95) -> tuple[float, float]:
    r"""The stratified percentile bootstrap interval of the :func:`iqm` over all values.

    Each of ``RESAMPLES`` resamples draws from each stratum as many values as it has, with replacement; the bounds are
    the :math:`(1 \mp \text{level}) / 2` quantiles of what the resamples give. No bound lies beyond the lowest or
    the highest value, so with few seeds the interval is too narrow: of normal values, the 95 % interval covers the
    true mean in about 76 % of the cases with three seeds, 90 % with five and 94 % with ten.

    Args:
        strata: The values of each task :math:`(n,)`, one per seed; a row of a table is one task. If one of them is
            NaN, so are the bounds.
        level: How much of the resamples lies within.
    """
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    draws = [values[rng.integers(len(values), size=(RESAMPLES, len(values)))] for values in strata]
    low, high = np.quantile(iqm(np.concatenate(draws, axis=1)), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def probability_of_improvement(x: Sequence[Array], y: Sequence[Array]) -> float:
    r"""The probability that a run of X is better than one of Y, mean over tasks:

    .. math::
        \frac1M \sum_m \frac{1}{n_m k_m} \sum_{i, j} \Big([x_{mi} > y_{mj}] + \tfrac12 [x_{mi} = y_{mj}]\Big)

    It is NaN if one of the values is, for NaN is neither better nor worse.

    Args:
        x: The values of X, one array :math:`(n_m,)` a task; higher is better.
        y: Those of Y, for the same tasks.
    """
    if _has_nan([*x, *y]):
        return np.nan
    wins = [np.mean((a[:, None] > b) + 0.5 * (a[:, None] == b)) for a, b in zip(x, y, strict=True)]
    return float(np.mean(wins))


def improvement_interval(x: Sequence[Array], y: Sequence[Array], level: float = 0.95) -> tuple[float, float]:
    """The stratified bootstrap interval of :func:`probability_of_improvement`."""
    if _has_nan([*x, *y]):
        return np.nan, np.nan
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    draws = np.zeros(IMPROVEMENT_RESAMPLES)
    for a, b in zip(x, y, strict=True):
        drawn_a = a[rng.integers(len(a), size=(IMPROVEMENT_RESAMPLES, len(a), 1))]
        drawn_b = b[rng.integers(len(b), size=(IMPROVEMENT_RESAMPLES, 1, len(b)))]
        draws += ((drawn_a > drawn_b) + 0.5 * (drawn_a == drawn_b)).mean((1, 2)) / len(x)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def performance_profile(values: Sequence[Array], threshold: Array) -> Array:
    r"""The fraction of runs with a value above each threshold, mean over tasks:
    :math:`\hat F(\tau) = \frac1M \sum_m \frac1{n_m} \sum_i [x_{mi} > \tau]`.

    Shapes:
        - **input:** one array :math:`(n_m,)` a task, thresholds :math:`(T,)`
        - **output:** :math:`(T,)`
    """
    above = [(task[:, None] > threshold).mean(0) for task in values]
    return np.asarray(np.mean(above, axis=0), float)


def _has_nan(values: Sequence[Array]) -> bool:
    return any(bool(np.isnan(task).any()) for task in values)
