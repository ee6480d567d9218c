"""``ltos evaluate``."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ltos_pyg.cli.options import (
    ImportArg,
    OwnDefault,
    PolicyArg,
    env_flags,
    other_options,
    parse,
    run_folder_of,
    say_loading,
)
from ltos_pyg.formatting import finite

Changes = Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar='NAME=VALUE …')]
Grid = Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar='NAME=VALUE,VALUE …')]


@dataclass
class Options:
    """Play episodes without exploration with a trained run."""

    folder: PolicyArg
    episodes: OwnDefault[int | None] = None
    """number of episodes. Default: one of each task where the environment has tasks (traffic); else 100, or as many as
    the final evaluation has if that is fewer. LToS also plays episodes under each of its other sharing modes (at most
    20 each, or one of each task), unless --over is given"""
    seed: int = 2_000_000
    """seed of the episodes"""
    json: bool = False
    """print mean, std and count of every metric as JSON"""
    device: OwnDefault[str | None] = None
    """device of the network, e.g. cuda (default: as in training)"""
    temperature: OwnDefault[float | None] = None
    """draw actions from softmax(action values / temperature); 0: greedy (default: the run's eval_temperature)"""
    env: Changes = ()
    """options of the environment to change, e.g. --env num_agents=40"""
    over: Grid = ()
    """evaluate with each of these values of an environment option, e.g. num_agents=10,20,50. With several options,
    evaluate each combination of their values. Prints one table, and writes RUN/zero_shot/NAME.json"""
    metric: OwnDefault[tuple[str, ...]] = ()
    """metrics in the table of --over (default: all except the episode length and, of the measures of sharing, only
    kept)"""
    format: Literal['text', 'md', 'csv'] = 'text'
    """format of the table of --over: plain text, Markdown, or CSV"""
    imports: ImportArg = ()


def main(args: Sequence[str]) -> int:
    """Evaluates, and prints a table or JSON."""
    options = parse(Options, args, 'ltos evaluate')
    if options.episodes is not None and options.episodes < 1:
        raise ValueError(f"'--episodes' must be at least 1 (got {options.episodes})")
    if not options.over and (options.metric or options.format != 'text'):
        raise ValueError("'--metric' and '--format' are of the table of --over (got no --over). Leave them out.")
    if options.json and options.format != 'text':
        raise ValueError(f"'--format {options.format}' does nothing with --json. Leave one of them out.")
    grid = read_grid([part for group in options.over for part in group])
    fixed = [change for group in options.env for change in group]
    folder = run_folder_of(options.folder)
    say_loading()
    from contextlib import closing

    from ltos_pyg import registry
    from ltos_pyg.experiments.tables import format_stats
    from ltos_pyg.training.evaluate import evaluate_modes, final_episodes, playing_in
    from ltos_pyg.training.run import as_plain, load_algorithm, on_device
    from ltos_pyg.training.run_folder import RunFolder
    from ltos_pyg.training.zero_shot import check_evaluation

    registry.import_modules(options.imports)
    config = on_device(RunFolder(folder).config(), options.device)
    scenario = registry.scenario(config.scenario)
    with closing(scenario.make_env(config)(1)) as env:
        spec = env.spec
    algorithm = load_algorithm(config, spec, folder)
    if options.temperature is not None:
        if not hasattr(algorithm.config, 'eval_temperature'):
            raise ValueError(f"'--temperature' is not for {config.algo}, which has no eval_temperature. Leave it out.")
        algorithm.config = dataclasses.replace(algorithm.config, eval_temperature=options.temperature)
    episodes = options.episodes
    if episodes is None and spec.num_tasks is None:
        episodes = min(100, config.train.final_episodes or 100)
    if grid:
        return _evaluate_over(options, folder, (config, scenario, algorithm, spec), grid, fixed, episodes)
    changed = other_options(config.env, fixed)
    check_evaluation(config.env, changed)
    make_env = scenario.make_env(dataclasses.replace(config, env=changed))
    with closing(make_env(1)) as env:
        played = env.spec
    with playing_in(algorithm, spec, played):
        number, swap = final_episodes(episodes, 0, None, 0, played.num_tasks)
        results = evaluate_modes(algorithm, make_env, number, options.seed, swap, show='evaluation')
    plain = {mode: as_plain(stats) for mode, stats in results.items()}
    print(json.dumps(finite(plain), indent=2) if options.json else format_stats(plain))
    return 0


def read_grid(texts: Sequence[str]) -> dict[str, list[str]]:
    """The values of each option of ``--over``, ``NAME=VALUE,VALUE``.

    Raises:
        ValueError: If one is not written so, or an option is named twice.
    """
    grid: dict[str, list[str]] = {}
    for text in texts:
        name, equals, values = text.partition('=')
        name = name.replace('-', '_')
        if not name or not equals or not all(value.strip() for value in values.split(',')):
            raise ValueError(
                f"'--over' takes options as NAME=VALUE,VALUE (got '{text}'), e.g. --over num_agents=10,20,50"
            )
        if name in grid:
            raise ValueError(f"'--over' names '{name}' twice. Give all its values at once, with commas.")
        grid[name] = [value.strip() for value in values.split(',')]
    return grid


def _evaluate_over(
    options: Options,
    folder: Path,
    run: tuple[Any, ...],
    grid: Mapping[str, list[str]],
    fixed: list[str],
    episodes: int | None,
) -> int:
    """Evaluates in each setting of the grid; prints the table and writes it into the run folder."""
    from ltos_pyg.experiments.tables import table
    from ltos_pyg.formatting import markdown
    from ltos_pyg.training import zero_shot
    from ltos_pyg.training.pretrained import is_packaged
    from ltos_pyg.training.run_folder import RunFolder, provenance

    config, scenario, algorithm, spec = run
    both = sorted(grid.keys() & {env_flags(change)[0] for change in fixed})
    if both:
        raise ValueError(f"'{both[0]}' is given by both --env and --over. Leave it out of one.")

    def change(env: Any, values: Mapping[str, Any]) -> Any:
        return other_options(env, [*fixed, *(f'{name}={value}' for name, value in values.items())])

    settings = zero_shot.settings_of(config, grid, change)
    settings = zero_shot.evaluate_over(
        algorithm, spec, scenario, config, settings, episodes, options.seed, show=True, metrics=options.metric
    )
    differ = {env_flags(text)[0]: getattr(settings[0].env, env_flags(text)[0]) for text in fixed}
    result = zero_shot.as_result(config, settings, differ, episodes, options.seed) | provenance()
    special = [f'{name}={zero_shot.option_text(value)}' for name, value in differ.items()]
    if options.temperature is not None:
        result['temperature'] = options.temperature
        special.append(f'temperature={options.temperature}')
    metrics = zero_shot.metrics_of(result, scenario.primary_metric, options.metric)
    if options.json:
        print(json.dumps(finite(result), indent=2))
    elif options.format == 'csv':
        print(zero_shot.as_csv(result, metrics))
    else:
        print((table if options.format == 'text' else markdown)(*zero_shot.table_cells(result, metrics)))
    if not is_packaged(folder):
        path = RunFolder(folder).write_zero_shot(zero_shot.result_name(list(grid), special), result)
        print(f'wrote {path}', file=sys.stderr)
    return 0
