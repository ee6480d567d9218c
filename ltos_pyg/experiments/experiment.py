"""An experiment as data: methods x settings x seeds, in Python or read from a TOML file."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ltos_pyg import registry
from ltos_pyg.formatting import shortened
from ltos_pyg.ranges import as_option, check_range
from ltos_pyg.training.config import ENV_PREFIX, flags_of

FIRST_SEED = 10  # settings were chosen on 100 to 104; 0 to 9 were used while bugs were fixed, some settings on them
MEASURING = ('final_episodes', 'eval_episodes', 'eval_every', 'eval_seed')  # options of evaluations
NOT_TRAINING = (*MEASURING, 'media', 'threads', 'device', 'checkpoint_every', 'log_every')
"""Options that change what is measured or saved, but not what is trained: not in the name of a run folder."""

Report = Literal['table', 'curves', 'line', 'sharing', 'zero_shot', 'behaviour', 'selfishness']


@dataclass(frozen=True, kw_only=True)
class Method:
    """An algorithm with its options: a row of a table, a line of a figure."""

    label: str
    algo: str
    preset: str = 'default'
    options: Mapping[str, Any] = field(default_factory=dict)  # as for ltos_pyg.train
    seeds: int | None = None  # None: those of the experiment

    def __post_init__(self) -> None:
        check_range(self, 'seeds', least=1, none=', or be left out')
        _check_free(self.options, f"method '{self.label}'")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A scenario with its options: a column of a table, a panel, or a point of a line."""

    label: str
    scenario: str
    options: Mapping[str, Any] = field(default_factory=dict)
    metric: str | None = None  # None: the primary metric of the scenario
    x: float | None = None  # position on the horizontal axis, for report 'line'

    def __post_init__(self) -> None:
        _check_free(self.options, f"setting '{self.label}'")


def _check_free(options: Mapping[str, Any], where: str) -> None:
    """Raises a ``ValueError`` if the options have one that an experiment sets itself."""
    if 'seed' in options:
        raise ValueError(f"'seed' cannot be an option of {where}: runs count from 'first_seed'. Leave it out.")
    if 'media' in options:
        raise ValueError(f"'media' cannot be an option of {where}: runs leave no pictures. Leave it out.")


Options = tuple[tuple[str, Any], ...]  # names and values, sorted by name


