"""Clauses about actions that do not fit."""

from __future__ import annotations

import torch
from torch import Tensor

from ltos_pyg.graph_env.base import GraphEnv
from ltos_pyg.graph_env.checker.clauses import declare
from ltos_pyg.graph_env.checker.fingerprint import Digest, check_same, digest_graph, digest_step
from ltos_pyg.graph_env.checker.walk import random_action

fail = declare(
    {
        'wrong length': 'Compare action.shape with the number of nodes first: such actions are for another batch.',
        'after a wrong length': 'Check the actions before any state changes or random number is drawn.',
    }
)


def check_wrong_length(env: GraphEnv, trajectory: list[Digest], steps: int, seed: int) -> None:
    graph, rng = env.reset(seed), torch.Generator().manual_seed(seed)
    got = [digest_graph('graph', graph)]
    for _ in range(steps):
        action = random_action(graph, env.spec, rng)
        for wrong in (action[:-1], torch.cat([action, action.new_zeros(1)])):
            if wrong.numel() != action.numel():
                _check_rejected(env, wrong, action.numel())
        step = env.step(action)
        graph = step.graph
        got.append(digest_step(step))
    check_same(trajectory[: steps + 1], got, 'after a wrong length')


def _check_rejected(env: GraphEnv, wrong: Tensor, right: int) -> None:
    try:
        env.step(wrong)
        got = 'a step'
    except ValueError:
        return
    except Exception as error:
        got = f'{type(error).__name__}: {error}'
    fail('wrong length', f'step({wrong.numel()} actions for {right} nodes)', 'a ValueError', got)
