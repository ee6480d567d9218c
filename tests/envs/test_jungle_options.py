"""The jungle's options beyond the paper's game: graphs of another kind, and gains that differ between agents."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
from test_jungle import BACKENDS, HIT_DOWN, HIT_UP, STAY, assert_same_graph, assert_same_step, brute_force, episode

from ltos_pyg.envs import GreedyAttacker, JungleConfig, JungleEnv, PeacefulEater
from ltos_pyg.graph_env import check_env

GAINS: dict[str, Any] = {'attack_gain_high': 6.5, 'high_fraction': 0.3, 'graph': 'radius'}


def place(backend: str, agents: list[Any], foods: list[Any], high: list[bool] | None = None, **options: Any) -> Any:
    """An environment with one board of 12 x 12, and the graph to act on."""
    env = JungleEnv(num_agents=len(agents), num_foods=len(foods), size=12, backend=backend, **options)
    cells = torch.tensor([foods], dtype=torch.int64).view(1, -1, 2)
    return env, env.set_positions(torch.tensor([agents]), cells, None if high is None else torch.tensor([high]))


# --- As before -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize(
    ('options', 'expected'),
    [
        ({}, '9b7782b1dc8a6adf'),
        (
            {'symmetric': False, 'neighbours': 5, 'cost_on_hit': True, 'num_agents': 40, 'size': 12, 'view': 3},
            'a4276fc939617c44',
        ),
    ],
)
def test_without_the_options_episodes_are_those_of_older_versions(options, expected, backend):
    """The digests were taken before there were any such options."""
    env = JungleEnv(num_envs=3, horizon=7, seed=4, backend=backend, **options)
    graph, digest = env.reset(), hashlib.sha256()
    for t in range(20):
        step = env.step((graph.x.long().sum(1) * 7 + graph.node_id * 5 + t) % 9)
        graph = step.graph
        for part in (graph.x, graph.edge_index, graph.edge_attr, step.successor.x, step.reward):
            digest.update(part.contiguous().numpy().tobytes())
    assert digest.hexdigest()[:16] == expected


def test_a_state_saved_before_the_options_is_loaded():
    env = JungleEnv(num_envs=2)
    graph, state = env.reset(), env.state_dict()
    del state['high']
    for name in ('graph', 'radius', 'attack_gain_high', 'high_fraction'):
        del state['config'][name]
    assert_same_graph(JungleEnv(num_envs=2, seed=1).load_state_dict(state), graph)


# --- Graphs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('symmetric', [True, False])
@pytest.mark.parametrize('k', range(1, 9))
def test_any_number_of_nearest_neighbours(k, symmetric):
    numba, torch_ = (JungleEnv(num_envs=3, neighbours=k, symmetric=symmetric, backend=b) for b in BACKENDS)
    assert_same_graph(numba.reset(), torch_.reset())
    for one, two in zip(episode(numba, 10), episode(torch_, 10), strict=True):
        assert_same_step(one, two)
    for graph, agents in zip(one.graph.to_data_list(), numba.agent_positions.numpy(), strict=True):
        assert graph.edge_index.tolist() == brute_force(agents, numba.config).tolist()
        degree = graph.edge_index[1].bincount(minlength=20)
        assert degree.min() >= k
        assert symmetric or degree.max() == k
        assert graph.num_edges <= numba.spec.max_edges


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize(
    ('radius', 'joined'),
    [(5, True), (4.99, False), (5.01, True), (4, False), (1e-3, False), (1e300, True)],
)
def test_the_radius_is_part_of_the_neighbourhood(radius, joined, backend):
    env, graph = place(backend, [(2, 3), (5, 7)], [], graph='radius', radius=radius, symmetric=False)
    assert graph.edge_index.tolist() == ([[1, 0], [0, 1]] if joined else [[], []])
    assert graph.edge_attr.tolist() == ([[3, 4], [-3, -4]] if joined else [])
    assert env.spec.symmetric


@pytest.mark.parametrize('square', [1, 2, 5, 8, 10, 13, 17, 18, 29, 50, 125])
def test_a_root_as_radius_reaches_its_square(square):
    """Rounded, the root's own square may be less."""
    assert JungleConfig(graph='radius', radius=square**0.5).reach == square


