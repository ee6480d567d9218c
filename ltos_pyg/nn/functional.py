"""Pure functions of reward sharing: sharing weights and the values moved along the edges of a graph."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ltos_pyg.nn.validation import (
    check_edge_index,
    check_finite,
    check_rows,
    check_tensor,
    check_unit_interval,
    may_look_at_values,
)


def at_least_float32(x: Tensor) -> Tensor:
    """Under autocast, matrix products run in half precision; softmax, sums and outputs of networks stay in float32."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class Sharing(NamedTuple):
    r"""The sharing weights of one graph (or one batch of graphs).

    ``given[e]`` is :math:`w_{ji}`, the part of :math:`j`'s value that :math:`i` gets along edge :math:`e = (j \to i)`;
    ``kept[i]`` is :math:`w_{ii}`, the part that :math:`i` keeps. For each sender
    :math:`w_{jj} + \sum_{i} w_{ji} = 1`, so a node without out-edges keeps all.

    Shapes:
        - **given:** :math:`(E,)` or :math:`(E, H)`
        - **kept:** :math:`(N,)` or :math:`(N, H)`
    """

    given: Tensor
    kept: Tensor

    def to(self, *args: Any, **kwargs: Any) -> Sharing:
        """On another device, or of another type, as :meth:`torch.Tensor.to`."""
        return Sharing(self.given.to(*args, **kwargs), self.kept.to(*args, **kwargs))


torch.serialization.add_safe_globals([Sharing])  # so that torch.load reads stored weights


def as_sharing(sharing: Any) -> Sharing:
    """A pair ``(given, kept)`` as :class:`Sharing`.

    Raises:
        ValueError: If it is no pair.
    """
    if isinstance(sharing, Sharing):
        return sharing
    if isinstance(sharing, tuple | list) and len(sharing) == 2:
        return Sharing(*sharing)
    raise ValueError(
        f'sharing weights must be Sharing(given, kept): one tensor (E,) for edges, one (N,) for nodes (got '
        f'{type(sharing).__name__}). Make them with ltos_pyg.nn.constant_sharing or sender_softmax.'
    )


def fitting_sharing(sharing: Any, num_edges: int, num_nodes: int) -> Sharing:
    """A pair ``(given, kept)`` as :class:`Sharing`, with one weight, or one of each head, per edge and node.

    Raises:
        ValueError: If it is no pair, or shapes or dtypes do not fit.
    """
    given, kept = sharing = as_sharing(sharing)
    check_rows('sharing.given', given, num_edges, 'edge')
    check_rows('sharing.kept', kept, num_nodes, 'node')
    _check_alike('sharing.given', given, 'sharing.kept', kept)
    return sharing


def single_sharing(sharing: Any, num_edges: int, num_nodes: int) -> Sharing:
    """:func:`fitting_sharing`, refusing weights of several heads."""
    given, kept = sharing = fitting_sharing(sharing, num_edges, num_nodes)
    if given.dim() != 1:
        raise ValueError(
            f"'sharing' needs one weight per edge and node: expected given (E,) and kept (N,), got "
            f'{tuple(given.shape)} and {tuple(kept.shape)}. Choose one head: Sharing(given[:, h], kept[:, h]).'
        )
    return sharing


def _check_alike(edge_name: str, of_edge: Tensor, node_name: str, of_node: Tensor) -> None:
    """Raises a ``ValueError`` unless both are floating-point numbers of one dtype with the same number of heads."""
    if of_edge.shape[1:] != of_node.shape[1:]:
        raise ValueError(
            f"'{edge_name}' and '{node_name}' must agree in the number of heads (got {tuple(of_edge.shape)} and "
            f'{tuple(of_node.shape)})'
        )
    if of_edge.dtype != of_node.dtype or not of_edge.is_floating_point():
        raise ValueError(
            f"'{edge_name}' and '{node_name}' must have one floating-point dtype (got {of_edge.dtype} and "
            f'{of_node.dtype}). Convert both, e.g. with .float().'
        )


