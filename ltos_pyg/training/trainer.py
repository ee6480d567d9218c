"""The training loop, and nothing else."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from tqdm import tqdm

from ltos_pyg.algos import Algorithm
from ltos_pyg.graph_env import GraphEnv
from ltos_pyg.graph_env.base import check_step
from ltos_pyg.seeding import seed_stream
from ltos_pyg.training.checkpoint import CheckpointStore, state_must_fit
from ltos_pyg.training.config import TrainConfig
from ltos_pyg.training.evaluate import EpisodeTally, Stat, evaluate
from ltos_pyg.training.logging import MetricsLogger

Metrics = dict[str, float]


class Interrupted(Exception):
    """The user stopped the run; its state was saved."""


class Trainer:
    """Drives an algorithm through an environment: acts, observes, updates, and at times logs, evaluates and saves.

    Everything that decides what happens next is in the checkpoint, so a run that was killed and resumed ends in the
    same weights as one that was not (where the environment can save its state).
    """

    def __init__(
        self,
        algorithm: Algorithm,
        env: GraphEnv,
        make_eval_env: Callable[[int], GraphEnv],
        config: TrainConfig,
        total_steps: int,
        logger: MetricsLogger,
        store: CheckpointStore,
        headline: str = 'return',
    ) -> None:
        self.algorithm, self.env, self.make_eval_env = algorithm, env, make_eval_env
        self.config, self.total_steps = config, total_steps
        self.logger, self.store, self.headline = logger, store, headline
        self.tally = EpisodeTally(env.spec.num_envs)
        self.graph = env.reset(config.seed)
        self.window = MetricWindow()
        self.last_eval: Metrics = {}
        self.seconds = dict.fromkeys(('act', 'env', 'replay', 'learn', 'evaluate', 'other'), 0.0)

    def run(self) -> None:
        """Trains to the end. Ctrl-C saves and raises :class:`Interrupted`."""
        algo, c = self.algorithm, self.config
        started = time.perf_counter() - sum(self.seconds.values())  # a resumed run counts on
        with self._progress() as bar, _catch_signals() as stop:
            if algo.env_steps == 0:
                self.evaluate()
            while algo.env_steps < self.total_steps and not stop:
                before = algo.env_steps
                self.advance()
                if _passed(before, algo.env_steps, c.eval_every):
                    self.evaluate()
                if _passed(before, algo.env_steps, c.log_every):
                    self.seconds['other'] += time.perf_counter() - started - sum(self.seconds.values())
                    self.log()
                if _passed(before, algo.env_steps, c.checkpoint_every):
                    self.save()
                bar.update(algo.env_steps - before)
                bar.set_postfix(self._shown(), refresh=False)
        self.save()
        if stop and algo.env_steps < self.total_steps:
            raise Interrupted

    def advance(self) -> None:
        """One step of every episode, then the gradient steps that are due."""
        algo = self.algorithm
        t0 = time.perf_counter()
        decision = algo.act(self.graph, explore=True)
        t1 = time.perf_counter()
        step = check_step(self.env.step(decision.action), self.env)
        t2 = time.perf_counter()
        algo.observe(self.graph, decision, step)
        self.tally.step(self.graph, step.reward, step.info, decision.sharing)
        if bool(step.ended.any()):
            episodes = self.tally.finish(step.ended.cpu(), step.outcome)
            self.window.add({f'train/{name}': float(value.mean()) for name, value in episodes.items()})
        self.graph = step.graph
        t3 = time.perf_counter()
        for _ in range(algo.due_updates):
            self.window.add(algo.update())
        t4 = time.perf_counter()
        for name, took in zip(('act', 'env', 'replay', 'learn'), (t1 - t0, t2 - t1, t3 - t2, t4 - t3), strict=True):
            self.seconds[name] += took

    def evaluate(self) -> None:
        """Greedy episodes of the policy on seeds that training never sees; one row of metrics."""
        start = time.perf_counter()
        with closing(self.make_eval_env(self.config.eval_episodes)) as env:
            self.last_eval = flatten(evaluate(self.algorithm, env, self.config.eval_seed))
        self.logger.log(self.algorithm.env_steps, **self.last_eval)
        self.seconds['evaluate'] += time.perf_counter() - start

    def log(self) -> None:
        """One row of metrics: means since the last row, and where the time went."""
        times = {f'seconds/{name}': value for name, value in self.seconds.items()}
        self.logger.log(self.algorithm.env_steps, updates=self.algorithm.updates, **self.window.means(), **times)

    def save(self) -> None:
        """One checkpoint with everything that a resumed run needs."""
        state = {
            'algorithm': self.algorithm.state_dict(),
            'env': self.env.state_dict(),
            'tally': dict(self.tally.sums),
            'window': self.window.state_dict(),
            'last_eval': dict(self.last_eval),
            'seconds': dict(self.seconds),
        }
        self.store.save(self.algorithm.env_steps, state)

    @state_must_fit()
    def load(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint; raises a ``ValueError`` if it is one of something else."""
        self.algorithm.load_state_dict(state['algorithm'])
        if state['env'] is not None:
            self.graph = self.env.load_state_dict(state['env'])
            self.tally.sums = state['tally']
        else:
            self.algorithm.restart_episodes()
            name = str(self.algorithm.env_steps)  # not the episodes that the run began with
            self.graph = self.env.reset(seed_stream(self.config.seed, 'restart', name) >> 1)
        self.window.load_state_dict(state['window'])
        self.last_eval, self.seconds = state['last_eval'], state['seconds']

    def _progress(self) -> Any:
        return tqdm(total=self.total_steps, initial=self.algorithm.env_steps, unit=' steps', smoothing=0.05)

    def _shown(self) -> dict[str, str]:
        shown = {f'train {self.headline}': self.window.latest.get(f'train/{self.headline}')}
        shown[f'eval {self.headline}'] = self.last_eval.get(f'eval/{self.headline}')
        return {name: f'{value:.3f}' for name, value in shown.items() if value is not None}


class MetricWindow:
    """Means of metrics since they were last asked for."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, int]] = {}
        self.latest: Metrics = {}

    def add(self, metrics: Metrics) -> None:
        """Adds one value each."""
        for name, value in metrics.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value, count + 1)
            self.latest[name] = value

    def means(self) -> Metrics:
        """The means, and starts anew."""
        means = {name: total / count for name, (total, count) in self.sums.items()}
        self.sums = {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        return {'sums': {name: list(value) for name, value in self.sums.items()}, 'latest': dict(self.latest)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to earlier sums."""
        self.sums = {name: (value[0], int(value[1])) for name, value in state['sums'].items()}
        self.latest = state['latest']


def flatten(stats: dict[str, Stat]) -> Metrics:
    """An evaluation as log names: ``eval/return``, ``eval/return_std``, …"""
    flat: Metrics = {}
    for name, stat in stats.items():
        flat |= {f'eval/{name}': stat.mean, f'eval/{name}_std': stat.std}
    return flat | {'eval/episodes': float(stats['return'].count)}


def _passed(before: int, after: int, every: int) -> bool:
    return before // every != after // every


@contextmanager
def _catch_signals() -> Iterator[list[int]]:
    """Within it, Ctrl-C and a termination request fill the list that it yields, so that the step in hand is finished.

    A second Ctrl-C stops at once. Elsewhere than in the main thread, signals are left as they are.
    """
    caught: list[int] = []

    def note(number: int, frame: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        before = {}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
