"""Checks an environment against the contract; each module has the checks of one kind, with their messages."""

from ltos_pyg.graph_env.checker.check import check_env
from ltos_pyg.graph_env.checker.clauses import CLAUSES, EnvCheckError, EnvCheckWarning

__all__ = ['CLAUSES', 'EnvCheckError', 'EnvCheckWarning', 'check_env']
