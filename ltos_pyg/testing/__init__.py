"""Public test helpers: properties that any graph layer, and any environment, should satisfy.

.. code-block:: python

    graph = random_snapshot(6, 14, num_features=8)
    assert_equivariant(MyConv(8, 16), graph.x, graph.edge_index)
    assert_batch_invariant(MyConv(8, 16), [graph, random_snapshot(1, 0, num_features=8)])
    assert_gradients(MyConv(8, 16), graph.x, graph.edge_index)
    check_env(lambda: MyEnv(num_envs=4))
"""

from ltos_pyg.graph_env.checker import EnvCheckError, EnvCheckWarning, check_env
from ltos_pyg.testing.asserts import assert_batch_invariant, assert_equivariant, assert_gradients
from ltos_pyg.testing.graphs import random_snapshot

__all__ = [
    'EnvCheckError',
    'EnvCheckWarning',
    'assert_batch_invariant',
    'assert_equivariant',
    'assert_gradients',
    'check_env',
    'random_snapshot',
]
