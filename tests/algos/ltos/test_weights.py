"""Exploration of sharing weights: joint noise, how long it is held, and which streams explore widely."""

from __future__ import annotations

import itertools

import pytest
import torch
from algos_zoo import Loop, jungle, make
from torch import Tensor
from torch.testing import assert_close

from ltos_pyg.algos.ltos.weights import HeldNoise, JointNoise, Logits, Noise, constant_logits
from ltos_pyg.nn import check_sharing, constant_sharing, sender_softmax

GRAPHS = 2_000
BATCH = torch.arange(GRAPHS).repeat_interleave(5)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the noise -------------------------------------------------------------------------------------------------------


def test_the_joint_part_is_one_number_a_graph_between_its_bounds():
    noise = JointNoise(joint=3.0, own=0.0, received=0.0).draw(BATCH, GRAPHS, rng())
    by_graph = noise.own.view(GRAPHS, 5)
    assert torch.equal(by_graph, by_graph[:, :1].expand(-1, 5))
    assert len(by_graph[:, 0].unique()) == GRAPHS
    assert -3 <= by_graph.min() < -2.9
    assert 2.9 < by_graph.max() <= 3
    assert by_graph.mean().abs() < 0.2  # 5 standard errors
    assert torch.equal(noise.received, torch.zeros(len(BATCH)))


def test_the_single_parts_differ_by_agent_and_grow_with_the_spread_of_the_graph():
    joint, own, received = 1.0, 0.5, 2.0
    drawn = JointNoise(joint, own, received).draw(BATCH, GRAPHS, rng())
    flat = JointNoise(0.0, own, received).draw(BATCH, GRAPHS, rng())
    assert_close(drawn.received, flat.received)
    assert flat.own.std().item() == pytest.approx(own / 3**0.5, rel=0.05)  # u^2 is 1/3 on average
    assert flat.received.std().item() == pytest.approx(received / 3**0.5, rel=0.05)
    spread = [part.view(GRAPHS, 5).std(1) for part in (flat.own, flat.received)]
    assert torch.corrcoef(torch.stack(spread))[0, 1] > 0.5  # one u for both parts of a graph
    apart = torch.corrcoef(torch.stack([flat.own, flat.received]))[0, 1]
    assert apart.abs() < 0.05
    joint_part = (drawn.own - flat.own).view(GRAPHS, 5)  # moves all agents of a graph at once
    assert_close(joint_part, joint_part[:, :1].expand(-1, 5), atol=1e-6, rtol=1e-5)
    assert joint_part.std().item() == pytest.approx(joint / 3**0.5, rel=0.05)


def test_noise_is_added_to_self_logits_and_to_the_logits_of_what_a_node_receives():
    edges = torch.tensor([[0, 0, 1], [1, 2, 0]])
    noise = Noise(own=torch.tensor([1.0, 2.0, 3.0]), received=torch.tensor([10.0, 20.0, 30.0]))
    on = noise.on(Logits(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.0, -1.0, 0.0])), edges, scale=0.5)
    assert_close(on.edge, torch.tensor([10.1, 15.2, 5.3]))
    assert_close(on.own, torch.tensor([0.5, 0.0, 1.5]))


@pytest.mark.parametrize('own', [None, 0.02, 0.7])
def test_constant_logits_are_those_of_constant_sharing(own):
    edges = torch.tensor([[0, 0, 0, 1], [1, 2, 3, 0]])
    assert_close(sender_softmax(*constant_logits(edges, 5, own), edges), constant_sharing(edges, 5, own))


def test_there_may_be_no_nodes():
    noise = JointNoise(1.0, 1.0, 1.0).draw(torch.zeros(0, dtype=torch.int64), 3, rng())
    assert noise.own.shape == noise.received.shape == (0,)


# --- how long it is held ---------------------------------------------------------------------------------------------

SMALL = torch.tensor([0, 0, 0, 1, 1, 2])
NONE = torch.tensor([False, False, False])


def held_noise(hold: int) -> HeldNoise:
    return HeldNoise(JointNoise(1.0, 1.0, 1.0), hold)


def play(held: HeldNoise, generator: torch.Generator, ends: list[Tensor], wide: float = 0.5) -> list[Tensor]:
    """What is in force at each step, the noise and the flags of each node side by side."""
    rows = []
    for ended in ends:
        noise, flag = held.current(SMALL, 3, wide, generator)
        rows.append(torch.stack([noise.own, noise.received, flag[SMALL].float()]))
        held.step(ended)
    return rows


