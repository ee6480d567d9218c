"""Compilation by Numba for the traffic engine: without reordering, cached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ltos_pyg.jit import jit as compiled

EXACT: dict[str, Any] = {'nogil': True, 'error_model': 'numpy', 'fastmath': False}
BARE: dict[str, Any] = {'_nrt': False, 'forceinline': True}


def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compiles at the first call; later processes read the cache.

    No fastmath: sums are not reordered and products are not fused, as results must equal CityFlow's to the bit. Each
    function is called with one signature only, so that processes that start at the same time write the same files, each
    atomically.
    """
    return compiled(**EXACT, **options)(function)


def bare_jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """:func:`jit` for functions that create no arrays: without reference counting, which took half of the engine's
    time.

    (Counts are atomic, and all threads use the same arrays.)
    """
    return jit(function, **BARE)
