"""Holds an environment to the contract: one small function per clause, each with a message of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import pickle
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch

from ltos_pyg.data.snapshot import Snapshot
from ltos_pyg.graph_env.base import GraphEnv, GraphStep
from ltos_pyg.graph_env.spec import GraphEnvSpec

Digest = dict[str, bytes]  # a fingerprint per tensor: what was seen, without keeping it

_REBUILD = 'Build it with ltos_pyg.data.batch_snapshots or Batch.from_data_list.'

CLAUSES = {
    # what is promised
    'type': 'Subclass ltos_pyg.graph_env.GraphEnv, or wrap a SingleGraphEnv in VectorGraphEnv.',
    'spec': 'Set it in __init__.',
    'spec types': 'Convert it where the spec is made.',
    'spec changed': 'Networks and memory are sized from it once: promise the largest sizes from the start.',
    # a batch of graphs
    'batch': _REBUILD,
    'num_envs': 'A finished episode restarts within the step; none may be left out.',
    'separates': _REBUILD,
    'fields': 'Emit what the spec says: edge_attr goes with edge_dim, action_mask with has_action_mask.',
    'who is who': 'Where nodes come and go, node_id tells them apart: emit it, or promise fixed_nodes=True.',
    'nodes by graph': _REBUILD,
    'x': 'Change num_features and feature_dtype in the spec, or what is emitted.',
    'edge_index': 'Convert it with .long(); transpose an (E, 2) list with .t().contiguous().',
    'edge range': 'Edges count over the whole batch: each graph is shifted once, by the nodes before it.',
    'edges across graphs': 'Episodes must not see each other: shift each graph once, by the nodes before it.',
    'edges by graph': 'Batches are cut into graphs by it: sort the edges by graph.',
    'self-loops': 'What a node keeps has a weight of its own: see torch_geometric.utils.remove_self_loops.',
    'duplicate edges': 'A neighbour counts once: see torch_geometric.utils.coalesce.',
    'edge_attr': 'One row per edge in the order of edge_index; edge_dim and edge_dtype stand in the spec.',
    'max_nodes': 'Memory is taken by it: raise it in the spec.',
    'max_edges': 'Memory is taken by it: raise it in the spec.',
    'symmetric': 'Add the way back (torch_geometric.utils.to_undirected), or promise symmetric=False.',
    'node_id': 'Give one number per node.',
    'node_id unique': 'It tells who is who from step to step: never give it to two agents of an episode.',
    'finite': 'Look for a division by zero where it is made.',
    'action_mask': 'One row per node, one column per action; True where the action is legal.',
    'legal action': 'Add an action that waits.',
    'gradient': 'Play under torch.no_grad().',
    'device': 'Make every tensor of a step on one device.',
    # a step
    'step type': 'Return a ltos_pyg.graph_env.GraphStep.',
    'terminated': 'Two tensors of torch.bool, one entry per graph: why an episode ended matters.',
    'truncated': 'Two tensors of torch.bool, one entry per graph: why an episode ended matters.',
    'one end': 'One forbids to bootstrap, the other asks for it: an episode that ends just in time is terminated.',
    'reward': 'An agent that left in this step still gets its last reward; one that came gets none yet.',
    'info': 'Metrics come per graph or per node that acted.',
    'horizon': 'Each episode has a clock of its own that restarts with it; without a clock, set horizon=None.',
    'going on': 'Restart only the episodes that ended.',
    'fixed_nodes': 'Keep the nodes, or promise fixed_nodes=False and emit node_id.',
    'overwritten': 'Return new tensors (or clones) at every step: a replay may still hold the old ones.',
    'restart': 'Keep the true end in `successor` (it is bootstrapped from), and start anew in `graph`.',
    # chance
    'global chance': 'Draw from a torch.Generator or np.random.Generator that the environment owns.',
    'again': 'reset(seed) must restart everything: clocks, positions, and every generator.',
    'new object': 'Let chance hang on the seed alone: not on the time, the object or the operating system.',
    'beside a twin': 'Keep state and generators on the object: not on the class or in the module.',
    # bad actions, saved states
    'wrong length': 'Compare action.shape with the number of nodes first: such actions were chosen for another batch.',
    'after a wrong length': 'Check the actions before anything moves or is drawn.',
    'plain state': 'Save tensors, numbers, strings, lists and dicts only: a generator by its get_state().',
    'loaded graph': 'Return the batch that was to be acted on when the state was saved.',
    'saved state': 'Save clocks, positions and generators, as copies: what comes after must not change them.',
}
"""Each clause of the contract, with the next move for who breaks it."""


class EnvCheckError(AssertionError):
    """An environment breaks the contract of :class:`~ltos_pyg.graph_env.GraphEnv`.

    Attributes:
        clause (str): The broken clause, one of ``CLAUSES``; it also opens the message.
    """

    def __init__(self, clause: str, where: str, expected: str, got: str) -> None:
        super().__init__(f'[{clause}] {where}: expected {expected}, got {got.rstrip(".")}. {CLAUSES[clause]}')
        self.clause = clause


class EnvCheckWarning(UserWarning):
    """An environment keeps the contract, but something about it is unwise or could not be checked."""


def check_env(make_env: Callable[[], GraphEnv], steps: int = 200, seed: int = 0) -> None:
    """Plays an environment with random legal actions and holds every step to the contract.

    It is played alone (every batch, reward and flag is checked), again from the same seed, once more as a new object,
    beside a twin that is in another episode, with actions of a wrong length in between, and from a saved state, where
    it offers one. All these plays must show the same episodes.

    Args:
        make_env: Makes the environment; called several times. It must take no argument: ``lambda: MyEnv(num_envs=4)``.
            Two to eight episodes side by side show most faults at least cost.
        steps (int): Steps of each play. Take enough to pass the end of several episodes.
        seed (int): Of the episodes and of the random actions.

    Raises:
        EnvCheckError: At the first broken clause: its name in brackets, where it broke, what was expected, what came,
            and what to do next.

    Warns:
        EnvCheckWarning: If no episode ended within ``steps``, if every terminated episode seems to have no start after
            it, if seeds make no difference in a game of chance, or if all graphs of a batch start alike.
    """
    if steps < 1:
        raise ValueError(f"'steps' must be at least 1 (got {steps})")
    chance = _global_chance()
    with closing(make_env()) as env:
        spec = _check_spec(env)
        diary = _play_alone(env, spec, steps, seed, chance)
        _check_same(diary, _diary(env, env.reset(seed), steps, seed), 'again')
        _check_wrong_length(env, diary, min(steps, 20), seed)
        _warn_about_seeds(env, diary[: min(steps, 20) + 1], seed)
        _check_spec_unchanged(env, spec)
    with closing(make_env()) as new:
        _check_same(diary, _diary(new, new.reset(seed), steps, seed), 'new object')
    _check_twin(make_env, diary, steps, seed)
    _check_saved_state(make_env, steps, seed)


def _fail(clause: str, where: str, expected: str, got: str) -> NoReturn:
    raise EnvCheckError(clause, where, expected, got)


# --- The play that every clause looks at -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Played:
    """One step as the clauses see it."""

    acted: Batch  # the graphs that were acted on
    step: GraphStep
    clock: Tensor  # (B,) steps since each episode started, this one included
    where: str


def _play_alone(env: GraphEnv, spec: GraphEnvSpec, steps: int, seed: int, chance: Digest) -> list[Digest]:
    graph = first = env.reset(seed)
    _check_graph(spec, graph, 'reset')
    _check_separates(graph)
    _check_global_chance(chance, 'reset')
    clock = torch.zeros(spec.num_envs, dtype=torch.int64)
    diary, ends = [_digest_graph('graph', graph)], _Ends()
    dice = torch.Generator().manual_seed(seed)
    last: GraphStep | None = None
    for t in range(1, steps + 1):
        clock += 1
        step = env.step(_random_action(graph, spec, dice))
        played = _Played(graph, step, clock, f'step {t}')
        for clause in STEP_CLAUSES:
            clause(spec, played)
        _check_kept(diary[-1], _digest_step(last) if last else _digest_graph('graph', graph), t)
        ends.note(played)
        clock[step.ended.cpu()] = 0
        diary.append(_digest_step(step))
        last, graph = step, step.graph
        _check_global_chance(chance, f'step {t}')
    _check_kept(diary[0], _digest_graph('graph', first), steps)
    ends.judge(steps)
    return diary


def _random_action(graph: Batch, spec: GraphEnvSpec, dice: torch.Generator) -> Tensor:
    N = int(graph.x.size(0))
    if N == 0 or not spec.has_action_mask:
        action = torch.randint(spec.num_actions, (N,), generator=dice)
    else:
        action = torch.multinomial(graph.action_mask.cpu().float(), 1, generator=dice).squeeze(1)
    return action.to(graph.x.device)


def _walk(env: GraphEnv, graph: Batch, steps: int, seed: int) -> Iterator[tuple[Batch, Digest]]:
    """Plays on from ``graph``, each step when it is asked for."""
    dice = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        step = env.step(_random_action(graph, env.spec, dice))
        graph = step.graph
        yield graph, _digest_step(step)


def _go_on(env: GraphEnv, graph: Batch, steps: int, seed: int) -> Iterator[Digest]:
    return (digest for _, digest in _walk(env, graph, steps, seed))


def _diary(env: GraphEnv, graph: Batch, steps: int, seed: int) -> list[Digest]:
    return [_digest_graph('graph', graph), *_go_on(env, graph, steps, seed)]


# --- Fingerprints ----------------------------------------------------------------------------------------------------


def _digest(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    about = f'{tensor.dtype}{tuple(tensor.shape)}'.encode()
    return hashlib.blake2b(about + flat.view(torch.uint8).numpy().tobytes(), digest_size=16).digest()


def _digest_graph(name: str, graph: Batch) -> Digest:
    return {f'{name}.{key}': _digest(graph[key]) for key in graph.keys() if isinstance(graph[key], Tensor)}  # noqa: SIM118


def _digest_step(step: GraphStep) -> Digest:
    graphs = _digest_graph('graph', step.graph)
    graphs |= _digest_graph('successor', step.successor)
    flags = {name: _digest(getattr(step, name)) for name in ('reward', 'terminated', 'truncated')}
    return graphs | flags | {f'info.{name}': _digest(value) for name, value in step.info.items()}


def _differences(expected: Digest, got: Digest) -> list[str]:
    return sorted(key for key in expected.keys() | got.keys() if expected.get(key) != got.get(key))


def _check_same(expected: list[Digest], got: list[Digest], clause: str) -> None:
    for t, (one, other) in enumerate(zip(expected, got, strict=True)):
        names = _differences(one, other)
        if names:
            where = 'reset' if t == 0 else f'step {t}'
            _fail(clause, where, 'the same episodes from the same seed and actions', f'other {", ".join(names)}')


# --- Clauses about the spec ------------------------------------------------------------------------------------------


def _check_spec(env: GraphEnv) -> GraphEnvSpec:
    if not isinstance(env, GraphEnv):
        _fail('type', 'make_env()', 'a GraphEnv', type(env).__name__)
    spec = getattr(env, 'spec', None)
    if not isinstance(spec, GraphEnvSpec):
        _fail('spec', 'make_env()', 'a GraphEnvSpec as `env.spec`', type(spec).__name__)
    _check_spec_types(spec)
    return spec


def _check_spec_types(spec: GraphEnvSpec) -> None:
    optional = ('edge_dim', 'horizon')
    for name in ('num_envs', 'num_features', 'num_actions', 'max_nodes', 'max_edges', *optional):
        value = getattr(spec, name)
        if type(value) is not int and not (name in optional and value is None):
            _fail('spec types', f'spec.{name}', 'an int', repr(value))
    for name in ('feature_dtype', 'edge_dtype'):
        if not isinstance(getattr(spec, name), torch.dtype):
            _fail('spec types', f'spec.{name}', 'a torch.dtype', repr(getattr(spec, name)))
    for name in ('has_action_mask', 'fixed_nodes', 'symmetric'):
        if type(getattr(spec, name)) is not bool:
            _fail('spec types', f'spec.{name}', 'a bool', repr(getattr(spec, name)))


def _check_spec_unchanged(env: GraphEnv, spec: GraphEnvSpec) -> None:
    if env.spec != spec:
        names = [f.name for f in dataclasses.fields(spec) if getattr(spec, f.name) != getattr(env.spec, f.name)]
        _fail('spec changed', 'after the play', 'the spec of the start', f'other {", ".join(names)}')


# --- Clauses about a batch of graphs ---------------------------------------------------------------------------------


def _check_graph(spec: GraphEnvSpec, graph: Batch, where: str) -> None:
    for clause in GRAPH_CLAUSES:
        clause(spec, graph, where)


def _is_batch(spec: GraphEnvSpec, graph: Batch, where: str) -> None:
    if not isinstance(graph, Batch) or not isinstance(graph, Snapshot):
        _fail('batch', where, 'a PyG Batch of Snapshots', type(graph).__name__)
    if graph.num_graphs != spec.num_envs:
        _fail('num_envs', where, f'{spec.num_envs} graphs, one per episode', str(graph.num_graphs))


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
            _fail('fields', where, f'{"a tensor" if needed else "no"} `{name}`', f'{"one" if there else "none"}')
    if not spec.fixed_nodes and not isinstance(graph.get('node_id'), Tensor):
        _fail('who is who', where, 'a tensor `node_id`', 'none')


def _rows_lie_by_graph(spec: GraphEnvSpec, graph: Batch, where: str) -> None:
    ptr, N = graph.ptr, int(graph.x.size(0))
    expected = torch.repeat_interleave(ptr.diff()) if bool((ptr.diff() >= 0).all()) else None
    fits = ptr.numel() == spec.num_envs + 1 and int(ptr[0]) == 0 and int(ptr[-1]) == N
    if not fits or expected is None or not torch.equal(graph.batch, expected):
        _fail(
            'nodes by graph',
            where,
            f'`ptr` and `batch` that split the {N} rows of x into graphs, in order',
            f'ptr {ptr.tolist()[:5]}.. and batch of {graph.batch.numel()} entries',
        )


def _x_fits(spec: GraphEnvSpec, graph: Batch, where: str) -> None:
    x, F = graph.x, spec.num_features
    if x.dim() != 2 or x.size(1) != F or x.dtype != spec.feature_dtype:
        _fail('x', where, f'shape (N, {F}) of {spec.feature_dtype}, as the spec says', f'{tuple(x.shape)} of {x.dtype}')


def _edge_index_fits(spec: GraphEnvSpec, graph: Batch, where: str) -> None:
    edge_index = graph.edge_index
    if edge_index.dim() != 2 or edge_index.size(0) != 2 or edge_index.dtype != torch.int64:
        _fail('edge_index', where, 'shape (2, E) of torch.int64', f'{tuple(edge_index.shape)} of {edge_index.dtype}')
    N = graph.x.size(0)
    outside = ((edge_index < 0) | (edge_index >= N)).any(0)
    if bool(outside.any()):
        _fail('edge range', where, f'node numbers in [0, {N - 1}]', _examples(edge_index, outside))


def _edges_stay_in_their_graph(spec: GraphEnvSpec, graph: Batch, where: str) -> None:
    sender, receiver = graph.batch[graph.edge_index[0]], graph.batch[graph.edge_index[1]]
    if bool((sender != receiver).any()):
        _fail('edges across graphs', where, 'edges within one graph', _examples(graph.edge_index, sender != receiver))
    if bool((sender.diff() < 0).any()):
        _fail('edges by graph', where, 'the edges of graph 0, then those of graph 1, and so on', 'another order')


def _no_self_loops(spec: GraphEnvSpec, graph: Batch, where: str) -> None:
    loops = graph.edge_index[0] == graph.edge_index[1]
    if bool(loops.any()):
        _fail('self-loops', where, 'no edge from a node to itself', _examples(graph.edge_index, loops))


def _no_duplicates(spec: GraphEnvSpec, graph: Batch, where: str) -> None:
    code = _edge_codes(graph)
    doubles = code.numel() - code.unique().numel()
    if doubles:
        _fail('duplicate edges', where, 'each edge once', f'{doubles} too many')


def _edge_attr_fits(spec: GraphEnvSpec, graph: Batch, where: str) -> None:
    if spec.edge_dim is None:
        return
    attr, shape = graph.edge_attr, (int(graph.edge_index.size(1)), spec.edge_dim)
    if tuple(attr.shape) != shape or attr.dtype != spec.edge_dtype:
        _fail('edge_attr', where, f'shape {shape} of {spec.edge_dtype}', f'{tuple(attr.shape)} of {attr.dtype}')


def _sizes_are_bounded(spec: GraphEnvSpec, graph: Batch, where: str) -> None:
    nodes = graph.ptr.diff()
    edges = torch.bincount(graph.batch[graph.edge_index[0]], minlength=spec.num_envs)
    for name, count in (('max_nodes', nodes), ('max_edges', edges)):
        if int(count.max()) > getattr(spec, name):
            _fail(
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
        _fail('symmetric', where, 'with j -> i also i -> j, as the spec promises', _examples(graph.edge_index, alone))


def _node_id_is_unique(spec: GraphEnvSpec, graph: Batch, where: str) -> None:
    node_id = graph.get('node_id')
    if node_id is None:
        return
    if tuple(node_id.shape) != (graph.x.size(0),) or node_id.dtype != torch.int64:
        _fail(
            'node_id', where, f'shape ({graph.x.size(0)},) of torch.int64', f'{tuple(node_id.shape)} of {node_id.dtype}'
        )
    pairs = torch.stack([graph.batch, node_id])
    doubles = pairs.size(1) - pairs.unique(dim=1).size(1)
    if doubles:
        _fail('node_id unique', where, 'each number once in a graph', f'{doubles} used twice')


def _numbers_are_finite(spec: GraphEnvSpec, graph: Batch, where: str) -> None:
    for name in ('x', 'edge_attr'):
        value = graph.get(name)
        if value is not None:
            _check_finite(name, value, where)


def _someone_may_act(spec: GraphEnvSpec, graph: Batch, where: str) -> None:
    if not spec.has_action_mask:
        return
    mask, shape = graph.action_mask, (int(graph.x.size(0)), spec.num_actions)
    if tuple(mask.shape) != shape or mask.dtype != torch.bool:
        _fail('action_mask', where, f'shape {shape} of torch.bool', f'{tuple(mask.shape)} of {mask.dtype}')
    stuck = ~mask.any(1)
    if bool(stuck.any()):
        _fail(
            'legal action',
            where,
            'at least one legal action per node',
            f'none for {int(stuck.sum())} nodes, first node {int(stuck.nonzero()[0])}',
        )


def _tensors_are_plain(spec: GraphEnvSpec, graph: Batch, where: str) -> None:
    tensors = {key: graph[key] for key in graph.keys() if isinstance(graph[key], Tensor)}  # noqa: SIM118
    _check_plain(tensors, where, graph.x.device)


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
    _someone_may_act,
    _tensors_are_plain,
)


def _check_separates(graph: Batch) -> None:
    try:
        again = Batch.from_data_list(graph.to_data_list())
        names = _differences(_digest_graph('graph', graph), _digest_graph('graph', again))
        got = f'other {", ".join(names)}' if names else ''
    except Exception as error:
        got = f'{type(error).__name__}: {error}'
    if got:
        _fail('separates', 'reset', 'to_data_list() and from_data_list() to give the same batch', got)


def _examples(edge_index: Tensor, bad: Tensor) -> str:
    edges = [f'{j} -> {i}' for j, i in edge_index[:, bad].t()[:3].tolist()]
    return f'{", ".join(edges)} ({int(bad.sum())} in all)'


def _edge_codes(graph: Batch) -> Tensor:
    return graph.edge_index[0] * graph.x.size(0) + graph.edge_index[1]


def _check_finite(name: str, value: Tensor, where: str) -> None:
    if value.is_floating_point() and not bool(value.isfinite().all()):
        bad = ~value.isfinite()
        _fail(
            'finite',
            where,
            f'finite `{name}`',
            f'{int(bad.sum())} NaN or infinite entries, first at {bad.nonzero()[0].tolist()}',
        )


def _check_plain(tensors: dict[str, Tensor], where: str, device: torch.device) -> None:
    for name, tensor in tensors.items():
        if tensor.requires_grad:
            _fail('gradient', where, f'`{name}` without history', 'one that requires grad')
        if tensor.device != device:
            _fail('device', where, f'`{name}` on {device}, like x', str(tensor.device))


# --- Clauses about a step --------------------------------------------------------------------------------------------


def _is_step(spec: GraphEnvSpec, played: _Played) -> None:
    if not isinstance(played.step, GraphStep):
        _fail('step type', played.where, 'a GraphStep', type(played.step).__name__)


def _graphs_fit(spec: GraphEnvSpec, played: _Played) -> None:
    _check_graph(spec, played.step.successor, f'{played.where}, successor')
    if played.step.graph is not played.step.successor:
        _check_graph(spec, played.step.graph, f'{played.where}, graph')


def _reward_fits(spec: GraphEnvSpec, played: _Played) -> None:
    reward, N = played.step.reward, played.acted.x.size(0)
    if not isinstance(reward, Tensor) or tuple(reward.shape) != (N,) or reward.dtype != torch.float32:
        _fail('reward', played.where, f'shape ({N},) of torch.float32: one per node that acted', _describe(reward))
    _check_finite('reward', reward, played.where)


def _flags_fit(spec: GraphEnvSpec, played: _Played) -> None:
    B = spec.num_envs
    for name in ('terminated', 'truncated'):
        flag = getattr(played.step, name)
        if not isinstance(flag, Tensor) or tuple(flag.shape) != (B,) or flag.dtype != torch.bool:
            _fail(name, played.where, f'shape ({B},) of torch.bool: one per graph', _describe(flag))
    both = played.step.terminated & played.step.truncated
    if bool(both.any()):
        _fail('one end', played.where, 'an episode that is terminated or truncated', f'both in graph {_first(both)}')


def _info_fits(spec: GraphEnvSpec, played: _Played) -> None:
    shapes = ((spec.num_envs,), (int(played.acted.x.size(0)),))
    for name, value in played.step.info.items():
        if not isinstance(value, Tensor) or tuple(value.shape) not in shapes:
            _fail(
                'info',
                f'{played.where}, info[{name!r}]',
                f'a tensor of shape {shapes[0]} or {shapes[1]}',
                _describe(value),
            )


def _results_are_plain(spec: GraphEnvSpec, played: _Played) -> None:
    step = played.step
    tensors = {'reward': step.reward, 'terminated': step.terminated, 'truncated': step.truncated, **step.info}
    _check_plain(tensors, played.where, step.graph.x.device)


def _horizon_is_kept(spec: GraphEnvSpec, played: _Played) -> None:
    if spec.horizon is None:
        return
    clock, truncated, ended = played.clock, played.step.truncated.cpu(), played.step.ended.cpu()
    early, late = truncated & (clock < spec.horizon), ~ended & (clock >= spec.horizon)
    for name, wrong in (('truncated', early), ('going on', late)):
        if bool(wrong.any()):
            _fail(
                'horizon',
                played.where,
                f'episodes truncated after {spec.horizon} steps, as the spec says',
                f'graph {_first(wrong)} {name} after {int(clock[wrong][0])}',
            )


def _others_go_on(spec: GraphEnvSpec, played: _Played) -> None:
    graph, successor = played.step.graph, played.step.successor
    names = _differences(_digest_graph('graph', successor), _digest_graph('graph', graph))
    going = ~played.step.ended
    if names and not bool(going.all()):
        names = _differences(*(_digest_graph('graph', _part(batch, going)) for batch in (successor, graph)))
    if names:
        _fail(
            'going on',
            played.where,
            '`graph` equal to `successor` wherever no episode ended',
            f'other {", ".join(names)}',
        )


def _fixed_nodes_stay(spec: GraphEnvSpec, played: _Played) -> None:
    if not spec.fixed_nodes:
        return
    before, after = played.acted, played.step.successor
    same = torch.equal(before.ptr, after.ptr)
    if same and isinstance(before.get('node_id'), Tensor):
        same = torch.equal(before.node_id, after.node_id)
    if not same:
        _fail(
            'fixed_nodes',
            played.where,
            'the nodes of the step before, in the same order, as the spec promises',
            'other nodes',
        )


STEP_CLAUSES = (
    _is_step,
    _flags_fit,
    _graphs_fit,
    _reward_fits,
    _info_fits,
    _results_are_plain,
    _horizon_is_kept,
    _others_go_on,
    _fixed_nodes_stay,
)


def _describe(value: Any) -> str:
    return f'{tuple(value.shape)} of {value.dtype}' if isinstance(value, Tensor) else type(value).__name__


def _first(flags: Tensor) -> int:
    return int(flags.nonzero()[0])


def _part(graph: Batch, chosen: Tensor) -> Batch:
    """The chosen graphs of a batch (B,) bool."""
    data = graph.to_data_list()
    picked = [data[i] for i in chosen.nonzero().flatten().tolist()]
    return Batch.from_data_list(picked) if picked else Batch()


def _check_kept(expected: Digest, got: Digest, t: int) -> None:
    names = _differences(expected, got)
    if names:
        _fail('overwritten', f'step {t}', 'what was returned before to stay as it was', f'other {", ".join(names)}')


# --- Clauses about ends of episodes ----------------------------------------------------------------------------------


class _Ends:
    """Whether a new episode was seen after the old one's end, over a whole play."""

    def __init__(self) -> None:
        self.count = {'truncated': 0, 'terminated': 0}
        self.restarted = {'truncated': 0, 'terminated': 0}
        self.moved = False  # did any step lead to another graph than it started from?

    def note(self, played: _Played) -> None:
        step = played.step
        self.moved = self.moved or bool(_differences(_seen(played.acted), _seen(step.successor)))
        for name in self.count:
            for i in getattr(step, name).nonzero().flatten().tolist():
                self.count[name] += 1
                self.restarted[name] += bool(_differences(_seen(step.successor[i]), _seen(step.graph[i])))

    def judge(self, steps: int) -> None:
        if not any(self.count.values()):
            _warn(f'no episode ended within {steps} steps, so no restart was checked: give more steps')
        for name, count in self.count.items():
            if self.moved and count >= 3 and self.restarted[name] == 0:
                text = f'`graph` is the same as `successor` in all {count} episodes that were {name}'
                if name == 'terminated':
                    _warn(f'{text}: does a new episode start within the step?')
                else:
                    _fail(
                        'restart', 'at the ends', '`successor` to be the end of an episode, `graph` a new start', text
                    )


