"""QMIX: the published games with known optima, the team's loss, and the laws that every algorithm keeps."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from algos_zoo import (
    Crowd,
    Loop,
    OneShot,
    chance,
    crowd,
    differing,
    flat,
    isolated,
    jungle,
    make,
    sample,
    trained,
    weights,
)
from algos_zoo import without_edges as edgeless
from torch import Tensor
from torch.testing import assert_close

from ltos_pyg.algos import ALGORITHMS, NonFiniteLossError
from ltos_pyg.algos.losses import td_loss
from ltos_pyg.data import Snapshot
from ltos_pyg.graph_env import GraphEnv, SingleGraphEnv, SingleStep, VectorGraphEnv, fully_connected
from ltos_pyg.nn import QMixer
from ltos_pyg.training.policy import Policy

FORMS = ['slots', 'shared']
every_form = pytest.mark.parametrize('mixing', FORMS)
GAME: dict[str, Any] = {
    'total_steps': 100_000,
    'gamma': 0.99,
    'n_step': 1,
    'batch_size': 32,
    'lr': 5e-3,
    'lr_final_fraction': 1.0,
    'tau': 0.02,
    'huber': None,
    'ema_decay': 0.0,
    'epsilon_start': 1.0,
    'epsilon_end': 1.0,
    'greedy_fraction': 0.0,
    'replay_size': 4_000,
    'learning_starts': 500,
    'train_freq': 16.0,
    'hidden_channels': 32,
    'encoder_channels': (),
    'team_reward': 'sum',
}


class TwoStep(SingleGraphEnv):
    """The first agent's first action picks the second game: 7 whatever they do, or 0, 1, 1, 8."""

    num_features, num_actions, max_nodes, symmetric = 3, 2, 2, True
    payoff = torch.tensor([[[7.0, 7], [7, 7]], [[0, 1], [1, 8]]])

    def start(self) -> Snapshot:
        self.state = 0
        return self.look()

    def step(self, action: Tensor) -> SingleStep:
        if self.state == 0:
            self.state = 1 + int(action[0])
            return SingleStep(self.look(), torch.zeros(2))
        reward = self.payoff[self.state - 1, action[0], action[1]] / 2
        return SingleStep(self.look(), torch.full((2,), float(reward)), terminated=True)

    def look(self) -> Snapshot:
        return Snapshot(x=torch.eye(3)[self.state].repeat(2, 1), edge_index=fully_connected(2))


class Lure(TwoStep):
    """One game, whose best joint action no monotone mix can point at without overrating its neighbours."""

    num_features, num_actions = 1, 3
    payoff = torch.tensor([[[8.0, -12, -12], [-12, 0, 0], [-12, 0, 0]]])

    def start(self) -> Snapshot:
        self.state = 1
        return self.look()

    def look(self) -> Snapshot:
        return Snapshot(x=torch.ones(2, 1), edge_index=fully_connected(2))


def learn(algo: str, game: type[SingleGraphEnv], updates: int, **options: Any) -> Any:
    env = VectorGraphEnv(game, 16)
    maker, config = ALGORITHMS[algo]
    return Loop(maker(env.spec, config(**{**GAME, **options})), env).until(updates).algo


def table(algo: Any, x: Tensor) -> Tensor:
    """The value of each joint action of two agents that both see x, (A, A)."""
    size = algo.spec.num_actions
    graph = VectorGraphEnv(lambda: Still(x, size), size * size).reset(0)
    action = torch.cartesian_prod(torch.arange(size), torch.arange(size)).flatten()
    with torch.no_grad():
        q = algo.q_values(algo.network, graph, None)
        return algo.total(algo.network, graph, q, action).view(size, size)


class Still(SingleGraphEnv):
    max_nodes, symmetric = 2, True

    def __init__(self, x: Tensor, num_actions: int) -> None:
        self.x, self.num_features, self.num_actions = x, len(x), num_actions

    def start(self) -> Snapshot:
        return Snapshot(x=self.x.repeat(2, 1), edge_index=fully_connected(2))

    def step(self, action: Tensor) -> SingleStep:
        raise AssertionError('this game is looked at, not played')


# --- games with known optima ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_two_step_game_is_solved():
    algo = learn('qmix', TwoStep, 900)
    assert_close(table(algo, torch.eye(3)[2]), TwoStep.payoff[1], atol=0.3, rtol=0)
    assert_close(table(algo, torch.eye(3)[1]), TwoStep.payoff[0], atol=0.3, rtol=0)
    first = torch.tensor([[6.93, 6.93], [7.92, 7.92]])
    assert_close(table(algo, torch.eye(3)[0]), first, atol=0.3, rtol=0)
    assert playing(algo, TwoStep) == 8


