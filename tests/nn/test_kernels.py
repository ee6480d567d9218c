"""The compiled attention against plain PyTorch in float64, forward and every gradient."""

import sys

import pytest
import torch
from torch.testing import assert_close
from torch_geometric.nn.aggr import MaxAggregation

from ltos_pyg.nn import DGNConv, kernels
from ltos_pyg.testing import random_snapshot


def outcome(conv, x, edge_index, edge_attr=None):
    """Output and gradients by x, edge_attr and every parameter, under a loss that weighs each entry apart."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, edge_attr) if t is not None]
    out = conv(leaves[0], edge_index, *leaves[1:])
    weight = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    wanted = [*leaves, *conv.parameters()]
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), wanted)]


def assert_kernel_is_exact(conv, x, edge_index, edge_attr=None, monkeypatch=None):
    calls = []
    original = kernels.neighbour_attention
    monkeypatch.setattr('ltos_pyg.nn.conv.dgn_conv.neighbour_attention', lambda *a: calls.append(1) or original(*a))
    monkeypatch.setattr(kernels, 'MIN_EDGES', 0)
    ours = outcome(conv, x, edge_index, edge_attr)
    assert calls == [1]  # it did run
    exact = outcome(conv.double(), x.double(), edge_index, None if edge_attr is None else edge_attr.double())
    assert calls == [1]  # float64 is PyTorch's
    for one, other in zip(ours, exact, strict=True):
        scale = float(other.abs().max()) if other.numel() else 1.0
        assert_close(one.double(), other, rtol=1e-4, atol=1e-5 * max(scale, 1e-3))


HEADS = [(1, 8), (2, 8), (4, 64), (8, 128), (3, 15), (1, 1), (1, 33), (5, 5)]


@pytest.mark.parametrize('edge_dim', [None, 1, 2, 3])
@pytest.mark.parametrize(('heads', 'channels'), HEADS)
def test_forward_and_all_gradients(heads, channels, edge_dim, monkeypatch):
    graph = random_snapshot(60, 300, 6, edge_dim)
    conv = DGNConv(6, channels, heads, edge_dim)
    assert_kernel_is_exact(conv, graph.x, graph.edge_index, graph.get('edge_attr'), monkeypatch)


@pytest.mark.parametrize('order', ['by receiver', 'by sender', 'backwards'])
def test_any_order_of_edges(order, monkeypatch):
    graph = random_snapshot(40, 200, 6, 2)
    by = {'by receiver': graph.edge_index[1], 'by sender': graph.edge_index[0], 'backwards': -graph.edge_index[1]}
    order = by[order].argsort()
    conv = DGNConv(6, 8, 2, edge_dim=2)
    assert_kernel_is_exact(conv, graph.x, graph.edge_index[:, order], graph.edge_attr[order], monkeypatch)


def test_one_node_of_huge_degree_and_receivers_without_edges(monkeypatch):
    N = 3000
    star = torch.stack([torch.arange(1, N), torch.zeros(N - 1, dtype=torch.int64)])
    x, attr = torch.randn(N, 6), torch.randn(N - 1, 2)
    assert_kernel_is_exact(DGNConv(6, 8, 2, edge_dim=2), x, star, attr, monkeypatch)
    assert_kernel_is_exact(DGNConv(6, 8, 2, edge_dim=2), x, star.flip(0), attr, monkeypatch)


def test_first_node_receives_from_the_last_one(monkeypatch):  # a row's gradient is touched long before its turn
    edge_index = torch.tensor([[9, 0, 9], [0, 9, 5]])
    assert_kernel_is_exact(DGNConv(6, 8, 2), torch.randn(10, 6), edge_index, None, monkeypatch)


@pytest.mark.parametrize('nodes', [0, 1, 5])
def test_graphs_without_edges(nodes, monkeypatch):
    none = torch.empty(2, 0, dtype=torch.int64)
    conv = DGNConv(6, 8, 2, edge_dim=3)
    assert_kernel_is_exact(conv, torch.randn(nodes, 6), none, torch.empty(0, 3), monkeypatch)


def test_strided_input(monkeypatch):
    graph = random_snapshot(40, 200, 12, 4)
    edge_index = graph.edge_index.t().contiguous().t()
    assert not edge_index.is_contiguous()
    conv = DGNConv(6, 8, 2, edge_dim=2)
    assert_kernel_is_exact(conv, graph.x[:, ::2], edge_index, graph.edge_attr[:, 1:3], monkeypatch)


@pytest.mark.parametrize(('gradients', 'least'), [(False, kernels.MIN_EDGES // 4), (True, kernels.MIN_EDGES)])
def test_the_kernel_serves_from_min_edges_on(gradients, least):
    x, edges = torch.randn(400, 3, 2, 4), random_snapshot(400, least, 1).edge_index
    with torch.set_grad_enabled(gradients):
        assert kernels.can_use_kernel(x, edges)
        assert not kernels.can_use_kernel(x, edges[:, 1:])
        assert not kernels.can_use_kernel(x.double(), edges)
        assert not kernels.can_use_kernel(x.to('meta'), edges)


def test_large_batches_agree_without_any_patch():
    graph = random_snapshot(500, 3 * kernels.MIN_EDGES, 6, 2)
    conv = DGNConv(6, 16, 4, edge_dim=2)
    ours = conv(graph.x, graph.edge_index, graph.edge_attr)
    exact = conv.double()(graph.x.double(), graph.edge_index, graph.edge_attr.double())
    assert_close(ours.double(), exact, rtol=1e-4, atol=1e-5)


def test_same_input_same_bits(monkeypatch):
    monkeypatch.setattr(kernels, 'MIN_EDGES', 0)
    graph, conv = random_snapshot(60, 300, 6, 2), DGNConv(6, 16, 4, edge_dim=2)
    args = conv, graph.x, graph.edge_index, graph.edge_attr
    for one, other in zip(outcome(*args), outcome(*args), strict=True):
        assert torch.equal(one, other)


def test_inputs_are_left_alone_and_a_graph_may_be_differentiated_twice_over(monkeypatch):
    monkeypatch.setattr(kernels, 'MIN_EDGES', 0)
    graph, conv = random_snapshot(60, 300, 6), DGNConv(6, 16, 4)
    x = graph.x.clone().requires_grad_()
    out = conv(x, graph.edge_index).square().sum()
    first = torch.autograd.grad(out, x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(out, x)[0], first)
    assert torch.equal(x, graph.x)


@pytest.mark.parametrize('change', [lambda e: e.add_(10**9), lambda e: e.copy_(e.flip(0))])
def test_edges_changed_before_the_backward_are_refused(change):
    graph = random_snapshot(60, 300, 6)
    edge_index = graph.edge_index.repeat(1, 4)  # long enough for the kernel
    assert edge_index.size(1) >= kernels.MIN_EDGES
    out = DGNConv(6, 16, 4)(graph.x.clone().requires_grad_(), edge_index)
    change(edge_index)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        out.sum().backward()


def test_a_subclass_with_messages_of_its_own_is_asked_for_them(monkeypatch):
    class Half(DGNConv):
        def message(self, v_j, alpha):
            return 0.5 * super().message(v_j, alpha)

    class Same(DGNConv):
        pass

    graph = random_snapshot(60, 300, 6)
    conv, same = Half(6, 16, 4), Same(6, 16, 4)
    plain = conv(graph.x, graph.edge_index)
    monkeypatch.setattr(kernels, 'MIN_EDGES', 0)
    assert_close(conv(graph.x, graph.edge_index), plain, rtol=0, atol=0)
    assert not same._needs_messages()
    same.aggr_module = MaxAggregation()
    assert same._needs_messages()


def test_a_second_derivative_is_refused_not_wrong(monkeypatch):
    monkeypatch.setattr(kernels, 'MIN_EDGES', 0)
    graph, conv = random_snapshot(60, 300, 6), DGNConv(6, 16, 4)
    x = graph.x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(conv(x, graph.edge_index).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        grad.sum().backward()
    monkeypatch.setattr(kernels, 'MIN_EDGES', sys.maxsize)
    (grad,) = torch.autograd.grad(conv(x, graph.edge_index).square().sum(), x, create_graph=True)
    grad.sum().backward()
    assert x.grad.isfinite().all()


def test_the_default_dtype_does_not_matter(monkeypatch):
    graph, conv = random_snapshot(60, 300, 6), DGNConv(6, 16, 4)
    monkeypatch.setattr(kernels, 'MIN_EDGES', 0)
    expected = conv(graph.x, graph.edge_index)
    torch.set_default_dtype(torch.float64)
    try:
        out = conv(graph.x, graph.edge_index)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(out, expected)


def test_torch_func_gets_plain_pytorch(monkeypatch):
    graph, conv = random_snapshot(60, 300, 6), DGNConv(6, 16, 4)
    results = []
    for least in (0, sys.maxsize):
        monkeypatch.setattr(kernels, 'MIN_EDGES', least)
        loss = lambda x: conv(x, graph.edge_index).square().sum()
        many = torch.func.vmap(lambda x: conv(x, graph.edge_index))(torch.stack([graph.x, -graph.x]))
        results.append([torch.func.grad(loss)(graph.x), many, torch.func.jvp(loss, (graph.x,), (graph.x,))[1]])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
