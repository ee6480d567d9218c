"""Compilation by Numba as the traffic engine needs it: in the order written, cached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

EXACT: dict[str, Any] = {'nogil': True, 'error_model': 'numpy', 'fastmath': False}
BARE: dict[str, Any] = {'_nrt': False, 'forceinline': True}


def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compiles at the first call; later processes read the cache.

    No fastmath: sums are not reordered and products are not fused, for the results equal those of another program to
    the bit. Each function is called with one signature only, so that processes that start at once write the same files,
    each moved into place as a whole.
    """
    try:
        return numba.njit(cache=True, **EXACT, **options)(function)
    except RuntimeError:  # neither this folder nor the user's cache can be written to: compile once per process
        return numba.njit(**EXACT, **options)(function)


def bare_jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """:func:`jit` for functions that make no arrays: it counts no references, which took half of the engine's time.

    Counts are atomic, and all threads count the same shared arrays.
    """
    return jit(function, **BARE)
