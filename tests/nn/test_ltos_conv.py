"""LToSConv: weights on each sender's simplex, value moved and never made, at home in PyG models."""

import math

import pytest
import torch
from nn_zoo import SIZES
from torch.testing import assert_close
from torch_geometric.data import Data
from torch_geometric.explain import AttentionExplainer, Explainer, GNNExplainer
from torch_geometric.nn import GCNConv, Sequential, to_hetero
from torch_geometric.utils import k_hop_subgraph

from ltos_pyg.nn import LToSConv, Sharing, check_sharing, constant_sharing, keep_all, share_value
from ltos_pyg.testing import random_snapshot

VARIANTS = [(1, None), (3, None), (1, 2), (3, 2)]


def conv_and_args(heads, edge_dim, size=(9, 20), **kwargs):
    graph = random_snapshot(*size, 5, edge_dim)
    args = (graph.x, graph.edge_index) if edge_dim is None else (graph.x, graph.edge_index, graph.edge_attr)
    return LToSConv(5, 6, heads, edge_dim, **kwargs), args


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize(('heads', 'edge_dim'), VARIANTS)
def test_weights_lie_on_the_simplex_of_each_sender(heads, edge_dim, size):
    conv, args = conv_and_args(heads, edge_dim, size)
    sharing = conv.share(*args)
    tail = () if heads == 1 else (heads,)
    assert sharing.given.shape == (size[1], *tail)
    assert sharing.kept.shape == (size[0], *tail)
    check_sharing(sharing, args[1], size[0], atol=1e-6)
    alone = torch.ones(size[0]).index_fill(0, args[1][0], 0).bool()
    assert (sharing.kept[alone] == 1).all()


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize(('heads', 'edge_dim'), VARIANTS)
def test_value_is_conserved(heads, edge_dim, size):
    conv, args = conv_and_args(heads, edge_dim, size)
    torch.nn.init.normal_(conv.bias)
    out = conv(*args)
    assert_close(out.sum(0), conv.lin(args[0]).sum(0) + size[0] * conv.bias)
    bare = LToSConv(5, 6, heads, edge_dim, bias=False)
    assert bare.bias is None
    assert_close(bare(*args).sum(0), bare.lin(args[0]).sum(0))


@pytest.mark.parametrize(('heads', 'edge_dim'), VARIANTS)
def test_agrees_with_its_formula_as_loops(heads, edge_dim):
    conv, (x, edge_index, *attr) = conv_and_args(heads, edge_dim, negative_slope=0.3)
    C = 6 // heads
    v = conv.lin(x).view(-1, heads, C)
    leaky = lambda z: torch.where(z > 0, z, 0.3 * z)
    out = torch.zeros(9, heads, C)
    for j in range(9):
        edges = (edge_index[0] == j).nonzero().flatten().tolist()
        logits = [leaky((conv.att_own[0] * v[j]).sum(-1))]
        for e in edges:
            pair = (conv.att_sender[0] * v[j]).sum(-1) + (conv.att_receiver[0] * v[edge_index[1, e]]).sum(-1)
            logits.append(leaky(pair + (conv.lin_edge(attr[0][e]) if attr else 0)))
        weight = torch.stack(logits).softmax(0).unsqueeze(-1)
        out[j] += weight[0] * v[j]
        for e, w in zip(edges, weight[1:], strict=True):
            out[edge_index[1, e]] += w * v[j]
    assert_close(conv(x, edge_index, *attr), out.flatten(1) + conv.bias)


def test_two_nodes_by_hand():
    conv = LToSConv(1, 1)
    for parameter, number in zip((conv.lin.weight, conv.att_sender, conv.att_receiver), (1.0, 1.0, 2.0), strict=True):
        torch.nn.init.constant_(parameter, number)
    torch.nn.init.constant_(conv.att_own, -1.0)
    x, edge_index = torch.tensor([[1.0], [2.0]]), torch.tensor([[0], [1]])
    given = math.exp(1 + 2 * 2) / (math.exp(1 + 2 * 2) + math.exp(-0.2))  # the own logit -1 is leaky: -0.2
    assert_close(conv.share(x, edge_index), (torch.tensor([given]), torch.tensor([1 - given, 1.0])))
    assert_close(conv(x, edge_index), torch.tensor([[1 - given], [2 + given]]))


@pytest.mark.parametrize(('heads', 'edge_dim'), VARIANTS)
def test_its_own_weights_given_back_change_nothing(heads, edge_dim):
    conv, args = conv_and_args(heads, edge_dim)
    assert_close(conv(*args[:2], share=conv.share(*args)), conv(*args), rtol=0, atol=0)


@pytest.mark.parametrize('heads', [1, 3])
def test_weights_may_come_from_outside(heads):
    conv, (x, edge_index) = conv_and_args(heads, None)
    value = conv.lin(x)
    assert_close(conv(x, edge_index, share=keep_all(edge_index, 9)), value + conv.bias, rtol=0, atol=0)
    uniform = constant_sharing(edge_index, 9)
    assert_close(conv(x, edge_index, share=uniform), share_value(value, edge_index, uniform) + conv.bias)


