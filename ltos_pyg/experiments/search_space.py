"""What ``ltos sweep`` searches: options and their values."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltos_pyg import registry
from ltos_pyg.experiments.experiment import Run
from ltos_pyg.experiments.report import sharing_metrics
from ltos_pyg.experiments.runner import config_of
from ltos_pyg.training.config import RunConfig
from ltos_pyg.training.evaluate import metric_names
from ltos_pyg.training.metrics import MEASURES, OWN_METRICS, is_own, less_is_better

FIRST_SEED = 100  # seed of a trial's first run; reported results use other seeds, so no option is chosen on them


@dataclass(frozen=True)
class Dimension:
    """The values of one option: ``choices``, or all numbers from ``low`` to ``high``."""

    name: str
    choices: tuple[Any, ...] | None = None
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    def __post_init__(self) -> None:
        if self.choices is None and not self.low < self.high:
            raise ValueError(f"'{self.name}': the range must rise (got {self.low}..{self.high})")
        if self.log and self.low <= 0:
            raise ValueError(f"'{self.name}': a logarithmic range must be above 0 (got {self.low}..{self.high})")

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def tried(self) -> tuple[Any, Any, Any]:
        """Values that are checked before the search: the first, one in between, the last."""
        if self.choices is not None:
            return self.choices[0], self.choices[len(self.choices) // 2], self.choices[-1]
        between = self.low + 0.37 * (self.high - self.low)  # not a whole number by chance, unless only those are meant
        return self.low, int(between) if self.whole else between, self.high

    def suggest(self, trial: Any) -> Any:
        """A value, from an Optuna trial."""
        if self.choices is not None:
            return self.choices[trial.suggest_categorical(self.name, range(len(self.choices)))]
        draw = trial.suggest_int if self.whole else trial.suggest_float
        return draw(self.name, self.low, self.high, log=self.log)


def parse_dimension(text: str) -> Dimension:
    """``lr=1e-4..1e-2:log``, ``phi_every=1..8``, ``hidden_channels=64,128`` or ``encoder_channels=[64,64],[512]``.

    Brackets hold the values of an option that takes several. Only two numbers are a range: ``net=../net.json`` is a
    choice.

    Raises:
        ValueError: If it is none of these.
    """
    name, equals, values = text.partition('=')
    name = name.strip().removeprefix('--').replace('-', '_')
    if not equals or not name or not values:
        raise ValueError(
            f"'--vary' takes NAME=A,B,C for choices or NAME=LOW..HIGH for a range, :log for a logarithmic one (got "
            f"'{text}'), e.g. --vary lr=1e-4..1e-2:log"
        )
    body, colon, scale = values.partition(':')
    low, dots, high = body.partition('..')
    bounds = [_value(low), _value(high)]
    if dots and all(isinstance(b, int | float) and not isinstance(b, bool) for b in bounds):
        if scale not in ('', 'log'):
            raise ValueError(f"'--vary {text}': expected ':log' or nothing after the range (got ':{scale}')")
        return Dimension(name, None, bounds[0], bounds[1], bool(colon))
    parts = re.split(r',(?![^\[]*\])', values)  # at commas outside of brackets
    return Dimension(name, tuple(map(_value, parts)))


def _value(text: str) -> Any:
    """A number, a truth value, the text, or a tuple of them if it is in brackets."""
    text = text.strip()
    if text.startswith('[') and text.endswith(']'):
        return tuple(_value(part) for part in text[1:-1].split(',') if part.strip())
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {'true': True, 'false': False, 'none': None}.get(text.lower(), text)


@dataclass(frozen=True)
class Sweep:
    """What to search, and how.

    Args:
        scenario: A scenario, or ``package.module:Name``.
        algo: An algorithm, or ``package.module:Name``.
        preset: The options to start from.
        options: Other options of every trial.
        space: The options to vary.
        sampler: ``'grid'`` (all combinations of choices), ``'random'`` or ``'tpe'`` (learns from earlier trials).
        trials: How many; unused with ``'grid'``.
        seeds: Runs of a trial; its value is their mean.
        metric: The final metric; ``None``: the primary one.
        lower_is_better: ``None``: for the primary metric, what the scenario declares; for others, by their names.
        prune: Stop a trial early if it is worse than the median of the earlier ones at the same step.
        imports: Modules that register the scenario or the algorithm.
    """

    scenario: str
    algo: str
    preset: str
    options: tuple[tuple[str, Any], ...]
    space: tuple[Dimension, ...]
    sampler: str = 'tpe'
    trials: int = 20
    seeds: int = 1
    metric: str | None = None
    lower_is_better: bool | None = None
    prune: bool = False
    imports: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.space:
            raise ValueError('a sweep needs at least one option to vary, e.g. --vary lr=1e-4..1e-2:log (got none)')
        named = [name for name, _ in self.options] + [d.name for d in self.space]
        twice = next((name for name in named if named.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"'{twice}' is given twice. Leave one out, or give all its values to one --vary.")
        if 'seed' in named:
            raise ValueError(
                f"'seed' cannot be set or varied in a sweep: its runs use the seeds from {FIRST_SEED} on, as many "
                f'a trial as --seeds says. Leave it out.'
            )
        if 'media' in named:
            raise ValueError("'media' cannot be set in a sweep, whose runs leave no pictures. Leave it out.")
        if self.sampler == 'grid' and any(d.choices is None for d in self.space):
            ranges = [d.name for d in self.space if d.choices is None]
            raise ValueError(f'the grid sampler needs choices, as NAME=A,B,C (got a range for {", ".join(ranges)})')
        for name, value in (('trials', self.trials), ('seeds', self.seeds)):
            if value < 1:
                raise ValueError(f"'--{name}' must be at least 1 (got {value})")

    @property
    def number_of_trials(self) -> int:
        """All combinations of a grid, else ``trials``."""
        return len(self.grid()) if self.sampler == 'grid' else self.trials

    def grid(self) -> list[dict[str, int]]:
        """All combinations, as numbers of the choices."""
        numbers = [range(len(d.choices or ())) for d in self.space]
        return [dict(zip([d.name for d in self.space], one, strict=True)) for one in itertools.product(*numbers)]

    def run(self, values: Mapping[str, Any], seed: int) -> Run:
        """One run of a trial."""
        changed = {**dict(self.options), **values}
        method = tuple(sorted((name, _tuples(value)) for name, value in changed.items()))
        return Run(self.scenario, (), self.algo, self.preset, method, seed, self.imports)

    def goal(self) -> tuple[str, bool]:
        """The metric, and whether lower is better."""
        scenario = registry.scenario(self.scenario)
        metric = self.metric or scenario.primary_metric
        lower = less_is_better(metric, scenario.primary_metric, scenario.lower_is_better)
        return metric, lower if self.lower_is_better is None else self.lower_is_better


def check(sweep: Sweep) -> None:
    """Raises a ``ValueError`` if an option or the metric is unknown, or a value at an end or in the middle of its range
    is not allowed."""
    registry.import_modules(sweep.imports)
    names = [d.name for d in sweep.space]
    tried = [dict(zip(names, values, strict=True)) for values in zip(*(d.tried() for d in sweep.space), strict=True)]
    configs = [config_of(sweep.run(values, FIRST_SEED)) for values in tried]
    if sweep.metric is not None:
        _check_metric(sweep.metric, configs[0])


def _check_metric(metric: str, config: RunConfig) -> None:
    """Raises a ``ValueError`` unless the evaluations of a run have the metric, as far as an episode with random actions
    shows it."""
    with closing(registry.scenario(config.scenario).make_env(config)(1)) as env:
        names = metric_names(env)
    if names is None and not is_own(metric):
        return
    known = names or [name for name in OWN_METRICS if name not in MEASURES]
    known = [*known, *(name for name in sharing_metrics(config) if name in MEASURES)]
    if metric not in known:
        raise ValueError(f"'--metric' must be one of {', '.join(known)} (got '{metric}')")


def read_sweep(out: Path) -> Sweep:
    """The sweep of a folder."""
    plain = json.loads((out / 'sweep.json').read_text(encoding='utf-8'))
    space = [
        Dimension(**{**one, 'choices': None if one['choices'] is None else _tuples(one['choices'])})
        for one in plain['space']
    ]
    whole = {'options': _tuples(plain['options']), 'space': tuple(space), 'imports': tuple(plain['imports'])}
    return Sweep(**{**plain, **whole})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
