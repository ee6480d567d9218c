"""How long a run will take, from the speed of finished ones.

``python -m ltos_pyg.experiments.speeds RUN...`` rewrites ``speeds.json`` from finished runs.
"""

from __future__ import annotations

import functools
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from ltos_pyg import registry
from ltos_pyg.experiments.experiment import Run
from ltos_pyg.training.config import RunConfig
from ltos_pyg.training.run_folder import RunFolder, write_json

FILE = Path(__file__).with_name('speeds.json')
START = 2.0  # seconds until the first step
UNKNOWN = 3.0  # seconds per 1,000 env steps of a scenario or an algorithm that was never measured


@functools.cache
def speeds() -> dict[str, dict[str, float]]:
    """Seconds per 1,000 env steps, by scenario and algorithm."""
    table: dict[str, dict[str, float]] = json.loads(FILE.read_text(encoding='utf-8'))
    return table


def expected_seconds(run: Run, config: RunConfig) -> float:
    """Expected time of a run on one core; of an unknown algorithm the scenario's slowest.

    It is proportional to the number of agents, which is about what ``ltos bench scale`` measures; other options, such
    as the size of layers, are not looked at.
    """
    known = speeds().get(run.scenario, {})
    speed = known.get(run.algo, max(known.values(), default=UNKNOWN))
    return START + speed * _size(run.scenario, getattr(config.env, 'num_agents', None)) * config.total_steps / 1000


def _size(scenario: str, num_agents: int | None) -> float:
    """The number of agents over that of the scenario's defaults; 1 where it has no such option."""
    if num_agents is None:
        return 1.0
    usual = getattr(registry.scenario(scenario).env_config(), 'num_agents', None)
    return num_agents / usual if usual else 1.0


def measure(folders: Iterable[Path]) -> dict[str, dict[str, float]]:
    """The table of :func:`speeds` from finished runs: the median over the runs of an algorithm in a scenario, brought
    to the scenario's usual number of agents."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for folder in folders:
        run = RunFolder(folder)
        if run.is_finished:
            plain, final = run.read(), run.final()
            seconds = sum(final.get('seconds', {}).values())
            if seconds and final['env_steps']:
                size = _size(plain['scenario'], plain.get('env', {}).get('num_agents'))
                found[plain['scenario']][plain['algo']].append(1000 * seconds / final['env_steps'] / size)
    return {
        scenario: {algo: round(statistics.median(values), 4) for algo, values in sorted(algos.items())}
        for scenario, algos in sorted(found.items())
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrites the table."""
    write_json(FILE, measure(map(Path, sys.argv[1:] if argv is None else argv)))
    return 0


if __name__ == '__main__':
    sys.exit(main())