@pytest.mark.parametrize('backend', BACKENDS)
def test_degrees_range_from_none_to_all_others(backend):
    corner = [(y, x) for y in (1, 2) for x in (1, 2, 3)]
    env, graph = place(backend, [*corner, (10, 10)], [], graph='radius', radius=3, neighbours=0)
    assert graph.edge_index[1].bincount(minlength=7).tolist() == [5] * 6 + [0]
    env, graph = place(backend, corner, [], graph='radius', radius=3)
    assert graph.num_edges == env.spec.max_edges == 30


def test_the_default_radius_gives_about_five_neighbours_and_a_wide_spread():
    env = JungleEnv(num_envs=40, graph='radius', horizon=99, seed=1)
    graph, policy, degrees = env.reset(), PeacefulEater(seed=2), []
    for t in range(60):
        graph = env.step(policy.act(graph)).graph
        if t >= 30:  # agents have gathered at the foods
            degrees.append(graph.edge_index[1].bincount(minlength=800).float())
    degree = torch.cat(degrees)
    assert 4 < degree.mean() < 6
    assert degree.std() > 2
    assert degree.min() == 0
    assert degree.max() > 10


def test_offsets_fit_their_bytes_on_the_largest_board():
    env = JungleEnv(num_agents=2, num_foods=0, size=127, graph='radius', radius=200)
    graph = env.set_positions(torch.tensor([[[1, 125], [125, 1]]]), torch.zeros(1, 0, 2, dtype=torch.int64))
    assert graph.edge_attr.tolist() == [[124, -124], [-124, 124]]


# --- Gains -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('cost', [0, 0.01])
@pytest.mark.parametrize(
    ('high', 'action', 'reward'),
    [
        ([True, False], [HIT_DOWN, STAY], [5, -4]),
        ([False, True], [HIT_DOWN, STAY], [2, -4]),
        ([True, False], [HIT_DOWN, HIT_UP], [1, -2]),
        ([True, True], [HIT_DOWN, HIT_UP], [1, 1]),
        ([False, False], [HIT_DOWN, HIT_UP], [-2, -2]),
        (None, [HIT_DOWN, HIT_UP], [1, -2]),  # one half of them, the first
    ],
)
def test_some_agents_gain_more_by_an_attack(high, action, reward, cost, backend):
    env, _ = place(backend, [(3, 3), (4, 3)], [], high, attack_gain_high=5, cost_on_hit=cost > 0)
    attacks = torch.tensor(action) != STAY
    expected = torch.tensor(reward, dtype=torch.float32) - cost * attacks
    torch.testing.assert_close(env.step(torch.tensor(action)).reward, expected)


@pytest.mark.parametrize('backend', BACKENDS)
def test_foods_and_blanks_bring_all_agents_the_same(backend):
    env, _ = place(backend, [(3, 3), (8, 8)], [(4, 3)], [True, True], attack_gain_high=5)
    torch.testing.assert_close(env.step(torch.tensor([HIT_DOWN, HIT_DOWN])).reward, torch.tensor([1, -0.01]))


@pytest.mark.parametrize('backend', BACKENDS)
def test_a_negative_gain_is_taken(backend):
    env, _ = place(backend, [(3, 3), (4, 3)], [], [True, False], attack_gain_high=-1.5)
    assert env.step(torch.tensor([HIT_DOWN, STAY])).reward.tolist() == [-1.5, -4]


@pytest.mark.parametrize('backend', BACKENDS)
def test_every_agent_sees_which_ones_gain_more(backend):
    env, graph = place(backend, [(3, 3), (4, 3), (4, 5)], [(3, 4)], [False, True, True], attack_gain_high=5, view=2)
    assert graph.x[0].view(-1)[:25].view(5, 5).tolist() == [
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 1, -1, 0],
        [0, 0, 2, 0, 0],
        [0, 0, 0, 0, 0],  # (4, 5) is farther than 2
    ]
    assert graph.x[:, 25:].tolist() == [[3, 3, 0], [4, 3, 1], [4, 5, 1]]
    assert graph.x[1, 12] == 2  # itself
    assert env.spec.num_features == graph.x.size(1) == 28
    assert env.spec.feature_scale[24:] == (1, 1 / 12, 1 / 12, 1)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize(('fraction', 'count'), [(0, 0), (0.3, 6), (0.5, 10), (0.98, 20), (1, 20)])
