"""Algorithms and scenarios by name: those of this package, those of plug-ins, and any ``package.module:Name``.

Looking up a name imports only what that name needs: importing this module does not load PyTorch.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import importlib.util
import itertools
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ltos_pyg.scenarios.base import Scenario

ALGORITHMS = (
    'dqn', 'dgn', 'fixed_ltos', 'ltos', 'ltos_edge', 'qmix', 'joint_dqn', 'coco_q', 'neurcomm', 'consenet', 'ip', 'lio'
)  # fmt: skip
SCENARIOS = {
    'jungle': 'ltos_pyg.scenarios.jungle:JUNGLE',
    'dilemmas': 'ltos_pyg.scenarios.dilemmas:DILEMMAS',
    'prisoner': 'ltos_pyg.scenarios.prisoner:PRISONER',
    'traffic': 'ltos_pyg.scenarios.traffic:TRAFFIC',
}
GROUP = 'ltos_pyg.plugins'  # entry points of plug-in packages

T = TypeVar('T')


@dataclass(frozen=True)
class AlgorithmEntry:
    """An algorithm's entry in the registry."""

    name: str
    make: Callable[..., Any]  # from (spec, config, seed, device)
    config: type  # its options, a dataclass
    module: str | None = None  # the plug-in that registered it; None: this package


_algorithms: dict[str, AlgorithmEntry] = {}
_scenarios: dict[str, Scenario] = {}


# --- algorithms ------------------------------------------------------------------------------------------------------


def register_algorithm(name: str, algorithm: Any = None, *, config: type | None = None) -> Any:
    """Registers an algorithm for ``--algo NAME`` and :func:`ltos_pyg.train`.

    .. code-block:: python

        @register_algorithm('vdn')
        class VDN(DQN):
            ...

    Args:
        name: What it is called, without ``:`` or spaces.
        algorithm: A subclass of :class:`~ltos_pyg.algos.Algorithm`, or a function, called as
            ``(spec, config, seed, device)``. Without it, this is a decorator.
        config: The dataclass of its options. Default: the annotation of the class attribute ``config``.

    Raises:
        ValueError: If the name is taken, or the class does not declare its options.
    """
    if algorithm is None:
        return functools.partial(register_algorithm, name, config=config)
    entry = AlgorithmEntry(name, algorithm, config or _config_of(algorithm, name), _caller())
    known = _algorithms.get(name)
    _check_new('algorithm', name, name in ALGORITHMS, known and known.make, algorithm)
    _algorithms[name] = entry
    return algorithm


def algorithm(name: str) -> AlgorithmEntry:
    """The algorithm of that name, or ``package.module:Name``.

    Raises:
        ValueError: If there is none; lists the known ones.
    """
    if name in ALGORITHMS:
        from ltos_pyg import algos

        make, config = algos.ALGORITHMS[name]
        return AlgorithmEntry(name, make, config)
    if name not in _algorithms and ':' in name:
        make = import_name(name, 'algorithm')
        return AlgorithmEntry(name, make, _config_of(make, name), name.partition(':')[0])
    check_algorithm(name)
    return _algorithms[name]


def check_algorithm(name: str) -> None:
    """Raises a ``ValueError`` that lists the algorithms if there is none of this name. Does not load PyTorch."""
    if name not in ALGORITHMS and ':' not in name:
        _check_known('algorithm', name, algorithm_names())


def algorithm_names() -> list[str]:
    """Names of the algorithms, those of plug-ins last."""
    _load_plugins()
    return [*ALGORITHMS, *_algorithms]


def _config_of(make: Any, name: str) -> type:
    """The options of an algorithm that was given without them: the annotation of ``config`` in its class."""
    import dataclasses
    import typing

    found = typing.get_type_hints(make).get('config') if isinstance(make, type) else None
    if found is None or not dataclasses.is_dataclass(found):
        raise ValueError(
            f"algorithm '{name}' needs its options: expected a dataclass as the annotation of its class attribute "
            f"'config' (got {found!r}). Write 'config: MyConfig' in the class, or pass config= when registering."
        )
    if 'total_steps' not in {field.name for field in dataclasses.fields(found)}:
        raise ValueError(
            f"the options of algorithm '{name}' need a field 'total_steps', the env steps of training (got "
            f"{found} without). Write 'total_steps: int = 100_000' in it."
        )
    return typing.cast(type, found)


# --- scenarios -------------------------------------------------------------------------------------------------------


