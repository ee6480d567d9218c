"""Ranges and types of options: one check, one form of message."""

from __future__ import annotations

import types
import typing
from numbers import Integral, Real
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
    """Raises a ``ValueError`` for the first of the named options that is out of range, NaN, or not a number.

    Args:
        options: The dataclass that has the options. If an option is a tuple, each entry must be in range.
        names: Names of the options to check.
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


def as_option(cls: type, name: str, value: Any) -> Any:
    """Converts a value to the form in which a field of an options dataclass holds it.

    A list becomes a tuple. A single entry becomes a tuple of one if the field is a tuple, and 1e4 becomes 10000 if the
    field is an integer.

    Raises:
        ValueError: If it is not of the field's type.
    """
    try:
        kind = typing.get_type_hints(cls)[name]
    except (KeyError, NameError, TypeError):  # made without annotations, or with some that cannot be resolved here
        kind = Any
    value = tuple(value) if isinstance(value, list) else value
    value = tuple(map(_plain, value)) if isinstance(value, tuple) else _plain(value)
    if typing.get_origin(kind) is tuple and isinstance(value, int | float | str):
        value = (value,)
    if isinstance(value, float) and value.is_integer() and not _is_of(value, kind) and _is_of(int(value), kind):
        value = int(value)
    if not _is_of(value, kind):
        raise ValueError(f"'{name}' must be {_described(kind)} (got {value!r})")
    return value


def _plain(value: Any) -> Any:
    """A NumPy number as a number of Python, which files can hold."""
    return value.item() if isinstance(value, Real) and hasattr(value, 'item') else value


_NUMBERS: dict[Any, type] = {int: Integral, float: Real}


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated type; of types that options do not have, any value is."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return value in parts
    if origin in (typing.Union, types.UnionType):
        return any(_is_of(value, part) for part in parts)
    if origin is tuple:
        each = parts[:1] * len(value) if isinstance(value, tuple) and parts[1:] == (...,) else parts
        return isinstance(value, tuple) and len(each) == len(value) and all(map(_is_of, value, each))
    if kind in _NUMBERS:
        return isinstance(value, _NUMBERS[kind]) and not isinstance(value, bool)
    return kind is Any or not isinstance(kind, type) or isinstance(value, kind)


def _described(kind: Any) -> str:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return ' or '.join(map(repr, parts))
    if origin in (typing.Union, types.UnionType):
        return ' or '.join(map(_described, parts))
    if origin is tuple:
        return 'a list, each ' + _described(parts[0])
    names = {int: 'a whole number', float: 'a number', bool: 'True or False', str: 'text', types.NoneType: 'None'}
    return names.get(kind, getattr(kind, '__name__', str(kind)))
