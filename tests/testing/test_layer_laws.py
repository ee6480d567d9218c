"""The public laws are proved by layers that break them, one by one, and pass for PyG's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import BatchNorm1d, Dropout, Linear, Module
from torch_geometric.nn import GATv2Conv, GCNConv, GraphConv, TransformerConv

from ltos_pyg.testing import assert_batch_invariant, assert_equivariant, assert_gradients, random_snapshot

GRAPHS = [(6, 14), (5, 0), (1, 0), (0, 0), (2, 1), (7, 42)]
EDGE_DIM = {'GATv2Conv': 2, 'TransformerConv': 2}


def pyg_convs():
    torch.manual_seed(0)
    return [
        GCNConv(3, 4),
        GraphConv(3, 4),
        GATv2Conv(3, 4, heads=2, edge_dim=2, dropout=0.5),
        TransformerConv(3, 4, heads=2, edge_dim=2, dropout=0.5),
    ]


@pytest.fixture(autouse=True)
def keep_global_chance():  # PyG draws its parameters from it
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def graph_for(conv: Module, nodes: int = 6, edges: int = 14):
    return random_snapshot(nodes, edges, num_features=3, edge_dim=EDGE_DIM.get(type(conv).__name__))


@pytest.mark.parametrize('conv', pyg_convs(), ids=lambda conv: type(conv).__name__)
def test_the_layers_of_pyg_keep_the_laws(conv):
    conv.train()
    for size in GRAPHS:
        graph = graph_for(conv, *size)
        assert_equivariant(conv, graph.x, graph.edge_index, graph.get('edge_attr'))
    assert_batch_invariant(conv, [graph_for(conv, *size) for size in GRAPHS])
    graph = graph_for(conv, 4, 6)
    assert_gradients(conv, graph.x, graph.edge_index, graph.get('edge_attr'))
    assert conv.training  # left as it was
    assert next(conv.parameters()).dtype == torch.float32


def mean_in(x: Tensor, edge_index: Tensor) -> Tensor:
    """Sum over in-neighbours, and oneself."""
    return x.index_add(0, edge_index[1], x[edge_index[0]])


def numbers_its_nodes(x, edge_index):
    return mean_in(x, edge_index) + torch.arange(x.size(0))[:, None]


def numbers_its_edges(x, edge_index):
    weight = torch.arange(edge_index.size(1), dtype=x.dtype)[:, None]
    return x.index_add(0, edge_index[1], weight * x[edge_index[0]])


def takes_the_last_edge(x, edge_index):
    out = x.clone()
    out[edge_index[1]] = x[edge_index[0]]
    return out


def sees_the_whole_batch(x, edge_index):
    return mean_in(x, edge_index) - x.mean(0)


def leans_on_node_0(x, edge_index):
    return mean_in(x, edge_index) + x[:1].sum()


def stops_the_gradient(x, edge_index):
    return mean_in(x, edge_index) * x.detach()


@pytest.mark.parametrize(
    ('conv', 'message'),
    [
        (
            numbers_its_nodes,
            r'^numbers_its_nodes: renaming the nodes must rename the outputs\. output 0 .*off by up to',
        ),
        (leans_on_node_0, r'^leans_on_node_0: renaming the nodes must rename the outputs'),
        (
            numbers_its_edges,
            r'^numbers_its_edges: the order of the edges must not matter\. output 0 \(one row per node\)',
        ),
        (takes_the_last_edge, r'^takes_the_last_edge: the order of the edges must not matter'),
    ],
)
def test_a_layer_that_is_not_equivariant_fails(conv, message):
    graph = random_snapshot(6, 14, num_features=3)
    with pytest.raises(AssertionError, match=message):
        assert_equivariant(conv, graph.x, graph.edge_index)


@pytest.mark.parametrize('conv', [sees_the_whole_batch, leans_on_node_0])
def test_a_layer_that_sees_other_graphs_fails(conv):
    rng = torch.Generator().manual_seed(0)
    graphs = [random_snapshot(n, n, num_features=3, generator=rng) for n in (4, 3, 5)]
    with pytest.raises(AssertionError, match=rf'^{conv.__name__}: a batch must equal its graphs one by one\. output 0'):
        assert_batch_invariant(conv, graphs)


def test_a_layer_that_changes_its_shape_fails():
    graphs = [random_snapshot(3, 2, num_features=3), random_snapshot(2, 0, num_features=3)]
    with pytest.raises(AssertionError, match=r'expected shape \(6, 3\), got \(5, 3\)'):
        assert_batch_invariant(lambda x, edge_index: x if x.size(0) == 5 else torch.cat([x, x])[:3], graphs)


class Detached(Module):
    """No gradient flows through its messages."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = Linear(3, 3)

    def forward(self, x, edge_index):
        return self.lin(x).index_add(0, edge_index[1], self.lin(x).detach()[edge_index[0]])


