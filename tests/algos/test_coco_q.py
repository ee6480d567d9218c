"""Coco-Q: the value of matrix games, the prisoner's known values, and the laws that every algorithm keeps."""

from __future__ import annotations

import dataclasses
import io
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from algos_zoo import Loop, crowd, differing, flat, jungle
from torch import Tensor

from ltos_pyg.algos import CocoQ, CocoQConfig
from ltos_pyg.algos.coco_q import coco_value, zero_sum_value
from ltos_pyg.data import Snapshot
from ltos_pyg.envs import PrisonerEnv
from ltos_pyg.graph_env import GraphEnv, SingleGraphEnv, SingleStep, VectorGraphEnv, fully_connected

START_VALUES = {1.0: 0.97, 0.99: 0.9504, 0.96: 0.8928, 0.9: 0.7829}
PLANS = {'A': [[-0.01, 0.97], [0.49, 0.99]], 'B': [[0.99, 0.97], [0.49, -0.01]]}  # rows: A left, right; columns: B


def make(env: GraphEnv, seed: int = 0, **options: Any) -> CocoQ:
    return CocoQ(env.spec, CocoQConfig(**{'total_steps': 4_000, 'epsilon_end': 1.0, **options}), seed)


def prisoner(num_envs: int = 8) -> GraphEnv:
    return PrisonerEnv(num_envs)


def learned(updates: int = 500, seed: int = 0, **options: Any) -> CocoQ:
    env = prisoner()
    return Loop(make(env, seed, **options), env, seed).until(updates).algo


# --- matrix games ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('own', 'other', 'expected'),
    [
        ([[-1, -3], [0, -2]], [[-1, 0], [-3, -2]], (-1, -1)),  # prisoner's dilemma
        ([[4, 0], [1, 2]], [[1, 2], [0, 3]], (2, 3)),  # a saddle point
        ([[3, 0], [0, 1]], [[0, 2], [1, 0]], (1.571429, 1.428571)),  # mixed strategies
        ([[5]], [[1]], (5, 1)),  # nothing to choose
        ([[2, 4]], [[0, 1]], (3.5, 1.5)),  # the second alone chooses, and could take 1 from the first
    ],
)
def test_coco_values_worked_by_hand(own, other, expected):
    own, other = np.array(own, float), np.array(other, float)
    assert coco_value(own, other) == pytest.approx(expected, abs=1e-6)
    swapped = coco_value(other.T, own.T)
    assert swapped == pytest.approx(expected[::-1], abs=1e-6)  # the order of the players does not matter
    assert sum(coco_value(own, other)) == pytest.approx((own + other).max())


@pytest.mark.parametrize(
    ('payoff', 'value'),
    [
        ([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], 0.0),  # rock, paper, scissors
        ([[3, -1], [-2, 1]], 1 / 7),
        ([[1, 1], [1, 1]], 1.0),
        ([[0, 2, 4], [3, 1, 0]], 1.5),
        ([[2, 1], [0, 3], [1, 1]], 1.5),
    ],
)
def test_values_of_zero_sum_games(payoff, value):
    payoff = np.array(payoff, float)
    assert zero_sum_value(payoff) == pytest.approx(value)
    assert zero_sum_value(-payoff.T) == pytest.approx(-value)
    assert zero_sum_value(payoff + 5) == pytest.approx(value + 5)


def test_the_value_is_what_linear_programming_finds():
    optimize = pytest.importorskip('scipy.optimize', reason='the oracle is SciPy')
    rng = np.random.default_rng(0)
    for m, n in itertools.product([1, 2, 3, 5, 9], repeat=2):
        for payoff in (rng.normal(size=(m, n)), rng.integers(-2, 3, size=(m, n)).astype(float)):
            bounds = [(0, None)] * m + [(None, None)]
            lp = optimize.linprog(
                [*np.zeros(m), -1],
                A_ub=np.c_[-payoff.T, np.ones(n)],
                b_ub=np.zeros(n),
                A_eq=[[*np.ones(m), 0]],
                b_eq=[1],
                bounds=bounds,
            )
            assert zero_sum_value(payoff) == pytest.approx(-lp.fun, abs=1e-7)


