"""Numbers and tables as text."""

from __future__ import annotations

from collections.abc import Sequence


def rounded(*values: float) -> list[str]:
    """The values with three decimals, or all with one if the size of one is at least 10."""
    digits = 1 if max(map(abs, values), default=0.0) >= 10 else 3
    return [f'{value:.{digits}f}' for value in values]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return '\n'.join(f'| {" | ".join(line)} |' for line in [header, ['---'] * len(header), *rows])
