"""The clauses of the contract by name, and the error for a broken one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import NoReturn

CLAUSES: dict[str, str] = {}
"""Each clause of the contract, with the advice for when it is broken; every module of checks adds its own."""


class EnvCheckError(AssertionError):
    """An environment breaks the contract of :class:`~ltos_pyg.graph_env.GraphEnv`.

    Attributes:
        clause (str): The broken clause, one of ``CLAUSES``; the message begins with it.
    """

    def __init__(self, clause: str, where: str, expected: str, got: str) -> None:
        super().__init__(f'[{clause}] {where}: expected {expected}, got {got.rstrip(".")}. {CLAUSES[clause]}')
        self.clause = clause


class EnvCheckWarning(UserWarning):
    """An environment keeps the contract, but has a likely problem or could not be checked in full."""


def declare(clauses: Mapping[str, str]) -> Callable[[str, str, str, str], NoReturn]:
    """Adds clauses, each with its advice; returns the function that raises for one of them.

    That function takes the clause, where it broke, what was expected and what it got.
    """
    CLAUSES.update(clauses)

    def fail(clause: str, where: str, expected: str, got: str) -> NoReturn:
        assert clause in clauses, f'{clause} is a clause of another module'
        raise EnvCheckError(clause, where, expected, got)

    return fail


def warn(text: str) -> None:
    """Warns with an :class:`EnvCheckWarning`."""
    warnings.warn(text, EnvCheckWarning, stacklevel=4)
