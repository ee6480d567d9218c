"""One GPU compared with one CPU core, in the same run: layers, environment, gradient steps, and whole training."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.scale import ONE_GRAPH, jungle, play
from ltos_pyg.algos import LToS
from ltos_pyg.envs import JungleEnv
from ltos_pyg.nn import LToSConv
from ltos_pyg.registry import scenario
from ltos_pyg.training.checkpoint import CheckpointStore
from ltos_pyg.training.logging import MetricsLogger
from ltos_pyg.training.run import make_algorithm
from ltos_pyg.training.trainer import Trainer

AGENTS = (1_000, 10_000, 100_000)  # of one graph
EPISODES = (8, 256, 4_096)  # of 20 agents, side by side
BATCHES = (32, 256, 1_024)  # graphs of 20 agents
LOOPS = {'8 episodes, batches of 32': (8, 32, 3_000), '128 episodes, batches of 512': (128, 512, 6_000)}
SECONDS = 0.5  # of repetitions of a call
DEVICES = ('cpu', 'cuda')

Row = dict[str, Any]


def bench_gpu() -> list[Row]:
    """Wall-clock seconds. The CPU uses one thread, as in training; the ratio says how many times faster the GPU is.

    Raises:
        ValueError: Without a GPU.
    """
    if not torch.cuda.is_available():
        raise ValueError("'ltos bench gpu' needs a GPU, and PyTorch finds none that it can use here")
    torch.set_num_threads(1)
    return [
        *(row for agents in AGENTS for row in _compare(f'LToSConv, {agents:,} agents', _layer, agents)),
        *(row for count in EPISODES for row in _compare(f'jungle, step of {count:,} episodes', _episodes, count)),
        *(row for size in BATCHES for row in _compare(f'LToS update, {size:,} graphs', _update, size, 'float32')),
        *(row for size in BATCHES for row in _compare(f'LToS update, {size:,} graphs, bf16', _update, size, 'bf16')),
        *(row for agents in AGENTS for row in _compare(f'LToS update, a graph of {agents:,}', _large, agents)),
        *(row for name, loop in LOOPS.items() for row in _loops(name, *loop)),
    ]


def _compare(name: str, make: Callable[..., Callable[[], Any] | None], *sizes: Any) -> list[Row]:
    rows: list[Row] = []
    for device in DEVICES:
        call = make(device, *sizes)
        if call is None:
            continue
        torch.cuda.reset_peak_memory_stats()
        row = {'name': f'gpu: {name}, {device}', 'value': 1e3 * _time(call), 'unit': 'ms'}
        if device == 'cuda':
            row['note'] = f'{torch.cuda.max_memory_allocated() / 2**20:,.0f} MiB on the GPU'
        rows.append(row)
    if len(rows) == len(DEVICES):
        rows[-1] |= {'ratio': rows[0]['value'] / rows[1]['value'], 'ratio_to': 'the processor'}
    return rows


def _time(call: Callable[[], Any]) -> float:
    """Median seconds of a call, after one to warm up."""
    took: list[float] = []
    while len(took) < 2 or (sum(took[1:]) < SECONDS and len(took) < 200):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        took.append(time.perf_counter() - start)
    return median(took[1:])


def _layer(device: str, agents: int) -> Callable[[], Any]:
    """Forward and backward on a jungle's graph."""
    env = jungle(agents)
    graph = env.reset(0)
    seen = [part.to(device) for part in (graph.x.float(), graph.edge_index, graph.edge_attr.float())]
    conv = LToSConv(env.spec.num_features, 64, heads=4, edge_dim=env.spec.edge_dim).to(device)
    return lambda: conv(*seen).sum().backward()


def _episodes(device: str, count: int) -> Callable[[], Any]:
    env = JungleEnv(count, device=device)
    env.reset(0)
    action = torch.randint(9, (20 * count,), device=device)
    return lambda: env.step(action)


def _update(device: str, size: int, precision: str) -> Callable[[], Any] | None:
    """One gradient step of the low and of the high level, as in ``ltos train jungle``, on ``size`` graphs."""
    if (device, precision) == ('cpu', 'bf16'):
        return None  # where a processor has no instructions for it, it is many times slower
    chosen = scenario('jungle')
    config = chosen.config('ltos')
    options = {'batch_size': size, 'phi_starts': 0.0, 'phi_every': 1, 'precision': precision}
    env = JungleEnv(64)
    learner: Any = make_algorithm(
        replace(config, algorithm=replace(config.algorithm, **options), train=replace(config.train, device=device)),
        env.spec,
    )
    play(learner, env, env.reset(0), 30)
    return learner.update


def _large(device: str, agents: int) -> Callable[[], Any] | None:
    """The same on one large graph; the processor is left out where it would take minutes."""
    if device == 'cpu' and agents > AGENTS[1]:
        return None
    env = jungle(agents)
    learner = LToS(env.spec, ONE_GRAPH, device=device)
    play(learner, env, env.reset(0), 2)
    return learner.update


def _loops(name: str, episodes: int, graphs: int, steps: int) -> list[Row]:
    """Env steps per second of ``ltos train jungle``, LToS, without evaluation, after the high level has begun."""
    rows: list[Row] = []
    for device in DEVICES:
        config = scenario('jungle').config('ltos')
        options = {'batch_size': graphs, 'train_freq': float(2 * episodes), 'phi_starts': 0.0, 'learning_starts': 1_000}
        train = replace(config.train, num_envs=episodes, device=device, checkpoint_every=10**9, eval_every=10**9)
        config = replace(config, algorithm=replace(config.algorithm, **options), train=train)
        make_env = scenario('jungle').make_env(config)
        env = make_env(episodes)
        learner: Any = make_algorithm(config, env.spec)
        with tempfile.TemporaryDirectory() as folder, MetricsLogger(Path(folder) / 'metrics.jsonl') as log:
            store = CheckpointStore(Path(folder))
            trainer = Trainer(learner, env, make_env, train, 10**9, log, store, 'reward')
            while learner.env_steps < steps // 4:
                trainer.advance()
            before, start = learner.env_steps, time.perf_counter()
            while learner.env_steps < steps:
                trainer.advance()
            torch.cuda.synchronize()
            rate = (learner.env_steps - before) / (time.perf_counter() - start)
        note = f'a batch per {2 * episodes} env steps'
        rows.append({'name': f'gpu: training, {name}, {device}', 'value': rate, 'unit': 'env steps/s', 'note': note})
    rows[1] |= {'ratio': rows[1]['value'] / rows[0]['value'], 'ratio_to': 'the processor'}
    return rows
