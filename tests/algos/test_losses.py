from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ltos_pyg.algos.losses import double_q_value, gap_to_best, masked, sharing_gain, td_loss, td_target


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


def test_the_online_network_chooses_and_the_target_network_tells_the_value():
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


# --- what weights are worth ------------------------------------------------------------------------------------------


def pairs() -> tuple[Tensor, Tensor, Tensor]:
    """Weights of three owners for each of two nodes, and U_ji(a) of each owner and action."""
    rng = torch.Generator().manual_seed(0)
    w = torch.softmax(torch.randn(2, 3, generator=rng, dtype=torch.float64), -1)
    return w, torch.randn(2, 3, 4, generator=rng, dtype=torch.float64), torch.tensor(0.3)


def gain(w: Tensor, u: Tensor, temperature: float) -> Tensor:
    return sharing_gain((w.unsqueeze(-1) * u).sum(1), u.sum(1), temperature).sum()


def test_the_gain_of_a_node_worked_by_hand():
    # values -5, 5 and neighbourhood -2, 2: a spread of sqrt(25 + 0.04), in which they lie 10 / sqrt(25.04) apart
    q, apart = torch.tensor([[0.0, 10.0]]), 10 / math.sqrt(25.04)
    temperature = apart / math.log(3)  # softmax of (0, log 3) is (1/4, 3/4)
    assert sharing_gain(q, torch.tensor([[1.0, 5.0]]), temperature).tolist() == pytest.approx([(3 / 4 - 1 / 4) * 2])


def test_forbidden_actions_have_no_part_in_the_gain():
    w, u, temperature = pairs()
    q, neighbourhood = (w.unsqueeze(-1) * u).sum(1), u.sum(1)
    wider = torch.full((2, 1), -torch.inf), torch.full((2, 1), 1e4)
    q_wider, neighbourhood_wider = (torch.cat(both, dim=1) for both in zip((q, neighbourhood), wider, strict=True))
    expected = sharing_gain(q, neighbourhood, temperature)
    torch.testing.assert_close(sharing_gain(q_wider, neighbourhood_wider, temperature), expected)


def test_firmer_answers_are_hardly_a_gain():
    # to keep is to act on what matters more to oneself, but one would do the same anyway
    own, pair = tensor(5.0, -5.0).expand(2, 2), tensor(1.0, -1.0).expand(2, 2)
    kept = torch.tensor(0.4, requires_grad=True)
    sharing_gain(kept * own + (1 - kept) * pair, own + pair, temperature=0.3).sum().backward()
    assert 0 <= kept.grad.item() < 0.1


def test_there_is_no_gain_where_all_actions_are_alike():
    _, u, temperature = pairs()
    flat = u.mean(-1, keepdim=True).expand_as(u)
    assert gain(torch.ones(2, 3) / 3, flat, temperature).item() == pytest.approx(0)


def test_the_gradient_runs_through_the_weights_alone():
    w, u, temperature = pairs()
    q, neighbourhood = (w.unsqueeze(-1) * u).sum(1).requires_grad_(), u.sum(1).requires_grad_()
    sharing_gain(q, neighbourhood, temperature).sum().backward()
    assert neighbourhood.grad is None
    assert q.grad.abs().min() > 0


def test_the_gradient_is_that_of_finite_differences():
    w, u, temperature = pairs()
    torch.autograd.gradcheck(lambda w: gain(w, u, temperature), w.requires_grad_())


def test_weights_that_change_no_answer_are_worth_nothing():
    # each owner judges the actions alike, so node 0 acts the same whoever pays it; node 1 has owners at odds
    w, u, temperature = pairs()
    alike = u[0, :1].expand(3, 4) + torch.tensor([[0.0], [5.0], [-3.0]])  # what an owner gets anyway does not matter
    u = torch.stack([alike, u[1]])
    w.requires_grad_()
    gain(w, u, temperature).backward()
    moved = w.grad - w.grad.mean(-1, keepdim=True)  # along the simplex
    assert moved[0].abs().max() < 1e-12
    assert moved[1].abs().max() > 1e-3


def test_a_gift_that_turns_a_harmful_answer_pays():
    # node i may attack (it gains 2, its victim loses 4) or not; w_ii = 1 against weights of the victim's reward
    own, victim = tensor(2.0, 0.0), tensor(-4.0, 0.0)
    w = torch.tensor([0.0, 0.4, 0.6, 1.0], requires_grad=True)  # what the victim gives to i
    q = own + w.unsqueeze(-1) * victim
    values = sharing_gain(q, (own + victim).expand(4, 2), temperature=0.1)
    values.sum().backward()
    assert values.diff().min() >= 0
    assert values[0].item() == pytest.approx(-1, abs=1e-3)  # it attacks: one below the mean of -2 and 0
    assert values[-1].item() == pytest.approx(1, abs=1e-3)
    assert w.grad[1:3].min() > 10 * w.grad[[0, 3]].abs().max()  # it pays most where the attacker wavers


def test_the_gap_to_the_best_action():
    values = torch.tensor([[1.0, 4.0, 2.5], [0.0, -1.0, -3.0]])
    gap = gap_to_best(values, best=torch.tensor([1, 0]), taken=torch.tensor([2, 0]))
    assert gap.tolist() == [1.5, 0.0]
    assert gap_to_best(values[:0], torch.zeros(0).long(), torch.zeros(0).long()).shape == (0,)