def test_so_many_agents_are_drawn_anew_in_each_episode(fraction, count, backend):
    env = JungleEnv(num_envs=3, horizon=2, attack_gain_high=3, high_fraction=fraction, backend=backend)
    assert env.config.num_high == count
    graph, drawn = env.reset(), set()
    for _ in range(7):
        assert graph.x[:, -1].view(3, 20).tolist() == env.high.long().tolist()
        assert env.high.sum(1).tolist() == [count] * 3
        drawn |= {tuple(board) for board in env.high.tolist()}
        graph = env.step(torch.full((60,), STAY)).graph
    assert len(drawn) == (12 if 0 < count < 20 else 1)  # 4 episodes of 3 boards


def test_each_agent_is_as_likely_to_gain_more():
    env = JungleEnv(num_envs=2000, num_agents=5, num_foods=0, size=6, attack_gain_high=3, high_fraction=0.4)
    env.reset()
    high = env.high.float()
    assert (high.mean(0) - 0.4).abs().max() < 4 * (0.4 * 0.6 / 2000) ** 0.5
    pairs = (high.t() @ high / 2000)[~torch.eye(5, dtype=torch.bool)]
    assert (pairs - 0.1).abs().max() < 4 * (0.1 * 0.9 / 2000) ** 0.5


def test_the_draw_comes_after_the_cells_from_the_streams_of_the_boards():
    plain, unequal = JungleEnv(num_envs=2, seed=3), JungleEnv(num_envs=2, seed=3, attack_gain_high=3)
    before = torch.get_rng_state()
    plain.reset(), unequal.reset()
    assert torch.equal(plain.agent_positions, unequal.agent_positions)
    assert torch.equal(plain.food_positions, unequal.food_positions)
    first = unequal.high
    assert not plain.high.any()
    unequal.reset()
    assert not torch.equal(unequal.high, first)
    unequal.reset(3)
    assert torch.equal(unequal.high, first)
    assert torch.equal(torch.get_rng_state(), before)
    larger = JungleEnv(num_envs=7, seed=3, attack_gain_high=3)
    larger.reset()
    assert torch.equal(larger.high[:2], first)


@pytest.mark.parametrize('backend', BACKENDS)
def test_given_flags_last_for_one_episode(backend):
    env = JungleEnv(num_agents=4, num_foods=0, size=6, horizon=1, attack_gain_high=3, high_fraction=0, backend=backend)
    cells = torch.tensor([[[1, 1], [1, 2], [1, 3], [1, 4]]])
    high = torch.tensor([[True, False, True, True]])
    env.set_positions(cells, torch.zeros(1, 0, 2, dtype=torch.int64), high)
    assert torch.equal(env.high, high)
    high.zero_()
    assert env.high.sum() == 3
    env.high.zero_()
    assert env.high.sum() == 3
    env.step(torch.full((4,), STAY))
    assert env.high.sum() == 0


@pytest.mark.parametrize('saved_by', BACKENDS)
@pytest.mark.parametrize('loaded_by', BACKENDS)
def test_a_saved_state_has_the_flags(saved_by, loaded_by):
    env = JungleEnv(num_envs=3, horizon=10, backend=saved_by, **GAINS)
    env.reset()
    graph = episode(env, 17)[-1].graph
    state = env.state_dict()
    expected = episode(env, 15, seed=1)  # past another restart
    other = JungleEnv(num_envs=3, horizon=10, seed=9, backend=loaded_by, **GAINS)
    assert_same_graph(other.load_state_dict(state), graph)
    for one, two in zip(episode(other, 15, seed=1), expected, strict=True):
        assert_same_step(one, two)


def test_a_state_of_other_options_is_refused():
    state = JungleEnv(graph='radius').state_dict()
    with pytest.raises(ValueError, match="graph='radius' where this env has 'knn'"):
        JungleEnv().load_state_dict(state)
    with pytest.raises(ValueError, match=r'attack_gain_high=None where this env has 6\.5'):
        JungleEnv(**GAINS).load_state_dict(state)


def test_threads_change_nothing():
    one, three = (JungleEnv(num_envs=7, horizon=10, threads=threads, **GAINS) for threads in (1, 3))
    assert_same_graph(one.reset(), three.reset())
    for a, b in zip(episode(one, 25), episode(three, 25), strict=True):
        assert_same_step(a, b)
    three.close()


