"""share_value, sender_softmax and the constant weights: pure maths, by law and by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from torch_geometric.utils import scatter, softmax

from ltos_pyg.nn import Sharing, check_sharing, constant_sharing, keep_all, sender_softmax, share_value
from ltos_pyg.nn.functional import kept_logit, out_degree
from ltos_pyg.testing import assert_equivariant, assert_gradients, random_snapshot

SIZES = [(0, 0), (1, 0), (4, 0), (2, 1), (6, 14), (9, 20)]
PATH = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])  # 0 - 1 - 2, both ways


def some_sharing(edge_index, num_nodes, heads=None):
    shape = () if heads is None else (heads,)
    return sender_softmax(torch.randn(edge_index.size(1), *shape), torch.randn(num_nodes, *shape), edge_index)


@pytest.mark.parametrize(
    ('reward', 'shaped'), [([1, 0, 0], [0.5, 0.5, 0]), ([0, 3, 0], [1, 1, 1]), ([1, 1, 1], [5 / 6, 4 / 3, 5 / 6])]
)
def test_uniform_sharing_on_a_path_by_hand(reward, shaped):
    out = share_value(torch.tensor(reward, dtype=torch.float32), PATH, constant_sharing(PATH, 3))
    assert_close(out, torch.tensor(shaped, dtype=torch.float32))


def test_weights_go_from_the_sender_by_hand():
    edge_index = torch.tensor([[0, 0, 2], [1, 2, 0]])  # 1 gives nothing: it has no out-edge
    sharing = Sharing(torch.tensor([0.25, 0.5, 1.0]), torch.tensor([0.25, 1.0, 0.0]))
    check_sharing(sharing, edge_index, 3)
    value = torch.tensor([[4.0, 8.0], [10.0, 0.0], [1.0, -1.0]])
    assert_close(share_value(value, edge_index, sharing), torch.tensor([[2.0, 1.0], [11.0, 2.0], [2.0, 4.0]]))


def test_with_self_logits_of_minus_infinity_all_give_all_but_the_lone_keep_theirs():
    edge_index = torch.tensor([[0, 0, 1], [1, 2, 0]])  # node 2 has no out-edge
    own = torch.full((3,), -torch.inf, requires_grad=True)
    given, kept = sender_softmax(torch.zeros(3, requires_grad=True), own, edge_index)
    assert given.tolist() == [0.5, 0.5, 1.0]
    assert kept.tolist() == [0.0, 0.0, 1.0]
    given[0].backward()
    assert own.grad.tolist() == [0.0, 0.0, 0.0]


def test_softmax_by_hand():
    given, kept = sender_softmax(torch.tensor([2.0, 3.0, 1.0, 5.0]).log(), torch.tensor([1.0, 1.0, 3.0]).log(), PATH)
    assert_close(given, torch.tensor([2 / 3, 3 / 5, 1 / 5, 5 / 8]))
    assert_close(kept, torch.tensor([1 / 3, 1 / 5, 3 / 8]))


@pytest.mark.parametrize(('share', 'given', 'kept'), [(0.8, [0.2, 0.1, 0.1, 0.2], 0.8), (0.0, [1, 0.5, 0.5, 1], 0.0)])
def test_a_constant_share_kept_by_hand(share, given, kept):
    sharing = constant_sharing(PATH, 4, share)  # node 3 is alone
    assert_close(sharing, Sharing(torch.tensor(given), torch.tensor([kept, kept, kept, 1.0])))
    assert_close(constant_sharing(PATH, 4, torch.full((4,), share)), sharing, rtol=0, atol=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9), st.floats(0, 1), st.integers(0, 10**6), st.none() | st.floats(0.001, 0.999))
def test_logits_of_a_constant_share_kept_are_those_of_its_weights_for_any_degree(nodes, density, seed, kept):
    rng = torch.Generator().manual_seed(seed)
    edge_index = random_snapshot(nodes, int(density * nodes * (nodes - 1)), 2, generator=rng).edge_index
    assert out_degree(edge_index, nodes).tolist() == [int((edge_index[0] == i).sum()) for i in range(nodes)]
    logits = torch.zeros(edge_index.size(1)), kept_logit(edge_index, nodes, kept)
    assert_close(sender_softmax(*logits, edge_index), constant_sharing(edge_index, nodes, kept), rtol=1e-4, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 12), st.floats(0, 1), st.integers(0, 10**6), st.floats(0, 1))
def test_every_way_to_make_weights_lies_on_the_simplex_and_conserves_value(nodes, density, seed, own):
    rng = torch.Generator().manual_seed(seed)
    graph = random_snapshot(nodes, int(density * nodes * (nodes - 1)), 2, generator=rng)
    edge_index, E = graph.edge_index, graph.edge_index.size(1)
    logits = 30 * torch.randn(E, generator=rng), 30 * torch.randn(nodes, generator=rng)
    ways = (
        sender_softmax(*logits, edge_index),
        constant_sharing(edge_index, nodes),
        constant_sharing(edge_index, nodes, own),
        constant_sharing(edge_index, nodes, torch.rand(nodes, generator=rng)),
        keep_all(edge_index, nodes),
    )
    alone = torch.ones(nodes).index_fill(0, edge_index[0], 0).bool()
    for sharing in ways:
        check_sharing(sharing, edge_index, nodes)
        total = sharing.kept + scatter(sharing.given, edge_index[0], dim_size=nodes)
        assert_close(total, torch.ones(nodes))
        assert (sharing.kept[alone] == 1).all()  # isolated nodes keep all, exactly
        shared = share_value(graph.x, edge_index, sharing)
        assert_close(shared.sum(0), graph.x.sum(0), rtol=1e-4, atol=1e-5)
        assert_close(shared[:, 0], share_value(graph.x[:, 0], edge_index, sharing))


def test_value_is_conserved_in_each_graph_of_a_batch():
    graphs = [random_snapshot(*size, 3, generator=torch.Generator().manual_seed(i)) for i, size in enumerate(SIZES)]
    sizes, shift = [g.num_nodes for g in graphs], torch.tensor([0] + [g.num_nodes for g in graphs]).cumsum(0)
    edge_index = torch.cat([g.edge_index + s for g, s in zip(graphs, shift, strict=False)], dim=1)
    x = torch.cat([g.x for g in graphs])
    shared = share_value(x, edge_index, some_sharing(edge_index, len(x)))
    assert not torch.equal(shared, x)
    for part, graph in zip(shared.split(sizes), graphs, strict=True):
        assert_close(part.sum(0), graph.x.sum(0))


@pytest.mark.parametrize('heads', [None, 3])
@pytest.mark.parametrize('size', SIZES)
def test_softmax_is_the_one_of_pyg_with_self_loops(size, heads):
    graph = random_snapshot(*size, 1)
    N, shape = graph.num_nodes, () if heads is None else (heads,)
    edge, own = 5 * torch.randn(size[1], *shape), 5 * torch.randn(N, *shape)
    expected = softmax(torch.cat([edge, own]), torch.cat([graph.edge_index[0], torch.arange(N)]), num_nodes=N)
    assert_close(torch.cat(sender_softmax(edge, own, graph.edge_index)), expected)


def test_softmax_stays_finite_at_any_size_of_logit_and_ignores_a_shift():
    edge, own = torch.tensor([1e4, -1e4, 3e38, 0.0]), torch.tensor([0.0, 1.0, -1e4])
    sharing = sender_softmax(edge, own, PATH)
    check_sharing(sharing, PATH, 3)
    assert_close(sender_softmax(torch.randn(4) * 0 + 7, torch.full((3,), 7.0), PATH), constant_sharing(PATH, 3))


def test_keeping_all_changes_nothing_to_the_bit():
    graph = random_snapshot(9, 20, 3)
    assert torch.equal(share_value(graph.x, graph.edge_index, keep_all(graph.edge_index, 9)), graph.x)
    assert keep_all(graph.edge_index, 9, torch.float64).kept.dtype == torch.float64


def shared_by(x, edge_index, given, kept):
    return share_value(x, edge_index, Sharing(given, kept))


def softmax_of(x, edge_index, given, kept):
    return sender_softmax(given, kept, edge_index)


@pytest.mark.parametrize('size', SIZES)
def test_relabelling_and_gradients(size):
    graph = random_snapshot(*size, 2)
    inputs = {'node_inputs': {'kept': torch.randn(size[0])}, 'edge_inputs': {'given': torch.randn(size[1])}}
    assert_equivariant(shared_by, graph.x, graph.edge_index, **inputs)
    assert_equivariant(softmax_of, graph.x, graph.edge_index, outputs=('edge', 'node'), **inputs)
    if size[0]:
        assert_gradients(shared_by, graph.x, graph.edge_index, **inputs)
        assert_gradients(softmax_of, graph.x, graph.edge_index, **inputs)


def test_a_weight_depends_on_its_sender_alone():
    graph = random_snapshot(9, 40, 1)
    edge, own = torch.randn(40, requires_grad=True), torch.randn(9, requires_grad=True)
    sharing = sender_softmax(edge, own, graph.edge_index)
    of_4 = graph.edge_index[0] == 4
    (sharing.kept[4] + sharing.given[of_4].square().sum()).backward()
    assert not edge.grad[~of_4].any()
    assert edge.grad[of_4].all()
    assert own.grad.nonzero().flatten().tolist() == [4]


def test_torch_scatter_gives_the_same_where_it_is_installed():
    torch_scatter = pytest.importorskip('torch_scatter')
    graph = random_snapshot(9, 40, 3)
    sharing = some_sharing(graph.edge_index, 9)
    sent = sharing.given.unsqueeze(-1) * graph.x[graph.edge_index[0]]
    expected = sharing.kept.unsqueeze(-1) * graph.x + torch_scatter.scatter_sum(
        sent, graph.edge_index[1], dim=0, dim_size=9
    )
    assert_close(share_value(graph.x, graph.edge_index, sharing), expected)
    top = torch_scatter.scatter_max(sharing.given, graph.edge_index[0], dim_size=9)[0]
    assert_close(top, scatter(sharing.given, graph.edge_index[0], dim_size=9, reduce='max'))


def test_shapes_and_dtypes_follow_the_value(device):
    graph = random_snapshot(6, 14, 2).to(device)
    for dtype in (torch.float32, torch.float64):
        sharing = constant_sharing(graph.edge_index, 6)
        out = share_value(graph.x.to(dtype), graph.edge_index, Sharing(*(t.to(dtype) for t in sharing)))
        assert (out.dtype, out.device, out.shape) == (dtype, graph.x.device, graph.x.shape)


def test_weights_move_as_tensors_do():
    sharing = some_sharing(PATH, 3)
    moved = sharing.to(torch.float64)
    assert isinstance(moved, Sharing)
    assert (moved.given.dtype, moved.kept.dtype) == (torch.float64, torch.float64)
    assert_close(moved.kept.float(), sharing.kept)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_the_weights_of_a_hub_sum_to_one_in_half_precision(dtype):
    n = 5001
    edge_index = torch.stack([torch.zeros(n - 1, dtype=torch.int64), torch.arange(1, n)])
    logits = torch.zeros(n - 1, dtype=dtype), torch.zeros(n, dtype=dtype)
    half = torch.full((n,), 0.5, dtype=dtype)
    for sharing in (sender_softmax(*logits, edge_index), constant_sharing(edge_index, n, half)):
        assert sharing.given.dtype == sharing.kept.dtype == dtype
        assert float(sharing.kept[0] + sharing.given.float().sum()) == pytest.approx(1, abs=0.01)
