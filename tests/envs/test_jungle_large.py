"""Large boards play the same episodes as small ones, and 100,000 agents fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ltos_pyg.envs import JungleEnv
from ltos_pyg.envs.jungle_large import LargeJungle
from ltos_pyg.envs.jungle_numba import NumbaJungle
from ltos_pyg.envs.jungle_rules import JungleConfig
from ltos_pyg.envs.streams import first_streams

OPTIONS: dict[str, dict[str, Any]] = {
    'default': {},
    'directed': {'symmetric': False, 'neighbours': 5},
    'dense': {'num_agents': 200, 'num_foods': 20, 'size': 18},
    'sparse': {'num_agents': 9, 'size': 120, 'neighbours': 4},
    'all': {'num_agents': 6, 'neighbours': 9, 'size': 9, 'edge_features': False},
    'lone': {'num_agents': 1, 'num_foods': 1, 'size': 4},
    'no neighbours': {'neighbours': 0},
    'radius': {'graph': 'radius'},
    'all within the radius': {'graph': 'radius', 'radius': 300, 'num_agents': 30, 'size': 127, 'view': 40},
    'cells within the radius': {'graph': 'radius', 'radius': 1.5, 'num_agents': 90, 'size': 14},
    'gains': {'attack_gain_high': 5, 'cost_on_hit': True, 'num_agents': 60, 'size': 14},
}


@pytest.mark.parametrize('name', OPTIONS)
def test_both_ways_give_the_same_episodes(name: str) -> None:
    config, chance = JungleConfig(**OPTIONS[name]), torch.Generator().manual_seed(1)
    boards = [kind(config, 3) for kind in (NumbaJungle, LargeJungle)]
    for board in boards:
        board.streams.copy_(first_streams(3, 3, 'jungle'))
        board.start()
    assert_same(*(board.observe() for board in boards))
    for _ in range(12):
        action = torch.randint(9, (3 * config.num_agents,), generator=chance)
        (reward, tally, sight), (reward_large, tally_large, sight_large) = (board.step(action) for board in boards)
        assert torch.equal(reward, reward_large)
        assert torch.equal(tally, tally_large)
        assert_same(sight, sight_large)
        assert sight.edges_per_graph.max() <= config.max_edges
    assert torch.equal(*(board.cells() for board in boards))


def assert_same(one: Any, other: Any) -> None:
    for field in one._fields:
        a, b = getattr(one, field), getattr(other, field)
        assert (a is None) == (b is None), field
        assert a is None or (torch.equal(a, b) and a.dtype == b.dtype), field


def test_a_hundred_thousand_agents_play() -> None:
    """More than 16 bits can number, on a board wider than a byte."""
    env = JungleEnv(num_agents=100_000, num_foods=60_000, size=1982)
    graph = env.reset(seed=0)
    assert (graph.num_nodes, graph.x.dtype) == (100_000, torch.int16)
    cell, (sender, receiver) = env.agent_positions[0], graph.edge_index
    assert torch.equal(graph.edge_attr.long(), cell[sender] - cell[receiver])
    assert torch.equal(graph.x[:, -2:].long(), cell)
    order = receiver * 100_000 + sender
    assert bool((order.diff() > 0).all())
    assert torch.bincount(receiver).min() >= 3
    for i in (0, 41_000, 99_999):  # the three nearest, and those of whose nearest it is one
        distance = (cell - cell[i]).square().sum(1) * 100_000 + torch.arange(100_000)
        nearest = set(distance.argsort()[1:4].tolist())
        assert nearest <= set(sender[receiver == i].tolist())
        assert set(sender[receiver == i].tolist()) == set(receiver[sender == i].tolist())
    before = cell.clone()
    step = env.step(torch.randint(9, (100_000,), generator=torch.Generator().manual_seed(0)))
    assert step.info['attacks'] > 0
    assert (env.agent_positions[0] - before).abs().max() == 1
