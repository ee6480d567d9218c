"""Collate, then separate: every field of every graph comes back, whatever it is called and however small the graph."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.data import Batch, Data

from ltos_pyg.data import Snapshot, batch_snapshots, batch_to, repeat_batch

SIZES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=6)  # nodes and edges


class Team(Snapshot):
    """Declares more: each node has a leader, each edge a witness (both node numbers) and a cost."""

    NODE_NUMBERS = Snapshot.NODE_NUMBERS | {'leader', 'witness'}
    EDGE_FIELDS = Snapshot.EDGE_FIELDS | {'witness', 'cost_batch'}


def random_snapshot(num_nodes: int, num_edges: int, rng: torch.Generator, cls: type[Snapshot] = Snapshot) -> Snapshot:
    """Fields of every kind; names that PyG's rule for plain ``Data`` would take for node numbers."""
    num_edges = num_edges if num_nodes else 0

    def numbers(*shape: int) -> Tensor:
        return torch.randint(max(num_nodes, 1), shape, generator=rng)

    fields = {
        'x': torch.randint(-128, 128, (num_nodes, 3), dtype=torch.int8, generator=rng),
        'edge_index': numbers(2, num_edges),
        'edge_attr': torch.rand((num_edges, 2), generator=rng),
        'node_id': torch.randperm(num_nodes, generator=rng),
        'action_mask': torch.rand((num_nodes, 4), generator=rng) < 0.5,
        'agent_index': numbers(num_nodes),
        'team_batch': numbers(num_nodes, 2),
        'face': numbers(num_nodes),
    }
    if cls is Team:
        fields |= {'leader': numbers(num_nodes), 'witness': numbers(num_edges), 'cost_batch': numbers(num_edges)}
    return cls(**fields)


def random_snapshots(sizes: list[tuple[int, int]], cls: type[Snapshot] = Snapshot) -> list[Snapshot]:
    rng = torch.Generator().manual_seed(len(sizes))
    return [random_snapshot(nodes, edges, rng, cls) for nodes, edges in sizes]


def side_by_side(graphs: list[Snapshot], cls: type[Snapshot], known: bool = False) -> Batch:
    """`batch_snapshots` of what an environment would hold: concatenated fields, node numbers over the whole batch."""
    nodes = torch.tensor([graph.num_nodes for graph in graphs])
    edges = torch.tensor([graph.num_edges for graph in graphs])
    ptr = torch.cat([torch.zeros(1, dtype=torch.int64), nodes.cumsum(0)])
    fields = {}
    for key in graphs[0].keys():  # noqa: SIM118 - a snapshot iterates over pairs
        shift = [int(start) if key in cls.NODE_NUMBERS else 0 for start in ptr[:-1]]
        parts = [graph[key] + by if by else graph[key] for graph, by in zip(graphs, shift, strict=True)]
        fields[key] = torch.cat(parts, dim=1 if key == 'edge_index' else 0)
    if known:
        of_node = torch.cat([torch.full((int(n),), b) for b, n in enumerate(nodes)])
        return batch_snapshots(nodes, edges, cls=cls, ptr=ptr, batch=of_node, **fields)
    return batch_snapshots(nodes, edges, cls=cls, **fields)


def assert_same(graph: Data, expected: Data) -> None:
    assert set(graph.keys()) == set(expected.keys())
    for key, value in expected.to_dict().items():
        assert graph[key].dtype == value.dtype, key
        assert torch.equal(graph[key], value), key


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, cls=st.sampled_from([Snapshot, Team]), way=st.sampled_from(['pyg', 'ours', 'known']))
def test_what_is_collated_is_separated_again(sizes: list[tuple[int, int]], cls: type[Snapshot], way: str) -> None:
    graphs = random_snapshots(sizes, cls)
    batch = Batch.from_data_list(graphs) if way == 'pyg' else side_by_side(graphs, cls, known=way == 'known')
    assert isinstance(batch, Batch)
    assert isinstance(batch, cls)
    assert batch.num_graphs == len(graphs)
    assert batch.num_nodes == sum(graph.num_nodes for graph in graphs)
    separated = batch.to_data_list()
    for i, graph in enumerate(graphs):
        assert type(separated[i]) is cls
        assert_same(separated[i], graph)
        assert_same(batch[i], graph)


