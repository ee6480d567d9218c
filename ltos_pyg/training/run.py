"""Runs: training from options to result, and loading from a folder."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ltos_pyg import registry
from ltos_pyg.algos import Algorithm
from ltos_pyg.algos.ranks import Ranks
from ltos_pyg.data.replay import least_capacity
from ltos_pyg.graph_env import EnvCheckError, EnvCheckWarning, GraphEnv, GraphEnvSpec, check_env
from ltos_pyg.training.callbacks import Callback, check_callbacks
from ltos_pyg.training.checkpoint import CheckpointStore, load_file
from ltos_pyg.training.config import MakeEnv, RunConfig, check_device
from ltos_pyg.training.distributed import (
    check_number,
    check_support,
    forget_after,
    join,
    load_part,
    own_config,
    same_weights,
    together,
)
from ltos_pyg.training.evaluate import Stat, check_weights, evaluate_modes, final_episodes
from ltos_pyg.training.logging import MetricsLogger, Sink, TensorBoardSink, WandbSink
from ltos_pyg.training.run_folder import RunFolder
from ltos_pyg.training.trainer import Interrupted, Trainer

if TYPE_CHECKING:
    from ltos_pyg.scenarios.base import Scenario

CHECK_STEPS = 60  # steps of each run in which a user's environment is checked against the contract
MAY_GROW = ('algorithm.total_steps',)  # of a resumed run
SinkMaker = Callable[[Path, int | None], Sink]  # from the run folder, and the step from which a resumed run continues


def make_algorithm(config: RunConfig, spec: GraphEnvSpec) -> Algorithm:
    """Builds the algorithm of a run."""
    check_device(config.train.device)
    return registry.algorithm(config.algo).make(spec, config.algorithm, config.train.seed, config.train.device)


def train_run(
    config: RunConfig,
    scenario: Scenario,
    folder: Path,
    resume: bool = False,
    callbacks: Sequence[Callback] | None = (),
    sinks: Iterable[Sink | SinkMaker] = (),
) -> dict[str, Any]:
    """Trains in a run folder (:mod:`~ltos_pyg.training.run_folder`), to the end, and returns the final evaluation.

    Everything is built before anything is written. A resumed run may have more ``total_steps`` than before: the
    schedules of its algorithm then run over the new number, as if it had been given at the start. A finished run is
    evaluated again if ``final_episodes`` differs.

    Under torchrun every process calls this and they train the run together, see
    :mod:`ltos_pyg.training.distributed`: ``total_steps`` and all other numbers of steps count the env steps of all of
    them; ``num_envs``, ``batch_size`` and ``replay_size`` are those of each.

    Args:
        config: The run.
        scenario: The scenario to train on.
        folder: The run folder.
        resume: Whether to continue the run in the folder.
        callbacks: Hooks.
        sinks: More sinks for the metrics: each a :class:`~ltos_pyg.training.logging.Sink`, or a function that makes one
            from the run folder and the step from which a resumed run continues (``None``: a new run).

    Raises:
        ValueError: If the folder has a run and ``resume`` is false, or has a run of another configuration,
            or another process trains in it, or the environment breaks the contract.
        CallbackError: If a callback raises; the run is saved first.
        Interrupted: If the user stopped the run; its state was saved.
        RankError: If another process of the run is gone.
    """
    run = RunFolder(folder)
    callbacks = check_callbacks(callbacks)
    with join(config.train.device) as ranks, ExitStack() as stack:
        with together(ranks):
            if ranks.first:
                _check_room(run, resume)  # before the lock makes the folder
                stack.enter_context(run.lock())
                _check_room(run, resume)  # another process may have trained in it until now
            if resume and run.holds_run:
                check_number(run.ranks(), ranks)
            before = run.config(scenario) if resume else config
            grows = config.total_steps > before.total_steps
            measured = config.train.final_episodes == before.train.final_episodes  # as is asked for now
            finished = resume and run.is_finished and measured and not grows
        saved = _saved_state(run, config, scenario, ranks) if resume else None
        if finished:
            if ranks.first:
                run.relabel(config.label)
            return run.final()
        with together(ranks):
            if resume and run.is_finished:
                _goes_on(run, config, before, saved, grows, ranks)
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(config.train.threads)
            own = own_config(config, ranks)
            make_env = scenario.make_env(own)
            env = stack.enter_context(_checked_env(config, scenario, make_env, saved is None, ranks))
            algorithm = make_algorithm(own, env.spec)
            check_support(algorithm, config.algo, ranks)
            places = _sinks(config, run, _resume_step(resume, saved), sinks) if ranks.first else []
        with together(ranks):
            log = stack.enter_context(_start(run, config, scenario, ranks, resume, saved, places))
            trainer = Trainer(
                algorithm,
                env,
                make_env,
                own.train,
                config.total_steps,
                log,
                run.store(config, ranks.rank),
                scenario.primary_metric,
                scenario.lower_is_better,
                callbacks if ranks.first else (),
            )
            if saved is not None:
                trainer.load(saved[1])
                trainer.stopped = None if grows else trainer.stopped
        if saved is None:
            _start_alike(trainer, ranks)
        trainer.run()
        with together(ranks):
            result = _finish(run, config, trainer, make_env, ranks) if ranks.first else None
        return ranks.from_first(result)


def _goes_on(
    run: RunFolder,
    config: RunConfig,
    before: RunConfig,
    saved: tuple[int, Any] | None,
    grows: bool,
    ranks: Ranks,
) -> None:
    """Raises a ``ValueError`` if a finished run cannot go on; says so if it is only evaluated again."""
    if saved is None:
        raise ValueError(
            f"'{run.path}' is finished and has no checkpoint from which more steps could be trained, or other "
            f'episodes be played. Train again, into another folder given by --out.'
        )
    if not grows and ranks.first:
        print(
            f'ltos: the run is finished and is evaluated again: final_episodes was {before.train.final_episodes} and '
            f'is {config.train.final_episodes} now',
            file=sys.stderr,
        )


@contextmanager
def _checked_env(
    config: RunConfig, scenario: Scenario, make_env: MakeEnv, new: bool, ranks: Ranks
) -> Iterator[GraphEnv]:
    """The environment of a run; a new run's is checked first."""
    if scenario.check and new and ranks.first:
        _check_contract(scenario, make_env)
    with closing(make_env(config.train.num_envs)) as env:
        _check_learns(config, env.spec)
        if new:
            _check_plays_all(env.spec)
        yield env


