"""A scenario from any environment: a class, or a function that returns one."""

from __future__ import annotations

import dataclasses
import inspect
import json
import types
import typing
from collections.abc import Callable
from typing import Any

from ltos_pyg.graph_env import GraphEnv, SingleGraphEnv, VectorGraphEnv, from_pettingzoo
from ltos_pyg.scenarios.base import Scenario

OURS = ('num_envs', 'device', 'seed', 'render_mode', 'self')  # parameters that a run sets, never options
SIMPLE = (int, float, str, bool)

Make = Callable[..., Any]


def scenario_of(make: Make, name: str, **settings: Any) -> Scenario:
    """The scenario of an environment.

    Its options are the parameters of ``make`` that have a default and are numbers, text, flags or tuples of them; or
    the fields of the dataclass that its parameter ``config`` is annotated with. ``num_envs`` and ``device`` are passed
    if it takes them.

    Args:
        make: A class or function. It returns a :class:`~ltos_pyg.graph_env.GraphEnv` (then it must take
            ``num_envs``), a :class:`~ltos_pyg.graph_env.SingleGraphEnv`, or a PettingZoo parallel environment (then all
            its agents are neighbours; call :func:`~ltos_pyg.graph_env.from_pettingzoo` yourself for other graphs).
        name: Name of the scenario.
        settings: Fields of :class:`~ltos_pyg.scenarios.Scenario`.

    Raises:
        ValueError: If it cannot make an environment: a parameter has no default, or it is not a class or function.
    """
    if not callable(make):
        raise ValueError(
            f"'{name}' must be a class or a function that makes an environment (got {type(make).__name__}). Give the "
            f'class itself, or wrap the environment: lambda: MyEnv()'
        )
    config, as_config = _options_of(make, name)
    settings.setdefault('source', make)
    settings.setdefault('check', True)
    settings['train'] = {'eval_episodes': None, 'final_episodes': None} | dict(settings.get('train', {}))
    return Scenario(
        **settings,
        name=name,
        env_config=config,
        make=lambda options, num_envs, device: _build(make, name, _arguments(options, as_config), num_envs, device),
        make_to_watch=lambda options, device: _build(make, name, _arguments(options, as_config), 1, device, watch=True),
    )


def _options_of(make: Make, name: str) -> tuple[type, bool]:
    """The dataclass of the options, and whether ``make`` takes it as ``config``."""
    parameters = inspect.signature(make).parameters
    hints = _hints(make)
    config = _dataclass_in(hints.get('config'))
    if config is not None:
        needed = [f.name for f in dataclasses.fields(config) if f.init and _has_no_default(f)]
        if needed:
            raise ValueError(
                f"environment '{name}' needs a default for each field of its config (got none for {needed})"
            )
        for field, value in dataclasses.asdict(config()).items():
            try:
                json.dumps(value)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"field '{field}' of the config of environment '{name}' must be what JSON can hold: numbers, text, "
                    f'tuples, lists or dataclasses of them (got {value!r}: {error}). Make a path a str.'
                ) from error
        return config, True
    fields = []
    for parameter in parameters.values():
        if parameter.name in OURS or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if parameter.default is parameter.empty:
            raise ValueError(
                f"environment '{name}' needs a default for its parameter '{parameter.name}': only 'num_envs' and "
                f"'device' are passed to it. Give it a default, or wrap it in a function without parameters."
            )
        kind = hints.get(parameter.name, _kind_of(parameter.default))
        if _is_simple(kind):
            fields.append((parameter.name, kind, dataclasses.field(default=parameter.default)))
    return dataclasses.make_dataclass('EnvironmentOptions', fields, frozen=True, kw_only=True), False


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _hints(make: Make) -> dict[str, Any]:
    function: Any = make.__init__ if isinstance(make, type) else make  # type: ignore[misc]
    hints: dict[str, Any] = {}
    for name, annotation in getattr(function, '__annotations__', {}).items():
        one = types.SimpleNamespace(__annotations__={name: annotation})
        try:
            hints |= typing.get_type_hints(one, globalns=getattr(function, '__globals__', None))
        except (NameError, TypeError):  # cannot be resolved outside its module
            continue
    return hints


def _kind_of(default: Any) -> Any:
    """The type of a parameter without annotation."""
    kinds = {type(value) for value in default} if isinstance(default, tuple) else set()
    return tuple[kinds.pop(), ...] if len(kinds) == 1 else type(default)  # type: ignore[misc]


def _dataclass_in(hint: Any) -> type | None:
    for kind in (hint, *typing.get_args(hint)):
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            return kind
    return None


def _is_simple(kind: Any) -> bool:
    if kind in SIMPLE or kind is type(None):
        return kind is not type(None)
    if typing.get_origin(kind) is typing.Literal:
        return True
    parts = [part for part in typing.get_args(kind) if part is not Ellipsis and part is not type(None)]
    return bool(parts) and typing.get_origin(kind) not in (dict, list) and all(part in SIMPLE for part in parts)


def _arguments(options: Any, as_config: bool) -> dict[str, Any]:
    if as_config:
        return {'config': options}
    return {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}


def _build(
    make: Make, name: str, arguments: dict[str, Any], num_envs: int, device: str, watch: bool = False
) -> GraphEnv:
    """The environment with ``num_envs`` graphs, from any kind that ``make`` returns; with rendering if ``watch``."""
    parameters = inspect.signature(make).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if 'device' in parameters:
        arguments = {**arguments, 'device': device}
    if watch and ('render_mode' in parameters or takes_any):
        arguments = {**arguments, 'render_mode': 'rgb_array'}
    if 'num_envs' in parameters:
        env = make(num_envs=num_envs, **arguments)
        if not isinstance(env, GraphEnv):
            raise ValueError(f"'{name}' takes 'num_envs' and so must make a GraphEnv (got {type(env).__name__})")
        return env
    first = make(**arguments)
    if isinstance(first, SingleGraphEnv):
        made = iter([first])
        return VectorGraphEnv(lambda: next(made, None) or make(**arguments), num_envs)
    if isinstance(first, GraphEnv):
        if first.spec.num_envs == num_envs:
            return first
        raise ValueError(
            f"'{name}' makes a GraphEnv of {first.spec.num_envs} graphs: expected a parameter 'num_envs', as training "
            f'and evaluation play different numbers of graphs (asked for {num_envs})'
        )
    if hasattr(first, 'possible_agents'):
        made = iter([first])
        return from_pettingzoo(lambda: next(made, None) or make(**arguments), num_envs=num_envs)
    raise ValueError(
        f"'{name}' must make a GraphEnv, a SingleGraphEnv or a PettingZoo parallel environment (got "
        f'{type(first).__name__})'
    )
