"""The low level's critics: their losses term by term, and what their values depend on."""

from __future__ import annotations

import pytest
import torch
from algos_zoo import crowd, jungle, sample, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from ltos_pyg.algos.losses import masked, td_loss
from ltos_pyg.algos.ltos.critics import find_edges
from ltos_pyg.data import Snapshot
from ltos_pyg.graph_env import SingleGraphEnv, SingleStep, VectorGraphEnv
from ltos_pyg.nn import constant_sharing, keep_all
from ltos_pyg.testing import random_snapshot

# --- edges by their ends ---------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.floats(0, 1), st.integers(0, 10**6), st.integers(0, 20))
def test_edges_are_found_by_their_ends(nodes, density, seed, count):
    rng = torch.Generator().manual_seed(seed)
    edges = random_snapshot(nodes, int(density * nodes * (nodes - 1)), 1, generator=rng).edge_index
    pairs = torch.randint(nodes, (2, count), generator=rng)
    at, there = find_edges(edges, pairs, nodes)
    number = {tuple(edge): k for k, edge in enumerate(edges.T.tolist())}
    assert there.tolist() == [tuple(pair) in number for pair in pairs.T.tolist()]
    found = [k for k, is_edge in zip(at.tolist(), there.tolist(), strict=True) if is_edge]
    assert found == [number[tuple(pair)] for pair in pairs.T.tolist() if tuple(pair) in number]


# --- the paper's critic ----------------------------------------------------------------------------------------------


def assert_same_loss(algo, loss: Tensor, expected: Tensor) -> None:
    """The same value, and the same gradient by every weight: nothing flows through targets."""
    assert_close(loss, expected)
    parameters = list(algo.network.parameters())
    assert_close(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters))


@torch.no_grad()
def greedy_next(algo, t) -> list[int]:
    """What each node of the successors does, under the weights of the target high level there."""
    q = algo.q_values(algo.network, t.successor, algo.sharing(algo.target_phi, t.successor))
    return masked(q, t.successor.get('action_mask')).argmax(-1).tolist()


@pytest.mark.parametrize('gap', [0.0, 0.5])
@pytest.mark.parametrize('make_env', [jungle, crowd])
def test_the_loss_of_the_node_critic_is_that_of_its_nodes_one_by_one(make_env, gap):
    algo = trained('ltos search', 12, make_env, n_step=3, action_gap=gap, phi_tau=0.5)
    t = sample(algo)
    action, values = t.action.tolist(), algo.q_values(algo.network, t.graph, t.sharing)
    q = values.detach()
    best = masked(q, t.graph.get('action_mask')).argmax(-1).tolist()
    row, next_action = t.successor_node.tolist(), greedy_next(algo, t)
    next_q = algo.q_values(algo.target, t.successor, algo.sharing(algo.target_phi, t.successor))
    target = []
    for i in range(t.graph.num_nodes):
        value = float(next_q[row[i], next_action[row[i]]]) if t.discount[i] > 0 else 0.0
        target.append(float(t.shaped[i] + t.discount[i] * value - gap * (q[i, best[i]] - q[i, action[i]])))
    expected = td_loss(values[range(t.graph.num_nodes), action], torch.tensor(target))
    assert_same_loss(algo, algo.loss(t)[0], expected)
    assert not torch.equal(t.shaped, t.reward)


def test_the_bootstrap_of_the_node_critic_takes_the_weights_of_the_target_high_level():
    algo = trained('ltos gradient', 6)
    t = sample(algo)
    before = algo.loss(t)[0].item()
    with torch.no_grad():
        algo.phi.head.self_logit.bias += 3.0
    assert algo.loss(t)[0].item() == before
    with torch.no_grad():
        algo.target_phi.head.self_logit.bias += 3.0
    assert algo.loss(t)[0].item() != before