@pytest.mark.slow
def test_a_plain_sum_of_values_fails_at_the_two_step_game(monkeypatch):
    """Value decomposition networks: the mixer with all weights one."""

    def as_sum(self: QMixer, q: Tensor, state: Tensor, batch: Tensor, node: Tensor) -> Tensor:
        return q.new_zeros(len(state)).index_add(0, batch, q)

    monkeypatch.setattr(QMixer, 'forward', as_sum)
    algo = learn('qmix', TwoStep, 900)
    assert_close(table(algo, torch.eye(3)[2]), torch.tensor([[-1.5, 2.5], [2.5, 6.5]]), atol=0.5, rtol=0)
    assert_close(table(algo, torch.eye(3)[0]).max(1).values, torch.tensor([6.93, 6.44]), atol=0.3, rtol=0)
    assert playing(algo, TwoStep) == 7


@pytest.mark.slow
def test_what_is_not_monotone_cannot_be_fitted():
    """No monotone mix has a mean square error below 32 here; a learner of joint actions has none."""
    mse = {}
    for name in ('qmix', 'joint_dqn'):
        algo = learn(name, Lure, 500)
        graph = VectorGraphEnv(Lure, 1).reset(0)
        fitted = table(algo, torch.ones(1)) if name == 'qmix' else algo.q_values(algo.network, graph, None).view(3, 3)
        mse[name] = float((fitted.detach() - Lure.payoff[0]).square().mean())
    assert mse['qmix'] > 30
    assert mse['joint_dqn'] < 1


def playing(algo: Any, game: type[SingleGraphEnv]) -> float:
    """What the team gets without exploration."""
    env = VectorGraphEnv(game, 1)
    graph, total, over = env.reset(0), 0.0, False
    while not over:
        step = env.step(algo.act(graph).action)
        graph, total, over = step.graph, total + float(step.reward.sum()), bool(step.ended.any())
    return total


# --- the loss --------------------------------------------------------------------------------------------------------


@every_form
@pytest.mark.parametrize(('kind', 'gap'), [('mean', 0.0), ('sum', 0.0), ('mean', 0.5)])
@pytest.mark.parametrize('make_env', [jungle, crowd])
def test_the_loss_is_that_of_the_graphs_one_by_one(mixing, kind, gap, make_env):
    algo = trained('qmix', 6, make_env, mixing=mixing, team_reward=kind, action_gap=gap)
    t = sample(algo)
    errors = [one_graph(algo, t, b) for b in range(t.num_graphs)]
    total, target = (torch.stack(part) for part in zip(*(e for e in errors if e is not None), strict=True))
    assert_close(algo.loss(t)[0], td_loss(total, target))


def one_graph(algo: Any, t: Any, b: int) -> tuple[Tensor, Tensor] | None:
    """Value and target of one graph, by loops and dense matrices."""
    here = (t.graph.batch == b).nonzero().flatten()
    if len(here) == 0:
        return None
    c = algo.config
    now, then = t.graph[b], t.successor[b]
    reward = t.reward[here].sum() / (len(here) if c.team_reward == 'mean' else 1)
    value, _, best = dense(algo, algo.network, now, t.action[here])
    _, _, chosen = dense(algo, algo.network, then, None)
    next_value = dense(algo, algo.target, then, chosen)[0] if len(then.x) else 0.0
    target = reward + t.discount[here].max() * next_value
    if c.action_gap:
        target = target - c.action_gap * (dense(algo, algo.network, now, best)[0] - value)
    return value, target.detach()


def dense(algo: Any, network: Any, graph: Any, action: Tensor | None) -> tuple[Any, Any, Any]:
    """Of one graph: its value, the values of its nodes, their best actions; one node at a time."""
    x = graph.x.float() if algo.inputs.feature_scale is None else graph.x * algo.inputs.feature_scale
    slots, size = algo.config.mixing == 'slots', algo.spec.max_nodes
    number = torch.arange(len(x)) if algo.spec.fixed_nodes else graph.node_id
    q = []
    for i in range(len(x)):
        name = [torch.eye(size)[number[i]]] if slots else []
        own = network.agent(torch.cat([x[i], *name]).unsqueeze(0), torch.zeros(2, 0, dtype=torch.int64))[0]
        q.append(own if graph.get('action_mask') is None else own.masked_fill(~graph.action_mask[i], -1e9))
    best = torch.stack([row.argmax() for row in q]) if q else torch.zeros(0, dtype=torch.int64)
    if action is None:
        return None, q, best
    mixer = network.mixer
    if slots:
        state = torch.zeros(size, x.size(1))
        state[number] = x
        state = state.flatten()
        rows = mixer.hyper_w1(state.unsqueeze(0)).view(size, -1)[number]
    else:
        state = network.pool(x).relu().mean(0)
        rows = torch.stack([mixer.hyper_w1(torch.cat([state, row]).unsqueeze(0))[0] for row in x])
    hidden = mixer.hyper_b1(state.unsqueeze(0))[0]
    for i, a in enumerate(action):
        hidden = hidden + q[i][a] * rows[i].abs()
    weight = mixer.hyper_w2(state.unsqueeze(0))[0].abs()
    return torch.nn.functional.elu(hidden) @ weight + mixer.value(state.unsqueeze(0))[0, 0], q, best