# --- the prisoner ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('gamma', START_VALUES)
def test_exact_iteration_gives_the_prisoners_known_values(gamma):
    """A walks in cells 0 to 4, B in 4 to 8; a race to the middle is a fair coin."""
    ends: dict[tuple[int, int], tuple[float, float]] = {}

    def outcome(a: int, b: int, value: Any) -> Any:
        scored = np.array([a in (0, 4), b in (4, 8)], float)
        return scored - 0.01 + (0 if scored.any() else gamma * np.array(value.get((a, b), (0.0, 0.0))))

    states, value = list(itertools.product(range(1, 4), range(5, 8))), ends
    for _ in range(60):
        new = {}
        for a, b in states:
            q = np.zeros((2, 2, 2))
            for i, j in itertools.product(range(2), repeat=2):
                to = a + 2 * i - 1, b + 2 * j - 1
                race = to[0] == to[1]
                parts = [(to[0], b), (a, to[1])] if race else [to]
                q[:, i, j] = np.mean([outcome(*part, value) for part in parts], axis=0)
            new[a, b] = coco_value(*q)
            if (a, b) == (3, 5):
                start = q
        value = new
    assert value[3, 5] == pytest.approx((START_VALUES[gamma],) * 2, abs=1e-4)
    if gamma == 1:
        np.testing.assert_allclose(start, [PLANS['A'], PLANS['B']], atol=1e-9)


@pytest.mark.parametrize('gamma', [0.99, 0.9])
def test_the_prisoners_values_are_learned(gamma):
    algo, graph = learned(gamma=gamma), prisoner().reset(0)
    values = algo.values(graph).view(8, 2)
    assert values.mean(1).tolist() == pytest.approx([START_VALUES[gamma]] * 8, abs=1e-3)
    assert values.flatten().tolist() == pytest.approx([START_VALUES[gamma]] * 16, abs=0.05)  # races are a coin
    joint = algo.table.q[0].sum(0).max()  # what joint Q-learning finds
    assert joint == pytest.approx(2 * START_VALUES[gamma], abs=2e-3)
    assert torch.equal(algo.act(graph).action, torch.tensor([0, 1]).repeat(8))  # each goes home
    payments = algo.side_payments(graph).view(8, 2)
    assert payments.abs().max() < 0.05  # a fair game needs none
    assert payments.sum(1).abs().max() < 1e-9
    algo.config = dataclasses.replace(algo.config, eval_temperature=10.0)  # they belong to the best, whatever is played
    assert torch.equal(algo.side_payments(graph).view(8, 2), payments)


class Wage(SingleGraphEnv):
    """The second player works for the first: it may earn it 4 at a cost of 1, and each can take 1 alone."""

    num_features, num_actions, max_nodes, symmetric = 1, 2, 2, True

    def start(self) -> Snapshot:
        return Snapshot(x=torch.ones(2, 1), edge_index=fully_connected(2))

    def step(self, action: Tensor) -> SingleStep:
        works = bool(action[1] == 1)
        return SingleStep(self.start(), torch.tensor([4.0, -1.0] if works else [0.0, 1.0]), terminated=True)


def test_an_agent_that_works_for_the_other_is_paid():
    env = VectorGraphEnv(Wage, 4)
    algo = Loop(make(env, rate_power=1.0), env).until(40).algo
    graph = env.reset(0)
    # the best sum is 3; (U - V) / 2 is 2.5 where B works and -0.5 where not, and B would not: 1.5 -+ 0.5
    assert algo.values(graph).tolist() == pytest.approx([1.0, 2.0] * 4)
    assert algo.act(graph).action.view(4, 2)[:, 1].tolist() == [1] * 4
    assert algo.side_payments(graph).tolist() == pytest.approx([-3.0, 3.0] * 4)


