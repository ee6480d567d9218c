"""`check_range`: every bound from both sides, NaN, tuples and None, and the messages word by word."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from ltos_pyg.ranges import check_range


@pytest.mark.parametrize(
    ('value', 'bounds', 'message'),
    [
        (1, {'least': 1}, None),
        (0, {'least': 1}, "'n' must be at least 1 (got 0)"),
        (math.nan, {'least': 0}, "'n' must be at least 0 (got nan)"),
        (1e-9, {'above': 0}, None),
        (0.0, {'above': 0}, "'n' must be above 0 (got 0.0)"),
        (math.nan, {'above': 0}, "'n' must be above 0 (got nan)"),
        (1.0, {'least': 0, 'most': 1}, None),
        (1.1, {'least': 0, 'most': 1}, "'n' must lie in [0, 1] (got 1.1)"),
        (-0.1, {'least': 0, 'most': 1}, "'n' must lie in [0, 1] (got -0.1)"),
        (math.nan, {'least': 0, 'most': 1}, "'n' must lie in [0, 1] (got nan)"),
        (2, {'most': 2}, None),
        (3, {'most': 2}, "'n' must be at most 2 (got 3)"),
        ((), {'least': 1}, None),
        ((3, 1), {'least': 1}, None),
        ((3, 0), {'least': 1}, "'n' must be at least 1 each (got (3, 0))"),
        (None, {'least': 1, 'none': ', or None for all'}, None),
        (0, {'least': 1, 'none': ', or None for all'}, "'n' must be at least 1, or None for all (got 0)"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(value: Any, bounds: dict[str, Any], message: str | None) -> None:
    options = SimpleNamespace(fine=1, n=value)
    if message is None:
        check_range(options, 'fine', 'n', **bounds)
        return
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole message is compared)
        check_range(options, 'fine', 'n', **bounds)
    assert str(caught.value) == message
