"""Laws of graph layers, each as one assertion."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError
from torch_geometric.data import Batch, Data

Conv = Callable[..., Any]  # a module or a function: (x, edge_index) or (x, edge_index, edge_attr) -> tensor(s)


def assert_equivariant(
    conv: Conv,
    x: Tensor,
    edge_index: Tensor,
    edge_attr: Tensor | None = None,
    *,
    outputs: str | Sequence[str] = 'node',
    node_inputs: Mapping[str, Tensor] | None = None,
    edge_inputs: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> None:
    r"""Asserts that renaming the nodes renames the outputs, and that the order of the edges does not matter.

    .. math::
        f(\mathbf{P}\mathbf{x}, \mathbf{P}\mathcal{E}) = \mathbf{P}\, f(\mathbf{x}, \mathcal{E})
        \quad\text{for each permutation } \mathbf{P} \text{ of the nodes}

    Args:
        conv: A layer or function, called as ``conv(x, edge_index)``, or ``conv(x, edge_index, edge_attr)`` if
            ``edge_attr`` is given. A module is set to evaluation mode meanwhile (dropout is random).
        x (Tensor): Node features :math:`(N, F)`.
        edge_index (Tensor): Edge indices :math:`(2, E)`.
        edge_attr (Tensor, optional): Whatever the layer takes per edge, :math:`(E,)` or :math:`(E, D)`.
        outputs: What the rows of the output are: ``'node'``, ``'edge'`` or ``'graph'`` (unchanged by either); one of
            them for each tensor if ``conv`` returns several.
        node_inputs, edge_inputs: Further arguments by name, one row per node or edge.
        generator (torch.Generator, optional): The source of the permutations. ``None``: one seeded with 0.

    Raises:
        AssertionError: Names the broken law, the output, and the largest error.
    """
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    node_inputs, edge_inputs = dict(node_inputs or {}), dict(edge_inputs or {})
    with _evaluating(conv):
        expected = _call(conv, x, edge_index, edge_attr, {**node_inputs, **edge_inputs})
        kinds = _kinds(outputs, expected)

        order = torch.randperm(edge_index.size(1), generator=generator).to(x.device)
        shuffled = {name: value[order] for name, value in edge_inputs.items()}
        attr = None if edge_attr is None else edge_attr[order]
        got = _call(conv, x, edge_index[:, order], attr, {**node_inputs, **shuffled})
        wanted = [out[order] if kind == 'edge' else out for out, kind in zip(expected, kinds, strict=True)]
        _assert_close(conv, 'the order of the edges must not matter', got, wanted, kinds, rtol, atol)

        perm = torch.randperm(x.size(0), generator=generator).to(x.device)
        renamed = {name: value[perm] for name, value in node_inputs.items()}
        got = _call(conv, x[perm], perm.argsort()[edge_index], edge_attr, {**renamed, **edge_inputs})
        wanted = [out[perm] if kind == 'node' else out for out, kind in zip(expected, kinds, strict=True)]
        _assert_close(conv, 'renaming the nodes must rename the outputs', got, wanted, kinds, rtol, atol)


def assert_batch_invariant(
    conv: Conv,
    graphs: Sequence[Data],
    *,
    outputs: str | Sequence[str] = 'node',
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> None:
    r"""Asserts that the output for a batch equals that for its graphs one by one: graphs do not affect each other.

    Args:
        conv: As in :func:`assert_equivariant`. ``edge_attr`` is passed if the graphs have it.
        graphs: The graphs :class:`~ltos_pyg.data.Snapshot` or :class:`torch_geometric.data.Data`; take different
            sizes, among them a graph without edges and one without nodes.
        outputs: ``'node'`` or ``'edge'`` for each output tensor.

    Raises:
        AssertionError: Names the output and the largest error.
    """
    with _evaluating(conv):
        alone = [_call(conv, g.x, g.edge_index, g.get('edge_attr'), {}) for g in graphs]
        batch = Batch.from_data_list(list(graphs))
        together = _call(conv, batch.x, batch.edge_index, batch.get('edge_attr'), {})
    wanted = [torch.cat(parts) for parts in zip(*alone, strict=True)]
    kinds = _kinds(outputs, together)
    if 'graph' in kinds:
        raise ValueError("'outputs' must be 'node' or 'edge': a layer is not told the graphs of a batch (got 'graph')")
    _assert_close(conv, 'a batch must equal its graphs one by one', together, wanted, kinds, rtol, atol)


def assert_gradients(
    conv: Conv,
    x: Tensor,
    edge_index: Tensor,
    edge_attr: Tensor | None = None,
    *,
    node_inputs: Mapping[str, Tensor] | None = None,
    edge_inputs: Mapping[str, Tensor] | None = None,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
) -> None:
    """Asserts that the gradients by every input and parameter agree with finite differences.

    For each of them one random direction is compared, with a fixed seed, so large layers are checked quickly. The layer
    is copied and evaluated in float64. The arguments are those of :func:`assert_equivariant`, floating-point inputs are
    differentiated.

    Raises:
        AssertionError: With what :func:`torch.autograd.gradcheck` found.
    """
    module = copy.deepcopy(conv).double() if isinstance(conv, torch.nn.Module) else None
    parameters = {} if module is None else dict(module.named_parameters())
    given = {'x': x, 'edge_attr': edge_attr, **(node_inputs or {}), **(edge_inputs or {})}
    inputs = {name: _for_gradcheck(value) for name, value in given.items() if value is not None}

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        arguments = dict(zip(inputs, values[: len(inputs)], strict=True))
        named = dict(zip(parameters, values[len(inputs) :], strict=True))
        target = conv if module is None else _with_parameters(module, named)
        x, edge_attr = arguments.pop('x'), arguments.pop('edge_attr', None)
        return tuple(out for out in _call(target, x, edge_index, edge_attr, arguments) if out.is_floating_point())

    with _evaluating(module):
        try:
            values = (*inputs.values(), *parameters.values())
            torch.autograd.gradcheck(function, values, eps=eps, atol=atol, rtol=rtol, fast_mode=True)
        except GradcheckError as error:
            names = ', '.join(f'{i} is {name}' for i, name in enumerate([*inputs, *parameters]))
            where = str(error).splitlines()[0].rstrip(',')
            raise AssertionError(
                f'{_name(conv)}: gradients must be those of finite differences. {where}, where input {names}. Look for '
                f'a detach(), an in-place change or a derivative written by hand.'
            ) from error


def _for_gradcheck(value: Tensor) -> Tensor:
    return value.detach().double().requires_grad_() if value.is_floating_point() else value


def _with_parameters(module: torch.nn.Module, parameters: dict[str, Tensor]) -> Conv:
    return lambda *args, **kwargs: torch.func.functional_call(module, parameters, args, kwargs)


def _call(conv: Conv, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None, named: Mapping[str, Tensor]) -> Any:
    args = (x, edge_index) if edge_attr is None else (x, edge_index, edge_attr)
    out = conv(*args, **named)
    return [out] if isinstance(out, Tensor) else list(out)


@contextmanager
def _evaluating(conv: Any) -> Iterator[None]:
    modules = list(conv.modules()) if isinstance(conv, torch.nn.Module) else []
    were_training = [module for module in modules if module.training]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module in were_training:
            module.training = True


def _kinds(outputs: str | Sequence[str], tensors: Sequence[Tensor]) -> list[str]:
    kinds = [outputs] * len(tensors) if isinstance(outputs, str) else list(outputs)
    if len(kinds) != len(tensors) or not set(kinds) <= {'node', 'edge', 'graph'}:
        raise ValueError(
            f"'outputs' must be 'node', 'edge' or 'graph' for each of the {len(tensors)} output tensors "
            f'(got {outputs!r})'
        )
    return kinds


def _assert_close(
    conv: Conv, law: str, got: Sequence[Tensor], wanted: Sequence[Tensor], kinds: list[str], rtol: float, atol: float
) -> None:
    for i, (one, other, kind) in enumerate(zip(got, wanted, kinds, strict=True)):
        which = f'output {i} (one row per {kind})'
        if one.shape != other.shape:
            shapes = f'{tuple(other.shape)}, got {tuple(one.shape)}'
            raise AssertionError(f'{_name(conv)}: {law}. {which}: expected shape {shapes}.')
        finite = bool(one.isfinite().all()), bool(other.isfinite().all())
        if not all(finite):
            raise AssertionError(f'{_name(conv)}: {which} has NaN or infinite entries. Mend that first.')
        if not torch.allclose(one, other, rtol=rtol, atol=atol):
            off = (one.double() - other.double()).abs()
            raise AssertionError(
                f'{_name(conv)}: {law}. {which}: off by up to {float(off.max()):.3g} '
                f'(rtol={rtol:g}, atol={atol:g}), at {int((off > atol).sum())} of {off.numel()} entries.'
            )


def _name(conv: Conv) -> str:
    return conv.__class__.__name__ if isinstance(conv, torch.nn.Module) else getattr(conv, '__name__', repr(conv))
