from __future__ import annotations

import io
import itertools
import random
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ltos_pyg.algos import ALGORITHMS, Algorithm, NonFiniteLossError
from ltos_pyg.algos.base import soft_update
from ltos_pyg.algos.losses import masked, td_loss
from ltos_pyg.algos.ltos import features_of_pairs
from ltos_pyg.data import Snapshot, batch_snapshots
from ltos_pyg.envs import JungleEnv
from ltos_pyg.graph_env import GraphEnv, SingleGraphEnv, SingleStep, VectorGraphEnv, fully_connected
from ltos_pyg.nn import Sharing, check_sharing, constant_sharing, keep_all

SMALL: dict[str, Any] = {
    'total_steps': 400,
    'n_step': 2,
    'batch_size': 4,
    'lr': 1e-2,
    'replay_size': 200,
    'learning_starts': 8,
    'steps_per_update': 3.0,
    'hidden_channels': 16,
    'encoder_channels': (16,),
    'num_layers': 1,
    'heads': 2,
}
HIGH: dict[str, Any] = {
    'phi_lr': 1e-2,
    'phi_every': 2,
    'phi_starts': 0.0,
    'phi_channels': 8,
    'random_hold': 7,
    'global_newest': 60,
}
VARIANTS: dict[str, dict[str, Any]] = {
    'dqn': {},
    'dgn': {},
    'fixed_ltos': {},
    'ltos edge gain': {'critic': 'edge', 'high_level_critic': 'gain', 'w_noise': 0.1},
    'ltos edge global': {'critic': 'edge', 'high_level_critic': 'global'},
    'ltos node shared': {'critic': 'node', 'high_level_critic': 'shared'},
    'ltos node global': {'critic': 'node', 'high_level_critic': 'global'},
}
LTOS = [name for name in VARIANTS if name.startswith('ltos')]
every_variant = pytest.mark.parametrize('variant', VARIANTS)
every_ltos = pytest.mark.parametrize('variant', LTOS)


class Crowd(SingleGraphEnv):
    """Agents come and go, may be alone or nobody at all in the end, and each has actions that it may not take."""

    num_features, num_actions, max_nodes, horizon = 2, 4, 4, 6
    fixed_nodes, symmetric, has_action_mask = False, True, True

    def start(self) -> Snapshot:
        self.members = torch.arange(1 + int(torch.randint(4, (1,), generator=self.generator)))
        return self.look()

    def step(self, action: Tensor) -> SingleStep:
        assert self.mask.gather(1, action.unsqueeze(1)).all(), 'an illegal action was taken'
        here = torch.rand(4, generator=self.generator) < 0.7
        reward = action.float() - self.members
        self.members = here.nonzero().flatten()
        return SingleStep(self.look(), reward, terminated=len(self.members) == 0)

    def look(self) -> Snapshot:
        n = len(self.members)
        self.mask = torch.rand(n, 4, generator=self.generator) < 0.5
        self.mask[:, 1] = True  # waiting is always legal
        self.mask[:, 3] = False  # and flying never
        x = torch.rand(n, 2, generator=self.generator)
        return Snapshot(x=x, edge_index=fully_connected(n), node_id=self.members, action_mask=self.mask)


class OneShot(SingleGraphEnv):
    """One step, and nobody is left."""

    num_features, num_actions, max_nodes, fixed_nodes, symmetric = 1, 2, 2, False, True

    def start(self) -> Snapshot:
        return Snapshot(x=torch.ones(2, 1), edge_index=fully_connected(2), node_id=torch.arange(2))

    def step(self, action: Tensor) -> SingleStep:
        nobody = Snapshot(x=torch.ones(0, 1), edge_index=fully_connected(0), node_id=torch.arange(0))
        return SingleStep(nobody, action.float(), terminated=True)


class Payday(SingleGraphEnv):
    """Two agents who are paid, whatever they do."""

    num_features, num_actions, max_nodes, symmetric, horizon = 1, 2, 2, True, 3
    pay, sight = 1.0, 1.0

    def start(self) -> Snapshot:
        return Snapshot(x=torch.full((2, 1), self.sight), edge_index=fully_connected(2))

    def step(self, action: Tensor) -> SingleStep:
        return SingleStep(self.start(), torch.full((2,), self.pay))


def jungle(num_envs: int = 4) -> GraphEnv:
    return JungleEnv(num_envs=num_envs, num_agents=5, num_foods=4, size=8, horizon=12)


