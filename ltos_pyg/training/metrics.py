"""Names of the metrics that evaluations have whatever the environment."""

from __future__ import annotations

MEASURES = ('kept', 'kept_std_nodes', 'kept_std_states', 'uneven')  # of sharing weights
WITHOUT_INTERVAL = 'kept_std_states'  # one number for all episodes
OWN_METRICS = ('return', 'reward', 'length', *MEASURES)
LESS_IS_BETTER = (
    'attacks',
    'average_travel_time',
    'blanks',
    'delay',
    'duration',
    'lost_bad',
    'lost_good',
    'lost_hunt',
    'lost_tempt',
    'lost_work',
    'queue',
    'queue_time',
    'red_lights_delay',
    'red_lights_queue',
)
SWITCHED = 'switched_'  # prefix of a metric: fraction of actions that change under the weights of another mode


def is_own(name: str) -> bool:
    """Whether a metric is one of these: an environment's ``info`` and ``outcome`` cannot redefine it."""
    return name in OWN_METRICS or name.startswith(SWITCHED)


def less_is_better(name: str, primary: str, of_primary: bool) -> bool:
    """Whether less of a metric is better.

    Args:
        name: The metric.
        primary: The primary metric of the scenario.
        of_primary: Whether less of that one is better.
    """
    return of_primary if name == primary else name in LESS_IS_BETTER