def check_sharing(sharing: Sharing, edge_index: Tensor, num_nodes: int, atol: float = 1e-4) -> None:
    """Raises a ``ValueError`` unless the weights fit the graph and lie on each sender's simplex, within ``atol``."""
    check_edge_index(edge_index, num_nodes)
    given, kept = (part.detach() for part in fitting_sharing(sharing, edge_index.size(1), num_nodes))
    if not may_look_at_values(given):
        return
    check_finite('sharing.given', given)
    check_finite('sharing.kept', kept)
    atol = max(atol, 4 * torch.finfo(kept.dtype).eps)  # half precision has fewer digits
    given, kept = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in (given, kept))
    total = kept.index_add(0, edge_index[0], given)
    off = (total - 1).abs() > atol
    if bool((given < -atol).any()) or bool((kept < -atol).any()) or bool(off.any()):
        worst = float((total - 1).abs().max()) if total.numel() else 0.0
        raise ValueError(
            f"'sharing' must lie on the simplex of each sender: no weight below 0, and kept + given over out-edges = 1 "
            f'(got sums off by up to {worst:.3g} at {int(off.sum())} of {off.numel()} nodes, smallest weight '
            f'{min([float(t.min()) for t in (given, kept) if t.numel()], default=0.0):.3g}). '
            f'Make weights with ltos_pyg.nn.sender_softmax or constant_sharing.'
        )


def sender_softmax(edge_logit: Tensor, self_logit: Tensor, edge_index: Tensor) -> Sharing:
    r"""Softmax over each sender's {self} and out-edges.

    .. math::
        w_{ji} = \frac{\exp(e_{ji})}{\exp(s_j) + \sum_{k} \exp(e_{jk})}, \qquad
        w_{jj} = \frac{\exp(s_j)}{\exp(s_j) + \sum_{k} \exp(e_{jk})}

    A node without out-edges always keeps all. With self logits of :math:`-\infty` the others give all.
    No self-loops are added, so no shape depends on the data (``torch.compile``, ``torch.export``). Half precision is
    computed in float32.

    Shapes:
        - **input:** edge logits :math:`(E,)` or :math:`(E, H)`, self logits :math:`(N,)` or :math:`(N, H)`,
          edge indices :math:`(2, E)` free of self-loops
        - **output:** :class:`Sharing` of the same shapes

    Raises:
        ValueError: If ``edge_index`` is not a (2, E) int64 tensor over the nodes without self-loops, or the logits do
            not fit it.
    """
    check_tensor('self_logit', self_logit)
    check_edge_index(edge_index, self_logit.size(0))
    check_rows('edge_logit', edge_logit, edge_index.size(1), 'edge')
    _check_alike('edge_logit', edge_logit, 'self_logit', self_logit)
    alone = out_degree(edge_index, self_logit.size(0)) == 0
    self_logit = self_logit.masked_fill(alone.view(-1, *[1] * (self_logit.dim() - 1)), 0.0)
    # in float32, for half precision cannot add up the parts of a hub
    given, kept = softmax_by_sender(at_least_float32(edge_logit), at_least_float32(self_logit), edge_index)
    return Sharing(given.to(edge_logit.dtype), kept.to(self_logit.dtype))


def softmax_by_sender(edge_logit: Tensor, self_logit: Tensor, edge_index: Tensor) -> Sharing:
    """:func:`sender_softmax` without checks, for checked input."""
    sender = edge_index[0]
    index = sender.view(-1, *[1] * (edge_logit.dim() - 1)).expand_as(edge_logit)
    # The largest logit of each sender is subtracted (softmax does not change), so that exp cannot overflow.
    top = self_logit.detach().scatter_reduce(0, index, edge_logit.detach(), 'amax', include_self=True)
    edge_exp = (edge_logit - top.index_select(0, sender)).exp()
    self_exp = (self_logit - top).exp()
    total = self_exp.index_add(0, sender, edge_exp)
    return Sharing(edge_exp / total.index_select(0, sender), self_exp / total)


def keep_all(edge_index: Tensor, num_nodes: int, dtype: torch.dtype = torch.float32) -> Sharing:
    """No sharing: ``given = 0``, ``kept = 1``. With it LToS equals DGN.

    Raises:
        ValueError: If ``edge_index`` does not fit the nodes.
    """
    check_edge_index(edge_index, num_nodes)
    device = edge_index.device
    return Sharing(
        torch.zeros(edge_index.size(1), dtype=dtype, device=device), torch.ones(num_nodes, dtype=dtype, device=device)
    )