def test_double_q_is_an_option():
    losses = []
    for double_q in (True, False):
        algo = trained('qmix', 2, tau=0.0)
        object.__setattr__(algo.config, 'double_q', double_q)
        losses.append(algo.loss(sample(algo))[0].item())
    assert losses[0] != losses[1]


# --- execution is decentralised --------------------------------------------------------------------------------------


@every_form
def test_nodes_act_on_their_own_observation_alone(mixing):
    algo, graph = trained('qmix', 6, mixing=mixing), jungle().reset(0)
    q = algo.q_values(algo.network, graph, None)
    assert torch.equal(q, algo.q_values(algo.network, edgeless(graph), None))
    graph.x = graph.x.clone()
    graph.x[1] += 1
    changed = (algo.q_values(algo.network, graph, None) != q).any(1)
    assert changed.tolist() == [i == 1 for i in range(graph.num_nodes)]


def test_agents_with_equal_features_differ_by_their_number_or_not_at_all():
    graph = jungle().reset(0)
    graph.x = graph.x[:1].repeat(graph.num_nodes, 1)
    for mixing, alike in (('slots', False), ('shared', True)):
        algo = trained('qmix', 3, mixing=mixing)
        q = algo.q_values(algo.network, graph, None)
        assert torch.allclose(q[0], q[1]) == alike
        assert torch.allclose(q[0], q[5])  # the first of the next graph


@every_form
def test_renaming_the_agents_renames_their_values_only_without_agent_numbers(mixing):
    algo, graph = trained('qmix', 6, mixing=mixing), jungle().reset(0)
    perm = torch.cat([torch.randperm(5, generator=torch.Generator().manual_seed(b)) + 5 * b for b in range(4)])
    q = algo.q_values(algo.network, graph, None)
    total = algo.total(algo.network, graph, q, q.argmax(1))
    graph.x = graph.x[perm]
    renamed = algo.q_values(algo.network, graph, None)
    assert torch.allclose(renamed, q[perm]) == (mixing == 'shared')
    total_renamed = algo.total(algo.network, graph, renamed, renamed.argmax(1))
    assert torch.allclose(total_renamed, total) == (mixing == 'shared')


# --- laws of every algorithm -----------------------------------------------------------------------------------------


@every_form
def test_every_tensor_learns(mixing):
    env = jungle()
    algo = make('qmix', env, mixing=mixing)
    before = weights(algo.network)
    loop = Loop(algo, env).until(9)
    assert len(differing(before, weights(algo.network))) == len(before)
    assert algo.act(loop.graph).sharing is None


@every_form
def test_the_same_seed_gives_the_same_weights_also_after_a_resume(mixing):
    whole = flat(trained('qmix', 50, mixing=mixing).state_dict())
    assert differing(whole, flat(trained('qmix', 50, mixing=mixing).state_dict())) == []
    env = jungle()
    loop = Loop(make('qmix', env, mixing=mixing), env).until(20)
    file = io.BytesIO()
    torch.save({'algo': loop.algo.state_dict(), 'env': env.state_dict()}, file)
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    again = Loop(make('qmix', env, seed=3, mixing=mixing), jungle(), seed=9)
    again.algo.load_state_dict(state['algo'])
    again.graph = again.env.load_state_dict(state['env'])
    assert differing(whole, flat(again.until(50).algo.state_dict())) == []


@every_form
@pytest.mark.parametrize('n_step', [1, 3])
def test_agents_may_come_and_go_and_masks_are_kept(mixing, n_step):
    env = crowd()
    loop = Loop(make('qmix', env, mixing=mixing, n_step=n_step), env).until(40)  # the game refuses illegal actions
    for _ in range(20):
        loop.graph = env.step(loop.algo.act(loop.graph).action).graph
    assert all(torch.tensor(list(row.values())).isfinite().all() for row in loop.metrics)