def renewed(rows: list[Tensor]) -> list[list[bool]]:
    """For each step after the first, which nodes got new noise."""
    return [(a[:2] != b[:2]).all(0).tolist() for a, b in itertools.pairwise(rows)]


def test_noise_is_held_for_so_many_steps_and_then_drawn_anew():
    rows = play(held_noise(3), rng(), [NONE] * 8)
    none, every = [False] * 6, [True] * 6
    assert renewed(rows) == [none, none, every, none, none, every, none]
    for before, after, new in zip(rows, rows[1:], renewed(rows), strict=False):
        assert any(new) or torch.equal(before, after)  # the flags are held with it


def test_held_for_one_step_it_is_always_new():
    assert renewed(play(held_noise(1), rng(), [NONE] * 5)) == [[True] * 6] * 4


def test_the_end_of_an_episode_draws_in_that_graph_alone_and_starts_its_clock_again():
    middle = torch.tensor([False, True, False])
    rows = play(held_noise(3), rng(), [NONE, middle, NONE, NONE, NONE, NONE])
    in_middle, in_others = (SMALL == 1).tolist(), (SMALL != 1).tolist()
    none = [False] * 6
    assert renewed(rows) == [none, in_middle, in_others, none, in_middle]


def test_a_restart_draws_for_all():
    held, generator = held_noise(9), rng()
    first = play(held, generator, [NONE])[0]
    held.restart()
    assert renewed([first, *play(held, generator, [NONE])]) == [[True] * 6]


@pytest.mark.parametrize('played', [0, 1, 4])
def test_a_saved_state_continues_in_the_same_way(played):
    held, generator = held_noise(3), rng()
    play(held, generator, [NONE] * played)
    state, chance = held.state_dict(), generator.get_state()
    expected = play(held, generator, [NONE, ~NONE, NONE, NONE])

    again = held_noise(3)
    again.load_state_dict(state)
    generator.set_state(chance)
    assert all(map(torch.equal, play(again, generator, [NONE, ~NONE, NONE, NONE]), expected))


def test_a_new_number_of_nodes_draws_for_all():
    held, generator = held_noise(9), rng()
    play(held, generator, [NONE])
    first = held.current(SMALL[:-1], 3, 0.5, generator)[0]
    held.step(NONE)
    assert first.own.shape == (5,)
    assert torch.equal(held.current(SMALL[:-1], 3, 0.5, generator)[0].own, first.own)


# --- which streams explore widely ------------------------------------------------------------------------------------


@pytest.mark.parametrize('wide', [0.0, 0.3, 1.0])
def test_each_stream_explores_widely_with_the_probability_given_whatever_its_place(wide):
    held, generator = HeldNoise(JointNoise(1.0, 1.0, 1.0), 1), rng()
    batch, flags = torch.arange(8), []
    for _ in range(2_000):
        flags.append(held.current(batch, 8, wide, generator)[1])
        held.step(torch.zeros(8, dtype=torch.bool))
    share = torch.stack(flags).float().mean(0)  # of each stream, so the last half, which is greedy, is as the first
    assert_close(share, torch.full((8,), wide), atol=0.05, rtol=0)  # 5 standard errors
    if 0 < wide < 1:
        together = torch.corrcoef(torch.stack(flags).float().T) - torch.eye(8)
        assert together.abs().max() < 0.12


def test_the_part_of_wide_streams_follows_the_schedule():
    env = jungle(64)
    algo = make('ltos search', env, wide_start=0.8, wide_end=0.2, wide_fraction=0.5, hold_steps=1)
    graph = env.reset(0)
    for env_steps, expected in ((0, 0.8), (100, 0.5), (200, 0.2), (400, 0.2)):
        algo.env_steps, count = env_steps, 0
        for _ in range(30):
            algo.held.restart()
            algo.choose_sharing(graph, explore=True)
            count += int(algo.held.state_dict()['wide'].sum())
        assert count / (30 * 64) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize('variant', ['ltos search', 'ltos_edge gradient'])
