"""How training tries things out: random actions, and random sharing weights that are held for a while."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ltos_pyg.algos.losses import masked


def linear_schedule(start: float, end: float, fraction: float, progress: float) -> float:
    """Goes from ``start`` to ``end`` over the first ``fraction`` of training, then stays. ``progress`` is in [0, 1]."""
    done = min(progress / fraction, 1.0) if fraction > 0 else 1.0
    return start + (end - start) * done


def softmax_choice(
    q: Tensor, temperature: float, generator: torch.Generator, action_mask: Tensor | None = None
) -> Tensor:
    r"""Draws actions (N,) from :math:`\mathrm{softmax}(Q / \tau)` over those allowed, as the argmax of
    :math:`Q + \tau G` with Gumbel noise :math:`G`; the greedy ones for :math:`\tau = 0`."""
    if temperature > 0:
        noise = -torch.empty_like(q).exponential_(generator=generator).log()
        q = q + temperature * noise
    return masked(q, action_mask).argmax(-1)


def epsilon_greedy(
    q: Tensor, epsilon: Tensor | float, generator: torch.Generator, action_mask: Tensor | None = None
) -> Tensor:
    """The best action of each node, or with probability ``epsilon`` (one, or one per node) a random legal one.

    (N, A) -> (N,). With ``epsilon`` 0 no random number is drawn.
    """
    greedy = masked(q, action_mask).argmax(-1)
    if isinstance(epsilon, float) and epsilon <= 0:
        return greedy
    noise = torch.rand(q.shape, generator=generator, device=q.device)
    uniform = masked(noise, action_mask).argmax(-1)  # the largest of i.i.d. draws is a uniform choice
    explore = torch.rand(len(q), generator=generator, device=q.device) < epsilon
    return torch.where(explore, uniform, greedy)


class HeldShares:
    """Random own shares, one per node, held for ``hold`` steps (sharing needs time to change behaviour).

    Args:
        low, high: Own shares are drawn uniformly from [low, high].
        hold: Steps until new ones are drawn; an episode's start draws too.
    """

    def __init__(self, low: float, high: float, hold: int) -> None:
        if not 0 <= low <= high <= 1:
            raise ValueError(f"'low' and 'high' must satisfy 0 <= low <= high <= 1 (got {low} and {high})")
        if hold < 1:
            raise ValueError(f"'hold' must be at least 1 (got {hold})")
        self.low, self.high, self.hold = low, high, hold
        self._own: Tensor | None = None  # (N,)
        self._age: Tensor | None = None  # (B,) steps since the draw

    def own(self, batch: Tensor, num_graphs: int, generator: torch.Generator) -> Tensor:
        """The shares to keep now, one per node of the batch, (N,)."""
        fresh = self.low + (self.high - self.low) * torch.rand(len(batch), generator=generator, device=batch.device)
        if self._own is None or self._age is None or len(self._own) != len(batch):
            self._own, self._age = fresh, torch.zeros(num_graphs, dtype=torch.int64, device=batch.device)
            return fresh
        self._own, self._age = self._own.to(batch.device), self._age.to(batch.device)  # a checkpoint is on the CPU
        self._own = torch.where((self._age == 0)[batch], fresh, self._own)
        return self._own

    def step(self, ended: Tensor) -> None:
        """Tells that a step was played and which episodes ended, (B,)."""
        if self._age is not None:
            self._age = torch.where(ended.to(self._age.device), 0, (self._age + 1) % self.hold)

    def restart(self) -> None:
        """Lets go of all shares: new ones are drawn at the next step."""
        self._own = self._age = None

    def state_dict(self) -> dict[str, Any]:
        """The shares held now."""
        return {'own': self._own, 'age': self._age}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to the shares held then."""
        self._own, self._age = state['own'], state['age']