# --- the update ------------------------------------------------------------------------------------------------------


class Corridor(SingleGraphEnv):
    """One step to a second state, where it is over or the clock runs out."""

    num_features, num_actions, max_nodes, symmetric = 1, 2, 2, True
    ends = 'terminated'

    def start(self) -> Snapshot:
        self.clock = 0
        return self.look()

    def step(self, action: Tensor) -> SingleStep:
        self.clock += 1
        over = self.clock == 2
        end = {'terminated': over and self.ends == 'terminated', 'truncated': over and self.ends == 'truncated'}
        return SingleStep(self.look(), torch.tensor([1.0, 3.0]), **end)

    def look(self) -> Snapshot:
        return Snapshot(x=torch.full((2, 1), float(self.clock % 2)), edge_index=fully_connected(2))


class CorridorOnAndOn(Corridor):
    ends = 'truncated'


@pytest.mark.parametrize(('game', 'sums'), [(Corridor, (6.0, 4.0)), (CorridorOnAndOn, (8.0, 8.0))])
def test_the_end_of_the_task_has_no_value_and_the_end_of_the_clock_has(game, sums):
    env = VectorGraphEnv(game, 4)
    algo = Loop(make(env, gamma=0.5, rate_power=0.0), env).until(200).algo
    for clock, total in enumerate(sums):
        graph = env.reset(0)
        graph.x = torch.full((8, 1), float(clock))
        assert algo.values(graph).view(4, 2).sum(1).tolist() == pytest.approx([total] * 4)


