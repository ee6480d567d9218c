"""Input checks of graph tensors: each error names the argument, what was expected, what it got, and what to do next.

Checks of shape and dtype always run. Checks of the numbers themselves run in eager mode on the CPU: under
``torch.compile``, ``torch.export`` and ``torch.jit.trace`` they would break the graph, and on CUDA each would
synchronise with the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_edges_are_trusted: ContextVar[bool] = ContextVar('edges_are_trusted', default=False)


@contextmanager
def trust_edges() -> Iterator[None]:
    """Within this context, :func:`check_edge_index` checks shapes and dtypes only.

    For code that has checked the edges of a batch and runs many layers on it.
    """
    token = _edges_are_trusted.set(True)
    try:
        yield
    finally:
        _edges_are_trusted.reset(token)


def is_traced() -> bool:
    """Whether ``torch.compile``, ``torch.export`` or ``torch.jit.trace`` is recording."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]


def may_look_at_values(tensor: Tensor) -> bool:
    """Whether the numbers in a tensor may be checked, see this module's docstring."""
    return tensor.device.type == 'cpu' and not is_traced()


def check_below(name: str, value: Tensor, end: int, what: str) -> None:
    """Raises a ``ValueError`` unless all entries lie in [0, end). (Not checked on CUDA.)"""
    if may_look_at_values(value) and value.numel() > 0 and not 0 <= int(value.min()) <= int(value.max()) < end:
        raise ValueError(f"'{name}' must be {what}, in [0, {end}) (got {int(value.min())}..{int(value.max())})")


def check_sizes(in_channels: object, out_channels: int, edge_dim: int | None) -> None:
    """Raises a ``ValueError`` for sizes that features cannot have, and for PyG's pair of sizes, ``(-1, -1)``: the
    layers here work on one set of nodes."""
    if isinstance(in_channels, tuple | list):
        raise ValueError(
            f"'in_channels' must be one int, for this layer works on one set of nodes (got {in_channels}). Make a "
            f'graph of two sets one graph first, e.g. by HeteroData.to_homogeneous().'
        )
    if isinstance(in_channels, int) and in_channels < -1:
        raise ValueError(f"'in_channels' must be at least 0, or -1: as the first input (got {in_channels})")
    if out_channels < 1:
        raise ValueError(f"'out_channels' must be at least 1 (got {out_channels})")
    if edge_dim is not None and edge_dim < 0:
        raise ValueError(f"'edge_dim' must be at least 0, or None without edge features (got {edge_dim})")


def check_node_features(x: object, name: str = 'x') -> None:
    """Raises a ``ValueError`` unless ``x`` is one tensor (N, F): no array, and not PyG's pair ``(x_src, x_dst)``."""
    if isinstance(x, tuple | dict):
        raise ValueError(
            f"'{name}' must be one tensor (N, F), for this layer works on one set of nodes (got a {type(x).__name__}). "
            f'Make a graph of two sets one graph first, e.g. by HeteroData.to_homogeneous().'
        )
    if not isinstance(x, Tensor):
        raise ValueError(
            f"'{name}' must be a tensor (N, F) (got {type(x).__name__}). Convert an array with "
            f'torch.as_tensor({name}, dtype=torch.float32).'
        )
    if x.dim() != 2:
        raise ValueError(
            f"'{name}' must have shape (N, F): one row per node (got {tuple(x.shape)}). Put graphs with the same "
            f'edges into one torch_geometric Batch.'
        )


def check_tensor(name: str, value: object) -> None:
    """Raises a ``ValueError`` for arrays and lists."""
    if not isinstance(value, Tensor):
        raise ValueError(
            f"'{name}' must be a torch.Tensor (got {type(value).__name__}). Convert it with torch.as_tensor."
        )


def check_rows(name: str, tensor: Tensor, rows: int, what: str) -> None:
    """Raises a ``ValueError`` unless ``tensor`` is a tensor with one row per node, edge or graph."""
    check_tensor(name, tensor)
    if tensor.dim() == 0 or tensor.size(0) != rows:
        raise ValueError(
            f"'{name}' needs one row per {what}: expected {rows} rows, got shape {tuple(tensor.shape)}. "
            f'Was it computed for another graph?'
        )