def _seen(graph: Snapshot | Batch) -> Digest:
    return {key: _digest(graph[key]) for key in ('x', 'edge_index')}


def _warn(text: str) -> None:
    warnings.warn(text, EnvCheckWarning, stacklevel=4)


# --- Clauses about chance --------------------------------------------------------------------------------------------


def _global_chance() -> Digest:
    legacy: Any = np.random.get_state(legacy=False)  # noqa: NPY002 (to see whether someone draws from it)
    return {
        'torch': torch.get_rng_state().numpy().tobytes(),
        'numpy': legacy['state']['key'].tobytes() + repr((legacy['state']['pos'], legacy['gauss'])).encode(),
        'random': repr(random.getstate()).encode(),
    }


def _check_global_chance(before: Digest, where: str) -> None:
    changed = _differences(before, _global_chance())
    if changed:
        _fail(
            'global chance', where, 'the global generators left alone', f'those of {", ".join(changed)} used or seeded'
        )


def _check_twin(make_env: Callable[[], GraphEnv], diary: list[Digest], steps: int, seed: int) -> None:
    with closing(make_env()) as env, closing(make_env()) as twin:
        try:
            graph = env.reset(seed)
            got = [_digest_graph('graph', graph)]
            beside = _go_on(twin, twin.reset(seed + 1), steps, seed + 1)
            for digest, _ in zip(_go_on(env, graph, steps, seed), beside, strict=True):
                got.append(digest)
        except Exception as error:
            got_error = f'{type(error).__name__}: {error}'
            raise EnvCheckError('beside a twin', 'play', 'the same episodes as alone', got_error) from error
    _check_same(diary, got, 'beside a twin')


