"""DGNConv: by hand, against its formula written as loops, and against dense attention."""

import math

import pytest
import torch
from torch.testing import assert_close
from torch_geometric.explain import AttentionExplainer, Explainer, GNNExplainer
from torch_geometric.nn import Linear, to_hetero

from ltos_pyg.nn import DGN, DGNConv
from ltos_pyg.testing import random_snapshot

PATH = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])


def ones(conv: DGNConv) -> DGNConv:
    for name, parameter in conv.named_parameters():
        torch.nn.init.constant_(parameter, 0.0 if name.endswith('bias') else 1.0)
    return conv


def test_path_by_hand(path):
    out = ones(DGNConv(1, 1, heads=1))(torch.tensor([[1.0], [2.0], [3.0]]), PATH)
    assert_close(out, torch.tensor([[1.7311], [2.8509], [2.9526]]), rtol=0, atol=5e-5)
    one, two, three = (math.exp(2 * j) for j in (1, 2, 3))  # node 1 attends to 0, 1, 2
    expected = (one + 2 * two + 3 * three) / (one + two + three)
    assert_close(out[1].item(), expected, rtol=1e-6, atol=0)


def test_edge_features_by_hand(path):
    conv = ones(DGNConv(1, 1, heads=1, edge_dim=1))
    torch.nn.init.constant_(conv.lin_edge_key.weight, 0.5)
    torch.nn.init.constant_(conv.lin_edge_value.weight, 2.0)
    out = conv(torch.tensor([[1.0], [2.0]]), torch.tensor([[0], [1]]), torch.tensor([[1.0]]))
    part = math.exp(2 * 1.5) / (math.exp(2 * 1.5) + math.exp(2 * 2))  # what node 1 listens to node 0
    assert_close(out, torch.tensor([[1.0], [part * (1 + 2) + (1 - part) * 2]]))


def as_loops(conv: DGNConv, x, edge_index, edge_attr=None):
    """The formula of the docstring, word for word."""
    H, C = conv.heads, conv.out_channels // conv.heads
    q, k, v = conv.lin_qkv(x).relu().view(-1, 3, H, C).unbind(1)
    rows = []
    for i in range(x.size(0)):
        keys, values = [k[i]], [v[i]]
        for e in (edge_index[1] == i).nonzero().flatten().tolist():
            j = edge_index[0, e]
            with_edge = edge_attr is not None
            keys.append(k[j] + (conv.lin_edge_key(edge_attr[e]).view(H, C) if with_edge else 0))
            values.append(v[j] + (conv.lin_edge_value(edge_attr[e]).view(H, C) if with_edge else 0))
        alpha = torch.stack([(q[i] * key).sum(-1) / math.sqrt(C) for key in keys]).softmax(0)
        rows.append(sum(a.unsqueeze(-1) * value for a, value in zip(alpha, values, strict=True)).flatten())
    return conv.lin_out(torch.stack(rows)).relu()


@pytest.mark.parametrize('edge_dim', [None, 1, 3])
@pytest.mark.parametrize('heads', [1, 4])
def test_agrees_with_its_formula_as_loops(path, heads, edge_dim):
    graph = random_snapshot(7, 18, 5, edge_dim)
    conv = DGNConv(5, 8, heads, edge_dim)
    args = (graph.x, graph.edge_index) if edge_dim is None else (graph.x, graph.edge_index, graph.edge_attr)
    assert_close(conv(*args), as_loops(conv, *args))


def test_agrees_with_dense_masked_attention(path):
    graph, conv = random_snapshot(12, 50, 5), DGNConv(5, 16, heads=4)
    q, k, v = conv.lin_qkv(graph.x).relu().view(12, 3, 4, 4).permute(1, 2, 0, 3)
    mask = torch.eye(12, dtype=torch.bool)
    mask[graph.edge_index[1], graph.edge_index[0]] = True
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    expected = conv.lin_out(dense.transpose(0, 1).reshape(12, 16)).relu()
    assert_close(conv(graph.x, graph.edge_index), expected)


def test_edges_of_zero_features_count_as_edges_without(path):
    graph, plain, rich = random_snapshot(9, 20, 5), DGNConv(5, 8, 2), DGNConv(5, 8, 2, edge_dim=3)
    rich.load_state_dict(plain.state_dict(), strict=False)
    out = rich(graph.x, graph.edge_index, torch.zeros(20, 3))
    assert torch.equal(out, plain(graph.x, graph.edge_index))


def test_a_node_depends_on_itself_and_its_senders_only(path):
    graph, conv = random_snapshot(9, 20, 5), DGNConv(5, 8, 2)
    x = graph.x.requires_grad_()
    conv(x, graph.edge_index)[4].sum().backward()
    senders = {4, *graph.edge_index[0, graph.edge_index[1] == 4].tolist()}
    assert set(x.grad.any(-1).nonzero().flatten().tolist()) == senders


def test_two_edges_between_two_nodes_count_twice(path):
    conv, x = DGNConv(5, 8, 2), torch.randn(2, 5)
    twice = torch.tensor([[0, 0], [1, 1]])
    assert_close(conv(x, twice), as_loops(conv, x, twice))


