"""A gradient step of LToS by two processes with half the batch each, against one process with the whole batch."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.scale import jungle_size
from ltos_pyg.algos import LToS, LToSConfig
from ltos_pyg.algos.ranks import Ranks, training_with
from ltos_pyg.envs import JungleEnv
from ltos_pyg.training.distributed import same_weights

CASES = {'20 agents, batch of 32 graphs': (20, 32, 60), '1,000 agents, batch of 8 graphs': (1_000, 8, 4)}
RANKS = 2


def bench_ranks() -> list[dict[str, Any]]:
    """Wall-clock and CPU seconds of a gradient step on the jungle, with one thread in each process.

    The ratio says how many times faster the two processes are; 2 at best. Wall-clock time is meaningful only with two
    idle cores.
    """
    torch.set_num_threads(1)
    rows = []
    for name, (agents, batch, steps) in CASES.items():
        _run(1, agents, 1, 1)  # compiles
        (one,), both = _run(1, agents, batch, steps), _run(RANKS, agents, batch // RANKS, steps)
        two = tuple(max(each) for each in zip(*both, strict=True))
        for kind, alone, each in zip(('by the clock', 'of CPU'), one, two, strict=True):
            row = {'name': f'ranks: {name}, one process', 'value': 1e3 * alone, 'unit': 'ms', 'note': kind}
            rows.append(row | {'ratio': None, 'target': None})
            row = {'name': f'ranks: {name}, each of {RANKS}', 'value': 1e3 * each, 'unit': 'ms', 'note': kind}
            rows.append(row | {'ratio': alone / each, 'ratio_to': 'one process', 'target': None})
    return rows


def _run(size: int, agents: int, batch: int, steps: int) -> list[tuple[float, float]]:
    """Wall-clock and CPU seconds of a gradient step, for each rank."""
    context = multiprocessing.get_context('spawn')  # where there is a GPU, PyTorch fails in a fork
    with tempfile.TemporaryDirectory() as folder:
        run = partial(_rank, size=size, meeting=str(Path(folder) / 'meeting'), agents=agents, batch=batch, steps=steps)
        with ProcessPoolExecutor(size, mp_context=context) as pool:  # raises if a rank dies
            return list(pool.map(run, range(size)))


def _rank(rank: int, size: int, meeting: str, agents: int, batch: int, steps: int) -> tuple[float, float]:
    os.environ.setdefault('GLOO_SOCKET_IFNAME', 'lo')
    if size > 1:
        dist.init_process_group('gloo', store=dist.FileStore(meeting, size), rank=rank, world_size=size)
    env = JungleEnv(2, num_agents=agents, num_foods=round(0.6 * agents), size=jungle_size(agents))
    config = LToSConfig(batch_size=batch, phi_starts=0.0, replay_size=40, encoder_channels=(256,))
    learner, graph = LToS(env.spec, config, seed=rank), env.reset(rank)
    for _ in range(10):
        decision = learner.act(graph, explore=True)
        step = env.step(decision.action)
        learner.observe(graph, decision, step)
        graph = step.graph
    with training_with(Ranks(rank, size)) as ranks:
        same_weights(learner, ranks)
        learner.update()
        clock, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            learner.update()
        found = (time.perf_counter() - clock) / steps, (time.process_time() - cpu) / steps
    if size > 1:
        dist.destroy_process_group()
    return found
