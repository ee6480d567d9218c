"""JSON numbers as CityFlow reads them.

CityFlow parses with RapidJSON, whose default reader is fast rather than exact: the digits are gathered as an integer of
at most 53 bits and a little more, and the result is multiplied or divided by a power of ten once. The result can differ
from Python's ``float`` by a few units in the last place, and one such unit changes the traffic within an hour.
"""

from __future__ import annotations

EXACT = 2**53 - 1  # digits are gathered as an integer until they pass this
MOST_DIGITS = 17  # significant digits after which more are skipped
POWER = tuple(float(f'1e{p}') for p in range(309))


class NumberReader(dict[str, float]):
    """The value of each text of a number with a point or an exponent, cached.

    Pass ``reader.__getitem__`` to :func:`json.loads` as ``parse_float``. Integers need no such treatment.
    """

    def __missing__(self, text: str) -> float:
        value = self[text] = read_number(text)
        return value


def read_number(text: str) -> float:
    """The value of a JSON number that has a point or an exponent; infinite if it is too large."""
    negative = text[0] == '-'
    mantissa, _, exponent = text.lower().lstrip('-').partition('e')
    whole, _, fraction = mantissa.partition('.')
    value, power = _gather(whole, fraction)
    power += _bounded(exponent)
    value = _scale(value, power)
    return -value if negative else value


def _gather(whole: str, fraction: str) -> tuple[float, int]:
    """The digits as a number, and the remaining power of ten."""
    if len(whole) > 15:
        return _gather_large(whole, fraction)
    digits = (whole + fraction).lstrip('0')
    if len(digits) <= 15:
        return float(int(digits or '0')), -len(fraction)
    count, gathered = 16, int(digits[:16])
    if gathered <= EXACT and len(digits) > 16:
        count, gathered = 17, int(digits[:17])
    value, power = float(gathered), len(digits) - count - len(fraction)
    significant = count - (whole != '0')  # the first digit of the whole part is not counted
    for digit in digits[count:]:
        if significant >= MOST_DIGITS:
            break
        value = value * 10.0 + int(digit)
        power -= 1
        significant += 1
    return value, power


def _gather_large(whole: str, fraction: str) -> tuple[float, int]:
    """Sixteen or more digits before the point."""
    if int(whole[:20]) < 2**64 and len(whole) <= 20:
        value, power, gathered = float(int(whole)), 0, int(whole)
        rest = 0
        while rest < len(fraction) and gathered <= EXACT:
            gathered = gathered * 10 + int(fraction[rest])
            rest += 1
        if rest:
            value, power = float(gathered), -rest
    else:
        value, power, rest = 0.0, 0, 0
        for digit in whole[:400]:  # beyond the largest double
            value = value * 10.0 + int(digit)
    significant = len(whole) - 1 + rest
    for digit in fraction[rest : rest + max(0, MOST_DIGITS - significant)]:
        value = value * 10.0 + int(digit)
        power -= 1
    return value, power


def _bounded(exponent: str) -> int:
    """The exponent, clipped where it makes no difference."""
    if not exponent:
        return 0
    digits = exponent.lstrip('+-').lstrip('0')
    size = int(digits) if digits and len(digits) < 7 else (10**6 if digits else 0)
    return -size if exponent[0] == '-' else size


def _scale(value: float, power: int) -> float:
    if power < -308:
        value, power = value / POWER[308], power + 308
        return 0.0 if power < -308 else value / POWER[-power]
    if power < 0:
        return value / POWER[-power]
    if power > 308:
        return value * float('inf') if value else 0.0
    return value * POWER[power]
