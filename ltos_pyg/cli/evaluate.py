"""``ltos evaluate``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

from ltos_pyg.cli.options import ImportArg, RunArg, other_options, parse


@dataclass
class Options:
    """Play greedy episodes with a trained run."""

    folder: RunArg
    episodes: int | None = None
    """default: 100, or those of the final evaluation if fewer. LToS also plays at most 20 of them under each other
    sharing mode"""
    seed: int = 2_000_000
    """seed of the episodes"""
    json: bool = False
    """print mean, std and count of every metric as JSON"""
    device: str | None = None
    """device of the network, e.g. cuda (default: as in training)"""
    temperature: float | None = None
    """draw actions from softmax(Q / temperature) (default: as in training, greedy)"""
    env: tuple[str, ...] = ()
    """options of the environment to change, as NAME=VALUE"""
    imports: ImportArg = ()


def main(args: Sequence[str]) -> int:
    """Evaluates, and prints a table or JSON."""
    options = parse(Options, args, 'ltos evaluate')
    from contextlib import closing

    from ltos_pyg import registry
    from ltos_pyg.experiments.tables import format_stats
    from ltos_pyg.training.evaluate import check_same_sizes, evaluate_modes
    from ltos_pyg.training.run import as_plain, load_algorithm, on_device
    from ltos_pyg.training.run_folder import RunFolder

    if options.episodes is not None and options.episodes < 1:
        raise ValueError(f"'--episodes' must be at least 1 (got {options.episodes})")
    registry.import_modules(options.imports)
    config = on_device(RunFolder(options.folder).config(), options.device)
    scenario = registry.scenario(config.scenario)
    with closing(scenario.make_env(config)(1)) as env:
        spec = env.spec
    algorithm = load_algorithm(config, spec, options.folder)
    if options.temperature is not None:
        algorithm.config = dataclasses.replace(algorithm.config, eval_temperature=options.temperature)
    config = dataclasses.replace(config, env=other_options(config.env, options.env))
    make_env = scenario.make_env(config)
    with closing(make_env(1)) as env:
        check_same_sizes(spec, env.spec)
    episodes = options.episodes or min(100, config.train.final_episodes or 100)
    results = evaluate_modes(algorithm, make_env, episodes, options.seed, show='evaluation')
    plain = {mode: as_plain(stats) for mode, stats in results.items()}
    print(json.dumps(plain, indent=2) if options.json else format_stats(plain))
    return 0
