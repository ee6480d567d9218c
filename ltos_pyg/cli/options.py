"""The parser of every command: a dataclass of options, read by tyro."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import tyro

from ltos_pyg.formatting import as_whole

T = TypeVar('T')

# An option whose help names its default itself: the parser would add "(default: None)" or "(default: )".
OwnDefault = Annotated[T, tyro.conf.arg(help_behavior_hint='')]

RunArg = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar='RUN', help='a run folder')]
PolicyArg = Annotated[
    Path,
    tyro.conf.Positional,
    tyro.conf.arg(metavar='RUN', help='a run folder, an exported policy, or pretrained:NAME'),
]
RunArgs = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar='RUN', help='run folders')]
ImportArg = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(name='import', metavar='MODULE', help='import a module that registers algorithms or scenarios'),
]


def parse(options: type[T], args: Sequence[str], prog: str, description: str | None = None) -> T:
    """Parses the options of a command; exits with a message and code 2 if they are invalid.

    Raises:
        ValueError: If ``--out`` is empty, which would be the current folder.
    """
    if '--out=' in args or ('--out', '') in pairwise(args):
        raise ValueError("'--out' must name a file or a folder (got ''). Leave it out for the default.")
    return tyro.cli(
        options, args=whole_numbers(args, options), prog=prog, description=description,
        config=(tyro.conf.FlagCreatePairsOff,),
    )  # fmt: skip


def whole_numbers(args: Sequence[str], options: Any, prefix: str = '') -> list[str]:
    """The arguments, with ``1e4`` replaced by ``10000`` for integer options."""
    whole = {f'--{prefix}{flag.removeprefix("--")}' for flag in _whole_options(options)}
    out: list[str] = []
    for i, arg in enumerate(args):
        flag, equals, value = arg.partition('=')
        if equals and flag in whole:
            out.append(f'{flag}={as_whole(value)}')
        else:
            out.append(as_whole(arg) if i > 0 and args[i - 1] in whole else arg)
    return out


def _whole_options(options: Any) -> Mapping[str, None]:
    """The flags of a dataclass and its nested dataclasses that take integers only."""
    import typing

    flags: dict[str, None] = {}
    cls = options if isinstance(options, type) else type(options)
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints.get(field.name, field.type)
        if dataclasses.is_dataclass(hint):
            flags |= _whole_options(hint)
        elif hint is int or (int in get_args(hint) and float not in get_args(hint)):
            flags[f'--{field.name.replace("_", "-")}'] = None
    return flags


def say_loading() -> None:
    """Says in a terminal that PyTorch is being loaded, which takes seconds."""
    if sys.stderr.isatty():
        print('ltos: loading PyTorch …', file=sys.stderr, flush=True)


def run_folder_of(name: Path) -> Path:
    """The folder of a run, an exported policy, or ``pretrained:NAME``. Does not load PyTorch.

    Raises:
        ValueError: If it is none of these; lists the names.
    """
    from ltos_pyg.training.pretrained import find_run
    from ltos_pyg.training.run_folder import RunFolder

    folder = find_run(name)
    RunFolder(folder).read()
    return folder


def check_runs(folders: Sequence[Path]) -> None:
    """Raises a ``ValueError`` if no run folder is given."""
    if not folders:
        raise ValueError('expected at least one run folder (got none), e.g. runs/jungle-ltos-seed0')


def other_options(env: Any, changes: Sequence[str]) -> Any:
    """The options of an environment with some of them changed, each given as ``name=value``.

    Raises:
        ValueError: If one is not written so, or is unknown (lists the known ones).
    """
    known = [field.name for field in dataclasses.fields(env)]
    flags: list[str] = []
    for change in changes:
        name, of = env_flags(change)
        if name not in known:
            raise ValueError(f"unknown option '{name}' of the environment. Choose from: {', '.join(known)}")
        flags += of
    return tyro.cli(type(env), default=env, args=whole_numbers(flags, env), prog='ltos evaluate RUN')


def env_flags(change: str) -> tuple[str, list[str]]:
    """The option in ``name=value``, and its flags. Blanks part values, unless they are in the name of a file."""
    name, equals, value = change.partition('=')
    if not equals:
        off = name.removeprefix('--').replace('-', '_').removeprefix('no_')
        example = f'{off}=False' if name.removeprefix('--')[:3] in ('no-', 'no_') else 'horizon=100'
        raise ValueError(f"'--env' takes options as NAME=VALUE (got '{change}'), e.g. --env {example}")
    flag = name.replace('_', '-')
    if value.lower() in ('true', 'false'):
        return name.replace('-', '_'), [f'--{flag}' if value.lower() == 'true' else f'--no-{flag}']
    return name.replace('-', '_'), [f'--{flag}', *([value] if os.path.exists(value) else value.split())]
