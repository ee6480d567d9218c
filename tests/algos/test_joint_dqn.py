"""JointDQN: joint actions and their numbers, the team's loss, and the laws that every algorithm keeps."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from algos_zoo import Crowd, Loop, chance, crowd, differing, flat, make, sample, trained, weights
from torch import Tensor
from torch.testing import assert_close
from torch_geometric.data import Batch as GraphBatch

from ltos_pyg.algos import JointDQN, JointDQNConfig
from ltos_pyg.algos.losses import td_loss
from ltos_pyg.algos.team import joint_mask, side_by_side, team_discount, team_reward
from ltos_pyg.data import Snapshot
from ltos_pyg.envs import JungleEnv, PrisonerEnv
from ltos_pyg.graph_env import GraphEnv, SingleGraphEnv, SingleStep, Symmetries, VectorGraphEnv, fully_connected
from ltos_pyg.graph_env.spec import GraphEnvSpec


def prisoner(num_envs: int = 4) -> GraphEnv:
    return PrisonerEnv(num_envs)


def hunt(num_envs: int = 4) -> GraphEnv:
    return JungleEnv(num_envs=num_envs, num_agents=2, num_foods=2, size=6, horizon=9)


class Three(SingleGraphEnv):
    """Three agents of two actions; the clock forbids all of them one action, and one of them may only wait."""

    num_features, num_actions, max_nodes, symmetric, has_action_mask, horizon = 2, 2, 3, True, True, 5

    def start(self) -> Snapshot:
        return self.look()

    def step(self, action: Tensor) -> SingleStep:
        assert self.mask.gather(1, action.unsqueeze(1)).all(), 'an illegal action was taken'
        return SingleStep(self.look(), action.float())

    def look(self) -> Snapshot:
        self.mask = torch.rand(3, 2, generator=self.generator) < 0.5
        self.mask[:, 0] = True
        x = torch.rand(3, 2, generator=self.generator)
        return Snapshot(x=x, edge_index=fully_connected(3)[:, :0], action_mask=self.mask)  # everyone is alone


def three(num_envs: int = 4) -> GraphEnv:
    return VectorGraphEnv(Three, num_envs)


every_game = pytest.mark.parametrize('make_env', [prisoner, hunt, three])


# --- joint actions ---------------------------------------------------------------------------------------------------


def test_joint_actions_are_numbered_with_the_last_agent_fastest():
    algo = make('joint_dqn', three())
    joint = torch.arange(8)
    expected = torch.cartesian_prod(*[torch.arange(2)] * 3)
    assert torch.equal(algo.decode(joint).view(8, 3), expected)
    assert torch.equal(algo.encode(expected.flatten()), joint)
    pair = make('joint_dqn', hunt())
    assert pair.encode(torch.tensor([4, 7])).tolist() == [4 * 9 + 7]  # a_A |A| + a_B


def test_a_joint_action_is_allowed_where_each_of_its_actions_is():
    mask = torch.rand(5, 3, 4, generator=torch.Generator().manual_seed(0)) < 0.6
    joint = joint_mask(mask)
    every = torch.cartesian_prod(*[torch.arange(4)] * 3)
    for b in range(5):
        expected = [bool(mask[b, 0, a] & mask[b, 1, c] & mask[b, 2, d]) for a, c, d in every.tolist()]
        assert joint[b].tolist() == expected


def test_what_a_team_gets_and_how_long_it_lasts():
    graph = Batch([2, 0, 3])
    reward = torch.tensor([1.0, 2.0, 3.0, 4.0, 8.0])
    assert team_reward(reward, graph, 'sum').tolist() == [3, 0, 15]
    assert team_reward(reward, graph, 'mean').tolist() == [1.5, 0, 5]
    assert team_discount(torch.tensor([0.0, 0.9, 0.0, 0.0, 0.0]), graph).tolist() == pytest.approx([0.9, 0, 0])
    x = torch.arange(1.0, 6).unsqueeze(1)
    table = side_by_side(x, graph, torch.tensor([1, 0, 2, 0, 1]), 3)
    assert table.tolist() == [[2, 1, 0], [0, 0, 0], [4, 5, 3]]


class Batch:
    """As much of a batch as these functions look at."""

    def __init__(self, sizes: list[int]) -> None:
        self.num_graphs, self.ptr = len(sizes), torch.tensor([0, *sizes]).cumsum(0)
        self.batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


# --- acting and learning ---------------------------------------------------------------------------------------------


@every_game
def test_it_acts_for_all_by_the_best_joint_action(make_env):
    algo, graph = trained('joint_dqn', 6, make_env), make_env(8).reset(5)
    q = algo.q_values(algo.averaged, graph, None)
    mask = algo.mask(graph)
    best = (q if mask is None else q.masked_fill(~mask, -torch.inf)).argmax(1)
    action = algo.act(graph).action
    assert torch.equal(algo.encode(action), best)
    assert action.shape == (graph.num_nodes,)


def test_it_explores_over_joint_actions():
    env = PrisonerEnv(400)
    algo = make('joint_dqn', env, epsilon_start=0.5, greedy_fraction=0.5, replay_size=2_000)
    graph = env.reset(0)
    differs = (algo.act(graph, explore=True).action != algo.act(graph).action).view(400, 2)
    assert 0.28 < differs.any(1).float().mean() < 0.47  # three of four random joint actions differ: 0.375
    algo.env_steps = 400
    differs = (algo.act(graph, explore=True).action != algo.act(graph).action).view(400, 2)
    assert not differs[200:].any()
    assert algo.act(graph, explore=True).sharing is None


@every_game
@pytest.mark.parametrize(('kind', 'gap'), [('mean', 0.0), ('sum', 0.5)])
def test_the_loss_is_that_of_the_graphs_one_by_one(make_env, kind, gap):
    algo = trained('joint_dqn', 6, make_env, team_reward=kind, action_gap=gap)
    t, size = sample(algo), algo.num_agents
    scale = 1.0 if algo.inputs.feature_scale is None else algo.inputs.feature_scale

    def values(network: Any, graph: Any, b: int) -> Tensor:
        row = network((graph[b].x * scale).float().flatten().unsqueeze(0), torch.zeros(2, 0, dtype=torch.int64))[0]
        mask = graph[b].get('action_mask')
        if mask is None:
            return row
        allowed = [all(mask[i, a] for i, a in enumerate(joint)) for joint in every]
        return row.masked_fill(~torch.tensor(allowed), -1e9)

    every = torch.cartesian_prod(*[torch.arange(algo.spec.num_actions)] * size).tolist()
    value, target = [], []
    for b in range(t.num_graphs):
        nodes = slice(b * size, (b + 1) * size)
        taken = every.index(t.action[nodes].tolist())
        q = values(algo.network, t.graph, b)
        best = values(algo.network, t.successor, b).argmax()
        reward = t.reward[nodes].sum() / (size if kind == 'mean' else 1)
        y = reward + t.discount[nodes][0] * values(algo.target, t.successor, b)[best]
        value.append(q[taken])
        target.append((y - gap * (q.max() - q[taken])).detach())
    assert_close(algo.loss(t)[0], td_loss(torch.stack(value), torch.stack(target)))


@every_game
def test_every_tensor_learns(make_env):
    env = make_env()
    algo = make('joint_dqn', env)
    before = weights(algo.network)
    Loop(algo, env).until(9)
    assert len(differing(before, weights(algo.network))) == len(before)


@every_game
def test_the_same_seed_gives_the_same_weights_also_after_a_resume(make_env):
    whole = flat(trained('joint_dqn', 40, make_env).state_dict())
    env = make_env()
    if env.state_dict() is None:
        assert differing(whole, flat(trained('joint_dqn', 40, make_env).state_dict())) == []
        return
    loop = Loop(make('joint_dqn', env), env).until(20)
    file = io.BytesIO()
    torch.save({'algo': loop.algo.state_dict(), 'env': env.state_dict()}, file)
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    again = Loop(make('joint_dqn', env, seed=3), make_env(), seed=9)
    again.algo.load_state_dict(state['algo'])
    again.graph = again.env.load_state_dict(state['env'])
    assert differing(whole, flat(again.until(40).algo.state_dict())) == []


def test_its_rng_is_its_own():
    algo = trained('joint_dqn', 6, prisoner)
    before, outside = chance(algo), torch.get_rng_state()
    algo.act(prisoner().reset(4))
    assert differing(before, chance(algo)) == []
    algo.act(prisoner().reset(4), explore=True)
    assert differing(before, chance(algo)) == ['.explore']
    assert torch.equal(outside, torch.get_rng_state())


def test_greedy_decisions_over_all_views_turn_with_the_board():
    algo, env = trained('joint_dqn', 6, hunt, average_views=True), hunt(3)
    symmetries, graph, which = Symmetries(env.spec.symmetries), env.reset(0), torch.tensor([5, 2, 0])
    straight, turned = algo.act(graph).action, algo.act(symmetries.view(graph, which)).action
    assert torch.equal(turned, symmetries.actions(straight, which[graph.batch]))


@pytest.mark.slow
def test_the_prisoners_start_is_worth_half_of_the_joint_optimum():
    env = PrisonerEnv(16)
    options = {'total_steps': 20_000, 'gamma': 0.99, 'batch_size': 64, 'lr': 2e-3, 'replay_size': 5_000}
    config = JointDQNConfig(
        **options, n_step=1, train_freq=16, hidden_channels=32, encoder_channels=(32,), tau=0.05, epsilon_end=0.5
    )
    algo = Loop(JointDQN(env.spec, config), env).until(1_100).algo
    start = env.reset(0)
    with torch.no_grad():
        value = 2 * algo.q_values(algo.network, start, None).max(1).values
    assert_close(value, torch.full((16,), 1.9008), atol=0.04, rtol=0)  # twice the coco value, 0.9504


# --- errors ----------------------------------------------------------------------------------------------------------


def test_a_game_of_too_many_joint_actions_is_refused():
    with pytest.raises(ValueError, match=r'such as the prisoner, got 9\^20 \(9 actions, 20 agents\)\. Take qmix'):
        make('joint_dqn', JungleEnv())


def test_agents_that_come_and_go_are_refused():
    with pytest.raises(ValueError, match=r'joint_dqn needs fixed agents \(spec.fixed_nodes\).* Take qmix'):
        make('joint_dqn', crowd())


def test_a_graph_that_lacks_an_agent_is_refused():
    class Few(Crowd):
        fixed_nodes, has_action_mask = True, False

        def start(self) -> Snapshot:
            return Snapshot(x=torch.ones(3, 2), edge_index=fully_connected(3))

        def step(self, action: Tensor) -> SingleStep:
            return SingleStep(self.start(), action.float())

    env = VectorGraphEnv(Few, 2)
    with pytest.raises(ValueError, match=r'expected 4 nodes in each, got \[3, 3\]\. Take qmix'):
        Loop(make('joint_dqn', env), env).until(1)


def test_an_option_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match=r"'team_reward' must be one of \('mean', 'sum'\) \(got 'best'\)"):
        JointDQNConfig(team_reward='best')  # type: ignore[arg-type]


def test_a_single_agent_is_dqn():
    spec = GraphEnvSpec(num_envs=1, num_features=2, num_actions=3, max_nodes=1, max_edges=0)
    joint, dqn = make('joint_dqn', SpecOnly(spec)), make('dqn', SpecOnly(spec))
    dqn.network.load_state_dict(joint.network.state_dict())
    x = torch.rand(1, 2)
    assert torch.equal(joint.network(x, torch.zeros(2, 0).long()), dqn.network(x, torch.zeros(2, 0).long()))


class SpecOnly:
    def __init__(self, spec: GraphEnvSpec) -> None:
        self.spec = spec


def test_all_graphs_have_all_agents_not_only_on_average():
    snapshots = [Snapshot(x=torch.zeros(n, 2), edge_index=fully_connected(n)) for n in (4, 2)]
    with pytest.raises(ValueError, match=r'expected 3 nodes in each, got \[4, 2\]'):
        make('joint_dqn', three(2)).act(GraphBatch.from_data_list(snapshots))
