"""`check_range`: every bound from both sides, NaN, tuples and None, and the messages word by word."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest

from ltos_pyg.ranges import as_option, check_range


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


@dataclass(frozen=True)
class Options:
    rate: float = 0.1
    count: int = 3
    flag: bool = False
    name: str = 'a'
    widths: tuple[int, ...] = (8,)
    size: int | None = None
    kept: float | Literal['uniform'] = 'uniform'
    anything: Any = None


@pytest.mark.parametrize(
    ('name', 'value', 'held'),
    [
        ('rate', 1, 1),
        ('count', 1e4, 10_000),
        ('widths', [8, 16], (8, 16)),
        ('widths', 16, (16,)),
        ('size', None, None),
        ('kept', 0.4, 0.4),
        ('count', np.int64(3), 3),
        ('rate', np.float32(0.5), 0.5),
        ('widths', [np.int64(8)], (8,)),
        ('kept', 'uniform', 'uniform'),
        ('anything', {'x': 1}, {'x': 1}),
    ],
)
def test_a_value_becomes_what_the_field_holds(name: str, value: Any, held: Any) -> None:
    assert as_option(Options, name, value) == held
    assert type(as_option(Options, name, value)) is type(held)


@pytest.mark.parametrize(
    ('name', 'value', 'message'),
    [
        ('rate', 'a', "'rate' must be a number (got 'a')"),
        ('rate', True, "'rate' must be a number (got True)"),
        ('count', 2.5, "'count' must be a whole number (got 2.5)"),
        ('flag', 'no', "'flag' must be True or False (got 'no')"),
        ('name', 3, "'name' must be text (got 3)"),
        ('widths', [8, 'x'], "'widths' must be a list, each a whole number (got (8, 'x'))"),
        ('size', 'x', "'size' must be a whole number or None (got 'x')"),
        ('kept', 'half', "'kept' must be a number or 'uniform' (got 'half')"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        as_option(Options, name, value)
