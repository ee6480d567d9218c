"""The training loop, and nothing else."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, SupportsFloat

from torch import Tensor

from ltos_pyg.algos import Algorithm
from ltos_pyg.algos import ranks as ranks_of_run
from ltos_pyg.graph_env import GraphEnv
from ltos_pyg.graph_env.adapters.pettingzoo import PettingZooEnv
from ltos_pyg.graph_env.base import check_step
from ltos_pyg.plain import check_plain
from ltos_pyg.progress import Progress
from ltos_pyg.seeding import seed_stream
from ltos_pyg.training.callbacks import Callback, CallbackError
from ltos_pyg.training.checkpoint import CheckpointStore, state_must_fit
from ltos_pyg.training.config import TrainConfig
from ltos_pyg.training.distributed import check_same_weights, save_part, together
from ltos_pyg.training.evaluate import EpisodeTally, Stat, eval_episodes, evaluate
from ltos_pyg.training.logging import MetricsLogger
from ltos_pyg.training.metrics import OWN_METRICS

Metrics = dict[str, float]

FIRST_REWARDS = 1_000  # so many rewards other than 0 show their scale
SMALL_REWARD, LARGE_REWARD = 1e-3, 100.0  # a mean size outside of these is reported


class Interrupted(Exception):
    """The user stopped the run; its state was saved."""


class _EvaluationDropped(Exception):
    """A request to stop came during an evaluation."""


@dataclass
class HookProgress:
    """Which hooks of the current step were called. If one of them raised, or if an evaluation was dropped, the resumed
    run calls the remaining ones."""

    since: int | None = None  # env steps before the step; None: all that was due after it is done
    episodes: dict[str, Tensor] = field(default_factory=dict)  # that ended in the step
    metrics: Metrics | None = None  # of an evaluation whose row is not written yet
    called: dict[str, list[str]] = field(default_factory=dict)  # hook -> callbacks


class Trainer:
    """Runs an algorithm on an environment: acts, observes, updates, and periodically logs, evaluates and saves.

    A checkpoint has the complete state, so a run that was killed and resumed ends with the same weights as an
    uninterrupted one (if the environment can save its state).

    Where several ranks train a run together (:mod:`ltos_pyg.training.distributed`), each has a trainer, and all of them
    are at the same step. Rank 0 evaluates and logs (training metrics are means over all ranks). Each rank saves its own
    part of the checkpoint.

    Args:
        algorithm: The algorithm to train.
        env: The environment to train on.
        make_eval_env: Makes the environment with that many graphs, for evaluations.
        config: Options of the loop.
        total_steps: Env steps of the run.
        logger: Where metrics go; None: nowhere (ranks other than 0).
        store: Where checkpoints go.
        primary_metric: The metric by which policies are compared.
        lower_is_better: Whether lower values of that metric are better.
        callbacks: Hooks, in the order in which they are called; none on ranks other than 0.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        env: GraphEnv,
        make_eval_env: Callable[[int], GraphEnv],
        config: TrainConfig,
        total_steps: int,
        logger: MetricsLogger | None,
        store: CheckpointStore,
        primary_metric: str = 'return',
        lower_is_better: bool = False,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.algorithm, self.env, self.make_eval_env = algorithm, env, make_eval_env
        self.config, self.total_steps = config, total_steps
        self.logger, self.store = logger, store
        self.primary_metric, self.lower_is_better = primary_metric, lower_is_better
        self.callbacks = tuple(callbacks)
        self.tally = EpisodeTally(env.spec.num_envs)
        self.graph = env.reset(config.seed)
        self.window = MetricWindow()
        self.last_eval: Metrics = {}
        self.last_eval_step = -1
        self.seconds = dict.fromkeys(('act', 'env', 'replay', 'learn', 'evaluate', 'other'), 0.0)
        self.hooks = HookProgress()
        self.stopped: str | None = None  # why a callback ended the run
        self.inexact_resumes: list[int] = []  # resumed at these steps with new episodes: env has no saved state
        self.ranks = ranks_of_run.current()
        self._said_inexact = self._interrupted = False
        self._caught: list[int] = []  # requests to stop
        self._dropped = False  # whether one ended an evaluation, which a resumed run plays again
        self._rewards: tuple[float, int] | None = (0.0, 0)  # sum and number of the first ones; None: judged

    def run(self) -> None:
        """Trains to the end. On Ctrl-C, a termination request or a closed terminal, the run is saved after the current
        step and :class:`Interrupted` is raised. An evaluation that is going on is dropped; the resumed run plays it.

        Raises:
            CallbackError: If a callback raises; the run is saved first.
        """
        algo, c = self.algorithm, self.config
        self._dropped = False
        started = time.perf_counter() - sum(self.seconds.values())  # a resumed run continues the count
        with self._progress() as bar, _catch_signals() as self._caught:
            with self._agree():
                self._call('on_start')
                if algo.env_steps == 0:  # now rather than at the first checkpoint
                    check_plain({'algorithm': algo.state_dict(), 'env': self.env.state_dict()}, 'state')
                self._check_callback_states()
                if algo.env_steps == 0 and self.last_eval_step < 0:
                    self.evaluate()
            while self.hooks.since is not None or (
                algo.env_steps < self.total_steps and not self._interrupted and self.stopped is None
            ):
                shown, before = algo.env_steps, self.hooks.since
                with self._agree():
                    if before is None:  # else a resumed run, which still owes hooks or an evaluation of a step it made
                        before = algo.env_steps
                        self.hooks = HookProgress(since=before)
                        self.advance()
                    if self.hooks.episodes:
                        self._call('on_episode_end', self.hooks.episodes)
                    self._call('on_step')
                    if _passed(before, algo.env_steps, c.eval_every):
                        self.evaluate()
                if self._dropped:
                    break
                self.hooks = HookProgress()
                if _passed(before, algo.env_steps, c.log_every):
                    self.seconds['other'] += time.perf_counter() - started - sum(self.seconds.values())
                    self.log()
                if _passed(before, algo.env_steps, c.checkpoint_every):
                    self.save()
                bar.update(algo.env_steps - shown)
                bar.set_postfix(self._shown(), refresh=False)
            over = not self._dropped and (algo.env_steps >= self.total_steps or self.stopped is not None)
            with self._agree():
                if over and self.last_eval_step < algo.env_steps:
                    self.evaluate()
                if over and not self._dropped:
                    self._call('on_end')
        self.save()
        if not over or self._dropped:
            raise Interrupted(f'stopped and saved at step {algo.env_steps:,}; continue it with resume=True')

    @contextmanager
    def _agree(self) -> Iterator[None]:
        """Context in which hooks are called. At its end all ranks know whether one of them was asked to stop, whether
        that dropped an evaluation, and whether a hook stopped the run or raised. If a hook raised, the run is saved
        before the error is raised again."""
        failed: CallbackError | None = None
        try:
            yield
        except CallbackError as error:
            failed = error
        self._interrupted, self._dropped, stopped, broken = self.ranks.any(
            bool(self._caught), self._dropped, self.stopped is not None, failed is not None
        )
        if stopped:
            self.stopped = self.ranks.from_first(self.stopped)
        if broken:
            try:
                self.save()
            except Exception as error:
                raise error from failed  # both are shown
            with together(self.ranks):
                if failed is not None:
                    raise failed

    def advance(self) -> None:
        """One step of every episode, then the gradient steps that are due."""
        algo = self.algorithm
        t0 = time.perf_counter()
        decision = algo.act(self.graph, explore=True)
        t1 = time.perf_counter()
        step = check_step(self.env.step(decision.action), self.env)
        t2 = time.perf_counter()
        algo.observe(self.graph, decision, step)
        self._judge_scale(step.reward)
        self.tally.step(self.graph, step.reward, step.info, decision.sharing)
        episodes: dict[str, Tensor] = {}
        if bool(step.ended.any()):
            episodes = self.tally.finish(step.ended.cpu(), step.outcome)
            means = {f'train/{name}': float(value.mean()) for name, value in episodes.items()}
            self.window.add(means, int(step.ended.sum()))
        self.graph = step.graph
        t3 = time.perf_counter()
        for _ in range(self.ranks.least(algo.due_updates)):
            metrics = algo.update()
            _check_free(metrics)
            self.window.add(metrics)
        t4 = time.perf_counter()
        for name, took in zip(('act', 'env', 'replay', 'learn'), (t1 - t0, t2 - t1, t3 - t2, t4 - t3), strict=True):
            self.seconds[name] += took
        self.hooks.episodes = episodes

    def _judge_scale(self, reward: Tensor) -> None:
        """Says once, after the first rewards other than 0, if they are of a scale at which networks hardly learn."""
        if self._rewards is None:
            return
        sizes = reward[reward != 0].abs()
        total, count = self._rewards[0] + float(sizes.double().sum()), self._rewards[1] + sizes.numel()
        self._rewards = (total, count) if count < FIRST_REWARDS else None
        norm = getattr(getattr(self.algorithm, 'config', None), 'reward_norm', None)  # rewards are divided by it
        mean = total / max(count, 1) / (norm or 1.0)
        if self._rewards is None and hasattr(self.algorithm, 'modules') and not SMALL_REWARD <= mean <= LARGE_REWARD:
            move = 'Scale them in the environment' if norm is None else f'Give --reward-norm {mean * norm:.1g}'
            self._say(
                f'the first {count:,} rewards other than 0 have a mean size of {mean:.3g}'
                f'{"" if norm is None else ", divided by reward_norm"}: expected about 1, at which networks learn with '
                f'these options. {move} (docs/faq.md, "Which scale should rewards have?").'
            )

    def evaluate(self) -> None:
        """Greedy episodes of the policy on seeds that training never uses; one row of metrics. Rank 0 plays them."""
        start = time.perf_counter()
        if self.ranks.first:
            metrics = self.hooks.metrics
            if metrics is None:  # else a callback raised in this evaluation, and the run was resumed
                spec = self.env.spec
                episodes = eval_episodes(self.config.eval_episodes, self.total_steps, spec.horizon, spec.num_tasks)
                try:
                    with closing(self.make_eval_env(episodes)) as env:
                        seed = self.config.eval_seed
                        stats = evaluate(self.algorithm, env, seed, show='evaluation', before_step=self._check_caught)
                except _EvaluationDropped:
                    self._dropped = True
                    return
                metrics = flatten(stats)
                self.hooks.metrics = metrics
            self._call('on_evaluation', metrics)
            self._check_callback_states()
            self.last_eval = dict(metrics)
            self.hooks.metrics = None
            self.hooks.called.pop('on_evaluation', None)
            self._write(**self.last_eval)
            self.seconds['evaluate'] += time.perf_counter() - start
        self.last_eval_step = self.algorithm.env_steps

    def _check_caught(self) -> None:
        if self._caught:
            raise _EvaluationDropped

    def log(self) -> None:
        """One row of metrics: means since the last row, over all ranks, and the time of each phase on this one."""
        times = {f'seconds/{name}': value for name, value in self.seconds.items()}
        if self.ranks.size > 1:
            self.window.merge(self.ranks.gather(self.window.sums))
        self._write(updates=self.algorithm.updates, **self.window.means(), **times)

    def _write(self, **metrics: SupportsFloat) -> None:
        if self.logger is not None:
            self.logger.log(self.algorithm.env_steps, **metrics)

    def record(self, **metrics: SupportsFloat) -> None:
        """Adds metrics to the next row of the log, as means since the last one.

        Raises:
            ValueError: If a name is one of the row's own: ``step``, ``updates``, ``seconds/...``, or ``train/...`` of a
                metric of episodes.
        """
        _check_free(metrics, taken=[f'train/{name}' for name in (*OWN_METRICS, *self.tally.sums)])
        self.window.add({name: float(value) for name, value in metrics.items()})

    def stop(self, reason: str) -> None:
        """Ends the run after this step; ``reason`` goes into the result."""
        self.stopped = reason

    def save(self) -> None:
        """Saves a checkpoint with everything that a resumed run needs.

        Raises:
            CallbackError: If the state of a callback cannot be saved; all else is saved first.
        """
        callbacks, unsaved = self._callback_states()
        if self.hooks.metrics is not None:  # callbacks may have added numbers of other types
            self.hooks.metrics = {name: float(value) for name, value in self.hooks.metrics.items()}
        state = {
            'algorithm': self.algorithm.state_dict(),
            'env': self.env.state_dict(),
            'tally': dict(self.tally.sums),
            'per_node': sorted(self.tally.per_node),
            'window': self.window.state_dict(),
            'last_eval': dict(self.last_eval),
            'last_eval_step': self.last_eval_step,
            'seconds': dict(self.seconds),
            'stopped': self.stopped,
            'hooks': asdict(self.hooks),
            'inexact_resumes': list(self.inexact_resumes),
            'first_rewards': self._rewards,
            'callbacks': callbacks,
        }
        if state['env'] is None and not self._said_inexact:
            self._said_inexact = True
            self._say(
                'this environment cannot save its state: a resumed run starts new episodes, and does not end in the '
                f'same weights as one that was never stopped. ({how_to_resume_exactly(self.env)})'
            )
        check_same_weights(self.algorithm, self.ranks)
        save_part(self.store, self.algorithm.env_steps, state, self.ranks)
        with together(self.ranks):
            if unsaved is not None:
                raise unsaved

    def _check_callback_states(self) -> None:
        """Raises a ``CallbackError`` if the state of a callback cannot be saved: early, not at the next checkpoint."""
        _, failed = self._callback_states()
        if failed is not None:
            raise failed

    def _callback_states(self) -> tuple[dict[str, Any], CallbackError | None]:
        """The states of the callbacks that can be saved, and an error that names one that cannot."""
        states: dict[str, Any] = {}
        failed: CallbackError | None = None
        for name, callback in self._named_callbacks():
            try:
                state = callback.state_dict()
                check_plain(state, 'state')
            except Exception as error:
                failed = CallbackError(
                    f'the state of {type(callback).__name__} cannot be saved: state_dict() raised, or returned what '
                    f'checkpoints do not hold ({type(error).__name__}: {error}). All else was saved at step '
                    f'{self.algorithm.env_steps:,}: fix the callback, then resume the run.'
                )
                failed.__cause__ = error
            else:
                states[name] = state
        return states, failed

    def load(self, state: dict[str, Any]) -> None:
        """Continues from a checkpoint.

        Raises:
            ValueError: If it does not fit, or the environment does not take its part.
            CallbackError: If a callback does not take its part.
        """
        with state_must_fit():
            self._load(state)
        self._load_callbacks(state.get('callbacks', {}))

    def _load(self, state: dict[str, Any]) -> None:
        self.algorithm.load_state_dict(state['algorithm'])
        self.inexact_resumes = list(state.get('inexact_resumes', []))
        if state['env'] is not None:
            try:
                self.graph = self.env.load_state_dict(state['env'])
            except Exception as error:
                raise ValueError(
                    f'the environment does not take its state of the checkpoint: load_state_dict raised '
                    f'{type(error).__name__}: {error}. Make it read the state that was saved, or start a new run.'
                ) from error
            self.tally.sums, self.tally.per_node = state['tally'], set(state.get('per_node', ()))
        else:
            self.algorithm.restart_episodes()
            name = str(self.algorithm.env_steps)  # not the first episodes of the run again
            self.graph = self.env.reset(seed_stream(self.config.seed, 'restart', name) >> 1)
            self.inexact_resumes.append(self.algorithm.env_steps)
            self._say(f'resumed at step {name} with new episodes: this environment cannot save its state')
        self.window.load_state_dict(state['window'])
        self.last_eval, self.seconds = state['last_eval'], state['seconds']
        self.last_eval_step = state.get('last_eval_step', -1)
        self.stopped = state.get('stopped')
        self.hooks = HookProgress(**state.get('hooks', {}))
        self._rewards = state.get('first_rewards')

    def _load_callbacks(self, saved: dict[str, dict[str, Any]]) -> None:
        """Gives each callback the saved state of the callback of its class; several of one class are matched in order.
        If the number of callbacks of a class has changed, their states are not restored, and a message says so."""
        before: dict[str, list[dict[str, Any]]] = {}
        now: dict[str, list[Callback]] = {}
        for name, state in saved.items():
            before.setdefault(name.partition(' ')[2], []).append(state)
        for name, callback in self._named_callbacks():
            now.setdefault(name.partition(' ')[2], []).append(callback)
        for kind in before | now:
            states, callbacks = before.get(kind, []), now.get(kind, [])
            if len(states) == len(callbacks):
                for callback, state in zip(callbacks, states, strict=True):
                    try:
                        callback.load_state_dict(state)
                    except Exception as error:
                        raise CallbackError(
                            f'{kind} does not take its state of the checkpoint: load_state_dict raised '
                            f'{type(error).__name__}: {error}. Make it read the state that was saved, or resume '
                            f'without it.'
                        ) from error
            elif any(states) or any(callback.state_dict() for callback in callbacks):
                self._say(
                    f'the checkpoint has the state of {len(states)} {kind}, and the resumed run has {len(callbacks)}: '
                    f'what they remembered (e.g. the best evaluation) is not restored. To keep it, resume with the '
                    f'same callbacks as before.'
                )

    def _named_callbacks(self) -> list[tuple[str, Callback]]:
        return [(f'{i} {type(callback).__name__}', callback) for i, callback in enumerate(self.callbacks)]

    def _call(self, hook: str, *args: Any) -> None:
        called = [] if hook == 'on_start' else self.hooks.called.setdefault(hook, [])
        for name, callback in self._named_callbacks():
            if name in called:  # before the run was resumed
                continue
            try:
                getattr(callback, hook)(self, *args)
                if hook == 'on_evaluation':
                    _as_numbers(*args)
            except Exception as error:
                raise CallbackError(
                    f'{type(callback).__name__}.{hook} raised {type(error).__name__}: {error}. The run was saved at '
                    f'step {self.algorithm.env_steps:,}: fix the callback, then resume the run.'
                ) from error
            called.append(name)

    def _progress(self) -> Any:
        return Progress(
            total=self.total_steps,
            initial=self.algorithm.env_steps,
            unit=' steps',
            smoothing=0.05,
            desc='training',
            disable=not self.ranks.first,
        )

    def _say(self, message: str) -> None:
        """Prints a line above the progress bar."""
        if self.ranks.first:
            Progress.write(f'ltos: {message}', file=sys.stderr)

    def _shown(self) -> dict[str, str]:
        shown = {f'train {self.primary_metric}': self.window.latest.get(f'train/{self.primary_metric}')}
        shown[f'eval {self.primary_metric}'] = self.last_eval.get(f'eval/{self.primary_metric}')
        return {name: f'{value:.3f}' for name, value in shown.items() if value is not None}


