"""Symmetries are tables that fit, and views of them are exact relabellings."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from ltos_pyg.algos import ALGORITHMS
from ltos_pyg.envs import JungleEnv, PrisonerEnv
from ltos_pyg.graph_env import GraphEnvSpec, Symmetries, Symmetry
from ltos_pyg.nn import DGN

SMALL = {'hidden_channels': 16, 'heads': 2, 'encoder_channels': (16,), 'batch_size': 4, 'learning_starts': 16}
MIRROR = Symmetry(
    feature=(1, 0), feature_sign=(-1.0, 2.0), feature_shift=(0.0, 5.0), action=(2, 1, 0), edge=(0,), edge_sign=(-1.0,)
)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'feature': (0, 0)}, r"'feature' of a symmetry must name each of 0\.\.1 once \(got \(0, 0\)\)"),
        ({'action': (0, 1)}, r"'action' of a symmetry must name each of 0\.\.2 once"),
        ({'edge': ()}, r"'edge' of a symmetry must name each of 0\.\.0 once"),
        ({'feature_sign': (1.0,)}, r"'feature_sign' of a symmetry needs one number per column: expected 2, got 1"),
        ({'feature_shift': (0.0,) * 3}, r"'feature_shift' .* expected 2, got 3"),
        ({'edge_sign': ()}, r"'edge_sign' .* expected 1, got 0"),
    ],
)
def test_tables_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(MIRROR, **change).check(num_features=2, num_actions=3, edge_dim=1)


def test_each_graph_is_seen_under_its_own_symmetry():
    env = JungleEnv(num_envs=3)
    graph = env.reset(0)
    symmetries = Symmetries(env.spec.symmetries)
    mixed = symmetries.view(graph, torch.tensor([0, 5, 3]))
    for b, s in enumerate((0, 5, 3)):
        alone = symmetries.view(graph, torch.tensor([s] * 3)).to_data_list()[b]
        assert_close(mixed.to_data_list()[b].x, alone.x, rtol=0, atol=0)
        assert_close(mixed.to_data_list()[b].edge_attr, alone.edge_attr, rtol=0, atol=0)
    assert mixed.x.dtype == graph.x.dtype
    assert not torch.equal(mixed.x, graph.x)


def test_masks_go_with_their_actions():
    env = JungleEnv(num_envs=2)
    graph = env.reset(0)
    graph.action_mask = torch.rand(graph.num_nodes, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    symmetries = Symmetries(env.spec.symmetries)
    which = torch.tensor([6, 1])
    view = symmetries.view(graph, which)
    action = torch.arange(9).repeat(graph.num_nodes, 1)
    for column in range(9):
        renamed = symmetries.actions(action[:, column], which[graph.batch])
        assert torch.equal(view.action_mask.gather(1, renamed.unsqueeze(1)).squeeze(1), graph.action_mask[:, column])


def test_the_mean_over_views_turns_with_the_board():
    env = JungleEnv(num_envs=2)
    graph = env.reset(0)
    symmetries = Symmetries(env.spec.symmetries)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DGN(env.spec.num_features, 9, hidden_channels=16, encoder_channels=(16,), heads=2, edge_dim=2)

    def values(g):
        return network(g.x.float() / 30, g.edge_index, g.edge_attr.float())

    which = torch.tensor([5, 2])
    node = which[graph.batch]
    turned = symmetries.average(symmetries.view(graph, which), values)
    straight = symmetries.average(graph, values)
    assert_close(turned.gather(1, symmetries.action[node]), straight, rtol=1e-4, atol=1e-6)
    assert (values(symmetries.view(graph, which)).gather(1, symmetries.action[node]) - values(graph)).abs().max() > 1e-3


@pytest.mark.parametrize('algo', ['dqn', 'dgn', 'fixed_ltos', 'ltos', 'qmix', 'ip'])
def test_greedy_decisions_over_all_views_turn_with_the_board(algo):
    cls, config = ALGORITHMS[algo]
    env = JungleEnv(num_envs=2)
    options = {name: value for name, value in SMALL.items() if name in config.__dataclass_fields__}
    learner = cls(env.spec, config(**options, average_views=True), 0)
    graph = env.reset(0)
    which = torch.tensor([5, 2])
    symmetries = Symmetries(env.spec.symmetries)
    straight, turned = learner.act(graph), learner.act(symmetries.view(graph, which))
    assert torch.equal(turned.action, symmetries.actions(straight.action, which[graph.batch]))
    if straight.sharing is not None:
        assert_close(turned.sharing, straight.sharing)


def test_training_on_views_is_an_option_and_draws_from_its_own_stream():
    cls, config = ALGORITHMS['dgn']
    losses = {}
    for augment in (True, False):
        env = JungleEnv(num_envs=4, num_agents=5, seed=0)
        learner = cls(env.spec, config(**SMALL, augment=augment, train_freq=4), 0)
        graph = env.reset(0)
        for _ in range(10):
            decision = learner.act(graph, explore=True)
            step = env.step(decision.action)
            learner.observe(graph, decision, step)
            graph = step.graph
        state = learner.views_rng.get_state()
        losses[augment] = [learner.update()['loss'] for _ in range(2)]
        assert torch.equal(state, learner.views_rng.get_state()) != augment
    assert losses[True] != losses[False]


@pytest.mark.parametrize('make', [JungleEnv, PrisonerEnv])
def test_a_spec_survives_json(make):
    spec = make(num_envs=3).spec
    assert GraphEnvSpec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec
