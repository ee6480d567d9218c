"""Crossings lie in CityFlow's order."""

from __future__ import annotations

import numpy as np
import pytest

from ltos_pyg.envs.traffic.files.geometry import _sort_row

# What GCC's std::sort made of the numbers 0 .. n - 1, compared by (7 i) % 5 alone.
SORTED = {
    17: [
        0, 15, 5, 10, 3, 13, 8, 16, 11, 6, 1, 9, 4, 14, 7, 12, 2,
    ],
    40: [
        10, 20, 25, 15, 30, 35, 5, 0, 33, 8, 28, 13, 3, 38, 23, 18, 31, 1, 36, 26, 21, 6, 16, 11, 39, 19, 4, 34,
        9, 29, 14, 24, 12, 27, 32, 7, 17, 37, 2, 22,
    ],
}  # fmt: skip


@pytest.mark.parametrize('n', SORTED)
def test_crossings_at_one_distance_keep_the_order_of_the_sort_that_cityflow_uses(n):
    distance = np.concatenate([np.arange(n) * 7 % 5, np.zeros(n)]).astype(float)
    link = np.concatenate([np.arange(n), np.arange(n)])
    twin = np.concatenate([np.arange(n) + n, np.arange(n)])
    _sort_row(0, n, distance, link, twin)
    assert link[:n].tolist() == SORTED[n]
    assert distance[:n].tolist() == sorted(i * 7 % 5 for i in range(n))
    assert np.array_equal(twin[twin], np.arange(2 * n))
    assert np.array_equal(link[twin[:n]], link[:n])
