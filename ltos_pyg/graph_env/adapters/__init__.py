"""Environments of other libraries as graph environments, and the other way round.

:mod:`ltos_pyg.graph_env.adapters.gymnasium` is imported by its own name only, as it needs Gymnasium at once; PettingZoo
is looked for when :func:`from_pettingzoo` is called.
"""

from ltos_pyg.graph_env.adapters.pettingzoo import (
    FullyConnected,
    KNearest,
    NeighbourRule,
    PettingZooEnv,
    from_pettingzoo,
)

__all__ = ['FullyConnected', 'KNearest', 'NeighbourRule', 'PettingZooEnv', 'from_pettingzoo']
