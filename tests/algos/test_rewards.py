"""What DQN and DGN may maximise instead of own rewards: sums over neighbours, and the team's mean."""

from __future__ import annotations

import pytest
import torch
from algos_zoo import crowd, differing, jungle, trained, weights
from torch.testing import assert_close
from torch_geometric.data import Batch

from ltos_pyg.algos.team import reward_of, team_reward
from ltos_pyg.data import Snapshot
from ltos_pyg.testing import random_snapshot


def batch() -> Batch:
    """Two receives from 0 and 1, and 0 from 2; a graph without agents; an agent on its own."""
    edges = torch.tensor([[0, 1, 2], [2, 2, 0]])
    none = torch.zeros(2, 0, dtype=torch.int64)
    graphs = ((3, edges), (0, none), (1, none))
    return Batch.from_data_list([Snapshot(x=torch.zeros(n, 1), edge_index=edge_index) for n, edge_index in graphs])


@pytest.mark.parametrize(
    ('kind', 'expected'), [('own', [1, 2, 6, 5]), ('neighbourhood', [7, 2, 9, 5]), ('team', [3, 3, 3, 5])]
)
def test_rewards_by_hand(kind, expected):
    reward = torch.tensor([1.0, 2.0, 6.0, 5.0])
    assert reward_of(kind, batch(), reward).tolist() == expected
    assert reward.tolist() == [1, 2, 6, 5]


@pytest.mark.parametrize('kind', ['own', 'neighbourhood', 'team'])
def test_there_may_be_no_agents(kind):
    empty = Batch.from_data_list([random_snapshot(0, 0, 1)] * 2)
    assert reward_of(kind, empty, torch.zeros(0)).shape == (0,)


@pytest.mark.parametrize('algo', ['dqn', 'dgn'])
@pytest.mark.parametrize('make_env', [jungle, crowd])
def test_the_replay_holds_what_is_maximised(algo, make_env):
    drawn = {}
    for kind in ('own', 'neighbourhood', 'team'):
        # steps until the first update are random, so all three play alike
        learner = trained(algo, 1, make_env, reward=kind, n_step=1, learning_starts=80, train_freq=1.0)
        drawn[kind] = learner.replay.sample(32, torch.Generator().manual_seed(0), 1, 0.9)
    own = drawn['own']
    for kind in ('neighbourhood', 'team'):
        assert torch.equal(drawn[kind].action, own.action)
        assert_close(drawn[kind].reward, reward_of(kind, own.graph, own.reward))
        assert not torch.equal(drawn[kind].reward, own.reward)
    assert_close(drawn['team'].reward, team_reward(own.reward, own.graph, 'mean')[own.graph.batch])  # as QMIX


@pytest.mark.parametrize('algo', ['dqn', 'dgn'])
def test_what_is_maximised_decides_what_is_learned(algo):
    learners = [trained(algo, 6, reward=kind) for kind in ('own', 'neighbourhood', 'team')]
    assert differing(weights(learners[0].network), weights(learners[1].network)) != []
    assert differing(weights(learners[1].network), weights(learners[2].network)) != []
