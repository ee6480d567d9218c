"""Fixed LToS: constant weights of all kinds under either critic."""

from __future__ import annotations

import io

import pytest
import torch
from algos_zoo import Loop, chance, crowd, differing, flat, jungle, make, sample, trained
from torch.testing import assert_close

from ltos_pyg.algos.ltos.fixed import random_sharing
from ltos_pyg.nn import check_sharing, constant_sharing, keep_all
from ltos_pyg.testing import random_snapshot

every_critic = pytest.mark.parametrize('variant', ['fixed_ltos node', 'fixed_ltos edge'])


@every_critic
@pytest.mark.parametrize(('kept', 'own'), [('uniform', None), (0.3, 0.3), (0, 0.0), (1, 1.0)])
@pytest.mark.parametrize('make_env', [jungle, crowd])
def test_the_weights_are_those_asked_for_in_training_in_evaluation_and_at_the_successors(variant, kept, own, make_env):
    algo = trained(variant, 6, make_env, kept=kept)
    graph = make_env().reset(3)
    expected = constant_sharing(graph.edge_index, graph.num_nodes, own)
    for explore in (False, True):
        assert_close(algo.act(graph, explore).sharing, expected)
    t = sample(algo)
    for sharing, of in ((t.sharing, t.graph), (algo.next_sharing(t), t.successor)):
        assert_close(sharing, constant_sharing(of.edge_index, of.num_nodes, own))


@every_critic
def test_random_weights_lie_on_the_simplex_and_are_drawn_anew_at_each_step(variant):
    algo, graph = make(variant, jungle(), kept='random'), jungle().reset(0)
    drawn = [algo.act(graph, explore).sharing for explore in (True, True, False, False)]
    for sharing in drawn:
        check_sharing(sharing, graph.edge_index, graph.num_nodes)
    assert len({float(sharing.kept[0]) for sharing in drawn}) == 4


@every_critic
def test_random_weights_of_training_and_of_evaluation_come_from_streams_of_their_own(variant):
    algo, graph = trained(variant, 3, kept='random'), jungle().reset(0)
    before = chance(algo)
    algo.act(graph, explore=True)
    assert differing(before, chance(algo)) == ['.explore', '.shares']
    before = chance(algo)
    algo.act(graph)
    assert differing(before, chance(algo)) == ['.play']


@every_critic
def test_under_random_weights_a_saved_state_continues_to_the_same_weights(variant):
    env = jungle()
    loop = Loop(make(variant, env, kept='random'), env).until(8)
    file = io.BytesIO()
    torch.save({'algo': loop.algo.state_dict(), 'env': env.state_dict()}, file)
    expected = flat(loop.until(16).algo.state_dict())

    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    again = Loop(make(variant, env, seed=3, kept='random'), jungle(), seed=9)
    again.algo.load_state_dict(state['algo'])
    again.graph = again.env.load_state_dict(state['env'])
    assert differing(expected, flat(again.until(16).algo.state_dict())) == []


def test_random_weights_are_uniform_on_the_simplex_of_each_sender():
    star = torch.stack([torch.zeros(3, dtype=torch.int64), torch.arange(1, 4)])  # node 0 gives to 1, 2 and 3
    rng = torch.Generator().manual_seed(0)
    drawn = [random_sharing(star, 4, rng) for _ in range(2_000)]
    shares = torch.stack([torch.cat([sharing.kept[:1], sharing.given]) for sharing in drawn])
    assert_close(shares.mean(0), torch.full((4,), 0.25), atol=0.02, rtol=0)
    assert_close(shares.var(0), torch.full((4,), 3 / 16 / 5), atol=0.004, rtol=0)  # Dirichlet(1, 1, 1, 1)
    assert_close(torch.stack([sharing.kept[1:] for sharing in drawn]), torch.ones(2_000, 3))  # the others keep all


@pytest.mark.parametrize('size', [(0, 0), (3, 0), (6, 14)])
def test_random_weights_of_any_graph(size):
    edges = random_snapshot(*size, 1).edge_index
    check_sharing(random_sharing(edges, size[0], torch.Generator().manual_seed(0)), edges, size[0])


def test_that_keeps_all_the_edge_critic_acts_on_own_values_alone():
    algo, graph = trained('fixed_ltos edge', 4, kept=1), jungle().reset(0)
    own, _ = algo.averaged.values(*algo.inputs(graph), keep_all(graph.edge_index, graph.num_nodes))
    assert torch.equal(algo.act(graph).action, own.argmax(-1))
