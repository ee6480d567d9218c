"""Storage of on-policy methods: the newest steps, in order, read once and then discarded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Rollout:
    """The steps of one segment, each a set of named tensors whose shapes are the same at every step.

    Ragged graphs have such shapes in the :class:`~ltos_pyg.nn.AgentLayout`.

    Args:
        length: Steps of a segment, T.

    Raises:
        ValueError: If the length is below 1, a step has other names or shapes than the first, or the segment is full.
    """

    def __init__(self, length: int) -> None:
        if length < 1:
            raise ValueError(f"'length' must be at least 1 (got {length})")
        self.length = length
        self.steps: list[dict[str, Tensor]] = []

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def full(self) -> bool:
        """Whether the segment is complete."""
        return len(self.steps) == self.length

    def push(self, **step: Tensor) -> None:
        """Appends one step."""
        if self.full:
            raise ValueError(f'the segment has its {self.length} steps already: read and clear() it first')
        if self.steps:
            first = {name: tuple(value.shape) for name, value in self.steps[0].items()}
            now = {name: tuple(value.shape) for name, value in step.items()}
            if now != first:
                raise ValueError(
                    f"'step' must have the names and shapes of the segment's first: expected {first}, got {now}. "
                    f'Did the number of graphs change without restart_episodes()?'
                )
        self.steps.append(step)

    def read(self) -> dict[str, Tensor]:
        """All steps, stacked along a new first axis (T, …)."""
        if not self.steps:
            raise ValueError('the segment is empty: push() steps first')
        return {name: torch.stack([step[name] for step in self.steps]) for name in self.steps[0]}

    def clear(self) -> None:
        """Removes all steps."""
        self.steps = []

    def state_dict(self) -> dict[str, Any]:
        """The stored steps."""
        return {'steps': [dict(step) for step in self.steps]}

    def load_state_dict(self, state: dict[str, Any], device: torch.device | str = 'cpu') -> None:
        """Restores saved steps."""
        self.steps = [{name: value.to(device) for name, value in step.items()} for step in state['steps']]
