"""Ranges of options: one check, one form of message."""

from __future__ import annotations

from numbers import Real
from typing import Any

LARGEST_WIDTH = 65_536  # channels of a hidden layer


def check_range(
    options: object,
    *names: str,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    none: str | None = None,
) -> None:
    """Raises a ``ValueError`` for the first of the named options that is out of range, NaN, or no number.

    Args:
        options: The dataclass whose attributes they are. Each entry of a tuple must be in range.
        names: The options.
        least: The smallest value that is allowed.
        above: An exclusive lower bound, if there is no smallest value.
        most: The largest value that is allowed.
        none: End of the message if ``None`` is allowed too, e.g. ``', or None for all'``.
    """
    for name in names:
        value = getattr(options, name)
        if value is None and none is not None:
            continue
        each = isinstance(value, tuple)
        entries = value if each else (value,)
        wrong = [entry for entry in entries if not isinstance(entry, Real)]
        if wrong:
            raise ValueError(f"'{name}' must be a number (got {wrong[0]!r})")
        if all(_is_in_range(entry, least, above, most) for entry in entries):
            continue
        if least is not None and most is not None:
            wanted = f'lie in [{least}, {most}]'
        elif most is not None:
            wanted = f'be at most {most}'
        else:
            wanted = f'be above {above}' if least is None else f'be at least {least}'
        raise ValueError(f"'{name}' must {wanted}{' each' if each else ''}{none or ''} (got {value})")


def _is_in_range(value: Any, least: float | None, above: float | None, most: float | None) -> bool:
    return bool(
        (least is None or value >= least) and (above is None or value > above) and (most is None or value <= most)
    )
