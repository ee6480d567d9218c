"""torch.compile, torch.export, autocast and CUDA agree with eager float32 on the CPU."""

import copy
import warnings

import pytest
import torch
from nn_zoo import CASES, PORTED
from torch.testing import assert_close
from torch_geometric.edge_index import EdgeIndex

from ltos_pyg.nn import DGNConv, IntentionConv, LToSConv, check_sharing
from ltos_pyg.nn.kernels import MIN_EDGES
from ltos_pyg.testing import random_snapshot

COMPILED = ('LToSConv',)  # the others take some seconds each: slow tests
TRACEABLE = 'LToSConv-heads-edges', 'DGNConv-edges', 'DGN-sharing', 'SharingPolicy'  # the others are parts of these
INDUCTOR = 'LToSConv-heads-edges', 'EdgePolicyHead-edges', 'DGN-sharing'  # each takes some seconds
TRACED, OTHERS = (6, 14), [(9, 20), (3, 2), (20, 200)]
MANY_EDGES = (40, MIN_EDGES + 10)  # where eager mode takes the compiled kernel


def tensors(out):
    return [out] if isinstance(out, torch.Tensor) else list(out)


def compiled(module, backend):
    torch._dynamo.reset()
    return torch.compile(module, fullgraph=True, dynamic=True, backend=backend)


@pytest.mark.parametrize(
    'case', [case if case.edge_dim else pytest.param(case, marks=pytest.mark.slow) for case in PORTED], ids=str
)
def test_export_agrees_on_sizes_it_was_not_traced_on(case, device):
    module = case.module().to(device).eval()
    sizes = (TRACED, *OTHERS, MANY_EDGES)
    inputs = [tuple(t.to(device) for t in case.inputs(*size)) for size in sizes]
    dynamic = torch.export.Dim.DYNAMIC
    shapes = ({0: dynamic}, {1: dynamic}, {0: dynamic})[: len(inputs[0])]
    exported = torch.export.export(module, inputs[0], dynamic_shapes=shapes).module()
    for args in inputs:
        assert_close(tensors(exported(*args)), tensors(module(*args)), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')  # the checks of shapes are not traced
@pytest.mark.parametrize('case', [case for case in PORTED if case.name in TRACEABLE], ids=str)
def test_a_trace_agrees_on_sizes_it_was_not_traced_on(case):
    module = case.module()
    traced = torch.jit.trace(module, case.inputs(*MANY_EDGES), check_trace=False)
    for size in (TRACED, *OTHERS):
        args = case.inputs(*size)
        assert_close(tensors(traced(*args)), tensors(module(*args)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    'case',
    [pytest.param(case, id=str(case), marks=[] if case.name in COMPILED else [pytest.mark.slow]) for case in PORTED],
)
def test_compile_agrees_with_gradients_and_compiles_once(case, device):
    module = case.module().to(device)
    twin = compiled(copy.deepcopy(module), 'aot_eager')
    for i, size in enumerate((TRACED, *OTHERS)):
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            results = []
            for net in (module, twin):
                x, *rest = (t.to(device) for t in case.inputs(*size))
                x.requires_grad_()
                outs = tensors(net(x, *rest))
                loss = sum(out.square().sum() for out in outs)
                results.append([*outs, *torch.autograd.grad(loss, [x, *net.parameters()])])
            assert_close(results[1], results[0], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('case', [c for c in PORTED if c.name in INDUCTOR], ids=str)
def test_inductor_agrees_too(case):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the compiler's own
        twin = compiled(module := case.module(), 'inductor')
        for size in (TRACED, *OTHERS):
            args = case.inputs(*size)
            assert_close(tensors(twin(*args)), tensors(module(*args)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('case', CASES, ids=str)
def test_autocast_is_close_to_float32_with_finite_gradients(case, path, device):
    module = case.module().to(device)
    args = tuple(t.to(device) for t in case.inputs(40, 300))
    exact = tensors(module(*args))
    with torch.autocast(device.type, torch.bfloat16):
        half = tensors(module(*args))
    sum(out.float().square().mean() for out in half).backward()
    for one, other in zip(half, exact, strict=True):
        assert (one.float() - other).abs().mean() < 0.03 * other.abs().mean()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('case', CASES, ids=str)
def test_layers_in_half_precision_are_close_to_float32(case, dtype, device):
    exact = case.module().to(device)
    module, args = copy.deepcopy(exact).to(dtype), tuple(t.to(device) for t in case.inputs(40, 300))
    half = tensors(module(*(t.to(dtype) if t.is_floating_point() else t for t in args)))
    sum(out.float().square().mean() for out in half).backward()
    for one, other in zip(half, tensors(exact(*args)), strict=True):
        assert (one.float() - other).abs().mean() < 0.05 * other.abs().mean()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize('conv', [LToSConv, DGNConv, IntentionConv])
def test_a_conv_in_half_precision_feeds_the_next_one(conv):
    graph = random_snapshot(6, 14, 4)
    first, second = conv(4, 8).bfloat16(), conv(8, 8).bfloat16()
    out = second(first(graph.x.bfloat16(), graph.edge_index), graph.edge_index)
    assert out.dtype == torch.bfloat16


@pytest.mark.parametrize('name', ['LToSConv-heads-edges', 'EdgePolicyHead', 'QHead', 'DGN-sharing', 'SharingPolicy'])
def test_what_leaves_a_network_is_float32_also_under_autocast(name, path):
    case = next(c for c in CASES if c.name == name)
    with torch.autocast('cpu', torch.bfloat16):
        assert all(out.dtype == torch.float32 for out in tensors(case.module()(*case.inputs())))


def test_weights_stay_on_the_simplex_under_autocast():
    graph = random_snapshot(40, 300, 5)
    with torch.autocast('cpu', torch.bfloat16):
        sharing = LToSConv(5, 6).share(graph.x, graph.edge_index)
    check_sharing(sharing, graph.edge_index, 40, atol=1e-6)


@pytest.mark.parametrize('case', CASES, ids=str)
def test_cuda_agrees_with_the_cpu(case, device):
    if device.type == 'cpu':
        pytest.skip('the CPU agrees with itself')
    module, args = case.module(), case.inputs(40, 300)
    twin = copy.deepcopy(module).to(device)
    there = [out.cpu() for out in tensors(twin(*(t.to(device) for t in args)))]
    assert_close(there, tensors(module(*args)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('case', [c for c in CASES if 'Conv' in c.name or c.name.startswith('DGN')], ids=str)
def test_takes_pygs_own_edge_index(case, path):
    module = case.module()
    x, edge_index, *rest = case.inputs()
    adjacency = EdgeIndex(edge_index, sparse_size=(6, 6))
    assert_close(module(x, adjacency, *rest), module(x, edge_index, *rest))


@pytest.mark.parametrize('case', CASES, ids=str)
def test_inference_mode_and_functional_calls(case, path):
    module, args = case.module(), case.inputs()
    expected = tensors(module(*args))
    with torch.inference_mode():
        assert_close(tensors(module(*args)), expected, rtol=0, atol=0)
    parameters = {name: p.detach().clone() for name, p in module.named_parameters()}
    assert_close(tensors(torch.func.functional_call(module, parameters, args)), expected, rtol=0, atol=0)
