"""Targets and losses as pure functions, each with its equation; tested against values computed by hand."""

from __future__ import annotations

import torch
from torch import Tensor


def masked(q: Tensor, action_mask: Tensor | None) -> Tensor:
    """Action values with forbidden actions at minus infinity, so that no maximum takes them."""
    return q if action_mask is None else q.masked_fill(~action_mask, -torch.inf)


def td_target(reward: Tensor, discount: Tensor, next_value: Tensor) -> Tensor:
    r"""The temporal-difference target :math:`y = R + d\,V'`.

    Args:
        reward (Tensor): n-step discounted reward sum :math:`R = \sum_k \gamma^k r_{t+k}`.
        discount (Tensor): :math:`d = \gamma^n (1 - \text{terminated})`; a truncated episode bootstraps.
        next_value (Tensor): Value of the successor, of the same shape.
    """
    return reward + discount * next_value


def double_q_value(online: Tensor, target: Tensor, action_mask: Tensor | None = None) -> Tensor:
    r"""Value of the successor with the action chosen by the online network,
    :math:`Q^{-}(s', \arg\max_a Q(s', a))`, after
    `"Deep Reinforcement Learning with Double Q-learning" <https://arxiv.org/abs/1509.06461>`_.
    """
    best = masked(online, action_mask).argmax(-1, keepdim=True)
    return target.gather(-1, best).squeeze(-1)


def gather_next_value(value: Tensor, row: Tensor) -> Tensor:
    """The successor's values (N',) of the agents that acted (N,), by their rows there; 0 if no agent is left."""
    return value.index_select(0, row) if value.size(0) > 0 else value.new_zeros(row.shape)


def gap_to_best(values: Tensor, best: Tensor, taken: Tensor) -> Tensor:
    r"""Gap of the action taken to the best one: :math:`Q(s, a^*) - Q(s, a)`, (M,) from (M, A), (M,) and (M,).

    Advantage learning subtracts a fraction :math:`\alpha` of it from the target. That widens the gap between the best
    action and the others, so that small errors of the network do not change the greedy action: `"Increasing the Action
    Gap: New Operators for Reinforcement Learning" <https://arxiv.org/abs/1512.04860>`_, there with the target network's
    values.
    """
    return (values.gather(-1, best.unsqueeze(-1)) - values.gather(-1, taken.unsqueeze(-1))).squeeze(-1)


def mean(value: Tensor) -> Tensor:
    """The mean, 0 over nothing."""
    return value.sum() / max(value.numel(), 1)


def td_loss(value: Tensor, target: Tensor, delta: float | None = 1.0) -> Tensor:
    """Mean Huber loss of the temporal-difference error, linear beyond ``delta``, or with ``delta=None`` half its mean
    square. 0 without entries."""
    if value.numel() == 0:
        return value.sum()
    if delta is None:
        return 0.5 * (value - target).square().mean()
    return torch.nn.functional.huber_loss(value, target, delta=delta)


def discounted_returns(reward: Tensor, bootstrap: Tensor, goes_on: Tensor, gamma: float) -> Tensor:
    r"""Returns of a segment, :math:`R_t = r_t + \gamma R_{t+1}`, with the bootstrap in place of :math:`R_{t+1}` at the
    segment's end and wherever the episode ends.

    Args:
        reward (Tensor): :math:`(T, \dots)`.
        bootstrap (Tensor): Values of the successors :math:`(T, \dots)`: 0 where the task ended.
        goes_on (Tensor): Whether step t + 1 belongs to the same episode :math:`(T, \dots)` bool.
    """
    returns = torch.empty_like(reward)
    following = bootstrap[-1]
    for t in reversed(range(len(reward))):
        following = reward[t] + gamma * torch.where(goes_on[t], following, bootstrap[t])
        returns[t] = following
    return returns


def soft_value(q: Tensor, log_policy: Tensor, beta: float) -> Tensor:
    r"""Soft value of a policy, :math:`\sum_a \pi(a) (Q(a) - \beta \log \pi(a))`, (N, A) -> (N,).

    The best policy is :math:`\mathrm{softmax}(Q / \beta)`, with the value :math:`\beta \log \sum_a e^{Q(a) / \beta}`,
    after `"Soft Actor-Critic" <https://arxiv.org/abs/1801.01290>`_. Forbidden actions have :math:`\log \pi = -\infty`.
    """
    finite = log_policy.masked_fill(log_policy.isneginf(), 0.0)
    return (log_policy.exp() * (q - beta * finite)).sum(-1)
