"""Random ragged streams for a replay, and a slow oracle of what it must return."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from torch_geometric.data import Batch

from ltos_pyg.data import GraphReplay, Snapshot, Transition
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
            if last.terminated or last.truncated or someone_left(last):
                return path
        return path

    def numbers(self, n_step: int) -> list[int]:
        return [f for f in self.kept() if self.path(f, n_step) is not None]


def someone_left(frame: Frame) -> bool:
    assert frame.successor is not None
    return not set(frame.graph.node_id.tolist()) <= set(frame.successor.graph.node_id.tolist())


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