@every_form
def test_graphs_may_lack_agents(mixing):
    env = isolated(0)
    loop = Loop(make('qmix', env, mixing=mixing), env).until(3)
    assert all(math.isfinite(value) for row in loop.metrics for value in row.values())


@every_form
def test_an_illegal_action_is_worth_nothing_however_good_it_looks(mixing):
    algo = trained('qmix', 3, crowd, mixing=mixing, action_gap=0.5)
    t = sample(algo)
    before = algo.loss(t)[0].item()
    with torch.no_grad():
        for network in (algo.network, algo.target):
            network.agent.head.lin.bias[3] += 1e4  # flying is never legal
    assert algo.loss(t)[0].item() == pytest.approx(before)


@every_form
def test_there_may_be_no_agent_left_to_bootstrap_from(mixing):
    algo = trained('qmix', 4, lambda: VectorGraphEnv(OneShot, 4), n_step=1, mixing=mixing)
    t = sample(algo)
    assert t.successor.num_nodes == 0
    total = algo.total(algo.network, t.graph, algo.q_values(algo.network, t.graph, None), t.action)
    assert_close(algo.loss(t)[0], td_loss(total, t.reward.view(-1, 2).mean(1)))


class Alone(Crowd):
    """A single agent."""

    max_nodes, fixed_nodes, has_action_mask = 1, True, False

    def start(self) -> Snapshot:
        return Snapshot(x=torch.ones(1, 2), edge_index=fully_connected(1))

    def step(self, action: Tensor) -> SingleStep:
        return SingleStep(self.start(), action.float())


@every_form
def test_a_single_agent_learns(mixing):
    env = VectorGraphEnv(Alone, 4)
    Loop(make('qmix', env, mixing=mixing), env).until(5)


def test_its_rng_is_its_own():
    algo = trained('qmix')
    before, outside = chance(algo), torch.get_rng_state()
    algo.act(jungle().reset(4))
    assert differing(before, chance(algo)) == []
    algo.act(jungle().reset(4), explore=True)
    assert differing(before, chance(algo)) == ['.explore']
    assert torch.equal(outside, torch.get_rng_state())


def test_bf16_stays_close_to_float32():
    exact, rough = (trained('qmix', 10, precision=p, epsilon_end=1.0, lr=1e-3) for p in ('float32', 'bf16'))
    graph = jungle().reset(0)
    q, q_rough = (algo.q_values(algo.network, graph, None) for algo in (exact, rough))
    assert q_rough.dtype == torch.float32
    assert_close(q_rough, q, atol=0.05, rtol=0.05)


# --- errors ----------------------------------------------------------------------------------------------------------


def numbered_from_seven() -> GraphEnv:
    class Numbered(Crowd):
        def look(self) -> Snapshot:
            graph = super().look()
            graph.node_id = graph.node_id + 7
            return graph

    return VectorGraphEnv(Numbered, 4)


def test_numbers_beyond_the_slots_are_refused_and_do_not_matter_without():
    env = numbered_from_seven()
    with pytest.raises(ValueError, match=r"'node_id' must lie below spec.max_nodes=4.* take .*qmix --mixing shared"):
        Loop(make('qmix', env), env).until(1)
    Loop(make('qmix', env, mixing='shared'), env).until(3)


def test_a_policy_of_agents_that_come_and_go_needs_their_numbers():
    env = crowd()
    graph = env.reset(0)
    del graph.node_id
    with pytest.raises(ValueError, match=r"graphs need 'node_id' \(N,\), .* each has a slot of its own, .*set it on"):
        Policy(make('qmix', env), env.spec)(graph)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'mixing': 'sum'}, r"'mixing' must be 'slots' or 'shared' \(got 'sum'\)"),
        ({'team_reward': 'max'}, r"'team_reward' must be one of \('mean', 'sum'\) \(got 'max'\)"),
        ({'mixer_channels': 0}, r"'mixer_channels' must be at least 1 \(got 0\)"),
        ({'hyper_channels': 0}, r"'hyper_channels' must be at least 1 \(got 0\)"),
        ({'gamma': 2.0}, r"'gamma' must lie in \[0, 1\]"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        make('qmix', jungle(), **options)


def test_a_weight_that_is_not_a_number_is_named():
    algo = trained('qmix', 2)
    with torch.no_grad():
        algo.network.mixer.hyper_b1.lins[0].bias[0] = torch.nan
    with pytest.raises(NonFiniteLossError, match=r'^network.mixer.hyper_b1.lins.0.bias is NaN or infinite at gradient'):
        algo.update()
