"""Payoffs by hand and by a slow reference, the laws of what is drawn, and the contract."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch

from ltos_pyg.envs import DilemmasConfig, DilemmasEnv
from ltos_pyg.graph_env import check_env

GAMES: dict[str, dict[str, Any]] = {
    'groups': {'graph': 'groups'},
    'double_star': {'graph': 'double_star'},
    **{t: {'graph': 'offers', 'topology': t, 'num_agents': 9} for t in ('ring', 'star', 'tree', 'ba')},
}
HUNT, WORK, TEMPT = 0, 1, 2
GRAIN = 2**24


def at(state: dict[str, Any], **options: Any) -> DilemmasEnv:
    """An environment of one episode in this state."""
    env = DilemmasEnv(reward_scale=1.0, **options)
    env.reset()
    saved = env.state_dict()
    saved['state'].update({name: torch.tensor(value) for name, value in state.items()})
    env.load_state_dict(saved)
    return env


def random_play(env: DilemmasEnv, steps: int, seed: int = 0) -> list[tuple[Batch, dict[str, Tensor], Tensor, Any]]:
    """Graph, state, action and step of each step."""
    rng, graph, seen = torch.Generator().manual_seed(seed), env.reset(), []
    for _ in range(steps):
        state, action = env.state, torch.randint(2, (graph.num_nodes,), generator=rng)
        step = env.step(action)
        seen.append((graph, state, action, step))
        graph = step.graph
    return seen


@pytest.mark.parametrize(
    ('kind', 'action', 'payoff'),
    [
        (HUNT, [1, 1, 1, 1], [4, 4, 4, 4]),
        (HUNT, [1, 1, 1, 0], [-8, -8, -8, 1]),
        (HUNT, [0, 0, 0, 0], [1, 1, 1, 1]),
        (WORK, [1, 1, 1, 1], [3, 3, 3, 3]),
        (WORK, [1, 0, 1, 0], [21, -18, 21, -18]),
        (TEMPT, [1, 1, 1, 1], [-6, -6, -6, -6]),
        (TEMPT, [0, 1, 0, 0], [-6, 12, -6, -6]),
    ],
)
def test_payoffs_in_groups(kind: int, action: list[int], payoff: list[float]) -> None:
    """The group of agents 1, 2, 5, 6 plays the row; the other one stays in its hunt and gets 1 each."""
    env = at({'members': [[[0, 3, 4, 7], [1, 2, 5, 6]]], 'kind': [[HUNT, kind]]})
    played = torch.zeros(8, dtype=torch.int64)
    played[[1, 2, 5, 6]] = torch.tensor(action)
    reward = env.step(played).reward
    assert reward[[1, 2, 5, 6]].tolist() == payoff
    assert reward[[0, 3, 4, 7]].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ('state', 'action', 'payoff'),
    [
        ({'kind': [0], 'hub': [0]}, [1, 1, 1, 1, 0, 0], [4, 4, 4, 4, 0, 0]),
        ({'kind': [0], 'hub': [0]}, [1, 1, 0, 1, 1, 1], [-8, -8, 1, -8, 0, 0]),
        ({'kind': [0], 'hub': [3]}, [1, 0, 0, 1, 1, 1], [4, 0, 0, 4, 4, 4]),
        ({'kind': [1], 'edge': [0]}, [1, 1, 1, 1, 1, 1], [45, -30, 0, 0, 0, 0]),  # edges by receiver: 1 -> 0 is first
        ({'kind': [2], 'edge': [0]}, [1, 0, 0, 0, 0, 0], [30, -45, 0, 0, 0, 0]),
        ({'kind': [1], 'edge': [0]}, [0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]),
        ({'kind': [2], 'edge': [9]}, [0, 0, 0, 0, 0, 1], [0, 0, 0, -45, 0, 30]),  # 3 -> 5 is last
    ],
)
def test_payoffs_on_the_double_star(state: dict[str, Any], action: list[int], payoff: list[float]) -> None:
    env = at(state, graph='double_star')
    assert env.step(torch.tensor(action)).reward.tolist() == payoff


def test_payoffs_of_offers() -> None:
    """A star of 3: both leaves harm the hub 0, which harms leaf 2. Edges: 1 -> 0, 2 -> 0, 0 -> 1, 0 -> 2."""
    state = {
        'has': [[True, True, True]],
        'gain': [[GRAIN // 2, GRAIN // 4, GRAIN // 8]],
        'harm': [[GRAIN // 4, GRAIN // 2, GRAIN // 2]],
        'victim': [[1, 2, 3]],
    }
    env = at(state, graph='offers', topology='star', num_agents=3)
    assert env.harms(torch.tensor([1, 0, 1])).tolist() == [[0, 2], [2, 0]]
    step = env.step(torch.tensor([1, 0, 1]))
    assert step.reward.tolist() == [0.5 - 0.5, 0, 0.125 - 0.25]


@pytest.mark.parametrize(
    ('action', 'hunt', 'work', 'tempt'),
    [
        ([1, 1, 1, 1] * 2 + [0, 0, 0, 0], 0, 0, 0),
        ([0, 0, 0, 0] * 3, 16 - 4, 12, 0),
        ([1, 0, 0, 0] * 3, 16 - (3 - 8), 12 - (30 - 27), 18 - 12),
        ([1, 1, 1, 1] * 3, 0, 0, 4 * 6),
    ],
)
def test_losses_in_groups(action: list[int], hunt: float, work: float, tempt: float) -> None:
    """One group of each kind, in this order; E[best] is 12 * 7/3 = 28."""
    members, kinds = torch.arange(12).view(1, 3, 4).tolist(), [[HUNT, WORK, TEMPT]]
    info = at({'members': members, 'kind': kinds}, num_agents=12).step(torch.tensor(action)).info
    expected = {
        'optimality': 1 - (hunt + work + tempt) / 28,
        'lost_hunt': hunt / 28,
        'lost_work': work / 28,
        'lost_tempt': tempt / 28,
    }
    assert {key: value.item() for key, value in info.items()} == pytest.approx(expected)


@pytest.mark.parametrize(
    ('state', 'action', 'lost'),
    [
        ({'kind': [0], 'hub': [3]}, [1, 0, 0, 1, 1, 1], {}),
        ({'kind': [0], 'hub': [3]}, [0, 1, 1, 0, 0, 0], {'lost_hunt': 16 - 4}),
        ({'kind': [0], 'hub': [3]}, [0, 1, 1, 1, 1, 1], {'lost_hunt': 16 + 23}),
        ({'kind': [1], 'edge': [0]}, [1, 0, 0, 0, 0, 0], {}),  # edges by receiver: 1 -> 0 is first
        ({'kind': [1], 'edge': [0]}, [0, 1, 1, 1, 1, 1], {'lost_good': 15}),
        ({'kind': [2], 'edge': [0]}, [0, 1, 1, 1, 1, 1], {}),
        ({'kind': [2], 'edge': [0]}, [1, 0, 0, 0, 0, 0], {'lost_bad': 15}),
    ],
)
def test_losses_on_the_double_star(state: dict[str, Any], action: list[int], lost: dict[str, float]) -> None:
    """E[best] is (16 + 15 + 0) / 3 = 31/3."""
    info = at(state, graph='double_star').step(torch.tensor(action)).info
    assert info.pop('optimality').item() == pytest.approx(1 - sum(lost.values()) * 3 / 31)
    expected = {key: lost.get(key, 0) * 3 / 31 for key in ('lost_hunt', 'lost_good', 'lost_bad')}
    assert {key: value.item() for key, value in info.items()} == pytest.approx(expected)


@pytest.mark.parametrize(
    ('action', 'good', 'bad'),
    [
        ([1, 0, 0, 0], 0, 0),
        ([0, 0, 0, 0], 0.25, 0),
        ([1, 1, 0, 0], 0, 0.375),
        ([0, 1, 1, 1], 0.25, 0.375),  # 2's offer is as good as bad, 3 has none
    ],
)
def test_losses_of_offers(action: list[int], good: float, bad: float) -> None:
    """A star of 4, so that E[best] is 4/12."""
    state = {
        'has': [[True, True, True, False]],
        'gain': [[GRAIN // 2, GRAIN // 8, GRAIN // 2, 0]],
        'harm': [[GRAIN // 4, GRAIN // 2, GRAIN // 2, 0]],
        'victim': [[0, 3, 4, 5]],
    }
    info = at(state, graph='offers', topology='star', num_agents=4).step(torch.tensor(action)).info
    assert {key: value.item() for key, value in info.items()} == pytest.approx(
        {'optimality': 1 - 3 * (good + bad), 'lost_good': 3 * good, 'lost_bad': 3 * bad}
    )


@pytest.mark.parametrize('name', GAMES)
def test_losses_add_up(name: str) -> None:
    for _, _, _, step in random_play(DilemmasEnv(num_envs=5, **GAMES[name]), 30):
        optimality, *lost = step.info.values()
        assert all((value >= 0).all() for value in lost)
        torch.testing.assert_close(1 - sum(lost), optimality, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('name', GAMES)
def test_the_best_of_all_joint_actions_has_an_optimality_of_1(name: str) -> None:
    """In each state: all joint actions side by side. Optimality is their reward but for a constant."""
    options = {**GAMES[name], 'num_agents': 8 if name == 'groups' else 6}
    one, all_of_them = (DilemmasEnv(num_envs=B, **options) for B in (1, 2 ** options['num_agents']))
    action = torch.cartesian_prod(*[torch.arange(2)] * options['num_agents'])
    expected = one.config.optimum * one.config.scale
    one.reset()
    for _ in range(12):
        saved = one.state_dict()
        saved['streams'] = saved['streams'].expand(len(action))
        for part in ('graphs', 'state'):
            saved[part] = {key: value.expand(len(action), *value.shape[1:]) for key, value in saved[part].items()}
        all_of_them.load_state_dict(saved)
        step = all_of_them.step(action.flatten())
        assert step.info['optimality'].max() == 1
        ratio = step.reward.view(action.shape).mean(1) / expected
        torch.testing.assert_close(step.info['optimality'], ratio - ratio.max() + 1, atol=1e-4, rtol=1e-4)
        one.step(action[0])


@pytest.mark.parametrize('name', GAMES)
def test_optimality_is_on_average_the_reward_over_the_optimum(name: str) -> None:
    env = DilemmasEnv(num_envs=500, **GAMES[name])
    steps = [step for _, _, _, step in random_play(env, 20)]
    ratio = torch.cat([step.reward.view(500, -1).mean(1) for step in steps]) / (env.config.optimum * env.config.scale)
    difference = torch.cat([step.info['optimality'] for step in steps]) - ratio
    assert abs(difference.mean()) < 4 * difference.std() / len(difference) ** 0.5 < 0.05


@pytest.mark.parametrize('name', ['ring', 'star', 'tree', 'ba'])
def test_offers_pay_as_a_loop_over_agents_says(name: str) -> None:
    env = DilemmasEnv(num_envs=4, **GAMES[name])
    for graph, state, action, step in random_play(env, 15):
        reward, E = torch.zeros(graph.num_nodes), env.spec.max_edges
        for b in range(4):
            for i in range(9):
                if state['has'][b, i] and action[9 * b + i]:
                    victim, receiver = graph.edge_index[:, E * b + int(state['victim'][b, i])].tolist()
                    assert receiver == 9 * b + i
                    reward[receiver] += state['gain'][b, i] / GRAIN
                    reward[victim] -= state['harm'][b, i] / GRAIN
        torch.testing.assert_close(step.reward, reward)


@pytest.mark.parametrize('name', GAMES)
def test_one_action_that_knows_the_state_is_the_optimum(name: str) -> None:
    """Hunt, work, take where it is good for the team: 1 at every step, without a loss."""
    env = DilemmasEnv(num_envs=200, horizon=5, **GAMES[name])
    graph = env.reset()
    for _ in range(10):
        x = graph.x
        if name == 'groups':
            action = x[:, 2] == 0
        elif name == 'double_star':
            action = (x[:, 0] == 1) | (x[:, 3] == 1)
        else:
            action = x[:, 1] > x[:, 2]
        step = env.step(action.long())
        optimality, *lost = step.info.values()
        assert (optimality == 1).all()
        assert not torch.stack(lost).any()
        graph = step.graph


def test_what_agents_see_on_the_double_star() -> None:
    hunt = at({'kind': [0], 'hub': [3]}, graph='double_star')
    x = hunt._batch().x
    assert x[:, 0].tolist() == [1, 0, 0, 1, 1, 1]
    assert x[:, 1].tolist() == [0, 0, 0, 1, 0, 0]
    assert not x[:, 2:6].any()
    assert x[:, 6].tolist() == [0.75, 0.25, 0.25, 0.75, 0.25, 0.25]
    assert not hunt._batch().edge_attr.any()
    offer = at({'kind': [2], 'edge': [0]}, graph='double_star')._batch()  # 0 may harm 1
    assert offer.x[0].tolist() == [0, 0, 1, -1, 0, 0, 0.75]
    assert offer.x[1].tolist() == [0, 0, 0, 0, 1, -1, 0.25]
    assert not offer.x[2:, :6].any()
    ends = dict(zip(map(tuple, offer.edge_index.t().tolist()), offer.edge_attr.tolist(), strict=True))
    assert ends.pop((1, 0)) == [1, -1, 0, 0]
    assert ends.pop((0, 1)) == [0, 0, 1, -1]
    assert not any(map(any, ends.values()))


def test_what_agents_see_of_offers() -> None:
    env = DilemmasEnv(num_envs=3, graph='offers', num_agents=9)
    graph, take = env.reset(), torch.ones(27, dtype=torch.int64)
    for _ in range(5):
        x, sender, receiver, state, everything = graph.x, *graph.edge_index, env.state, env.harms(take)
        pairs = set(map(tuple, everything.t().tolist()))
        gain, harm = (state[key].flatten() / GRAIN for key in ('gain', 'harm'))
        assert torch.equal(x[:, 0].bool(), state['has'].flatten())
        torch.testing.assert_close(x[:, 1:3], torch.stack([gain, harm], 1).float())
        threats = torch.zeros(27, 2).index_add(0, everything[1], torch.stack([torch.ones(27), harm], 1)[everything[0]])
        torch.testing.assert_close(x[:, 3:5], threats / torch.tensor([4.0, 1.0]))
        torch.testing.assert_close(x[:, 5], torch.bincount(receiver, minlength=27) / 4)
        for j, i, attr in zip(sender.tolist(), receiver.tolist(), graph.edge_attr, strict=True):
            for (one, other), part in (((i, j), attr[:3]), ((j, i), attr[3:])):
                expected = [1, gain[one], harm[one]] if (one, other) in pairs else [0, 0, 0]
                torch.testing.assert_close(part, torch.tensor(expected, dtype=torch.float32))
        graph = env.step(take).graph


def test_harms_in_groups_go_to_the_three_others() -> None:
    env = at({'members': [[[0, 1, 2, 3], [4, 5, 6, 7]]], 'kind': [[TEMPT, HUNT]]})
    done = env.harms(torch.tensor([0, 1, 0, 0, 1, 1, 0, 0]))
    assert set(map(tuple, done.t().tolist())) == {(1, 0), (1, 2), (1, 3)}


# --- What is drawn ---------------------------------------------------------------------------------------------------


def test_groups_are_drawn_anew_and_evenly() -> None:
    env, steps = DilemmasEnv(num_envs=100, num_agents=12, horizon=40), 40
    together, kinds = torch.zeros(12, 12), torch.zeros(3)
    for graph, state, _, _ in random_play(env, steps):
        together.index_put_(tuple(graph.edge_index % 12), torch.ones(1), accumulate=True)
        kinds += torch.bincount(state['kind'].flatten(), minlength=3)
        assert torch.equal(state['members'].flatten(1).sort(1).values, torch.arange(12).expand(100, -1))
        same = graph.x[graph.edge_index[0]] == graph.x[graph.edge_index[1]]
        assert bool(same.all())
    share = together[~torch.eye(12, dtype=torch.bool)] / (100 * steps)
    assert (share - 3 / 11).abs().max() < 5 * (3 / 11 * 8 / 11 / (100 * steps)) ** 0.5
    assert (kinds / kinds.sum() - 1 / 3).abs().max() < 4 * (2 / 9 / float(kinds.sum())) ** 0.5


def test_states_of_the_double_star_are_as_likely_as_the_docs_say() -> None:
    played = random_play(DilemmasEnv(num_envs=300, graph='double_star'), 20)
    states = {key: torch.cat([state[key] for _, state, _, _ in played]) for key in ('kind', 'hub', 'edge')}
    for key, values in (('kind', [0, 1, 2]), ('hub', [0, 3]), ('edge', list(range(10)))):
        share = torch.tensor([(states[key] == value).float().mean() for value in values])
        assert (share - 1 / len(values)).abs().max() < 4 * (0.25 / 6000) ** 0.5


@pytest.mark.parametrize('num_agents', [2, 3, 7, 30])
@pytest.mark.parametrize('topology', ['ring', 'star', 'tree', 'ba'])
def test_graphs_are_connected_and_have_their_degrees(topology: Any, num_agents: int) -> None:
    env = DilemmasEnv(num_envs=6, graph='offers', topology=topology, num_agents=num_agents)
    batch = env.reset()
    for graph in batch.to_data_list():
        closed = torch.eye(num_agents)
        closed[graph.edge_index[0], graph.edge_index[1]] = 1
        assert bool((torch.linalg.matrix_power(closed, num_agents) > 0).all())
        degree = closed.sum(1) - 1
        if topology == 'ring':
            assert set(degree.tolist()) == {min(2, num_agents - 1)}
        elif topology == 'star':
            assert degree.tolist() == [num_agents - 1, *[1] * (num_agents - 1)]
        elif topology == 'tree':
            assert degree.sum() == 2 * (num_agents - 1)
        else:
            assert degree.sum() == 2 * 2 * (num_agents - 2) if num_agents > 2 else 2
            assert degree[2:].min() >= 2 if num_agents > 2 else 1


def drawn(**options: Any) -> Tensor:
    """Degrees (4000, N) of random graphs."""
    env = DilemmasEnv(num_envs=4000, graph='offers', **options)
    graph = env.reset()
    return torch.bincount(graph.edge_index[1], minlength=graph.num_nodes).view(4000, -1)


def test_a_tree_joins_each_agent_to_a_uniform_earlier_one() -> None:
    """Agent k gets 1 / l of each later l; all but the first have a parent."""
    degree = drawn(topology='tree', num_agents=8).double()
    expected = torch.tensor([sum(1 / later for later in range(max(k, 0) + 1, 8)) + (k > 0) for k in range(8)])
    assert (degree.mean(0) - expected).abs().max() < 4 * 1.2 / 4000**0.5


@pytest.mark.parametrize(
    ('attach', 'sequence', 'probability'),
    [
        (1, [1, 1, 1, 3], 1 / 2),  # a path of 3 becomes a star: 2 of 4 ends of edges are the middle's
        (2, [2, 2, 2, 2], 1 / 6),  # to both leaves of a star of 3: 2 * 1/4 * 1/3
    ],
)
def test_preferential_attachment_follows_degrees(attach: int, sequence: list[int], probability: float) -> None:
    degree = drawn(topology='ba', num_agents=4, attach=attach).sort(1).values
    share = (degree == torch.tensor(sequence)).all(1).double().mean()
    assert abs(share - probability) < 4 * (probability * (1 - probability) / 4000) ** 0.5


def test_random_graphs_last_for_an_episode() -> None:
    played = random_play(DilemmasEnv(num_envs=3, graph='offers', horizon=4), 9)
    edges = [graph.edge_index for graph, _, _, _ in played]
    lasts = [torch.equal(one, other) for one, other in pairwise(edges)]
    assert lasts == [True, True, True, False, True, True, True, False]
    assert [step.truncated.all().item() for _, _, _, step in played] == [*[False] * 3, True, *[False] * 3, True, False]
    assert torch.equal(played[3][3].successor.edge_index, edges[3])
    assert not any(step.terminated.any() for _, _, _, step in played)


@pytest.mark.parametrize('name', GAMES)
def test_a_graph_is_the_same_in_a_batch_of_any_size(name: str) -> None:
    small, large = (DilemmasEnv(num_envs=B, seed=4, horizon=3, **GAMES[name]) for B in (2, 9))
    action = torch.randint(2, (9 * small.config.agents,), generator=torch.Generator().manual_seed(0))
    few, many = small.reset(), large.reset()
    for _ in range(8):
        for one, other in zip(few.to_data_list(), many.to_data_list(), strict=False):
            assert all(torch.equal(one[key], other[key]) for key in one.keys())  # noqa: SIM118
        steps = small.step(action[: few.num_nodes]), large.step(action)
        assert torch.equal(steps[0].reward, steps[1].reward[: few.num_nodes])
        assert all(torch.equal(value, steps[1].info[key][:2]) for key, value in steps[0].info.items())
        few, many = (step.graph for step in steps)
    assert len({tuple(graph.x.flatten().tolist()) for graph in many.to_data_list()}) > 2


# --- The contract ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', GAMES)
def test_the_contract_holds(name: str) -> None:
    check_env(lambda: DilemmasEnv(num_envs=3, horizon=7, **GAMES[name]), steps=25)


@pytest.mark.parametrize('name', GAMES)
def test_a_batch_is_its_graphs_side_by_side(name: str) -> None:
    graph = DilemmasEnv(num_envs=3, **GAMES[name]).reset()
    again = Batch.from_data_list(graph.to_data_list())
    assert set(graph.keys()) == set(again.keys())
    assert all(torch.equal(graph[key], again[key]) for key in graph.keys())  # noqa: SIM118


def test_a_config_is_the_options() -> None:
    config = DilemmasConfig(graph='offers', topology='tree', num_agents=5)
    env = DilemmasEnv(num_envs=2, seed=3, device='cpu', **dataclasses.asdict(config))
    assert env.config == config
    assert (env.spec.max_nodes, env.spec.max_edges, env.spec.edge_dim) == (5, 8, 6)
    assert [DilemmasConfig(graph=g).agents for g in ('groups', 'double_star', 'offers')] == [8, 6, 20]
    assert [DilemmasConfig(graph=g).scale for g in ('groups', 'double_star', 'offers')] == [0.1, 0.1, 1]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'graph': 'group'}, r"'graph' must be one of groups, double_star, offers \(got 'group'\)"),
        ({'topology': 'line'}, "'topology' must be one of ring, star, tree, ba"),
        ({'num_agents': 10}, r'multiple of 4, .* \(got 10\). Try 8'),
        ({'graph': 'double_star', 'num_agents': 8}, r'must be 6 or None on the double star \(got 8\)'),
        ({'graph': 'offers', 'num_agents': 1}, "'num_agents' must be an integer of at least 2"),
        ({'attach': 0}, "'attach' must be"),
        (
            {'topology': 'ring'},
            r"'topology' and 'attach' are options of --graph offers \(got 'ring' and 2, with 'groups'",
        ),
        ({'graph': 'double_star', 'attach': 3}, r"are options of --graph offers \(got 'ba' and 3, with 'double_star'"),
        ({'graph': 'offers', 'topology': 'tree', 'attach': 3}, r"'attach' is an option of --topology ba \(got 3, with"),
        ({'horizon': 0}, "'horizon' must be"),
        ({'num_envs': True}, "'num_envs' must be an integer"),
        ({'reward_scale': 0.0}, r"'reward_scale' must be a positive number \(got 0.0\)"),
        ({'seed': -1}, "'seed' must be an integer"),
    ],
)
def test_nonsense_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DilemmasEnv(**options)


def test_bad_actions_and_states_are_refused() -> None:
    env = DilemmasEnv(num_envs=2)
    with pytest.raises(RuntimeError, match=r'call reset\(\) before step'):
        env.step(torch.zeros(16, dtype=torch.int64))
    env.reset()
    with pytest.raises(ValueError, match=r'expected shape \(16,\), got \(8,\)'):
        env.step(torch.zeros(8, dtype=torch.int64))
    with pytest.raises(ValueError, match=r'must lie in \[0, 1\]'):
        env.harms(torch.full((16,), 2))
    with pytest.raises(ValueError, match='of 2 episodes, expected num_envs=3'):
        DilemmasEnv(num_envs=3).load_state_dict(env.state_dict())
    with pytest.raises(ValueError, match=r'of another game: expected .*double_star'):
        DilemmasEnv(num_envs=2, graph='double_star').load_state_dict(env.state_dict())