def crowd(num_envs: int = 4) -> GraphEnv:
    return VectorGraphEnv(Crowd, num_envs)


def make(variant: str, env: GraphEnv, seed: int = 0, **options: Any) -> Any:
    name = variant.split()[0]
    maker, config = ALGORITHMS[name]
    high = HIGH if name == 'ltos' else {}
    return maker(env.spec, config(**{**SMALL, **high, **VARIANTS.get(variant, {}), **options}), seed)


class Loop:
    """The least loop that trains."""

    def __init__(self, algo: Any, env: GraphEnv, seed: int = 0) -> None:
        self.algo, self.env, self.graph = algo, env, env.reset(seed)
        self.metrics: list[dict[str, float]] = []

    def until(self, updates: int) -> Loop:
        while self.algo.updates < updates:
            decision = self.algo.act(self.graph, explore=True)
            step = self.env.step(decision.action)
            self.algo.observe(self.graph, decision, step)
            self.graph = step.graph
            for _ in range(self.algo.due_updates):
                self.metrics.append(self.algo.update())
        return self


def trained(variant: str, updates: int = 6, make_env: Any = jungle, **options: Any) -> Any:
    env = make_env()
    return Loop(make(variant, env, **options), env).until(updates).algo


def sample(algo: Any) -> Any:
    return algo.replay.sample(8, torch.Generator().manual_seed(5), algo.config.n_step, algo.config.gamma)