def register_scenario(name: str | Scenario, environment: Any = None, **settings: Any) -> Any:
    """Registers a scenario for ``ltos train NAME`` and :func:`ltos_pyg.train`.

    .. code-block:: python

        @register_scenario('pursuit', primary_metric='caught', train={'num_envs': 8}, algorithm={'gamma': 0.9})
        class Pursuit(GraphEnv):
            ...

    Args:
        name: What it is called, without ``:`` or spaces; or a whole :class:`~ltos_pyg.scenarios.Scenario`.
        environment: A class or a function that makes a :class:`~ltos_pyg.graph_env.GraphEnv` (from ``num_envs``), a
            :class:`~ltos_pyg.graph_env.SingleGraphEnv` or a PettingZoo parallel environment. Without it, this is a
            decorator.
        settings: Fields of :class:`~ltos_pyg.scenarios.Scenario`: ``primary_metric``, ``train``, ``algorithm``,
            ``presets``, ``pictures``, ….

    Raises:
        ValueError: If the name is taken.
    """
    from ltos_pyg.scenarios.base import Scenario
    from ltos_pyg.scenarios.custom import scenario_of

    if isinstance(name, Scenario):
        whole = name if name.module else dataclasses.replace(name, module=_caller())
        _check_new('scenario', whole.name, whole.name in SCENARIOS, _scenarios.get(whole.name), whole)
        _scenarios[whole.name] = whole
        return whole
    if environment is None:
        return functools.partial(register_scenario, name, **settings)
    known = _scenarios.get(name)
    _check_new('scenario', name, name in SCENARIOS, known and (known.source or known), environment)
    _scenarios[name] = scenario_of(environment, name, module=_caller(), **settings)
    return environment


def scenario(name: str) -> Scenario:
    """The scenario of that name, or of the environment ``package.module:Name``.

    Raises:
        ValueError: If there is none; lists the known ones.
    """
    if name in SCENARIOS:
        module, _, attribute = SCENARIOS[name].partition(':')
        return getattr(importlib.import_module(module), attribute)
    if name not in _scenarios and ':' in name:
        from ltos_pyg.scenarios.custom import scenario_of

        return scenario_of(import_name(name, 'environment'), name, module=name.partition(':')[0])
    check_scenario(name)
    return _scenarios[name]


def check_scenario(name: str) -> None:
    """Raises a ``ValueError`` that lists the scenarios if there is none of this name. Does not load PyTorch."""
    if name not in SCENARIOS and ':' not in name:
        _check_known('scenario', name, scenario_names())


def scenario_names() -> list[str]:
    """Names of the scenarios, those of plug-ins last."""
    _load_plugins()
    return [*SCENARIOS, *_scenarios]


def name_of(thing: Any, kind: str) -> str:
    """The name by which :func:`scenario` or :func:`algorithm` finds a class or function.

    That is its registered name, else ``package.module:Name``. What cannot be imported (from a script, a notebook, or
    inside a function) is registered under its own name until this process ends, with a number behind it if another
    thing has that name. (The same class, defined again as in a notebook, replaces the former one.)
    """
    if not callable(thing):
        raise ValueError(
            f"'{'env' if kind == 'scenario' else 'algo'}' must be a name, a class or a function (got an object of "
            f'{type(thing).__name__}). Give the class itself, or a function that makes it.'
        )
    for name, entry in _algorithms.items() if kind == 'algorithm' else ():
        if entry.make is thing:
            return name
    for name, known in _scenarios.items() if kind == 'scenario' else ():
        if known.source is thing:
            return name
    module, name = _identity(thing)
    if kind == 'algorithm' and module.startswith('ltos_pyg.'):
        from ltos_pyg import algos

        for own, (make, _) in algos.ALGORITHMS.items():
            if make is thing:
                return own
    if kind == 'scenario' and module.startswith('ltos_pyg.envs.'):
        for own in SCENARIOS:
            if scenario(own).source is thing:
                return own
    if module not in ('', '__main__') and _reaches(module, name, thing):
        return f'{module}:{name}'
    name = name.rpartition('.')[2].strip('<>')
    name = name if name.isidentifier() else 'environment'
    if kind == 'algorithm':
        name = _free_name(name, thing, {n: entry.make for n, entry in _algorithms.items()}, ALGORITHMS)
        _algorithms[name] = AlgorithmEntry(name, thing, _config_of(thing, name))
    else:
        from ltos_pyg.scenarios.custom import scenario_of

        name = _free_name(name, thing, {n: known.source for n, known in _scenarios.items()}, tuple(SCENARIOS))
        _scenarios[name] = scenario_of(thing, name)
    return name


