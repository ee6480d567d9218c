"""The low level's critics: their losses term by term, and what their values depend on."""

from __future__ import annotations

import pytest
import torch
from algos_zoo import crowd, jungle, sample, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from torch_geometric.data import Batch, Data

from ltos_pyg.algos.losses import masked, td_loss
from ltos_pyg.algos.ltos.critics import find_edges, random_pairs
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
    shaped = (t.sharing.kept * t.reward).tolist()
    for (sender, receiver), share in zip(t.graph.edge_index.T.tolist(), t.sharing.given.tolist(), strict=True):
        shaped[receiver] += share * float(t.reward[sender])
    target = []
    for i in range(t.graph.num_nodes):
        value = float(next_q[row[i], next_action[row[i]]]) if t.discount[i] > 0 else 0.0
        target.append(float(shaped[i] + t.discount[i] * value - gap * (q[i, best[i]] - q[i, action[i]])))
    expected = td_loss(values[range(t.graph.num_nodes), action], torch.tensor(target))
    assert_same_loss(algo, algo.loss(t)[0], expected)
    assert not torch.equal(torch.tensor(shaped), t.reward)


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


def values_of_pairs(algo, network, graph, sharing, pairs: Tensor) -> Tensor:
    """Values (P, A) of pairs (2, P), one pair at a time."""
    x, edge_index, edge_attr = algo.inputs(graph)
    h = network.trunk(x, edge_index, edge_attr, sharing)
    number = {tuple(edge): k for k, edge in enumerate(edge_index.T.tolist())}
    values = []
    for pair in pairs.T.tolist():
        k = number.get(tuple(pair))
        feature = None if edge_attr is None else torch.zeros(1, edge_attr.size(1)) if k is None else edge_attr[[k]]
        values.append(network.head(h, torch.tensor([pair]).T, feature)[1])
    return torch.cat(values)


@pytest.mark.parametrize(('n_step', 'gap'), [(1, 0.0), (3, 0.0), (3, 0.5)])
@pytest.mark.parametrize('make_env', [jungle, crowd])
def test_the_loss_of_the_edge_critic_is_that_of_its_pairs_one_by_one(make_env, n_step, gap):
    algo = trained('ltos_edge search', 12, make_env, n_step=n_step, action_gap=gap)
    t = sample(algo)
    row, there, next_action = t.successor_node.tolist(), (t.discount > 0).tolist(), greedy_next(algo, t)
    loss = algo.loss(t)[0]
    pairs = t.graph.edge_index.T.tolist() + algo.batch.extra_pairs.T.tolist()
    edge_next = {tuple(edge): k for k, edge in enumerate(t.successor.edge_index.T.tolist())}
    with torch.no_grad():
        sharing_next = algo.sharing(algo.target_phi, t.successor)
        own_next, at_edges = algo.target.values(*algo.inputs(t.successor), sharing_next)
        then = t.successor_node[torch.tensor(pairs).T]
        pair_next = values_of_pairs(algo, algo.target, t.successor, sharing_next, then).tolist()

    def value(owner: int, actor: int, k: int | None = None) -> float:
        """What the successor is worth to one agent through what another one, or the same, does there."""
        if not (there[owner] and there[actor]):
            return 0.0
        at, action = (row[owner], row[actor]), next_action[row[actor]]
        if k is None:
            return float(own_next[row[owner], action])
        if at in edge_next:  # of the edge that joins them there, whatever its number
            assert_close(torch.tensor(pair_next[k]), at_edges[edge_next[at]])
        return pair_next[k][action]

    own, _ = algo.network.values(*algo.inputs(t.graph), t.sharing)
    pair = values_of_pairs(algo, algo.network, t.graph, t.sharing, torch.tensor(pairs).T)
    action, reward, discount = t.action.tolist(), t.reward.tolist(), t.discount.tolist()
    lose = lambda value, best, taken: gap * float(value[best] - value[taken])
    greedy = masked(algo.q_values(algo.network, t.graph, t.sharing), t.graph.get('action_mask')).argmax(-1).tolist()
    nodes = range(t.graph.num_nodes)
    lost = [lose(own.detach()[i], greedy[i], action[i]) for i in nodes]
    own_target = torch.tensor([reward[i] + discount[i] * value(i, i) - lost[i] for i in nodes])
    surprise = (own_target - own[nodes, action].detach()).tolist()
    lost = [lose(pair.detach()[k], greedy[actor], action[actor]) for k, (_, actor) in enumerate(pairs)]
    pair_target = torch.tensor(
        [surprise[owner] + discount[owner] * value(owner, actor, k) - lost[k] for k, (owner, actor) in enumerate(pairs)]
    )
    pair_taken = torch.stack([pair[k, action[actor]] for k, (_, actor) in enumerate(pairs)])
    expected = td_loss(own[nodes, action], own_target) + td_loss(pair_taken, pair_target)
    assert_same_loss(algo, loss, expected)
    if make_env is crowd:
        assert not all(there)  # some agent had left
    else:
        assert len(pairs) > t.graph.num_edges  # some neighbours part


class Parting(SingleGraphEnv):
    """Two agents, neighbours at the first step only; the second gains where the first does 1."""

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


def test_pairs_that_part_continue_with_values_that_are_learned():
    algo = trained('fixed_ltos edge', 300, lambda: VectorGraphEnv(Parting, 4), n_step=1, gamma=0.5, lr=1e-2)
    t = sample(algo)
    apart = (t.graph.x[:, 0].abs() == 2).nonzero().squeeze(-1)  # the agents of the second step
    pairs = torch.stack([apart[1::2], apart[::2]])  # the second one's reward, the first one's action
    with torch.no_grad():
        value = values_of_pairs(algo, algo.network, t.graph, None, pairs)
    assert (value[:, 1] - value[:, 0] > 0.5).all()  # in truth 1; untrained values differ by less than 0.1


@pytest.mark.parametrize('make_env', [jungle, crowd])
def test_random_pairs_are_of_one_graph_and_of_all_owners(make_env):
    graph = make_env().reset(0)
    owner, other = random_pairs(graph, torch.Generator().manual_seed(0))
    assert torch.equal(graph.batch[owner], graph.batch[other])
    assert (owner != other).all()
    again = torch.cat([random_pairs(graph, torch.Generator().manual_seed(seed))[0] for seed in range(20)])
    assert len(again.unique()) == int((graph.ptr.diff()[graph.batch] > 1).sum())


@pytest.mark.parametrize('sizes', [[], [0, 1], [1, 0, 1]])
def test_lone_agents_and_empty_graphs_have_no_pairs(sizes):
    graph = Batch.from_data_list(
        [Data(x=torch.zeros(n, 1), edge_index=torch.zeros(2, 0, dtype=torch.int64), num_nodes=n) for n in sizes or [0]]
    )
    assert random_pairs(graph, torch.Generator().manual_seed(0)).shape == (2, 0)


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
