"""Distances, discounts in space and consensus, with numbers worked by hand on the path 0 - 1 - 2."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from ltos_pyg.graph_env import fully_connected
from ltos_pyg.nn import (
    consensus_matrix,
    consensus_weights,
    constant_sharing,
    hop_distance,
    mix,
    share_value,
    spatial_discount,
    spatial_weights,
)

PATH = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
THREE = torch.arange(3)  # one graph: the place of each node is its number


def discounted(reward: list[float], edges: torch.Tensor, alpha: float | None) -> torch.Tensor:
    n = len(reward)
    weights = spatial_weights(edges, torch.arange(n), 1, n, alpha)
    return spatial_discount(torch.tensor(reward).view(n, 1), weights).flatten()


@pytest.mark.parametrize(
    ('alpha', 'expected'),
    [
        (0.5, [31.0, 60.5, 105.25]),
        (1.0, [111.0, 111.0, 111.0]),
        (None, [111.0, 111.0, 111.0]),
        (0.0, [1.0, 10.0, 100.0]),
    ],
)
def test_rewards_are_discounted_by_hops(alpha, expected):
    assert discounted([1.0, 10.0, 100.0], PATH, alpha).tolist() == expected


def test_unreachable_nodes_do_not_count_unless_all_do():
    edges = PATH[:, :2]  # node 2 is alone
    assert discounted([1.0, 10.0, 100.0], edges, 1.0).tolist() == [11.0, 11.0, 100.0]
    assert discounted([1.0, 10.0, 100.0], edges, None).tolist() == [111.0] * 3


def test_rewards_travel_along_the_edges_and_not_against_them():
    one_way = torch.tensor([[0, 1], [1, 2]])  # 0 -> 1 -> 2
    assert discounted([1.0, 10.0, 100.0], one_way, 0.5).tolist() == [1.0, 10.5, 105.25]


def test_no_messages_pass_between_graphs_of_a_batch():
    edges = torch.cat([PATH, PATH[:, :2] + 3], dim=1)
    place = torch.tensor([0, 2, 4, 1, 3, 5])  # agent * 2 + graph: two graphs of three agents
    weights = spatial_weights(edges, place, 2, 3, 0.5)
    alone = [spatial_weights(e, THREE, 1, 3, 0.5)[0] for e in (PATH, PATH[:, :2])]
    assert_close(weights, torch.stack(alone))


def test_hops_on_a_directed_ring():
    adjacency = torch.zeros(4, 4, dtype=torch.bool)
    adjacency[torch.arange(4), (torch.arange(4) + 1) % 4] = True
    assert hop_distance(adjacency).tolist() == [[0, 1, 2, 3], [3, 0, 1, 2], [2, 3, 0, 1], [1, 2, 3, 0]]
    assert hop_distance(torch.zeros(2, 2, dtype=torch.bool)).tolist() == [[0, -1], [-1, 0]]


def test_sharing_all_evenly_on_the_complete_graph_is_the_mean_and_alpha_one_its_n_fold():
    reward, edges = torch.tensor([1.0, 10.0, 100.0]), fully_connected(3)
    shared = share_value(reward, edges, constant_sharing(edges, 3))
    assert_close(shared, reward.mean().expand(3))
    assert_close(discounted(reward.tolist(), edges, 1.0) / 3, shared)


@pytest.mark.parametrize(('rule', 'expected'), [('uniform', [1.5, 4.0, 6.0]), ('metropolis', [1.0, 4.0, 7.0])])
def test_one_step_of_consensus(rule, expected):
    stack = torch.tensor([[0.0], [3.0], [9.0]])
    mix(stack, consensus_matrix(PATH, THREE, 1, 3, rule))
    assert_close(stack.flatten(), torch.tensor(expected))


def test_metropolis_agrees_on_the_mean():
    stack, matrix = torch.tensor([0.0, 3.0, 9.0]), consensus_matrix(PATH, THREE, 1, 3, 'metropolis')
    for _ in range(200):
        mix(stack, matrix)
    assert_close(stack, torch.full((3,), 4.0))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1000), n=st.integers(1, 8), rule=st.sampled_from(['metropolis', 'uniform']))
def test_rows_sum_to_one_and_for_metropolis_columns_too(seed, n, rule):
    rng = torch.Generator().manual_seed(seed)
    adjacency = torch.rand(n, n, generator=rng) < 0.4
    edges = adjacency.fill_diagonal_(False).nonzero().t()  # directed
    matrix = consensus_matrix(edges, torch.arange(n), 1, n, rule)
    assert (matrix >= 0).all()
    assert_close(matrix.sum(1), torch.ones(n))
    if rule == 'metropolis':
        assert_close(matrix.sum(0), torch.ones(n))


def test_the_matrix_of_a_batch_is_the_mean_and_absent_agents_keep_what_they_have():
    edges = torch.tensor([[0, 1], [1, 0]])  # agents 0 and 1 are neighbours in graph 0; in graph 1 agent 2 is alone
    place = torch.tensor([0, 2, 5])
    expected = torch.tensor([[0.75, 0.25, 0.0], [0.25, 0.75, 0.0], [0.0, 0.0, 1.0]])
    for rule in ('metropolis', 'uniform'):
        assert_close(consensus_matrix(edges, place, 2, 3, rule), expected)


def test_without_edges_consensus_changes_nothing():
    none = torch.zeros(2, 0, dtype=torch.int64)
    assert_close(consensus_matrix(none, THREE, 1, 3), torch.eye(3))


def test_a_rule_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"'rule' must be one of \('metropolis', 'uniform'\) \(got 'mean'\)"):
        consensus_weights(PATH, 3, 'mean')
