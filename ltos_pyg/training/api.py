"""The Python interface: train on an environment, then query, evaluate and plot the result."""

from __future__ import annotations

import copy
import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

from ltos_pyg import registry
from ltos_pyg.ranges import as_option
from ltos_pyg.scenarios import Scenario
from ltos_pyg.training.callbacks import Callback
from ltos_pyg.training.config import ENV_PREFIX, RunConfig, check_device
from ltos_pyg.training.distributed import own_rank
from ltos_pyg.training.evaluate import Stat, evaluate, playing_in
from ltos_pyg.training.logging import Sink
from ltos_pyg.training.policy import Policy
from ltos_pyg.training.pretrained import find_run
from ltos_pyg.training.run import SinkMaker, load_algorithm, on_device, train_run
from ltos_pyg.training.run_folder import RunFolder, default_folder
from ltos_pyg.training.zero_shot import EPISODES, Setting, check_evaluation, evaluate_over, settings_of, tasks_of

SEED = 2_000_000  # of episodes used neither in training nor in its evaluations


def train(
    env: Any,
    algo: Any = 'ltos',
    total_steps: int | None = None,
    seed: int | None = None,
    out: Path | str | None = None,
    callbacks: Sequence[Callback] | None = (),
    *,
    preset: str = 'default',
    label: str | None = None,
    resume: bool = False,
    sinks: Iterable[Sink | SinkMaker] = (),
    env_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Run:
    """Trains to the end, in a run folder that the command line can read too.

    .. code-block:: python

        run = ltos_pyg.train('jungle', algo='ltos', total_steps=20_000, num_agents=10, out='runs/mine')
        action, sharing = run.policy(graph)

    Args:
        env: A scenario's name, ``'package.module:Name'``, or a class or function that makes an environment (a
            :class:`~ltos_pyg.graph_env.GraphEnv`, a :class:`~ltos_pyg.graph_env.SingleGraphEnv` or a PettingZoo
            parallel environment).
        algo: An algorithm's name, ``'package.module:Name'``, or a class.
        total_steps: Env steps of the run. ``None``: those of the preset.
        seed: Seed of all random numbers. ``None``: 0, or that of the run to resume.
        out: The run folder. ``None``: ``runs/ENV-ALGO-seedN``.
        callbacks: See :mod:`ltos_pyg.training.callbacks`.
        preset: The options to start from.
        label: Name of the run in tables and plots.
        resume: Continue the run in the folder, with the same options; ``total_steps`` may be larger. A finished run is
            evaluated again if ``final_episodes`` differs.
        sinks: More sinks for the metrics, see :func:`~ltos_pyg.training.run.train_run`.
        env_options: Options of the environment whose name is also that of another option.
        options: Any option of the loop, the algorithm or the environment, as on the command line, e.g.
            ``num_envs=8, gamma=0.9``. With ``media=True`` a learning curve and a GIF of an episode are saved in the
            folder; the command line does so by default.

    Raises:
        ValueError: If a name or an option is unknown, an environment breaks the contract, or the folder holds a run.
        CallbackError: If a callback raises; the run is saved first.
    """
    if out is not None and not str(out):
        raise ValueError("'out' must name a folder (got ''). Leave it out for runs/ENV-ALGO-seedN.")
    scenario, algorithm = as_scenario(env), algorithm_name(algo)
    named = {'seed': seed, 'total_steps': total_steps}
    given = {'media': False, **options} | {name: value for name, value in named.items() if value is not None}
    base = scenario.config(algorithm, preset)
    folder = default_folder(base, seed) if out is None else Path(out)
    if resume and RunFolder(folder).has_config:
        base = RunFolder(folder).config(scenario)
        for name, asked, found in (
            ('env', scenario.name, base.scenario),
            ('algo', algorithm, base.algo),
            ('preset', preset, base.preset),
        ):
            if asked != found:
                raise ValueError(f"'{folder}' holds a run with {name}='{found}' (got '{asked}'). Resume it with that.")
    config = dataclasses.replace(with_options(base, given, env_options or {}), label=label)
    train_run(config, scenario, folder, resume, callbacks, sinks)
    if config.train.media and own_rank() == 0:
        from ltos_pyg.viz.watch import save_media

        save_media(folder, f'eval/{scenario.primary_metric}')
    return Run(folder, scenario)


class Run:
    """A finished run.

    Args:
        folder: Its folder, or the name of a policy that comes with the package.
        env: The environment of the run, given as for :func:`train`. Only needed if the name stored in the folder cannot
            be imported (a class of a script or notebook).
    """

    def __init__(self, folder: Path | str, env: Any = None) -> None:
        self.folder = find_run(folder)
        self._scenario = None if env is None else as_scenario(env)

    def __repr__(self) -> str:
        return f"{type(self).__name__}('{self.folder}')"

    @cached_property
    def config(self) -> RunConfig:
        """Its options."""
        return RunFolder(self.folder).config(self._scenario)

    @cached_property
    def scenario(self) -> Scenario:
        """What it played."""
        return self._scenario or registry.scenario(self.config.scenario)

    @property
    def result(self) -> dict[str, Any]:
        """The final evaluation, ``final.json``."""
        return RunFolder(self.folder).final()

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of its log."""
        return RunFolder(self.folder).metrics()

    @cached_property
    def policy(self) -> Policy:
        """The trained policy."""
        return load_policy(self.folder, self._scenario)

    def evaluate(
        self, env: Any = None, episodes: int | None = None, seed: int = SEED, **options: Any
    ) -> dict[str, Stat]:
        """Plays episodes without exploration: mean, standard deviation and count of every metric.

        Args:
            env: The environment, as for :func:`train`, with its default options. ``None``: that of training.
            episodes: How many. ``None``: one of each task (traffic), or 100 where episodes differ.
            seed: Seed of the episodes.
            options: Options of the environment to change, e.g. ``num_agents=40``.

        Raises:
            ValueError: If observations or actions of that environment differ.
        """
        _check_episodes(episodes)
        scenario = self.scenario if env is None else as_scenario(env)
        config = self.config
        if env is not None:
            config = dataclasses.replace(config, env=scenario.env_config())
        config = with_options(config, {}, options)
        if env is None:
            check_evaluation(self.config.env, config.env)
        algorithm = self.policy.algorithm
        make_env = scenario.make_env(config)
        with (
            closing(make_env(episodes or tasks_of(make_env) or EPISODES)) as played,
            playing_in(algorithm, self.policy.spec, played.spec),
        ):
            return evaluate(algorithm, played, seed, show='evaluation')

    def evaluate_over(self, episodes: int | None = None, seed: int = SEED, **options: Any) -> list[Setting]:
        """Zero-shot: plays episodes without exploration in each of several settings of the environment.

        .. code-block:: python

            for setting in run.evaluate_over(num_agents=[10, 20, 50], size=[30, 40], graph='radius'):
                print(setting, setting.trained, setting.stats['reward'].mean)

        Args:
            episodes: How many in each setting. ``None``: one of each task (traffic), or 100 where episodes differ.
            seed: Seed of the episodes, the same in each setting.
            options: Options of the environment. Lists are varied: every combination of their values is one setting. Any
                other value is used in all settings.

        Raises:
            ValueError: If no option has a list, an option is unknown, or the policy cannot act in a setting.
        """
        _check_episodes(episodes)
        over = {name: value for name, value in options.items() if isinstance(value, list)}
        fixed = {name: value for name, value in options.items() if name not in over}
        if not over:
            raise ValueError('evaluate_over needs a list for at least one option, e.g. num_agents=[10, 20] (got none)')

        def change(env: Any, values: dict[str, Any]) -> Any:
            typed = {name: as_option(type(env), name, value) for name, value in (fixed | values).items()}
            return dataclasses.replace(env, **typed)

        config, policy = self.config, self.policy
        with_options(config, {}, fixed)
        settings = settings_of(config, over, change)
        return evaluate_over(policy.algorithm, policy.spec, self.scenario, config, settings, episodes, seed, show=True)

    def plot(self, metric: str | None = None, out: Path | str | None = None) -> Path:
        """Draws the learning curve into a file (default: ``curve.png`` in its folder) and returns its path."""
        from ltos_pyg.viz.curves import plot_curves

        metric = metric or f'eval/{self.scenario.primary_metric}'
        return plot_curves([self.folder], metric, self.folder / 'curve.png' if out is None else out)


def load_policy(
    folder: Path | str, env: Any = None, *, device: str | None = None, best: bool = False
) -> Policy:  # fmt: skip
    """The trained policy of a run folder, of an exported policy (``ltos card RUN --out FOLDER``), or of the package.

    .. code-block:: python

        policy = ltos_pyg.load_policy('runs/jungle-ltos-seed0')
        policy = ltos_pyg.load_policy('jungle-ltos')  # comes with the package; a folder of that name comes first

    Args:
        folder: The folder, or the name of a policy of the package.
        env: The environment of the run, given as for :func:`train`. Only needed if the name stored in the folder cannot
            be imported.
        device: Device of the network, if not as in training.
        best: Load the model saved by :class:`~ltos_pyg.training.callbacks.BestModel` instead of the last checkpoint.

    Raises:
        ValueError: If there is no such run or name (lists the names), or it was trained by a version with other options
            or networks.
    """
    folder = find_run(folder)
    acting = RunFolder(folder).acting() if env is None else None
    if acting is not None:
        config, spec = on_device(acting[0], device), acting[1]
        check_device(config.train.device)
    else:
        scenario = None if env is None else as_scenario(env)
        config = on_device(RunFolder(folder).config(scenario), device)
        with closing((scenario or registry.scenario(config.scenario)).make_env(config)(1)) as one:
            spec = one.spec
    return Policy(load_algorithm(config, spec, folder, best), spec)


def as_scenario(env: Any) -> Scenario:
    """The scenario of an environment's name, class or function."""
    if isinstance(env, str):
        return registry.scenario(env)
    if isinstance(env, Scenario):
        return env
    return registry.scenario(registry.name_of(env, 'scenario'))


def algorithm_name(algo: Any) -> str:
    """The name of an algorithm, given by name or class."""
    return algo if isinstance(algo, str) else registry.name_of(algo, 'algorithm')


def _check_episodes(episodes: int | None) -> None:
    if episodes is not None and episodes < 1:
        raise ValueError(f"'episodes' must be at least 1 (got {episodes})")


class UnknownOptionError(ValueError):
    """An option that neither the loop, the algorithm nor the environment has."""

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option


def with_options(
    config: RunConfig, options: Mapping[str, Any], env_options: Mapping[str, Any], *, more_to_come: bool = False
) -> RunConfig:
    """The configuration with changed options of the loop, the algorithm or the environment.

    Args:
        config: The configuration.
        options: The changes. ``env.NAME`` is an option of the environment whose name is also that of another option.
        env_options: Changes of options of the environment only.
        more_to_come: Do not check ranges yet, because other options will be changed before the result is used.

    Raises:
        UnknownOptionError: If an option is unknown; the message names it and suggests a similar one.
        ValueError: If a value is not allowed.
    """
    parts = {
        part: {f.name for f in dataclasses.fields(getattr(config, part))} for part in ('algorithm', 'train', 'env')
    }
    changes: dict[str, dict[str, Any]] = {part: {} for part in parts}
    for name, value in [*options.items(), *((f'{ENV_PREFIX}{name}', value) for name, value in env_options.items())]:
        own = name.removeprefix(ENV_PREFIX)
        if own == name:
            part = next((part for part, names in parts.items() if name in names), None)
            if part is None:
                where = f'{config.algo} on {config.scenario}'
                raise _unknown(name, set().union(*parts.values()), where, registry.algorithm_names())
        else:
            part = 'env'
            if own not in parts[part]:
                raise _unknown(own, parts[part], f'the environment of {config.scenario}')
        changes[part][own] = as_option(type(getattr(config, part)), own, value)
    replace = _replaced_unchecked if more_to_come else dataclasses.replace
    new = {part: replace(getattr(config, part), **change) for part, change in changes.items() if change}
    return dataclasses.replace(config, **new)


def _replaced_unchecked(options: Any, **changes: Any) -> Any:
    """As :func:`dataclasses.replace`, without the checks of ``__post_init__``."""
    new = copy.copy(options)
    for name, value in changes.items():
        object.__setattr__(new, name, value)
    return new


def _unknown(name: str, known: set[str], where: str, algorithms: Iterable[str] = ()) -> UnknownOptionError:
    others = [
        algo for algo in algorithms if name in {f.name for f in dataclasses.fields(registry.algorithm(algo).config)}
    ]
    near = difflib.get_close_matches(name, known, 1)
    if others:
        move = f'It is an option of {", ".join(others)}.'
    else:
        move = f"Did you mean '{near[0]}'?" if near else f'Choose from: {", ".join(sorted(known))}'
    return UnknownOptionError(name, f"unknown option '{name}' of {where}. {move}")
