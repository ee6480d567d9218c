"""Time of the parts of a training run, and of one update: LToS on the jungle, as in ``ltos train jungle``."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from ltos_pyg.registry import scenario
from ltos_pyg.training.checkpoint import CheckpointStore
from ltos_pyg.training.logging import MetricsLogger
from ltos_pyg.training.run import make_algorithm
from ltos_pyg.training.trainer import Trainer

STEPS = 4_000  # env steps measured, after as many to warm up
UPDATES = 80  # timed one by one, steps of the high level included, after a tenth to warm up


def bench_training() -> list[dict[str, Any]]:
    """Runs the loop for a while and splits its time: environment, replay, logging, and the networks.

    Sampling from the replay happens inside an update; it is timed separately, by repeating it.
    """
    chosen = scenario('jungle')
    config = chosen.config('ltos')
    make_env = chosen.make_env(config)
    env = make_env(config.train.num_envs)
    algorithm: Any = make_algorithm(config, env.spec)
    with tempfile.TemporaryDirectory() as folder, MetricsLogger(Path(folder) / 'metrics.jsonl') as log:
        store = CheckpointStore(Path(folder))
        trainer = Trainer(algorithm, env, make_env, config.train, STEPS, log, store, chosen.primary_metric)
        while algorithm.env_steps < STEPS:
            trainer.advance()
        before, updates, start = dict(trainer.seconds), algorithm.updates, time.perf_counter()
        while algorithm.env_steps < 2 * STEPS:
            trainer.advance()
        trainer.log()
        total = time.perf_counter() - start
        updates = algorithm.updates - updates
        c, start = algorithm.config, time.perf_counter()
        for _ in range(updates):
            algorithm.replay.sample(c.batch_size, algorithm.replay_rng, c.n_step, c.gamma)
        sampling = time.perf_counter() - start
    spent = {name: trainer.seconds[name] - before[name] for name in ('act', 'env', 'replay', 'learn')}
    networks = spent['act'] + spent['learn'] - sampling
    note = f'{STEPS:,} env steps, {updates} updates in {total:.1f} s'
    rows = [
        ('environment', spent['env']),
        ('replay: store', spent['replay']),
        ('replay: sample', sampling),
        ('loop, metrics', total - sum(spent.values())),
    ]
    return [
        *({'name': f'training: {name}', 'value': 100 * took / total, 'unit': '% of time'} for name, took in rows),
        {
            'name': 'training: all but the networks',
            'value': 100 * (total - networks) / total,
            'unit': '% of time',
            'target': '< 15',
            'note': note,
        },
        {'name': 'training: LToS', 'value': STEPS / total, 'unit': 'env steps/s'},
        *(bench_update(name) for name in ('ltos', 'ltos_edge')),
    ]


def bench_update(name: str) -> dict[str, Any]:
    """CPU time of an update on one thread, once the high level trains: the median with and without a step of it."""
    chosen = scenario('jungle')
    config = chosen.config(name)
    env = chosen.make_env(config)(config.train.num_envs)
    algorithm: Any = make_algorithm(replace(config, algorithm=replace(config.algorithm, phi_starts=0.0)), env.spec)
    graph = env.reset(0)
    for _ in range(2 * config.algorithm.n_step + 10):
        decision = algorithm.act(graph, explore=True)
        step = env.step(decision.action)
        algorithm.observe(graph, decision, step)
        graph = step.graph
    spent: dict[bool, list[float]] = {True: [], False: []}
    for k in range(UPDATES + UPDATES // 10):
        high, start = algorithm.updates % config.algorithm.phi_every == 0, time.process_time()
        algorithm.update()
        if k >= UPDATES // 10:
            spent[high].append(time.process_time() - start)
    low, high_too = (1e3 * median(spent[high]) for high in (False, True))
    return {
        'name': f'training: one update of {name}',
        'value': low + (high_too - low) / config.algorithm.phi_every,
        'unit': 'ms',
        'note': f'{low:.1f} ms without and {high_too:.1f} ms with a step of the high level',
    }