@pytest.mark.parametrize(
    ('conv', 'where'),
    [(stops_the_gradient, 'input 0, where input 0 is x'), (Detached(), 'input 0, where input 0 is x, 1 is lin.weight')],
    ids=['input', 'parameter'],
)
def test_a_wrong_gradient_fails(conv, where):
    graph = random_snapshot(4, 6, num_features=3)
    with pytest.raises(AssertionError, match=rf'gradients must be those of finite differences\. Jacobian .* {where}'):
        assert_gradients(conv, graph.x, graph.edge_index)


class EdgesAndNodes(Module):
    """Returns a row per edge, a row per node and one for the graph; takes a value per node and one per edge by name."""

    def forward(self, x, edge_index, value, weight):
        edge = (x[edge_index[0]] - x[edge_index[1]]) * weight[:, None]
        return edge, mean_in(x, edge_index) * value[:, None], (x.sum(0) * value.sum())[None]


def test_outputs_and_further_inputs_are_named():
    graph = random_snapshot(5, 9, num_features=3)
    rng = torch.Generator().manual_seed(1)
    more = {
        'node_inputs': {'value': torch.rand(5, generator=rng)},
        'edge_inputs': {'weight': torch.rand(9, generator=rng)},
    }
    assert_equivariant(EdgesAndNodes(), graph.x, graph.edge_index, outputs=('edge', 'node', 'graph'), **more)
    assert_gradients(EdgesAndNodes(), graph.x, graph.edge_index, **more)
    with pytest.raises(AssertionError, match=r'output 0 \(one row per graph\): off by'):
        assert_equivariant(EdgesAndNodes(), graph.x, graph.edge_index, outputs=('graph', 'node', 'graph'), **more)
    with pytest.raises(
        ValueError, match=r"'outputs' must be 'node', 'edge' or 'graph' for each of the 3 output tensors"
    ):
        assert_equivariant(EdgesAndNodes(), graph.x, graph.edge_index, outputs=('edge', 'node'), **more)


def test_chance_and_running_statistics_are_switched_off_meanwhile():
    class Noisy(Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.drop = BatchNorm1d(3), Dropout(0.5)
            self.drop.eval()

        def forward(self, x, edge_index):
            return self.drop(self.norm(mean_in(x, edge_index)))

    conv = Noisy()
    assert_batch_invariant(conv, [random_snapshot(n, n, num_features=3) for n in (4, 3)])
    assert (conv.norm.training, conv.drop.training) == (True, False)
    assert conv.norm.num_batches_tracked == 0


@pytest.mark.parametrize('symmetric', [False, True])
@pytest.mark.parametrize(('nodes', 'edges'), [(0, 0), (1, 0), (2, 2), (5, 0), (5, 8), (5, 20)])
def test_a_random_snapshot_has_the_size_asked_for(nodes, edges, symmetric):
    graph = random_snapshot(nodes, edges, num_features=3, edge_dim=2, symmetric=symmetric)
    assert (graph.x.shape, graph.edge_index.shape, graph.edge_attr.shape) == ((nodes, 3), (2, edges), (edges, 2))
    pairs = set(map(tuple, graph.edge_index.t().tolist()))
    assert len(pairs) == edges
    assert all(0 <= j < nodes and 0 <= i < nodes and i != j for j, i in pairs)
    assert not symmetric or pairs == {(i, j) for j, i in pairs}


def test_every_edge_can_be_drawn():
    rng = torch.Generator().manual_seed(0)
    drawn = {tuple(random_snapshot(3, 1, 1, generator=rng).edge_index.flatten().tolist()) for _ in range(200)}
    assert drawn == {(j, i) for j in range(3) for i in range(3) if i != j}


def test_random_snapshots_depend_on_their_generator_alone():
    before = torch.get_rng_state()
    one, two = random_snapshot(4, 5, 2), random_snapshot(4, 5, 2)
    assert torch.equal(one.x, two.x)
    assert torch.equal(one.edge_index, two.edge_index)
    rng = torch.Generator().manual_seed(1)
    assert not torch.equal(random_snapshot(4, 5, 2, generator=rng).x, random_snapshot(4, 5, 2, generator=rng).x)
    assert torch.equal(before, torch.get_rng_state())


def test_impossible_graphs_are_refused():
    with pytest.raises(ValueError, match=r"'num_edges' must lie in \[0, 6\] for 3 nodes without self-loops \(got 7\)"):
        random_snapshot(3, 7, 1)
    with pytest.raises(ValueError, match=r"'num_edges' must be even in a symmetric graph.*\(got 3\)"):
        random_snapshot(3, 3, 1, symmetric=True)


def test_outputs_that_are_no_numbers_are_named_before_any_law():
    class Broken(Module):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return x * torch.nan

    with pytest.raises(AssertionError, match=r'Broken: output 0 .* has NaN or infinite entries'):
        assert_equivariant(Broken(), torch.ones(3, 2), torch.tensor([[0], [1]]))


def test_one_row_per_graph_needs_the_graph_of_each_node():
    with pytest.raises(ValueError, match=r"'outputs' must be 'node' or 'edge': a layer is not told the graphs"):
        assert_batch_invariant(
            lambda x, edge_index: x.sum(0, keepdim=True), [random_snapshot(4, 6, num_features=2)], outputs='graph'
        )
