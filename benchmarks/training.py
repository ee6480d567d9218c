"""Time of the parts of a training run: LToS on the jungle, as in ``ltos train jungle``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ltos_pyg.registry import scenario
from ltos_pyg.training.checkpoint import CheckpointStore
from ltos_pyg.training.logging import MetricsLogger
from ltos_pyg.training.run import make_algorithm
from ltos_pyg.training.trainer import Trainer

STEPS = 4_000  # env steps measured, after as many to warm up


def bench_training() -> list[dict[str, Any]]:
    """Runs the loop for a while and splits its time: environment, replay, logging, and the networks.

    Sampling from the replay happens inside an update; it is timed separately, by repeating it.
    """
    import time

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
    ]