class MetricWindow:
    """Means of metrics since they were last asked for."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, int]] = {}
        self.latest: Metrics = {}

    def add(self, metrics: Metrics, count: int = 1) -> None:
        """Adds a value each, which is the mean of ``count`` numbers."""
        for name, value in metrics.items():
            total, number = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + float(value) * count, number + count)
            self.latest[name] = float(value)

    def merge(self, sums: Sequence[dict[str, tuple[float, int]]]) -> None:
        """Replaces the sums by the totals of several windows, e.g. of all ranks."""
        names = dict.fromkeys(name for one in sums for name in one)
        found = {name: [one[name] for one in sums if name in one] for name in names}
        self.sums = {name: (sum(t for t, _ in values), sum(n for _, n in values)) for name, values in found.items()}

    def means(self) -> Metrics:
        """Returns the means and resets the sums."""
        means = {name: total / count for name, (total, count) in self.sums.items()}
        self.sums = {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """The current sums."""
        return {'sums': {name: list(value) for name, value in self.sums.items()}, 'latest': dict(self.latest)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores saved sums."""
        self.sums = {name: (value[0], int(value[1])) for name, value in state['sums'].items()}
        self.latest = state['latest']


def flatten(stats: dict[str, Stat]) -> Metrics:
    """An evaluation under its names in the log: ``eval/return``, ``eval/return_std``, …

    If the environment has a metric of such a name, for instance ``speed_std`` beside ``speed``, that one is meant.
    """
    flat: Metrics = {}
    for name, stat in stats.items():
        flat |= {f'eval/{name}': stat.mean, f'eval/{name}_std': stat.std}
    flat['eval/episodes'] = float(stats['return'].count)
    return flat | {f'eval/{name}': stat.mean for name, stat in stats.items()}


