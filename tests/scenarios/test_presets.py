"""Options that scenarios choose for algorithms."""

from __future__ import annotations

import pytest

from ltos_pyg.algos import ALGORITHMS
from ltos_pyg.registry import scenario


@pytest.mark.parametrize('algo', sorted(ALGORITHMS))
def test_on_the_jungle_value_methods_are_evaluated_at_one_temperature_of_q(algo):
    options = scenario('jungle').config(algo).algorithm
    of_q = options.eval_temperature * (options.beta if algo == 'ip' else 1.0)  # IP's policy is softmax(Q / beta)
    others = {'neurcomm': 1.0, 'consenet': 1.0, 'lio': 0.0}  # of the policy itself
    assert of_q == pytest.approx(others.get(algo, 0.02))
    assert scenario('traffic').config('ltos').algorithm.eval_temperature == 0.0


@pytest.mark.parametrize('algo', ['ltos', 'dgn', 'dqn', 'fixed_ltos'])
def test_the_papers_preset_plays_the_best_action(algo):
    assert scenario('jungle').config(algo, 'paper').algorithm.eval_temperature == 0.0