def _start(
    run: RunFolder,
    config: RunConfig,
    scenario: Scenario,
    ranks: Ranks,
    resume: bool,
    saved: tuple[int, Any] | None,
    places: Sequence[Sink],
) -> AbstractContextManager[MetricsLogger | None]:
    """Writes the configuration of a run that starts or goes on; returns where its metrics go. Rank 0 does so."""
    if not ranks.first:
        return nullcontext()
    if not resume:
        run.clear()
    grows = resume and config.total_steps > run.config(scenario).total_steps
    if grows or not run.is_finished:  # else the run is only evaluated again, and keeps its result until then
        if resume:
            trained = saved is not None and saved[0] >= config.total_steps
            run.forget_results(zero_shot=grows or not trained)
        run.write_config(config, ranks.size, scenario.primary_metric)
    return MetricsLogger(run.metrics_path, _resume_step(resume, saved), places)


def _start_alike(trainer: Trainer, ranks: Ranks) -> None:
    """Gives all ranks of a new run the weights of rank 0."""
    same_weights(trainer.algorithm, ranks)
    if not ranks.first:
        forget_after(trainer.store, -1)  # of a start that failed


def _finish(
    run: RunFolder, config: RunConfig, trainer: Trainer, make_env: MakeEnv, ranks: Ranks
) -> dict[str, Any]:  # fmt: skip
    """Evaluates a trained run and writes the result."""
    if trainer.algorithm.updates == 0:
        print(
            'ltos: no gradient step was made, so the policy still has its random initial weights. Train for longer.',
            file=sys.stderr,
        )
    try:
        result = final_evaluation(trainer.algorithm, make_env, config) | _how_it_went(trainer)
    except KeyboardInterrupt:
        raise Interrupted from None
    again = run.is_finished  # it was only evaluated again, and has its former options until now
    run.write_final(result)
    if again:
        run.card_path.unlink(missing_ok=True)
        run.write_config(config, ranks.size, trainer.primary_metric)
    return result


def _check_room(run: RunFolder, resume: bool) -> None:
    """Raises a ``ValueError`` unless a run may start, or be resumed, in a folder."""
    if run.path.exists() and not run.path.is_dir():
        raise ValueError(f"'{run.path}' must be a folder (got a file). Choose another one by --out.")
    if resume and not run.has_config:
        raise ValueError(
            f"'{run.path}' holds no run to resume: expected a config.json in it. Name the folder of a run by --out, or "
            f'leave --resume out to start one.'
        )
    if resume and run.policy_path.is_file():
        raise ValueError(
            f"'{run.path}' holds an exported policy, which cannot be trained on: it has no replay and no optimizers. "
            f'Resume the run that it was made from.'
        )
    if not resume and run.holds_run:
        raise ValueError(
            f"'{run.path}' already holds a run. Continue it with --resume, or choose another folder with --out."
        )


