"""A good environment, and broken ones whose graphs or steps have one fault each."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from ltos_pyg.data import Snapshot, batch_snapshots
from ltos_pyg.graph_env import (
    GraphEnv,
    GraphEnvSpec,
    GraphStep,
    SingleGraphEnv,
    SingleStep,
    fully_connected,
)

SPEC = GraphEnvSpec(
    num_envs=3, num_features=2, num_actions=3, max_nodes=3, max_edges=6, edge_dim=1, has_action_mask=True,
    symmetric=True, horizon=7,
)  # fmt: skip


class Drift(GraphEnv):
    """A good environment: agents drift on the plane; the task ends, rarely, when one of them is lucky."""

    def __init__(self, **promises: Any) -> None:
        self.spec = replace(SPEC, **promises)
        self.generator = torch.Generator()
        self.place = torch.zeros(self.spec.num_envs, 3, 2)
        self.clock = torch.zeros(self.spec.num_envs, dtype=torch.int64)

    def reset(self, seed: int | None = None) -> Batch:
        if seed is not None:
            self.generator.manual_seed(seed)
        self.start(torch.ones(self.spec.num_envs, dtype=torch.bool))
        return self.look()

    def restart(self, ended: Tensor) -> None:
        self.start(ended)

    def start(self, ended: Tensor) -> None:
        new = torch.rand(self.place.shape, generator=self.generator)
        self.place = torch.where(ended[:, None, None], new, self.place)
        self.clock = torch.where(ended, 0, self.clock)

    def step(self, action: Tensor) -> GraphStep:
        if action.shape != (self.place.size(0) * 3,):
            raise ValueError('one action per node')
        self.place = self.place + (action.view(-1, 3, 1) - 1) + torch.randn(self.place.shape, generator=self.generator)
        self.clock = self.clock + 1
        terminated = torch.rand(self.clock.shape, generator=self.generator) < 0.05
        truncated = (self.clock == 7) & ~terminated
        successor = self.look()
        self.restart(terminated | truncated)
        info = {'far': self.place.flatten(1).norm(dim=1), 'nothing': torch.zeros(action.size(0))}
        return GraphStep(self.look(), successor, self.reward(successor), terminated, truncated, info)

    def reward(self, graph: Batch) -> Tensor:
        return -graph.x.norm(dim=1)

    def look(self) -> Batch:
        B, x = self.spec.num_envs, self.place.reshape(-1, 2)
        triangle = fully_connected(3)
        edge_index = torch.cat([triangle + 3 * i for i in range(B)], dim=1)
        return batch_snapshots(
            torch.full((B,), 3),
            torch.full((B,), 6),
            x=x,
            edge_index=edge_index,
            edge_attr=(x[edge_index[0]] - x[edge_index[1]]).norm(dim=1, keepdim=True),
            action_mask=torch.cat([x[:, :1].abs() < 1, torch.ones(3 * B, 2, dtype=torch.bool)], dim=1),
            node_id=torch.arange(3).repeat(B),
        )

    def state_dict(self) -> dict[str, Any] | None:
        return {'place': self.place, 'clock': self.clock, 'chance': self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> Batch:
        self.place, self.clock = state['place'], state['clock']
        self.generator.set_state(state['chance'])
        return self.look()


# --- The gallery: each environment is the good one with one fault ----------------------------------------------------

GALLERY: dict[str, tuple[Callable[[], Any], str]] = {}


def broken(clause: str, message: str, name: str = '') -> Callable[[Any], Any]:
    """Hangs an environment into the gallery."""

    def add(make: Any) -> Any:
        GALLERY[f'{clause} {name}'.strip()] = (make, rf'\[{re.escape(clause)}\] {message}')
        return make

    return add


def with_graph(change: Callable[[Batch], Any], **promises: Any) -> Callable[[], GraphEnv]:
    """The good environment, with every batch changed."""

    class Changed(Drift):
        def look(self) -> Batch:
            graph = super().look()
            changed = change(graph)
            return graph if changed is None else changed

    return lambda: Changed(**promises)


def with_field(**fields: Callable[[Batch], Tensor]) -> Callable[[Batch], None]:
    def change(graph: Batch) -> None:
        for name, value in fields.items():
            graph[name] = value(graph)

    return change


def with_step(change: Callable[[GraphStep], Any], **promises: Any) -> Callable[[], GraphEnv]:
    """The good environment, with every step changed."""

    class Changed(Drift):
        def step(self, action: Tensor) -> GraphStep:
            return change(super().step(action))

    return lambda: Changed(**promises)


def first_edge_to(receiver: int) -> Callable[[Batch], Tensor]:
    def edges(graph: Batch) -> Tensor:
        edge_index = graph.edge_index.clone()
        edge_index[1, 0] = receiver
        return edge_index

    return edges


def without(name: str) -> Callable[[Batch], Batch]:
    def change(graph: Batch) -> Batch:
        graphs = graph.to_data_list()
        for one in graphs:
            del one[name]
        return Batch.from_data_list(graphs)

    return change


def some_nan(tensor: Tensor) -> Tensor:
    return torch.where(torch.arange(tensor.numel()).view(tensor.shape) == 2, torch.nan, tensor)


def drop_edges(graph: Batch, keep: Tensor) -> Batch:
    graphs = graph.to_data_list()
    for one, kept in zip(graphs, keep.view(len(graphs), -1), strict=True):
        one.edge_index, one.edge_attr = one.edge_index[:, kept], one.edge_attr[kept]
    return Batch.from_data_list(graphs)


def reorder_edges(graph: Batch, order: Tensor) -> None:
    graph.edge_index, graph.edge_attr = graph.edge_index[:, order], graph.edge_attr[order]


def plain_data(graph: Batch) -> Batch:
    return Batch.from_data_list([Data(**one.to_dict()) for one in graph.to_data_list()])


def wrong_slices(graph: Batch) -> None:
    graph._slice_dict['x'] = graph._slice_dict['edge_index']


broken('type', r'make_env\(\): expected a GraphEnv, got Walk\. Subclass')(lambda: Walk())
broken('num_envs', r'reset: expected 3 graphs, one per episode, got 2')(
    with_graph(lambda g: Batch.from_data_list(g[:2]))
)
broken('batch', r'reset: expected a PyG Batch of Snapshots, got DataBatch\. Build it')(with_graph(plain_data))
broken('batch', 'reset: expected a PyG Batch of Snapshots, got Snapshot', 'single')(with_graph(lambda g: g[0]))
broken(
    'separates',
    r'reset: expected to_data_list\(\) and from_data_list\(\) to give the same batch, got RuntimeError: ',
)(with_graph(wrong_slices))
broken('fields', r'reset: expected no `edge_attr`, got one\. Emit')(with_graph(lambda g: None, edge_dim=None))
broken('fields', r'reset: expected no `action_mask`, got one\. Emit', 'mask')(
    with_graph(lambda g: None, has_action_mask=False)
)
broken('fields', 'reset: expected a tensor `edge_attr`, got none', 'none')(with_graph(without('edge_attr')))
broken('node identity', r'reset: expected a tensor `node_id`, got none\. Where nodes enter and leave')(
    with_graph(without('node_id'), fixed_nodes=False)
)
broken('nodes by graph', r'reset: expected `ptr` and `batch` that split the 9 rows of x .* got ptr \[0, 3, 6, 9\]')(
    with_graph(with_field(batch=lambda g: g.batch.flip(0)))
)
broken('x', r'reset: expected shape \(N, 3\) of torch.float32, as the spec says, got \(9, 2\) of torch.float32')(
    with_graph(lambda g: None, num_features=3)
)
broken('x', r'reset: .* torch.int8, as the spec says, got \(9, 2\) of torch.float32', 'dtype')(
    with_graph(lambda g: None, feature_dtype=torch.int8)
)
broken('edge_index', r'reset: expected shape \(2, E\) of torch.int64, got \(2, 18\) of torch.int32\. Convert')(
    with_graph(with_field(edge_index=lambda g: g.edge_index.int()))
)
broken('edge_index', r'reset: expected shape \(2, E\) of torch.int64, got \(18, 2\) of torch.int64', 'transposed')(
    with_graph(with_field(edge_index=lambda g: g.edge_index.t()))
)
broken('edge range', r'reset: expected node numbers in \[0, 8\], got 0 -> 9 \(1 in all\)')(
    with_graph(with_field(edge_index=first_edge_to(9)))
)
broken('edge range', r'reset: expected node numbers in \[0, 8\], got 0 -> -1 \(1 in all\)', 'below')(
    with_graph(with_field(edge_index=first_edge_to(-1)))
)
broken('edges across graphs', r'reset: expected edges within one graph, got 0 -> 4 \(1 in all\)\. Edges')(
    with_graph(with_field(edge_index=first_edge_to(4)))
)
broken('edges by graph', 'reset: expected the edges of graph 0, then those of graph 1, and so on, got another order')(
    with_graph(lambda g: reorder_edges(g, torch.arange(17, -1, -1)))
)
broken('self-loops', r'reset: expected no edge from a node to itself, got 0 -> 0 \(1 in all\)')(
    with_graph(with_field(edge_index=first_edge_to(0)))
)
broken('duplicate edges', r'reset: expected each edge once, got 1 too many')(
    with_graph(with_field(edge_index=first_edge_to(2)), symmetric=False)
)
broken('edge_attr', r'reset: expected shape \(18, 1\) of torch.float32, got \(18, 1\) of torch.float64')(
    with_graph(with_field(edge_attr=lambda g: g.edge_attr.double()))
)
broken('max_nodes', r'reset: expected at most 2 in each graph, got 3 in graph 0\. Memory')(lambda: Drift(max_nodes=2))
broken('max_edges', r'reset: expected at most 5 in each graph, got 6 in graph 0\. Memory')(lambda: Drift(max_edges=5))
broken('symmetric', r'reset: expected with j -> i also i -> j, as the spec declares, got 2 -> 0 \(1 in all\)')(
    with_graph(lambda g: drop_edges(g, torch.arange(18) != 1))
)
broken('node_id', r'reset: expected shape \(9,\) of torch.int64, got \(9,\) of torch.float32')(
    with_graph(with_field(node_id=lambda g: g.node_id.float()))
)
broken('node_id unique', 'reset: expected each number once in a graph, got 6 used twice')(
    with_graph(with_field(node_id=lambda g: g.node_id * 0))
)
broken('finite', r'reset: expected finite `x`, got 1 NaN or infinite entries, first at \[1, 0\]')(
    with_graph(with_field(x=lambda g: some_nan(g.x)))
)
broken('finite', r'reset: expected finite `edge_attr`, got 18 NaN or infinite', 'edge_attr')(
    with_graph(with_field(edge_attr=lambda g: g.edge_attr / 0))
)
broken('finite', r'step 1: expected finite `reward`, got 1 NaN or infinite entries, first at \[2\]', 'reward')(
    with_step(lambda s: replace(s, reward=some_nan(s.reward)))
)
broken('action_mask', r'reset: expected shape \(9, 3\) of torch.bool, got \(9, 3\) of torch.int64')(
    with_graph(with_field(action_mask=lambda g: g.action_mask.long()))
)
broken('legal action', r'reset: expected at least one legal action per node, got none for 3 nodes, first node 1')(
    with_graph(with_field(action_mask=lambda g: (g.node_id != 1)[:, None].expand(-1, 3)))
)
broken('gradient', r'reset: expected `x` without history, got one that requires grad')(
    with_graph(with_field(x=lambda g: g.x.clone().requires_grad_()))
)
broken('gradient', r'step 1: expected `reward` without history', 'reward')(
    with_step(lambda s: replace(s, reward=s.reward.clone().requires_grad_()))
)
broken('device', r'reset: expected `extra` on cpu, like x, got meta\. Create every')(
    with_graph(with_field(extra=lambda g: torch.empty(9, device='meta')))
)
broken('step type', r'step 1: expected a GraphStep, got tuple\. Return')(with_step(lambda s: (s.graph, s.reward)))
broken('terminated', r'step 1: expected shape \(3,\) of torch.bool: one per graph, got \(3,\) of torch.int64')(
    with_step(lambda s: replace(s, terminated=s.terminated.long()))
)
broken('truncated', r'step 1: expected shape \(3,\) of torch.bool: one per graph, got \(9,\) of torch.bool')(
    with_step(lambda s: replace(s, truncated=s.truncated[s.graph.batch]))
)
broken('one end', r'step \d+: expected an episode that is terminated or truncated, got both in graph \d')(
    with_step(lambda s: replace(s, terminated=s.ended, truncated=s.ended))
)
broken(
    'reward', r'step 1: expected shape \(9,\) of torch.float32: one per node that acted, got \(3,\) of torch.float32'
)(with_step(lambda s: replace(s, reward=s.reward[:3])))
broken('reward', r'step 1: expected shape \(9,\) .*, got list\.', 'list')(
    with_step(lambda s: replace(s, reward=s.reward.tolist()))
)
broken(
    'outcome', r"step 1, outcome\['score'\]: expected a tensor of shape \(3,\): one per graph, got float\. Return one"
)(with_step(lambda s: replace(s, outcome={'score': 0.5})))
broken('outcome', r"step 1, outcome\['score'\]: expected .* got \(9,\) of torch\.float32", 'one a node')(
    with_step(lambda s: replace(s, outcome={'score': s.reward}))
)
broken('info', r"step 1, info\['mean'\]: expected a tensor of shape \(3,\) or \(9,\), got float\. Return metrics")(
    with_step(lambda s: replace(s, info={'mean': 0.5}))
)
broken('horizon', r'step 6: expected episodes truncated after 6 steps, as the spec says, got graph 1 going on after 6')(
    with_graph(lambda g: None, horizon=6)
)
broken('horizon', r'step \d: expected episodes truncated after 8 steps, .* got graph \d truncated after 7', 'early')(
    with_graph(lambda g: None, horizon=8)
)


class Walk(SingleGraphEnv):
    """Two to four walkers; they come and go; the walk ends when a coin says so."""

    num_features, num_actions, max_nodes = 1, 2, 4
    fixed_nodes = False
    symmetric = True

    def start(self) -> Snapshot:
        self.born = 0
        self.names: list[int] = []
        return self.look(torch.zeros(0))

    def step(self, action: Tensor) -> SingleStep:
        stay = torch.rand(len(self.names), generator=self.generator) < 0.8
        self.names = [name for name, stays in zip(self.names, stay.tolist(), strict=True) if stays]
        over = float(torch.rand(1, generator=self.generator)) < 0.1
        return SingleStep(self.look(self.place[stay] + action[stay]), -torch.ones(len(stay)), terminated=over)

    def look(self, place: Tensor) -> Snapshot:
        come = max(2 - len(self.names), int(torch.randint(2, (1,), generator=self.generator)))
        come = min(come, 4 - len(self.names))
        self.names += range(self.born, self.born + come)
        self.born += come
        self.place = torch.cat([place, torch.rand(come, generator=self.generator)])
        return Snapshot(
            x=self.place[:, None], edge_index=fully_connected(len(self.names)), node_id=torch.tensor(self.names)
        )


class Timed(Walk):
    """A walk with a time limit of its own, before the horizon."""

    horizon = 12

    def start(self) -> Snapshot:
        self.left = 5
        return super().start()

    def step(self, action: Tensor) -> SingleStep:
        self.left -= 1
        step = super().step(action)
        return step._replace(truncated=self.left == 0 and not step.terminated)
