"""Each closed form against the games themselves, played out or integrated, and against the numbers of the docs."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ltos_pyg.envs import DilemmasConfig, DilemmasEnv
from ltos_pyg.envs.dilemmas_rules import DoubleStar, Groups
from ltos_pyg.envs.dilemmas_theory import (
    HUNT_OTHER,
    HUNT_OWN,
    Choice,
    OfferGraph,
    Table,
    best_constant,
    best_kept,
    constant_sharing,
    equilibrium_value,
    games,
    keep_all,
    neighbourhood_sum,
    offer_value,
    oracle_offer_weights,
    references,
    team_reward,
    uniform,
)

GROUPS, STAR = DilemmasConfig(graph='groups', num_agents=4), DilemmasConfig(graph='double_star')
Payoffs = NDArray[np.float64]


def payoff_tables(config: DilemmasConfig) -> list[tuple[float, Payoffs]]:
    """Every state's probability and payoffs (2, 2, ..., N) by joint action, from the rules of the environment."""
    N = config.agents
    joint = torch.tensor(list(itertools.product((0, 1), repeat=N)))
    if config.graph == 'groups':
        rules: Any = Groups(4, torch.device('cpu'))
        states = [(1 / 3, {'members': torch.arange(4).view(1, 1, 4), 'kind': torch.tensor([[k]])}) for k in range(3)]
    else:
        rules = DoubleStar(len(joint), torch.device('cpu'))
        places = itertools.product(range(3), (0, 3), range(10))
        states = [
            (1 / 60, {name: torch.tensor([v]) for name, v in zip(('kind', 'hub', 'edge'), place, strict=True)})
            for place in places
        ]
    tables = []
    for probability, state in states:
        many = {key: value.expand(len(joint), *value.shape[1:]) for key, value in state.items()}
        payoff, _ = rules.play({}, many, joint)
        tables.append((probability, payoff.numpy().reshape(*[2] * N, N)))
    assert sum(probability for probability, _ in tables) == pytest.approx(1)
    return tables


def learn(payoff: Payoffs, weights: Payoffs) -> tuple[int, ...]:
    """The joint action that greedy learners settle on: all start at 1/2, then each answers the others' last actions."""
    N = len(weights)
    shared = payoff @ weights  # (..., N): what each learns from
    gain = [np.diff(shared[..., i], axis=i).mean() for i in range(N)]
    for _ in range(10):
        action = tuple(int(g > 1e-12) for g in gain)
        gain = [
            shared[(*action[:i], 1, *action[i + 1 :], i)] - shared[(*action[:i], 0, *action[i + 1 :], i)]
            for i in range(N)
        ]
        if tuple(int(g > 1e-12) for g in gain) == action:
            break
    return action


def random_weights(neighbours: NDArray[np.bool_], seed: int) -> Payoffs:
    rng = np.random.default_rng(seed)
    closed = neighbours + np.eye(len(neighbours)) * rng.choice([0.1, 0.4, 1, 3])
    raw = closed * rng.gamma(rng.choice([0.3, 2]), size=closed.shape)
    return raw / raw.sum(1, keepdims=True)


def test_what_a_hunt_brings_at_one_half() -> None:
    _, payoff = payoff_tables(GROUPS)[0]
    difference = np.diff(payoff, axis=0).mean(axis=(0, 1, 2, 3))
    assert difference.tolist() == [HUNT_OWN, HUNT_OTHER, HUNT_OTHER, HUNT_OTHER] == [-7.5, 1.5, 1.5, 1.5]


@pytest.mark.parametrize('config', [GROUPS, STAR], ids=['groups', 'double star'])
def test_equilibrium_values_are_those_of_learners_in_the_game(config: DilemmasConfig) -> None:
    [game], tables = games(config), payoff_tables(config)
    schemes = [constant_sharing(game.neighbours, s) for s in (0.01, 0.05, 0.1, 0.2, 0.24, 0.3, 0.6, 0.97)]
    schemes += [random_weights(game.neighbours, seed) for seed in range(25)]
    schemes += [f(game.neighbours) for f in (keep_all, uniform, neighbourhood_sum, team_reward)]
    seen = set()
    for weights in schemes:
        played = sum(p * payoff[learn(payoff, weights)].mean() for p, payoff in tables)
        assert equilibrium_value(game, weights) == pytest.approx(played)
        seen.add(round(played, 6))
    assert len(seen) > 3  # the schemes differ


