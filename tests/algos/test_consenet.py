"""ConseNet: the joint critic, the averaging of weights, and a dilemma that consensus solves."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from networked_zoo import Loop, NoEdges, make, path3
from torch import Tensor
from torch.nn.functional import one_hot
from torch.testing import assert_close

from ltos_pyg.algos.consenet import JointCritic
from ltos_pyg.data import Snapshot
from ltos_pyg.graph_env import SingleGraphEnv, SingleStep, VectorGraphEnv, fully_connected


def test_the_alternatives_are_the_values_with_one_action_changed():
    critic = JointCritic(3, 2, 4, 8)
    x, action = torch.randn(3, 5, 2), torch.randint(4, (3, 5))
    alternatives = critic.alternatives(x, one_hot(action, 4).float())
    for agent, other in itertools.product(range(3), range(4)):
        changed = action.clone()
        changed[agent] = other
        assert_close(alternatives[agent, :, other], critic(x, one_hot(changed, 4).float())[agent])


@pytest.mark.parametrize(('variant', 'agreed'), [('consenet', 'critic'), ('consenet recurrent', 'lstm')])
def test_what_is_averaged_starts_equal_and_nothing_else_does(variant, agreed):
    far = spread(make(variant, path3()).network.named_parameters())
    assert any(name.startswith(agreed) for name in far)
    for name, distance in far.items():
        assert (distance == 0) == (name.startswith(agreed) or 'bias' in name), name


def test_all_critics_see_the_same():
    critic = JointCritic(3, 2, 4, 8)
    for p in critic.parameters():
        p.data = p.data[:1].expand_as(p).clone()
    value = critic(torch.randn(3, 5, 2), one_hot(torch.randint(4, (3, 5)), 4).float())
    assert_close(value, value[:1].expand_as(value))


def test_the_advantage_is_against_the_policys_own_mean():
    env = path3()
    algo = make('consenet', env)
    view, action = algo.view(env.reset(0))[0], torch.tensor([[0, 1], [2, 0], [1, 1]])
    policy = torch.rand(3, 2, 3)
    policy = policy / policy.sum(-1, keepdim=True)
    hot = algo.hot(action, view)
    value = algo.network.value(torch.zeros(0), view, hot)
    advantage = algo.advantage(torch.full((3, 2), 99.0), value, policy, view, hot)
    every = algo.network.critic.alternatives(view.x, hot)
    assert_close(advantage, (every.gather(-1, action.unsqueeze(-1)).squeeze(-1) - (policy * every).sum(-1)).detach())


@torch.no_grad()
def spread(weights: Any) -> dict[str, float]:
    """How far apart the agents' weights are."""
    return {name: (p - p[0]).abs().max().item() for name, p in weights}


@pytest.mark.parametrize(('variant', 'agreed'), [('consenet', 'critic'), ('consenet recurrent', 'lstm')])
def test_neighbours_average_what_they_agree_on_and_nothing_else(variant, agreed):
    env = path3()
    algo = make(variant, env, lr=1e-9)  # weights move by consensus alone
    for p in algo.network.parameters():
        p.data.normal_()
    before = {name: p.detach().clone() for name, p in algo.network.named_parameters()}
    Loop(algo, env).until(1)
    matrix = torch.tensor([[2 / 3, 1 / 3, 0], [1 / 3, 1 / 3, 1 / 3], [0, 1 / 3, 2 / 3]])
    for name, p in algo.network.named_parameters():
        expected = before[name]
        if name.startswith(agreed):
            expected = torch.tensordot(matrix, expected, dims=1)
            assert not torch.allclose(expected, before[name]) or 'bias' in name
        assert_close(p.detach(), expected, atol=1e-6, rtol=1e-5)


def test_critics_grow_alike_and_actors_do_not():
    env = path3()
    algo = Loop(make('consenet', env, lr=1e-4), env).until(150).algo
    far = spread(algo.network.named_parameters())
    assert max(v for name, v in far.items() if name.startswith('critic')) < 0.05
    assert min(v for name, v in far.items() if name.startswith(('obs.weight', 'lstm.input.weight'))) > 0.2


def test_without_edges_there_is_no_consensus():
    env = VectorGraphEnv(NoEdges, 2)
    algo = make('consenet', env, lr=1e-9)
    before = {name: p.detach().clone() for name, p in algo.network.named_parameters()}
    Loop(algo, env).until(2)
    for name, p in algo.network.named_parameters():
        assert_close(p.detach(), before[name], atol=1e-6, rtol=1e-5)


def test_neighbours_take_steps_of_one_size():
    """Else agents with noisy rewards count less, and critics agree on something other than the mean return."""
    env = VectorGraphEnv(Dilemma, 4)
    algo = Loop(make('consenet', env), env).until(3).algo
    for name, p in algo.network.named_parameters():
        squares = algo.optimizer.state[p]['square_avg']
        equal = torch.allclose(squares, squares[:1].expand_as(squares), atol=0, rtol=1e-3)
        if name.startswith(('critic', 'actor')):
            assert equal == name.startswith('critic'), name


class Dilemma(SingleGraphEnv):
    """The prisoner's dilemma in one step: confessing (1) is the dominant action."""

    num_features, num_actions, max_nodes, symmetric = 1, 2, 2, True
    edges = fully_connected(2)
    payoff = torch.tensor([[-1.0, -3.0], [0.0, -2.0]])

    def start(self) -> Snapshot:
        return Snapshot(x=torch.ones(2, 1), edge_index=self.edges)

    def step(self, action: Tensor) -> SingleStep:
        reward = self.payoff[action, action.flip(0)]
        return SingleStep(self.start(), reward, terminated=True)


class Apart(Dilemma):
    """Players without edges."""

    edges = torch.zeros(2, 0, dtype=torch.int64)


@pytest.mark.parametrize(
    ('game', 'low', 'high'), [(Dilemma, 0.9, 1.0), pytest.param(Apart, 0.0, 0.1, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize('seed', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_dilemma_is_solved_by_consensus_on_own_rewards_alone(game, low, high, seed):
    env = VectorGraphEnv(game, 16)
    algo = make('consenet', env, seed, rollout_steps=1, lr=5e-3, entropy=0.05, critic_lr=4.0)
    Loop(algo, env).until(400)
    view = algo.view(env.reset(0))[0]
    silent = algo.network(view, algo.network.initial(16))[0].softmax(-1)[..., 0]
    assert silent.min() >= low
    assert silent.max() <= high
