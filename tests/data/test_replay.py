"""GraphReplay against a slow oracle in plain Python, on ragged random streams; its bounds."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_zoo import (
    WORLDS,
    A,
    D,
    F,
    World,
    assert_transition_right,
    make_spec,
    play,
    random_graph,
)
from torch.testing import assert_close
from torch_geometric.data import Batch

from ltos_pyg.data import GraphReplay, Snapshot, batch_snapshots
from ltos_pyg.data.replay_input import as_bytes
from ltos_pyg.graph_env import GraphEnvSpec, GraphStep
from ltos_pyg.nn import Sharing, share_value


@settings(max_examples=40, deadline=None)
@given(**WORLDS, n_step=st.integers(1, 5), gamma=st.sampled_from([0.0, 0.9, 1.0]))
def test_transitions_are_what_was_pushed(n_step: int, gamma: float, **options: Any) -> None:
    world = play(**options)
    valid = world.numbers(n_step)
    assert world.replay.num_transitions(n_step) == len(valid)
    assert world.replay.num_frames == len(world.kept())
    if valid:
        t = world.replay.sample(24, n_step=n_step, gamma=gamma)
        assert set(t.index.tolist()) <= set(valid)
        assert_transition_right(t, world, n_step, gamma)


@settings(max_examples=25, deadline=None)
@given(**WORLDS, n_step=st.integers(1, 4), rows=st.tuples(st.integers(45, 90), st.integers(90, 150)))
def test_any_full_ring_evicts_the_oldest_frames(n_step: int, rows: tuple[int, int], **options: Any) -> None:
    options['num_envs'] = min(options['num_envs'], 2)
    world = play(**options, max_nodes=rows[0], max_edges=rows[1])
    assert world.replay.num_frames == len(world.kept())
    assert world.replay.num_transitions(n_step) == len(world.numbers(n_step))
    if world.numbers(n_step):
        assert_transition_right(world.replay.sample(24, n_step=n_step), world, n_step, 0.99)


def test_sampling_is_uniform_over_exactly_the_complete_frames() -> None:
    world = play(seed=3, num_envs=2, capacity=60, steps=20, leave=0.2, share=True)
    for n_step in (1, 3):
        valid = world.numbers(n_step)
        drawn = world.replay.sample(400 * len(valid), n_step=n_step).index
        numbers, counts = drawn.unique(return_counts=True)
        assert numbers.tolist() == valid
        assert float((counts - 400).abs().max()) < 5 * 400**0.5  # five standard deviations


def test_newest_draws_from_the_newest_transitions_only() -> None:
    world = play(seed=4, num_envs=3, capacity=60, steps=30, leave=0.2, share=True)
    for n_step, newest in ((1, 7), (4, 5), (2, 10_000)):
        drawn = world.replay.sample(2_000, n_step=n_step, newest=newest).index
        assert drawn.unique().tolist() == world.numbers(n_step)[-newest:]


def test_sampling_depends_on_the_generator_alone() -> None:
    world = play(seed=5, num_envs=2, capacity=40, steps=10, leave=0.2, share=True)
    state = torch.get_rng_state()
    first, second = (world.replay.sample(16, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first.index, second.index)
    own = world.replay.sample(16).index, world.replay.sample(16).index
    assert not torch.equal(*own)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_cut_stream_bootstraps_from_where_it_was_cut() -> None:
    world = World(GraphReplay(make_spec(1), 20), seed=0, leave=0.0, end=0.0)
    world.push()
    world.push()
    assert world.replay.num_transitions(3) == 0
    world.cut()
    assert world.replay.num_transitions(3) == 2
    t = world.replay.sample(8, n_step=3, gamma=0.5)
    assert_transition_right(t, world, 3, 0.5)
    steps = torch.where(t.index == 0, 2, 1)[t.graph.batch]
    assert_close(t.discount, 0.5 ** steps.float())


def test_an_agent_is_found_by_its_id_and_none_other() -> None:
    rng, replay = random.Random(0), GraphReplay(make_spec(1), 12, share=False)
    before, after = random_graph(rng, [7, 3, 9]), random_graph(rng, [9, 8, 7])
    flags = torch.zeros(1, dtype=torch.bool)
    step = GraphStep(
        Batch.from_data_list([after]), Batch.from_data_list([after]), torch.tensor([1.0, 2.0, 3.0]), flags, flags
    )
    replay.push(Batch.from_data_list([before]), torch.tensor([0, 1, 2]), None, step)
    t = replay.sample(1, gamma=0.5)
    assert t.successor_node.tolist() == [2, 0, 0]
    assert t.discount.tolist() == [0.5, 0.0, 0.5]
    assert t.reward.tolist() == [1.0, 2.0, 3.0]
    assert t.bootstrap(torch.tensor([10.0, 20.0, 30.0])).tolist() == [15.0, 0.0, 5.0]


@pytest.mark.parametrize('share', [True, False])
def test_returns_end_where_an_agent_leaves(share: bool) -> None:
    """Agent 4 leaves after one step; agent 2 gives it all of its reward, which is 1 at each step."""
    rng, replay = random.Random(0), GraphReplay(make_spec(1), 12, share=share)
    flags, edge_index = torch.zeros(1, dtype=torch.bool), torch.tensor([[0], [1]])
    both, alone = random_graph(rng, [2, 4], max_edges=0), random_graph(rng, [2], max_edges=0)
    both.edge_index, both.edge_attr = edge_index, torch.zeros(1, D)
    given_all = Sharing(torch.ones(1), torch.tensor([0.0, 1.0]))
    for now, reward in ((both, [1.0, 0.0]), (alone, [1.0]), (alone, [1.0])):
        before, after = Batch.from_data_list([now]), Batch.from_data_list([alone])
        sharing = given_all if now is both else Sharing(torch.empty(0), torch.ones(1))
        step = GraphStep(after, after, torch.tensor(reward), flags, flags)
        replay.push(before, torch.zeros(len(reward), dtype=torch.int64), sharing if share else None, step)
    assert replay.num_transitions(3) == 1
    t = replay.sample(1, n_step=3, gamma=1.0)
    received = share_value(t.reward, t.graph.edge_index, t.sharing or given_all)
    assert received.tolist() == [0.0, 1.0]
    assert t.discount.tolist() == [1.0, 0.0]


def test_bootstrap_without_agents_left() -> None:
    rng, replay = random.Random(0), GraphReplay(make_spec(1), 12, share=False)
    before, after = (Batch.from_data_list([random_graph(rng, ids)]) for ids in ([4, 2], []))
    flags = torch.ones(1, dtype=torch.bool)
    replay.push(before, torch.tensor([0, 1]), None, GraphStep(before, after, torch.ones(2), ~flags, flags))
    t = replay.sample(3)
    assert t.successor.num_nodes == 0
    assert t.bootstrap(torch.empty(0)).tolist() == [0.0] * 6
    with pytest.raises(ValueError, match=r"'value' needs one row per node of successor: expected 0 rows, got shape"):
        t.bootstrap(torch.zeros(2))


def test_agents_without_ids_are_matched_by_their_row() -> None:
    spec = GraphEnvSpec(num_envs=2, num_features=1, num_actions=2, max_nodes=3, max_edges=0)
    replay = GraphReplay(spec, 6, share=False)
    nodes, flags = torch.tensor([3, 2]), torch.zeros(2, dtype=torch.bool)
    empty = torch.empty((2, 0), dtype=torch.int64)
    batch = batch_snapshots(nodes, torch.zeros(2, dtype=torch.int64), x=torch.rand(5, 1), edge_index=empty)
    replay.push(batch, torch.zeros(5, dtype=torch.int64), None, GraphStep(batch, batch, torch.ones(5), flags, flags))
    t = replay.sample(4)
    expected = torch.arange(t.graph.num_nodes)
    assert torch.equal(t.successor_node, expected)
    assert torch.equal(t.graph.x[:, 0], t.successor.x[t.successor_node, 0])


@pytest.mark.slow
def test_graphs_of_more_nodes_than_int16_counts() -> None:
    count = 33_000
    spec = GraphEnvSpec(
        num_envs=1, num_features=1, num_actions=2, max_nodes=count, max_edges=2, feature_dtype=torch.int8
    )
    replay = GraphReplay(spec, 3, share=False)
    batch = batch_snapshots(
        torch.tensor([count]),
        torch.tensor([2]),
        x=torch.zeros(count, 1, dtype=torch.int8),
        edge_index=torch.tensor([[count - 1, 0], [0, count - 1]]),
    )
    flags = torch.zeros(1, dtype=torch.bool)
    action = torch.zeros(count, dtype=torch.int64)
    replay.push(batch, action, None, GraphStep(batch, batch, torch.ones(count), flags, flags))
    assert torch.equal(replay.sample(1).graph.edge_index, batch.edge_index)


def test_storage_takes_the_dtypes_of_the_spec() -> None:
    for dtype in (torch.int8, torch.bfloat16, torch.float64, torch.bool):
        spec = GraphEnvSpec(
            num_envs=1, num_features=2, num_actions=2, max_nodes=3, max_edges=0, feature_dtype=dtype, fixed_nodes=True
        )
        replay = GraphReplay(spec, 3, share=False)
        x = torch.tensor([[0, 1], [2, 3], [4, 5]]).to(dtype)
        batch = Batch.from_data_list([Snapshot(x=x, edge_index=torch.empty((2, 0), dtype=torch.int64))])
        flags = torch.zeros(1, dtype=torch.bool)
        action = torch.zeros(3, dtype=torch.int64)
        replay.push(batch, action, None, GraphStep(batch, batch, torch.ones(3), flags, flags))
        assert replay.sample(1).graph.x.dtype == dtype
        assert torch.equal(replay.sample(1).graph.x, x)


# -- memory


def test_memory_is_stated_and_does_not_grow() -> None:
    replay = GraphReplay(make_spec(2), 30)
    per_node, per_edge, per_frame = F + A + 20, 4 * D + 8, 48
    assert replay.nbytes == 30 * (per_frame + 6 * per_node + 12 * per_edge)
    world = World(replay, seed=0)
    held = {name: ring.nbytes for name, ring in replay._rings._asdict().items()}
    for _ in range(60):
        world.push()
    assert sum(held.values()) == replay.nbytes
    assert {name: ring.nbytes for name, ring in replay._rings._asdict().items()} == held
    assert replay.num_frames <= 30


def test_the_default_rings_keep_capacity_frames_of_any_size() -> None:
    world = World(GraphReplay(make_spec(2), 30), seed=1, leave=0.0, end=0.0)
    world.graphs = [random_graph(world.rng, [0, 1, 2, 3, 4, 5], max_edges=12) for _ in range(2)]
    for _ in range(40):
        world.push()
    assert world.replay.num_frames == 30


def test_more_memory_than_the_machine_has() -> None:
    with pytest.raises(ValueError, match=r"needs [\d.]+ GiB: expected at most the [\d.]+ GiB .* Lower 'capacity'"):
        GraphReplay(make_spec(2), 10**12)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'capacity': 5}, r"'capacity' must be at least 6: .* \(got 5\)"),
        ({'capacity': 9, 'max_nodes': 5}, r"'max_nodes' must be at least 6: the largest graph \(got 5\)"),
        ({'capacity': 9, 'max_edges': 11}, r"'max_edges' must be at least 12: the largest graph \(got 11\)"),
    ],
)
def test_bounds_too_small(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GraphReplay(make_spec(2), **options)


def test_one_step_must_fit_the_rings() -> None:
    world = World(GraphReplay(make_spec(2), 9, max_nodes=6, max_edges=12), seed=2, leave=0.0, end=0.0)
    world.graphs = [random_graph(world.rng, [0, 1, 2]) for _ in range(2)]
    with pytest.raises(ValueError, match=r"'max_nodes' of the replay must hold one step: .* need 12 \(got 6\)"):
        world.push()
    assert world.replay.num_frames == 0


# -- the border


def test_arrays_of_numpy_without_entries_are_read_whatever_their_strides():
    empty = torch.from_numpy(np.lib.stride_tricks.as_strided(np.zeros(1, np.int16), (0, 2), (0, 0)))
    assert as_bytes(empty).shape == (0,)
