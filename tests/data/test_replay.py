"""GraphReplay against a slow oracle in plain Python, on ragged random streams; its border; its bounds."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from torch_geometric.data import Batch

from ltos_pyg.data import GraphReplay, Snapshot, Transition, batch_snapshots
from ltos_pyg.graph_env import GraphEnvSpec, GraphStep
from ltos_pyg.nn import Sharing, sender_softmax

A, F, D = 5, 3, 2  # actions, features, columns of edge_attr


def make_spec(num_envs: int = 2, **changes: Any) -> GraphEnvSpec:
    options: dict[str, Any] = {
        'num_features': F,
        'num_actions': A,
        'max_nodes': 6,
        'max_edges': 12,
        'edge_dim': D,
        'feature_dtype': torch.int8,
        'has_action_mask': True,
        'fixed_nodes': False,
    }
    return GraphEnvSpec(num_envs=num_envs, **{**options, **changes})


def random_graph(rng: random.Random, ids: list[int], max_edges: int = 12) -> Snapshot:
    """A graph of these agents: random features, random edges (perhaps none)."""
    pairs = [(i, j) for i in range(len(ids)) for j in range(len(ids)) if i != j]
    edges = rng.sample(pairs, rng.randint(0, min(len(pairs), max_edges)))
    return Snapshot(
        x=torch.tensor([[rng.randint(-128, 127) for _ in range(F)] for _ in ids], dtype=torch.int8).view(-1, F),
        edge_index=torch.tensor(edges, dtype=torch.int64).view(-1, 2).t().contiguous(),
        edge_attr=torch.tensor([[rng.random() for _ in range(D)] for _ in edges]).view(-1, D),
        node_id=torch.tensor(ids, dtype=torch.int64),
        action_mask=torch.tensor([[rng.random() < 0.5 for _ in range(A)] for _ in ids], dtype=torch.bool).view(-1, A),
    )


@dataclass
class Frame:
    """What the oracle remembers of a graph at one step."""

    graph: Snapshot
    action: Tensor | None = None
    sharing: Sharing | None = None
    reward: list[float] = field(default_factory=list)
    terminated: bool = False
    truncated: bool = False
    successor: Frame | None = None


class World:
    """Random ragged streams, a replay that is fed with them, and the oracle's own memory of them."""

    def __init__(self, replay: GraphReplay, seed: int, leave: float = 0.2, end: float = 0.15) -> None:
        self.replay, self.rng, self.leave, self.end = replay, random.Random(seed), leave, end
        self.noise = torch.Generator().manual_seed(seed)
        self.frames: list[Frame] = []  # all of them, in the order of their numbers
        self.heads: list[Frame] = []
        self.reset()

    @property
    def spec(self) -> GraphEnvSpec:
        return self.replay.spec

    def reset(self) -> None:
        self.graphs = [self.fresh() for _ in range(self.spec.num_envs)]
        self.heads = []

    def fresh(self) -> Snapshot:
        count = self.rng.randint(0, self.spec.max_nodes)
        return random_graph(self.rng, self.rng.sample(range(1000), count))

    def moved(self, graph: Snapshot) -> Snapshot:
        """Agents leave, agents come, and all may change places."""
        ids = [i for i in graph.node_id.tolist() if self.rng.random() > self.leave]
        while len(ids) < self.spec.max_nodes and self.rng.random() < self.leave:
            ids.insert(self.rng.randint(0, len(ids)), self.rng.choice([i for i in range(1000) if i not in ids]))
        if self.rng.random() < 0.3:
            self.rng.shuffle(ids)
        return random_graph(self.rng, ids)

    def draw(self) -> tuple[Batch, Tensor, Sharing, GraphStep]:
        batch = Batch.from_data_list(self.graphs)
        n, e = batch.num_nodes, batch.num_edges
        logits = torch.randn(e + n, generator=self.noise).split([e, n])
        ends = [self.moved(graph) for graph in self.graphs]
        flags = [(self.rng.random() < self.end, self.rng.random() < self.end) for _ in ends]
        starts = [self.fresh() if any(flag) else end for end, flag in zip(ends, flags, strict=True)]
        step = GraphStep(
            graph=Batch.from_data_list(starts),
            successor=Batch.from_data_list(ends),
            reward=torch.randn(n, generator=self.noise),
            terminated=torch.tensor([flag[0] for flag in flags]),
            truncated=torch.tensor([flag[1] for flag in flags]),
        )
        action = torch.randint(A, (n,), generator=self.noise)
        return batch, action, sender_softmax(*logits, batch.edge_index), step

    def push(self) -> None:
        batch, action, sharing, step = self.draw()
        self.replay.push(batch, action, sharing if self.replay.share else None, step)
        if not self.heads:
            self.heads = [Frame(graph) for graph in self.graphs]
            self.frames += self.heads
        self.remember(batch, action, sharing, step)
        self.graphs = step.graph.to_data_list()

    def remember(self, batch: Batch, action: Tensor, sharing: Sharing, step: GraphStep) -> None:
        nodes, edges = ([g.num_nodes for g in self.graphs], [g.num_edges for g in self.graphs])
        per_node = [t.split(nodes) for t in (action, sharing.kept, step.reward)]
        given = sharing.given.split(edges)
        heads = [Frame(graph) for graph in step.graph.to_data_list()]
        for b, frame in enumerate(self.heads):
            frame.action = per_node[0][b]
            frame.sharing = Sharing(given[b], per_node[1][b])
            frame.reward = per_node[2][b].tolist()
            frame.terminated, frame.truncated = bool(step.terminated[b]), bool(step.truncated[b])
            frame.successor = heads[b]
            if frame.terminated or frame.truncated:
                frame.successor = Frame(step.successor[b])
                self.frames.append(frame.successor)
        self.frames += heads
        self.heads = heads

    def cut(self) -> None:
        self.replay.start_stream()
        self.reset()

    # -- what the replay should hold

    def kept(self) -> range:
        """Numbers of the frames in memory: the longest run of the newest that fits."""
        first, nodes, edges = len(self.frames), 0, 0
        while first > 0:
            graph = self.frames[first - 1].graph
            nodes, edges = nodes + graph.num_nodes, edges + graph.num_edges
            too_many = len(self.frames) - first + 1 > self.replay.capacity
            if too_many or nodes > self.replay.max_nodes or edges > self.replay.max_edges:
                break
            first -= 1
        return range(first, len(self.frames))

    def path(self, number: int, n_step: int) -> list[Frame] | None:
        """The frames of an n-step transition; None if its future is not known yet."""
        path = [self.frames[number]]
        while len(path) <= n_step:
            last = path[-1]
            if last.successor is None:
                was_cut = len(path) > 1 and not any(last is head for head in self.heads)
                return path if was_cut else None
            path.append(last.successor)
            if last.terminated or last.truncated:
                return path
        return path

    def numbers(self, n_step: int) -> list[int]:
        return [f for f in self.kept() if self.path(f, n_step) is not None]


