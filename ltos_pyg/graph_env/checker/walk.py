"""Runs with random legal actions, drawn from a seed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch_geometric.data import Batch

from ltos_pyg.graph_env.base import GraphEnv
from ltos_pyg.graph_env.checker.fingerprint import Digest, digest_graph, digest_step
from ltos_pyg.graph_env.spec import GraphEnvSpec


def random_action(graph: Batch, spec: GraphEnvSpec, rng: torch.Generator) -> Tensor:
    N = int(graph.x.size(0))
    if N == 0 or not spec.has_action_mask:
        action = torch.randint(spec.num_actions, (N,), generator=rng)
    else:
        action = torch.multinomial(graph.action_mask.cpu().float(), 1, generator=rng).squeeze(1)
    return action.to(graph.x.device)


def walk(env: GraphEnv, graph: Batch, steps: int, seed: int) -> Iterator[tuple[Batch, Digest]]:
    """Continues from ``graph``, lazily: one step per iteration."""
    rng = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        step = env.step(random_action(graph, env.spec, rng))
        graph = step.graph
        yield graph, digest_step(step)


def go_on(env: GraphEnv, graph: Batch, steps: int, seed: int) -> Iterator[Digest]:
    return (digest for _, digest in walk(env, graph, steps, seed))


def record_trajectory(env: GraphEnv, graph: Batch, steps: int, seed: int) -> list[Digest]:
    return [digest_graph('graph', graph), *go_on(env, graph, steps, seed)]
