"""Symmetries that an environment declares: rotated and mirrored views of one state with equal values."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from ltos_pyg.data import repeat_batch

NODES_AT_ONCE = 1024  # views are batched together up to about this size: small batches are dominated by overhead


@dataclass(frozen=True, kw_only=True)
class Symmetry:
    r"""One relabelling of observations and actions under which the environment's dynamics are the same.

    If :math:`g` is a graph and :math:`a` the actions of its nodes, then :math:`a'` in :math:`g'` has the same rewards,
    and leads to the primed successor, with

    .. math::
        x'_{ic} = s_c\, x_{i, f(c)} + t_c, \qquad e'_{d} = r_d\, e_{h(d)}, \qquad a'_i = \sigma(a_i).

    Features are meant in the units in which the environment stores them, before any scale.
    """

    feature: tuple[int, ...]  # f: column of `x` that each column comes from
    feature_sign: tuple[float, ...]  # s
    feature_shift: tuple[float, ...]  # t
    action: tuple[int, ...]  # sigma: number that each action gets
    edge: tuple[int, ...] = ()  # h: column of `edge_attr` that each column comes from
    edge_sign: tuple[float, ...] = ()  # r

    def check(self, num_features: int, num_actions: int, edge_dim: int | None) -> None:
        """Raises a ``ValueError`` if the tables do not fit an environment of these sizes."""
        sizes = {'feature': num_features, 'action': num_actions, 'edge': edge_dim or 0}
        for name, size in sizes.items():
            table = getattr(self, name)
            if sorted(table) != list(range(size)):
                raise ValueError(f"'{name}' of a symmetry must name each of 0..{size - 1} once (got {table})")
        for name in ('feature_sign', 'feature_shift', 'edge_sign'):
            size, got = sizes[name.split('_')[0]], len(getattr(self, name))
            if got != size:
                raise ValueError(f"'{name}' of a symmetry needs one number per column: expected {size}, got {got}")


class Symmetries(nn.Module):
    """The symmetries of an environment as tables, to be applied to whole batches, each graph under one of its own.

    Args:
        symmetries: At least one; the identity must be given too, if wanted.
    """

    feature: Tensor
    feature_sign: Tensor
    feature_shift: Tensor
    action: Tensor
    edge: Tensor
    edge_sign: Tensor

    def __init__(self, symmetries: Sequence[Symmetry]) -> None:
        super().__init__()
        self.count = len(symmetries)
        for name in ('feature', 'action', 'edge'):
            table = torch.tensor([getattr(s, name) for s in symmetries], dtype=torch.int64)
            self.register_buffer(name, table, persistent=False)
        for name in ('feature_sign', 'feature_shift', 'edge_sign'):
            table = torch.tensor([getattr(s, name) for s in symmetries])
            self.register_buffer(name, table, persistent=False)

    def view(self, graph: Batch, which: Tensor) -> Batch:
        """The batch with graph b under symmetry ``which[b]``, (B,) int64."""
        node = which[graph.batch]
        out = copy.copy(graph)
        x = graph.x
        out.x = (
            x.gather(1, self.feature[node]) * self.feature_sign.to(x.dtype)[node] + self.feature_shift.to(x.dtype)[node]
        )
        e = graph.get('edge_attr')
        if e is not None:
            edge = node[graph.edge_index[0]]
            out.edge_attr = e.gather(1, self.edge[edge]) * self.edge_sign.to(e.dtype)[edge]
        mask = graph.get('action_mask')
        if mask is not None:
            out.action_mask = torch.empty_like(mask).scatter_(1, self.action[node], mask)
        return out

    def actions(self, action: Tensor, node: Tensor) -> Tensor:
        """The actions (N,) relabelled by the symmetry of each node (N,)."""
        return self.action[node, action]

    def views(self, graph: Batch) -> Iterator[Batch]:
        """The batch under each symmetry in turn."""
        for s in range(self.count):
            yield self.view(graph, torch.full((graph.num_graphs,), s, device=graph.x.device))

    def stacked_views(self, graph: Batch) -> Iterator[tuple[Tensor, Batch]]:
        """All views, several in one batch where they are small: the symmetries (K,), and a batch of the K views."""
        size = max(1, NODES_AT_ONCE // max(graph.num_nodes, 1))
        for which in torch.arange(self.count, device=graph.x.device).split(size):
            yield which, self.view(repeat_batch(graph, len(which)), which.repeat_interleave(graph.num_graphs))

    def average(self, graph: Batch, values: Callable[[Batch], Tensor]) -> Tensor:
        """Mean of action values (N, A) over all views, each column named as in ``graph``.

        ``values`` is called with batches of K views, stacked one after another, and returns (K * N, A).
        """
        parts = []
        for which, views in self.stacked_views(graph):
            value = values(views).unflatten(0, (len(which), graph.num_nodes))
            parts.append(value.gather(2, self.action[which].unsqueeze(1).expand_as(value)))
        return torch.cat(parts).mean(0)
