"""Clauses about a batch of graphs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Batch

from ltos_pyg.data.snapshot import Snapshot
from ltos_pyg.graph_env.checker.clauses import declare
from ltos_pyg.graph_env.checker.fingerprint import differences, digest_graph
from ltos_pyg.graph_env.spec import GraphEnvSpec

REBUILD = 'Build it with ltos_pyg.data.batch_snapshots or Batch.from_data_list.'

fail = declare(
    {
        'batch': REBUILD,
        'num_envs': 'A finished episode restarts within the step: the batch always has all episodes.',
        'separates': REBUILD,
        'fields': 'Emit what the spec declares: edge_attr needs edge_dim, action_mask needs has_action_mask.',
        'node identity': 'Where nodes enter and leave, node_id identifies them: emit it, or declare fixed_nodes=True.',
        'nodes by graph': REBUILD,
        'x': 'Change num_features and feature_dtype in the spec, or what is emitted.',
        'edge_index': 'Convert it with .long(); transpose an (E, 2) list with .t().contiguous().',
        'edge range': 'Edges use node numbers of the whole batch: shift each graph once, by the nodes before it.',
        'edges across graphs': 'Edges must stay within one episode: shift each graph once, by the nodes before it.',
        'edges by graph': 'Batches are split into graphs by this order: sort the edges by graph.',
        'self-loops': 'The share that a node keeps is not an edge: see torch_geometric.utils.remove_self_loops.',
        'duplicate edges': 'A neighbour counts once: see torch_geometric.utils.coalesce.',
        'edge_attr': 'One row per edge in the order of edge_index; edge_dim and edge_dtype are in the spec.',
        'max_nodes': 'Memory is allocated by it: raise it in the spec.',
        'max_edges': 'Memory is allocated by it: raise it in the spec.',
        'symmetric': 'Add the reverse edges (torch_geometric.utils.to_undirected), or declare symmetric=False.',
        'node_id': 'Give one number per node.',
        'node_id unique': 'It identifies an agent from step to step: never give it to two agents of an episode.',
        'finite': 'Look for a division by zero where it is computed.',
        'action_mask': 'One row per node, one column per action; True where the action is legal.',
        'legal action': 'Add an action that waits.',
        'gradient': 'Step the game under torch.no_grad().',
        'device': 'Create every tensor of a step on the same device.',
    }
)


def check_graph(spec: GraphEnvSpec, graph: Batch, where: str) -> None:
    for clause in GRAPH_CLAUSES:
        clause(spec, graph, where)


def _is_batch(spec: GraphEnvSpec, graph: Batch, where: str) -> None:
    if not isinstance(graph, Batch) or not isinstance(graph, Snapshot):
        fail('batch', where, 'a PyG Batch of Snapshots', type(graph).__name__)
    if graph.num_graphs != spec.num_envs:
        fail('num_envs', where, f'{spec.num_envs} graphs, one per episode', str(graph.num_graphs))


def _has_fields(spec: GraphEnvSpec, graph: Batch, where: str) -> None:
    wanted = {
        'x': True,
        'edge_index': True,
        'edge_attr': spec.edge_dim is not None,
        'action_mask': spec.has_action_mask,
    }
    for name, needed in wanted.items():
        there = isinstance(graph.get(name), Tensor)
        if there != needed:
            fail('fields', where, f'{"a tensor" if needed else "no"} `{name}`', f'{"one" if there else "none"}')
    if not spec.fixed_nodes and not isinstance(graph.get('node_id'), Tensor):
        fail('node identity', where, 'a tensor `node_id`', 'none')


def _rows_lie_by_graph(spec: GraphEnvSpec, graph: Batch, where: str) -> None:
    ptr, N = graph.ptr, int(graph.x.size(0))
    expected = torch.repeat_interleave(ptr.diff()) if bool((ptr.diff() >= 0).all()) else None
    fits = ptr.numel() == spec.num_envs + 1 and int(ptr[0]) == 0 and int(ptr[-1]) == N
    if not fits or expected is None or not torch.equal(graph.batch, expected):
        fail(
            'nodes by graph',
            where,
            f'`ptr` and `batch` that split the {N} rows of x into graphs, in order',
            f'ptr {ptr.tolist()[:5]}.. and batch of {graph.batch.numel()} entries',
        )


def _x_fits(spec: GraphEnvSpec, graph: Batch, where: str) -> None:
    x, F = graph.x, spec.num_features
    if x.dim() != 2 or x.size(1) != F or x.dtype != spec.feature_dtype:
        fail('x', where, f'shape (N, {F}) of {spec.feature_dtype}, as the spec says', f'{tuple(x.shape)} of {x.dtype}')


def _edge_index_fits(spec: GraphEnvSpec, graph: Batch, where: str) -> None:
    edge_index = graph.edge_index
    if edge_index.dim() != 2 or edge_index.size(0) != 2 or edge_index.dtype != torch.int64:
        fail('edge_index', where, 'shape (2, E) of torch.int64', f'{tuple(edge_index.shape)} of {edge_index.dtype}')
    N = graph.x.size(0)
    outside = ((edge_index < 0) | (edge_index >= N)).any(0)
    if bool(outside.any()):
        fail('edge range', where, f'node numbers in [0, {N - 1}]', _examples(edge_index, outside))


def _edges_stay_in_their_graph(spec: GraphEnvSpec, graph: Batch, where: str) -> None:
    sender, receiver = graph.batch[graph.edge_index[0]], graph.batch[graph.edge_index[1]]
    if bool((sender != receiver).any()):
        fail('edges across graphs', where, 'edges within one graph', _examples(graph.edge_index, sender != receiver))
    if bool((sender.diff() < 0).any()):
        fail('edges by graph', where, 'the edges of graph 0, then those of graph 1, and so on', 'another order')


def _no_self_loops(spec: GraphEnvSpec, graph: Batch, where: str) -> None:
    loops = graph.edge_index[0] == graph.edge_index[1]
    if bool(loops.any()):
        fail('self-loops', where, 'no edge from a node to itself', _examples(graph.edge_index, loops))


def _no_duplicates(spec: GraphEnvSpec, graph: Batch, where: str) -> None:
    code = _edge_codes(graph)
    doubles = code.numel() - code.unique().numel()
    if doubles:
        fail('duplicate edges', where, 'each edge once', f'{doubles} too many')


def _edge_attr_fits(spec: GraphEnvSpec, graph: Batch, where: str) -> None:
    if spec.edge_dim is None:
        return
    attr, shape = graph.edge_attr, (int(graph.edge_index.size(1)), spec.edge_dim)
    if tuple(attr.shape) != shape or attr.dtype != spec.edge_dtype:
        fail('edge_attr', where, f'shape {shape} of {spec.edge_dtype}', f'{tuple(attr.shape)} of {attr.dtype}')


def _sizes_are_bounded(spec: GraphEnvSpec, graph: Batch, where: str) -> None:
    nodes = graph.ptr.diff()
    edges = torch.bincount(graph.batch[graph.edge_index[0]], minlength=spec.num_envs)
    for name, count in (('max_nodes', nodes), ('max_edges', edges)):
        if int(count.max()) > getattr(spec, name):
            fail(
                name,
                where,
                f'at most {getattr(spec, name)} in each graph',
                f'{int(count.max())} in graph {int(count.argmax())}',
            )


def _symmetry_is_kept(spec: GraphEnvSpec, graph: Batch, where: str) -> None:
    if not spec.symmetric:
        return
    back = graph.edge_index.flip(0)
    alone = ~torch.isin(_edge_codes(graph), back[0] * graph.x.size(0) + back[1])
    if bool(alone.any()):
        fail('symmetric', where, 'with j -> i also i -> j, as the spec declares', _examples(graph.edge_index, alone))


def _node_id_is_unique(spec: GraphEnvSpec, graph: Batch, where: str) -> None:
    node_id = graph.get('node_id')
    if node_id is None:
        return
    if tuple(node_id.shape) != (graph.x.size(0),) or node_id.dtype != torch.int64:
        fail(
            'node_id', where, f'shape ({graph.x.size(0)},) of torch.int64', f'{tuple(node_id.shape)} of {node_id.dtype}'
        )
    pairs = torch.stack([graph.batch, node_id])
    doubles = pairs.size(1) - pairs.unique(dim=1).size(1)
    if doubles:
        fail('node_id unique', where, 'each number once in a graph', f'{doubles} used twice')


def _numbers_are_finite(spec: GraphEnvSpec, graph: Batch, where: str) -> None:
    for name in ('x', 'edge_attr'):
        value = graph.get(name)
        if value is not None:
            check_finite(name, value, where)


def _has_a_legal_action(spec: GraphEnvSpec, graph: Batch, where: str) -> None:
    if not spec.has_action_mask:
        return
    mask, shape = graph.action_mask, (int(graph.x.size(0)), spec.num_actions)
    if tuple(mask.shape) != shape or mask.dtype != torch.bool:
        fail('action_mask', where, f'shape {shape} of torch.bool', f'{tuple(mask.shape)} of {mask.dtype}')
    stuck = ~mask.any(1)
    if bool(stuck.any()):
        fail(
            'legal action',
            where,
            'at least one legal action per node',
            f'none for {int(stuck.sum())} nodes, first node {int(stuck.nonzero()[0])}',
        )


def _tensors_are_plain(spec: GraphEnvSpec, graph: Batch, where: str) -> None:
    tensors = {key: graph[key] for key in graph.keys() if isinstance(graph[key], Tensor)}  # noqa: SIM118
    check_plain(tensors, where, graph.x.device)


GRAPH_CLAUSES = (
    _is_batch,
    _has_fields,
    _x_fits,
    _rows_lie_by_graph,
    _edge_index_fits,
    _edges_stay_in_their_graph,
    _no_self_loops,
    _no_duplicates,
    _edge_attr_fits,
    _sizes_are_bounded,
    _symmetry_is_kept,
    _node_id_is_unique,
    _numbers_are_finite,
    _has_a_legal_action,
    _tensors_are_plain,
)


def check_separates(graph: Batch) -> None:
    try:
        again = Batch.from_data_list(graph.to_data_list())
        names = differences(digest_graph('graph', graph), digest_graph('graph', again))
        got = f'other {", ".join(names)}' if names else ''
    except Exception as error:
        got = f'{type(error).__name__}: {error}'
    if got:
        fail('separates', 'reset', 'to_data_list() and from_data_list() to give the same batch', got)


def _examples(edge_index: Tensor, bad: Tensor) -> str:
    edges = [f'{j} -> {i}' for j, i in edge_index[:, bad].t()[:3].tolist()]
    return f'{", ".join(edges)} ({int(bad.sum())} in all)'


def _edge_codes(graph: Batch) -> Tensor:
    return graph.edge_index[0] * graph.x.size(0) + graph.edge_index[1]


def check_finite(name: str, value: Tensor, where: str) -> None:
    if value.is_floating_point() and not bool(value.isfinite().all()):
        bad = ~value.isfinite()
        fail(
            'finite',
            where,
            f'finite `{name}`',
            f'{int(bad.sum())} NaN or infinite entries, first at {bad.nonzero()[0].tolist()}',
        )


def check_plain(tensors: dict[str, Tensor], where: str, device: torch.device) -> None:
    for name, tensor in tensors.items():
        if tensor.requires_grad:
            fail('gradient', where, f'`{name}` without history', 'one that requires grad')
        if tensor.device != device:
            fail('device', where, f'`{name}` on {device}, like x', str(tensor.device))
