"""What holds for every layer, head and model."""

import copy
import pickle

import pytest
import torch
from nn_zoo import CASES, SIZES, AsTuple, OnNodes, UnderWeights
from torch.testing import assert_close

from ltos_pyg.nn import DGN, EdgePolicyHead, SharingPolicy
from ltos_pyg.testing import assert_batch_invariant, assert_equivariant, assert_gradients


@pytest.mark.parametrize('case', CASES, ids=str)
def test_relabelling_nodes_and_edges_relabels_the_output(case, path):
    module = case.module()
    for size in SIZES:
        assert_equivariant(module, *case.inputs(*size), outputs=case.outputs)


@pytest.mark.parametrize('case', CASES, ids=str)
def test_a_batch_is_its_graphs_side_by_side(case, path):
    graphs = [case.graph(*size, seed=i) for i, size in enumerate(SIZES)]
    assert_batch_invariant(case.module(), graphs, outputs=case.outputs)


@pytest.mark.parametrize('case', CASES, ids=str)
@pytest.mark.parametrize('size', [(4, 7), (2, 0)])
def test_gradients_are_those_of_finite_differences(case, size):
    assert_gradients(case.module(), *case.inputs(*size))


@pytest.mark.parametrize('case', CASES, ids=str)
@pytest.mark.parametrize('size', [(0, 0), (1, 0), (4, 0)])
def test_empty_graphs_have_finite_gradients(case, size, path):
    module = case.module()
    x, *rest = case.inputs(*size)
    out = module(x.requires_grad_(), *rest)
    outs = [out] if isinstance(out, torch.Tensor) else out
    sum(o.square().sum() for o in outs).backward()
    assert x.grad.shape == x.shape
    assert x.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize('case', CASES, ids=str)
def test_copies_and_pickles_compute_the_same(case):
    module, args = case.module(), case.inputs()
    expected = module(*args)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert_close(copied(*args), expected, rtol=0, atol=0)


def inner(case):
    module = case.build()
    wrapped = isinstance(module, (OnNodes, UnderWeights, AsTuple))
    return next(module.children()) if wrapped else module


@pytest.mark.parametrize('case', CASES, ids=str)
def test_reset_parameters_draws_every_weight_anew(case):
    module = inner(case)
    for parameter in module.parameters():
        torch.nn.init.constant_(parameter, 7.0)
    module.reset_parameters()
    assert not any((p == 7).any() for p in module.parameters())
    first = [p.detach().clone() for p in module.parameters()]
    module.reset_parameters()
    for old, new in zip(first, module.parameters(), strict=True):
        assert not old.any() or not torch.equal(old, new)  # zero where it starts at zero, else another draw
    torch.manual_seed(1)
    module.reset_parameters()
    again = [p.detach().clone() for p in module.parameters()]
    torch.manual_seed(1)
    module.reset_parameters()
    assert_close(list(module.parameters()), again, rtol=0, atol=0)


def test_reset_parameters_of_the_heads_starts_at_the_initial_share():
    for module in (EdgePolicyHead(4, initial_kept=0.3), SharingPolicy(4, initial_kept=0.3).head):
        assert not any(p.any() for lin in (module.edge_logit, module.self_logit) for p in lin.parameters())


def test_lazy_layers_infer_their_input(path):
    for case in CASES:
        if case.name not in ('LToSConv', 'DGNConv'):
            continue
        lazy = type(case.build())(-1, 6, heads=2)
        args = case.inputs()
        assert lazy(*args).shape == (6, 6)
        assert_equivariant(lazy, *args)


def test_networks_without_layers_see_no_edges():
    net = DGN(4, 3, num_layers=0)
    case = CASES[0]
    x, edge_index = case.inputs()
    assert torch.equal(net(x, edge_index), net(x, edge_index[:, :0]))
