"""Environments of other libraries as graph environments, and vice versa.

:mod:`ltos_pyg.graph_env.adapters.gymnasium` must be imported by its own name, as it needs Gymnasium; PettingZoo
is imported when :func:`from_pettingzoo` is called.
"""

from ltos_pyg.graph_env.adapters.pettingzoo import (
    FullyConnected,
    KNearest,
    NeighbourRule,
    PettingZooEnv,
    from_pettingzoo,
)

__all__ = ['FullyConnected', 'KNearest', 'NeighbourRule', 'PettingZooEnv', 'from_pettingzoo']
