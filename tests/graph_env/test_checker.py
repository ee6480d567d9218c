"""`check_env` is proved by environments that must fail it: one per clause, each by its message."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from ltos_pyg.data import Snapshot, batch_snapshots
from ltos_pyg.envs import JungleEnv, PrisonerEnv
from ltos_pyg.graph_env import (
    EnvCheckError,
    EnvCheckWarning,
    GraphEnv,
    GraphEnvSpec,
    GraphStep,
    SingleGraphEnv,
    SingleStep,
    VectorGraphEnv,
    check_env,
    fully_connected,
)
from ltos_pyg.graph_env.checker import CLAUSES

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
broken('info', r"step 1, info\['mean'\]: expected a tensor of shape \(3,\) or \(9,\), got float\. Return metrics")(
    with_step(lambda s: replace(s, info={'mean': 0.5}))
)
broken('horizon', r'step 6: expected episodes truncated after 6 steps, as the spec says, got graph 1 going on after 6')(
    with_graph(lambda g: None, horizon=6)
)
broken('horizon', r'step \d: expected episodes truncated after 8 steps, .* got graph \d truncated after 7', 'early')(
    with_graph(lambda g: None, horizon=8)
)


@broken(
    'horizon', r'step \d+: expected episodes truncated after 7 steps, .* truncated after [1-6]\.', 'one clock for all'
)
class OneClock(Drift):
    def restart(self, ended: Tensor) -> None:
        clock = self.clock
        super().restart(ended)
        self.clock = clock % 7


@broken('going on', r'step \d+: expected `graph` equal to `successor` wherever no episode ended, got other .*graph\.x')
class RestartsAll(Drift):
    def restart(self, ended: Tensor) -> None:
        super().restart(torch.ones_like(ended) if bool(ended.any()) else ended)


@broken('fixed_nodes', r'step 1: expected the nodes of the step before, in the same order, .* got other nodes\. Keep')
class Shuffles(Drift):
    def look(self) -> Batch:
        graph = super().look()
        graph.node_id = graph.node_id + int(self.clock.max())
        return graph


@broken('overwritten', r'step 1: expected batches returned before to stay unchanged, got other graph\.x\. Return new')
class Buffered(Drift):
    def __init__(self) -> None:
        super().__init__()
        self.buffer = torch.zeros(9, 2)

    def look(self) -> Batch:
        graph = super().look()
        graph.x = self.buffer.copy_(graph.x)
        return graph

    def step(self, action: Tensor) -> GraphStep:
        step = super().step(action)
        # within a step it keeps to the rules
        return replace(step, successor=Batch.from_data_list([one.clone() for one in step.successor.to_data_list()]))


@broken(
    'restart',
    r'at the ends: expected `successor` to be the end of an episode, .* is the same as `successor` in all \d+',
)
class HidesTheEnd(Drift):
    def step(self, action: Tensor) -> GraphStep:
        step = super().step(action)
        return replace(step, successor=step.graph, reward=self.reward(step.graph))


@broken('spec', r'make_env\(\): expected a GraphEnvSpec as `env.spec`, got dict\. Set it')
class NoSpec(Drift):
    def __init__(self) -> None:
        super().__init__()
        self.spec: Any = {'num_envs': 3}


broken('spec types', r'spec.num_features: expected an int, got 2\.0')(lambda: Drift(num_features=2.0))
broken('spec types', r"spec.feature_dtype: expected a torch.dtype, got 'float32'", 'dtype')(
    lambda: Drift(feature_dtype='float32')
)
broken('spec types', r'spec.symmetric: expected a bool, got 1', 'bool')(lambda: Drift(symmetric=1))


@broken('spec changed', r'after the play: expected the spec of the start, got other max_nodes\. Networks')
class Grows(Drift):
    def step(self, action: Tensor) -> GraphStep:
        self.spec = replace(self.spec, max_nodes=4)
        return super().step(action)


@broken('global randomness', r'step 1: expected the global generators left alone, got those of torch used or seeded')
class GlobalTorch(Drift):
    def step(self, action: Tensor) -> GraphStep:
        torch.rand(1)
        return super().step(action)


@broken(
    'global randomness', r'reset: expected the global generators left alone, got those of numpy used or seeded', 'numpy'
)
class GlobalNumpy(Drift):
    def reset(self, seed: int | None = None) -> Batch:
        np.random.seed(seed)  # noqa: NPY002 (the fault)
        return super().reset(seed)


@broken(
    'again',
    r'step 1: expected the same episodes from the same seed and actions, got other truncated\. reset\(seed\) must',
)
class KeepsItsClock(Drift):
    def __init__(self) -> None:
        super().__init__(horizon=None)
        self.age = 0

    def step(self, action: Tensor) -> GraphStep:
        step = super().step(action)
        self.age += 1
        return replace(step, truncated=step.truncated | ((self.age > 24) & ~step.terminated))


@broken('again', r'reset: expected the same episodes .* got other graph\.edge_attr, graph\.x', 'seed not used')
class IgnoresSeed(Drift):
    def reset(self, seed: int | None = None) -> Batch:
        return super().reset()


@broken('new object', r'reset: expected the same episodes .* got other .*graph\.x\. Draw everything from the seed')
class ByObject(Drift):
    made = 0

    def __init__(self) -> None:
        super().__init__()
        ByObject.made += 1
        self.number = ByObject.made

    def reset(self, seed: int | None = None) -> Batch:
        return super().reset(None if seed is None else seed + self.number)


@broken(
    'concurrent instance',
    r'step 1: expected the same episodes from the same seed and actions, got other .* on the object',
)
class SharedGenerator(Drift):
    shared = torch.Generator()

    def __init__(self) -> None:
        super().__init__()
        self.generator = self.shared


@broken(
    'concurrent instance',
    r'play: expected the same episodes as alone, got ValueError: one action per node\. Keep',
    'raises',
)
class OneAtATime(Drift):
    playing: list[GraphEnv] = []

    def reset(self, seed: int | None = None) -> Batch:
        self.playing[:] = [self]
        return super().reset(seed)

    def step(self, action: Tensor) -> GraphStep:
        if self.playing[0] is not self:
            raise ValueError('one action per node')
        return super().step(action)


@broken('wrong length', r'step\(8 actions for 9 nodes\): expected a ValueError, got RuntimeError: shape')
class WrongError(Drift):
    def step(self, action: Tensor) -> GraphStep:
        if action.numel() != 9:
            raise RuntimeError('shape')
        return super().step(action)


@broken('wrong length', r'step\(10 actions for 9 nodes\): expected a ValueError, got a step\. Compare', 'takes more')
class TakesMore(Drift):
    def step(self, action: Tensor) -> GraphStep:
        return super().step(action[:9])


@broken('after a wrong length', r'step 1: expected the same episodes .*\. Check the actions before any state changes')
class DrawsFirst(Drift):
    def step(self, action: Tensor) -> GraphStep:
        torch.rand(1, generator=self.generator)
        return super().step(action)


@broken('plain state', r'state_dict\(\): expected tensors and plain containers, .* got UnpicklingError: ')
class SavesAnObject(Drift):
    def state_dict(self) -> dict[str, Any] | None:
        return {'spec': self.spec}


@broken('loaded graph', r'load_state_dict\(\): expected the batch that was to be acted on, got another one')
class LoadsAnother(Drift):
    def load_state_dict(self, state: dict[str, Any]) -> Batch:
        super().load_state_dict(state)
        return self.reset()


@broken('saved state', r'step \d+: expected the same episodes .*\. Save clocks, positions and generators, as copies')
class ForgetsTheClock(Drift):
    def load_state_dict(self, state: dict[str, Any]) -> Batch:
        return super().load_state_dict({**state, 'clock': state['clock'] * 0})


@broken('loaded graph', r'load_state_dict\(\): expected the batch that was to be acted on', 'state that moves on')
class AliasedState(Drift):
    def step(self, action: Tensor) -> GraphStep:
        before = self.place
        step = super().step(action)
        self.place = before.copy_(self.place)  # as in-place updates would
        return step

    def look(self) -> Batch:
        graph = super().look()
        graph.x = graph.x.clone()
        return graph


# --- A game of one episode, for the good ones ------------------------------------------------------------------------


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


@pytest.mark.parametrize('name', GALLERY)
def test_a_broken_environment_fails_by_its_message(name):
    make_env, message = GALLERY[name]
    with pytest.raises(EnvCheckError, match=rf'^{message}') as caught:
        check_env(make_env, steps=24)
    assert f'[{caught.value.clause}]' in str(caught.value)


def test_every_clause_has_a_broken_environment():
    hung = {re.match(r'\\\[(.*?)\\\]', message)[1].replace('\\', '') for _, message in GALLERY.values()}
    assert hung == set(CLAUSES)


GOOD = {
    'by hand': Drift,
    'by hand, one episode': lambda: Drift(num_envs=1),
    'agents come and go': lambda: VectorGraphEnv(Walk, num_envs=3),
    'prisoner': lambda: PrisonerEnv(num_envs=3, horizon=15),
    'jungle': lambda: JungleEnv(num_envs=3, horizon=15),
    'jungle, in torch': lambda: JungleEnv(num_envs=2, num_agents=5, size=8, horizon=15, backend='torch'),
    'jungle, directed, nothing on the edges': lambda: JungleEnv(
        num_envs=2, num_agents=6, size=9, horizon=15, symmetric=False, edge_features=False
    ),
    'jungle, alone': lambda: JungleEnv(num_envs=2, num_agents=1, size=6, num_foods=2, horizon=15),
}


@pytest.mark.parametrize('name', GOOD)
def test_a_good_environment_passes_without_a_warning(name):  # warnings are errors here
    check_env(GOOD[name], steps=40)


# --- Warnings --------------------------------------------------------------------------------------------------------


class Endless(Drift):
    def __init__(self) -> None:
        super().__init__(horizon=None)

    def step(self, action: Tensor) -> GraphStep:
        self.clock = self.clock * 0
        step = super().step(action)
        return replace(step, terminated=step.terminated & False)

    def restart(self, ended: Tensor) -> None:
        pass


class OneSeed(Drift):
    def reset(self, seed: int | None = None) -> Batch:
        return super().reset(None if seed is None else 0)


class OneStartForAll(Drift):
    def start(self, ended: Tensor) -> None:
        super().start(ended)
        if bool(ended.all()):
            self.place = self.place[:1].expand_as(self.place)


class NeverStartsAnew(Drift):
    """Says that it terminated, and goes on."""

    def __init__(self) -> None:
        super().__init__(horizon=None)

    def step(self, action: Tensor) -> GraphStep:
        step = super().step(action)
        return replace(step, terminated=step.ended, truncated=step.truncated & False)

    def restart(self, ended: Tensor) -> None:
        pass


WARNED = {
    'no episode ended within 30 steps': Endless,
    'seeds 0 and 1 gave the same episodes, but reset() others': OneSeed,
    'all graphs of a batch start in the same state': OneStartForAll,
    '`graph` is the same as `successor` in all': NeverStartsAnew,
}


@pytest.mark.parametrize('message', WARNED)
def test_an_unwise_environment_is_warned_about(message):
    with pytest.warns(EnvCheckWarning, match=re.escape(message)):
        check_env(WARNED[message], steps=30)


def test_steps_must_be_given():
    with pytest.raises(ValueError, match=r"'steps' must be at least 1 \(got 0\)"):
        check_env(Drift, steps=0)


def test_the_checker_leaves_global_chance_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    check_env(Drift, steps=30)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()  # noqa: NPY002
