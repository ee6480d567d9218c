"""Zero-shot evaluation: a trained policy in settings of its environment that it was not trained in."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ltos_pyg.algos import Algorithm
from ltos_pyg.formatting import rounded, shortened
from ltos_pyg.graph_env import GraphEnvSpec
from ltos_pyg.progress import Progress
from ltos_pyg.training.config import MakeEnv, RunConfig
from ltos_pyg.training.evaluate import Stat, act_once, check_same_sizes, evaluate, playing_in
from ltos_pyg.training.metrics import MEASURES, WITHOUT_INTERVAL

if TYPE_CHECKING:
    from ltos_pyg.scenarios.base import Scenario

EPISODES = 100  # of an evaluation, if not given


@dataclass(frozen=True)
class Setting:
    """One setting of an environment, and what a policy reached in it."""

    options: dict[str, Any]  # the options that are varied
    env: Any  # all options of the environment
    trained: bool  # whether these are the options of training
    stats: dict[str, Stat] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return ', '.join(f'{name}={option_text(value)}' for name, value in self.options.items())


def settings_of(
    config: RunConfig, over: Mapping[str, Sequence[Any]], change: Callable[[Any, dict[str, Any]], Any]
) -> list[Setting]:
    """The product of the values of some options: ``{'num_agents': [10, 20], 'size': [20, 30]}`` gives four settings.

    Args:
        config: The run's configuration.
        over: The values of each option.
        change: Returns the options of the environment with some changed.

    Raises:
        ValueError: If an option is unknown (lists the known ones) or has no values, or a value is not allowed.
    """
    known = [f.name for f in dataclasses.fields(config.env)]
    for name, values in over.items():
        if name not in known:
            raise ValueError(f"unknown option '{name}' of {config.scenario}. Choose from: {', '.join(known)}")
        if not values:
            raise ValueError(f"'{name}' needs at least one value to evaluate with (got none)")
    settings: list[Setting] = []
    for values in itertools.product(*over.values()):
        options = dict(zip(over, values, strict=True))
        try:
            env = change(config.env, options)
            check_evaluation(config.env, env)
        except (ValueError, TypeError) as error:
            raise ValueError(f'setting {Setting(options, None, False)}: {error}') from error
        setting = Setting({name: getattr(env, name) for name in over}, env, env == config.env)
        if all(setting.env != other.env for other in settings):
            settings.append(setting)
    return settings


def check_evaluation(trained: Any, played: Any) -> None:
    """Raises a ``ValueError`` if a policy trained with the options ``trained`` may not be evaluated with ``played``.
    The check is a method of the options, ``played.check_evaluation(trained)``; without it everything is allowed."""
    check = getattr(played, 'check_evaluation', None)
    if check is not None:
        check(trained)


def tasks_of(make_env: MakeEnv) -> int | None:
    """The number of tasks of an environment; ``None`` if its episodes differ."""
    with closing(make_env(1)) as env:
        return env.spec.num_tasks


def evaluate_over(
    algorithm: Algorithm,
    trained: GraphEnvSpec,
    scenario: Scenario,
    config: RunConfig,
    settings: Sequence[Setting],
    episodes: int | None,
    seed: int,
    show: bool = False,
    metrics: Sequence[str] = (),
) -> list[Setting]:
    """Plays episodes without exploration in each setting; returns the settings with their metrics.

    All settings are checked before the first is played.

    Args:
        algorithm: The trained algorithm.
        trained: The spec of the environment of training.
        scenario: The run's scenario.
        config: The run's configuration.
        settings: See :func:`settings_of`.
        episodes: Episodes of each setting. ``None``: one of each task, or 100 where episodes differ.
        seed: Their seed, the same in each setting.
        show: Whether to show a progress bar.
        metrics: Metrics that will be asked for: checked after the first setting.

    Raises:
        ValueError: Names the first setting that the policy cannot act in, and the option that changes its observations;
            or the first metric that does not exist.
    """
    for setting in settings:
        _check(algorithm, trained, scenario, config, setting, seed)
    played = []
    with Progress(settings, desc='settings', unit='', leave=False, delay=1, disable=not show) as bar:
        for setting in bar:
            bar.set_postfix_str(str(setting))
            make_env = scenario.make_env(dataclasses.replace(config, env=setting.env))
            with (
                closing(make_env(episodes or tasks_of(make_env) or EPISODES)) as env,
                playing_in(algorithm, trained, env.spec),
            ):
                stats = evaluate(algorithm, env, seed, show='episodes' if show else None)
            _check_metrics(metrics, stats)
            played.append(dataclasses.replace(setting, stats=stats))
    return played


def _check(
    algorithm: Algorithm, trained: GraphEnvSpec, scenario: Scenario, config: RunConfig, setting: Setting, seed: int
) -> None:
    """Raises a ``ValueError`` unless the algorithm can act in a setting."""

    def fits(env: Any) -> ValueError | None:
        """Why the policy does not fit an environment with these options, if it does not."""
        with closing(scenario.make_env(dataclasses.replace(config, env=env))(1)) as made:
            try:
                check_same_sizes(trained, made.spec)
            except ValueError as error:
                return error
        return None

    problem = fits(setting.env)
    if problem is not None:
        changed = {
            f.name: getattr(setting.env, f.name)
            for f in dataclasses.fields(setting.env)
            if getattr(setting.env, f.name) != getattr(config.env, f.name)
        }
        causes = []
        for name, value in changed.items():
            try:
                alone = dataclasses.replace(config.env, **{name: value})
            except ValueError:  # not allowed without the other changes
                continue
            if fits(alone) is not None:
                causes.append(f"'{name}'")
        named = f' Here: {", ".join(causes)}.' if causes else ''
        raise ValueError(f'setting {setting}: {problem}{named}') from problem
    with closing(scenario.make_env(dataclasses.replace(config, env=setting.env))(1)) as env:
        try:
            with playing_in(algorithm, trained, env.spec):
                act_once(algorithm, env, seed)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f'setting {setting}: {config.algo} cannot act in it: {error}') from error


# --- results ---------------------------------------------------------------------------------------------------------


def as_result(
    config: RunConfig, settings: Sequence[Setting], fixed: Mapping[str, Any], episodes: int | None, seed: int
) -> dict[str, Any]:
    """The evaluation as plain data, for JSON.

    Args:
        config: The run's configuration.
        settings: What :func:`evaluate_over` returned.
        fixed: Options that differ from training in all settings.
        episodes: Episodes of each setting. ``None``: one of each task.
        seed: Their seed.
    """
    return {
        'scenario': config.scenario,
        'algo': config.algo,
        'seed': config.train.seed,
        'episodes': episodes,
        'eval_seed': seed,
        'env': dict(fixed),
        'settings': [
            {
                'options': setting.options,
                'trained': setting.trained,
                'eval': {name: dataclasses.asdict(stat) for name, stat in setting.stats.items()},
            }
            for setting in settings
        ],
    }


def result_name(over: Sequence[str], special: Sequence[str]) -> str:
    """The name of an evaluation's file: the varied options, and what differs from training in all settings."""
    return shortened(re.sub(r'[^\w.+=-]+', '_', '--'.join(['+'.join(over), *special])), '')


