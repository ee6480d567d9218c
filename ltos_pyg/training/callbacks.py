"""Hooks into a run: stop early, keep the best model, log a metric of your own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ltos_pyg.training.checkpoint import CheckpointStore
from ltos_pyg.training.metrics import less_is_better
from ltos_pyg.training.run_folder import RunFolder

if TYPE_CHECKING:
    from ltos_pyg.training.trainer import Trainer

Metrics = dict[str, float]


class CallbackError(RuntimeError):
    """A callback raised, or its state cannot be saved or read; what was trained until then is saved."""


class Callback:
    """Base class: override what you need. Each hook gets the :class:`~ltos_pyg.training.trainer.Trainer`.

    ``trainer.algorithm``, ``trainer.env`` and ``trainer.graph`` are the run itself; ``trainer.record(name=value)``
    adds to the next row of the log (the mean, if called several times), and ``trainer.stop(reason)`` ends the run after
    this step, as if it had reached its last one. A callback must not draw random numbers from the run's own generators,
    as that would change the run.

    If a hook raises, the run is saved, and :class:`CallbackError` names the hook. A resumed run calls that hook again,
    and then those that were still due in the step.
    """

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step of a new or resumed run."""

    def on_step(self, trainer: Trainer) -> None:
        """After each step of all episodes and the gradient steps due then."""

    def on_episode_end(self, trainer: Trainer, episodes: dict[str, Tensor]) -> None:
        """After a step in which episodes ended: each metric of them, (number of episodes,)."""

    def on_evaluation(self, trainer: Trainer, metrics: Metrics) -> None:
        """After an evaluation, before its row is written: ``metrics`` may be added to."""

    def on_end(self, trainer: Trainer) -> None:
        """After the last step, before the final evaluation."""

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run needs, in plain containers and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a saved state."""


class _Best(Callback):
    """Tracks the best value of an evaluation metric.

    Args:
        metric: E.g. ``'reward'``; default: the scenario's primary metric.
        lower_is_better: Default: for the primary metric, what the scenario declares. Of the other metrics, lower is
            better for queues, delays, travel times, attacks and losses (``lost_...``), and higher for the rest.
    """

    def __init__(self, metric: str | None = None, lower_is_better: bool | None = None) -> None:
        self.metric, self.lower_is_better = metric, lower_is_better
        self.best: float | None = None
        self.best_step = 0

    def improved(self, trainer: Trainer, metrics: Metrics, least: float = 0.0) -> bool:
        """Records an evaluation; returns whether it is better than the best so far by more than ``least``.

        Raises:
            ValueError: If there is no such metric.
        """
        metric = self.metric or trainer.primary_metric
        name = f'eval/{metric}'
        if name not in metrics:
            raise ValueError(f"no evaluation has '{name}'. Choose one of: {', '.join(sorted(metrics))}")
        lower = self.lower_is_better
        if lower is None:
            lower = less_is_better(metric, trainer.primary_metric, trainer.lower_is_better)
        value = -metrics[name] if lower else metrics[name]
        if math.isnan(value) or (self.best is not None and value <= self.best + least):
            return False
        self.best, self.best_step = value, trainer.algorithm.env_steps
        return True

    def state_dict(self) -> dict[str, Any]:
        return {'best': self.best, 'best_step': self.best_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.best_step = state['best'], state['best_step']


class EarlyStopping(_Best):
    """Ends the run after ``patience`` evaluations in a row without improvement.

    Args:
        patience: Evaluations without improvement.
        min_delta: The smallest change that counts as an improvement.
        metric: As for :class:`BestModel`.
        lower_is_better: As for :class:`BestModel`.
    """

    def __init__(
        self,
        patience: int = 5,
        min_delta: float = 0.0,
        metric: str | None = None,
        lower_is_better: bool | None = None,
    ) -> None:
        if patience < 1:
            raise ValueError(f"'patience' must be at least 1 (got {patience})")
        super().__init__(metric, lower_is_better)
        self.patience, self.min_delta, self.waited = patience, min_delta, 0

    def on_evaluation(self, trainer: Trainer, metrics: Metrics) -> None:
        self.waited = 0 if self.improved(trainer, metrics, self.min_delta) else self.waited + 1
        if self.waited >= self.patience:
            trainer.stop(f'no better evaluation since step {self.best_step:,}')

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {'waited': self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.waited = state['waited']


class BestModel(_Best):
    """Saves the networks of the best evaluation in ``best/`` of the run folder; load them with
    ``ltos_pyg.load_policy(folder, best=True)``.

    Args:
        metric: E.g. ``'reward'``; default: the scenario's primary metric.
        lower_is_better: Default: for the primary metric, what the scenario declares. Of the other metrics, lower is
            better for queues, delays, travel times, attacks and losses (``lost_...``), and higher for the rest.
    """

    def on_evaluation(self, trainer: Trainer, metrics: Metrics) -> None:
        before = self.state_dict()
        if not self.improved(trainer, metrics):
            return
        try:
            self._save(trainer)
        except Exception:
            self.load_state_dict(before)  # it is called again when the run is resumed
            raise

    def _save(self, trainer: Trainer) -> None:
        store = self._store(trainer)
        for step in store.steps():  # of later steps of a killed run
            if step > trainer.algorithm.env_steps:
                store.path(step).unlink()
        state = {name: part for name, part in trainer.algorithm.state_dict().items() if name != 'replay'}
        store.save(trainer.algorithm.env_steps, {'algorithm': state})

    def _store(self, trainer: Trainer) -> CheckpointStore:
        run = RunFolder(trainer.store.folder.parent)
        return CheckpointStore(run.best_path, keep=1, fingerprint=trainer.store.fingerprint)


class CustomMetric(Callback):
    """Logs ``train/NAME``, the value of a function of the trainer after each step, as the mean since the last row."""

    def __init__(self, name: str, function: Callable[[Trainer], float]) -> None:
        self.name, self.function = name, function

    def on_step(self, trainer: Trainer) -> None:
        trainer.record(**{f'train/{self.name}': float(self.function(trainer))})


def check_callbacks(callbacks: Sequence[Any] | None) -> tuple[Callback, ...]:
    """The callbacks; a ``ValueError`` if one is not a callback, or they are no list."""
    if not isinstance(callbacks, Iterable):
        callbacks = [] if callbacks is None else [callbacks]
    callbacks = tuple(callbacks)
    for callback in callbacks:
        if not isinstance(callback, Callback):
            got = callback.__name__ if isinstance(callback, type) else type(callback).__name__
            raise ValueError(
                f"'callbacks' must hold instances of ltos_pyg.training.callbacks.Callback (got {got}). Derive from it, "
                f'and pass an instance.'
            )
    return callbacks