# --- pair values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('n_step', 'gap'), [(1, 0.0), (3, 0.0), (3, 0.5)])
@pytest.mark.parametrize('make_env', [jungle, crowd])
def test_the_loss_of_the_edge_critic_is_that_of_its_pairs_one_by_one(make_env, n_step, gap):
    algo = trained('ltos_edge search', 12, make_env, n_step=n_step, action_gap=gap)
    t = sample(algo)
    row, there, next_action = t.successor_node.tolist(), (t.discount > 0).tolist(), greedy_next(algo, t)
    with torch.no_grad():
        sharing_next = algo.sharing(algo.target_phi, t.successor)
        own_next, pair_next = algo.target.values(*algo.inputs(t.successor), sharing_next)
    edge_next = {tuple(edge): k for k, edge in enumerate(t.successor.edge_index.T.tolist())}

    def value(owner: int, actor: int) -> float:
        """What the successor is worth to one agent through what another one, or the same, does there."""
        if not (there[owner] and there[actor]):
            return 0.0
        at, action = (row[owner], row[actor]), next_action[row[actor]]
        if owner == actor:
            return float(own_next[row[owner], action])
        return float(pair_next[edge_next[at], action]) if at in edge_next else 0.0

    own, pair = algo.network.values(*algo.inputs(t.graph), t.sharing)
    action, reward, discount = t.action.tolist(), t.reward.tolist(), t.discount.tolist()
    lose = lambda value, best, taken: gap * float(value[best] - value[taken])
    greedy = masked(algo.q_values(algo.network, t.graph, t.sharing), t.graph.get('action_mask')).argmax(-1).tolist()
    nodes, edges = range(t.graph.num_nodes), t.graph.edge_index.T.tolist()
    lost = [lose(own.detach()[i], greedy[i], action[i]) for i in nodes]
    own_target = torch.tensor([reward[i] + discount[i] * value(i, i) - lost[i] for i in nodes])
    surprise = (own_target - own[nodes, action].detach()).tolist()
    lost = [lose(pair.detach()[k], greedy[actor], action[actor]) for k, (_, actor) in enumerate(edges)]
    pair_target = torch.tensor(
        [surprise[owner] + discount[owner] * value(owner, actor) - lost[k] for k, (owner, actor) in enumerate(edges)]
    )
    pair_taken = torch.stack([pair[k, action[actor]] for k, (_, actor) in enumerate(edges)])
    expected = td_loss(own[nodes, action], own_target) + td_loss(pair_taken, pair_target)
    assert_same_loss(algo, algo.loss(t)[0], expected)
    parted = [(o, a) for o, a in edges if there[o] and there[a] and (row[o], row[a]) not in edge_next]
    if make_env is crowd:
        assert not all(there)  # some agent had left
    else:
        assert parted  # some pair is no longer joined


class Parting(SingleGraphEnv):
    """Two neighbours, who are none any more after the first step; the second gains where the first does 1."""

    num_features, num_actions, max_nodes, symmetric, horizon = 1, 2, 2, True, 2

    def start(self) -> Snapshot:
        self.clock = 0
        return self.look()

    def step(self, action: Tensor) -> SingleStep:
        self.clock += 1
        return SingleStep(self.look(), torch.tensor([0.0, float(action[0])]))

    def look(self) -> Snapshot:
        edges = torch.tensor([[0, 1], [1, 0]]) if self.clock == 0 else torch.zeros(2, 0, dtype=torch.int64)
        return Snapshot(x=torch.tensor([[1.0], [-1.0]]) * (self.clock + 1), edge_index=edges)


def test_pairs_that_part_lose_the_bootstrap():
    algo = trained('fixed_ltos edge', 4, lambda: VectorGraphEnv(Parting, 4), n_step=1, gamma=1.0)
    t = sample(algo)
    assert t.graph.num_edges > 0
    assert (t.discount > 0).all()
    before = algo.loss(t)[1]['pair_loss'].item()
    with torch.no_grad():
        algo.target.head.pair.bias += 100.0
    assert algo.loss(t)[1]['pair_loss'].item() == before


@pytest.mark.parametrize('variant', ['fixed_ltos node', 'fixed_ltos edge'])
def test_networks_that_see_no_weights_have_no_inputs_for_them(variant):
    algo, graph = trained(variant, 2), jungle().reset(0)
    assert not [name for name in algo.network.state_dict() if 'sharing' in name]
    few, many = (constant_sharing(graph.edge_index, graph.num_nodes, own) for own in (0.1, 0.9))
    q_few, q_many = (algo.q_values(algo.network, graph, sharing) for sharing in (few, many))
    if variant == 'fixed_ltos node':
        assert torch.equal(q_few, q_many)
    else:  # linear in the weights
        between = type(few)(*(0.3 * a + 0.7 * b for a, b in zip(few, many, strict=True)))
        assert_close(algo.q_values(algo.network, graph, between), 0.3 * q_few + 0.7 * q_many)
        assert not torch.allclose(q_few, q_many)


def test_an_agent_that_keeps_all_among_those_that_keep_all_acts_on_its_own_values():
    algo, graph = trained('ltos_edge search', 4), jungle().reset(0)
    sharing = keep_all(graph.edge_index, graph.num_nodes)
    own, _ = algo.network.values(*algo.inputs(graph), sharing)
    assert torch.equal(algo.q_values(algo.network, graph, sharing), own)


# --- shaped rewards --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('variant', ['fixed_ltos node', 'ltos search', 'ltos_edge gradient'])
@pytest.mark.parametrize('make_env', [jungle, crowd])
def test_stored_rewards_are_shaped_with_the_stored_weights_and_conserved_in_each_graph(variant, make_env):
    algo = trained(variant, 12, make_env, n_step=1)
    t = algo.replay.sample(32, torch.Generator().manual_seed(1), 1, 1.0)
    sender, receiver = t.graph.edge_index
    expected = (t.sharing.kept * t.reward).index_add(0, receiver, t.sharing.given * t.reward[sender])
    assert_close(t.shaped, expected)
    total, total_shaped = (
        torch.zeros(t.num_graphs).index_add(0, t.graph.batch, reward) for reward in (t.reward, t.shaped)
    )
    assert_close(total, total_shaped, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(t.shaped, t.reward)
