"""Checks an environment against the contract: one small function per clause, each with its own message."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import torch

from ltos_pyg.graph_env.base import GraphEnv, GraphStep
from ltos_pyg.graph_env.checker.actions import check_wrong_length
from ltos_pyg.graph_env.checker.batch import check_graph, check_separates
from ltos_pyg.graph_env.checker.clauses import declare
from ltos_pyg.graph_env.checker.episodes import EpisodeEnds
from ltos_pyg.graph_env.checker.fingerprint import Digest, check_same, digest_graph, digest_step
from ltos_pyg.graph_env.checker.randomness import (
    check_concurrent,
    check_global_randomness,
    global_randomness,
    warn_about_seeds,
)
from ltos_pyg.graph_env.checker.saved_state import check_saved_state
from ltos_pyg.graph_env.checker.spec import check_spec, check_spec_unchanged
from ltos_pyg.graph_env.checker.step import STEP_CLAUSES, Played, check_not_overwritten
from ltos_pyg.graph_env.checker.walk import random_action, record_trajectory
from ltos_pyg.graph_env.spec import GraphEnvSpec
from ltos_pyg.graph_env.vector import VectorGraphEnv

declare(
    {
        'again': 'reset(seed) must restart everything: clocks, positions, and every generator.',
        'new object': 'Draw everything from the seed: not from the time, the object or the operating system.',
    }
)


def check_env(make_env: Callable[[], GraphEnv], steps: int = 200, seed: int = 0) -> None:
    """Plays an environment with random legal actions and checks every step against the contract.

    It is played alone (every batch, reward and flag is checked), again from the same seed, as a new object,
    concurrently with another instance in a different episode, with actions of a wrong length in between, and from a
    saved state, if it offers one. All these runs must give the same episodes.

    Args:
        make_env: Makes the environment; called several times. It must take no argument: ``lambda: MyEnv(num_envs=4)``.
            Two to eight parallel episodes find most faults at the lowest cost.
        steps (int): Steps of each run. Choose enough to pass the end of several episodes.
        seed (int): Seed of the episodes and of the random actions.

    Raises:
        EnvCheckError: At the first broken clause: its name in brackets, where it broke, what was expected, what it got,
            and what to do next.

    Warns:
        EnvCheckWarning: If no episode ended within ``steps``, if no new start follows the terminated episodes, if the
            seed has no effect in a stochastic game, or if all graphs of a batch start in the same state.
    """
    if steps < 1:
        raise ValueError(f"'steps' must be at least 1 (got {steps})")
    before = global_randomness()
    with closing(make_env()) as env:
        spec = check_spec(env)
        trajectory = play_alone(env, spec, steps, seed, before)
        check_same(trajectory, record_trajectory(env, env.reset(seed), steps, seed), 'again')
        check_wrong_length(env, trajectory, min(steps, 20), seed)
        warn_about_seeds(env, trajectory[: min(steps, 20) + 1], seed)
        check_spec_unchanged(env, spec)
    with closing(make_env()) as new:
        check_same(trajectory, record_trajectory(new, new.reset(seed), steps, seed), 'new object')
    check_concurrent(make_env, trajectory, steps, seed)
    check_saved_state(make_env, steps, seed)


def play_alone(env: GraphEnv, spec: GraphEnvSpec, steps: int, seed: int, before: Digest) -> list[Digest]:
    """Checks every step of a first run; returns its trajectory, which the other runs must repeat."""
    graph = first = env.reset(seed)
    check_graph(spec, graph, 'reset')
    check_separates(graph)
    check_global_randomness(before, 'reset')
    clock = torch.zeros(spec.num_envs, dtype=torch.int64)
    trajectory, ends = [digest_graph('graph', graph)], EpisodeEnds()
    rng = torch.Generator().manual_seed(seed)
    last: GraphStep | None = None
    for t in range(1, steps + 1):
        clock += 1
        step = env.step(random_action(graph, spec, rng))
        played = Played(graph, step, clock, f'step {t}', own_limit=isinstance(env, VectorGraphEnv))
        for clause in STEP_CLAUSES:
            clause(spec, played)
        check_not_overwritten(trajectory[-1], digest_step(last) if last else digest_graph('graph', graph), t)
        ends.note(played)
        clock[step.ended.cpu()] = 0
        trajectory.append(digest_step(step))
        last, graph = step, step.graph
        check_global_randomness(before, f'step {t}')
    check_not_overwritten(trajectory[0], digest_graph('graph', first), steps)
    ends.finish(steps)
    return trajectory
