"""NeurComm and the recurrent actor-critic under it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networked_zoo import Loop, NoEdges, Path3, make, path3
from torch import Tensor, nn
from torch.testing import assert_close

from ltos_pyg.algos.losses import discounted_returns
from ltos_pyg.algos.on_policy import View
from ltos_pyg.data import Snapshot
from ltos_pyg.graph_env import VectorGraphEnv

ON = torch.tensor([[True], [True]])


@pytest.mark.parametrize(
    ('goes_on', 'bootstrap', 'expected'),
    [
        ([True, True], [0.0, 2.0], [88.42, 63.8]),  # the segment ends
        ([True, False], [0.0, 2.0], [88.42, 63.8]),  # the clock runs out just then
        ([False, True], [0.0, 2.0], [31.0, 63.8]),  # the task ended after the first step
        ([False, True], [5.0, 2.0], [35.5, 63.8]),  # the clock ran out after it
        ([True, True], [9.0, 0.0], [86.8, 62.0]),  # the task ends with the segment
    ],
)
def test_returns_of_a_segment(goes_on, bootstrap, expected):
    parts = [torch.tensor(part).view(2, 1) for part in ([31.0, 62.0], bootstrap, goes_on)]
    assert_close(discounted_returns(*parts, 0.9).flatten(), torch.tensor(expected))


def segment(algo: Any, env: Any, seed: int = 0) -> dict[str, Tensor]:
    """A whole segment, not learned from."""
    loop = Loop(algo, env, seed)
    while not algo.rollout.full:
        loop.step()
    return algo.rollout.read()


def single(algo: Any, agent: int) -> tuple[nn.Module, nn.LSTMCell, nn.Module, Tensor, Tensor]:
    """One agent's networks as plain layers: obs, lstm, actor, and the critic's weight and bias on its state."""
    net, F, H = algo.network, algo.spec.num_features, algo.config.hidden_channels
    obs, cell, actor = nn.Linear(F, H), nn.LSTMCell(H, H), nn.Linear(H, algo.spec.num_actions)
    obs.weight.data, obs.bias.data = net.obs.weight.data[agent, :F].t(), net.obs.bias.data[agent, 0]
    cell.weight_ih.data = net.lstm.input.weight.data[agent, :H].t()
    cell.weight_hh.data = net.lstm.hidden.weight.data[agent].t()
    cell.bias_ih.data, cell.bias_hh.data = net.lstm.input.bias.data[agent, 0], torch.zeros(4 * H)
    actor.weight.data, actor.bias.data = net.actor.weight.data[agent].t(), net.actor.bias.data[agent, 0]
    return obs, cell, actor, net.critic.weight.data[agent, :H, 0], net.critic.bias.data[agent, 0, 0]


@pytest.mark.parametrize('variant', ['neurcomm', 'consenet recurrent'])
def test_without_edges_it_is_independent_recurrent_actor_critic(variant):
    """Against plain PyTorch layers, one agent and one graph at a time."""
    env = VectorGraphEnv(NoEdges, 2)
    algo = make(variant, env, rollout_steps=7, entropy=0.1)  # longer than an episode of 5
    s = segment(algo, env)
    expected = 0.0
    for agent in range(3):
        obs, cell, actor, critic, bias = single(algo, agent)
        for graph in range(2):
            h = c = torch.zeros(1, 8)
            log, values, entropies = [], [], []
            for t in range(7):
                h, c = cell(obs(s['x'][t, agent, graph : graph + 1]).relu(), (h, c))
                policy = torch.distributions.Categorical(logits=actor(h)[0])
                log.append(policy.log_prob(s['action'][t, agent, graph]))
                entropies.append(policy.entropy())
                values.append(h[0] @ critic + bias)
                if t == 4:
                    h, c = torch.zeros(1, 8), torch.zeros(1, 8)
            R, returns = s['bootstrap'][-1, agent, graph, 0], []
            for t in reversed(range(7)):
                R = s['reward'][t, agent, graph] + 0.99 * (s['bootstrap'][t, agent, graph, 0] if t == 4 else R)
                returns.insert(0, R)
            log, values, entropies, returns = (torch.stack(part) for part in (log, values, entropies, returns))
            advantage = (returns - values).detach()
            expected += (-advantage * log + 0.25 * (returns - values) ** 2 - 0.1 * entropies).mean() / 2
    loss, metrics = algo.loss(s)
    assert_close(loss, expected)
    assert_close(metrics['dropped_edges'].item(), 0.0)


def test_the_bootstrap_is_the_value_of_the_true_successor():
    """After the clock's end the recurrent state runs on into the successor, not into the new episode."""
    env = VectorGraphEnv(NoEdges, 1)
    algo = make('neurcomm', env, rollout_steps=5)
    loop = Loop(algo, env)
    for _ in range(4):
        loop.step()
    decision = algo.act(loop.graph, explore=True)
    step = env.step(decision.action)
    assert step.truncated.all()
    after = algo.after
    algo.observe(loop.graph, decision, step)
    x = step.successor.x
    for agent in range(3):
        obs, cell, _, critic, bias = single(algo, agent)
        h, _ = cell(obs(x[agent : agent + 1]).relu(), (after.h[agent], after.c[agent]))
        assert_close(algo.rollout.read()['bootstrap'][-1, agent, 0, 0], (h[0] @ critic + bias).detach())
    assert (algo.memory.h == 0).all()