def test_heads_share_apart():
    conv, args = conv_and_args(3, None)
    given, _ = conv.share(*args)
    assert not torch.allclose(given[:, 0], given[:, 1])


def test_runs_inside_a_plain_pyg_model():
    graph = random_snapshot(9, 20, 5, edge_dim=2)
    model = Sequential(
        'x, edge_index, edge_attr',
        [
            (LToSConv(5, 8, heads=2, edge_dim=2), 'x, edge_index, edge_attr -> x'),
            torch.nn.ReLU(inplace=True),
            (GCNConv(8, 8), 'x, edge_index -> x'),
            torch.nn.ReLU(inplace=True),
            (LToSConv(8, 3), 'x, edge_index -> x'),
        ],
    )
    out = model(graph.x, graph.edge_index, graph.edge_attr)
    assert out.shape == (9, 3)
    out.square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


def test_learns_a_task_of_its_own_making():
    """Weights that a hidden layer made are learned from what came out."""
    graph = random_snapshot(40, 160, 5)
    teacher, student = LToSConv(5, 4), LToSConv(5, 4)
    for vector in (teacher.att_sender, teacher.att_receiver, teacher.att_own):
        vector.data *= 4
    target = teacher(graph.x, graph.edge_index).detach()
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    loss = lambda: (student(graph.x, graph.edge_index) - target).square().mean()
    before = loss().item()
    for _ in range(300):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.02 * before
    theirs, ours = teacher.share(graph.x, graph.edge_index), student.share(graph.x, graph.edge_index)
    assert (theirs.kept - ours.kept).abs().mean() < 0.1


def test_goes_through_to_hetero_and_explainers():
    graph = random_snapshot(6, 14, 5)
    net = Sequential('x, edge_index', [(LToSConv(5, 3), 'x, edge_index -> x')])
    explainer = Explainer(
        net,
        GNNExplainer(epochs=3),
        explanation_type='model',
        edge_mask_type='object',
        model_config={'mode': 'regression', 'task_level': 'node', 'return_type': 'raw'},
    )
    assert explainer(graph.x, graph.edge_index).edge_mask.shape == (14,)
    hetero = to_hetero(net, (['agent'], [('agent', 'gives', 'agent')]))
    data = Data(x=graph.x, edge_index=graph.edge_index)
    out = hetero({'agent': data.x}, {('agent', 'gives', 'agent'): data.edge_index})
    assert out['agent'].shape == (6, 3)


def test_an_explainer_reads_its_weights():
    graph, conv = random_snapshot(6, 14, 5), LToSConv(5, 3)
    explainer = Explainer(
        conv,
        AttentionExplainer(),
        explanation_type='model',
        edge_mask_type='object',
        model_config={'mode': 'regression', 'task_level': 'node', 'return_type': 'raw'},
    )
    assert_close(explainer(graph.x, graph.edge_index).edge_mask, conv.share(graph.x, graph.edge_index).given)


def test_stored_weights_are_loaded_and_a_pair_will_do(tmp_path):
    graph, conv = random_snapshot(6, 14, 5), LToSConv(5, 3)
    sharing = conv.share(graph.x, graph.edge_index)
    torch.save(sharing, tmp_path / 'sharing.pt')
    loaded = torch.load(tmp_path / 'sharing.pt')
    assert isinstance(loaded, Sharing)
    expected = conv(graph.x, graph.edge_index)
    assert_close(conv(graph.x, graph.edge_index, share=loaded), expected)
    assert_close(conv(graph.x, graph.edge_index, share=tuple(sharing)), expected)
    with pytest.raises(ValueError, match=r'sharing weights must be Sharing\(given, kept\).* \(got Tensor\)'):
        share_value(graph.x, graph.edge_index, sharing.given)


def test_repr():
    assert repr(LToSConv(5, 6, heads=3)) == 'LToSConv(5, 6, heads=3)'


def test_neighbour_sampling_needs_the_weights_of_the_whole_graph():
    graph, target = random_snapshot(12, 40, 4), 3
    conv = LToSConv(4, 6)
    whole = conv(graph.x, graph.edge_index)[target]
    share = conv.share(graph.x, graph.edge_index)
    node, sub_index, mapping, edge_mask = k_hop_subgraph(target, 1, graph.edge_index, relabel_nodes=True)
    alone = conv(graph.x[node], sub_index)[mapping].squeeze(0)
    assert (alone - whole).abs().max() > 1e-3  # its in-neighbours have lost out-edges
    sampled = Sharing(share.given[edge_mask], share.kept[node])
    assert_close(conv(graph.x[node], sub_index, share=sampled)[mapping].squeeze(0), whole)
