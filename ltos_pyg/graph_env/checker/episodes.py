"""Clauses about the ends of episodes."""

from __future__ import annotations

from ltos_pyg.graph_env.checker.clauses import declare, warn
from ltos_pyg.graph_env.checker.fingerprint import differences, digest_seen
from ltos_pyg.graph_env.checker.step import Played

fail = declare(
    {
        'restart': 'Return the true end in `successor` (targets bootstrap from it), and the new start in `graph`.',
    }
)


class EpisodeEnds:
    """Whether new episodes started after old ones ended, over a whole run."""

    def __init__(self) -> None:
        self.count = {'truncated': 0, 'terminated': 0}
        self.restarted = {'truncated': 0, 'terminated': 0}
        self.moved = False  # whether any step changed a graph
        self.by_library = False  # whether it is the library that restarts an episode

    def note(self, played: Played) -> None:
        step = played.step
        self.by_library = played.own_limit
        self.moved = self.moved or bool(differences(digest_seen(played.acted), digest_seen(step.successor)))
        for name in self.count:
            for i in getattr(step, name).nonzero().flatten().tolist():
                self.count[name] += 1
                self.restarted[name] += bool(differences(digest_seen(step.successor[i]), digest_seen(step.graph[i])))

    def finish(self, steps: int) -> None:
        if not any(self.count.values()):
            warn(f'no episode ended within {steps} steps, so no restart was checked: call check_env with more steps')
        for name, count in self.count.items():
            if self.moved and count >= 3 and self.restarted[name] == 0:
                text = f'`graph` is the same as `successor` in all {count} episodes that were {name}'
                if self.by_library:
                    warn(f'{text}: does start() begin a new episode?')
                elif name == 'terminated':
                    warn(f'{text}: does a new episode start within the step?')
                else:
                    fail('restart', 'at the ends', '`successor` to be the end of an episode, `graph` a new start', text)
