"""Compilation by Numba as the traffic engine needs it: in the order written, cached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def jit(function: Callable[..., Any], allocates: bool = True) -> Callable[..., Any]:
    """Compiles at the first call; later processes read the cache.

    No fastmath: sums are not reordered and products are not fused, for the results equal those of another program to
    the bit. Each function is called with one signature only, so that processes that start at once write the same files,
    each moved into place as a whole.
    """
    options: dict[str, Any] = {} if allocates else {'_nrt': False, 'forceinline': True}
    options |= {'nogil': True, 'error_model': 'numpy', 'fastmath': False}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither this folder nor the user's cache can be written to: compile once per process
        return numba.njit(**options)(function)


def bare_jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """:func:`jit` for functions that make no arrays."""
    return jit(function, allocates=False)
