"""Clauses about a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch

from ltos_pyg.graph_env.base import GraphStep
from ltos_pyg.graph_env.checker.batch import check_finite, check_graph, check_plain
from ltos_pyg.graph_env.checker.clauses import declare
from ltos_pyg.graph_env.checker.fingerprint import Digest, differences, digest_graph
from ltos_pyg.graph_env.spec import GraphEnvSpec

fail = declare(
    {
        'step type': 'Return a ltos_pyg.graph_env.GraphStep.',
        'terminated': 'Two tensors of torch.bool, one entry per graph: the reason why an episode ended matters.',
        'truncated': 'Two tensors of torch.bool, one entry per graph: the reason why an episode ended matters.',
        'one end': 'Terminated forbids the bootstrap, truncated asks for it: an episode that does both is terminated.',
        'reward': 'An agent that left in this step still gets its last reward; one that entered gets none yet.',
        'info': 'Return metrics per graph or per node that acted.',
        'outcome': 'Return one number per graph; it is read where the episode ended.',
        'horizon': 'Each episode has its own clock, which restarts with it; without a time limit, set horizon=None.',
        'going on': 'Restart only the episodes that ended.',
        'fixed_nodes': 'Keep the nodes, or declare fixed_nodes=False and emit node_id.',
        'overwritten': 'Return new tensors (or clones) at every step: a replay may still hold the old ones.',
    }
)


@dataclass(frozen=True)
class Played:
    """One step and what the clauses need to check it."""

    acted: Batch  # the graphs that the actions were for
    step: GraphStep
    clock: Tensor  # (B,) steps since each episode started, this one included
    where: str
    own_limit: bool = False  # the game may have a time limit of its own, before the horizon


def _is_step(spec: GraphEnvSpec, played: Played) -> None:
    if not isinstance(played.step, GraphStep):
        fail('step type', played.where, 'a GraphStep', type(played.step).__name__)


def _graphs_fit(spec: GraphEnvSpec, played: Played) -> None:
    check_graph(spec, played.step.successor, f'{played.where}, successor')
    if played.step.graph is not played.step.successor:
        check_graph(spec, played.step.graph, f'{played.where}, graph')


def _reward_fits(spec: GraphEnvSpec, played: Played) -> None:
    reward, N = played.step.reward, played.acted.x.size(0)
    if not isinstance(reward, Tensor) or tuple(reward.shape) != (N,) or reward.dtype != torch.float32:
        fail('reward', played.where, f'shape ({N},) of torch.float32: one per node that acted', _describe(reward))
    check_finite('reward', reward, played.where)


def _flags_fit(spec: GraphEnvSpec, played: Played) -> None:
    B = spec.num_envs
    for name in ('terminated', 'truncated'):
        flag = getattr(played.step, name)
        if not isinstance(flag, Tensor) or tuple(flag.shape) != (B,) or flag.dtype != torch.bool:
            fail(name, played.where, f'shape ({B},) of torch.bool: one per graph', _describe(flag))
    both = played.step.terminated & played.step.truncated
    if bool(both.any()):
        fail('one end', played.where, 'an episode that is terminated or truncated', f'both in graph {first_of(both)}')


def _info_fits(spec: GraphEnvSpec, played: Played) -> None:
    shapes = ((spec.num_envs,), (int(played.acted.x.size(0)),))
    for name, value in played.step.info.items():
        if not isinstance(value, Tensor) or tuple(value.shape) not in shapes:
            fail(
                'info',
                f'{played.where}, info[{name!r}]',
                f'a tensor of shape {shapes[0]} or {shapes[1]}',
                _describe(value),
            )


def _outcome_fits(spec: GraphEnvSpec, played: Played) -> None:
    for name, value in played.step.outcome.items():
        if not isinstance(value, Tensor) or tuple(value.shape) != (spec.num_envs,):
            where = f'{played.where}, outcome[{name!r}]'
            fail('outcome', where, f'a tensor of shape ({spec.num_envs},): one per graph', _describe(value))


def _results_are_plain(spec: GraphEnvSpec, played: Played) -> None:
    step = played.step
    tensors = {'reward': step.reward, 'terminated': step.terminated, 'truncated': step.truncated}
    check_plain(tensors | step.info | step.outcome, played.where, step.graph.x.device)


def _horizon_is_kept(spec: GraphEnvSpec, played: Played) -> None:
    if spec.horizon is None:
        return
    clock, truncated, ended = played.clock, played.step.truncated.cpu(), played.step.ended.cpu()
    early, late = truncated & (clock < spec.horizon) & (not played.own_limit), ~ended & (clock >= spec.horizon)
    for name, wrong in (('truncated', early), ('going on', late)):
        if bool(wrong.any()):
            fail(
                'horizon',
                played.where,
                f'episodes truncated after {spec.horizon} steps, as the spec says',
                f'graph {first_of(wrong)} {name} after {int(clock[wrong][0])}',
            )


def _others_go_on(spec: GraphEnvSpec, played: Played) -> None:
    graph, successor = played.step.graph, played.step.successor
    names = differences(digest_graph('graph', successor), digest_graph('graph', graph))
    going = ~played.step.ended
    if names and not bool(going.all()):
        names = differences(*(digest_graph('graph', _part(batch, going)) for batch in (successor, graph)))
    if names:
        fail(
            'going on',
            played.where,
            '`graph` equal to `successor` wherever no episode ended',
            f'other {", ".join(names)}',
        )


def _fixed_nodes_stay(spec: GraphEnvSpec, played: Played) -> None:
    if not spec.fixed_nodes:
        return
    before, after = played.acted, played.step.successor
    same = torch.equal(before.ptr, after.ptr)
    if same and isinstance(before.get('node_id'), Tensor):
        same = torch.equal(before.node_id, after.node_id)
    if not same:
        fail(
            'fixed_nodes',
            played.where,
            'the nodes of the step before, in the same order, as the spec declares',
            'other nodes',
        )


STEP_CLAUSES = (
    _is_step,
    _flags_fit,
    _graphs_fit,
    _reward_fits,
    _info_fits,
    _outcome_fits,
    _results_are_plain,
    _horizon_is_kept,
    _others_go_on,
    _fixed_nodes_stay,
)


def _describe(value: Any) -> str:
    return f'{tuple(value.shape)} of {value.dtype}' if isinstance(value, Tensor) else type(value).__name__


def first_of(flags: Tensor) -> int:
    return int(flags.nonzero()[0])


def _part(graph: Batch, chosen: Tensor) -> Batch:
    """The chosen graphs of a batch (B,) bool."""
    data = graph.to_data_list()
    picked = [data[i] for i in chosen.nonzero().flatten().tolist()]
    return Batch.from_data_list(picked) if picked else Batch()


def check_not_overwritten(expected: Digest, got: Digest, t: int) -> None:
    names = differences(expected, got)
    if names:
        fail('overwritten', f'step {t}', 'batches returned before to stay unchanged', f'other {", ".join(names)}')