def test_wide_streams_vary_around_the_constant_and_the_others_around_phi(variant):
    env = jungle()
    local = {'noise_joint': 2.0, 'noise_own': 0.5, 'noise_received': 0.5, 'noise_local': 0.1}
    algo = make(variant, env, **local, wide_start=1.0, wide_end=0.0, wide_fraction=0.5)
    graph = env.reset(0)
    with torch.no_grad():
        algo.phi.head.self_logit.bias += 4.0  # phi keeps nearly all
    logits = []
    for env_steps in (0, 400):  # wide, then local
        algo.env_steps = env_steps
        algo.held.restart()
        sharing = algo.choose_sharing(graph, explore=True)
        check_sharing(sharing, graph.edge_index, graph.num_nodes)
        noise = Noise(algo.held.state_dict()['own'], algo.held.state_dict()['received'])
        base = constant_logits(graph.edge_index, graph.num_nodes, algo.constant_kept)
        own = base.own if env_steps == 0 else base.own + 4.0
        expected = noise.on(Logits(base.edge, own), graph.edge_index, 1.0 if env_steps == 0 else 0.1)
        assert_close(sharing, sender_softmax(*expected, graph.edge_index))
        logits.append(sharing.kept)
    assert logits[1].min() > 0.8
    assert logits[0].std() > logits[1].std()


def test_training_stores_the_weights_that_it_explored():
    env = jungle()
    algo = Loop(make('ltos search', env), env).until(4).algo
    t = algo.replay.sample(16, rng(), 1, 0.9)
    check_sharing(t.sharing, t.graph.edge_index, t.graph.num_nodes)
    uniform = constant_sharing(t.graph.edge_index, t.graph.num_nodes)
    assert (t.sharing.kept - uniform.kept).abs().mean() > 0.02


# --- graphs whose nodes change ---------------------------------------------------------------------------------------


def test_noise_stays_with_its_graph_when_nodes_of_others_come_and_go():
    held, generator = HeldNoise(JointNoise(4.0, 0.5, 1.0), hold=10), rng()
    sizes = ([3, 2, 4], [3, 1, 4], [3, 2, 4])
    rows = []
    for size in sizes:
        batch = torch.arange(3).repeat_interleave(torch.tensor(size))
        noise, wide = held.current(batch, 3, 0.5, generator)
        rows.append((noise.own.split(size), noise.received.split(size), wide))
        held.step(torch.zeros(3, dtype=torch.bool))
    for later in rows[1:]:
        for part in (0, 1):
            assert torch.equal(later[part][0], rows[0][part][0])
            assert torch.equal(later[part][2], rows[0][part][2])
        assert torch.equal(later[2][[0, 2]], rows[0][2][[0, 2]])
    own = [row[0][1] for row in rows]
    assert not torch.equal(own[0], own[2])  # drawn anew with each change of its own size
    assert own[1].numel() == 1


def ids(*graphs: list[int]) -> tuple[Tensor, Tensor]:
    """The graph of each node, and their numbers."""
    batch = torch.arange(len(graphs)).repeat_interleave(torch.tensor([len(graph) for graph in graphs]))
    return batch, torch.tensor([node for graph in graphs for node in graph])


def test_an_agent_keeps_its_noise_in_another_row():
    held, generator = HeldNoise(JointNoise(4.0, 0.5, 1.0), hold=10), rng()
    noises = []
    for batch, node_id in (ids([9, 5, 7], [7, 5]), ids([5, 7, 9], [5, 7])):
        noises.append(held.current(batch, 2, 0.5, generator, node_id)[0])
        held.step(torch.zeros(2, dtype=torch.bool))
    for before, after in zip(*noises, strict=True):
        assert torch.equal(after, before[torch.tensor([1, 2, 0, 4, 3])])


def test_noise_is_drawn_anew_where_one_agent_leaves_while_another_enters():
    held, generator = HeldNoise(JointNoise(4.0, 0.5, 1.0), hold=10), rng()
    batch, before = ids([5, 7, 9], [5, 7])
    first = held.current(batch, 2, 0.5, generator, before)[0]
    held.step(torch.zeros(2, dtype=torch.bool))
    second = held.current(batch, 2, 0.5, generator, ids([5, 8, 9], [5, 7])[1])[0]
    for old, new in zip(first, second, strict=True):
        assert (old[:3] != new[:3]).all()
        assert torch.equal(old[3:], new[3:])


def test_a_node_never_has_the_joint_noise_of_another_graph():
    held, generator = HeldNoise(JointNoise(4.0, 0.0, 0.0), hold=10), rng()
    for size in ([3, 2], [2, 3], [0, 5], [4, 1]):
        noise, _ = held.current(torch.arange(2).repeat_interleave(torch.tensor(size)), 2, 0.5, generator)
        for own in noise.own.split(size):
            assert (own == own[:1]).all()
        held.step(torch.zeros(2, dtype=torch.bool))
