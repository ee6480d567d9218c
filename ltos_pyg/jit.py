"""Compilation by Numba, cached where there is a folder for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def jit(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: :func:`numba.njit` with these options, at the first call. Later processes read the cache.

    Where no cache folder can be written (a read-only machine without a home folder), each process compiles anew.
    ``NUMBA_CACHE_DIR`` names another folder.
    """

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no writable cache folder
            return numba.njit(**options)(function)

    return compiled
