from __future__ import annotations

import numpy as np
import pytest
import torch

from ltos_pyg.graph_env import fully_connected, k_nearest, within_radius


def pairs(edge_index):
    edges = list(map(tuple, edge_index.t().tolist()))
    assert len(edges) == len(set(edges))
    return set(edges)


@pytest.mark.parametrize('n', [0, 1, 2, 5])
def test_fully_connected_has_every_ordered_pair_once(n):
    assert pairs(fully_connected(n)) == {(j, i) for j in range(n) for i in range(n) if i != j}


def test_k_nearest_by_hand():
    place = torch.tensor([[0.0], [1.0], [3.0], [10.0]])  # nearest of 0: 1, of 1: 0, of 2: 1, of 3: 2
    assert pairs(k_nearest(place, 1, symmetric=False)) == {(1, 0), (0, 1), (1, 2), (2, 3)}
    assert pairs(k_nearest(place, 1)) == {(1, 0), (0, 1), (1, 2), (2, 1), (2, 3), (3, 2)}


def test_the_lower_number_wins_a_tie():
    square = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    assert pairs(k_nearest(square, 1, symmetric=False)) == {(1, 0), (0, 1), (0, 2), (1, 3)}


@pytest.mark.parametrize('n', [0, 1, 2, 3, 9])
@pytest.mark.parametrize('k', [0, 1, 3, 20])
def test_each_node_receives_from_its_k_nearest(n, k):
    place = torch.rand(n, 2, generator=torch.Generator().manual_seed(n))
    directed, both = (pairs(k_nearest(place, k, symmetric=s)) for s in (False, True))
    for i in range(n):
        near = sorted((float((place[j] - place[i]).norm()), j) for j in range(n) if j != i)[:k]
        assert {j for j, receiver in directed if receiver == i} == {j for _, j in near}
    assert both == directed | {(i, j) for j, i in directed}


def test_k_nearest_follows_relabelling():
    place, perm = torch.rand(8, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    moved = k_nearest(place[perm], 2, symmetric=False)
    assert pairs(perm[moved]) == pairs(k_nearest(place, 2, symmetric=False))


def test_within_radius_counts_its_border():
    place = torch.tensor([[0.0], [2.0], [4.5]])
    assert pairs(within_radius(place, 2.0)) == {(0, 1), (1, 0)}
    assert pairs(within_radius(place, 2.5)) == {(0, 1), (1, 0), (1, 2), (2, 1)}


@pytest.mark.parametrize(('dtype', 'shift'), [(torch.uint8, 0), (torch.int8, -100)])
def test_small_integers_do_not_wrap_around(dtype, shift):
    place = torch.tensor([[0], [3], [20], [200]]) + shift
    assert torch.equal(within_radius(place.to(dtype), 10), torch.tensor([[0, 1], [1, 0]]))
    assert torch.equal(k_nearest(place.to(dtype), 1), k_nearest(place, 1))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"'k' must be at least 0 \(got -1\)"):
        k_nearest(torch.zeros(3, 2), -1)
    with pytest.raises(ValueError, match=r"'position' must be a finite \(N, D\) tensor \(got shape \(3,\), 0 NaN"):
        k_nearest(torch.zeros(3), 1)
    with pytest.raises(ValueError, match=r'got shape \(1, 2\), 1 NaN or infinite entries'):
        within_radius(torch.tensor([[0.0, float('nan')]]), 1.0)
    with pytest.raises(ValueError, match=r"'radius' must be at least 0 \(got -1\)"):
        within_radius(torch.zeros(3, 2), -1)
    for rule in (k_nearest, within_radius):
        with pytest.raises(ValueError, match=r"'position' must be a torch\.Tensor \(got ndarray\)\. Convert it with"):
            rule(np.zeros((3, 2)), 1)
