"""Options of an environment: one dataclass each, given as a whole or one by one."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

C = TypeVar('C')


def options_of(cls: type[C], config: C | None, changes: Mapping[str, Any]) -> C:
    """The configuration (default: the defaults) with some of its options changed.

    Raises:
        ValueError: If it is not a ``cls``, or ``cls`` has no such option.
    """
    if config is not None and not isinstance(config, cls):
        raise ValueError(f"'config' must be a {cls.__name__} (got {type(config).__name__})")
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in changes:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise ValueError(
                f"{cls.__name__} has no option '{name}'"
                + (f". Did you mean '{near[0]}'?" if near else f'. Choose from: {", ".join(known)}')
            )
    return dataclasses.replace(cls() if config is None else config, **changes)  # type: ignore[type-var]
