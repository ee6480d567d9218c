"""LIO: what pay is worth, by hand and against automatic differentiation; without pay it is REINFORCE."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from algos_zoo import Crowd, flat
from networked_zoo import Loop, make, path3
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import one_hot
from torch.testing import assert_close

from ltos_pyg.algos import NonFiniteLossError
from ltos_pyg.algos.lio import Segment, incentive_gradient, log_probs, mixed
from ltos_pyg.algos.losses import discounted_returns, masked
from ltos_pyg.data import Snapshot
from ltos_pyg.graph_env import SingleGraphEnv, SingleStep, VectorGraphEnv, fully_connected


class Coin(nn.Module):
    """Each of two agents does 1 with probability sigma(theta_i)."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        theta = self.theta.expand(-1, x.size(1), -1)
        return torch.cat([torch.zeros_like(theta), theta], dim=-1)


def coins(actions: list[int]) -> Segment:
    """Agent 1 does these; agent 0 always does 0."""
    T = len(actions)
    action = torch.tensor([[0] * T, actions]).t().unsqueeze(-1)
    return Segment.of(
        {
            'x': torch.zeros(T, 2, 1, 1),
            'action': action,
            'mask': torch.ones(T, 2, 1, 2, dtype=torch.bool),
            'present': torch.ones(T, 2, 1, dtype=torch.bool),
            'rows': torch.tensor([[1], [0]]).expand(T, 2, 1),
            'reward': torch.zeros(T, 2, 1),
            'bootstrap': torch.zeros(T, 2, 1, 2),
            'goes_on': torch.ones(T, 2, 1, dtype=torch.bool),
        },
        epsilon=0.0,
    )


@pytest.mark.parametrize(
    ('actions', 'theta', 'expected'), [([1], 0.25, [0.437823]), ([1, 0], 0.225, [0.443986, -0.044399])]
)
def test_what_a_unit_of_pay_is_worth_by_hand(actions, theta, expected):
    """Agent 0 paid 0.5 at each step, at a learning rate of 1; then agent 1 did 1, which brought agent 0 a 2."""
    policy, first, second = Coin(), coins(actions), coins([1])
    old = {'theta': torch.zeros(2, 1, 1)}
    paid = torch.stack([torch.zeros(len(actions)), torch.full((len(actions),), 0.5)])
    log, _ = log_probs(policy, dict(policy.named_parameters()), first)
    returns = first.returns(paid, 1, 0.9)
    (step,) = torch.autograd.grad((log * returns).sum(), policy.theta)
    new = {'theta': old['theta'] + step}
    assert new['theta'][1].item() == pytest.approx(theta)
    gain = torch.tensor([[2.0], [0.0]])
    worth = incentive_gradient(policy, old, new, first, second, gain, lr=1.0, gamma=0.9)
    assert_close(worth[0, 1], torch.tensor(expected), atol=1e-6, rtol=0)
    assert (worth[0, 0] == 0).all()
    assert (worth[1] == 0).all()  # the second segment brought agent 1 nothing


def two_segments(variant_env: Any, **options: Any) -> tuple[Any, Segment, Segment]:
    """A learner after its policies' step, with the segments before and after it."""
    env = variant_env()
    algo = make('lio', env, rollout_steps=8, lr_actor=0.5, **options)  # longer than an episode
    nn.init.normal_(algo.network.policy.lins[-1].weight)
    loop = Loop(algo, env).until(1)
    while not algo.rollout.full:
        loop.step()
    first = Segment.of(algo.round['steps'], algo.round['epsilon'])
    return algo, first, Segment.of(algo.rollout.read(), algo.segment_epsilon)


@pytest.mark.parametrize('make_env', [path3, lambda: VectorGraphEnv(Crowd, 3)])
def test_the_closed_form_is_what_automatic_differentiation_says(make_env):
    """Each payer for itself: differentiate its own objective through everyone's step, by its own pay alone."""
    algo, first, second = two_segments(make_env)
    policy, old, new = algo.network.policy, algo.round['weights'], algo.policy_weights()
    n, M = first.present.shape
    graphs, gamma = first.reward.size(-1), algo.config.gamma
    gain = torch.randn(second.present.shape) * second.present
    worth = incentive_gradient(policy, old, new, first, second, gain, 0.5, gamma)
    for payer in range(n):
        pay = torch.zeros(n, M, requires_grad=True)  # to each, at each moment
        weights = {name: w.clone().requires_grad_() for name, w in old.items()}
        log, _ = log_probs(policy, weights, first)
        returns = first.returns(first.by_agent(first.reward) + pay, 1, gamma)
        grads = torch.autograd.grad((log * returns).sum() / graphs, list(weights.values()), create_graph=True)
        start = {name: w.detach() for name, w in new.items()}  # new weights, moved by what pay would change
        moved = {name: start[name] + 0.5 * (g - g.detach()) for name, g in zip(weights, grads, strict=True)}
        log_new, _ = log_probs(policy, moved, second)
        others = second.present & second.present[payer] & (torch.arange(n) != payer).unsqueeze(1)
        objective = (log_new * others * gain[payer]).sum() / graphs
        (expected,) = torch.autograd.grad(objective, pay)
        expected[payer] = 0
        assert_close(worth[payer], expected, atol=1e-5, rtol=1e-4)
        assert expected.abs().max() > 0