def _check_free(metrics: Iterable[str], taken: Sequence[str] = ()) -> None:
    """Raises a ``ValueError`` if a metric has a name that a row of the log has for something else."""
    for name in metrics:
        if name in ('step', 'updates', *taken) or name.startswith('seconds/'):
            raise ValueError(f"'{name}' is a name of the log's own: give your metric another one")


def _as_numbers(metrics: dict[str, Any]) -> None:
    """Turns what callbacks added to an evaluation into floats; what is no number, or has a name of the log's own, is
    removed and named."""
    for name, value in list(metrics.items()):
        del metrics[name]
        _check_free([name])
        try:
            metrics[name] = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"metrics['{name}'] must be a number (got {value!r})") from None


def _passed(before: int, after: int, every: int) -> bool:
    return before // every != after // every


@contextmanager
def _catch_signals() -> Iterator[list[int]]:
    """Within this context, Ctrl-C, SIGTERM and SIGHUP append to the list that it yields, so that the current step is
    finished.

    A second signal stops at once. Outside the main thread, signal handlers are not changed.
    """
    caught: list[int] = []

    def note(number: int, frame: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)
        if number == signal.SIGINT and ranks_of_run.current().first:
            with suppress(OSError):  # os.write, for print must not be called in a signal handler
                os.write(2, b'\nltos: stopping, after this step; Ctrl-C again stops at once, unsaved\n')

    try:
        names = ('SIGINT', 'SIGTERM', 'SIGHUP')  # SIGHUP (closed terminal) does not exist on every system
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        if signal.getsignal(numbers[-1]) == signal.SIG_IGN:  # started with nohup: keeps running
            numbers.pop()
        before = {number: signal.signal(number, note) for number in numbers}
    except ValueError:
        before = {}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def how_to_resume_exactly(env: GraphEnv) -> str:
    """What to do about an environment that cannot save its state."""
    if any(isinstance(game, PettingZooEnv) for game in getattr(env, 'envs', ())):
        return 'PettingZoo cannot save a game. Write it as a SingleGraphEnv with state_dict() and load_state_dict().'
    return 'Give it state_dict() and load_state_dict().'