def out_degree(edge_index: Tensor, num_nodes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Number of out-edges of each node, (N,)."""
    ones = torch.ones(edge_index.size(1), dtype=dtype, device=edge_index.device)
    return torch.zeros(num_nodes, dtype=dtype, device=edge_index.device).index_add(0, edge_index[0], ones)


def kept_logit(edge_index: Tensor, num_nodes: int, kept: float | None) -> Tensor:
    r"""Self logits (N,) that keep the share ``kept`` where all edge logits are 0, whatever the degree:
    :math:`\log(\rho / (1 - \rho) \cdot \max(d_i, 1))`. ``None`` is uniform sharing: zeros."""
    if kept is None:
        return torch.zeros(num_nodes, device=edge_index.device)
    return math.log(kept / (1 - kept)) + out_degree(edge_index, num_nodes).clamp(min=1).log()


def constant_sharing(edge_index: Tensor, num_nodes: int, kept: Tensor | float | None = None) -> Sharing:
    r"""Constant weights: each node keeps ``kept`` and splits the rest evenly over its out-edges.

    Args:
        edge_index (Tensor): Edge indices :math:`(2, E)` without self-loops.
        num_nodes (int): Number of nodes :math:`N`.
        kept: The share kept, in [0, 1]: one number, or one per node :math:`(N,)`. ``None`` is uniform sharing,
            :math:`w_{jj} = w_{ji} = 1 / (1 + \text{out-degree}_j)`.

    A node without out-edges keeps all. The weights are float32, or have the dtype of a tensor ``kept``.

    Raises:
        ValueError: If ``kept`` lies outside [0, 1] or has another length than ``num_nodes``, or ``edge_index`` does not
            fit it.
    """
    check_edge_index(edge_index, num_nodes)
    if isinstance(kept, str):
        raise ValueError(f"'kept' must be a number in [0, 1], one per node, or None for uniform weights (got '{kept}')")
    sender = edge_index[0]
    dtype = kept.dtype if isinstance(kept, Tensor) and kept.is_floating_point() else torch.float32
    degree = out_degree(edge_index, num_nodes, torch.promote_types(dtype, torch.float32))
    if kept is None:
        kept = 1 / (1 + degree)
    else:
        kept = torch.as_tensor(kept, dtype=degree.dtype, device=degree.device)
        if kept.dim() > 1:
            raise ValueError(f"'kept' must be one number, or one per node (N,) (got shape {tuple(kept.shape)})")
        if kept.dim() == 1:
            check_rows('kept', kept, num_nodes, 'node')
        check_unit_interval('kept', kept)
        kept = torch.where(degree > 0, kept, 1.0)
    return Sharing(((1 - kept) / degree.clamp(min=1)).index_select(0, sender).to(dtype), kept.to(dtype))


def share_value(value: Tensor, edge_index: Tensor, sharing: Sharing) -> Tensor:
    r"""Moves value along the edges: the shaped reward of LToS, Eq. (2) of
    `"Learning to Share in Multi-Agent Reinforcement Learning" <https://arxiv.org/abs/2112.08702>`_.

    .. math::
        y_i = w_{ii} v_i + \sum_{j \to i} w_{ji} v_j

    Value is conserved: :math:`\sum_i y_i = \sum_i v_i` in each graph whenever the weights lie on the simplex
    of each sender. :math:`N = 0`, :math:`E = 0` and isolated nodes are ordinary.

    Shapes:
        - **input:** values :math:`(N,)` or :math:`(N, D)`, edge indices :math:`(2, E)`, weights ``given``
          :math:`(E,)`, ``kept`` :math:`(N,)`
        - **output:** shared values, of the shape of ``value``

    Raises:
        ValueError: If a shape or dtype does not fit. That the weights sum to one is checked by
            :func:`~ltos_pyg.nn.check_sharing`, not here.
    """
    check_tensor('value', value)
    if value.dim() not in (1, 2):
        raise ValueError(f"'value' must have shape (N,) or (N, D) (got {tuple(value.shape)})")
    check_edge_index(edge_index, value.size(0))
    sharing = single_sharing(sharing, edge_index.size(1), value.size(0))
    return weighted_sum(value, value.index_select(0, edge_index[0]), edge_index[1], sharing)


def weighted_sum(own: Tensor, sent: Tensor, receiver: Tensor, sharing: Sharing) -> Tensor:
    r"""The sum of Eq. (2), :math:`w_{ii} u_i + \sum_{j \to i} w_{ji} u_{ji}`, without checks, for checked input: values
    of nodes (N,) or (N, D), of edges (E,) or (E, D), the receivers of the edges (E,), and the weights."""
    given, kept = sharing
    if own.dim() > 1:
        given, kept = given.unsqueeze(-1), kept.unsqueeze(-1)
    sent = given * sent
    return (kept * own).index_add(0, receiver, sent)
