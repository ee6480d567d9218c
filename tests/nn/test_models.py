"""DGN, DGNTrunk, SharingPolicy: LToS without sharing is DGN to the bit; the gradient through w is the true one."""

import copy
import math
import sys

import pytest
import torch
from torch.testing import assert_close

from ltos_pyg.nn import DGN, DGNTrunk, Sharing, SharingPolicy, check_sharing, constant_sharing, keep_all, kernels
from ltos_pyg.nn.models import sharing_features
from ltos_pyg.testing import random_snapshot

SIZE = {'hidden_channels': 16, 'heads': 4, 'encoder_channels': (12,)}


def dgn_and_ltos(edge_dim=None):
    dgn, ltos = DGN(5, 3, edge_dim=edge_dim, **SIZE), DGN(5, 3, edge_dim=edge_dim, sharing=True, **SIZE)
    ltos.load_state_dict({n: p for n, p in dgn.state_dict().items() if 'lin_edge' not in n}, strict=False)
    for mine, theirs in zip(ltos.trunk.convs, dgn.trunk.convs, strict=True):
        if edge_dim is not None:  # the first two edge features of LToS are those of the weight
            mine.lin_edge_key.weight.data[:, 2:] = theirs.lin_edge_key.weight.data
            mine.lin_edge_value.weight.data[:, 2:] = theirs.lin_edge_value.weight.data
    return dgn, ltos


@pytest.mark.parametrize('size', [(0, 0), (1, 0), (4, 0), (9, 20), (60, 400)])
def test_keeping_all_makes_ltos_dgn_to_the_bit(size, path):
    graph = random_snapshot(*size, 5)
    dgn, ltos = dgn_and_ltos()
    q = ltos(graph.x, graph.edge_index, None, keep_all(graph.edge_index, size[0]))
    assert torch.equal(q, dgn(graph.x, graph.edge_index))


def test_keeping_all_makes_ltos_dgn_with_edge_features(path):
    graph = random_snapshot(60, 400, 5, edge_dim=2)
    dgn, ltos = dgn_and_ltos(edge_dim=2)
    q = ltos(graph.x, graph.edge_index, graph.edge_attr, keep_all(graph.edge_index, 60))
    assert_close(q, dgn(graph.x, graph.edge_index, graph.edge_attr))


def test_learning_while_keeping_all_is_learning_dgn_to_the_bit(path):
    graph, target = random_snapshot(60, 400, 5), torch.randn(60, 3)
    dgn, ltos = dgn_and_ltos()
    for net, more in ((dgn, ()), (ltos, (None, keep_all(graph.edge_index, 60)))):
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            (net(graph.x, graph.edge_index, *more) - target).square().mean().backward()
            optimizer.step()
    assert all(torch.equal(p, ltos.get_parameter(name)) for name, p in dgn.named_parameters())


@pytest.mark.parametrize('sharing', [True, False])
@pytest.mark.parametrize('size', [(0, 0), (4, 0), (9, 20)])
def test_copies_with_weights_of_their_own_are_a_batch_of_them(size, sharing):
    graph, trunk = random_snapshot(*size, 5, 2), DGNTrunk(5, 16, heads=2, edge_dim=2, sharing=sharing)
    weights = [constant_sharing(graph.edge_index, size[0], own) if sharing else None for own in (None, 0.1, 0.9)]
    alone = torch.cat([trunk(graph.x, graph.edge_index, graph.edge_attr, w) for w in weights])
    edges = torch.cat([graph.edge_index + k * size[0] for k in range(3)], dim=1)
    of_all = Sharing(*(torch.cat(parts) for parts in zip(*weights, strict=True))) if sharing else None
    assert_close(trunk(graph.x, edges, graph.edge_attr.repeat(3, 1), of_all, copies=3), alone)


def test_features_of_the_weights_by_hand():
    edges = torch.tensor([[0, 0, 1], [1, 2, 0]])
    sharing = Sharing(torch.tensor([0.18, 0.02, 1.0]), torch.tensor([0.8, 0.0, 1.0]))  # 2 has no out-edges
    of_node, of_edge = sharing_features(edges, sharing)
    expected = [
        [-0.2, math.log(0.82 / 1.02), 1.0, math.log(51) / 4],
        [-1.0, math.log(0.02 / 1.02), 0.18, math.log(10) / 4],
        [0.0, 0.0, 0.02, math.log(2) / 4],
    ]
    assert_close(of_node, torch.tensor(expected))
    assert_close(of_edge, torch.tensor([[0.18, math.log(10) / 4], [0.02, math.log(2) / 4], [1.0, math.log(51) / 4]]))


@pytest.mark.parametrize('size', [(0, 0), (4, 0), (9, 20)])
def test_features_of_the_weights_are_zero_where_all_keep_all(size):
    graph = random_snapshot(*size, 5)
    of_node, of_edge = sharing_features(graph.edge_index, keep_all(graph.edge_index, size[0]))
    assert torch.equal(of_node, torch.zeros(size[0], 4))
    assert torch.equal(of_edge, torch.zeros(size[1], 2))


@pytest.mark.parametrize('again', [False, True])
def test_features_of_the_weights_start_on_the_scale_of_a_wide_observation(again):
    """Every column of the first layer is drawn alike, up to 1 / sqrt(96 + 4)."""
    trunk = DGNTrunk(96, 16, encoder_channels=(512,), heads=2, sharing=True)
    if again:
        trunk.reset_parameters()
    largest = trunk.lin_sharing.weight.abs().max().item()
    assert largest == pytest.approx(0.1, rel=0.02)
    assert largest == pytest.approx(trunk.encoder.lins[0].weight.abs().max().item(), rel=0.05)


