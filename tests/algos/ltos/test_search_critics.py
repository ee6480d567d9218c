"""The critics of joint actions that the search over joint weights has, and its graph helpers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from algos_zoo import Isolated, crowd, jungle, make, sample, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close
from torch_geometric.data import Batch

from ltos_pyg.algos.ltos.search import JointActionCritic, half_of
from ltos_pyg.algos.ltos.subgraphs import both_ways, first_graphs, part_of, random_parts, repeated_edges, within_hops
from ltos_pyg.data import Snapshot
from ltos_pyg.graph_env import VectorGraphEnv
from ltos_pyg.testing import assert_batch_invariant, assert_equivariant, random_snapshot

SIZES = [(3, 4), (0, 0), (1, 0), (5, 20), (4, 0), (6, 9)]


def graphs(edge_dim: int | None = None) -> list[Snapshot]:
    rng = torch.Generator().manual_seed(1)
    return [random_snapshot(*size, 3, edge_dim, rng) for size in SIZES]


def seen_of(graph: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    return graph.x, graph.edge_index, graph.get('edge_attr')


# --- graphs ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 8), st.floats(0, 0.6), st.integers(0, 10**6), st.integers(1, 4))
def test_pairs_within_some_hops_are_those_that_a_breadth_first_search_finds(nodes, density, seed, hops):
    rng = torch.Generator().manual_seed(seed)
    edges = random_snapshot(nodes, int(density * nodes * (nodes - 1)), 1, generator=rng).edge_index
    expected = set()
    for source in range(nodes):
        reached = frontier = {source}
        for _ in range(hops):
            frontier = {r for s, r in edges.T.tolist() if s in frontier} - reached
            reached = reached | frontier
        expected |= {(i, source) for i in reached}
    row, column = within_hops(edges, nodes, hops)
    pairs = list(zip(row.tolist(), column.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    assert set(pairs) == expected


@pytest.mark.parametrize('edge_dim', [None, 2])
def test_the_same_graphs_many_times_over_are_a_batch_of_copies(edge_dim):
    batch = Batch.from_data_list(graphs(edge_dim))
    copies = Batch.from_data_list(graphs(edge_dim) * 3)
    assert_close(repeated_edges(seen_of(batch), 3), seen_of(copies)[1:])


@pytest.mark.parametrize('edge_dim', [None, 2])
@pytest.mark.parametrize('most', [1, 2, 3, 6, 9])
def test_the_first_graphs_of_a_batch(edge_dim, most):
    batch = Batch.from_data_list(graphs(edge_dim))
    assert_close(first_graphs(seen_of(batch), batch.ptr, most), seen_of(Batch.from_data_list(graphs(edge_dim)[:most])))


@pytest.mark.parametrize('edge_dim', [None, 2])
@pytest.mark.parametrize('chosen', [[], [0], [1], [5], [0, 3, 5], [1, 2, 4], [0, 1, 2, 3, 4, 5]])
def test_chosen_graphs_of_a_batch(edge_dim, chosen):
    batch = Batch.from_data_list(graphs(edge_dim))
    flags = torch.zeros(len(SIZES), dtype=torch.bool)
    flags[chosen] = True
    node, seen = part_of(seen_of(batch), batch.batch, flags)
    assert node.tolist() == [i for i, b in enumerate(batch.batch.tolist()) if b in chosen]
    if chosen:
        assert_close(seen, seen_of(Batch.from_data_list([graphs(edge_dim)[b] for b in chosen])))
    else:
        assert (seen[0].shape, seen[1].shape) == ((0, 3), (2, 0))


@pytest.mark.parametrize('parts', [1, 2, 4, 16])
def test_the_nodes_of_each_graph_are_dealt_out_to_parts_at_random(parts):
    batch = Batch.from_data_list(graphs())
    rng = torch.Generator().manual_seed(0)
    draws = torch.stack([random_parts(batch.batch, batch.num_graphs, parts, rng) for _ in range(40)])
    for graph, (nodes, _) in enumerate(SIZES):
        counts = [torch.bincount(draw, minlength=parts).tolist() for draw in draws[:, batch.batch == graph]]
        assert all(max(count) - min(count) <= 1 and sum(count) == nodes for count in counts)
    assert draws.max() == min(parts, 6) - 1
    assert parts == 1 or all(len(seen.unique()) > 1 for seen in draws.T[batch.batch == 3])


def test_reverse_edges_are_added_once_and_without_features():
    edges, attr = torch.tensor([[0, 1, 2], [1, 0, 1]]), torch.tensor([[1.0], [2.0], [3.0]])
    _, both, features = both_ways((torch.zeros(3, 1), edges, attr))
    assert both.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    assert features.tolist() == [[1.0], [2.0], [0.0], [3.0]]


# --- critics of joint actions ----------------------------------------------------------------------------------------


def joint_critic(edge_dim: int | None = 2, hops: int = 2) -> JointActionCritic:
    game = type('Game', (Isolated,), {'num_features': 3, 'edge_dim': edge_dim})
    env = VectorGraphEnv(game, 1)
    return JointActionCritic(env.spec, make('ltos search', env, hops=hops, search_channels=16).config)


class UnderActions(nn.Module):
    """The critic, of actions that depend on the node features."""

    def __init__(self, critic: JointActionCritic) -> None:
        super().__init__()
        self.critic = critic

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> Tensor:
        return self.critic(x, edge_index, edge_attr, (x[:, 0] > 0).long() + (x[:, 1] > 0.5))


@pytest.mark.parametrize('edge_dim', [None, 2])
def test_many_joint_actions_at_once_are_valued_as_one_by_one(edge_dim):
    critic, graph = joint_critic(edge_dim), random_snapshot(6, 14, 3, edge_dim)
    actions = torch.randint(3, (5, 6), generator=torch.Generator().manual_seed(0))
    values = critic(*seen_of(graph), actions)
    assert values.shape == (5, 6)
    assert_close(values, torch.stack([critic(*seen_of(graph), action) for action in actions]))
    assert len({tuple(row) for row in values.tolist()}) == 5


@pytest.mark.parametrize('edge_dim', [None, 2])
def test_values_of_joint_actions_follow_a_renaming_and_no_graph_sees_another(edge_dim):
    critic, graph = UnderActions(joint_critic(edge_dim)), random_snapshot(6, 14, 3, edge_dim)
    assert_equivariant(critic, *(part for part in seen_of(graph) if part is not None))
    assert_batch_invariant(critic, graphs(edge_dim))


@pytest.mark.parametrize('hops', [1, 2, 3])
def test_a_value_depends_on_actions_as_many_hops_away_as_it_should(hops):
    chain = torch.stack([torch.arange(5), torch.arange(1, 6)])  # 0 -> 1 -> ... -> 5
    critic, x, base = joint_critic(None, hops), torch.randn(6, 3), torch.zeros(6, dtype=torch.int64)
    changed = [base.clone() for _ in range(6)]
    for node, action in enumerate(changed):
        action[node] = 2
    values = critic(x, chain, None, torch.stack([base, *changed]))[:, 5]
    assert (values[1:] != values[0]).nonzero().flatten().tolist() == list(range(5 - hops, 6))


def test_messages_are_summed_so_that_a_second_neighbour_that_does_the_same_counts():
    critic, x = joint_critic(None, 1), torch.ones(3, 3)
    one, two = torch.tensor([[1], [0]]), torch.tensor([[1, 2], [0, 0]])
    action = torch.ones(3, dtype=torch.int64)
    h = critic.encoder((critic.observation(x) + critic.action(action)).relu())
    sent = critic.message[0](h)[1].relu()
    for edges, count in ((one, 1), (two, 2)):
        after = critic.update[0](torch.cat([h[0], count * sent])).relu()
        expected = critic.out(torch.cat([h[0], after]).unsqueeze(0)).squeeze()
        assert_close(critic(x, edges, None, action)[0], expected)


@pytest.mark.parametrize('variant', ['ltos search', 'ltos_edge search'])
@pytest.mark.parametrize('make_env', [jungle, crowd])
def test_each_critic_learns_unshaped_returns_from_its_own_half_of_the_frames(variant, make_env):
    algo = trained(variant, 12, make_env, n_step=3, tau=0.3, huber=1.0)
    t = sample(algo)
    t = replace(t, reward=20 * t.reward)  # errors above 1, where the Huber loss of the low level is linear
    algo.loss(t)  # prepares the batch
    ahead, search = algo.batch.successors, algo.objective
    bound = t.successor.ptr.tolist()
    expected = []
    for c, (critic, target) in enumerate(zip(search.critics, search.targets, strict=True)):
        values, wanted = [], []
        for b in (t.index % 2 == c).nonzero().flatten().tolist():
            node = (t.graph.batch == b).nonzero().flatten()
            values.append(critic(*algo.inputs(t.graph[b]), t.action[node]))
            with torch.no_grad():
                after = target(*algo.inputs(t.successor[b]), ahead.action[bound[b] : bound[b + 1]])
            for i in node.tolist():
                value = after[t.successor_node[i] - bound[b]] if t.discount[i] > 0 else 0.0
                wanted.append(float(t.reward[i] + t.discount[i] * value))
        assert wanted
        expected.append(0.5 * (torch.cat(values) - torch.tensor(wanted)).square().mean())
    loss = search.critic_loss(algo.batch)
    assert_close(loss, torch.stack(expected).mean())
    parameters = list(search.critics.parameters())
    grads = [torch.autograd.grad(of, parameters, allow_unused=True) for of in (loss, torch.stack(expected).mean())]
    assert_close(*grads)
    assert (t.discount > 0).any()


@pytest.mark.parametrize(
    ('num_envs', 'numbers'), [(1, range(0, 4000, 2)), (1, range(2000)), (2, range(2000)), (16, range(2000))]
)
def test_each_critic_learns_from_half_of_the_frames(num_envs, numbers):
    index = torch.tensor(numbers)
    half = half_of(index, num_envs)
    assert 0.45 < half.double().mean() < 0.55
    assert torch.equal(half, half_of(index, num_envs))


def test_with_two_streams_both_critics_see_both():
    index = torch.arange(2000)
    for stream in (0, 1):
        assert 0.4 < half_of(index[index % 2 == stream], 2).double().mean() < 0.6


@pytest.mark.parametrize('num_tasks', [1, 2, 3, 4])
def test_both_critics_see_every_task(num_tasks):
    index = torch.arange(16_000)
    task = index % 16 % num_tasks
    for which in range(num_tasks):
        assert 0.3 < half_of(index[task == which], 16, num_tasks).double().mean() < 0.7
