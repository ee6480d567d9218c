from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ltos_pyg.algos.exploration import epsilon_greedy, linear_schedule, softmax_choice


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- schedules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('progress', 'expected'),
    [(0.0, 1.0), (0.1, 0.755), (0.2, 0.51), (0.4, 0.02), (0.7, 0.02), (1.0, 0.02), (1.5, 0.02)],
)
def test_a_schedule_falls_in_a_line_and_then_stays(progress, expected):
    assert linear_schedule(1.0, 0.02, 0.4, progress) == pytest.approx(expected)


def test_a_schedule_may_rise_take_the_whole_of_training_or_no_time_at_all():
    assert linear_schedule(0.2, 0.6, 1.0, 0.5) == pytest.approx(0.4)
    assert linear_schedule(1.0, 0.1, 0.0, 0.0) == pytest.approx(0.1)


# --- actions ---------------------------------------------------------------------------------------------------------

NODES = 40_000


def frequencies(action: Tensor, num_actions: int) -> list[float]:
    return (torch.bincount(action, minlength=num_actions) / len(action)).tolist()


def test_without_epsilon_the_best_action_is_taken_and_no_rng_is_used():
    q, generator = torch.randn(100, 4, generator=rng()), rng(1)
    before = generator.get_state()
    assert torch.equal(epsilon_greedy(q, 0.0, generator), q.argmax(-1))
    assert torch.equal(generator.get_state(), before)


def test_epsilon_is_the_chance_of_a_uniform_action():
    q = torch.tensor([0.0, 3.0, 1.0, 2.0]).expand(NODES, 4)
    action = epsilon_greedy(q, 0.4, rng())
    assert frequencies(action, 4) == pytest.approx([0.1, 0.7, 0.1, 0.1], abs=0.01)  # 4 standard deviations or more


def test_softmax_draws_each_legal_action_by_its_value():
    q = torch.tensor([0.0, 0.2, 5.0, 0.1]).expand(NODES, 4)
    mask = torch.tensor([True, True, False, True]).expand(NODES, 4)
    action = softmax_choice(q, 0.1, rng(), mask)
    weights = [1.0, math.e**2, 0.0, math.e]
    assert frequencies(action, 4) == pytest.approx([w / sum(weights) for w in weights], abs=0.01)


def test_softmax_at_temperature_zero_is_greedy_and_uses_no_rng():
    q, generator = torch.randn(100, 4, generator=rng()), rng(1)
    before = generator.get_state()
    assert torch.equal(softmax_choice(q, 0.0, generator), q.argmax(-1))
    assert torch.equal(generator.get_state(), before)


def test_random_actions_are_uniform_over_the_legal_ones():
    q = torch.tensor([0.0, 3.0, 1.0, 2.0]).expand(NODES, 4)
    mask = torch.tensor([True, False, True, True]).expand(NODES, 4)
    action = epsilon_greedy(q, 0.6, rng(), mask)
    assert frequencies(action, 4) == pytest.approx([0.2, 0.0, 0.2, 0.6], abs=0.01)


@pytest.mark.parametrize('epsilon', [0.0, 0.5, 1.0])
def test_no_mask_is_ever_violated(epsilon):
    generator = rng()
    mask = torch.rand(NODES, 5, generator=generator) < 0.4
    mask[torch.arange(NODES), torch.randint(5, (NODES,), generator=generator)] = True
    q = torch.randn(NODES, 5, generator=generator)
    action = epsilon_greedy(q, epsilon, generator, mask)
    assert mask.gather(1, action.unsqueeze(1)).all()


def test_a_draw_of_zero_does_not_make_a_forbidden_action_legal(monkeypatch):
    # torch.rand gives exactly 0 once in 2^24 draws, too seldom to wait for
    monkeypatch.setattr(torch, 'rand', lambda size, **_: torch.zeros(size))
    mask = torch.tensor([[False, False, True]])
    assert epsilon_greedy(torch.zeros(1, 3), 0.5, rng(), mask).tolist() == [2]


def test_there_may_be_no_nodes():
    for mask in (None, torch.zeros(0, 3, dtype=torch.bool)):
        assert epsilon_greedy(torch.zeros(0, 3), 0.5, rng(), mask).shape == (0,)


def test_the_same_generator_gives_the_same_actions_and_global_rng_is_left_alone():
    q, before = torch.randn(50, 4, generator=rng()), torch.get_rng_state()
    assert torch.equal(epsilon_greedy(q, 0.5, rng(1)), epsilon_greedy(q, 0.5, rng(1)))
    assert not torch.equal(epsilon_greedy(q, 0.5, rng(1)), epsilon_greedy(q, 0.5, rng(2)))
    assert torch.equal(torch.get_rng_state(), before)
