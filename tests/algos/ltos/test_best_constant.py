"""The best constant share so far: when it changes, and when it stays."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from ltos_pyg.algos.ltos.search import (
    FIRST_SHARE,
    SHARES,
    BestConstant,
)


def after(differences: dict[int, list[tuple[float, float]]], best: int = 0) -> BestConstant:
    """The constants, of which one was the best, after what two critics found some of them to gain, and others none."""
    constant = BestConstant()
    constant.best.fill_(best)
    for which in sorted(range(1, len(SHARES)), key=lambda which: which in differences):
        for pair in differences.get(which, [(0.0, 0.0)] * 3):
            constant.compare(which, torch.tensor(pair))
    return constant


def test_constants_are_compared_in_turns_and_uniform_sharing_never():
    constant, order = BestConstant(), []
    for _ in range(20):
        order.append(constant.due())
        constant.compare(order[-1], torch.zeros(2))
    assert order == [1 + k % 9 for k in range(20)]


def test_differences_are_averaged_plainly_at_first_and_then_with_a_weight_of_a_twentieth():
    constant = BestConstant()
    for difference in (1.0, 2.0, 6.0):
        constant.compare(4, torch.tensor([difference, -difference]))
    assert_close(constant.value[:, 4], torch.tensor([3.0, -3.0]))
    assert_close(constant.square[:, 4], torch.full((2,), 41 / 3))
    for _ in range(17):
        constant.compare(4, torch.tensor([3.0, -3.0]))
    constant.compare(4, torch.tensor([23.0, 7.0]))  # the 21st
    assert_close(constant.value[:, 4], torch.tensor([3 + 20 / 20, -3 + 10 / 20]))
    assert int(constant.visits[4]) == 21


def test_the_first_constant_stays_until_all_were_compared_three_times():
    constant = BestConstant()
    for k in range(3 * 9 - 1):
        assert constant.kept == FIRST_SHARE, k
        constant.compare(constant.due(), torch.tensor([5.0, 5.0]) if constant.due() == 9 else torch.zeros(2))
    constant.compare(constant.due(), torch.tensor([5.0, 5.0]))
    assert constant.kept == SHARES[9]


def test_constants_that_lead_to_the_same_actions_never_displace_each_other():
    for best in range(len(SHARES)):
        assert after({}, best).kept == SHARES[best]


@pytest.mark.parametrize(
    ('second', 'left'),
    [
        ([0.1, 0.5, 0.9], True),  # .5 with a standard error of sqrt((1.07 / 3 - .25) / 3) = .19
        ([-0.4, 0.1, 0.6], False),  # .1 with .24
        ([-0.1, -0.1, -0.1], False),
    ],
)
def test_uniform_sharing_is_left_only_if_both_critics_gain_more_than_a_standard_error(second, left):
    assert after({2: [(2.0, value) for value in second]}).kept == (SHARES[2] if left else None)


@pytest.mark.parametrize(
    ('new', 'left'),
    [
        ([0.5, 0.5, 0.5], True),  # .3 with a standard error of .19, which is that of the best so far
        ([0.35, 0.35, 0.35], False),  # .15
        ([0.2, 0.6, 1.0], True),  # .4 with .27, of both
        ([0.0, 0.4, 0.8], False),  # .2
    ],
)
def test_a_constant_must_be_better_than_the_best_one_so_far(new, left):
    constant = after({5: [(-0.2, -0.2), (0.2, 0.2), (0.6, 0.6)], 3: [(value, value) for value in new]}, best=5)
    assert constant.kept == (SHARES[3] if left else SHARES[5])


def test_of_several_better_constants_the_one_is_taken_that_is_better_for_certain():
    one_critic_alone, uncertain = [(9.0, 0.2)] * 3, [(2.0, 2.0), (0.0, 0.0), (-1.0, -1.0)]
    constant = after({1: [(0.3, 0.3)] * 3, 2: one_critic_alone, 3: uncertain, 4: [(0.4, 0.35)] * 3})
    assert constant.kept == SHARES[4]


def test_uniform_sharing_comes_back_when_the_best_constant_pays_no_more():
    constant = after({4: [(0.4, 0.4)] * 3})
    for _ in range(60):
        for which in range(1, len(SHARES)):
            constant.compare(which, torch.full((2,), -1.0))
    assert constant.kept is None


def test_the_best_constant_is_saved():
    constant, again = after({1: [(0.3, 0.3)] * 3}), BestConstant()
    again.load_state_dict(constant.state_dict())
    assert again.kept == constant.kept == SHARES[1]
    assert again.due() == constant.due()
    for one in (constant, again):
        one.compare(5, torch.tensor([0.5, 0.4]))
    assert_close(dict(again.state_dict()), dict(constant.state_dict()))