def metrics_of(result: Mapping[str, Any], primary: str, wanted: Sequence[str] = ()) -> list[str]:
    """The metrics of a table: the wanted ones, or all but the length and measures of sharing, the primary one first.

    Raises:
        ValueError: If a wanted one is not there; lists those that are.
    """
    known = list(result['settings'][0]['eval'])
    _check_metrics(wanted, known)
    hidden = {'length', 'kept_std_states', *MEASURES} - {'kept'}
    return list(wanted) or sorted((name for name in known if name not in hidden), key=lambda name: name != primary)


def _check_metrics(wanted: Sequence[str], known: Iterable[str]) -> None:
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"unknown metric '{unknown[0]}'. Choose from: {', '.join(known)}")


def table_cells(result: Mapping[str, Any], metrics: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table: a row for each setting, mean and 95 % interval of each metric."""
    rows = []
    for setting in result['settings']:
        label = ', '.join(f'{name}={option_text(value)}' for name, value in setting['options'].items())
        of = [interval(setting['eval'].get(metric), metric != WITHOUT_INTERVAL) for metric in metrics]
        rows.append([label + (' (as trained)' if setting['trained'] else ''), *of])
    return ['setting', *metrics], rows


def as_csv(result: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """A line for each setting and metric, with all digits."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator='\n')
    names = list(result['settings'][0]['options'])
    writer.writerow([*names, 'trained', 'metric', 'mean', 'low', 'high', 'std', 'episodes'])
    for setting in result['settings']:
        values = [option_text(value) for value in setting['options'].values()]
        for metric in metrics:
            if metric in setting['eval']:
                stat = Stat(**setting['eval'][metric])
                spread = [stat.mean - stat.ci95, stat.mean + stat.ci95] if stat.count > 1 else ['', '']
                spread = ['', '', ''] if metric == WITHOUT_INTERVAL else [*spread, stat.std]
                line = [str(setting['trained']).lower(), metric, stat.mean, *spread, stat.count]
                writer.writerow([*values, *line])
    return out.getvalue().rstrip('\n')


def interval(stat: Mapping[str, Any] | None, over_episodes: bool = True) -> str:
    """Mean and 95 % interval over episodes, e.g. ``0.872 ± 0.014``; the mean alone of one episode, and of a metric that
    is one number for all episodes."""
    if stat is None:
        return ''
    of = Stat(**stat)
    return ' ± '.join(rounded(*([of.mean, of.ci95] if of.count > 1 and over_episodes else [of.mean])))


def option_text(value: Any) -> str:
    """The value of an option as it is shown, the same before and after it was stored as JSON."""
    return ' '.join(map(str, value)) if isinstance(value, list | tuple) else str(value)
