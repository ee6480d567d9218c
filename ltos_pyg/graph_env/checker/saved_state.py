"""Clauses about saved states."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import closing
from typing import Any

import torch
from torch_geometric.data import Batch

from ltos_pyg.graph_env.base import GraphEnv
from ltos_pyg.graph_env.checker.clauses import EnvCheckError, declare
from ltos_pyg.graph_env.checker.fingerprint import check_same, differences, digest_graph
from ltos_pyg.graph_env.checker.walk import go_on, record_trajectory, walk
from ltos_pyg.plain import check_plain

fail = declare(
    {
        'plain state': 'Save tensors, numbers, strings, lists and dicts only: a generator by its get_state().',
        'loaded graph': 'Return the batch that was to be acted on when the state was saved.',
        'saved state': 'Save clocks, positions and generators, as copies: later steps must not change them.',
    }
)


def check_saved_state(make_env: Callable[[], GraphEnv], steps: int, seed: int) -> None:
    with closing(make_env()) as env, closing(make_env()) as other:
        *_, (graph, _) = walk(env, env.reset(seed), max(steps // 4, 1), seed)
        state = env.state_dict()
        if state is None:
            return
        shown = digest_graph('graph', graph)
        expected = [shown, *go_on(env, graph, steps // 2, seed)]
        back = other.load_state_dict(_through_a_file(state))
        if not isinstance(back, Batch) or differences(shown, digest_graph('graph', back)):
            fail('loaded graph', 'load_state_dict()', 'the batch that was to be acted on', 'another one')
        check_same(expected, record_trajectory(other, back, steps // 2, seed), 'saved state')


def _through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    try:
        check_plain(state, 'state')
    except ValueError as error:
        raise EnvCheckError(
            'plain state', 'state_dict()', 'tensors and plain containers, as a checkpoint holds', str(error)
        ) from error
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
