"""Input checks shared by the games."""

from __future__ import annotations

import torch
from torch import Tensor


def check_count(name: str, value: object, least: int) -> None:
    """Raises a ``ValueError`` unless ``value`` is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"'{name}' must be an integer of at least {least} (got {value!r})")


def check_action(action: Tensor, num_nodes: int, num_actions: int, device: torch.device) -> Tensor:
    """The actions as int64 on the game's device; raises a ``ValueError`` unless they are one valid action per node."""
    if not isinstance(action, Tensor):
        raise ValueError(f"'action' must be a tensor (got {type(action).__name__}). Wrap it with torch.as_tensor.")
    if tuple(action.shape) != (num_nodes,):
        raise ValueError(
            f"'action' needs one entry per node of the current batch: expected shape ({num_nodes},), got "
            f'{tuple(action.shape)}. Was it computed from an older batch?'
        )
    if action.is_floating_point() or action.is_complex() or action.dtype == torch.bool:
        raise ValueError(f"'action' must hold integers (got {action.dtype}). Convert it with .long().")
    low, high = (int(bound) for bound in action.aminmax())
    if low < 0 or high >= num_actions:
        raise ValueError(
            f"'action' must lie in [0, {num_actions - 1}] (got {low}..{high}). Do the Q-values have one column per "
            f'action?'
        )
    return action.to(device, torch.int64)
