"""Intention propagation: rounds and fixed points by hand, soft values, gradients through neighbours' critics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networked_zoo import Loop, NoEdges, make, path3
from torch import Tensor
from torch.testing import assert_close

from ltos_pyg.algos.losses import soft_value
from ltos_pyg.data import Snapshot
from ltos_pyg.graph_env import SingleGraphEnv, SingleStep, VectorGraphEnv, fully_connected
from ltos_pyg.nn import IntentionConv

PATH = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])


def conv(rounds: int, own: float, neighbour: float, **options: Any) -> IntentionConv:
    layer = IntentionConv(1, 1, rounds, **options)
    layer.lin_self.weight.data.fill_(own)
    layer.lin_self.bias.data.zero_()
    layer.lin_neighbour.weight.data.fill_(neighbour)
    return layer


@pytest.mark.parametrize(('rounds', 'expected'), [(1, [1, 2, 3]), (2, [2, 4, 4]), (3, [3, 5, 5])])
def test_rounds_on_a_path(rounds, expected):
    mu = conv(rounds, 1.0, 0.5)(torch.tensor([[1.0], [2.0], [3.0]]), PATH)
    assert mu.flatten().tolist() == expected


@pytest.mark.parametrize(('k', 'expected'), [(1.0, 0.5), (4.0, 0.978752)])
def test_with_probabilities_it_is_the_mean_field_of_a_coordination_game(k, expected):
    """q_i is the logistic function of k (2 q_j - 1): for a strong payoff symmetry breaks."""
    layer = conv(300, -k, 2 * k, activation=torch.sigmoid)
    q = layer(torch.ones(2, 1), fully_connected(2), start=torch.full((2, 1), 0.6))
    assert_close(q.flatten(), torch.full((2,), expected), atol=2e-6, rtol=0)


def test_the_mean_does_not_grow_with_the_number_of_neighbours():
    star = torch.tensor([[1, 2, 3, 4], [0, 0, 0, 0]])
    x = torch.ones(5, 1)
    assert conv(2, 1.0, 1.0)(x, star)[0].item() == 5
    assert conv(2, 1.0, 1.0, aggr='mean')(x, star)[0].item() == 2


def test_edge_features_join_the_messages():
    layer = conv(1, 1.0, 0.5, edge_dim=1)
    layer.lin_edge.weight.data.fill_(10.0)
    x, edge_attr = torch.ones(3, 1), torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    assert layer(x, PATH, edge_attr).flatten().tolist() == [21, 51, 31]
    with pytest.raises(ValueError, match=r"'edge_attr' is missing: this layer expects shape \(E, edge_dim=1\)"):
        layer(x, PATH)
    with pytest.raises(ValueError, match=r"'rounds' must be at least 1 \(got 0\)"):
        conv(0, 1.0, 1.0)
    with pytest.raises(ValueError, match="'start' needs one row per node"):
        layer(x, PATH, edge_attr, start=torch.ones(2, 1))


@pytest.mark.parametrize(('beta', 'value'), [(0.2, 2.001343), (1.0, 2.313262)])
def test_soft_values(beta, value):
    q = torch.tensor([[1.0, 2.0]])
    best = (q / beta).log_softmax(-1)
    assert soft_value(q, best, beta).item() == pytest.approx(value, abs=1e-6)
    for other in ([0.5, 0.5], [0.2, 0.8], [0.001, 0.999]):
        assert soft_value(q, torch.tensor([other]).log(), beta).item() < value
    if beta == 0.2:
        assert_close(best.exp(), torch.tensor([[0.006693, 0.993307]]), atol=1e-6, rtol=0)


def test_forbidden_actions_are_worth_nothing_in_a_soft_value():
    log_policy = torch.tensor([[0.0, -torch.inf]], requires_grad=True)
    value = soft_value(torch.tensor([[3.0, 1e4]]), log_policy, 0.5)
    value.sum().backward()
    assert value.item() == 3.0
    assert log_policy.grad.isfinite().all()


def test_a_drawn_action_is_one_hot_and_has_the_gradient_of_a_softmax():
    algo = make('ip', path3())
    log_policy = torch.tensor([[0.7, 0.2, 0.1]]).log().expand(4000, 3).clone().requires_grad_()
    drawn = algo.relaxed(log_policy)
    assert_close(drawn.sum(-1), torch.ones(4000))
    assert ((drawn < 1e-6) | (drawn > 1 - 1e-6)).all()
    assert_close(drawn.mean(0), torch.tensor([0.7, 0.2, 0.1]), atol=0.03, rtol=0)
    drawn[:, 0].sum().backward()
    assert (log_policy.grad[:, 0] > 0).all()
    assert_close(log_policy.grad.sum(-1), torch.zeros(4000), atol=1e-5, rtol=0)


def reach(algo: Any, graph: Any, agent: int) -> list[int]:
    """The agents on whose observations an agent's policy depends."""
    graph = graph.clone()
    graph.x = graph.x.clone().requires_grad_()
    logits = algo.log_policy(algo.network, graph)
    (grad,) = torch.autograd.grad(logits[agent].square().sum(), graph.x)
    return grad.abs().sum(-1).nonzero().flatten().tolist()