def test_without_edges_a_node_depends_on_its_own_observation_alone(path):
    none = torch.empty(2, 0, dtype=torch.int64)
    net, x = DGN(5, 3, **SIZE), torch.randn(4, 5)
    q = net(x, none)
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, none), x).abs().sum((1, 3))
    assert torch.equal(jacobian > 0, torch.eye(4, dtype=torch.bool))
    assert_close(net(x[2:3], none), q[2:3])


@pytest.mark.parametrize('layers', [0, 1, 2, 3])
def test_a_node_sees_as_many_hops_as_there_are_layers(layers, path):
    chain = torch.stack([torch.arange(5), torch.arange(1, 6)])  # 0 -> 1 -> ... -> 5
    net, x = DGN(5, 3, num_layers=layers, **SIZE), torch.randn(6, 5, requires_grad=True)
    net(x, chain)[5].sum().backward()
    assert x.grad.any(-1).nonzero().flatten().tolist() == list(range(5 - layers, 6))


def test_without_layers_a_node_depends_on_its_own_weights_only():
    graph, trunk = random_snapshot(9, 20, 5), DGNTrunk(5, num_layers=0, sharing=True, **SIZE)
    given, kept = (t.requires_grad_() for t in constant_sharing(graph.edge_index, 9))
    trunk(graph.x, graph.edge_index, None, Sharing(given, kept))[4].sum().backward()
    assert kept.grad.nonzero().flatten().tolist() == [4]
    assert torch.equal(given.grad != 0, graph.edge_index[1] == 4)


def value(net, graph, sharing):
    """The paper's objective of the high level: the sum of max_a Q(o, a; w)."""
    return net(graph.x.to(sharing.kept.dtype), graph.edge_index, None, sharing).amax(-1).sum()


def test_the_gradient_by_the_weights_is_that_of_finite_differences():
    graph, (_, net) = random_snapshot(9, 20, 5), dgn_and_ltos()
    net = net.double()
    given, kept = (t.double().requires_grad_() for t in constant_sharing(graph.edge_index, 9))
    grads = torch.autograd.grad(value(net, graph, Sharing(given, kept)), (given, kept))
    for leaf, grad in zip((given, kept), grads, strict=True):
        assert grad.abs().max() > 1e-4
        for k in range(leaf.numel()):
            step = torch.zeros_like(leaf)
            step[k] = 1e-6
            moved = [Sharing(*(t + s * step if t is leaf else t for t in (given, kept))) for s in (1, -1)]
            slope = (value(net, graph, moved[0]) - value(net, graph, moved[1])) / 2e-6
            assert_close(slope.item(), grad[k].item(), rtol=1e-5, atol=1e-7)


def test_the_gradient_by_the_weights_is_the_same_from_the_kernel(monkeypatch):
    graph, (_, net) = random_snapshot(60, 400, 5), dgn_and_ltos()
    grads = []
    for least, dtype in ((0, torch.float32), (sys.maxsize, torch.float64)):
        monkeypatch.setattr(kernels, 'MIN_EDGES', least)
        sharing = Sharing(*(t.to(dtype).requires_grad_() for t in constant_sharing(graph.edge_index, 60)))
        net = net.to(dtype)
        grads.append(torch.autograd.grad(value(net, graph, sharing), sharing))
    for one, other in zip(*grads, strict=True):
        assert_close(one.double(), other, rtol=1e-3, atol=1e-5 * float(other.abs().max()))


def test_q_depends_on_the_weights_of_other_nodes_too():
    """Q_i depends on what the neighbours give to each other, one hop away: w of their in-edges."""
    chain = torch.tensor([[0, 1], [1, 2]])
    _, net = dgn_and_ltos()
    given = torch.tensor([0.5, 0.5], requires_grad=True)
    net(torch.randn(3, 5), chain, None, Sharing(given, torch.ones(3)))[2].sum().backward()
    assert given.grad.all()


@pytest.mark.parametrize('edge_dim', [None, 2])
def test_the_policy_starts_at_the_initial_share_and_stays_on_the_simplex(edge_dim, path):
    graph = random_snapshot(9, 20, 5, edge_dim)
    attr = graph.get('edge_attr')
    policy = SharingPolicy(5, initial_kept=0.3, edge_dim=edge_dim)
    assert_close(policy(graph.x, graph.edge_index, attr), constant_sharing(graph.edge_index, 9, 0.3))
    for lin in (policy.head.edge_logit, policy.head.self_logit):
        torch.nn.init.normal_(lin.weight)
    sharing = policy(graph.x, graph.edge_index, attr)
    check_sharing(sharing, graph.edge_index, 9)
    assert sharing.kept.std() > 0.01


def test_trunk_lays_encoder_and_layers_side_by_side(path):
    graph, trunk = random_snapshot(9, 20, 5), DGNTrunk(5, num_layers=2, **SIZE)
    h0 = trunk.encoder(graph.x)
    h1 = trunk.convs[0](h0, graph.edge_index)
    h2 = trunk.convs[1](h1, graph.edge_index)
    assert trunk.out_channels == 48
    assert torch.equal(trunk(graph.x, graph.edge_index), torch.cat([h0, h1, h2], dim=-1))


def test_a_frozen_copy_passes_no_gradient_to_its_weights_but_to_w():
    graph, (_, net) = random_snapshot(9, 20, 5), dgn_and_ltos()
    frozen = copy.deepcopy(net).requires_grad_(False)
    policy = SharingPolicy(5, hidden_channels=8)
    (-value(frozen, graph, policy(graph.x, graph.edge_index))).backward()
    assert all(p.grad is None for p in frozen.parameters())
    assert policy.head.self_logit.weight.grad.any()
