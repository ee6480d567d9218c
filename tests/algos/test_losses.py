from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ltos_pyg.algos.losses import double_q_value, gap_to_best, masked, mean, td_loss, td_target


def tensor(*values: float) -> Tensor:
    return torch.tensor(values)


# --- temporal differences --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('terminated', 'target', 'square'), [(False, 3.2, 4.84), (True, 0.5, 0.25)])
def test_the_step_worked_by_hand(terminated, target, square):
    q, q_next = tensor(1.0, 2.0), torch.tensor([[3.0, 1.0]])
    best = double_q_value(q_next, q_next)  # one network for both is the plain maximum
    y = td_target(tensor(0.5), tensor(0.9 * (not terminated)), best)
    assert y.item() == pytest.approx(target)
    assert 2 * td_loss(q[:1], y, delta=None).item() == pytest.approx(square)


def test_the_online_network_chooses_and_the_target_network_evaluates():
    online, target = torch.tensor([[1.0, 5.0, 2.0], [9.0, 0.0, 0.0]]), torch.tensor([[7.0, 3.0, 4.0], [1.0, 2.0, 3.0]])
    assert double_q_value(online, target).tolist() == [3.0, 1.0]
    assert double_q_value(target, target).tolist() == [7.0, 3.0]


def test_a_forbidden_action_has_no_value_however_good_it_looks():
    online, target = torch.tensor([[1.0, 5.0, 2.0]]), torch.tensor([[7.0, 30.0, 4.0]])
    mask = torch.tensor([[True, False, True]])
    assert double_q_value(online, target, mask).tolist() == [4.0]
    assert masked(online, mask).tolist() == [[1.0, -math.inf, 2.0]]
    assert masked(online, None) is online


@pytest.mark.parametrize(
    ('delta', 'expected'),
    [(None, (0.5 * 0.3**2 + 0.5 * 4**2) / 2), (1.0, (0.5 * 0.3**2 + (4 - 0.5)) / 2), (2.0, (0.5 * 0.3**2 + 2 * 3) / 2)],
)
def test_the_huber_loss_is_a_parabola_that_turns_into_a_line(delta, expected):
    loss = td_loss(tensor(1.0, 0.0), tensor(1.3, 4.0), delta)
    assert loss.item() == pytest.approx(expected)


def test_the_gradient_of_the_huber_loss_is_the_clipped_error():
    value = tensor(1.0, 0.0, 0.0).requires_grad_()
    td_loss(value, tensor(1.3, 4.0, -4.0), 1.0).backward()
    assert value.grad.tolist() == pytest.approx([-0.3 / 3, -1 / 3, 1 / 3])


@pytest.mark.parametrize('delta', [None, 1.0])
def test_no_nodes_no_loss_but_a_gradient_nevertheless(delta):
    value = torch.zeros(0, requires_grad=True)
    loss = td_loss(value, torch.zeros(0), delta)
    loss.backward()
    assert loss.item() == 0


def test_the_mean_over_nothing_is_zero():
    assert mean(tensor(1.0, 2.0, 6.0)).item() == 3
    assert mean(torch.zeros(0)).item() == 0


def test_the_gap_to_the_best_action():
    values = torch.tensor([[1.0, 4.0, 2.5], [0.0, -1.0, -3.0]])
    gap = gap_to_best(values, best=torch.tensor([1, 0]), taken=torch.tensor([2, 0]))
    assert gap.tolist() == [1.5, 0.0]
    assert gap_to_best(values[:0], torch.zeros(0).long(), torch.zeros(0).long()).shape == (0,)