@dataclass(frozen=True)
class Run:
    """One training run. Experiments that contain the same run share its folder.

    Args:
        scenario: A scenario, or ``package.module:Name``.
        setting: Options that the setting changes.
        algo: An algorithm, or ``package.module:Name``.
        preset: The options to start from.
        method: Options that the method changes.
        seed: Seed of all random numbers.
        imports: Modules that register the scenario or the algorithm.
    """

    scenario: str
    setting: Options
    algo: str
    preset: str
    method: Options
    seed: int
    imports: tuple[str, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """All changed options."""
        return dict(self.setting + self.method)

    @property
    def training_options(self) -> dict[str, Any]:
        """Those that training depends on."""
        return {name: value for name, value in self.options.items() if name not in NOT_TRAINING}

    @property
    def name(self) -> str:
        """The name of its folder, from everything that training depends on."""
        scenario = [self.scenario.rpartition(':')[2], *_shown(self.setting)]
        return shortened('-'.join([*scenario, self.label]), f'-seed{self.seed}')

    @property
    def label(self) -> str:
        """The algorithm with its preset and options."""
        preset = [] if self.preset == 'default' else [self.preset]
        return '-'.join([self.algo.rpartition(':')[2], *preset, *_shown(self.method)])

    def arguments(self, folder: Path) -> list[str]:
        """The arguments of ``ltos`` that train it."""
        flags = [flag for name, value in self.options.items() for flag in flags_of(name, value)]
        preset = [] if self.preset == 'default' else ['--preset', self.preset]
        imports = [flag for name in self.imports for flag in ('--import', name)]
        where = ['--seed', str(self.seed), '--label', self.label, '--no-media', '--out', str(folder)]
        return ['train', self.scenario, '--algo', self.algo, *preset, *flags, *imports, *where]


def _shown(options: Options) -> list[str]:
    return [f'{name}={_short(value)}' for name, value in options if name not in NOT_TRAINING]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Methods in settings, over seeds, and how the result is reported.

    Args:
        name: What ``ltos reproduce`` calls it.
        title: One line.
        report: ``'table'`` of final results; ``'curves'``, learning curves, one panel per setting; ``'line'``, the
            final result over :attr:`Setting.x`; ``'sharing'``, a table with the measures of the weights;
            ``'zero_shot'``, a table of the trained policies under other options of the environment; ``'behaviour'``,
            one GIF per method, and a figure of their last frames; ``'selfishness'``, the share kept over an episode.
        settings: Scenarios with their options.
        methods: Algorithms with their options.
        seeds: Number of seeds of each method, counted from ``first_seed``.
        first_seed: The first seed.
        metric: The metric; ``None``: that of the setting, or the primary metric of its scenario.
        lower_is_better: Whether less of the metric is better; ``None``: as the scenario declares for its primary
            metric, and by their names for others.
        over: For ``'zero_shot'``, the values of each option of the environment, one option at a time.
        compared: Label of the method that a report compares with each of the others; ``None``: the first method.
        paper: Numbers of the paper, by method label and setting label.
        text: A note for readers of the report.
        files: Whether the road networks must be given by ``--data``.
        imports: Modules that register scenarios or algorithms of its own.
    """

    name: str
    title: str
    settings: tuple[Setting, ...]
    methods: tuple[Method, ...]
    report: Report = 'table'
    seeds: int = 5
    first_seed: int = FIRST_SEED
    metric: str | None = None
    lower_is_better: bool | None = None
    over: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    compared: str | None = None
    paper: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    text: str = ''
    files: bool = False
    imports: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_range(self, 'seeds', least=1)
        labels = [method.label for method in self.methods]
        for what, names in (('methods', labels), ('settings', [setting.label for setting in self.settings])):
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"two {what} have the label '{twice}': give each a 'label' of its own")
        if self.report == 'line' and any(setting.x is None for setting in self.settings):
            raise ValueError("report 'line' draws over 'x': give each of the settings an 'x'")
        if not all(isinstance(row, Mapping) for row in self.paper.values()) or not all(
            isinstance(number, int | float) for row in self.paper.values() for number in row.values()
        ):
            raise ValueError("'paper' has numbers by method and setting, e.g. { dgn = { 'k = 2' = 0.5 } }")
        if self.compared is not None and self.compared not in labels:
            raise ValueError(f"'compared' must be the label of a method: {', '.join(labels)} (got {self.compared!r})")

    def seeds_of(self, method: Method) -> range:
        """The seeds of a method."""
        return range(self.first_seed, self.first_seed + (self.seeds if method.seeds is None else method.seeds))

    def run(self, setting: Setting, method: Method, seed: int) -> Run:
        """One run; an option of the method replaces that of the setting."""
        options = {**setting.options, **method.options}
        if any(isinstance(value, float) and value.is_integer() for value in options.values()):
            options = self._with_whole(setting, method, options)
        own = _options({name: value for name, value in options.items() if name in method.options})
        rest = _options({name: value for name, value in options.items() if name not in method.options})
        return Run(setting.scenario, rest, method.algo, method.preset, own, seed, self.imports)

    def _with_whole(self, setting: Setting, method: Method, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options, 2e4 as 20000 where an option is a whole number, as ``ltos train`` and names of folders need."""
        registry.import_modules(self.imports)
        config = registry.scenario(setting.scenario).config(method.algo, method.preset)
        parts = {'': (config.algorithm, config.train, config.env), ENV_PREFIX: (config.env,)}
        whole = dict(options)
        for name, value in options.items():
            prefix = ENV_PREFIX if name.startswith(ENV_PREFIX) else ''
            own = name.removeprefix(prefix)
            part = next((part for part in parts[prefix] if own in {f.name for f in dataclasses.fields(part)}), None)
            if part is not None and isinstance(value, float):
                with contextlib.suppress(ValueError):  # not of its type: the plan says so
                    whole[name] = as_option(type(part), own, value)
        return whole

    def runs_of(self, setting: Setting, method: Method) -> list[Run]:
        """The runs of one cell, by seed."""
        return [self.run(setting, method, seed) for seed in self.seeds_of(method)]

    def runs(self) -> Iterator[Run]:
        """All runs, seed by seed, so that a table of one seed is complete early."""
        most = max((len(self.seeds_of(method)) for method in self.methods), default=0)
        for seed in range(self.first_seed, self.first_seed + most):
            for setting in self.settings:
                for method in self.methods:
                    if seed in self.seeds_of(method):
                        yield self.run(setting, method, seed)

    def limited(self, seeds: int | None = None, only: str = '', steps: int | None = None) -> Experiment:
        """The experiment with at most ``seeds`` seeds, with only those methods whose label contains ``only``, and with
        ``steps`` as its ``total_steps``.

        Raises:
            ValueError: If no method is left.
        """
        methods = [method for method in self.methods if only.lower() in method.label.lower()]
        if not methods:
            raise ValueError(
                f"no method of '{self.name}' contains '{only}'. Choose from: "
                f'{", ".join(method.label for method in self.methods)}'
            )
        if seeds is not None:
            methods = [dataclasses.replace(method, seeds=min(len(self.seeds_of(method)), seeds)) for method in methods]
        settings, limits = self.settings, []
        if seeds is not None and any(len(self.seeds_of(method)) > seeds for method in self.methods):
            limits.append(f'at most {seeds} {"seed" if seeds == 1 else "seeds"} a method (--seeds)')
        if steps is not None:
            limits.append(f'{steps:,} env steps a run (--total-steps)')
            shorter = {'total_steps': steps}
            settings = tuple(dataclasses.replace(s, options={**s.options, **shorter}) for s in settings)
            methods = [dataclasses.replace(m, options={**m.options, **shorter}) for m in methods]
        compared = self.compared if self.compared in [method.label for method in methods] else None
        note = f'A quick look: {" and ".join(limits)}.' if limits else ''
        text = '\n\n'.join(part for part in (self.text, note) if part)
        return dataclasses.replace(self, methods=tuple(methods), settings=settings, compared=compared, text=text)


def _options(options: Mapping[str, Any]) -> Options:
    return tuple((name, tuple(v) if isinstance(v, list) else v) for name, v in sorted(options.items()))


def _short(value: Any) -> str:
    """A value as a part of a folder's name: of a path its last part."""
    if isinstance(value, list | tuple):
        return '+'.join(map(_short, value))
    text = Path(value).stem if isinstance(value, str) and '/' in value else str(value)
    return re.sub(r'[^A-Za-z0-9._+]', '_', text)


# from a TOML file ----------------------------------------------------------------------------------------------------

_OWN = ('settings', 'methods')  # tables of their own


def read_experiment(path: Path) -> Experiment:
    """Reads an experiment from a TOML file, whose keys are the fields of the classes above.

    Raises:
        ValueError: If the file is not valid; the message names the file, the line, and what is allowed.
    """
    from ltos_pyg.experiments.catalogue import EXPERIMENTS

    plain, text = read_toml(path), path.read_text(encoding='utf-8')
    parts = {
        name: tuple(
            _build(cls, part, path, text, f'[[{name}]]', i) for i, part in enumerate(_list(plain, name, path, text))
        )
        for name, cls in (('settings', Setting), ('methods', Method))
    }
    own = {'name': path.stem, 'title': path.stem} | {key: value for key, value in plain.items() if key not in _OWN}
    if isinstance(own.get('imports'), list):
        own['imports'] = tuple(own['imports'])
        if not all(isinstance(name, str) for name in own['imports']):
            raise ValueError(
                f"'{path}', line {_line(text, 'imports')}: 'imports' must be a list of the names of modules (got "
                f'{[*own["imports"]]})'
            )
    experiment: Experiment = _build(Experiment, own | parts, path, text, 'the top level', 0)
    name = experiment.name
    if name in EXPERIMENTS or name in ('', '.', '..') or '/' in name or '\\' in name:
        why = 'is that of an experiment of ltos_pyg' if name in EXPERIMENTS else 'cannot be that of a folder'
        raise ValueError(
            f"'{path}', line {_line(text, 'name')}: the name '{name}' {why}, and its report lies in the folder of its "
            f"name. Give it another 'name'."
        )
    _check_paper(experiment, path, text)
    return experiment


def _check_paper(experiment: Experiment, path: Path, text: str) -> None:
    """Raises a ``ValueError`` if a number of the paper belongs to no method or setting."""
    methods, settings = ([one.label for one in some] for some in (experiment.methods, experiment.settings))
    named = [('method', label, methods) for label in experiment.paper]
    named += [('setting', label, settings) for row in experiment.paper.values() for label in row]
    for what, label, known in named:
        if label not in known:
            raise ValueError(
                f"'{path}', line {_line(text, 'paper')}: 'paper' names an unknown {what}, '{label}'. Choose from: "
                f'{", ".join(known)}'
            )


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file; a ``ValueError`` if it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise ValueError(f"'{path}' cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is not valid TOML: it is not in UTF-8 ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"'{path}' is not valid TOML: {error}") from error


def with_none(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options from a TOML file, which has no null: ``None`` for ``'none'``."""
    return {name: None if value == 'none' else value for name, value in options.items()}


def _list(plain: Mapping[str, Any], name: str, path: Path, text: str) -> list[dict[str, Any]]:
    value = plain.get(name)
    if not value or not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        raise ValueError(
            f"'{path}', line {_line(text, name)}: expected one or more tables [[{name}]] (got {value!r}). Each has the "
            f'keys: {", ".join(_keys(Setting if name == "settings" else Method))}'
        )
    return value


def _keys(cls: type) -> list[str]:
    return [f.name for f in dataclasses.fields(cls) if f.name != 'files']  # a file names its road networks itself


def _build(cls: Any, plain: Mapping[str, Any], path: Path, text: str, where: str, number: int) -> Any:
    """An instance from plain data, each value of the expected type."""
    if cls is not Experiment and 'label' not in plain:
        plain = {'label': str(plain.get('algo', plain.get('scenario', ''))), **plain}
    for key, value in plain.items():
        if key not in _keys(cls):
            raise ValueError(
                f"'{path}', line {_line(text, key, where, number)}: unknown key '{key}' in {where}. Allowed: "
                f'{", ".join(_keys(cls))}'
            )
        expected = _TYPES.get(key)
        if expected is not None and (
            not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected)
        ):
            kind = ' or '.join('list' if t is tuple else t.__name__ for t in expected)
            raise ValueError(
                f"'{path}', line {_line(text, key, where, number)}: '{key}' must be of type {kind} (got {value!r})"
            )
        choices = _CHOICES.get(key)
        if choices is not None and value not in choices:
            raise ValueError(
                f"'{path}', line {_line(text, key, where, number)}: '{key}' must be one of {', '.join(choices)} "
                f'(got {value!r})'
            )
    missing = [key for key in _REQUIRED[cls] if key not in plain]
    if missing:
        raise ValueError(f"'{path}', line {_line(text, None, where, number)}: {where} needs {', '.join(missing)}")
    if 'options' in plain:
        plain = {**plain, 'options': with_none(plain['options'])}
    try:
        return cls(**plain)
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from error


_TYPES: dict[str, tuple[type, ...]] = {
    'name': (str,), 'title': (str,), 'seeds': (int,), 'first_seed': (int,), 'metric': (str,), 'label': (str,),
    'algo': (str,), 'preset': (str,), 'scenario': (str,), 'options': (dict,), 'paper': (dict,), 'x': (int, float),
    'text': (str,), 'compared': (str,), 'imports': (tuple,), 'over': (dict,), 'lower_is_better': (bool,),
}  # fmt: skip
_CHOICES = {'report': ('table', 'curves', 'line', 'sharing', 'zero_shot')}
_REQUIRED: dict[Any, tuple[str, ...]] = {Experiment: (), Setting: ('scenario',), Method: ('algo',)}


def line_of_option(path: Path, experiment: Experiment, setting: Setting, method: Method, option: str) -> int:
    """The line of an experiment's file on which an option of this method, or else of this setting, stands."""
    text = path.read_text(encoding='utf-8')
    if option in method.options:
        return _line(text, option, '[[methods]]', experiment.methods.index(method))
    return _line(text, option, '[[settings]]', experiment.settings.index(setting))


def _line(text: str, key: str | None, where: str = '', number: int = 0) -> int:
    """The line on which a key stands: in the given one of several tables with the same name."""
    lines = text.splitlines()
    start = 0
    if where.startswith('[['):
        tables = [i for i, line in enumerate(lines) if line.strip().replace(' ', '').startswith(where)]
        start = tables[number] if number < len(tables) else 0
    if key is None:
        return start + 1
    pattern = re.compile(rf'(.*[{{,])?\s*(\[+\s*)?"?{re.escape(key)}"?\s*[=\].]')  # also in an inline table
    return next((i + 1 for i, line in enumerate(lines) if i >= start and pattern.match(line)), start + 1)
