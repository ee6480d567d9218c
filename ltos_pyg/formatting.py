"""Numbers and tables as text."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

NAME_BYTES = 200  # longest name of a run folder: file systems allow 255, and files that are being written add some


def rounded(*values: float) -> list[str]:
    """The values with three decimals, or all with one if the size of one is at least 10."""
    digits = 1 if max(map(abs, values), default=0.0) >= 10 else 3
    return [f'{value:.{digits}f}' for value in values]


def as_whole(text: str) -> str:
    """``1e4`` as ``10000``; any other text as it is."""
    if re.fullmatch(r'\d+(\.\d*)?[eE]\+?\d+', text) and float(text).is_integer():
        return str(int(float(text)))
    return text


def finite(content: Any) -> Any:
    """Content for JSON, which has no NaN and no infinity: ``None`` in their place."""
    if isinstance(content, Mapping):
        return {name: finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return '\n'.join(f'| {" | ".join(line)} |' for line in [header, ['---'] * len(header), *rows])


def shortened(name: str, end: str) -> str:
    """The name of a file or folder with this end: one of more than ``NAME_BYTES`` is cut, and then has its hash."""
    if len((name + end).encode()) <= NAME_BYTES:
        return name + end
    end = f'-{hashlib.sha256(name.encode()).hexdigest()[:16]}{end}'
    return name.encode()[: NAME_BYTES - len(end.encode())].decode(errors='ignore') + end
