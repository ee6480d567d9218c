"""The interquartile mean and its bootstrap interval, by hand and against SciPy."""

import numpy as np
import pytest
from scipy import stats

from ltos_pyg.experiments.report import with_interval
from ltos_pyg.experiments.statistics import (
    bootstrap_interval,
    improvement_interval,
    iqm,
    performance_profile,
    probability_of_improvement,
)

SEEDS = np.array([0.31, 0.52, 0.47, 0.9, 0.11, 0.66])


@pytest.mark.parametrize(
    ('values', 'expected'),
    [
        ([5.0], 5.0),
        ([9.0, 1.0, 2.0], 4.0),  # too few to leave any out
        ([9.0, 1.0, 2.0, 4.0], 3.0),
        ([100.0, 3.0, 1.0, -7.0, 2.0], 2.0),
        ([8.0, 1.0, 7.0, 2.0, 6.0, 3.0, 5.0, 100.0], 5.25),
    ],
)
def test_an_interquartile_mean_worked_by_hand(values, expected):
    assert iqm(np.array(values)) == expected


@pytest.mark.parametrize('n', [1, 3, 4, 5, 9])
def test_a_value_that_is_not_a_number_is_no_extreme_to_leave_out(n):
    values = np.arange(float(n))
    values[0] = np.nan
    assert np.isnan(iqm(values))
    assert np.isnan(bootstrap_interval(values)).all()
    assert np.isnan(iqm(np.stack([values, np.ones(n)]))).tolist() == [True, False]
    other = [np.ones(5)]
    for x, y in (([values], other), (other, [values])):
        assert np.isnan(probability_of_improvement(x, y))
        assert np.isnan(improvement_interval(x, y)).all()
    assert with_interval(values) == ('nan' if n == 1 else 'nan [nan, nan]')


@pytest.mark.parametrize('n', range(1, 14))
def test_it_is_the_trimmed_mean_along_the_last_axis(n):
    values = np.random.default_rng(n).normal(size=(3, n))
    assert np.allclose(iqm(values), stats.trim_mean(values, 0.25, axis=-1))


def test_the_interval_is_that_of_scipy():
    # stats.bootstrap((SEEDS,), trim_mean of 0.25, n_resamples=100_000, method='percentile', rng=3)
    assert bootstrap_interval(SEEDS) == pytest.approx((0.26, 0.7325))
    assert bootstrap_interval(SEEDS) == bootstrap_interval(SEEDS)


def test_an_interval_worked_by_hand():
    # One of the 27 resamples is all 1 and one all 4: either is 3.7 % of them, more than the 2.5 % beyond a bound.
    assert bootstrap_interval(np.array([2.0, 1.0, 4.0])) == (1.0, 4.0)
    # 4 of them lie below 5 / 3 and 7 not above it, 20 below 3 and 23 not above it; the quantiles are at 5.4 and 21.6.
    assert bootstrap_interval(np.array([2.0, 1.0, 4.0]), level=0.6) == pytest.approx((5 / 3, 3.0))


def test_each_task_is_resampled_by_itself():
    low, high = np.zeros(3), np.ones(3)
    assert bootstrap_interval(low, high) == (0.5, 0.5)
    mixed = bootstrap_interval(np.concatenate([low, high]))
    assert mixed[0] < 0.5 < mixed[1]


# Stored results of rliable 1.2.0 on these scores, runs x tasks.
X = np.array([[0.8, 0.83], [0.773, 0.711], [0.755, 0.701], [0.806, 0.934], [0.751, 0.738]])
Y = np.array(
    [[0.799, 0.786], [0.761, 0.657], [0.747, 0.82], [0.616, 0.704], [0.56, 0.621], [0.566, 0.726], [0.623, 0.777]]
)
THRESHOLDS = np.array([0.6, 0.7, 0.75, 0.8, 0.9])


def test_definitions_are_those_of_rliable():
    assert iqm(X.ravel()) == pytest.approx(0.7705)
    assert iqm(Y.ravel()) == pytest.approx(0.702)
    assert probability_of_improvement(list(X.T), list(Y.T)) == pytest.approx(0.7571428571428571)
    np.testing.assert_allclose(performance_profile(list(X.T), THRESHOLDS), [1.0, 1.0, 0.7, 0.3, 0.1])
    np.testing.assert_allclose(
        performance_profile(list(Y.T), THRESHOLDS), [0.85714286, 0.57142857, 0.35714286, 0.07142857, 0.0]
    )


def test_probability_of_improvement_counts_ties_half_and_its_interval_holds_it():
    same = [np.array([1.0, 2.0])]
    assert probability_of_improvement(same, same) == 0.5
    assert probability_of_improvement([np.array([3.0])], same) == 1.0
    low, high = improvement_interval(list(X.T), list(Y.T))
    assert 0 <= low < 0.757 < high <= 1
