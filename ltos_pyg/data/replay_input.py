"""Input checks of the replay: converts the fields of a batch and of a step to arrays, if they fit the spec."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch
from torch import Tensor
from torch_geometric.data import Batch

from ltos_pyg.data.ring_kernels import (
    BAD_ACTION,
    BAD_EDGE,
    BAD_REWARD,
    BAD_SHARING,
    RUNNING,
    SIMPLEX_ATOL,
    TERMINATED,
    TOO_MANY_EDGES,
    TOO_MANY_NODES,
    TRUNCATED,
    Array,
    Parts,
    Played,
    inspect,
    inspect_played,
)
from ltos_pyg.nn.functional import Sharing, check_sharing
from ltos_pyg.nn.validation import check_edge_index, check_finite, check_rows

if TYPE_CHECKING:
    from ltos_pyg.graph_env import GraphEnvSpec, GraphStep

NO_BYTES = np.empty(0, np.uint8)


def as_array(tensor: Tensor) -> Array:
    """The entries as a contiguous array in main memory; shares memory if possible."""
    return tensor.cpu().contiguous().numpy()


def as_bytes(tensor: Tensor) -> Array:
    """The entries of a contiguous tensor as flat bytes, whatever its dtype; shares memory."""
    return tensor.reshape(-1).view(torch.uint8).numpy()  # flat first: an empty array of NumPy may have strides of 0


def raw_field(name: str, value: Tensor | None, rows: int, columns: int | None, dtype: torch.dtype) -> Array:
    """A field as bytes, if it matches the spec (``columns=None``: absent)."""
    expected = 'none, as the spec declares none' if columns is None else f'({rows}, {columns}) of {dtype}'
    if value is None and columns is None:
        return NO_BYTES
    if value is None or columns is None or value.shape != (rows, columns) or value.dtype != dtype:
        got = 'none' if value is None else f'{tuple(value.shape)} of {value.dtype}'
        raise ValueError(f"'{name}' must fit the spec of the environment: expected {expected}, got {got}.")
    return as_bytes(value.detach().cpu().contiguous())


def read_batch(spec: GraphEnvSpec, name: str, batch: Batch) -> Parts:
    """The batch as arrays, if shapes and dtypes fit the spec; ``edge_ptr`` is filled later."""
    ptr, edge_index = batch.get('ptr'), batch.get('edge_index')
    if ptr is None or ptr.numel() != spec.num_envs + 1:
        got = 'none with a ptr' if ptr is None else f'{ptr.numel() - 1}'
        raise ValueError(
            f"'{name}' must be a batch of {spec.num_envs} graphs, one per stream (got {got}). "
            f'Make it with ltos_pyg.data.batch_snapshots or Batch.from_data_list.'
        )
    if edge_index is None or edge_index.dim() != 2 or edge_index.size(0) != 2 or edge_index.dtype != torch.int64:
        got = 'none' if edge_index is None else f'{tuple(edge_index.shape)} of {edge_index.dtype}'
        raise ValueError(f"'{name}.edge_index' must be (2, E) of torch.int64, senders and receivers (got {got}).")
    num_nodes, num_edges = int(ptr[-1]), edge_index.size(1)
    mask_width = spec.num_actions if spec.has_action_mask else None
    return Parts(
        ptr=as_array(ptr),
        edge_ptr=np.empty(spec.num_envs + 1, np.int64),
        edge_index=as_array(edge_index),
        node_id=_node_id(spec, name, batch, ptr),
        x=raw_field(f'{name}.x', batch.get('x'), num_nodes, spec.num_features, spec.feature_dtype),
        mask=raw_field(f'{name}.action_mask', batch.get('action_mask'), num_nodes, mask_width, torch.bool),
        edge_attr=raw_field(f'{name}.edge_attr', batch.get('edge_attr'), num_edges, spec.edge_dim, spec.edge_dtype),
    )


def check_values(spec: GraphEnvSpec, name: str, batch: Batch, parts: Parts, table: Array) -> None:
    """Raises a ``ValueError`` unless ids, edges and features are valid; fills ``parts.edge_ptr``."""
    check_observation(name, batch)
    finding, where = inspect(parts, spec.max_nodes, spec.max_edges, table)
    if finding:
        _malformed(spec, name, parts, finding, where)


def check_observation(name: str, batch: Batch) -> None:
    """Raises a ``ValueError`` if a feature of a node or an edge is NaN or infinite."""
    for field in ('x', 'edge_attr'):
        value = batch.get(field)
        # a finite sum in float64 shows in one pass that all entries are finite
        if value is not None and value.is_floating_point() and not value.sum(dtype=torch.float64).isfinite():
            check_finite(f'{name}.{field}', value.cpu())


def check_fixed_nodes(parts: Parts, successor: Parts, status: Array) -> None:
    """Raises a ``ValueError`` if a graph whose task goes on has another number of nodes after the step."""
    before, after = np.diff(parts.ptr), np.diff(successor.ptr)
    changed = np.flatnonzero((before != after) & (status != TERMINATED))
    if changed.size > 0:
        where = changed[0]
        raise ValueError(
            f"'step.successor' must have the nodes of 'graph', as spec.fixed_nodes is True (got {after[where]} after "
            f'{before[where]} in graph {where}). Set fixed_nodes = False, and give each graph a node_id.'
        )


def _node_id(spec: GraphEnvSpec, name: str, batch: Batch, ptr: Tensor) -> Array:
    node_id = batch.get('node_id')
    if node_id is not None:
        check_rows(f'{name}.node_id', node_id, int(ptr[-1]), 'node')
        return as_array(node_id.to(torch.int64))
    if not spec.fixed_nodes:
        raise ValueError(
            f"'{name}' needs 'node_id' (N,), which identifies the agents: spec.fixed_nodes is False (got none). "
            f'Have the environment emit it.'
        )
    start = torch.repeat_interleave(ptr[:-1], ptr.diff())
    return as_array(torch.arange(int(ptr[-1]), device=ptr.device) - start)


def _malformed(spec: GraphEnvSpec, name: str, parts: Parts, finding: int, where: int) -> None:
    if finding == BAD_EDGE:
        check_edge_index(torch.from_numpy(parts.edge_index), int(parts.ptr[-1]))
        raise ValueError(
            f"'{name}.edge_index' must list the edges graph by graph, each inside its own graph (edge {where} is "
            f'{parts.edge_index[:, where].tolist()}). Make the batch with ltos_pyg.data.batch_snapshots.'
        )
    if finding in (TOO_MANY_NODES, TOO_MANY_EDGES):
        what, bound = ('nodes', spec.max_nodes) if finding == TOO_MANY_NODES else ('edges', spec.max_edges)
        low, high = parts.ptr[where : where + 2]
        senders = parts.edge_index[0]
        got = high - low if finding == TOO_MANY_NODES else ((low <= senders) & (senders < high)).sum()
        raise ValueError(
            f"'{name}' must have at most spec.max_{what} = {bound} {what} in a graph (got {got} in graph {where}). "
            f'Raise the bound in the spec of the environment.'
        )
    low, high = parts.ptr[where : where + 2]
    raise ValueError(
        f"'{name}.node_id' must hold each id once per graph, in [0, 2^31) (got {parts.node_id[low:high].tolist()} "
        f'in graph {where}).'
    )


def read_status(spec: GraphEnvSpec, step: GraphStep) -> Array:
    """Status of each stream, (B,) int8: running, terminated or truncated."""
    flags = []
    for name in ('terminated', 'truncated'):
        flag = getattr(step, name)
        if flag.dtype != torch.bool or flag.shape != (spec.num_envs,):
            raise ValueError(
                f"'step.{name}' needs one bool per graph: expected shape ({spec.num_envs},), "
                f'got {tuple(flag.shape)} of {flag.dtype}'
            )
        flags.append(as_array(flag))
    return np.where(flags[0], TERMINATED, np.where(flags[1], TRUNCATED, RUNNING)).astype(np.int8)


def read_played(
    spec: GraphEnvSpec,
    share: bool,
    parts: Parts,
    action: Tensor,
    sharing: Sharing | None,
    reward: Tensor,
    status: Array,
) -> Played:
    """The actions on ``parts`` and their outcome as arrays, if they fit ``parts`` and the spec."""
    num_nodes = int(parts.ptr[-1])
    for name, value in (('action', action), ('step.reward', reward)):
        if value.shape != (num_nodes,):
            raise ValueError(
                f"'{name}' needs one entry per node of 'graph': expected shape ({num_nodes},), "
                f'got {tuple(value.shape)}. Was it computed from another batch?'
            )
    if action.is_floating_point() or action.dtype == torch.bool:
        raise ValueError(f"'action' must hold integers (got {action.dtype}). Convert it with .long().")
    if share != (sharing is not None):
        raise ValueError(
            f"'sharing' must be {'given' if share else 'None'}: the replay was made with share={share} "
            f'(got {"none" if sharing is None else "some"}).'
        )
    given = kept = np.empty(0, np.float32)
    if sharing is not None:
        if sharing.given.shape != (parts.edge_index.shape[1],) or sharing.kept.shape != (num_nodes,):
            raise ValueError(
                f"'sharing' needs one weight per edge and one per node of 'graph': expected given "
                f'({parts.edge_index.shape[1]},) and kept ({num_nodes},), got {tuple(sharing.given.shape)} and '
                f'{tuple(sharing.kept.shape)}. Average over heads before storing.'
            )
        given, kept = as_array(sharing.given.detach().float()), as_array(sharing.kept.detach().float())
    played = Played(as_array(action.long()), as_array(reward.detach().float()), given, kept, status)
    finding, where = inspect_played(parts, played, spec.num_actions, share)
    if finding == BAD_ACTION:
        raise ValueError(
            f"'action' must lie in [0, {spec.num_actions - 1}], as spec.num_actions says "
            f'(got {int(played.action[where])} at node {where}). Does the policy belong to this environment?'
        )
    if finding == BAD_REWARD:
        check_finite('step.reward', torch.from_numpy(played.reward))
    if finding == BAD_SHARING:
        weights = Sharing(torch.from_numpy(given), torch.from_numpy(kept))
        check_sharing(weights, torch.from_numpy(parts.edge_index), num_nodes, SIMPLEX_ATOL)
    return played


class ReplayMemoryError(ValueError):
    """A replay needs more memory than the machine has free, both in GiB."""

    def __init__(self, message: str, needed: float, free: float) -> None:
        super().__init__(message)
        self.needed, self.free = needed, free


def check_memory(nbytes: int, capacity: int, max_nodes: int, max_edges: int) -> None:
    available = psutil.virtual_memory().available
    if nbytes > available:
        needed, free = nbytes / 2**30, available / 2**30
        raise ReplayMemoryError(
            f"'capacity' of {capacity} frames with {max_nodes} node rows and {max_edges} edge rows needs "
            f'{needed:.2f} GiB: expected at most the {free:.2f} GiB that the machine has free. Lower '
            f"'capacity', or give 'max_nodes' and 'max_edges' for the average graph, not the largest.",
            needed,
            free,
        )
