"""Exploration of actions: epsilon-greedy, Boltzmann, and the schedules of both."""

from __future__ import annotations

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
