"""Networks of each agent's own equal the same networks one by one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ltos_pyg.data import Snapshot
from ltos_pyg.nn import AgentLayout, AgentLinear, AgentLSTMCell, AgentMLP, gather_slots


def batch(*graphs: Snapshot):
    from torch_geometric.data import Batch

    return Batch.from_data_list(list(graphs))


STAR = torch.tensor([[1, 2, 3, 0], [0, 0, 0, 2]])  # 0 receives from 1, 2 and 3; 2 from 0


def star(ids: list[int]) -> Snapshot:
    return Snapshot(x=torch.tensor([[10.0 + i] for i in ids]), edge_index=STAR, node_id=torch.tensor(ids))


def test_a_layout_is_a_table_of_agents_and_graphs():
    graph = batch(
        star([0, 1, 2, 3]), Snapshot(x=torch.tensor([[5.0]]), edge_index=STAR[:, :0], node_id=torch.tensor([2]))
    )
    layout = AgentLayout.of(graph, 5)
    dense = layout.to_dense(graph.x)
    assert dense[..., 0].tolist() == [[10, 0], [11, 0], [12, 5], [13, 0], [0, 0]]
    assert layout.present().tolist() == [[True, False], [True, False], [True, True], [True, False], [False, False]]
    assert torch.equal(layout.from_dense(dense), graph.x)
    by_place = AgentLayout.of(graph, 5, by_place=True)
    assert by_place.to_dense(graph.x)[0, :, 0].tolist() == [10, 5]


def test_slots_hold_neighbours_in_the_order_of_their_numbers():
    layout = AgentLayout.of(batch(star([3, 2, 0, 1])), 4)  # agent 3 receives from 2, 0 and 1; agent 0 from 3
    rows, dropped_edges = layout.neighbour_rows(STAR, 2)
    assert rows.tolist() == [[3, 4], [4, 4], [4, 4], [0, 1]]  # 4: empty slot
    assert dropped_edges == 1
    gathered = gather_slots(layout.to_dense(torch.tensor([[13.0], [12.0], [10.0], [11.0]])), rows)
    assert gathered[:, 0].tolist() == [[13, 0], [0, 0], [0, 0], [10, 11]]
    assert layout.neighbour_rows(STAR, 3)[0][3].tolist() == [0, 1, 2]
    assert layout.neighbour_rows(STAR[:, :0], 2)[0].eq(4).all()
    assert layout.neighbour_rows(STAR, 0)[0].shape == (4, 0)


@pytest.mark.parametrize('ids', [[0, 1, 2, 4], [-1, 0, 1, 2]])
def test_an_agent_beyond_the_table_is_refused(ids):
    with pytest.raises(ValueError, match=rf"'node_id' must lie in \[0, 4\), .* \(got {min(ids)}\.\.{max(ids)}\)"):
        AgentLayout.of(batch(star(ids)), 4)


def test_without_node_id_agents_are_known_by_place_alone():
    graph = batch(Snapshot(x=torch.zeros(2, 1), edge_index=STAR[:, :0]))
    assert AgentLayout.of(graph, 2, by_place=True).place.tolist() == [0, 1]
    with pytest.raises(ValueError, match="graphs need 'node_id'"):
        AgentLayout.of(graph, 2)


@pytest.mark.parametrize('bias', [True, False])
def test_agent_linear_is_a_linear_of_each_agent(bias):
    layer, x = AgentLinear(3, 4, 5, bias=bias), torch.randn(3, 7, 4)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    for i in range(3):
        lin = nn.Linear(4, 5, bias=bias)
        lin.weight.data = layer.weight.data[i].t()
        if layer.bias is not None:
            lin.bias.data = layer.bias.data[i, 0]
        assert_close(layer(x)[i], lin(x[i]))


def test_initial_weights_are_orthogonal_for_each_agent_and_differ():
    weight = AgentLinear(2, 3, 6, gain=2.0).weight
    for w in weight:
        assert_close(w @ w.t(), 4.0 * torch.eye(3))
    assert not torch.allclose(weight[0], weight[1])


def test_agent_lstm_is_an_lstm_of_each_agent():
    cell, x = AgentLSTMCell(3, 4, 5), torch.randn(3, 2, 4)
    h, c = torch.randn(3, 2, 5), torch.randn(3, 2, 5)
    for i in range(3):
        single = nn.LSTMCell(4, 5)
        single.weight_ih.data, single.weight_hh.data = (lin.weight.data[i].t() for lin in (cell.input, cell.hidden))
        single.bias_ih.data, single.bias_hh.data = cell.input.bias.data[i, 0], torch.zeros(20)
        assert_close(tuple(part[i] for part in cell(x, (h, c))), single(x[i], (h[i], c[i])))


def test_agent_mlp_is_its_layers_with_relu_between_and_no_slot_is_no_input():
    mlp, x = AgentMLP(2, [3, 4, 5], bias=False), torch.randn(2, 6, 3)
    assert_close(mlp(x), torch.bmm((mlp.lins[0](x)).relu(), mlp.lins[1].weight))
    assert mlp.lins[1].bias is None
    assert AgentMLP(2, [3, 0])(x).shape == (2, 6, 0)
    assert_close(AgentLinear(2, 0, 4)(x[..., :0]), torch.zeros(2, 6, 4))


@pytest.mark.parametrize('module', [AgentMLP(2, [3, 4, 5]), AgentLSTMCell(2, 3, 4)], ids=['MLP', 'LSTM'])
def test_reset_parameters_draws_every_weight_anew(module):
    for parameter in module.parameters():
        torch.nn.init.constant_(parameter, 7.0)
    module.reset_parameters()
    assert not any((p == 7).any() for p in module.parameters())