def check_edge_index(edge_index: Tensor, num_nodes: int) -> None:
    """Raises a ``ValueError`` unless ``edge_index`` is a (2, E) int64 tensor over ``num_nodes`` nodes without loops."""
    if not isinstance(edge_index, Tensor) or edge_index.layout is not torch.strided:
        got = f'a {edge_index.layout} matrix' if isinstance(edge_index, Tensor) else type(edge_index).__name__
        raise ValueError(
            f"'edge_index' must be a (2, E) tensor of node numbers, torch.int64 (got {got}). Convert an array with "
            f"torch.from_numpy. Of PyG's adj_t, whose rows receive, it is "
            f'torch_geometric.utils.to_edge_index(adj_t)[0].flip(0).'
        )
    if edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise ValueError(
            f"'edge_index' must have shape (2, E), row 0 senders, row 1 receivers (got {tuple(edge_index.shape)}). "
            f'Transpose an (E, 2) list with edge_index.t().contiguous().'
        )
    if edge_index.dtype != torch.int64:
        raise ValueError(f"'edge_index' must be torch.int64 (got {edge_index.dtype}). Convert it with .long().")
    if not may_look_at_values(edge_index) or edge_index.size(1) == 0 or _edges_are_trusted.get():
        return
    low, high = edge_index.aminmax()
    if int(low) < 0 or int(high) >= num_nodes:
        raise ValueError(
            f"'edge_index' must lie in [0, {num_nodes - 1}] for {num_nodes} nodes (got {int(low)}..{int(high)}). "
            f'Do the edges belong to another graph, or are they shifted twice?'
        )
    loops = edge_index[0] == edge_index[1]
    if bool(loops.any()):
        where = loops.nonzero().flatten().tolist()
        raise ValueError(
            f"'edge_index' must be free of self-loops: the share kept is not an edge (got {len(where)}, first "
            f'at edges {where[:5]}). Drop them with torch_geometric.utils.remove_self_loops.'
        )


def check_pairs(pairs: Tensor, num_nodes: int) -> None:
    """Raises a ``ValueError`` unless ``pairs`` is a (2, P) int64 tensor over ``num_nodes`` nodes."""
    check_tensor('pairs', pairs)
    if pairs.dim() != 2 or pairs.size(0) != 2 or pairs.dtype != torch.int64:
        raise ValueError(
            f"'pairs' must be a (2, P) tensor of torch.int64, row 0 whose reward, row 1 whose action (got "
            f'{tuple(pairs.shape)} of {pairs.dtype})'
        )
    if not _edges_are_trusted.get():
        check_below('pairs', pairs, num_nodes, 'numbers of nodes')


def edge_features(edge_attr: Tensor | None, edge_dim: int | None, num_edges: int) -> Tensor | None:
    """The edge features as (E, D), where (E,) is one number per edge, or ``None`` for a layer without any.

    Raises:
        ValueError: If there are features but no ``edge_dim``, an ``edge_dim`` but no features, or they do not fit.
    """
    if not edge_dim:
        if edge_attr is not None:
            raise ValueError(
                "'edge_attr' was given to a layer without edge features. Leave it out, or build the layer with "
                'edge_dim=...'
            )
        return None
    if edge_attr is None:
        raise ValueError(f"'edge_attr' is missing: this layer expects shape (E, edge_dim={edge_dim})")
    check_tensor('edge_attr', edge_attr)
    if edge_attr.dim() == 1 and edge_dim == 1:
        edge_attr = edge_attr.unsqueeze(-1)
    if edge_attr.dim() != 2 or edge_attr.size(1) != edge_dim:
        raise ValueError(f"'edge_attr' must have shape (E, edge_dim={edge_dim}) (got {tuple(edge_attr.shape)})")
    check_rows('edge_attr', edge_attr, num_edges, 'edge')
    return edge_attr


def check_finite(name: str, tensor: Tensor) -> None:
    """Raises a ``ValueError`` that counts and locates NaN and infinite entries."""
    if not tensor.is_floating_point() or not may_look_at_values(tensor):
        return
    bad = ~tensor.isfinite()
    if bool(bad.any()):
        where = bad.nonzero()
        raise ValueError(
            f"'{name}' must be finite (got {len(where)} NaN or infinite of {tensor.numel()} entries, first at "
            f'{where[0].tolist()}). Look for a division by zero where it is computed.'
        )


def check_unit_interval(name: str, tensor: Tensor) -> None:
    """Raises a ``ValueError`` unless every entry lies in [0, 1]."""
    if not may_look_at_values(tensor) or tensor.numel() == 0:
        return
    low, high = (float(bound) for bound in tensor.detach().aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"'{name}' must lie in [0, 1] (got {low:.4g}..{high:.4g}): it is a share of the whole.")