def test_the_tally_counts_what_was_paid():
    env = JungleEnv(num_envs=8, **GAINS)
    graph, policy, extra = env.reset(), GreedyAttacker(seed=1), 0.0
    for _ in range(40):
        high, action = env.high, policy.act(graph)
        step = env.step(action)
        graph = step.graph
        beyond = step.reward.view(8, -1).sum(1) - (
            step.info['food'] - 2 * step.info['attacks'] - 0.01 * step.info['blanks']
        )
        times = beyond / (6.5 - 2)
        torch.testing.assert_close(times, times.round(), atol=1e-4, rtol=0)
        assert (times.round() <= ((action >= 5).view(8, -1) & high).sum(1)).all()
        extra += times.sum().item()
    assert extra > 100


# --- Both ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('options', [{'graph': 'radius'}, {'attack_gain_high': 4}, GAINS])
def test_the_contract_holds(options, backend):
    check_env(lambda: JungleEnv(num_envs=2, num_agents=9, horizon=12, backend=backend, **options), steps=26)


def test_scripted_policies_read_these_boards_too():
    agents, foods = [(3, 3), (4, 3), (8, 8)], [(8, 9)]
    _, plain = place('numba', agents, foods)
    _, unequal = place('numba', agents, foods, [False, True, True], attack_gain_high=3)
    for policy in (PeacefulEater, GreedyAttacker):
        assert torch.equal(policy(seed=1).act(plain), policy(seed=1).act(unequal))
    assert GreedyAttacker().act(unequal)[:2].tolist() == [HIT_DOWN, HIT_UP]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'graph': 'ring'}, r"'graph' must be 'knn' or 'radius' \(got 'ring'\). Choose 'knn'"),
        ({'graph': None}, r"'graph' must be 'knn' or 'radius' \(got None\)"),
        ({'radius': 0}, r"'radius' must be a finite number above 0 \(got 0\). It counts cells"),
        ({'radius': -1.5}, r"'radius' must be a finite number above 0 \(got -1.5\)"),
        ({'radius': float('inf')}, r"'radius' must be a finite number above 0 \(got inf\)"),
        ({'radius': float('nan')}, r"'radius' must be a finite number above 0 \(got nan\)"),
        ({'radius': '6'}, r"'radius' must be a finite number above 0 \(got '6'\)"),
        (
            {'attack_gain_high': float('nan')},
            r"'attack_gain_high' must be a finite number .* \(got nan\). Leave it out",
        ),
        ({'attack_gain_high': float('inf')}, r"'attack_gain_high' must be a finite number .* \(got inf\)"),
        ({'attack_gain_high': 1e39}, r'that float32 can hold, or None \(got 1e\+39\)'),
        ({'attack_gain_high': True}, r"'attack_gain_high' must be a finite number .* \(got True\)"),
        ({'high_fraction': 1.01}, r"'high_fraction' must lie in \[0, 1\] \(got 1.01\). It is a part"),
        ({'high_fraction': -0.1}, r"'high_fraction' must lie in \[0, 1\] \(got -0.1\)"),
        ({'high_fraction': float('nan')}, r"'high_fraction' must lie in \[0, 1\] \(got nan\)"),
        ({'high_fraction': None}, r"'high_fraction' must lie in \[0, 1\] \(got None\)"),
    ],
)
def test_nonsense_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        JungleEnv(**options)


@pytest.mark.parametrize(
    ('options', 'high', 'message'),
    [
        ({}, [[True, False]], "'high' must be left out where all agents gain the same"),
        ({'attack_gain_high': 3}, [True, False], r"'high' .*: expected shape \(1, 2\), got \(2,\). Give all graphs"),
        ({'attack_gain_high': 3}, [[True]], r"'high' .*: expected shape \(1, 2\), got \(1, 1\)"),
        ({'attack_gain_high': 3}, [[1, 0]], r"'high' must be of torch.bool \(got torch.int64\). Convert it"),
    ],
)
def test_bad_flags_are_refused_and_nothing_is_placed(options, high, message):
    env = JungleEnv(num_agents=2, num_foods=0, size=6, **options)
    env.reset()
    before = env.agent_positions
    with pytest.raises(ValueError, match=message):
        env.set_positions(torch.tensor([[[1, 1], [4, 4]]]), torch.zeros(1, 0, 2, dtype=torch.int64), torch.tensor(high))
    assert torch.equal(env.agent_positions, before)
