"""Any PyTorch Geometric layer as the message-passing layer between agents, by class or by name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ltos_pyg.nn.conv.dgn_conv import DGNConv

Conv = str | Callable[..., nn.Module]

EDGE_SIZES = ('edge_dim', 'in_edge_channels', 'dim')  # what layers call the size of their edge features


def find_conv(conv: Conv) -> Callable[..., nn.Module]:
    """The class of a layer, from its name in ``ltos_pyg.nn`` or ``torch_geometric.nn`` or ``package.module:Name``.

    Raises:
        ValueError: If there is no such layer.
    """
    if isinstance(conv, nn.Module):
        raise ValueError(
            f"'conv' must be a class or a name, of which the layers of the network are built (got a layer, {conv}). "
            f'Give {type(conv).__name__}, or a function that makes one from its sizes.'
        )
    if not isinstance(conv, str):
        return conv
    module, _, name = conv.rpartition(':')
    for room in [module] if module else ['ltos_pyg.nn', 'torch_geometric.nn']:
        try:
            found = getattr(importlib.import_module(room), name, None)
        except ImportError as error:
            raise ValueError(f"'conv' names a module that cannot be imported (got {conv!r}): {error}") from error
        if callable(found):
            return found
    if module:
        raise ValueError(f"'conv' names a layer that its module does not have: {module} has no {name!r} to call")
    raise ValueError(
        f"'conv' must name a layer of ltos_pyg.nn or torch_geometric.nn, such as 'GATv2Conv', or 'package.module:Name' "
        f'(got {conv!r})'
    )


class ConvLayer(nn.Module):
    r"""ReLU after any layer that takes ``(x, edge_index)``, and ``edge_attr`` where edges have features.

    Args:
        conv: The layer.
        takes_edges: Whether the edge features are passed to it.
    """

    def __init__(self, conv: nn.Module, takes_edges: bool) -> None:
        super().__init__()
        self.conv = conv
        self.takes_edges = takes_edges

    def reset_parameters(self) -> None:
        """Draws new parameters."""
        self.conv.reset_parameters()  # type: ignore[operator]

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> Tensor:
        if self.takes_edges:
            return self.conv(x, edge_index, edge_attr=edge_attr).relu()
        return self.conv(x, edge_index).relu()


def make_conv(conv: Conv, channels: int, heads: int, edge_dim: int | None) -> nn.Module:
    """A layer from ``channels`` to ``channels`` node features, built from its class or name.

    ``heads`` and the size of the edge features (``edge_dim``, also called ``in_edge_channels`` or ``dim``) are passed
    on where its constructor has them. Where it concatenates its heads (``concat``, as
    :class:`~torch_geometric.nn.GATv2Conv`), each has ``channels / heads`` features.

    Raises:
        ValueError: If there is no such layer, it cannot be built from sizes alone, edges have features that it does
            not take, or it has dropout or batch normalisation.
    """
    make = find_conv(conv)
    if make is DGNConv:
        return DGNConv(channels, channels, heads, edge_dim=edge_dim)
    name = getattr(make, '__name__', repr(make))
    known = inspect.signature(make).parameters
    if getattr(make, '__module__', '').startswith('torch_geometric.') and not _has_sizes(list(known)):
        raise ValueError(
            f"'conv' must be built from (in_channels, out_channels): {name} is built from "
            f'({", ".join(known)}). Give a function that makes it.'
        )
    edge_size = next((argument for argument in EDGE_SIZES if argument in known), None)
    options = {'heads': heads} if 'heads' in known else {}
    if edge_dim is not None:
        if edge_size is None:
            raise ValueError(
                f"'conv' must be told how many features an edge has: {edge_dim} here, sharing weights included. Use a "
                f"layer with an argument 'edge_dim', such as GATv2Conv or TransformerConv, or give a function that "
                f'makes the layer from (in_channels, out_channels, edge_dim) (got {name}).'
            )
        options[edge_size] = edge_dim
    out = channels // heads if 'heads' in known and 'concat' in known else channels
    if out * (heads if out != channels else 1) != channels:
        raise ValueError(f"'heads' must divide 'hidden_channels' for {name} (got {heads} heads, {channels} channels)")
    try:
        one_size = 'channels' in known and 'out_channels' not in known  # as CGConv
        layer = make(channels, **options) if one_size else make(channels, out, **options)
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"'conv' must be built from (in_channels, out_channels): {name} is not ({error}). Give a function that "
            'makes it.'
        ) from error
    check_conv(layer, name)
    return ConvLayer(layer, takes_edges=edge_dim is not None)


def _has_sizes(arguments: list[str]) -> bool:
    return arguments[:2] == ['in_channels', 'out_channels'] or arguments[:1] == ['channels']


def check_conv(layer: nn.Module, name: str, option: str = 'conv') -> None:
    """Raises a ``ValueError`` for dropout and batch normalisation in a module that was given as an option.

    With them the values of an agent would depend on chance, or on the other graphs of its batch, and so would greedy
    actions and the targets of learning.
    """
    for module in layer.modules():
        if isinstance(module, _BatchNorm):
            raise ValueError(
                f"'{option}' must not normalise over the batch: {name} has a {type(module).__name__}. Make it without, "
                'or with a normalisation of each node, such as LayerNorm.'
            )
        dropout = module.p if isinstance(module, _DropoutNd) else getattr(module, 'dropout', 0)
        if isinstance(dropout, int | float) and dropout > 0:
            raise ValueError(f"'{option}' must have no dropout: {name} has {dropout:g}. Make it without.")