@pytest.mark.parametrize('config', [GROUPS, STAR], ids=['groups', 'double star'])
def test_the_optimum_is_the_best_joint_action_of_each_state(config: DilemmasConfig) -> None:
    best = sum(p * payoff.mean(-1).max() for p, payoff in payoff_tables(config))
    assert best == pytest.approx(config.optimum)


@pytest.mark.parametrize('ratio', [0.0, 0.1, 0.5, 1.0, 1.7, 19.0])
def test_the_value_of_an_offer_is_its_integral(ratio: float) -> None:
    a, b = np.meshgrid((np.arange(2000) + 0.5) / 2000, (np.arange(2000) + 0.5) / 2000)
    assert float(offer_value(ratio)) == pytest.approx(((a - b) * (a > ratio * b)).mean(), abs=2e-4)


@pytest.mark.parametrize('topology', ['star', 'ba'])
def test_offers_bring_in_play_what_theory_says(topology: Any) -> None:
    """Greedy play under random constant weights, in the environment."""
    options: dict[str, Any] = {'graph': 'offers', 'topology': topology, 'num_agents': 6}
    env = DilemmasEnv(num_envs=50, horizon=60, **options)
    graph = env.reset()
    alone = graph.to_data_list()
    neighbours = np.zeros((50, 6, 6), dtype=np.bool_)
    for b, one in enumerate(alone):
        neighbours[b, one.edge_index[0], one.edge_index[1]] = True
    weights = np.stack([random_weights(one, seed) for seed, one in enumerate(neighbours)])
    expected = np.mean([equilibrium_value(OfferGraph(n), w) for n, w in zip(neighbours, weights, strict=True)])
    values = []
    for _ in range(60):
        agent, victim = env.harms(torch.ones(300, dtype=torch.int64)).numpy()
        ratio = weights[agent // 6, victim % 6, agent % 6] / weights[agent // 6, agent % 6, agent % 6]
        action = torch.zeros(300, dtype=torch.int64)
        action[agent] = torch.from_numpy((graph.x[agent, 1].numpy() > ratio * graph.x[agent, 2].numpy()).astype(int))
        step = env.step(action)
        values.append(step.reward.view(50, 6).mean(1))
        graph = step.graph
    measured = torch.cat(values)
    assert abs(measured.mean() - expected) < 4 * measured.std() / len(measured) ** 0.5


def test_every_offer_can_be_decided_by_weights_that_know_the_state() -> None:
    for topology, seed in itertools.product(('star', 'tree', 'ba', 'ring'), range(3)):
        env = DilemmasEnv(num_envs=40, graph='offers', topology=topology, num_agents=7, seed=seed)  # type: ignore[arg-type]
        graph, state = env.reset(), env.state
        for b, one in enumerate(graph.to_data_list()):
            neighbours = np.zeros((7, 7), dtype=np.bool_)
            neighbours[one.edge_index[0], one.edge_index[1]] = True
            has, gain, harm = (state[key][b].numpy() for key in ('has', 'gain', 'harm'))
            victim = one.edge_index[0][state['victim'][b]].numpy()
            weights = oracle_offer_weights(neighbours, has, gain / 2**24, harm / 2**24, victim)
            agent = np.arange(7)
            assert weights.min() >= 0
            assert not weights[~(neighbours | np.eye(7, dtype=np.bool_))].any()
            np.testing.assert_allclose(weights.sum(1), 1)
            taken = weights[agent, agent] * gain > weights[victim, agent] * harm
            assert (taken == (gain > harm))[has].all()


# --- Best constants --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('seed', range(4))
def test_the_integer_programme_finds_the_best_of_a_fine_grid(seed: int) -> None:
    """Two agents with opposed offers: the outcome depends on two kept shares only."""
    rng, pair = np.random.default_rng(seed), ~np.eye(2, dtype=np.bool_)
    choices = [
        Choice(1 / 6, k % 2, gain, (1 - k % 2,), harm) for k, (gain, harm) in enumerate(rng.uniform(1, 9, (6, 2)))
    ]
    game = Table(pair, (), tuple(choices))
    shares = np.linspace(0.005, 0.995, 100)
    grid = max(equilibrium_value(game, np.array([[s, 1 - s], [1 - t, t]])) for s in shares for t in shares)
    weights, value = best_constant(game)
    assert value == pytest.approx(grid)
    np.testing.assert_allclose(weights.sum(1), 1)


def test_no_random_weights_beat_the_best_constant() -> None:
    for config in (GROUPS, STAR, DilemmasConfig(graph='offers', num_agents=8)):
        game = games(config, 1)[0]
        weights, value = best_constant(game)
        assert weights.min() >= 0
        assert not weights[~(game.neighbours | np.eye(len(weights), dtype=np.bool_))].any()
        np.testing.assert_allclose(weights.sum(1), 1)
        assert max(equilibrium_value(game, random_weights(game.neighbours, seed)) for seed in range(300)) <= value


def test_best_constants_say_how_to_get_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'scipy.optimize', None)
    with pytest.raises(ImportError, match=r"pip install 'ltos_pyg\[test\]'"):
        best_constant(games(STAR)[0])