@pytest.mark.parametrize('bias', [True, False])
def test_bias_is_optional(bias):
    conv = DGNConv(5, 8, 2, edge_dim=2, bias=bias)
    assert {name for name, _ in conv.named_parameters() if name.endswith('bias')} == (
        {'lin_qkv.bias', 'lin_out.bias'} if bias else set()
    )


def test_message_hooks_see_the_messages_on_either_path(path):
    graph, conv = random_snapshot(9, 20, 5), DGNConv(5, 8, 2)
    expected, seen = conv(graph.x, graph.edge_index), []
    handle = conv.register_message_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    assert_close(conv(graph.x, graph.edge_index), expected)
    assert seen == [(20, 2, 4)]
    handle.remove()
    assert_close(conv(graph.x, graph.edge_index), expected, rtol=0, atol=0)
    assert len(seen) == 1


def test_attention_is_that_of_the_messages(path):
    graph, conv = random_snapshot(9, 20, 5, 2), DGNConv(5, 8, 2, edge_dim=2)
    of_edges, of_nodes = conv.attention(graph.x, graph.edge_index, graph.edge_attr)
    assert_close(of_nodes.index_add(0, graph.edge_index[1], of_edges), torch.ones(9, 2))
    _, _, v = conv.lin_qkv(graph.x).view(9, 3, 2, 4).relu().unbind(1)
    v_edge = v[graph.edge_index[0]] + conv.lin_edge_value(graph.edge_attr).view(20, 2, 4)
    summed = (of_nodes.unsqueeze(-1) * v).index_add(0, graph.edge_index[1], of_edges.unsqueeze(-1) * v_edge)
    assert_close(conv.lin_out(summed.flatten(1)).relu(), conv(graph.x, graph.edge_index, graph.edge_attr))


def test_hooks_of_its_linear_layers_may_watch_gradients(path):
    graph, net, seen = random_snapshot(9, 20, 5), DGN(5, 3, hidden_channels=8, heads=2, num_layers=1), []
    for module in net.modules():
        if isinstance(module, Linear):
            module.register_full_backward_hook(lambda module, inputs, outputs: seen.append(module))
    net(graph.x.clone().requires_grad_(), graph.edge_index).sum().backward()
    assert len(seen) == sum(isinstance(module, Linear) for module in net.modules())


def test_an_explainer_works_on_either_path(path):
    graph, net = random_snapshot(6, 14, 5), DGN(5, 3, hidden_channels=8, heads=2, num_layers=1)
    explainer = Explainer(
        net,
        GNNExplainer(epochs=3),
        explanation_type='model',
        edge_mask_type='object',
        model_config={'mode': 'regression', 'task_level': 'node', 'return_type': 'raw'},
    )
    assert explainer(graph.x, graph.edge_index).edge_mask.shape == (14,)
    assert not net.trunk.convs[0].explain  # and it is left as it was


def test_an_explainer_reads_its_attention(path):
    graph, net = random_snapshot(6, 14, 5), DGN(5, 3, hidden_channels=8, heads=2, num_layers=1)
    explainer = Explainer(
        net,
        AttentionExplainer(),
        explanation_type='model',
        edge_mask_type='object',
        model_config={'mode': 'regression', 'task_level': 'node', 'return_type': 'raw'},
    )
    attention, _ = net.trunk.convs[0].attention(net.trunk.encoder(graph.x), graph.edge_index)
    assert_close(explainer(graph.x, graph.edge_index).edge_mask, attention.max(-1).values)


def test_nan_spreads_to_the_receivers_and_no_further(path):
    graph, conv = random_snapshot(9, 20, 5), DGNConv(5, 8, 2)
    graph.x[3, 0] = math.nan
    bad = {3, *graph.edge_index[1, graph.edge_index[0] == 3].tolist()}
    out = conv(graph.x, graph.edge_index)
    assert set(out.isnan().any(-1).nonzero().flatten().tolist()) == bad
    assert out[sorted(set(range(9)) - bad)].isfinite().all()


def test_large_features_do_not_overflow_the_softmax(path):
    graph, conv = random_snapshot(9, 20, 5), DGNConv(5, 8, 2)
    out = conv(1e6 * graph.x, graph.edge_index)
    assert out.isfinite().all()
    assert_close(out, as_loops(conv, 1e6 * graph.x, graph.edge_index))


def test_goes_through_to_hetero(path):
    graph = random_snapshot(6, 14, 5)
    conv = DGNConv(5, 8, 2)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv

        def forward(self, x, edge_index):
            return self.conv(x, edge_index)

    net = to_hetero(Net(), (['agent'], [('agent', 'to', 'agent')]))
    for copied, parameter in zip(net.parameters(), conv.parameters(), strict=True):
        copied.data.copy_(parameter)
    out = net({'agent': graph.x}, {('agent', 'to', 'agent'): graph.edge_index})['agent']
    assert_close(out, conv(graph.x, graph.edge_index))


def test_repr():
    assert repr(DGNConv(5, 8, 2)) == 'DGNConv(5, 8, heads=2)'