@settings(max_examples=40, deadline=None)
@given(sizes=SIZES, cls=st.sampled_from([Snapshot, Team]), known=st.booleans())
def test_a_batch_built_without_a_loop_equals_pyg_s(
    sizes: list[tuple[int, int]], cls: type[Snapshot], known: bool
) -> None:
    graphs = random_snapshots(sizes, cls)
    ours, theirs = side_by_side(graphs, cls, known), Batch.from_data_list(graphs)
    assert type(ours) is type(theirs)
    assert_same(ours, theirs)
    again = Batch.from_data_list(ours.to_data_list())
    assert_same(again, theirs)
    picked = list(range(len(graphs)))[::-2]
    for graph, i in zip(ours.index_select(torch.tensor(picked)), picked, strict=True):
        assert_same(graph, graphs[i])


@settings(max_examples=30, deadline=None)
@given(sizes=SIZES, times=st.integers(1, 3))
def test_a_repeated_batch_is_the_batch_of_the_repeated_graphs(sizes: list[tuple[int, int]], times: int) -> None:
    graphs = random_snapshots(sizes)
    ours, theirs = repeat_batch(Batch.from_data_list(graphs), times), Batch.from_data_list(graphs * times)
    for key in ('x', 'edge_index', 'edge_attr', 'node_id', 'action_mask', 'ptr', 'batch'):
        assert torch.equal(ours[key], theirs[key]), key
    assert ours.num_graphs == len(graphs) * times
    assert [g.num_edges for g in ours.to_data_list()] == [g.num_edges for g in graphs] * times


@settings(max_examples=30, deadline=None)
@given(sizes=SIZES)
def test_only_declared_fields_are_shifted(sizes: list[tuple[int, int]]) -> None:
    graphs = random_snapshots(sizes, Team)
    batch, ptr = Batch.from_data_list(graphs), [0]
    for graph in graphs:
        ptr.append(ptr[-1] + graph.num_nodes)
    assert batch.ptr.tolist() == ptr
    for key in ('agent_index', 'team_batch', 'face', 'node_id', 'cost_batch'):
        assert torch.equal(batch[key], torch.cat([graph[key] for graph in graphs])), key
    for key in ('leader', 'witness'):
        shifted = torch.cat([graph[key] + start for graph, start in zip(graphs, ptr[:-1], strict=True)])
        assert torch.equal(batch[key], shifted), key


def test_plain_data_would_shift_them() -> None:
    """Why a snapshot declares its fields: the same two graphs, as plain ``Data``."""
    fields = {'x': torch.zeros(2, 1), 'agent_index': torch.tensor([0, 1])}
    edge_index = torch.tensor([[0], [1]])
    plain, ours = (Batch.from_data_list([cls(edge_index=edge_index, **fields)] * 2) for cls in (Data, Snapshot))
    assert plain.agent_index.tolist() == [0, 1, 2, 3]
    assert ours.agent_index.tolist() == [0, 1, 0, 1]
    assert torch.equal(plain.edge_index, ours.edge_index)


def test_a_batch_of_nothing_but_empty_graphs() -> None:
    graphs = random_snapshots([(0, 0), (0, 0)])
    batch = side_by_side(graphs, Snapshot)
    assert (batch.num_graphs, batch.num_nodes, batch.num_edges) == (2, 0, 0)
    assert batch.batch.shape == (0,)
    assert_same(batch[1], graphs[1])


@pytest.mark.parametrize('copy', ['clone', 'to', 'pickle'])
def test_copies_keep_the_class_and_the_fields(copy: str) -> None:
    graphs = random_snapshots([(3, 4), (0, 0), (2, 1)])
    batch: Any = side_by_side(graphs, Snapshot)
    copied = {
        'clone': lambda: batch.clone(),
        'to': lambda: batch.to('cpu'),
        'pickle': lambda: pickle.loads(pickle.dumps(batch)),
    }[copy]()
    assert isinstance(copied, Snapshot)
    for graph, expected in zip(copied.to_data_list(), graphs, strict=True):
        assert_same(graph, expected)


def test_a_batch_that_is_moved_stays_where_it_was_for_others():
    batch = Batch.from_data_list([random_snapshot(3, 2, torch.Generator())])
    assert batch_to(batch, torch.device('cpu')) is batch
    moved = batch_to(batch, torch.device('meta'))
    assert all(value.device.type == 'meta' for _, value in moved if isinstance(value, Tensor))
    assert all(value.device.type == 'cpu' for _, value in batch if isinstance(value, Tensor))
