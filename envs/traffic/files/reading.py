"""Checked reading of JSON files: each fault is a ``ValueError`` that names file, element and field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from reprlib import Repr
from typing import Any

import numpy as np
import numpy.typing as npt

from .numbers import NumberReader

MOST_BYTES = 512 * 2**20
LONGEST_ID = 256
LONGEST_SHOWN = 80
FARTHEST = 1e7  # metres

_short = Repr()
_short.maxstring = _short.maxother = 60


def show(value: Any) -> str:
    """A value as shown in errors, shortened."""
    text = _short.repr(value)
    return text if len(text) <= LONGEST_SHOWN else f'{text[:LONGEST_SHOWN]} ...'


def read_json(path: str | Path, what: str, opening: str) -> Any:
    """The file's content, with numbers as CityFlow reads them.

    Args:
        path: The file.
        what (str): Its name in errors.
        opening (str): The bracket it must begin with.
    """
    file = Path(path)
    try:
        size = file.stat().st_size
        if size > MOST_BYTES:
            raise ValueError(f"{what} '{file}' is too large: {size} bytes, at most {MOST_BYTES} are read")
        text = file.read_text(encoding='utf-8')
    except OSError as error:
        raise ValueError(f"{what} '{file}' cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} '{file}' is not text in UTF-8 (byte {error.start}): not JSON") from error
    start = text[:4096].lstrip()[:1]
    if not start:
        raise ValueError(f"{what} '{file}' is empty: expected JSON that begins with '{opening}'")
    if start != opening:
        raise ValueError(f"{what} '{file}' must be JSON that begins with '{opening}' (got {start!r})")
    try:
        return json.loads(text, parse_float=NumberReader().__getitem__)
    except RecursionError:
        raise ValueError(f"{what} '{file}' is nested too deep") from None
    except ValueError as error:
        raise ValueError(f"{what} '{file}' is not valid JSON: {error}") from error


class Element:
    """A JSON object with its place in the file, for errors."""

    __slots__ = ('_fields', 'place')

    def __init__(self, value: Any, place: str) -> None:
        self.place = place
        if not isinstance(value, dict):
            raise self.fault(f'must be an object (got {show(value)})')
        self._fields = value

    def fault(self, text: str) -> ValueError:
        return ValueError(f'{self.place}: {text}')

    def fault_at(self, name: str, text: str) -> ValueError:
        return ValueError(f"{self.place}: field '{name}' {text}")

    def has(self, name: str) -> bool:
        return name in self._fields

    def get(self, name: str) -> Any:
        if name not in self._fields:
            raise self.fault_at(name, 'is missing')
        return self._fields[name]

    def text(self, name: str) -> str:
        value = self.get(name)
        if not isinstance(value, str) or not 0 < len(value) <= LONGEST_ID or '\0' in value:
            raise self.fault_at(name, f'must be a text of 1 to {LONGEST_ID} characters (got {show(value)})')
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self._fields.get(name, default)
        if not isinstance(value, bool):
            raise self.fault_at(name, f'must be true or false (got {show(value)})')
        return value

    def number(self, name: str, low: float, high: float, above: bool = False) -> float:
        """A finite number in [low, high], or in (low, high] if ``above``."""
        value = self.get(name)
        fine = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
        if not fine or (above and value == low):
            bracket = '(' if above else '['
            raise self.fault_at(name, f'must be a number in {bracket}{low:g}, {high:g}] (got {show(value)})')
        return float(value)

    def integer(self, name: str, low: int, high: int) -> int:
        value = self.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.fault_at(name, f'must be a whole number in [{low}, {high}] (got {show(value)})')
        return value

    def array(self, name: str, least: int = 0, most: int = 10**9) -> list[Any]:
        value = self.get(name)
        if not isinstance(value, list):
            raise self.fault_at(name, f'must be an array (got {show(value)})')
        if not least <= len(value) <= most:
            bound = f'at least {least}' if len(value) < least else f'at most {most}'
            raise self.fault_at(name, f'must have {bound} items (got {len(value)})')
        return value

    def element(self, name: str) -> Element:
        return Element(self.get(name), f"{self.place}: field '{name}'")

    def elements(self, name: str, least: int = 0, most: int = 10**9) -> Iterator[Element]:
        for i, value in enumerate(self.array(name, least, most)):
            yield Element(value, f"{self.place}: field '{name}', item {i}")

    def index_of(self, name: str, index: dict[str, int], kind: str) -> int:
        """The index of the element that the field names."""
        value = self.get(name)
        if not isinstance(value, str) or value not in index:
            raise self.fault_at(name, f'must be the id of a known {kind} (got {show(value)})')
        return index[value]

    def indices_of(self, name: str, index: dict[str, int], kind: str, least: int = 0) -> list[int]:
        found = []
        for i, value in enumerate(self.array(name, least)):
            if not isinstance(value, str) or value not in index:
                raise self.fault_at(name, f'item {i} must be the id of a known {kind} (got {show(value)})')
            found.append(index[value])
        return found

    def points(self, name: str, least: int, most: int = 10_000) -> npt.NDArray[np.float64]:
        """An array of objects with ``x`` and ``y``, (n, 2)."""
        items = self.array(name, least, most)
        try:
            flat = [c for p in items for c in (p['x'], p['y'])]
            plain = {type(c) for c in flat} <= {int, float} and all(-FARTHEST <= c <= FARTHEST for c in flat)
        except (KeyError, TypeError, IndexError):
            plain = False
        if not plain:  # again, slowly, for the message
            for i, value in enumerate(items):
                point = Element(value, f"{self.place}: field '{name}', item {i}")
                point.number('x', -FARTHEST, FARTHEST)
                point.number('y', -FARTHEST, FARTHEST)
        return np.array(flat, dtype=np.float64).reshape(-1, 2)
