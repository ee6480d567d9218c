"""Clauses about randomness: it depends on the seed alone, and not on anything outside the environment."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Batch

from ltos_pyg.graph_env.base import GraphEnv
from ltos_pyg.graph_env.checker.clauses import EnvCheckError, declare, warn
from ltos_pyg.graph_env.checker.fingerprint import Digest, check_same, differences, digest_graph, digest_seen
from ltos_pyg.graph_env.checker.walk import go_on, record_trajectory

fail = declare(
    {
        'global randomness': 'Draw from a torch.Generator or np.random.Generator that the environment owns.',
        'concurrent instance': 'Keep state and generators on the object: not on the class or in the module.',
    }
)


def global_randomness() -> Digest:
    legacy: Any = np.random.get_state(legacy=False)  # noqa: NPY002 (to see whether the environment draws from it)
    return {
        'torch': torch.get_rng_state().numpy().tobytes(),
        'numpy': legacy['state']['key'].tobytes() + repr((legacy['state']['pos'], legacy['gauss'])).encode(),
        'random': repr(random.getstate()).encode(),
    }


def check_global_randomness(before: Digest, where: str) -> None:
    changed = differences(before, global_randomness())
    if changed:
        fail(
            'global randomness',
            where,
            'the global generators left alone',
            f'those of {", ".join(changed)} used or seeded',
        )


def check_concurrent(make_env: Callable[[], GraphEnv], trajectory: list[Digest], steps: int, seed: int) -> None:
    with closing(make_env()) as env, closing(make_env()) as other:
        try:
            graph = env.reset(seed)
            got = [digest_graph('graph', graph)]
            beside = go_on(other, other.reset(seed + 1), steps, seed + 1)
            for digest, _ in zip(go_on(env, graph, steps, seed), beside, strict=True):
                got.append(digest)
        except Exception as error:
            got_error = f'{type(error).__name__}: {error}'
            raise EnvCheckError('concurrent instance', 'play', 'the same episodes as alone', got_error) from error
    check_same(trajectory, got, 'concurrent instance')


def warn_about_seeds(env: GraphEnv, trajectory: list[Digest], seed: int) -> None:
    starts = [env.reset(seed), env.reset(), env.reset(seed + 1)]
    unseeded, other = (record_trajectory(env, env.reset(s), len(trajectory) - 1, seed) for s in (None, seed + 1))
    if unseeded != trajectory and other == trajectory:
        warn(
            f'seeds {seed} and {seed + 1} gave the same episodes, but reset() without a seed gave others: does '
            f'reset(seed) use its seed?'
        )
    differ = bool(differences(digest_seen(starts[0]), digest_seen(starts[1])))
    if differ and env.spec.num_envs > 1 and all(_all_alike(start) for start in starts):
        warn('all graphs of a batch start in the same state at each reset: does each episode have its own seed?')


def _all_alike(batch: Batch) -> bool:
    first, *others = [digest_seen(graph) for graph in batch.to_data_list()]
    return all(other == first for other in others)