def assert_graph_equal(graph: Snapshot, expected: Snapshot) -> None:
    assert set(graph.keys()) == set(expected.keys())
    for key, value in expected.to_dict().items():
        assert graph[key].dtype == value.dtype, key
        assert torch.equal(graph[key], value), key


def assert_transition_right(t: Transition, world: World, n_step: int, gamma: float) -> None:
    """Every field of every graph against the oracle's slow sums."""
    nodes = t.graph.ptr.diff().tolist()
    rows = [part.split(nodes) for part in (t.action, t.reward, t.discount, t.successor_node)]
    for b, (graph, successor) in enumerate(zip(t.graph.to_data_list(), t.successor.to_data_list(), strict=True)):
        path = world.path(int(t.index[b]), n_step)
        assert path is not None, 'the future of this frame is not known yet'
        assert_graph_equal(graph, path[0].graph)
        assert_graph_equal(successor, path[-1].graph)
        action, reward, discount, row = (part[b] for part in rows)
        assert torch.equal(action, path[0].action)
        expected = [follow(path, agent, gamma) for agent in graph.node_id.tolist()]
        assert_close(reward, torch.tensor([e[0] for e in expected]), rtol=1e-5, atol=1e-6)
        assert_close(discount, torch.tensor([e[1] for e in expected]))
        last_ids = successor.node_id.tolist()
        for agent, at in zip(graph.node_id.tolist(), row.tolist(), strict=True):
            inside = at - int(t.successor.ptr[b])
            assert (last_ids[inside] == agent) if agent_stays(path, agent) else (at == 0)
    if world.replay.share:
        assert_sharing_right(t, world, n_step)
    else:
        assert t.sharing is None


def agent_stays(path: list[Frame], agent: int) -> bool:
    return all(agent in frame.graph.node_id.tolist() for frame in path)


def follow(path: list[Frame], agent: int, gamma: float) -> tuple[float, float]:
    """Reward and discount of one agent along a path, step by step."""
    total = 0.0
    for k, frame in enumerate(path[:-1]):
        ids = frame.graph.node_id.tolist()
        if agent not in ids:
            break
        total += gamma**k * frame.reward[ids.index(agent)]
    bootstraps = agent_stays(path, agent) and not path[-2].terminated
    return total, gamma ** (len(path) - 1) if bootstraps else 0.0


def assert_sharing_right(t: Transition, world: World, n_step: int) -> None:
    assert t.sharing is not None
    nodes, edges = t.graph.ptr.diff().tolist(), t.graph._slice_dict['edge_index'].diff().tolist()
    given, kept = t.sharing.given.split(edges), t.sharing.kept.split(nodes)
    for b in range(t.num_graphs):
        path = world.path(int(t.index[b]), n_step)
        assert path is not None
        assert path[0].sharing is not None
        assert torch.equal(given[b], path[0].sharing.given)
        assert torch.equal(kept[b], path[0].sharing.kept)


WORLDS = {
    'seed': st.integers(0, 10_000),
    'num_envs': st.integers(1, 3),
    'capacity': st.integers(9, 60),
    'steps': st.integers(1, 25),
    'leave': st.sampled_from([0.0, 0.2, 0.6]),
    'share': st.booleans(),
}


def play(seed: int, num_envs: int, capacity: int, steps: int, leave: float, share: bool, **options: Any) -> World:
    world = World(GraphReplay(make_spec(num_envs), capacity, share=share, **options), seed, leave)
    for _ in range(steps):
        world.push()
        if world.rng.random() < 0.1:
            world.cut()
    return world


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


def test_sampling_hangs_on_the_generator_alone() -> None:
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
def test_a_saved_replay_goes_on_as_if_nothing_had_happened(**options: Any) -> None:
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
