"""The search over joint weights: the step of the high level."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from algos_zoo import crowd, jungle, make, sample, trained
from torch import Tensor, nn
from torch.testing import assert_close

from ltos_pyg.algos import NonFiniteLossError
from ltos_pyg.algos.ltos.objective import HighLevelBatch
from ltos_pyg.algos.ltos.search import FIRST_SHARE, SHARES
from ltos_pyg.algos.ltos.subgraphs import within_hops
from ltos_pyg.algos.ltos.weights import Logits, constant_logits
from ltos_pyg.data import Snapshot
from ltos_pyg.graph_env import SingleGraphEnv, SingleStep, VectorGraphEnv, fully_connected
from ltos_pyg.nn import sender_softmax

# --- where the logits go ---------------------------------------------------------------------------------------------


class Two(SingleGraphEnv):
    """Two neighbours; what they do is of no consequence."""

    num_features, num_actions, max_nodes, symmetric, horizon = 1, 2, 2, True, 3

    def start(self) -> Snapshot:
        return Snapshot(x=torch.ones(2, 1), edge_index=fully_connected(2))

    def step(self, action: Tensor) -> SingleStep:
        return SingleStep(self.start(), action.float())


def two(num_envs: int = 4) -> VectorGraphEnv:
    return VectorGraphEnv(Two, num_envs)


HALF_LOG_3 = 0.5493061443  # softmax of (+-, -) this is (3/4, 1/4)


@pytest.mark.parametrize(
    ('first', 'second', 'sharpness', 'own', 'trust'),
    [
        # they agree: F = +-1, V = 1, T = 1, and p = (3/4, 1/4) of the draws 2 and -1
        ([1.0, -1.0], [1.0, -1.0], HALF_LOG_3, 1.25, 1.0),
        # the same of values that are far from 0: only differences count
        ([101.0, 99.0], [-7.0, -9.0], HALF_LOG_3, 1.25, 1.0),
        # they disagree: back to the constant
        ([1.0, -1.0], [-1.0, 1.0], HALF_LOG_3, 0.1, 0.0),
        # one of them sees no difference: as well
        ([1.0, -1.0], [3.0, 3.0], HALF_LOG_3, 0.1, 0.0),
        # F = +-2 and +-1: V = 2.5, T = 2 / 2.5, p = (3/4, 1/4) at this sharpness:
        # L + d = .5 + 1.25 - (.8 * .5 + .2 * .5) - .2 * (.5 - .1)
        ([2.0, -2.0], [1.0, -1.0], HALF_LOG_3 * 2.5**0.5 / (0.8 * 1.5), 1.17, 0.8),
        # no difference between the candidates at all
        ([4.0, 4.0], [4.0, 4.0], 1.0, 0.1, 0.0),
    ],
)
def test_the_target_of_a_isolated_nodes_logit_by_hand(first, second, sharpness, own, trust):
    search = make('ltos search', two(), sharpness=sharpness).objective
    draws = [Logits(torch.zeros(0), torch.tensor([logit])) for logit in (2.0, -1.0)]
    phi, base = (Logits(torch.zeros(0), torch.tensor([logit])) for logit in (0.5, 0.1))
    no_edges = torch.zeros(2, 0, dtype=torch.int64)
    value = torch.tensor([first, second]).unsqueeze(-1)
    got, edge, agreed = search._target(value, draws, phi, base, no_edges, within_hops(no_edges, 1, 2))
    assert got.item() == pytest.approx(own, abs=1e-5)
    assert agreed.item() == pytest.approx(trust, abs=1e-6)
    assert edge.shape == (0,)


def test_a_node_looks_at_the_returns_around_it_and_its_edges_go_with_it():
    """On the path 0 - 1 - 2 - 3 with one hop: node 3 alone gains by the first candidate, so 2 and 3 move."""
    search = make('ltos search', two(), sharpness=HALF_LOG_3, hops=1).objective
    edges = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])
    value = torch.zeros(2, 2, 4)
    value[:, :, 3] = torch.tensor([1.0, -1.0])
    draws = [Logits(sign * torch.arange(1.0, 7.0), sign * torch.arange(10.0, 14.0)) for sign in (1, -1)]
    phi, base = Logits(torch.full((6,), 0.5), torch.full((4,), 0.5)), Logits(torch.zeros(6), torch.zeros(4))
    own, edge, trust = search._target(value, draws, phi, base, edges, within_hops(edges, 4, 1))
    assert trust.tolist() == pytest.approx([0, 0, 1, 1])
    assert own.tolist() == pytest.approx([0, 0, 12 / 2, 13 / 2], abs=1e-4)  # p = (3/4, 1/4) of +- the draw
    assert edge.tolist() == pytest.approx([0, 0, 0, 4 / 2, 5 / 2, 6 / 2], abs=1e-4)  # by their senders


@pytest.mark.parametrize('make_env', [jungle, crowd])
def test_the_gradient_by_the_logits_is_the_way_to_the_target(make_env, monkeypatch):
    algo = trained('ltos search', 8, make_env, aim_steps=0)
    t = sample(algo)
    seen, targets = algo.inputs(t.graph), []
    target = algo.objective._target
    monkeypatch.setattr(algo.objective, '_target', lambda *args: targets.append(target(*args)) or targets[-1])
    mask = t.graph.get('action_mask')
    logits = Logits(*(part.detach().requires_grad_() for part in algo.logits(algo.phi, seen)))
    batch = HighLevelBatch(seen, t.graph.batch, t.num_graphs, mask, logits)
    loss, metrics = algo.objective.step_loss(batch, algo.network)
    grads = torch.autograd.grad(loss, logits)
    own, edge, trust = targets[0]
    assert_close(grads, ((logits.edge - edge) / t.graph.num_nodes, (logits.own - own) / t.graph.num_nodes))
    assert (grads[1] != 0).any()
    assert metrics['phi/trust'].item() == pytest.approx(trust.mean().item())
    assert 0 < metrics['phi/constant'].item() <= 1


def test_candidates_are_half_wide_around_the_first_share_and_half_close_to_phi():
    algo = make('ltos search', two(), candidates=6, noise_joint=3.0, noise_own=0.0, noise_local=0.1)
    graph = two().reset(0)
    zero = torch.zeros(len(graph.edge_index[0]))
    phi, base = Logits(zero, torch.full((8,), 5.0)), constant_logits(graph.edge_index, 8, FIRST_SHARE)
    batch = HighLevelBatch(algo.inputs(graph), graph.batch, 4, None, phi)
    draws = [draw.own for draw in algo.objective._candidates(phi, batch)]
    assert all((draw - base.own).abs().max() <= 3 for draw in draws[:3])
    assert all((draw - 5).abs().max() <= 0.3 for draw in draws[3:])
    assert all(torch.equal(draw[::2], draw[1::2]) for draw in draws)  # joint: the same in a graph
    assert len({float(draw[0]) for draw in draws}) == 6


@pytest.mark.parametrize('make_env', [jungle, crowd])
def test_single_deviations_are_valued_as_one_by_one(make_env):
    algo = trained('ltos search', 8, make_env)
    t = sample(algo)
    graph, seen, search = t.graph[0], algo.inputs(t.graph[0]), algo.objective
    edges, nodes = graph.edge_index, graph.num_nodes
    rng = torch.Generator().manual_seed(0)
    action, other = torch.randint(algo.spec.num_actions, (2, nodes), generator=rng)
    near = within_hops(edges, nodes, algo.config.hops)
    batch = HighLevelBatch(seen, torch.zeros(nodes, dtype=torch.int64), 1, None, constant_logits(edges, nodes, 0.5))
    gains = search._gains(batch, action, other, near)
    for c, critic in enumerate(search.critics):
        before = critic(*seen, action)
        for i in range(nodes):
            alone = action.clone()
            alone[i] = other[i]
            around = near[1][near[0] == i]
            assert_close(gains[c, i], (critic(*seen, alone) - before)[around].sum(), atol=1e-4, rtol=1e-4)
    assert gains.abs().max() > 0


class Listener(nn.Module):
    """On the path 0 - 1 - 2 agent 1 takes action 1 if 2 gives it more than 0 does; the others always take 0."""

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None, sharing: Any, copies: int = 1) -> Tensor:
        sender, receiver = edge_index % 3
        signed = sharing.given * (receiver == 1) * torch.where(sender == 2, 1.0, -1.0)
        wants = torch.zeros_like(sharing.kept).index_add(0, edge_index[1], signed)
        return torch.stack([torch.zeros_like(wants), torch.where(torch.arange(len(wants)) % 3 == 1, wants, -1.0)], -1)


class Pays(nn.Module):
    """Agent 0 is paid if agent 1 takes action 1."""

    def __init__(self, payoff: float) -> None:
        super().__init__()
        self.payoff = payoff

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None, action: Tensor) -> Tensor:
        return torch.stack([self.payoff * action[..., 1], *torch.zeros(2, *action.shape[:-1])], dim=-1)


@pytest.mark.parametrize(('payoffs', 'moves'), [((1.0, 2.0), True), ((1.0, -1.0), False), ((-1.0, -1.0), False)])
def test_aiming_moves_the_weights_that_make_an_agent_act_better_if_both_critics_agree(payoffs, moves):
    search = make('ltos search', two(), sharpness=0.0, noise_local=0.0, candidates=4, phi_starts=1.0).objective
    search.critics = nn.ModuleList(Pays(payoff) for payoff in payoffs)
    search._candidates = lambda phi, batch: [Logits(torch.tensor([0.0, 0.0, 4.0, 0.0]), torch.zeros(3)), phi]
    edges = torch.tensor([[0, 1, 2, 1], [1, 0, 1, 2]])
    start = Logits(torch.tensor([0.05, 0.0, 0.0, 0.0]), torch.zeros(3))
    logits = Logits(*(part.clone().requires_grad_() for part in start))
    batch = HighLevelBatch((torch.ones(3, 1), edges, None), torch.zeros(3, dtype=torch.int64), 1, None, logits)
    with torch.no_grad():
        action = search._actions(batch, [start, *search._candidates(start, batch)], Listener())
        aimed = search._aim(start, action[0], action[1:], within_hops(edges, 3, 2), batch, Listener())
    assert action.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    change = [new - old for new, old in zip(aimed, start, strict=True)]
    sign = {(1.0, 2.0): 1, (1.0, -1.0): 0, (-1.0, -1.0): -1}[payoffs]
    assert torch.sign(change[0]).tolist() == [-sign, 0, sign, 0]  # of the edges 0 -> 1 and 2 -> 1
    assert torch.sign(change[1]).tolist() == [sign, 0, -sign]
    assert max(part.abs().max() for part in change) <= search.config.aim_steps * search.config.aim_size

    loss, metrics = search.step_loss(batch, Listener())
    got = torch.autograd.grad(loss, logits)
    search._aim = lambda phi, *args: phi
    plain = torch.autograd.grad(search.step_loss(batch, Listener())[0], logits)
    for new, old, moved in zip(got, plain, change, strict=True):
        assert_close(new, old - moved / 3 if moves else old)
    assert metrics['phi/aimed'] == float(moves)
    search._aim = lambda *args: Logits(torch.tensor([0.0, 0.0, 4.0, 0.0]), torch.zeros(3))  # 1 takes action 1
    assert search.step_loss(batch, Listener())[1]['phi/aimed'] == float(moves)


def test_the_response_to_a_candidate_is_the_joint_greedy_legal_action():
    algo = trained('ltos search', 6, crowd)
    t = sample(algo)
    seen, mask = algo.inputs(t.graph), t.graph.action_mask
    candidates = [constant_logits(t.graph.edge_index, t.graph.num_nodes, own) for own in (None, 0.9, 0.1)]
    batch = HighLevelBatch(seen, t.graph.batch, t.num_graphs, mask, candidates[0])
    actions = algo.objective._actions(batch, candidates, algo.network)
    assert algo.objective._returns(batch, actions).shape == (2, 3, t.graph.num_nodes)
    for action, logits in zip(actions, candidates, strict=True):
        sharing = sender_softmax(*logits, t.graph.edge_index)
        q = algo.network(*seen, sharing).masked_fill(~mask, -torch.inf)
        assert torch.equal(action, q.argmax(-1))
        assert mask.gather(1, action.unsqueeze(1)).all()


def test_a_large_graph_is_scored_some_candidates_at_a_time(monkeypatch):
    algo = trained('ltos search', 6)
    t = sample(algo)
    seen, nodes, sizes = algo.inputs(t.graph), t.graph.num_nodes, []
    candidates = [constant_logits(t.graph.edge_index, nodes, own) for own in (None, 0.9, 0.1, 0.5, 0.2)]
    batch = HighLevelBatch(seen, t.graph.batch, t.num_graphs, None, candidates[0])
    q_values = lambda *args, copies: sizes.append(copies * len(args[0])) or algo.network(*args, copies=copies)
    actions = algo.objective._actions(batch, candidates, q_values)
    returns = algo.objective._returns(batch, actions)
    monkeypatch.setattr('ltos_pyg.algos.ltos.search.NODES_AT_ONCE', 2 * nodes)
    assert torch.equal(algo.objective._actions(batch, candidates, q_values), actions)
    assert_close(algo.objective._returns(batch, actions), returns)
    assert sizes == [5 * nodes, 2 * nodes, 2 * nodes, nodes]


# --- a game that it solves -------------------------------------------------------------------------------------------


class StagHunt(nn.Module):
    """The true payoffs of pairs: 4 each if both hunt, -8 alone; 1 without hunting."""

    sign = 1.0

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None, action: Tensor) -> Tensor:
        other = action.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        return self.sign * torch.where(action == 1, 12.0 * other - 8, 1.0)


class Hunters(nn.Module):
    """A low level that expects the other to hunt in half of the cases: it hunts if it keeps less than two thirds."""

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None, sharing: Any, copies: int = 1) -> Tensor:
        received = torch.zeros_like(sharing.kept).index_add(0, edge_index[1], sharing.given)
        hunt = -2.0 * sharing.kept + 2.5 * received
        wait = 1.0 * sharing.kept - 3.5 * received
        return torch.stack([wait, hunt], dim=-1)


def hunters(variant: str, **options: Any) -> Any:
    """A method whose agents keep .7 at the start, too much to hunt; its critics and its low level are known."""
    if variant == 'ltos search':
        options['candidates'] = 16
    algo = trained(variant, 2, two, phi_lr=0.01, lr_final_fraction=1.0, phi_starts=1.0, **options)
    algo.network = Hunters()
    algo.loss = lambda t: None
    if algo.config.objective == 'search':
        algo.objective.critics = nn.ModuleList([StagHunt(), StagHunt()])
        algo.objective.constant.best.fill_(SHARES.index(0.7))
        with torch.no_grad():
            algo.phi.head.self_logit.bias += math.log(0.7 / 0.3) - math.log(FIRST_SHARE / (1 - FIRST_SHARE))
    return algo


def play(algo: Any, steps: int) -> list[tuple[float, float]]:
    """Share kept and part of the agents that hunt after each step of the high level."""
    history, graph = [], two().reset(0)
    for _ in range(steps):
        algo.learn_sharing()
        sharing = algo.sharing(algo.phi, graph)
        action = algo.network(*algo.inputs(graph), sharing).argmax(-1)
        history.append((float(sharing.kept.detach().mean()), float(action.float().mean())))
    return history


def test_the_search_finds_weights_under_which_all_hunt():
    history = play(hunters('ltos search'), 20)  # too few for the constant to move
    assert history[0][1] == 0
    assert history[-1][1] == 1
    assert history[-1][0] < 0.6


def test_the_gradient_through_the_low_level_goes_the_other_way():
    history = play(hunters('ltos gradient', initial_kept=0.7), 20)
    assert all(hunt == 0 for _, hunt in history)
    assert history[-1][0] > 0.8


def test_where_the_critics_contradict_each_other_the_weights_go_back_to_the_constant():
    algo = hunters('ltos search')
    algo.objective.critics[1].sign = -1.0
    with torch.no_grad():
        algo.phi.head.self_logit.bias += 2.0
    before = float(algo.sharing(algo.phi, two().reset(0)).kept.detach().mean())
    history = play(algo, 26)
    assert before > 0.9
    assert abs(history[-1][0] - 0.7) < 0.15


def test_the_best_constant_is_found_in_time():
    algo = hunters('ltos search')
    play(algo, 30)
    assert algo.constant_kept is None or algo.constant_kept < 2 / 3  # one under which they hunt


def test_a_loss_that_is_not_finite_leaves_the_low_level_trainable():
    algo = trained('ltos', 30)
    with torch.no_grad():
        next(algo.phi.parameters()).fill_(float('nan'))
    updates = (algo.update() for _ in range(8))
    with pytest.raises(NonFiniteLossError):
        list(updates)
    assert all(p.requires_grad for p in algo.network.parameters())


def test_on_one_way_edges_the_critics_see_what_the_receiver_of_a_share_does():
    class OneWay(Two):
        symmetric = False

        def start(self) -> Snapshot:
            return Snapshot(x=torch.ones(2, 1), edge_index=torch.tensor([[0], [1]]))

    algo = trained('ltos search', make_env=lambda: VectorGraphEnv(OneWay, 4))
    x, edge_index = torch.ones(2, 1), torch.tensor([[0], [1]])
    batch = HighLevelBatch((x, edge_index, None), torch.zeros(2, dtype=torch.int64), 1, None, None)
    value = algo.objective._returns(batch, torch.tensor([[0, 0], [0, 1]]))
    assert (value[:, 0, 0] != value[:, 1, 0]).any()  # agent 0 gives to agent 1 for what that one does
