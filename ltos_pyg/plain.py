"""What a checkpoint may hold: tensors and plain containers, which load without running anyone's code."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor


def check_plain(value: Any, where: str) -> None:
    """Raises a ``ValueError`` if a state has an entry that could not be loaded safely; names the first one."""
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            if type(key) not in (str, int):
                raise ValueError(f"'{where}' needs str or int as keys (got {key!r}, a {type(key).__name__})")
            check_plain(item, f'{where}[{key!r}]')
    elif type(value) in (list, tuple):
        for i, item in enumerate(value):
            check_plain(item, f'{where}[{i}]')
    elif not isinstance(value, Tensor) and type(value) not in (str, int, float, bool, type(None)):
        raise ValueError(
            f"'{where}' must be a dict, list, tuple, tensor, str, int, float, bool or None (got "
            f'{type(value).__name__}). Turn arrays into tensors with torch.from_numpy, objects into their state_dict().'
        )