class Path5(Path3):
    """Five agents in a row."""

    num_features, max_nodes = 1, 5
    edges = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 4], [1, 0, 2, 1, 3, 2, 4, 3]])

    def start(self) -> Snapshot:
        self.x = torch.randn(5, 1, generator=self.generator)
        return Snapshot(x=self.x, edge_index=self.edges)


def played(algo: Any, views: list[View]) -> list[Tensor]:
    memory, out = algo.network.initial(1), []
    for view in views:
        logits, memory = algo.network(view, memory)
        out.append(logits.squeeze(1))
    return out


def test_what_a_node_sees_travels_one_hop_a_step():
    """Observations are received at once, states and policies a step late: at distance d it shows from t = d - 1 on."""
    env = VectorGraphEnv(Path5, 1)
    algo = make('neurcomm', env)
    nn.init.normal_(algo.network.actor.weight)
    views = [algo.view(env.reset(seed))[0] for seed in range(5)]
    for agent in range(5):
        x = views[0].x.clone()
        x[agent] += 1
        changed = played(algo, [views[0]._replace(x=x), *views[1:]])
        for t, (a, b) in enumerate(zip(played(algo, views), changed, strict=True)):
            reached = [i for i in range(5) if not torch.equal(a[i], b[i])]
            assert reached == [i for i in range(5) if abs(i - agent) <= t + 1], (agent, t)


def test_gradients_reach_the_neighbours_networks_within_a_segment_and_not_beyond():
    env = path3()
    algo = make('neurcomm', env)
    s = segment(algo, env)
    memory, net = algo.start, algo.network
    for t in range(2):
        logits, memory = net(View(*(s[name][t] for name in View._fields)), memory)
        grad = torch.autograd.grad(logits[0].square().sum(), net.lstm.input.weight, retain_graph=True)[0]
        reached = [i for i in range(3) if grad[i].abs().max() > 0]
        assert reached == ([0] if t == 0 else [0, 1])
    assert not any(part.requires_grad for part in (*algo.start, *algo.memory))


def test_policies_are_sent_as_constants():
    env = path3()
    algo = make('neurcomm', env)
    view = algo.view(env.reset(0))[0]
    _, memory = algo.network(view, algo.network.initial(2))
    assert not memory.policy.requires_grad
    assert_close(memory.policy.sum(-1), torch.ones(3, 2))


def test_only_agents_with_neighbours_receive_messages():
    env = VectorGraphEnv(NoEdges, 1)
    algo = make('neurcomm', env)
    nn.init.constant_(algo.network.message.bias, 1.0)
    nn.init.constant_(algo.network.fingerprint.bias, 1.0)
    memory = algo.network.initial(1)
    assert (algo.network.encode(algo.view(env.reset(0))[0], memory)[..., 8:] == 0).all()
    assert (algo.network.encode(algo.view(path3(1).reset(0))[0], memory)[..., 8:] == 1).all()


def test_rewards_are_those_of_the_neighbourhood():
    for alpha, expected in ((0.5, [31.0, 60.5, 105.25]), (None, [111.0] * 3), (0.0, [1.0, 10.0, 100.0])):
        env = path3(1)
        algo = make('neurcomm', env, alpha=alpha, reward_norm=2.0, rollout_steps=1)
        graph = env.reset(0)
        decision = algo.act(graph, explore=True)
        step = env.step(decision.action)
        object.__setattr__(step, 'reward', torch.tensor([1.0, 10.0, 100.0]))
        algo.observe(graph, decision, step)
        assert_close(algo.rollout.read()['reward'][0, :, 0], torch.tensor(expected) / 2)