def test_the_best_share_kept_is_the_middle_of_its_range() -> None:
    """Hunting is learned below 1/6 in a group; below 1/16 on the double star, where a leaf has one neighbour."""
    for config, end in ((GROUPS, 1 / 6), (STAR, 1 / 16)):
        share, value = best_kept(games(config))
        assert share == pytest.approx(end / 2, abs=1 / 500)
        [game] = games(config)
        assert equilibrium_value(game, constant_sharing(game.neighbours, end - 1e-6)) == pytest.approx(value)
        assert equilibrium_value(game, constant_sharing(game.neighbours, end + 1e-6)) < value - 0.1


def test_a_lone_agent_keeps_everything() -> None:
    alone = np.zeros((2, 2), dtype=np.bool_)
    assert np.array_equal(constant_sharing(alone, 0.3), np.eye(2))
    assert np.array_equal(uniform(alone), np.eye(2))


@pytest.mark.parametrize(
    ('options', 'expected'),
    [
        (
            {'graph': 'groups'},
            {'optimum': 7 / 3, 'oracle': 7 / 3, 'best_constant': 4 / 3, 'uniform': 4 / 3, 'keep_all': -2 / 3},
        ),
        (
            {'graph': 'double_star'},
            {
                'optimum': 1.7222,
                'oracle': 1.7222,
                'best_constant': 0.9722,
                'best_kept': 0.8889,
                'uniform': 0.3889,
                'keep_all': 0.2222,
                'neighbourhood_sum': 1.0556,
                'team_reward': 1.0556,
            },
        ),
        (
            {'graph': 'offers', 'topology': 'ring'},
            {'optimum': 1 / 12, 'oracle': 1 / 12, 'uniform': 1 / 12, 'best_kept': 1 / 12, 'keep_all': 0},
        ),
        (
            {'graph': 'offers', 'topology': 'star'},
            {'uniform': 0.0158, 'best_kept': 0.0796, 'kept': 0.05, 'best_constant': 1 / 12},
        ),
    ],
    ids=lambda value: '-'.join(map(str, value.values())) if 'graph' in value else '',
)
def test_the_numbers_of_the_docs(options: dict[str, Any], expected: dict[str, float]) -> None:
    got = references(DilemmasConfig(**options))
    assert {name: got[name] for name in expected} == pytest.approx(expected, abs=1e-4)


def test_random_graphs_leave_something_to_every_constant() -> None:
    got = references(DilemmasConfig(graph='offers'), num_graphs=3)
    assert got['keep_all'] == 0
    assert got['uniform'] < got['best_kept'] - 0.003 < got['best_constant'] - 0.006 < got['optimum'] - 0.006