def _saved_state(
    run: RunFolder, config: RunConfig, scenario: Scenario, ranks: Ranks
) -> tuple[int, dict[str, Any]] | None:
    """The newest checkpoint, which must be of this configuration, except for ``total_steps``."""
    saved = load_part(run.store(rank=ranks.rank), ranks, config.fingerprint(), MAY_GROW)
    with together(ranks):
        _check_extends(run, config, scenario, saved, ranks)
    return saved


def _check_extends(
    run: RunFolder, config: RunConfig, scenario: Scenario, saved: tuple[int, Any] | None, ranks: Ranks
) -> None:
    """Raises a ``ValueError`` if a resumed run is to be shorter than before; says so if it is to be longer."""
    before = run.config(scenario).total_steps
    if config.total_steps < before:
        raise ValueError(
            f"'--total-steps' of a resumed run must be at least {before:,}, what it was asked for (got "
            f'{config.total_steps:,}). A run can be extended, not shortened.'
        )
    if saved is not None and config.total_steps > before and ranks.first:
        print(
            f'ltos: continues from step {saved[0]:,} to {config.total_steps:,} instead of {before:,}; the schedules '
            f'(learning rate, exploration) now run over {config.total_steps:,} steps',
            file=sys.stderr,
        )


def _check_contract(scenario: Scenario, make_env: MakeEnv) -> None:
    """Checks an environment against the contract; says what looks wrong, and raises a ``ValueError`` with the broken
    clause."""
    print(f"ltos: checking the environment '{scenario.name}'", file=sys.stderr, flush=True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always', EnvCheckWarning)
            check_env(lambda: make_env(2), steps=CHECK_STEPS)
    except EnvCheckError as error:
        raise ValueError(f"environment '{scenario.name}' breaks the contract: {error}") from error
    for one in caught:
        if issubclass(one.category, EnvCheckWarning):
            print(f"ltos: environment '{scenario.name}': {one.message}", file=sys.stderr)
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def _check_learns(config: RunConfig, spec: GraphEnvSpec) -> None:
    """Raises a ``ValueError`` if ``n_step`` exceeds the consecutive steps in the replay: nothing would be learned."""
    n_step, size = (getattr(config.algorithm, name, None) for name in ('n_step', 'replay_size'))
    if n_step is None or size is None:
        return
    most = max(1, size // spec.num_envs - 1)  # the newest frame of a stream waits for its successor
    if n_step > most:
        raise ValueError(
            f"'n_step' must be at most {most}, the steps of an episode that the replay keeps ('replay_size' {size:,} / "
            f"'num_envs' {spec.num_envs}), or nothing is learned (got {n_step:,}). Lower it, or raise --replay-size."
        )


def _check_plays_all(spec: GraphEnvSpec) -> None:
    """Raises a ``ValueError`` if there are more tasks than parallel episodes: the others would never be trained on."""
    if spec.num_tasks is not None and spec.num_tasks > spec.num_envs:
        raise ValueError(
            f"'num_envs' must be at least {spec.num_tasks}, the number of tasks, or some are never trained on (got "
            f'{spec.num_envs}). Give --num-envs {spec.num_tasks}, or a multiple of it, which trains on all alike.'
        )


def _resume_step(resume: bool, saved: tuple[int, Any] | None) -> int | None:
    if not resume:
        return None
    return saved[0] if saved is not None else -1  # no checkpoint yet: all rows are rewritten


def _sinks(config: RunConfig, run: RunFolder, step: int | None, more: Iterable[Sink | SinkMaker]) -> list[Sink]:
    sinks: list[Sink] = []
    if config.train.tensorboard:
        sinks.append(TensorBoardSink(run.path / 'tensorboard', resume_step=step))
    if config.train.wandb:
        sinks.append(WandbSink(run.path, name=run.path.name, config=config.as_dict()))
    for sink in more:
        made = sink if hasattr(sink, 'write') and not isinstance(sink, type) else sink(run.path, step)
        sinks.append(made)  # type: ignore[arg-type]
    return sinks


def _how_it_went(trainer: Trainer) -> dict[str, Any]:
    """Entries of the result besides the evaluation."""
    record: dict[str, Any] = {'seconds': dict(trainer.seconds)}
    if trainer.ranks.size > 1:
        record['ranks'] = trainer.ranks.size
    if trainer.stopped is not None and trainer.algorithm.env_steps < trainer.total_steps:
        record['stopped'] = trainer.stopped
    if trainer.env.state_dict() is None:
        record['exact_resume'] = False  # the environment cannot save its state
        record['resumed_with_new_episodes_at'] = trainer.inexact_resumes
    return record


def final_evaluation(algorithm: Algorithm, make_env: MakeEnv, config: RunConfig) -> dict[str, Any]:
    """The final evaluation, on seeds used neither in training nor in its evaluations: the policy, and its network under
    other weights, see :func:`~ltos_pyg.training.evaluate.evaluate_modes`."""
    seed = config.train.eval_seed + 1
    with closing(make_env(1)) as env:
        spec = env.spec
    modes = max(0, len(getattr(algorithm, 'sharing_modes', ())) - 1)
    episodes, swap = final_episodes(
        config.train.final_episodes, config.total_steps, spec.horizon, modes, spec.num_tasks
    )
    results = evaluate_modes(algorithm, make_env, episodes, seed, swap, show='final evaluation')
    return {
        'env_steps': algorithm.env_steps,
        'updates': algorithm.updates,
        'eval_seed': seed,
        'eval': {mode: as_plain(stats) for mode, stats in results.items()},
    }


def as_plain(stats: Mapping[str, Stat]) -> dict[str, dict[str, float]]:
    """Mean, standard deviation and count of every metric, for JSON."""
    return {name: dataclasses.asdict(stat) for name, stat in stats.items()}


def load_algorithm(config: RunConfig, spec: GraphEnvSpec, folder: Path, best: bool = False) -> Algorithm:
    """The trained algorithm of a run folder, from its newest valid checkpoint, or of an exported policy.

    It can act, but not go on training: its replay is empty and has room for few graphs only.

    Args:
        config: The run's configuration.
        spec: The spec of its environment.
        folder: The run folder.
        best: Load the model saved by :class:`~ltos_pyg.training.callbacks.BestModel` instead.

    Raises:
        ValueError: If the folder has no checkpoint, or one of another configuration, or of other networks, or with
            weights that are NaN or infinite.
    """
    run, expect = RunFolder(folder), config.fingerprint()
    if run.policy_path.is_file() and not best:
        saved: Any = load_file(run.policy_path, expect, older=True)
    else:
        store = CheckpointStore(run.best_path) if best else run.store()
        saved = store.load_latest(expect, older=True, ignore=MAY_GROW)
    if saved is None and best:
        raise ValueError(f"'{folder}' has no best model: train with callbacks=[BestModel()]")
    if saved is None:
        raise ValueError(f"'{folder}' has no checkpoint yet. Train it with: ltos train --resume …")
    algorithm = make_algorithm(without_replay(config, spec), spec)
    try:
        algorithm.load_policy(saved[1]['algorithm'])
    except (KeyError, RuntimeError) as error:
        found = ' '.join(str(error).split())[:200]
        raise ValueError(
            f"'{folder}' was trained by a version with other networks than this one ({found}). Use that version, see "
            f"'git_commit' in its config.json, or train again."
        ) from error
    check_weights(algorithm)
    return algorithm


def without_replay(config: RunConfig, spec: GraphEnvSpec) -> RunConfig:
    """The configuration with the smallest replay, if the algorithm has one."""
    if not hasattr(config.algorithm, 'replay_size'):
        return config
    smallest = dataclasses.replace(config.algorithm, replay_size=least_capacity(spec))
    return dataclasses.replace(config, algorithm=smallest)


def load_run(folder: Path, device: str | None = None, watch: bool = False) -> tuple[Algorithm, GraphEnv, RunConfig]:
    """The trained algorithm of a run folder, its environment with one graph, and its configuration.

    Args:
        folder: The run folder.
        device: Device of the network, if not as in training.
        watch: Whether the environment will be rendered.

    Raises:
        ValueError: If the folder is not a run folder, or has no checkpoint yet.
    """
    config = on_device(RunFolder(folder).config(), device)
    scenario = registry.scenario(config.scenario)
    env = scenario.make_watched(config) if watch else scenario.make_env(config)(1)
    try:
        return load_algorithm(config, env.spec, folder), env, config
    except BaseException:
        env.close()
        raise


def on_device(config: RunConfig, device: str | None) -> RunConfig:
    """The same configuration on another device."""
    if device is None:
        return config
    return dataclasses.replace(config, train=dataclasses.replace(config.train, device=device))
