"""One step of a graph environment as PyG data, with a declared collation rule for each field."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data


class Snapshot(Data):
    r"""The graph of one step: nodes are agents, edges are the channels for messages and reward.

    Fields (all but ``x`` and ``edge_index`` optional):

    ===============  ==================  =====================================================================
    ``x``            ``(N, F)``          what each agent observes, in the dtype that the environment declares
    ``edge_index``   ``(2, E)`` int64    row 0 sends, row 1 receives; no self-loops
    ``edge_attr``    ``(E, D)``          features of the edges
    ``node_id``      ``(N,)`` int64      identifies an agent across the steps of an episode
    ``action_mask``  ``(N, A)`` bool     legal actions of each agent
    ===============  ==================  =====================================================================

    A plain :class:`torch_geometric.data.Data` guesses from a field's *name* how to batch it (a name that contains
    ``index`` or ``batch`` is shifted by the number of nodes). A ``Snapshot`` declares it: fields named in
    :attr:`NODE_NUMBERS` hold node numbers and are shifted; every other field is stacked unchanged along its first
    axis. Subclass it to declare more of them.
    """

    NODE_NUMBERS = frozenset({'edge_index'})  # fields that hold node numbers
    EDGE_FIELDS = frozenset({'edge_index', 'edge_attr'})  # fields with one entry per edge; see `batch_snapshots`

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        return self.num_nodes if key in self.NODE_NUMBERS else 0

    def __cat_dim__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        return 1 if key == 'edge_index' else 0


@cache
def _batch_class(cls: Any) -> type[Any]:
    """PyG's class for a batch of ``cls``. ``Batch(_base_cls=cls)`` looks it up each time, in about 40 us."""
    return type(Batch(_base_cls=cls))


def batch_snapshots(
    nodes_per_graph: Tensor,
    edges_per_graph: Tensor,
    *,
    cls: type[Snapshot] = Snapshot,
    ptr: Tensor | None = None,
    batch: Tensor | None = None,
    **fields: Tensor,
) -> Batch:
    r"""Builds the PyG batch of many graphs from concatenated tensors, without a loop over graphs.

    Args:
        nodes_per_graph (Tensor): Number of nodes of each graph :math:`(B,)`, int64.
        edges_per_graph (Tensor): Number of edges of each graph :math:`(B,)`, int64.
        cls: The snapshot class, which defines how the fields collate.
        ptr (Tensor, optional): First node of each graph and the end :math:`(B + 1,)`, where it is known already.
        batch (Tensor, optional): Graph of each node :math:`(N,)`, where it is known already.
        fields: The concatenated fields. Node numbers (``edge_index``) must already be those of the whole batch.
            A field has one entry per edge if it is named in ``cls.EDGE_FIELDS`` and one per node otherwise.

    The result equals ``Batch.from_data_list`` of the single graphs; ``to_data_list`` and ``batch[i]`` work on it.
    """
    zero = nodes_per_graph.new_zeros(1)
    if ptr is None:
        ptr = torch.cat([zero, nodes_per_graph.cumsum(0)])
    if batch is None:
        batch = torch.repeat_interleave(nodes_per_graph, output_size=int(ptr[-1]))
    edge_ptr = torch.cat([zero, edges_per_graph.cumsum(0)])
    num_graphs = nodes_per_graph.numel()
    no_shift = torch.zeros(num_graphs, dtype=torch.int64)
    base: Any = cls  # mypy does not see the base class of `Snapshot`, and treats it as unhashable
    out: Any = type.__call__(_batch_class(base))  # skips PyG's search for the class
    for key, value in fields.items():
        out[key] = value
    out._num_graphs = num_graphs
    out._slice_dict = {key: edge_ptr if key in cls.EDGE_FIELDS else ptr for key in fields}
    out._inc_dict = {key: ptr[:-1] if key in cls.NODE_NUMBERS else no_shift for key in fields}
    out.ptr = ptr
    out.batch = batch
    return out


def batch_to(graph: Batch, device: torch.device) -> Batch:
    """The batch on a device: itself if it lies there, else a copy. PyG's own ``to`` moves the batch it is called on."""
    here = graph.x.device
    if here.type == device.type and device.index in (None, here.index):
        return graph
    return copy.copy(graph).to(device)


def repeat_batch(batch: Batch, times: int) -> Batch:
    """Copies of a batch, one after another, as one batch; of its fields those that every :class:`Snapshot` may have."""
    if times == 1:
        return batch
    edges = torch.bincount(batch.batch[batch.edge_index[0]], minlength=batch.num_graphs)
    names = ('x', 'node_id', 'edge_attr', 'action_mask')
    fields: dict[str, Any] = {name: torch.cat([batch[name]] * times) for name in names if batch.get(name) is not None}
    first = batch.num_nodes * torch.arange(times, device=edges.device).repeat_interleave(batch.num_edges)
    edge_index = batch.edge_index.repeat(1, times) + first
    return batch_snapshots(batch.ptr.diff().repeat(times), edges.repeat(times), edge_index=edge_index, **fields)
