"""LToS: how its two levels learn in turns, its weights, and what it swaps when it is evaluated."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from algos_zoo import (
    LTOS,
    SEARCH,
    Loop,
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
from torch.testing import assert_close

from ltos_pyg.algos.ltos.search import FIRST_SHARE, SHARES
from ltos_pyg.envs import JungleEnv
from ltos_pyg.nn import Sharing, check_sharing, constant_sharing, keep_all, sender_softmax

every_ltos = pytest.mark.parametrize('variant', LTOS)
every_search = pytest.mark.parametrize('variant', SEARCH)
GRADIENT = [variant for variant in LTOS if 'gradient' in variant]


def prepared(variant: str, updates: int = 3, make_env=jungle, **options):
    """A trained method whose phi is not at the constant, which pulls it, and a batch for its high level."""
    algo = trained(variant, updates, make_env, **options)
    with torch.no_grad():
        algo.phi.head.self_logit.bias += 1.0
    algo.loss(sample(algo))
    return algo, algo.batch


# --- two levels in turns ---------------------------------------------------------------------------------------------


@every_ltos
def test_the_high_level_learns_and_leaves_the_low_level_alone(variant):
    algo, _ = prepared(variant)
    others = [module for name, module in algo.modules().items() if name not in ('phi', 'target_phi', 'constant')]
    before, phi = weights(*others), weights(algo.phi)
    metrics = algo.learn_sharing()
    assert differing(before, weights(*others)) == []
    assert differing(phi, weights(algo.phi)) != []
    assert all(p.requires_grad for p in algo.network.parameters())
    assert {'phi/loss', 'phi/kept', 'phi/kept_std'} <= metrics.keys()
    of_search = {'phi/trust', 'phi/constant'}
    assert of_search & metrics.keys() == (of_search if variant in SEARCH else set())


@every_ltos
def test_every_weight_of_the_high_level_learns(variant):
    env = jungle()
    algo = make(variant, env)
    before = weights(algo.phi)
    Loop(algo, env).until(12)
    assert len(differing(before, weights(algo.phi))) == len(before)


@every_search
def test_every_weight_of_the_searchs_critics_learns(variant):
    env = jungle()
    algo = make(variant, env, phi_starts=1.0)
    before, targets = weights(algo.objective.critics), weights(algo.objective.targets)
    Loop(algo, env).until(12)
    assert len(differing(before, weights(algo.objective.critics))) == len(before)
    assert len(differing(targets, weights(algo.objective.targets))) == len(before)


@every_ltos
def test_the_high_level_waits_for_the_low_level(variant):
    env = jungle()
    algo = make(variant, env, phi_starts=0.25)  # 100 steps
    before = weights(algo.phi, algo.target_phi)
    loop = Loop(algo, env)
    while algo.env_steps < 96:
        loop.until(algo.updates + 1)
    assert differing(before, weights(algo.phi, algo.target_phi)) == []
    assert not any('phi/kept' in row for row in loop.metrics)
    if variant in SEARCH:
        assert int(algo.objective.constant.visits.sum()) == 0  # constants are compared when phi moves
        assert all('phi/critic_loss' in row for row in loop.metrics)
    loop.until(algo.updates + 4)
    assert any('phi/kept' in row for row in loop.metrics)


@every_ltos
def test_the_high_level_takes_every_so_many_turns(variant):
    env = jungle()
    loop = Loop(make(variant, env, phi_every=3), env).until(9)
    assert ['phi/kept' in row for row in loop.metrics] == [True, False, False] * 3


@every_ltos
@pytest.mark.parametrize('most', [1, 3, 100])
def test_the_high_level_looks_at_some_graphs_of_the_batch(variant, most, monkeypatch):
    algo, batch = prepared(variant, phi_graphs=most)
    seen, logits = [], algo.logits
    monkeypatch.setattr(algo, 'logits', lambda phi, of: seen.append(of) or logits(phi, of))
    algo.learn_sharing()
    assert seen[0][0].size(0) == 5 * min(most, batch.t.num_graphs)


@every_ltos
def test_the_target_of_the_high_level_moves_by_its_own_tau(variant):
    algo, _ = prepared(variant, phi_tau=0.25)
    before = [p.clone() for p in algo.target_phi.parameters()]
    algo.learn_sharing()
    for old, new, online in zip(before, algo.target_phi.parameters(), algo.phi.parameters(), strict=True):
        assert_close(new, 0.75 * old + 0.25 * online)


@pytest.mark.parametrize('variant', GRADIENT)
@pytest.mark.parametrize('make_env', [jungle, crowd])
def test_the_papers_objective_is_the_mean_of_the_best_legal_values(variant, make_env):
    algo, batch = prepared(variant, 6, make_env, phi_graphs=100, lr_final_fraction=1.0, phi_lr=1e-3)
    graph = batch.t.graph
    q = algo.q_values(algo.network, graph, algo.sharing(algo.phi, graph)).detach()
    best = [max(row) for row in (q if make_env is jungle else q.masked_fill(~graph.action_mask, -torch.inf)).tolist()]
    losses = [algo.learn_sharing()['phi/loss'].item() for _ in range(30)]  # the low level stays as it is
    assert losses[0] == pytest.approx(-sum(best) / len(best), rel=1e-4)
    assert losses[-1] < losses[0]


@every_ltos
def test_an_illegal_action_does_not_draw_the_high_level(variant):
    gradients = []
    for extra in (0.0, 1e4):
        algo, _ = prepared(variant, 3, crowd)
        with torch.no_grad():  # flying, action 3, is never legal
            head = algo.network.head
            for lin in [head.own.lin, head.pair] if hasattr(head, 'own') else [head.lin]:
                lin.bias[3] += extra
        algo.learn_sharing()
        gradients.append(torch.cat([p.grad.flatten() for p in algo.phi.parameters()]))
    assert gradients[0].abs().max() > 0
    assert_close(gradients[0], gradients[1], atol=1e-2, rtol=0)


# --- weights ---------------------------------------------------------------------------------------------------------


@every_ltos
def test_the_first_weights_are_those_of_the_constant(variant):
    algo, graph = make(variant, jungle()), jungle().reset(0)
    expected = constant_sharing(graph.edge_index, graph.num_nodes, algo.constant_kept)
    assert_close(algo.act(graph).sharing, expected)


@pytest.mark.parametrize('variant', GRADIENT)
@pytest.mark.parametrize('own', [0.25, 0.8, None])
def test_without_the_search_the_constant_is_the_one_asked_for(variant, own):
    algo = make(variant, jungle(), initial_kept=own)
    assert algo.constant_kept == own
    assert algo.objective.modules() == {}


@every_ltos
def test_logits_are_those_of_the_constant_plus_what_phi_adds(variant):
    algo, graph = make(variant, jungle()), jungle().reset(0)
    with torch.no_grad():
        for lin in (algo.phi.head.self_logit, algo.phi.head.edge_logit):
            torch.nn.init.normal_(lin.weight)
    edge, own = algo.phi.logits(*algo.inputs(graph))
    base = constant_sharing(graph.edge_index, graph.num_nodes, algo.constant_kept)
    sender = graph.edge_index[0]
    expected = sender_softmax(edge + base.given.log(), own + base.kept.log(), graph.edge_index)  # softmax knows ratios
    sharing = algo.sharing(algo.phi, graph)
    assert_close(sharing, expected, atol=1e-5, rtol=1e-4)
    assert sharing.kept.std() > 0.02
    evenly = (1 - sharing.kept) / sender.bincount(minlength=graph.num_nodes)
    assert (sharing.given - evenly[sender]).abs().max() > 0.02


@every_search
@pytest.mark.parametrize('own', [None, 0.02, 0.7])
def test_a_new_best_constant_does_not_shift_what_phi_learned(variant, own):
    algo, graph = make(variant, jungle()), jungle().reset(0)
    first = constant_sharing(graph.edge_index, graph.num_nodes, FIRST_SHARE)
    assert_close(algo.act(graph).sharing, first)
    algo.objective.constant.best.fill_(SHARES.index(own))
    assert_close(algo.act(graph).sharing, first)
    assert_close(algo.sharing_under(graph, 'constant'), constant_sharing(graph.edge_index, graph.num_nodes, own))
    with torch.no_grad():
        algo.target_phi.head.self_logit.bias += 1.0
    shifted = algo.act(graph).sharing.kept
    assert_close(shifted.logit() - first.kept.logit(), torch.ones(graph.num_nodes), atol=1e-3, rtol=1e-3)


@every_ltos
def test_the_mode_decides_the_weights_of_an_evaluation(variant):
    algo, graph = trained(variant, 8), jungle().reset(0)
    if variant in SEARCH:
        algo.objective.constant.best.fill_(SHARES.index(0.3))
    shares = {}
    assert algo.sharing_mode == algo.sharing_modes[0] == 'phi'
    for mode in algo.sharing_modes:
        algo.sharing_mode = mode
        shares[mode] = algo.act(graph).sharing
        check_sharing(shares[mode], graph.edge_index, graph.num_nodes)
    size = graph.edge_index, graph.num_nodes
    assert differing(flat(shares['keep']), flat(keep_all(*size))) == []
    assert differing(flat(shares['uniform']), flat(constant_sharing(*size))) == []
    assert differing(flat(shares['constant']), flat(constant_sharing(*size, algo.constant_kept))) == []
    assert_close(shares['phi'], algo.sharing(algo.target_phi, graph))
    assert not torch.equal(algo.act(graph).sharing.kept, shares['random'].kept)  # anew at each step
    assert make(variant, jungle()).sharing_mode == 'phi'  # it belongs to one object, not to the class


def test_random_weights_are_uniform_on_each_simplex():
    algo, graph = make('ltos search', jungle(200), replay_size=600), jungle(200).reset(0)
    algo.sharing_mode = 'random'
    before = chance(algo)
    sharing = algo.act(graph).sharing
    check_sharing(sharing, graph.edge_index, graph.num_nodes)
    assert differing(before, chance(algo)) == ['.play']  # exploration draws from other streams
    degree = graph.edge_index[0].bincount(minlength=graph.num_nodes)
    for d in (3, 4):
        mine = sharing.kept[degree == d]
        assert len(mine) > 100
        assert mine.mean().item() == pytest.approx(1 / (d + 1), abs=0.05)
        assert mine.var().item() == pytest.approx(d / (d + 1) ** 2 / (d + 2), rel=0.35)  # of Dirichlet(1, ..., 1)


@every_ltos
def test_weights_of_an_evaluation_are_the_mean_over_all_views(variant):
    env = JungleEnv(num_envs=2, num_agents=5, num_foods=4, size=8)
    options = {'average_views': True}
    algo = Loop(make(variant, env, **options), env).until(8).algo
    graph = env.reset(0)
    views = [algo.sharing(algo.target_phi, view) for view in algo.symmetries.views(graph)]
    mean = Sharing(*(torch.stack(parts).mean(0) for parts in zip(*views, strict=True)))
    assert_close(algo.act(graph).sharing, mean)
    assert any(not torch.allclose(a.kept, b.kept, atol=1e-6) for a, b in itertools.combinations(views, 2))


@every_ltos
def test_the_greedy_action_is_that_of_an_evaluation(variant):
    algo, graph = trained(variant, 8), jungle().reset(0)
    decision = algo.act(graph)
    assert torch.equal(algo.greedy_action(graph, decision.sharing), decision.action)
    algo, graph = trained(variant, 8, crowd), crowd().reset(0)
    action = algo.greedy_action(graph, keep_all(graph.edge_index, graph.num_nodes))
    assert graph.action_mask.gather(1, action.unsqueeze(1)).all()


# --- graphs without edges or agents ----------------------------------------------------------------------------------


@every_ltos
@pytest.mark.parametrize('agents', [0, 1, 3])
@pytest.mark.parametrize('mode', ['phi', 'constant', 'uniform', 'keep', 'random'])
def test_every_mode_bears_graphs_without_edges_or_agents(variant, agents, mode):
    env = isolated(agents)
    algo, graph = make(variant, env), env.reset(0)
    algo.sharing_mode = mode
    sharing = algo.act(graph).sharing
    assert (sharing.given.shape, sharing.kept.tolist()) == ((0,), [1.0] * 4 * agents)


@every_ltos
def test_the_constant_survives_batches_without_agents(variant):
    env = isolated(0)
    algo = Loop(make(variant, env, learning_starts=20), env).until(8).algo
    metrics = algo.update()
    assert all(math.isfinite(value) for value in metrics.values())
    first = make(variant, env)
    assert differing(weights(first.phi), weights(algo.phi)) == []  # nothing was seen, nothing is learned
    assert algo.constant_kept in SHARES
