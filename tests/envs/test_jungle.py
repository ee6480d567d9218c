"""The laws of the jungle, most of them for both implementations."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch

from ltos_pyg.envs import GreedyAttacker, JungleConfig, JungleEnv
from ltos_pyg.graph_env import GraphStep, Symmetries, check_env

UP, LEFT, STAY, RIGHT, DOWN, HIT_UP, HIT_LEFT, HIT_RIGHT, HIT_DOWN = range(9)
BACKENDS = ('numba', 'torch')
OPTIONS: dict[str, dict[str, Any]] = {
    'default': {},
    'directed': {'symmetric': False, 'neighbours': 5},
    'crowd': {'num_agents': 40, 'num_foods': 30, 'size': 12, 'view': 3, 'cost_on_hit': True},
    'everybody': {'num_agents': 6, 'neighbours': 9, 'size': 9, 'edge_features': False},
    'lone': {'num_agents': 1, 'num_foods': 1, 'size': 4},
    'deaf': {'num_agents': 3, 'num_foods': 0, 'size': 5, 'neighbours': 0},
    'many': {'num_agents': 70, 'neighbours': 2, 'view': 9},
    'wide': {'num_agents': 5, 'size': 127, 'view': 60},
    'radius': {'graph': 'radius'},
    'far': {'graph': 'radius', 'radius': 300, 'num_agents': 5, 'size': 127, 'symmetric': False},
    'beyond a byte': {'num_agents': 6, 'size': 200},
    'large': {'num_agents': 200, 'num_foods': 60, 'size': 40},
    'gains': {'attack_gain_high': 5, 'cost_on_hit': True},
    'gains in a crowd': {
        'graph': 'radius', 'radius': 2.5, 'attack_gain_high': -0.3, 'high_fraction': 0.2, 'num_agents': 40,
        'num_foods': 30, 'size': 12, 'view': 3,
    },
}  # fmt: skip


def random_action(env: JungleEnv, chance: torch.Generator) -> Tensor:
    return torch.randint(9, (env.num_envs * env.config.num_agents,), generator=chance)


def episode(env: JungleEnv, steps: int, seed: int = 0) -> list[GraphStep]:
    chance = torch.Generator().manual_seed(seed)
    return [env.step(random_action(env, chance)) for _ in range(steps)]


def assert_same_graph(one: Batch, other: Batch) -> None:
    assert set(one.keys()) == set(other.keys())  # PyG hashes field names: their order is chance
    for key in one.keys():  # noqa: SIM118  a batch is no dict
        assert torch.equal(one[key], other[key]), key
        assert one[key].dtype == other[key].dtype, key


def assert_same_step(one: GraphStep, other: GraphStep) -> None:
    assert_same_graph(one.graph, other.graph)
    assert_same_graph(one.successor, other.successor)
    assert torch.equal(one.reward, other.reward)
    assert torch.equal(one.truncated, other.truncated)
    assert one.info.keys() == other.info.keys()
    assert all(torch.equal(one.info[key], other.info[key]) for key in one.info)


# What happens in one step: agents, foods, actions -> rewards, where the agents are then. The board is 8 x 8.
SCENES: dict[str, tuple[list[Any], list[Any], list[int], list[float], list[Any]]] = {
    'eats': ([(3, 3)], [(3, 4)], [HIT_RIGHT], [1], [(3, 3)]),
    'four eat one food': (
        [(3, 4), (5, 4), (4, 3), (4, 5)], [(4, 4)], [HIT_DOWN, HIT_UP, HIT_RIGHT, HIT_LEFT], [1] * 4,
        [(3, 4), (5, 4), (4, 3), (4, 5)],
    ),
    'strikes a blank': ([(3, 3)], [(6, 6)], [HIT_UP], [-0.01], [(3, 3)]),
    'strikes a wall': ([(1, 3)], [(6, 6)], [HIT_UP], [-0.01], [(1, 3)]),
    'attacks': ([(3, 3), (4, 3)], [], [HIT_DOWN, STAY], [2, -4], [(3, 3), (4, 3)]),
    'two attack one': ([(3, 3), (4, 3), (4, 4)], [], [HIT_DOWN, STAY, HIT_LEFT], [2, -8, 2], [(3, 3), (4, 3), (4, 4)]),
    'attack each other': ([(3, 3), (4, 3)], [], [HIT_DOWN, HIT_UP], [-2, -2], [(3, 3), (4, 3)]),
    'a victim eats meanwhile': ([(3, 3), (4, 3)], [(5, 3)], [HIT_DOWN, HIT_DOWN], [2, -3], [(3, 3), (4, 3)]),
    'a victim strikes a blank': ([(3, 3), (4, 3)], [], [HIT_DOWN, HIT_DOWN], [2, -4.01], [(3, 3), (4, 3)]),
    'an agent that walks away is still hit': ([(3, 3), (4, 3)], [], [HIT_DOWN, DOWN], [2, -4], [(3, 3), (5, 3)]),
    'an agent that arrives is not hit': ([(3, 3), (5, 3)], [], [HIT_DOWN, UP], [-0.01, 0], [(3, 3), (4, 3)]),
    'each direction': (
        [(4, 4), (2, 2), (6, 6), (2, 6)], [], [UP, LEFT, RIGHT, DOWN], [0] * 4, [(3, 4), (2, 1), (6, 6), (3, 6)],
    ),
    'walls stop': ([(1, 1), (6, 6)], [], [LEFT, DOWN], [0, 0], [(1, 1), (6, 6)]),
    'food stops': ([(3, 3)], [(3, 4)], [RIGHT], [0], [(3, 3)]),
    'an agent stops': ([(3, 3), (3, 4)], [], [RIGHT, STAY], [0, 0], [(3, 3), (3, 4)]),
    'the first takes the cell': ([(3, 3), (3, 5)], [], [RIGHT, LEFT], [0, 0], [(3, 4), (3, 5)]),
    'the second follows the first': ([(3, 4), (3, 3)], [], [RIGHT, RIGHT], [0, 0], [(3, 5), (3, 4)]),
    'the first does not wait for the second': ([(3, 3), (3, 4)], [], [RIGHT, RIGHT], [0, 0], [(3, 3), (3, 5)]),
    'no swapping': ([(3, 3), (3, 4)], [], [RIGHT, LEFT], [0, 0], [(3, 3), (3, 4)]),
}  # fmt: skip


def stage(agents: list[Any], foods: list[Any], backend: str, **options: Any) -> JungleEnv:
    env = JungleEnv(num_agents=len(agents), num_foods=len(foods), size=8, backend=backend, **options)
    env.set_positions(torch.tensor([agents]), torch.tensor([foods], dtype=torch.int64).view(1, -1, 2))
    return env


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('scene', SCENES)
def test_rules(scene: str, backend: str) -> None:
    agents, foods, action, reward, after = SCENES[scene]
    env = stage(agents, foods, backend)
    step = env.step(torch.tensor(action))
    torch.testing.assert_close(step.reward, torch.tensor(reward, dtype=torch.float32))
    assert env.agent_positions.tolist() == [[list(cell) for cell in after]]
    assert env.food_positions.tolist() == [[list(cell) for cell in foods]]


@pytest.mark.parametrize('backend', BACKENDS)
def test_magent_charges_every_attack(backend: str) -> None:
    env = stage([(3, 3), (4, 3), (6, 1), (1, 6)], [(1, 5)], backend, cost_on_hit=True)
    step = env.step(torch.tensor([HIT_DOWN, HIT_UP, HIT_UP, HIT_LEFT]))
    torch.testing.assert_close(step.reward, torch.tensor([-2.01, -2.01, -0.01, 0.99]))
    assert {name: count.tolist() for name, count in step.info.items()} == {'attacks': [2], 'food': [1], 'blanks': [1]}


COMPILES = 'beyond a byte'  # kernels of its own, for wider integers: a slow test


@pytest.mark.parametrize(
    'options', [pytest.param(COMPILES, marks=pytest.mark.slow), *sorted(OPTIONS.keys() - {COMPILES})]
)
def test_numba_and_torch_play_the_same_episodes(options: str) -> None:
    numba, torch_ = (JungleEnv(num_envs=4, horizon=25, seed=3, backend=b, **OPTIONS[options]) for b in BACKENDS)
    assert_same_graph(numba.reset(), torch_.reset())
    chance = torch.Generator().manual_seed(0)
    for _ in range(60):
        action = random_action(numba, chance)
        assert_same_step(numba.step(action), torch_.step(action))
        assert torch.equal(numba.agent_positions, torch_.agent_positions)
        assert torch.equal(numba.food_positions, torch_.food_positions)
        assert torch.equal(numba.high, torch_.high)


def brute_force(agents: np.ndarray, config: JungleConfig) -> np.ndarray:
    """(2, E) by sorting all distances; a stable sort leaves ties to the lower index."""
    N = len(agents)
    distance = ((agents[:, None] - agents) ** 2).sum(-1).astype(float)
    np.fill_diagonal(distance, np.inf)
    receives = np.zeros((N, N), dtype=bool)
    if config.graph == 'radius':
        receives = np.sqrt(distance) <= config.radius
    else:
        nearest = distance.argsort(1, kind='stable')[:, : min(config.neighbours, N - 1)]
        receives[np.arange(N)[:, None], nearest] = True
        receives |= receives.T & config.symmetric
    receiver, sender = receives.nonzero()
    return np.stack([sender, receiver])


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('options', OPTIONS)
def test_the_graph_joins_agents_that_are_near(options: str, backend: str) -> None:
    env = JungleEnv(num_envs=3, horizon=99, backend=backend, **OPTIONS[options])
    env.reset()
    for step in episode(env, 5):
        graphs = step.graph.to_data_list()
    for graph, agents in zip(graphs, env.agent_positions.numpy(), strict=True):
        expected = brute_force(agents, env.config)
        assert np.array_equal(graph.edge_index.numpy(), expected)
        assert graph.num_edges <= env.spec.max_edges
        if env.config.edge_features:
            assert np.array_equal(graph.edge_attr.numpy(), agents[expected[0]] - agents[expected[1]])


@pytest.mark.parametrize('options', OPTIONS)
def test_a_window_shows_agents_nearby(options: str) -> None:
    env = JungleEnv(num_envs=2, horizon=99, **OPTIONS[options])
    env.reset()
    x = episode(env, 5)[-1].graph.x.view(2, env.config.num_agents, -1).numpy()
    r, N = env.config.view, env.config.num_agents
    cells = torch.cat([env.agent_positions, env.food_positions], 1).numpy()
    high = env.high.long().numpy()
    flagged = env.config.attack_gain_high is not None
    for b in range(2):
        for i in range(N):
            window = np.zeros((2 * r + 1, 2 * r + 1))
            for m, (y, x_) in enumerate(cells[b] - cells[b, i]):
                if y**2 + x_**2 <= r**2:
                    window[y + r, x_ + r] = 1 + high[b, m] if m < N else -1
            assert np.array_equal(x[b, i], [*window.flatten(), *cells[b, i], *high[b, i : i + 1][:flagged]])


def test_scales_bring_features_to_about_one() -> None:
    env = JungleEnv()
    graph = env.reset()
    scale = env.spec.scale('edge')
    assert env.spec.scale() is not None
    assert scale is not None
    assert (graph.x * env.spec.scale()).abs().max() <= 1
    assert (graph.edge_attr * scale).abs().median() <= 1


@pytest.mark.parametrize('backend', BACKENDS)
def test_the_contract_holds(backend: str) -> None:
    check_env(lambda: JungleEnv(num_envs=3, horizon=30, backend=backend), steps=70)


def test_a_batch_is_its_graphs_side_by_side() -> None:
    env = JungleEnv(num_envs=5)
    env.reset()
    graph = episode(env, 3)[-1].graph
    assert_same_graph(graph, Batch.from_data_list(graph.to_data_list()))


@pytest.mark.parametrize('backend', BACKENDS)
def test_the_clock_truncates_and_keeps_the_true_end(backend: str) -> None:
    env = JungleEnv(num_envs=2, num_agents=5, horizon=4, backend=backend)
    short = JungleEnv(num_envs=2, num_agents=5, horizon=99, backend=backend)
    env.reset(), short.reset()
    steps, going_on = episode(env, 9), episode(short, 4)
    ends = [bool(step.truncated.all()) for step in steps]
    assert ends == [False, False, False, True] * 2 + [False]
    assert not any(step.terminated.any() for step in steps)
    assert [step.graph is step.successor for step in steps] == [not end for end in ends]
    assert_same_graph(steps[3].successor, going_on[3].graph)  # where a longer episode would be
    assert not torch.equal(steps[3].graph.x, steps[3].successor.x)


@pytest.mark.parametrize('backend', BACKENDS)
def test_a_graph_starts_the_same_in_a_batch_of_any_size(backend: str) -> None:
    small, large = (JungleEnv(num_envs=n, seed=5, horizon=3, backend=backend) for n in (2, 7))
    small.reset(), large.reset()
    for _ in range(3):  # also after restarts
        assert torch.equal(small.agent_positions, large.agent_positions[:2])
        episode(small, 3), episode(large, 3)
    assert len(set(map(str, large.agent_positions.tolist()))) == 7


def test_seeds_restart_everything_and_reset_continues() -> None:
    env = JungleEnv(num_envs=2, seed=1)
    first, second = env.reset(), env.reset()
    assert not torch.equal(first.x, second.x)
    assert_same_graph(env.reset(1), first)
    assert_same_graph(JungleEnv(num_envs=2).reset(1), first)
    assert not torch.equal(env.reset(2).x, first.x)


def test_global_generators_do_not_matter() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    env = JungleEnv(num_envs=2, horizon=2)
    graph = env.reset()
    episode(env, 5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert_same_graph(JungleEnv(num_envs=2, horizon=2).reset(), graph)


def test_starts_are_uniform_over_the_free_cells() -> None:
    env = JungleEnv(num_envs=2000, num_agents=3, num_foods=2, size=6)
    env.reset()
    for cells in (env.agent_positions, env.food_positions):  # 1 of 16 for each
        share = torch.stack([(cells == torch.tensor(c)).all(2).float().mean() for c in np.ndindex(7, 7)]).view(7, 7)
        deviation = (1 / 16 * 15 / 16 / (2000 * cells.size(1))) ** 0.5
        assert (share[1:5, 1:5] - 1 / 16).abs().max() < 4 * deviation
        torch.testing.assert_close(share[1:5, 1:5].sum(), torch.tensor(1.0))  # none in a wall


@pytest.mark.parametrize('backend', BACKENDS)
def test_on_a_full_board_all_entities_have_distinct_cells(backend: str) -> None:
    env = JungleEnv(num_envs=3, num_agents=10, num_foods=6, size=6, backend=backend)
    env.reset()
    cells = torch.cat([env.agent_positions, env.food_positions], 1)
    assert all(len({tuple(cell) for cell in board}) == 16 for board in cells.tolist())


@pytest.mark.parametrize('saved_by', BACKENDS)
@pytest.mark.parametrize('loaded_by', BACKENDS)
def test_a_saved_state_continues_where_it_was(saved_by: str, loaded_by: str) -> None:
    env = JungleEnv(num_envs=3, horizon=10, backend=saved_by)
    env.reset()
    graph = episode(env, 17)[-1].graph
    state = env.state_dict()
    expected = episode(env, 15, seed=1)  # past another restart
    other = JungleEnv(num_envs=3, horizon=10, seed=9, backend=loaded_by)
    assert_same_graph(other.load_state_dict(state), graph)
    for one, two in zip(episode(other, 15, seed=1), expected, strict=True):
        assert_same_step(one, two)


@pytest.mark.parametrize('backend', BACKENDS)
def test_a_copy_goes_its_own_way(backend: str) -> None:
    env = JungleEnv(num_envs=2, horizon=5, backend=backend)
    env.reset()
    copied = copy.deepcopy(env)
    episode(env, 7, seed=1)
    alone = JungleEnv(num_envs=2, horizon=5, backend=backend)
    alone.reset()
    for one, two in zip(episode(copied, 12), episode(alone, 12), strict=True):
        assert_same_step(one, two)
    assert_same_graph(copied.reset(3), alone.reset(3))


def test_threads_change_nothing() -> None:
    one, three = (JungleEnv(num_envs=7, horizon=10, threads=threads) for threads in (1, 3))
    assert_same_graph(one.reset(), three.reset())
    for a, b in zip(episode(one, 25), episode(three, 25), strict=True):
        assert_same_step(a, b)
    three.close()


def test_attacks_pay_their_doer_and_cost_the_group() -> None:
    """Each attack takes 2 from the group, food gives 1, a blank takes 0.01: what the tally counts is what was paid."""
    env = JungleEnv(num_envs=8)
    graph, policy = env.reset(), GreedyAttacker(seed=1)
    attacks = 0.0
    for _ in range(60):
        step = env.step(policy.act(graph))
        graph = step.graph
        expected = step.info['food'] - 2 * step.info['attacks'] - 0.01 * step.info['blanks']
        torch.testing.assert_close(step.reward.view(8, -1).sum(1), expected, atol=1e-4, rtol=0)
        attacks += step.info['attacks'].sum().item()
    assert attacks > 100


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'num_envs': 0}, "'num_envs' must be an integer of at least 1"),
        ({'num_agents': 0}, "'num_agents' must be an integer of at least 1"),
        ({'num_foods': -1}, "'num_foods' must be an integer of at least 0"),
        ({'neighbours': 2.5}, r"'neighbours' must be an integer of at least 0 \(got 2.5\)"),
        ({'horizon': 0}, "'horizon' must be"),
        ({'view': 0}, "'view' must be"),
        ({'size': 32_768}, "'size' must be at most 32767"),
        ({'size': 7}, r'at most \(size - 2\)\^2 = 25, got 20 \+ 12'),
        ({'seed': -1}, "'seed' must be an integer of at least 0"),
        ({'backend': 'jax'}, "'backend' must be 'auto', 'numba' or 'torch'"),
        ({'backend': 'numba', 'device': 'meta'}, "'backend' must be 'torch' or 'auto' on meta"),
        ({'threads': 0}, "'threads' must be an integer of at least 1"),
    ],
)
def test_nonsense_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JungleEnv(**options)


@pytest.mark.parametrize(
    ('action', 'message'),
    [
        (torch.zeros(19, dtype=torch.int64), r'expected shape \(20,\), got \(19,\)'),
        (torch.zeros(1, 20, dtype=torch.int64), r'expected shape \(20,\), got \(1, 20\)'),
        (torch.zeros(20), r'must hold integers \(got torch.float32\)'),
        (torch.full((20,), 9), r'must lie in \[0, 8\] \(got 9..9\)'),
        (torch.full((20,), -1), r'must lie in \[0, 8\] \(got -1..-1\)'),
        ([0] * 20, r"'action' must be a tensor \(got list\)"),
    ],
)
@pytest.mark.parametrize('backend', BACKENDS)
def test_a_bad_action_is_refused_and_nothing_moves(action: Any, message: str, backend: str) -> None:
    env = JungleEnv(backend=backend)
    env.reset()
    before = env.state_dict()
    with pytest.raises(ValueError, match=message):
        env.step(action)
    after = env.state_dict()
    assert torch.equal(before['cells'], after['cells'])
    assert before['clock'] == after['clock']


def test_a_step_needs_a_start() -> None:
    with pytest.raises(RuntimeError, match=r'call reset\(\) before step\(\)'):
        JungleEnv().step(torch.zeros(20, dtype=torch.int64))


@pytest.mark.parametrize(
    ('agents', 'foods', 'message'),
    [
        ([[1, 1]], [[2, 2]], r"'agents' needs one \(y, x\) per entity: expected shape \(1, 2, 2\), got \(1, 1, 2\)"),
        ([[1, 1], [0, 3]], [[2, 2]], r"'agents' must lie on free cells, 1..4 .* \(got 0..3\)"),
        ([[1, 1], [1, 3]], [[2, 5]], "'foods' must lie on free cells"),
        ([[1, 1], [1, 3]], [[1, 3]], 'must stand on distinct cells .* in graph 0'),
        ([[1.0, 1.0], [1.0, 3.0]], [[2, 2]], "'agents' must hold integers"),
    ],
)
def test_bad_positions_are_refused(agents: Any, foods: Any, message: str) -> None:
    env = JungleEnv(num_agents=2, num_foods=1, size=6)
    with pytest.raises(ValueError, match=message):
        env.set_positions(torch.tensor([agents]), torch.tensor([foods]))


def test_a_state_of_another_jungle_is_refused() -> None:
    state = JungleEnv(num_agents=5).state_dict()
    with pytest.raises(ValueError, match='num_agents=5 where this env has 20'):
        JungleEnv().load_state_dict(state)


@pytest.mark.parametrize('options', ['default', 'directed', 'crowd', 'everybody', 'radius', 'gains in a crowd'])
def test_declared_symmetries_hold_for_whole_episodes(options):
    config = OPTIONS[options]
    env, other = JungleEnv(num_envs=2, seed=0, **config), JungleEnv(num_envs=2, seed=1, **config)
    symmetries, at = Symmetries(env.spec.symmetries), (2 * env.config.view + 1) ** 2  # the column of y; then x
    assert symmetries.count == 8
    for s, symmetry in enumerate(env.spec.symmetries):
        which = torch.full((2,), s)
        own = torch.tensor(symmetry.feature[at : at + 2]) - at
        tables = (symmetry.feature_sign, symmetry.feature_shift)
        sign, shift = (torch.tensor(table[at : at + 2]).long() for table in tables)
        graph = env.reset(s)
        other.reset(0)
        cells = (c[..., own] * sign + shift for c in (env.agent_positions, env.food_positions))
        turned = other.set_positions(*cells, env.high if env.config.attack_gain_high is not None else None)
        chance = torch.Generator().manual_seed(s)
        for _ in range(25):
            assert_same_graph(symmetries.view(graph, which), turned)
            action = random_action(env, chance)
            step, mirrored = env.step(action), other.step(symmetries.actions(action, which[graph.batch]))
            assert torch.equal(step.reward, mirrored.reward)
            graph, turned = step.graph, mirrored.graph
