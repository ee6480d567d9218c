"""Names of the metrics that evaluations have whatever the environment."""

from __future__ import annotations

MEASURES = ('kept', 'kept_std_nodes', 'kept_std_states', 'uneven')  # of sharing weights
OWN_METRICS = ('return', 'reward', 'length', *MEASURES)
SWITCHED = 'switched_'  # prefix of a metric: fraction of actions that change under the weights of another mode


def is_own(name: str) -> bool:
    """Whether a metric is one of these: an environment's ``info`` and ``outcome`` cannot redefine it."""
    return name in OWN_METRICS or name.startswith(SWITCHED)
