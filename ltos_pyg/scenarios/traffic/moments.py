"""The decisions of one greedy episode on a road network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ltos_pyg.algos import Algorithm
from ltos_pyg.envs.traffic import TrafficEnv
from ltos_pyg.training.evaluate import play_seeded
from ltos_pyg.training.run import load_run

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Moment:
    """A decision in an episode: observations and actions of I signals."""

    time: int  # seconds since the start
    before: Ints  # (I,) phases shown so far
    phase: Ints  # (I,) phases chosen
    vehicles: Ints  # (L,) on each lane
    waiting: Ints  # (L,)
    kept: Floats | None  # (I,) share kept by each; None: no sharing
    edge_index: Ints  # (2, E)
    given: Floats | None  # (E,)


@torch.no_grad()
def traffic_moments(algorithm: Algorithm, env: TrafficEnv, seed: int = 0) -> Iterator[Moment]:
    """The decisions of one greedy episode, of the first graph of the environment."""
    graph = env.reset(seed)
    algorithm.reset_eval_state()
    engine = env.engines[0]
    with play_seeded(algorithm, seed):
        for k in range(env.horizon):
            decision = algorithm.act(graph)
            nodes, edges = int(graph.ptr[1]), graph.batch[graph.edge_index[0]] == 0
            before, sharing = env.phases[0][0], decision.sharing
            yield Moment(
                time=k * env.seconds,
                before=before,
                phase=env.choices[0].of(decision.action[:nodes].cpu().numpy()),
                vehicles=engine.lane_vehicle_count()[0].astype(np.int64),
                waiting=engine.lane_waiting_count()[0].astype(np.int64),
                kept=None if sharing is None else sharing.kept[:nodes].double().cpu().numpy(),
                edge_index=graph.edge_index[:, edges].cpu().numpy(),
                given=None if sharing is None else sharing.given[edges].double().cpu().numpy(),
            )
            step = env.step(decision.action)
            algorithm.on_eval_step(step)
            graph = step.graph


def load_traffic_run(folder: Path, device: str | None = None) -> tuple[Algorithm, TrafficEnv]:
    """The trained algorithm of a run folder, and its environment with one graph.

    Raises:
        ValueError: If the folder has no run of a traffic scenario.
    """
    algorithm, env, _ = load_run(folder, device)
    if not isinstance(env, TrafficEnv):
        raise ValueError(f"'{folder}' is a run without signals: expected one on 'traffic'")
    return algorithm, env
