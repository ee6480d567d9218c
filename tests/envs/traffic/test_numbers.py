"""Numbers as CityFlow reads them, against a digit-by-digit account of it."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltos_pyg.envs.traffic.files.numbers import NumberReader, read_number


def digit_by_digit(whole: str, fraction: str, exponent: int) -> float:
    """The reader's account: digits into an integer until it passes 53 bits, then into a double, 17 in all."""
    gathered, power, significant = int(whole), exponent, len(whole) - 1
    digits = list(fraction)
    while digits and gathered <= 2**53 - 1:
        gathered = gathered * 10 + int(digits.pop(0))
        power -= 1
        significant += gathered != 0
    value = float(gathered)
    while digits and significant < 17:
        value = value * 10.0 + int(digits.pop(0))
        power -= 1
        significant += 1
    return value * float(f'1e{power}') if power >= 0 else value / float(f'1e{-power}')


WHOLE = st.integers(0, 10**15 - 1).map(str)
FRACTION = st.text('0123456789', min_size=1, max_size=25)


@given(WHOLE, FRACTION, st.integers(-40, 40))
def test_equals_the_account_of_it(whole, fraction, exponent):
    expected = digit_by_digit(whole, fraction, exponent)
    assert read_number(f'{whole}.{fraction}e{exponent}') == expected
    assert read_number(f'-{whole}.{fraction}E{exponent:+}') == -expected


@given(WHOLE, FRACTION)
def test_is_within_a_few_units_of_the_exact_value(whole, fraction):
    exact = float(f'{whole}.{fraction}')
    assert abs(read_number(f'{whole}.{fraction}') - exact) <= 4 * math.ulp(exact)


@pytest.mark.parametrize(
    'text', ['0.0', '-0.5', '11.111', '1e3', '2.5e-3', '1E+2', '123456789012345.0', '0.000001', '4.9e2']
)
def test_short_numbers_are_exact(text):
    assert read_number(text) == float(text)


def test_long_numbers_are_not():
    texts = [f'0.{k * 123456789012345678 % 10**20:020}' for k in range(1, 100)]
    off = sum(read_number(text) != float(text) for text in texts)
    assert 0 < off < len(texts)


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('1e400', math.inf),
        ('-1e400', -math.inf),
        ('0e400', 0.0),
        ('0.0e-400', 0.0),
        ('1e-330', 0.0),
        ('1e99999999999999999999', math.inf),
        ('1e-99999999999999999999', 0.0),
        ('12345678901234567890123.5', 1.2345678901234568e22),
        ('1234567890123456.75', 1234567890123456.75),
    ],
)
def test_extremes(text, value):
    assert read_number(text) == pytest.approx(value, rel=1e-15)


def test_small_numbers_go_through_two_divisions():
    assert read_number('4.9e-320') == pytest.approx(4.9e-320, rel=1e-2)


def test_reader_plugs_into_json():
    assert json.loads('[1.5, -2e1, 3]', parse_float=NumberReader().__getitem__) == [1.5, -20.0, 3]