@pytest.mark.parametrize(('rounds', 'expected'), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2])])
def test_each_round_but_the_first_looks_one_hop_farther(rounds, expected):
    env = path3(1)
    algo = make('ip', env, rounds=rounds, hidden_channels=32)
    assert reach(algo, env.reset(0), 0) == expected


def test_without_edges_policy_and_critics_see_their_own_alone():
    env = path3(1)
    algo = make('ip', env)
    x, none = torch.randn(3, 2), torch.zeros(2, 0, dtype=torch.int64)
    action = torch.eye(3)
    for module, args in ((algo.network.policy, ()), (algo.network.q, (action,)), (algo.network.v, ())):
        together = module(x, none, None, *args)
        alone = [module(x[i : i + 1], none, None, *(a[i : i + 1] for a in args)) for i in range(3)]
        assert_close(together, torch.cat(alone))


def test_without_edges_it_is_soft_actor_critic_of_each_node_by_itself():
    env = VectorGraphEnv(NoEdges, 2)
    algo = make('ip', env, beta=0.3, learning_starts=40)
    algo = Loop(algo, env).until(3).algo
    t, c, expected = algo.replay.sample(8, torch.Generator().manual_seed(5), 1, algo.config.gamma), algo.config, 0.0
    none = torch.zeros(2, 0, dtype=torch.int64)
    with torch.no_grad():
        for i in range(t.graph.num_nodes):
            x, successor = t.graph.x[i : i + 1], t.successor.x[t.successor_node[i]].unsqueeze(0)
            blind = torch.zeros(1, 3)  # an agent's own action is no input of its critic
            q, v = algo.network.q(x, none, None, blind)[0], algo.network.v(x, none, None)[0, 0]
            log_policy = algo.network.policy(x, none, None)[0].log_softmax(-1)
            y = t.reward[i] + t.discount[i] * algo.target.v(successor, none, None)[0, 0]
            soft = (log_policy.exp() * (q - c.beta * log_policy)).sum()
            expected += float(0.5 * (q[t.action[i]] - y) ** 2 + 0.5 * (v - soft) ** 2 - soft) / t.graph.num_nodes
    assert algo.loss(t)[0].item() == pytest.approx(expected, rel=1e-4)
    assert (t.discount > 0).all()  # the clock's end is not the task's


def test_renaming_the_nodes_renames_the_policy():
    env = path3(1)
    algo, graph = make('ip', env), env.reset(0)
    p = torch.tensor([2, 0, 1])
    logits = algo.network.policy(graph.x, graph.edge_index, None)
    renamed = algo.network.policy(graph.x[p], torch.argsort(p)[graph.edge_index], None)
    assert_close(renamed, logits[p])


class Match(SingleGraphEnv):
    """The first agent must do what its eyes say and gains 1 if the second does the same. The second gains nothing."""

    num_features, num_actions, max_nodes, symmetric, has_action_mask = 3, 2, 2, True, True
    edges = fully_connected(2)

    def start(self) -> Snapshot:
        self.sign = torch.randint(2, (1,), generator=self.generator)
        eyes = torch.cat([torch.eye(2)[self.sign].expand(2, 2), torch.tensor([[0.0], [1.0]])], dim=1)
        mask = torch.tensor([[True, True], [True, True]])
        mask[0, 1 - self.sign] = False
        return Snapshot(x=eyes, edge_index=self.edges, action_mask=mask)

    def step(self, action: Tensor) -> SingleStep:
        reward = torch.tensor([1.0 * (action[0] == action[1]), 0.0])
        return SingleStep(self.start(), reward, terminated=True)


class MatchOneWay(Match):
    """The first agent does not receive the second's action, so no value of its own depends on it."""

    edges = torch.tensor([[0], [1]])  # the second receives from the first, not vice versa
    symmetric = False


@pytest.mark.parametrize(
    ('game', 'low', 'high'), [(Match, 0.9, 1.0), pytest.param(MatchOneWay, 0.3, 0.7, marks=pytest.mark.slow)]
)
def test_an_agent_learns_from_the_values_of_neighbours_that_receive_its_messages(game, low, high):
    """Its own reward is always 0, so only the neighbour's value can teach it."""
    env = VectorGraphEnv(game, 8)
    algo = make(
        'ip', env, lr=5e-3, hidden_channels=16, batch_size=16, total_steps=4_000, lr_final_fraction=1.0, beta=0.05
    )
    Loop(algo, env).until(300)
    graph = env.reset(3)
    with torch.no_grad():
        policy = algo.log_policy(algo.network, graph).exp()
    right = policy[1::2].gather(1, graph.x[1::2, :2].argmax(1, keepdim=True))
    assert low <= right.mean() <= high