def test_incentives_follow_what_pay_is_worth():
    """One step of the incentive networks moves every payment in the direction of its worth, on the whole."""
    algo, first, second = two_segments(path3, lr_reward=1e-4)
    gain = torch.randn(second.present.shape)
    before = algo.payments(first).detach()
    args = algo.round['weights'], algo.policy_weights(), first, second, gain, 0.5, algo.config.gamma
    worth = incentive_gradient(algo.network.policy, *args)
    algo.step(algo.incentive_loss(second, gain)[0])
    rise = algo.payments(first).detach() - before
    n, M = first.present.shape
    table = torch.cat([worth.flatten(1), torch.zeros(n, 1)], dim=1)
    by_slot = table.gather(1, first.rows.view(n, -1)).view(n, M, -1)
    assert ((rise * by_slot).sum((1, 2)) > 0).all()  # for each payer by itself


@pytest.mark.parametrize('make_env', [path3, lambda: VectorGraphEnv(Crowd, 3)])
def test_without_pay_it_is_reinforce(make_env):
    """With a baseline. By hand: one agent and one graph at a time, on the rewards of the game alone."""
    env = make_env()
    algo = make('lio', env, reward_max=0.0, rollout_steps=6, entropy=0.0, lr_actor=0.3)
    loop = Loop(algo, env)
    while not algo.rollout.full:
        loop.step()
    s, epsilon = algo.rollout.read(), algo.segment_epsilon
    old = {name: p.detach().clone().requires_grad_() for name, p in algo.network.policy.named_parameters()}
    returns = discounted_returns(s['reward'], s['bootstrap'][..., 1], s['goes_on'], 0.99)
    objective = torch.zeros(())
    for t in range(6):
        logits = masked(functional_call(algo.network.policy, old, (s['x'][t],)), s['mask'][t])
        probs = mixed(logits, s['mask'][t], epsilon).gather(-1, s['action'][t].unsqueeze(-1)).squeeze(-1)
        surplus = (returns[t] - algo.network.value(s['x'][t])[..., 1].detach()) * s['present'][t]
        for agent, here in enumerate(s['present'][t]):  # what all graphs have in common is no agent's merit
            if here.sum() > 1:
                surplus[agent, here] -= surplus[agent, here].mean()
        objective = objective + (probs.log() * surplus).sum() / env.spec.num_envs
    grads = torch.autograd.grad(objective, list(old.values()))
    metrics = algo.update()
    assert metrics['received'] == 0
    assert metrics['policy_objective'] == pytest.approx(objective.item(), rel=1e-4)
    for (name, p), grad in zip(algo.network.policy.named_parameters(), grads, strict=True):
        assert_close(p.detach(), old[name].detach() + 0.3 * grad)
    before = flat(algo.network.incentive.state_dict())
    loop.until(4)
    assert all(torch.equal(before[name], value) for name, value in flat(algo.network.incentive.state_dict()).items())


def test_a_step_that_is_refused_leaves_all_networks_as_they_were():
    algo = make('lio', path3(), rollout_steps=6)
    loop = Loop(algo, path3())
    while not algo.rollout.full:
        loop.step()
    next(algo.network.policy.parameters()).data[0, 0, 0] = torch.nan
    before = flat(algo.network.state_dict())
    with pytest.raises(NonFiniteLossError, match='were left as they were'):
        algo.update()
    for name, value in flat(algo.network.state_dict()).items():
        assert_close(value, before[name], atol=0, rtol=0, equal_nan=True)


def test_pay_that_comes_whatever_one_does_teaches_nothing():
    s = two_segments(path3)[1]
    surplus = s.minus_graph_mean(torch.randn(s.present.shape))
    assert_close(s.minus_graph_mean(surplus + 7.0), surplus)
    assert surplus.abs().max() > 0.1