def _free_name(name: str, thing: Any, sources: dict[str, Any], built_in: tuple[str, ...]) -> str:
    """The name, with a number behind it if something else has it."""

    def is_free(name: str) -> bool:
        again = name in sources and name != 'lambda' and _identity(sources[name]) == _identity(thing)
        return name not in built_in and (name not in sources or again)

    return next(filter(is_free, itertools.chain([name], (f'{name}_{i}' for i in itertools.count(2)))))


def _reaches(module: str, name: str, thing: Any) -> bool:
    value: Any = sys.modules.get(module)
    for part in name.split('.'):
        value = getattr(value, part, None)
    return value is thing


# --- plug-ins --------------------------------------------------------------------------------------------------------


@functools.cache
def _load_plugins() -> None:
    """Loads every entry point of :data:`GROUP` once: a module registers on import, a function is called.

    If one fails, a warning names it, and the others are loaded.
    """
    for point in entry_points(group=GROUP):
        try:
            loaded = point.load()
            if callable(loaded) and not isinstance(loaded, type):
                loaded()
        except Exception as error:
            warnings.warn(
                f"the plug-in '{point.name} = {point.value}' is left out: it failed to load "
                f'({type(error).__name__}: {error}). Mend it, or uninstall its package.',
                stacklevel=2,
            )


def import_modules(names: Iterable[str]) -> None:
    """Imports modules that register algorithms and scenarios, e.g. those of ``--import``.

    Raises:
        ValueError: Names the module that cannot be imported, and why.
    """
    for name in names:
        _import(name)


def import_name(reference: str, kind: str) -> Any:
    """What ``package.module:Name`` names. Modules in the current folder are found too.

    Raises:
        ValueError: If the module cannot be imported, or has no such name.
    """
    module_name, _, attribute = reference.partition(':')
    if not module_name or not attribute:
        raise ValueError(f"{kind} '{reference}' must be given as package.module:Name")
    value: Any = _import(module_name)
    for part in attribute.split('.'):
        if not hasattr(value, part):
            known = [name for name in vars(value) if not name.startswith('_')]
            near = difflib.get_close_matches(part, known, 1)
            raise ValueError(
                f"{kind} '{reference}' is not there: module '{module_name}' has no '{part}'"
                + (f". Did you mean '{near[0]}'?" if near else '')
            )
        value = getattr(value, part)
    return value


def _import(name: str) -> Any:
    if os.getcwd() not in sys.path and '' not in sys.path:
        sys.path.insert(0, os.getcwd())  # `python -m` adds the current folder; the installed command does not
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ValueError(
            f"module '{name}' cannot be imported ({type(error).__name__}: {error}). Run from the folder that holds it, "
            f'or install its package.'
        ) from error


def _caller() -> str:
    """The module that registers an object: importing it registers it again."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get('__name__') in (__name__, 'functools'):
        frame = frame.f_back
    return str(frame.f_globals.get('__name__', '__main__'))


def _check_new(kind: str, name: str, built_in: bool, known: Any, new: Any) -> None:
    if not name or ':' in name or any(character.isspace() or character == '/' for character in name):
        raise ValueError(f"'name' of {kind} must be one word without ':' or '/' (got {name!r})")
    same = known is not None and _identity(known) == _identity(new)  # its module was loaded again
    if built_in or (known is not None and not same):
        of = 'ltos_pyg' if built_in else '.'.join(_identity(known))
        raise ValueError(f"{kind} '{name}' is registered already, by {of}: expected a new name. Choose another one.")


def _identity(thing: Any) -> tuple[str, str]:
    """Module and name of a class or function; of a whole scenario the module that registered it, and its name."""
    if getattr(thing, 'module', None) and hasattr(thing, 'env_config'):
        return thing.module, thing.name
    return str(getattr(thing, '__module__', '')), str(getattr(thing, '__qualname__', id(thing)))


def _check_known(kind: str, name: str, known: list[str]) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, known, 1)
    raise ValueError(
        f"unknown {kind} '{name}'. Choose one of: {', '.join(known)}; or one of your own, as package.module:Name, "
        f'or by its name with --import my_module' + (f". Did you mean '{near[0]}'?" if near else '')
    )
