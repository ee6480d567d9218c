"""The command line, one file per command: ``ltos train``, ``ltos evaluate`` and so on."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from ltos_pyg import __version__
from ltos_pyg.cli.errors import Stderr, users_line
from ltos_pyg.launch import launched_rank

INTERRUPTED = 130  # exit code after Ctrl-C, as in shells
BROKEN_PIPE = 141  # exit code after a broken pipe, as in shells

COMMANDS = {
    'train': 'train an algorithm on a scenario, or on an environment of your own',
    'evaluate': 'play episodes without exploration with a trained run',
    'plot': 'draw the learning curves of runs: one curve per algorithm, over its seeds',
    'table': 'print a table of final results: one row per algorithm, over its seeds',
    'watch': 'draw an episode of a trained run',
    'card': 'describe a trained run, or make a folder of it for a model hub',
    'reproduce': "make the paper's tables and figures, or your own experiment's, from scratch",
    'sweep': 'search for good options',
    'bench': 'measure speed, and compare it with other libraries on this machine',
    'traffic': 'road networks: generate, simulate, replay, export a signal plan',
}
HELP = '\n'.join(
    [
        'usage: ltos [-h] [--version] COMMAND ...',
        '',
        'Learning to share on graphs of agents.',
        '',
        'commands:',
        *(f'  {name:10}{summary}' for name, summary in COMMANDS.items()),
        '',
        'options of a command: ltos COMMAND --help',
    ]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        with warnings.catch_warnings():
            if argv is None:
                warnings.showwarning, sys.stderr = _show_warning, Stderr(sys.stderr)
            code = _run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `ltos … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        print('\nltos: stopped.', file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if isinstance(error, _loaded('ltos_pyg.training.trainer', 'Interrupted')):
            if launched_rank() == 0:
                print('\nStopped. The run was saved; continue it with --resume.', file=sys.stderr)
            return INTERRUPTED
        expected: tuple[type[BaseException], ...] = (
            ValueError, OSError, ImportError,
            *_loaded('ltos_pyg.algos', 'NonFiniteLossError'), *_loaded('ltos_pyg.training.callbacks', 'CallbackError'),
            *_loaded('ltos_pyg.algos.ranks', 'RankError'),
        )  # fmt: skip
        if not isinstance(error, expected):
            raise
        rank = launched_rank()
        print(f'ltos: {error}' if rank == 0 else f'ltos, rank {rank}: {error}', file=sys.stderr)
        place = users_line(error)
        if place is not None:
            print(f'  raised in {place}', file=sys.stderr)
        return 1


def _run(args: list[str]) -> int:
    if not args:
        print(HELP, file=sys.stderr)
        return 2
    if args[0] in ('-h', '--help'):
        print(HELP)
        return 0
    if args[0] == '--version':
        print(f'ltos_pyg {__version__}')
        return 0
    if args[0] not in COMMANDS:
        print(f"ltos: invalid choice: '{args[0]}' (choose from {', '.join(COMMANDS)})", file=sys.stderr)
        return 2
    command = importlib.import_module(f'ltos_pyg.cli.{args[0]}')
    return int(command.main(args[1:]) or 0)


def _loaded(module: str, name: str) -> tuple[type[BaseException], ...]:
    """An exception's class, if its module was imported (otherwise nothing can have raised it)."""
    return (getattr(sys.modules[module], name),) if module in sys.modules else ()


def _show_warning(message: Warning | str, *args: Any, **kwargs: Any) -> None:
    print(f'ltos: {message}', file=sys.stderr)