def flat(value: Any, name: str = '') -> dict[str, Any]:
    """Nested containers as one dict from path to leaf."""
    if isinstance(value, dict):
        parts = [flat(item, f'{name}.{key}') for key, item in value.items()]
    elif isinstance(value, list | tuple):
        parts = [flat(item, f'{name}[{i}]') for i, item in enumerate(value)]
    else:
        return {name: value.clone() if isinstance(value, Tensor) else value}
    return dict(itertools.chain.from_iterable(part.items() for part in parts))


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Names under which two flat states differ in any bit."""
    same = {k for k in a.keys() & b.keys() if (torch.equal(a[k], b[k]) if isinstance(a[k], Tensor) else a[k] == b[k])}
    return sorted((a.keys() | b.keys()) - same)


def weights(*modules: torch.nn.Module) -> dict[str, Any]:
    return flat([module.state_dict() for module in modules])


def chance(algo: Any) -> dict[str, Any]:
    return flat(algo.state_dict()['rng'])


# --- one interface ---------------------------------------------------------------------------------------------------


@every_variant
def test_every_algorithm_acts_observes_and_updates(variant):
    env = jungle()
    algo = make(variant, env)
    assert isinstance(algo, Algorithm)
    loop = Loop(algo, env)
    for explore in (False, True):
        action, sharing = algo.act(loop.graph, explore)
        assert action.dtype == torch.int64
        assert action.shape == (loop.graph.num_nodes,)
        assert (sharing is None) == (variant in ('dqn', 'dgn'))
        if sharing is not None:
            check_sharing(sharing, loop.graph.edge_index, loop.graph.num_nodes)
    before = weights(algo.network)
    loop.until(9)
    assert algo.env_steps == len(algo.replay)
    assert algo.updates == int((algo.env_steps - 8) / 3) == len(loop.metrics)
    assert algo.due_updates == 0
    assert all(np.isfinite(value) for row in loop.metrics for value in row.values())
    assert len(differing(before, weights(algo.network))) == len(before)  # every tensor of the network learns
    assert algo.sharing_modes[0] == algo.sharing_mode if variant in LTOS else not hasattr(algo, 'sharing_modes')


@every_variant
def test_nothing_is_learned_before_there_is_anything_to_learn_from(variant):
    env = jungle()
    algo = make(variant, env, learning_starts=0, n_step=3, steps_per_update=4.0)
    Loop(algo, env).until(3)
    assert algo.env_steps == 12  # three pushes make one frame with a whole future; the updates that waited follow
    assert algo.updates == 3


@cache
def reference(variant: str) -> dict[str, Any]:
    """All that there is after 50 updates in one go."""
    return flat(trained(variant, 50).state_dict())


@every_variant
def test_the_same_seed_gives_the_same_weights_and_another_one_does_not(variant):
    first = reference(variant)
    assert differing(first, flat(trained(variant, 50).state_dict())) == []
    other = flat(trained(variant, 1, seed=1).state_dict())
    assert {name for name in first if name.startswith('.modules.network')} <= set(differing(first, other))


@every_variant
def test_a_saved_state_goes_on_to_the_same_weights(variant):
    env = jungle()
    loop = Loop(make(variant, env), env).until(20)
    file = io.BytesIO()
    torch.save({'algo': loop.algo.state_dict(), 'env': env.state_dict()}, file)

    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    again = Loop(make(variant, env, seed=3), jungle(), seed=9)  # whatever is not loaded is different
    again.algo.load_state_dict(state['algo'])
    again.graph = again.env.load_state_dict(state['env'])
    assert differing(reference(variant), flat(again.until(50).algo.state_dict())) == []


@every_variant
def test_a_policy_is_loaded_without_its_memory(variant):
    algo, env = trained(variant), jungle()
    other = make(variant, env, seed=3)
    other.load_policy(algo.state_dict())
    graph = env.reset(4)
    assert differing(flat(algo.act(graph)), flat(other.act(graph))) == []
    assert (other.env_steps, other.updates, len(other.replay)) == (algo.env_steps, algo.updates, 0)


@every_variant
def test_acting_without_exploration_is_a_function_of_graph_and_weights(variant):
    algo = trained(variant)
    graph = jungle().reset(4)
    before = flat(algo.state_dict())
    assert differing(flat(algo.act(graph)), flat(algo.act(graph))) == []
    assert differing(before, flat(algo.state_dict())) == []


@every_variant
def test_exploration_draws_from_generators_of_its_own(variant):
    algo = trained(variant)
    before = chance(algo)
    algo.act(jungle().reset(4), explore=True)
    expected = {'.explore'} | ({'.shares'} if variant in LTOS else set())
    assert set(differing(before, chance(algo))) == expected


@every_variant
def test_global_chance_is_left_alone(variant):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    trained(variant, 4)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert all(map(np.array_equal, before[2], np.random.get_state()))  # noqa: NPY002


# --- graphs of all kinds ---------------------------------------------------------------------------------------------


@every_variant
def test_agents_may_come_and_go_and_masks_are_kept(variant):
    env = crowd()
    loop = Loop(make(variant, env), env).until(40)  # the game refuses illegal actions
    for _ in range(20):
        loop.graph = env.step(loop.algo.act(loop.graph).action).graph
    assert all(np.isfinite(value) for row in loop.metrics for value in row.values())


def praise(algo: Any, action: int) -> None:
    """Makes the networks believe that an action is splendid."""
    with torch.no_grad():
        for network in (algo.network, algo.target):
            head = network.head
            for lin in [head.own.lin, *head.pairs] if hasattr(head, 'own') else [head.lin]:
                lin.bias[action] += 1e4


@every_variant
def test_an_illegal_action_is_worth_nothing_however_good_it_looks(variant):
    algo = trained(variant, 3, crowd)
    t = sample(algo)
    before = algo.loss(t)[0].item()
    praise(algo, 3)  # flying is never legal
    assert algo.loss(t)[0].item() == pytest.approx(before)
    praise(algo, 1)  # waiting is
    assert algo.loss(t)[0].item() > 100


@every_ltos
def test_an_illegal_action_does_not_draw_the_high_level(variant):
    algo = trained(variant, 3, crowd)
    t, gradients = sample(algo), []
    for praised in (None, 3):
        if praised is not None:
            praise(algo, praised)
        algo.loss(t)
        own = torch.full((t.graph.num_nodes,), 0.5, requires_grad=True)
        objective = algo.objective(t, constant_sharing(t.graph.edge_index, t.graph.num_nodes, own))
        gradients.append(torch.autograd.grad(objective.sum(), own)[0])
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-2, rtol=0)


@every_variant
def test_there_may_be_nobody_left_to_bootstrap_from(variant):
    algo = trained(variant, 4, lambda: VectorGraphEnv(OneShot, 4), n_step=1)
    t = sample(algo)
    assert t.successor.num_nodes == 0
    if 'edge' in variant:  # what is each node's own, before it is shared
        q, reward = algo.pair_values(algo.network, t.graph)[0], t.reward
    else:
        q, reward = algo.q_values(algo.network, t.graph, t.sharing), algo.reward(t)
    taken = q.gather(1, t.action.unsqueeze(1)).squeeze(1)
    assert algo.loss(t)[1]['loss'].item() == pytest.approx(td_loss(taken, reward).item())


@every_variant
def test_new_episodes_may_start_although_the_old_ones_did_not_end(variant):
    env = jungle()
    loop = Loop(make(variant, env), env).until(3)
    loop.graph = env.reset(7)
    decision = loop.algo.act(loop.graph, explore=True)
    step = env.step(decision.action)
    with pytest.raises(ValueError, match=r"'graph' must be what the last step returned"):
        loop.algo.observe(loop.graph, decision, step)
    loop.algo.restart_episodes()
    loop.algo.observe(loop.graph, decision, step)
    loop.graph = step.graph
    loop.until(6)


def without_edges(graph: Any) -> Any:
    nodes = graph.ptr.diff()
    edges = {'edge_index': graph.edge_index[:, :0], 'edge_attr': graph.edge_attr[:0]}
    return batch_snapshots(nodes, torch.zeros_like(nodes), x=graph.x, node_id=graph.node_id, **edges)


def test_dqn_ignores_edges_and_the_others_see_them():
    graph = jungle().reset(0)
    alone = without_edges(graph)
    for variant in VARIANTS:
        algo = trained(variant, 2)
        q, q_alone = (
            algo.q_values(algo.network, g, constant_sharing(g.edge_index, g.num_nodes, 1.0)) for g in (graph, alone)
        )
        assert torch.equal(q, q_alone) == (variant == 'dqn'), variant


# --- laws between the methods ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('make_env', [jungle, crowd])
def test_fixed_ltos_that_keeps_all_is_dgn_to_the_bit(make_env):
    dgn, fixed = trained('dgn', 30, make_env), trained('fixed_ltos', 30, make_env, own=1.0)
    assert differing(weights(dgn.network, dgn.target), weights(fixed.network, fixed.target)) == []
    assert differing(chance(dgn), chance(fixed)) == []
    other = trained('fixed_ltos', 30, make_env, own=0.9)
    assert differing(weights(dgn.network), weights(other.network)) != []


@pytest.mark.parametrize('edge_features', [True, False])
def test_the_node_critic_under_keep_all_is_dgn_to_the_bit(edge_features):
    env = JungleEnv(num_envs=4, num_agents=5, num_foods=4, size=8, edge_features=edge_features)
    dgn, ltos = make('dgn', env), make('ltos node shared', env)
    state = {}
    for name, value in ltos.network.state_dict().items():
        if 'lin_sharing' not in name:
            state[name] = value[:, 1:] if 'lin_edge' in name else value  # column 0 is for the weight of the edge
    dgn.network.load_state_dict({name: value for name, value in state.items() if value.numel() > 0})
    graph = env.reset(0)
    q = dgn.q_values(dgn.network, graph, None)
    assert torch.equal(q, ltos.q_values(ltos.network, graph, keep_all(graph.edge_index, graph.num_nodes)))
    uniform = constant_sharing(graph.edge_index, graph.num_nodes)
    assert not torch.equal(q, ltos.q_values(ltos.network, graph, uniform))


def test_the_q_values_of_the_edge_critic_are_linear_in_the_weights():
    algo, graph = trained('ltos edge gain'), jungle().reset(0)
    ends = [constant_sharing(graph.edge_index, graph.num_nodes, own) for own in (0.1, 0.9)]
    between = type(ends[0])(*(0.3 * a + 0.7 * b for a, b in zip(*ends, strict=True)))
    low, high, mixed = (algo.q_values(algo.network, graph, sharing) for sharing in (*ends, between))
    torch.testing.assert_close(mixed, 0.3 * low + 0.7 * high)
    assert not torch.allclose(low, high)


def test_a_target_network_moves_by_tau():
    slow, fast = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    before = slow.weight.clone()
    soft_update(slow, fast, 0.25)
    torch.testing.assert_close(slow.weight, 0.75 * before + 0.25 * fast.weight)
    soft_update(slow, fast, 1.0)
    assert differing(weights(slow), weights(fast)) == []


@pytest.mark.parametrize(('n_step', 'gap'), [(1, 0.0), (3, 0.0), (3, 0.5)])
@pytest.mark.parametrize('make_env', [jungle, crowd])
def test_the_loss_of_the_edge_critic_is_that_of_its_pairs_one_by_one(make_env, n_step, gap):
    algo = trained('ltos edge gain', 6, make_env, n_step=n_step, action_gap=gap)
    t = sample(algo)
    next_q = algo.q_values(algo.network, t.successor, algo.next_sharing(t))
    best = masked(next_q, t.successor.get('action_mask')).argmax(-1).tolist()
    row, there = t.successor_node.tolist(), (t.discount > 0).tolist()
    which = (t.index[t.graph.batch] % 2).tolist()  # estimate that learns from the graph
    assert set(which) == {0, 1}

    def value(owner: int, actor: int) -> Tensor:
        """What the successor is worth to one agent if another one goes on."""
        if not (there[owner] and there[actor]):
            return torch.tensor(0.0)
        pair = torch.tensor([[row[owner]], [row[actor]]])
        own, pair_value = algo.pair_values(algo.target, t.successor, pair)
        u = own[row[owner]] if owner == actor else pair_value[which[actor], 0]
        return u[best[row[actor]]]

    own, estimates = algo.pair_values(algo.network, t.graph)
    pair = torch.stack([estimates[which[actor], e] for e, actor in enumerate(t.graph.edge_index[1])])
    action, reward, discount = t.action.tolist(), t.reward.tolist(), t.discount.tolist()
    greedy = masked(algo.q_values(algo.network, t.graph, t.sharing), t.graph.get('action_mask')).argmax(-1).tolist()
    nodes, edges = range(t.graph.num_nodes), t.graph.edge_index.T.tolist()
    lost = [gap * (own[i, greedy[i]] - own[i, action[i]]).detach() for i in nodes]
    own_target = torch.stack([reward[i] + discount[i] * value(i, i) - lost[i] for i in nodes])
    surprise = own_target - own[nodes, action].detach()
    lost = [gap * (pair[k, greedy[actor]] - pair[k, action[actor]]).detach() for k, (_, actor) in enumerate(edges)]
    pair_target = torch.stack(
        [surprise[owner] + discount[owner] * value(owner, actor) - lost[k] for k, (owner, actor) in enumerate(edges)]
    )
    pair_taken = torch.stack([pair[k, action[actor]] for k, (_, actor) in enumerate(edges)])
    expected = td_loss(own[nodes, action], own_target) + td_loss(pair_taken, pair_target)
    torch.testing.assert_close(algo.loss(t)[0], expected)
    if make_env is crowd:
        assert not all(there)  # somebody had left


def test_errors_of_pair_values_make_no_one_share_but_effects_do():
    algo = trained('ltos edge gain', 2)
    t, rng = sample(algo), torch.Generator().manual_seed(0)
    graph, num_actions = t.graph, algo.spec.num_actions
    own = torch.randn(graph.num_nodes, num_actions, generator=rng)
    errors = torch.randn(2, graph.num_edges, num_actions, generator=rng)
    effects = torch.randn(1, graph.num_edges, num_actions, generator=rng).expand(2, -1, -1)

    def gain_of_sharing(pair: Tensor) -> float:
        algo._values = own, pair
        even, kept = constant_sharing(graph.edge_index, graph.num_nodes), keep_all(graph.edge_index, graph.num_nodes)
        return float((algo.objective(t, even) - algo.objective(t, kept)).mean())

    assert gain_of_sharing(errors) < 0  # the two estimates agree in nothing
    assert gain_of_sharing(effects) > 0  # they agree in all
    assert gain_of_sharing(errors[:1]) > 0  # a single estimate takes its errors for effects


@pytest.mark.parametrize('count', [1, 3])
def test_there_may_be_any_number_of_estimates(count):
    algo = trained('ltos edge gain', 8, crowd, pair_estimates=count)
    t = sample(algo)
    algo.loss(t)
    own, pair = algo._values
    assert pair.shape == (count, t.graph.num_edges, algo.spec.num_actions)
    around = own + torch.zeros_like(own).index_add(0, t.graph.edge_index[1], pair.mean(0))
    q = algo.q_values(algo.network, t.graph, Sharing(torch.ones(t.graph.num_edges), torch.ones(t.graph.num_nodes)))
    torch.testing.assert_close(q, around)
    assert algo.objective(t, t.sharing).isfinite().all()


def test_features_of_pairs_are_those_of_their_edges_and_zero_without_one():
    edge_index = torch.tensor([[2, 0, 1], [0, 1, 2]])  # in no order
    edge_attr = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    pairs = torch.tensor([[1, 0, 3, 2, 4], [2, 2, 0, 0, 4]])  # 3 and 4 have no edges
    expected = torch.tensor([[5.0, 6.0], [0.0, 0.0], [0.0, 0.0], [1.0, 2.0], [0.0, 0.0]])
    assert torch.equal(features_of_pairs(pairs, edge_index, edge_attr, num_nodes=5), expected)
    nothing = features_of_pairs(pairs, edge_index[:, :0], edge_attr[:0], num_nodes=5)
    assert torch.equal(nothing, torch.zeros(5, 2))


def test_double_q_is_an_option_of_every_method():
    for variant in VARIANTS:
        losses = []
        for double_q in (True, False):
            algo = trained(variant, 2, tau=0.0)
            object.__setattr__(algo.config, 'double_q', double_q)
            losses.append(algo.loss(sample(algo))[0].item())
        assert losses[0] != losses[1], variant


# --- the two levels of LToS ------------------------------------------------------------------------------------------


@every_ltos
def test_the_high_level_learns_and_leaves_the_low_level_alone(variant):
    algo = trained(variant, 3)
    t = sample(algo)
    algo.loss(t)
    phi, others = weights(algo.phi), [m for name, m in algo.modules().items() if 'phi' not in name]
    before = weights(*others)
    metrics = algo.update_phi(t)
    assert metrics['phi/grad_norm'] > 0
    assert differing(phi, weights(algo.phi)) != []
    assert differing(before, weights(*others)) == []
    assert all(p.requires_grad for p in algo.network.parameters())


@every_ltos
def test_the_low_level_leaves_the_high_level_alone(variant):
    env = jungle()
    algo = make(variant, env, phi_starts=1.0)
    before = weights(algo.phi)
    loop = Loop(algo, env).until(10)
    assert differing(before, weights(algo.phi)) == []
    assert not any('phi/' in name for row in loop.metrics for name in row)


@every_ltos
def test_the_high_level_follows_its_objective(variant):
    algo = trained(variant, 3, lr_end=1.0, phi_lr=1e-3)
    t = sample(algo)
    algo.loss(t)
    values = [algo.update_phi(t)['phi/objective'].item() for _ in range(30)]  # the critic stays as it is
    assert values[-1] > values[0]


@every_ltos
def test_the_high_level_takes_every_so_many_turns(variant):
    env = jungle()
    loop = Loop(make(variant, env, phi_every=3), env).until(9)
    assert ['phi/objective' in row for row in loop.metrics] == [True, False, False] * 3


@every_ltos
@pytest.mark.parametrize('own', [0.25, 0.8, None])
def test_the_first_weights_are_those_asked_for(variant, own):
    algo, graph = make(variant, jungle(), initial_own=own), jungle().reset(0)
    expected = constant_sharing(graph.edge_index, graph.num_nodes, own)
    torch.testing.assert_close(algo.act(graph).sharing, expected)


@every_ltos
def test_the_mode_decides_the_weights_of_an_evaluation(variant):
    algo, graph = trained(variant, 6), jungle().reset(0)
    shares = {}
    for mode in algo.sharing_modes:
        algo.sharing_mode = mode
        shares[mode] = algo.act(graph).sharing
    size = graph.edge_index, graph.num_nodes
    assert differing(flat(shares['keep']), flat(keep_all(*size))) == []
    assert differing(flat(shares['uniform']), flat(constant_sharing(*size))) == []
    assert not torch.equal(shares['phi'].kept, shares['keep'].kept)


def test_a_part_of_the_streams_runs_under_random_weights_that_are_held():
    env = jungle(4)
    options = {'random_low': 0.9, 'random_high': 1.0, 'random_hold': 5, 'initial_own': 0.2, 'w_noise': 0.0}
    algo = make('ltos edge gain', env, random_fraction=0.5, **options)
    graph, kept = env.reset(0), []
    for _ in range(6):
        decision = algo.act(graph, explore=True)
        kept.append(decision.sharing.kept.view(4, 5))
        step = env.step(decision.action)
        algo.observe(graph, decision, step)
        graph = step.graph
    assert all((k[:2] >= 0.9).all() for k in kept)
    assert all(torch.allclose(k[2:], torch.tensor(0.2)) for k in kept)
    held = [torch.equal(a[:2], b[:2]) for a, b in itertools.pairwise(kept)]
    assert held == [True] * 4 + [False]


@every_variant
def test_exploration_fades_and_in_a_part_of_the_streams_wholly(variant):
    env = jungle()
    algo = make(variant, env, epsilon_start=0.8, epsilon_end=0.2, epsilon_fraction=0.5, greedy_fraction=0.25)
    graph = env.reset(0)
    for env_steps, first, last in ((0, 0.8, 0.8), (100, 0.5, 0.4), (200, 0.2, 0.0), (900, 0.2, 0.0)):
        algo.env_steps = env_steps
        expected = torch.tensor([first] * 15 + [last] * 5)  # the last graph of four
        torch.testing.assert_close(algo.epsilon(graph), expected)


def test_noise_on_the_logits_is_for_training_alone():
    env = jungle()
    algo = make('ltos node shared', env, random_fraction=0.0, w_noise=0.5)
    graph = env.reset(0)
    still, noisy = algo.act(graph).sharing, algo.act(graph, explore=True).sharing
    assert (noisy.kept - still.kept).abs().min() > 0
    check_sharing(noisy, graph.edge_index, graph.num_nodes)
    logit = torch.logit(noisy.kept) - torch.logit(still.kept)
    assert 0.2 < logit.std() < 1.2


# --- when numbers go wrong -------------------------------------------------------------------------------------------


def poisoned(variant: str, name: str) -> Any:
    """A trained algorithm with one NaN in the named weight."""
    algo = trained(variant, 2)
    module, path = name.split('.', 1)
    with torch.no_grad():
        algo.modules()[module].get_parameter(path).view(-1)[0] = torch.nan
    return algo


@pytest.mark.parametrize(
    ('variant', 'name'),
    [
        *((variant, 'network.trunk.encoder.lins.1.bias') for variant in VARIANTS),
        *((variant, 'phi.head.self_logit.bias') for variant in LTOS),
        *((variant, 'value.head.lin.weight') for variant in LTOS if 'global' in variant),
    ],
)
def test_a_weight_that_is_not_a_number_is_named_and_nothing_of_its_network_moves(variant, name):
    algo = poisoned(variant, name)
    module = name.split('.')[0]
    before = weights(algo.modules()[module])
    with pytest.raises(NonFiniteLossError, match=rf'^{name} is NaN or infinite at gradient step 3; .*\(lr=0.01\)'):
        algo.update()
    after = weights(algo.modules()[module])
    assert [k for k in differing(before, after) if not before[k].isnan().any()] == []
    assert algo.updates == 2


@pytest.mark.parametrize(
    ('pay', 'sight', 'name'),
    [(1e30, 1.0, 'loss'), (1e17, 1e4, 'norm of the gradients')],  # of gradients that are finite, each
)
@every_variant
def test_a_reward_beyond_all_measure_stops_the_run_before_any_weight_moves(variant, pay, sight, name):
    jackpot = type('Jackpot', (Payday,), {'pay': pay, 'sight': sight})
    env = VectorGraphEnv(jackpot, 4)
    loop = Loop(make(variant, env, huber=None), env)
    before = weights(loop.algo.network)
    with pytest.raises(NonFiniteLossError, match=f'^{name} is NaN or infinite at gradient step 1; .* extreme rewards'):
        loop.until(1)
    assert differing(before, weights(loop.algo.network)) == []


def test_a_reward_that_is_not_a_number_is_refused_at_the_door():
    class Broken(Payday):
        pay = torch.nan

    env = VectorGraphEnv(Broken, 4)
    with pytest.raises(ValueError, match='reward'):
        Loop(make('dgn', env), env).until(1)


# --- precision -------------------------------------------------------------------------------------------------------


@every_variant
def test_bf16_stays_close_to_float32(variant):
    options = {'epsilon_end': 1.0, 'lr': 1e-3, 'phi_lr': 1e-3} if variant in LTOS else {'epsilon_end': 1.0, 'lr': 1e-3}
    exact, rough = (trained(variant, 10, precision=precision, **options) for precision in ('float32', 'bf16'))
    graph = jungle().reset(0)
    sharing = constant_sharing(graph.edge_index, graph.num_nodes)
    q, q_rough = (algo.q_values(algo.network, graph, sharing) for algo in (exact, rough))
    assert q_rough.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in rough.network.parameters())
    torch.testing.assert_close(q_rough, q, atol=0.05, rtol=0.05)
    assert not torch.equal(q_rough, q)


def test_features_of_any_dtype_are_taken():
    class Doubles(Payday):
        feature_dtype, feature_scale = torch.float64, (0.5,)

        def start(self) -> Snapshot:
            return Snapshot(x=torch.ones(2, 1, dtype=torch.float64), edge_index=fully_connected(2))

    env = VectorGraphEnv(Doubles, 4)
    Loop(make('dgn', env), env).until(1)


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('variant', 'options', 'message'),
    [
        ('dqn', {'gamma': 2.0}, r"'gamma' must lie in \[0, 1\] \(got 2.0\)"),
        ('dqn', {'gamma': float('nan')}, r"'gamma' must lie in \[0, 1\] \(got nan\)"),
        ('dqn', {'tau': -0.1}, r"'tau' must lie in \[0, 1\] \(got -0.1\)"),
        ('dqn', {'epsilon_fraction': 1.5}, r"'epsilon_fraction' must lie in \[0, 1\] \(got 1.5\)"),
        ('dqn', {'lr': 0.0}, r"'lr' must be above 0 \(got 0.0\)"),
        ('dqn', {'lr': float('nan')}, r"'lr' must be above 0 \(got nan\)"),
        ('dqn', {'steps_per_update': -1.0}, r"'steps_per_update' must be above 0 \(got -1.0\)"),
        ('dqn', {'n_step': 0}, r"'n_step' must be at least 1 \(got 0\)"),
        ('dqn', {'batch_size': 0}, r"'batch_size' must be at least 1 \(got 0\)"),
        ('dqn', {'learning_starts': -1}, r"'learning_starts' must be at least 0 \(got -1\)"),
        ('dqn', {'encoder_channels': (16, 0)}, r"'encoder_channels' must be at least 1 each \(got \(16, 0\)\)"),
        ('dqn', {'huber': 0.0}, r"'huber' must be above 0, or None for the mean square \(got 0.0\)"),
        ('dqn', {'precision': 'float16'}, r"'precision' must be 'float32' or 'bf16' \(got 'float16'\)"),
        ('dqn', {'replay_size': 6}, r"'capacity' must be at least 12: the graphs acted on, .* \(got 6\)"),
        ('dgn', {'heads': 0}, r"'heads' must be at least 1 \(got 0\)"),
        ('dgn', {'heads': 3}, r"'heads' must divide 'out_channels' \(got 3 heads, 16 channels\)"),
        ('fixed_ltos', {'own': 1.5}, r"'own' must lie in \[0, 1\] \(got 1.5\)"),
        ('ltos', {'critic': 'tree'}, r"'critic' must be one of \('edge', 'node'\) \(got 'tree'\)"),
        ('ltos', {'high_level_critic': 'best'}, r"'high_level_critic' must be one of \('gain', .* \(got 'best'\)"),
        ('ltos', {'critic': 'node'}, r"high_level_critic='gain' needs critic='edge'"),
        ('ltos', {'high_level_critic': 'shared'}, r"high_level_critic='shared' needs critic='node'"),
        ('ltos', {'temperature': 0.0}, r"'temperature' must be above 0 \(got 0.0\)"),
        ('ltos', {'phi_every': 0}, r"'phi_every' must be at least 1 \(got 0\)"),
        ('ltos', {'phi_starts': 2.0}, r"'phi_starts' must lie in \[0, 1\] \(got 2.0\)"),
        ('ltos', {'random_fraction': -1.0}, r"'random_fraction' must lie in \[0, 1\] \(got -1.0\)"),
        ('ltos', {'random_hold': 0}, r"'random_hold' must be at least 1 \(got 0\)"),
        (
            'ltos',
            {'random_low': 0.9, 'random_high': 0.1},
            r"'random_low' and 'random_high' must .* \(got 0.9 and 0.1\)",
        ),
        ('ltos', {'initial_own': 1.0}, r"'initial_own' must lie strictly between 0 and 1, or be None \(got 1.0\)"),
        ('ltos', {'w_noise': -0.5}, r"'w_noise' must be at least 0 \(got -0.5\)"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_by_name(variant, options, message):
    with pytest.raises(ValueError, match=message):
        make(variant, jungle(), **options)


def test_an_option_that_does_not_exist_is_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'gama'"):
        make('dgn', jungle(), gama=0.9)


def test_the_learning_rate_falls_to_its_end_with_training():
    algo = trained('dgn', 2, lr=1e-2, lr_end=0.1, total_steps=40)
    assert algo.optimizer.param_groups[0]['lr'] == pytest.approx(1e-2 * (1 - 0.9 * algo.progress))