def _warn_about_seeds(env: GraphEnv, diary: list[Digest], seed: int) -> None:
    starts = [env.reset(seed), env.reset(), env.reset(seed + 1)]
    unseeded, other = (_diary(env, env.reset(s), len(diary) - 1, seed) for s in (None, seed + 1))
    if unseeded != diary and other == diary:
        _warn(f'seeds {seed} and {seed + 1} gave the same episodes, yet reset() gave others: does reset(seed) use it?')
    differ = bool(_differences(_seen(starts[0]), _seen(starts[1])))
    if differ and env.spec.num_envs > 1 and all(_all_alike(start) for start in starts):
        _warn('all graphs of a batch start alike, at every reset in another way: does each episode have its own seed?')


def _all_alike(batch: Batch) -> bool:
    first, *others = [_seen(graph) for graph in batch.to_data_list()]
    return all(other == first for other in others)


# --- Clauses about actions and saved states --------------------------------------------------------------------------


def _check_wrong_length(env: GraphEnv, diary: list[Digest], steps: int, seed: int) -> None:
    graph, dice = env.reset(seed), torch.Generator().manual_seed(seed)
    got = [_digest_graph('graph', graph)]
    for _ in range(steps):
        action = _random_action(graph, env.spec, dice)
        for wrong in (action[:-1], torch.cat([action, action.new_zeros(1)])):
            if wrong.numel() != action.numel():
                _check_rejected(env, wrong, action.numel())
        step = env.step(action)
        graph = step.graph
        got.append(_digest_step(step))
    _check_same(diary[: steps + 1], got, 'after a wrong length')


