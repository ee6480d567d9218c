"""GraphReplay refuses what does not fit, and a saved one continues."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from replay_zoo import (
    WORLDS,
    A,
    D,
    World,
    assert_graph_equal,
    assert_transition_right,
    make_spec,
    play,
    random_graph,
)
from torch import Tensor
from torch_geometric.data import Batch

from ltos_pyg.data import GraphReplay
from ltos_pyg.graph_env import GraphStep
from ltos_pyg.nn import Sharing


def bad(world: World, name: str) -> tuple[Batch, Tensor, Any, GraphStep]:
    """A push that is wrong in one way."""
    batch, action, sharing, step = world.draw()
    n, e = batch.num_nodes, batch.num_edges
    graph = step.graph.clone()
    nan = torch.where(torch.arange(n) == 1, float('nan'), 0.0)
    other: dict[str, Any] = {
        'action length': {'action': action[:-1]},
        'action range': {'action': action + A},
        'action dtype': {'action': action.float()},
        'reward length': {'step': replace(step, reward=step.reward[:-1])},
        'reward nan': {'step': replace(step, reward=step.reward + nan)},
        'reward inf': {'step': replace(step, reward=step.reward.double() + 1e300)},
        'flags shape': {'step': replace(step, terminated=torch.zeros(3, dtype=torch.bool))},
        'flags dtype': {'step': replace(step, truncated=torch.zeros(2))},
        'sharing off the simplex': {'sharing': Sharing(sharing.given, sharing.kept + 0.5)},
        'sharing negative': {'sharing': Sharing(sharing.given - 2, sharing.kept)},
        'sharing nan': {'sharing': Sharing(sharing.given, sharing.kept + nan)},
        'sharing length': {'sharing': Sharing(sharing.given[:-1], sharing.kept)},
        'sharing heads': {'sharing': Sharing(sharing.given.view(e, 1), sharing.kept.view(n, 1))},
        'sharing missing': {'sharing': None},
    }
    if name in other:
        parts = {'batch': batch, 'action': action, 'sharing': sharing, 'step': step, **other[name]}
        return parts['batch'], parts['action'], parts['sharing'], parts['step']
    edges = graph.edge_index.clone()
    if name == 'x dtype':
        graph.x = graph.x.float()
    elif name == 'x columns':
        graph.x = graph.x[:, :-1]
    elif name == 'x missing':
        graph.x = None
    elif name == 'edge_attr missing':
        del graph.edge_attr
    elif name == 'edge_attr nan':
        graph.edge_attr = graph.edge_attr * float('nan')
    elif name == 'mask missing':
        del graph.action_mask
    elif name == 'ids missing':
        del graph.node_id
    elif name == 'ids length':
        graph.node_id = graph.node_id[1:]
    elif name == 'ids twice':
        graph.node_id = torch.zeros_like(graph.node_id)
    elif name == 'ids too large':
        graph.node_id = graph.node_id + 2**31
    elif name == 'edges dtype':
        graph.edge_index = edges.int()
    elif name == 'edges out of range':
        graph.edge_index = edges + 1000
    elif name == 'self-loop':
        edges[1, 0] = edges[0, 0]
        graph.edge_index = edges
    elif name == 'edge between graphs':
        edges[1, 0] = graph.num_nodes - 1
        graph.edge_index = edges
    elif name == 'edges not by graph':
        graph.edge_index = edges.flip(1)
    elif name == 'too few graphs':
        graph = Batch.from_data_list(step.graph.to_data_list()[:1])
    elif name == 'too many nodes':
        graph = Batch.from_data_list([random_graph(world.rng, list(range(7))) for _ in range(2)])
    elif name == 'too many edges':
        pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
        one = random_graph(world.rng, list(range(5)))
        one.edge_index, one.edge_attr = torch.tensor(pairs).t().contiguous(), torch.zeros(len(pairs), D)
        graph = Batch.from_data_list([one, one])
    return batch, action, sharing, replace(step, graph=graph, successor=graph)


BAD = {
    'action length': r"'action' needs one entry per node of 'graph': expected shape \(10,\), got \(9,\)",
    'action range': r"'action' must lie in \[0, 4\], as spec.num_actions says \(got \d+ at node 0\)",
    'action dtype': r"'action' must hold integers \(got torch.float32\). Convert it with .long\(\)",
    'reward length': r"'step.reward' needs one entry per node of 'graph': expected shape \(10,\), got \(9,\)",
    'reward nan': r"'step.reward' must be finite \(got 1 NaN or infinite of 10 entries, first at \[1\]\)",
    'reward inf': r"'step.reward' must be finite \(got 10 NaN or infinite",
    'flags shape': r"'step.terminated' needs one bool per graph: expected shape \(2,\), got \(3,\)",
    'flags dtype': r"'step.truncated' needs one bool per graph: .* of torch.float32",
    'sharing off the simplex': r"'sharing' must lie on the simplex of each sender",
    'sharing negative': r"'sharing' must lie on the simplex of each sender",
    'sharing nan': r"'sharing.kept' must be finite \(got 1 NaN",
    'sharing length': r"'sharing' needs one weight per edge and one per node of 'graph': expected given \(\d+,\)",
    'sharing heads': r"'sharing' needs one weight per edge .* Average over heads before storing",
    'sharing missing': r"'sharing' must be given: the replay was made with share=True \(got none\)",
    'x dtype': r"'step.graph.x' must fit the spec .* expected \(10, 3\) of torch.int8, got \(10, 3\) of torch.float32",
    'x columns': r"'step.graph.x' must fit the spec .* got \(10, 2\) of torch.int8",
    'x missing': r"'step.graph.x' must fit the spec .* got none",
    'edge_attr missing': r"'step.graph.edge_attr' must fit the spec .* got none",
    'edge_attr nan': r"'step.graph.edge_attr' must be finite",
    'mask missing': r"'step.graph.action_mask' must fit the spec .* got none",
    'ids missing': r"'step.graph' needs 'node_id' \(N,\), which identifies the agents",
    'ids length': r"'step.graph.node_id' needs one row per node: expected 10 rows",
    'ids twice': r"'step.graph.node_id' must hold each id once per graph, .* \(got \[0, 0, 0, 0, 0\] in graph 0\)",
    'ids too large': r"'step.graph.node_id' must hold each id once per graph, in \[0, 2\^31\)",
    'edges dtype': r"'step.graph.edge_index' must be \(2, E\) of torch.int64",
    'edges out of range': r"'edge_index' must lie in \[0, 9\] for 10 nodes",
    'self-loop': r"'edge_index' must be free of self-loops",
    'edge between graphs': r"'step.graph.edge_index' must list the edges graph by graph, each inside its own graph",
    'edges not by graph': r"'step.graph.edge_index' must list the edges graph by graph",
    'too few graphs': r"'step.graph' must be a batch of 2 graphs, one per stream \(got 1\)",
    'too many nodes': r"'step.graph' must have at most spec.max_nodes = 6 nodes in a graph \(got 7 in graph 0\)",
    'too many edges': r"'step.graph' must have at most spec.max_edges = 12 edges in a graph \(got 20 in graph 0\)",
}


def five_each(seed: int = 0) -> World:
    world = World(GraphReplay(make_spec(2), 20), seed, leave=0.0, end=0.0)
    world.rng = random.Random(11)
    world.graphs = [random_graph(world.rng, [3, 1, 4, 15, 9]) for _ in range(2)]
    return world


@pytest.mark.parametrize('name', BAD)
def test_bad_input_is_named_and_nothing_is_stored(name: str) -> None:
    world = five_each()
    world.push()
    before = saved(world.replay)
    with pytest.raises(ValueError, match=BAD[name]):
        world.replay.push(*bad(world, name))
    assert saved(world.replay) == before
    world.push()
    assert_transition_right(world.replay.sample(8, n_step=2, gamma=0.9), world, 2, 0.9)


def test_a_graph_that_does_not_follow_is_refused_until_a_new_stream_starts() -> None:
    world = five_each()
    world.push()
    follows = world.graphs
    changed = [graph.clone() for graph in follows]
    changed[1].x[2, 1] += 1
    for graphs in (changed, follows[::-1], [random_graph(world.rng, [0]) for _ in range(2)]):
        world.graphs = graphs
        with pytest.raises(ValueError, match=r"'graph' must be what the last step returned .* Call start_stream\(\)"):
            world.push()
    world.replay.start_stream()
    world.heads = []
    world.push()
    assert_transition_right(world.replay.sample(16, n_step=2), world, 2, 0.99)


def test_fixed_nodes_stay_fixed() -> None:
    def graphs(*sizes: int) -> Batch:
        return Batch.from_data_list([random_graph(rng, list(range(size))) for size in sizes])

    rng, replay = random.Random(0), GraphReplay(make_spec(2, fixed_nodes=True), 20, share=False)
    graph, goes_on = graphs(3, 4), torch.zeros(2, dtype=torch.bool)
    step = GraphStep(after := graphs(3, 3), after, torch.zeros(7), terminated=goes_on, truncated=goes_on)
    action = torch.zeros(7, dtype=torch.int64)
    for now in (step, replace(step, truncated=~goes_on)):
        with pytest.raises(ValueError, match=r"must have the nodes of 'graph', .*\(got 3 after 4 in graph 1\)"):
            replay.push(graph, action, None, now)
    assert replay.num_frames == 0
    replay.push(graph, action, None, replace(step, terminated=~goes_on))


@pytest.mark.parametrize(
    'options', [{'batch_size': 0}, {'n_step': 0}, {'gamma': 1.5}, {'gamma': float('nan')}, {'newest': 0}]
)
def test_sample_refuses_nonsense(options: dict[str, Any]) -> None:
    world = five_each()
    world.push()
    with pytest.raises(ValueError, match=r"'batch_size', 'n_step' and 'newest' must be at least 1 and 'gamma' lie in"):
        world.replay.sample(**{'batch_size': 4, **options})


def test_sample_before_there_is_anything() -> None:
    world = five_each()
    with pytest.raises(ValueError, match=r'no transition of 1 steps to sample yet \(0 frames stored\). Push more.'):
        world.replay.sample(4)
    world.push()
    assert len(world.replay) == 2
    with pytest.raises(ValueError, match=r'no transition of 2 steps'):
        world.replay.sample(4, n_step=2)


# -- saving


def saved(replay: GraphReplay) -> bytes:
    buffer = io.BytesIO()
    torch.save(replay.state_dict(), buffer)
    return buffer.getvalue()


@settings(max_examples=15, deadline=None)
@given(**WORLDS)
def test_a_saved_replay_continues_as_if_nothing_had_happened(**options: Any) -> None:
    world = play(**options)
    replay = world.replay
    restored = GraphReplay(replay.spec, replay.capacity, share=replay.share, seed=99)
    restored.load_state_dict(torch.load(io.BytesIO(saved(replay)), weights_only=True))
    assert saved(restored) == saved(replay)
    batch, action, sharing, step = world.draw()
    for each in (replay, restored):
        each.push(batch, action, sharing if each.share else None, step)
        each.start_stream()
    a, b = (each.sample(16, n_step=3) for each in (replay, restored))
    assert torch.equal(a.index, b.index)
    assert torch.equal(a.reward, b.reward)
    for x, y in zip(a.graph.to_data_list(), b.graph.to_data_list(), strict=True):
        assert_graph_equal(x, y)


def test_only_the_used_part_is_saved() -> None:
    world = World(GraphReplay(make_spec(2), 50_000), seed=0)
    world.push()
    assert len(saved(world.replay)) < 20_000 < world.replay.nbytes


def test_a_state_of_another_replay_or_a_damaged_one_is_refused() -> None:
    world = five_each()
    world.push()
    state = world.replay.state_dict()
    restored = GraphReplay(make_spec(2), 20)
    cases = [
        (GraphReplay(make_spec(2), 21), state, r"same spec and sizes: .*'capacity': \(21, 20\)"),
        (GraphReplay(make_spec(2, num_actions=6), 20), state, r"'num_actions': \(6, 5\)"),
        (GraphReplay(make_spec(2), 20, share=False), state, r"'share': \(False, True\)"),
        (restored, {**state, 'version': 0}, r"'state' must be of version 1 \(got 0\)"),
        (restored, {k: v for k, v in state.items() if k != 'rings'}, r"'state' is damaged: it lacks \['rings'\]"),
        (restored, {**state, 'rings': {**state['rings'], 'x': state['rings']['x'][:-1]}}, r"'state' is damaged: expe"),
        (restored, {**state, 'rings': {}}, r"'state' is damaged: its frames are missing"),
    ]
    for replay, broken, message in cases:
        with pytest.raises(ValueError, match=message):
            replay.load_state_dict(broken)
        assert replay.num_frames == 0


def test_to_moves_every_tensor() -> None:
    world = five_each()
    world.push()
    t = world.replay.sample(2).to('meta')
    assert t.sharing is not None
    tensors = [t.action, t.reward, t.discount, t.successor_node, t.index, t.sharing.given, t.graph.x, t.successor.batch]
    assert {tensor.device.type for tensor in tensors} == {'meta'}
    assert t.num_graphs == 2