def test_pay_goes_to_the_neighbour_in_the_slot_and_nothing_is_lost():
    algo, first, _ = two_segments(path3)
    paid = algo.payments(first)
    assert (paid[[0, 2], :, 1] == 0).all()  # the ends of the path have one neighbour each
    assert (paid[1] > 0).all()
    received = algo.received(first, paid)
    assert_close(received[0], paid[1, :, 0])
    assert_close(received[2], paid[1, :, 1])
    assert_close(received[1], paid[0, :, 0] + paid[2, :, 0])
    assert paid.max() < algo.config.reward_max


def test_policies_keep_a_uniform_part_over_what_is_legal():
    mask = torch.tensor([[True, True, False, True]])
    probs = mixed(torch.tensor([[50.0, 0.0, -torch.inf, 0.0]]), mask, 0.3)
    assert_close(probs, torch.tensor([[0.8, 0.1, 0.0, 0.1]]))


def test_epsilon_falls_and_holds_for_a_segment():
    env = path3()
    algo = make('lio', env, total_steps=100, epsilon_start=0.5, epsilon_end=0.1, epsilon_fraction=0.5)
    loop = Loop(algo, env)
    seen = []
    for _ in range(12):
        loop.step()
        seen.append(algo.segment_epsilon)
        for _ in range(algo.due_updates):
            algo.update()
    assert seen == pytest.approx([0.5] * 4 + [0.5 - 0.4 * 8 / 50] * 4 + [0.5 - 0.4 * 16 / 50] * 4)


def test_a_moment_has_its_own_row():
    steps = {
        'x': torch.arange(12.0).view(3, 2, 2, 1),  # T = 3 steps, n = 2 agents, G = 2 graphs
        'action': torch.zeros(3, 2, 2, dtype=torch.int64),
        'mask': torch.ones(3, 2, 2, 2, dtype=torch.bool),
        'present': torch.ones(3, 2, 2, dtype=torch.bool),
        'rows': torch.tensor([[2], [4], [0], [1]]).expand(3, 4, 1),  # agent 0 of graph 1 has no neighbour
        'reward': torch.arange(12.0).view(3, 2, 2),
        'bootstrap': torch.zeros(3, 2, 2, 2),
        'goes_on': torch.ones(3, 2, 2, dtype=torch.bool),
    }
    s = Segment.of(steps, 0.0)
    assert s.x[..., 0].tolist() == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]
    assert s.rows[:6, 0].tolist() == [6, 12, 8, 12, 10, 12]
    assert s.rows[6:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.equal(s.by_agent(s.reward), s.x[..., 0])
    assert torch.equal(s.by_step(s.by_agent(s.reward)), s.reward)
    assert torch.equal(s.hot, one_hot(torch.zeros(2, 6, dtype=torch.int64), 2).float())


class Help(SingleGraphEnv):
    """The second agent may help the first: it pays 0.2, and the first gains 1."""

    num_features, num_actions, max_nodes, symmetric = 2, 2, 2, True

    def start(self) -> Snapshot:
        return Snapshot(x=torch.eye(2), edge_index=fully_connected(2))

    def step(self, action: Tensor) -> SingleStep:
        return SingleStep(self.start(), action[1] * torch.tensor([1.0, -0.2]), terminated=True)


@pytest.mark.parametrize(
    ('reward_max', 'low', 'high'), [(1.0, 0.9, 1.0), pytest.param(0.0, 0.0, 0.1, marks=pytest.mark.slow)]
)
def test_help_is_bought_where_it_can_be(reward_max, low, high):
    env = VectorGraphEnv(Help, 16)
    options = {'policy_channels': (8,), 'incentive_channels': (8,), 'lr_actor': 1.0, 'total_steps': 12_000}
    algo = make('lio', env, rollout_steps=1, reward_max=reward_max, epsilon_end=0.1, entropy=0.0, **options)
    Loop(algo, env).until(400)
    view = algo.view(env.reset(0))[0]
    helps = algo.policy(view, algo.network.initial(16), False)[0].softmax(-1)[1, :, 1]
    assert low <= helps.min() <= helps.max() <= high
    if reward_max > 0:
        inputs = torch.tensor([[1.0, 0, 1, 0], [1.0, 0, 0, 1]]).expand(2, 2, 4)  # it saw no help, it saw help
        refused, helped = torch.sigmoid(algo.network.incentive(inputs)[0, :, 0])
        assert helped - refused > 0.2  # more than help costs