def test_one_update_by_hand():
    env = VectorGraphEnv(Corridor, 1)
    algo = make(env, gamma=0.5, rate_power=1.0)
    loop = Loop(algo, env).until(1)
    first = int(algo.table.visits[0].argmax())
    assert algo.table.q[0].reshape(2, 4)[:, first].tolist() == [1.0, 3.0]
    loop.until(2)
    algo.table.q[1] = [[[1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]]
    action = first // 2, first % 2
    algo._learn(0, action, (1.0, 3.0), 1)  # the second visit: half of the way to 1 + .5 * 1 and 3 + .5 * 1
    assert algo.table.q[0].reshape(2, 4)[:, first].tolist() == [1.25, 3.25]
    assert algo.table.visits[0].sum() == 2


class Masked(Corridor):
    """What looks best is never allowed."""

    has_action_mask = True

    def step(self, action: Tensor) -> SingleStep:
        assert action.tolist() != [1, 1]
        assert action[1] == 0, 'an illegal action was taken'
        reward = torch.tensor([1.0, 0.0]) * action[0]
        return SingleStep(self.look(), reward, terminated=True)

    def look(self) -> Snapshot:
        mask = torch.tensor([[True, True], [True, False]])
        return Snapshot(x=torch.zeros(2, 1), edge_index=fully_connected(2), action_mask=mask)


def test_forbidden_actions_are_neither_taken_nor_valued():
    env = VectorGraphEnv(Masked, 4)
    algo = Loop(make(env, rate_power=1.0), env).until(30).algo
    graph = env.reset(0)
    assert algo.values(graph).tolist() == pytest.approx([1.0, 0.0] * 4)
    algo.table.q[0, :, :, 1] = 100.0
    assert algo.values(graph).tolist() == pytest.approx([1.0, 0.0] * 4)
    assert algo.act(graph).action.tolist() == [1, 0] * 4


# --- laws of every algorithm -----------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_table_also_after_a_resume():
    whole = flat(learned(60).state_dict())
    assert differing(whole, flat(learned(60).state_dict())) == []
    assert differing(whole, flat(learned(60, seed=1).state_dict())) != []
    env = prisoner()
    loop = Loop(make(env), env).until(30)
    decision = loop.algo.act(loop.graph, explore=True)
    step = env.step(decision.action)
    loop.algo.observe(loop.graph, decision, step)  # one step waits to be learned from
    file = io.BytesIO()
    torch.save({'algo': loop.algo.state_dict(), 'env': env.state_dict()}, file)
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    again = Loop(make(env, seed=3), prisoner(), seed=9)
    again.algo.load_state_dict(state['algo'])
    again.graph = again.env.load_state_dict(state['env'])
    assert again.algo.due_updates == 1
    again.algo.update()
    assert differing(whole, flat(again.until(60).algo.state_dict())) == []


def test_a_policy_is_loaded_without_what_waits():
    algo, other = learned(60), make(prisoner(), seed=3)
    other.load_policy(algo.state_dict())
    graph = prisoner().reset(4)
    assert torch.equal(algo.act(graph).action, other.act(graph).action)
    assert (other.env_steps, other.updates, other.due_updates) == (480, 60, 0)
    make(prisoner()).load_policy(make(prisoner()).state_dict())  # also an empty table


def test_acting_without_exploration_changes_nothing():
    algo, graph = learned(20), prisoner().reset(4)
    before, outside = flat(algo.state_dict()), torch.get_rng_state()
    algo.act(graph)
    graph.x = graph.x + 7  # a state never seen
    assert algo.act(graph).action.tolist() == [0] * 16
    assert algo.values(graph).tolist() == [0] * 16
    assert differing(before, flat(algo.state_dict())) == []
    algo.act(graph, explore=True)
    assert differing(before, flat(algo.state_dict())) == ['.rng.explore']
    assert torch.equal(outside, torch.get_rng_state())


def test_exploration_fades():
    algo, graph = make(prisoner(), epsilon_start=1.0, epsilon_end=0.0, epsilon_fraction=0.5), prisoner(300).reset(0)
    shares = []
    for algo.env_steps in (0, 1_000, 2_000):
        shares.append(float((algo.act(graph, explore=True).action.view(300, 2) > 0).any(1).float().mean()))
    assert shares == pytest.approx([0.75, 0.375, 0.0], abs=0.09)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('make_env', [jungle, crowd])
def test_other_games_than_those_of_two_are_refused(make_env):
    with pytest.raises(ValueError, match=r'coco_q needs the same two players .* as in the prisoner: .*Take qmix'):
        make(make_env())


def test_a_table_without_room_is_refused():
    env = prisoner()
    with pytest.raises(ValueError, match=r"at most 'max_states' 3 states, and this game has more"):
        Loop(make(env, max_states=3), env).until(50)


def test_a_reward_that_is_not_a_number_is_refused():
    class Broken(Wage):
        def step(self, action: Tensor) -> SingleStep:
            return SingleStep(self.start(), torch.full((2,), torch.nan), terminated=True)

    env = VectorGraphEnv(Broken, 2)
    with pytest.raises(ValueError, match='reward'):
        Loop(make(env), env).until(1)


def test_an_observation_that_is_not_a_number_is_named():
    class Blind(Wage):
        def start(self) -> Snapshot:
            graph = super().start()
            graph.x = graph.x * torch.nan
            return graph

    env = VectorGraphEnv(Blind, 2)
    with pytest.raises(ValueError, match=r"'graph\.x' must be finite"):
        Loop(make(env), env).until(1)


def test_there_must_be_something_to_learn_from():
    with pytest.raises(ValueError, match="no step is left to learn from: call 'observe' first"):
        make(prisoner()).update()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'total_steps': 0}, r"'total_steps' must be at least 1 \(got 0\)"),
        ({'gamma': 1.5}, r"'gamma' must lie in \[0, 1\] \(got 1.5\)"),
        ({'rate_power': -0.1}, r"'rate_power' must lie in \[0, 1\]"),
        ({'epsilon_end': float('nan')}, r"'epsilon_end' must lie in \[0, 1\] \(got nan\)"),
        ({'eval_temperature': -1.0}, r"'eval_temperature' must be at least 0 \(got -1.0\)"),
        ({'max_states': 0}, r"'max_states' must be at least 1 \(got 0\)"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        CocoQConfig(**options)