def _check_rejected(env: GraphEnv, wrong: Tensor, right: int) -> None:
    try:
        env.step(wrong)
        got = 'a step'
    except ValueError:
        return
    except Exception as error:
        got = f'{type(error).__name__}: {error}'
    _fail('wrong length', f'step({wrong.numel()} actions for {right} nodes)', 'a ValueError', got)


def _check_saved_state(make_env: Callable[[], GraphEnv], steps: int, seed: int) -> None:
    with closing(make_env()) as env, closing(make_env()) as other:
        *_, (graph, _) = _walk(env, env.reset(seed), max(steps // 4, 1), seed)
        state = env.state_dict()
        if state is None:
            return
        shown = _digest_graph('graph', graph)
        expected = [shown, *_go_on(env, graph, steps // 2, seed)]
        back = other.load_state_dict(_through_a_file(state))
        if not isinstance(back, Batch) or _differences(shown, _digest_graph('graph', back)):
            _fail('loaded graph', 'load_state_dict()', 'the batch that was to be acted on', 'another one')
        _check_same(expected, _diary(other, back, steps // 2, seed), 'saved state')


def _through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    try:
        torch.save(state, file)
        file.seek(0)
        return torch.load(file, weights_only=True)
    except (pickle.PickleError, TypeError, AttributeError, RuntimeError) as error:
        got = f'{type(error).__name__}: {str(error).splitlines()[0]}'
        raise EnvCheckError(
            'plain state', 'state_dict()', 'tensors and plain containers, as torch.load(weights_only=True) reads', got
        ) from error
