"""Parts of LToS that a user may replace: the high-level policy, its objective, and the layer of messages."""

from __future__ import annotations

import pytest
import torch
from algos_zoo import Loop, jungle
from torch import Tensor, nn
from torch_geometric.nn import GATv2Conv, GCNConv, NNConv, TransformerConv

from ltos_pyg.algos import DGN, DGNConfig, LToS, LToSConfig, LToSEdge
from ltos_pyg.algos.ltos import CRITICS, OBJECTIVES, Objective, ShapedGradient
from ltos_pyg.nn import DGNConv, DGNTrunk, SharingPolicy, constant_sharing
from ltos_pyg.nn.functional import softmax_by_sender

SMALL = {'hidden_channels': 16, 'encoder_channels': (16,), 'heads': 2, 'replay_size': 500, 'batch_size': 4}


def small(**options) -> LToSConfig:
    return LToSConfig(**SMALL | {'learning_starts': 20, 'train_freq': 4, 'phi_starts': 0.0} | options)


class MyPolicy(nn.Module):
    """Keeps what one number says, and shares evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.keep = nn.Parameter(torch.zeros(()))

    def logits(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.new_zeros(edge_index.size(1)) + 0 * self.keep, self.keep.expand(x.size(0))


@pytest.mark.parametrize('algorithm', [LToS, LToSEdge])
@pytest.mark.parametrize('objective', ['search', 'gradient'])
def test_a_policy_of_ones_own_is_trained_and_saved(algorithm, objective):
    env, policy = jungle(), MyPolicy()
    algo = algorithm(env.spec, small(objective=objective, phi_every=1), policy=policy)
    graph = env.reset(0)
    first = 0.4 if objective == 'search' else None
    torch.testing.assert_close(algo.act(graph).sharing, constant_sharing(graph.edge_index, graph.num_nodes, first))
    Loop(algo, env).until(30)
    assert policy.keep.item() != 0
    restored = algorithm(env.spec, small(objective=objective, phi_every=1), policy=MyPolicy())
    restored.load_state_dict(algo.state_dict())
    assert restored.phi.keep.item() == policy.keep.item()


@pytest.mark.parametrize('algorithm', [LToS, LToSEdge])
@pytest.mark.parametrize('conv', [GATv2Conv, TransformerConv, 'GATv2Conv', 'torch_geometric.nn:GATv2Conv'])
def test_the_layer_of_messages_may_be_any_that_takes_edge_features(algorithm, conv):
    env = jungle()
    algo = algorithm(env.spec, small(), conv=conv)
    before = [p.clone() for p in algo.network.trunk.convs[0].parameters()]
    assert not any(isinstance(m, DGNConv) for m in algo.network.modules())
    Loop(algo, env).until(6)
    assert any((old != new).any() for old, new in zip(before, algo.network.trunk.convs[0].parameters(), strict=True))


def test_the_configuration_names_the_layer_too():
    env = jungle()
    algo = DGN(env.spec, DGNConfig(**SMALL, conv='GATv2Conv'))
    assert any(isinstance(m, GATv2Conv) for m in algo.network.modules())


def test_a_layer_sees_the_weights_that_edges_carry():
    env = jungle()
    algo = LToS(env.spec, small(), conv=GATv2Conv)
    graph = env.reset(0)
    few, many = (constant_sharing(graph.edge_index, graph.num_nodes, own) for own in (0.1, 0.9))
    with torch.no_grad():
        nn.init.zeros_(algo.network.trunk.lin_sharing.weight)  # so they come in by the edges alone
    assert not torch.equal(algo.q_values(algo.network, graph, few), algo.q_values(algo.network, graph, many))


def nn_conv(in_channels: int, out_channels: int, edge_dim: int) -> NNConv:
    return NNConv(in_channels, out_channels, nn.Linear(edge_dim, in_channels * out_channels))


def test_the_default_layer_is_the_same_by_class_and_by_name():
    for conv in (DGNConv, 'DGNConv'):
        trunk = DGNTrunk(4, 16, heads=2, edge_dim=3, conv=conv)
        assert all(type(layer) is DGNConv for layer in trunk.convs)


def test_layers_without_edge_features_do_where_edges_have_none():
    trunk = DGNTrunk(4, 16, encoder_channels=(), heads=2, conv='GCNConv')
    out = trunk(torch.randn(3, 4), torch.tensor([[0, 1], [1, 2]]))
    assert out.shape == (3, 48)
    assert isinstance(trunk.convs[0].conv, GCNConv)


@pytest.mark.parametrize('conv', ['GeneralConv', 'CGConv', 'TransformerConv', 'ResGatedGraphConv', nn_conv])
def test_edge_features_reach_every_layer_that_takes_them(conv):
    trunk = DGNTrunk(4, 16, encoder_channels=(), heads=2, edge_dim=3, conv=conv)
    x, edge_index, edge_attr = torch.randn(3, 4), torch.tensor([[0, 1], [1, 2]]), torch.randn(2, 3, requires_grad=True)
    trunk(x, edge_index, edge_attr).pow(2).sum().backward()
    assert (edge_attr.grad != 0).any(-1).all()


@pytest.mark.parametrize(
    ('conv', 'message'),
    [
        ('NoConv', "such as 'GATv2Conv'"),
        ('no.such.module:Conv', 'cannot be imported'),
        ('math:Conv', "math has no 'Conv' to call"),
        ('GCNConv', 'must be told how many features an edge has: 3 here'),
        ('NNConv', 'or give a function'),
        ('SplineConv', 'must be built from'),
        ('GINEConv', 'must be built from'),
        (lambda *sizes, heads, concat, edge_dim: None, "'heads' must divide"),
        ('GENConv', r"'conv' must not normalise over the batch: GENConv has a BatchNorm"),
        (lambda *sizes, edge_dim: TransformerConv(*sizes, edge_dim=edge_dim, dropout=0.5), 'must have no dropout'),
    ],
)
def test_a_layer_that_does_not_fit_is_refused(conv, message):
    with pytest.raises(ValueError, match=message):
        DGNTrunk(4, 16, heads=3 if callable(conv) else 2, edge_dim=3, conv=conv)


@pytest.mark.parametrize(
    ('layer', 'message'), [(nn.Dropout(0.5), 'have no dropout'), (nn.BatchNorm1d(2), 'not normalise over the batch')]
)
def test_a_high_level_that_depends_on_chance_or_on_the_batch_is_refused(layer, message):
    policy = MyPolicy()
    policy.layer = layer
    with pytest.raises(ValueError, match=f"'policy' must {message}"):
        LToS(jungle().spec, small(), policy=policy)


@pytest.mark.parametrize('algorithm', [LToS, LToSEdge])
def test_an_objective_of_ones_own_moves_the_high_level_and_is_saved(algorithm):
    class KeepAll(ShapedGradient):
        """Moves phi towards keeping all; counts its steps in a network of its own."""

        def __init__(self, *args) -> None:
            super().__init__(*args)
            self.steps = nn.Linear(1, 1, bias=False).requires_grad_(False)
            self.steps.weight.zero_()

        def step_loss(self, batch, q_values):
            self.steps.weight += 1
            sharing = softmax_by_sender(*batch.logits, batch.seen[1])
            return -sharing.kept.mean(), {'phi/mine': sharing.kept.detach().mean()}

        def modules(self):
            return {'steps': self.steps}

    env = jungle()
    algo = algorithm(env.spec, small(phi_every=1), objective=KeepAll)
    assert isinstance(algo.objective, Objective)
    loop = Loop(algo, env).until(30)
    assert loop.metrics[-1]['phi/mine'] > loop.metrics[0]['phi/mine'] + 0.1
    restored = algorithm(env.spec, small(phi_every=1), objective=KeepAll)
    restored.load_state_dict(algo.state_dict())
    assert restored.objective.steps.weight.item() == 30
    with pytest.raises(ValueError, match=r"'objective' must make an object with the methods of .* \(got Linear\)"):
        algorithm(env.spec, small(), objective=lambda *_: nn.Linear(1, 1))

    class Two(KeepAll):
        def optimizers(self):
            return {name: torch.optim.SGD([torch.zeros(1)]) for name in ('first', 'second')}

    with pytest.raises(ValueError, match=r"'objective' must have one optimizer at most \(got first, second\)"):
        algorithm(env.spec, small(), objective=Two)


def test_the_parts_of_the_package_have_the_interface_of_their_kind():
    env = jungle()
    args = env.spec, small(), torch.device('cpu'), torch.Generator()
    assert all(isinstance(make(*args), Objective) for make in OBJECTIVES.values())
    assert {name: make.pair_values for name, make in CRITICS.items()} == {'node': False, 'edge': True}


def test_a_policy_without_logits_is_refused():
    with pytest.raises(ValueError, match=r"must have a method 'logits.*got Linear"):
        LToS(jungle().spec, small(), policy=nn.Linear(2, 2))


def test_logits_of_another_shape_are_refused():
    class Tall(SharingPolicy):
        def logits(self, *args: Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return tuple(part.unsqueeze(-1) for part in super().logits(*args))

    env = jungle()
    spec = env.spec
    algo = LToS(spec, small(), policy=Tall(spec.num_features, 8, edge_dim=spec.edge_dim))
    with pytest.raises(ValueError, match=r"'policy.logits' must return one logit per edge \(E,\) and per node \(N,\)"):
        algo.act(env.reset(), explore=False)


def test_an_unknown_sharing_mode_is_refused():
    env = jungle()
    algo = LToS(env.spec, small())
    algo.sharing_mode = 'Constant'
    with pytest.raises(ValueError, match=r"'sharing_mode' must be one of phi, constant, .* \(got 'Constant'\)"):
        algo.act(env.reset(), explore=False)
