"""``ltos watch``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ltos_pyg.cli.options import ImportArg, OwnDefault, PolicyArg, parse, run_folder_of, say_loading
from ltos_pyg.ranges import check_range

SEED, FPS = 2_000_000, 8


@dataclass
class Options:
    """Draw an episode of a trained run."""

    folder: PolicyArg
    out: OwnDefault[Path | None] = None
    """a .gif file, or a folder for PNG files (default: RUN/episode.gif; for a pretrained policy, NAME-episode.gif)"""
    seed: OwnDefault[int | None] = None
    """seed of the episode (default: 2000000; with --figure: 0)"""
    fps: OwnDefault[int | None] = None
    """pictures per second (default: 8)"""
    steps: int | None = None
    """draw only this many steps"""
    device: OwnDefault[str | None] = None
    """device of the network, e.g. cpu (default: as in training)"""
    terminal: bool = False
    """draw in the terminal instead"""
    figure: Literal['selfishness'] | None = None
    """draw a figure of the episode instead: on traffic, the share kept by each signal"""
    imports: ImportArg = ()


def main(args: Sequence[str]) -> int:
    """Draws."""
    options = parse(Options, args, 'ltos watch')
    if options.fps is not None:
        check_range(options, 'fps', least=1)
    check_range(options, 'steps', least=1, none=', or be left out')
    _check_together(options)
    default = 0 if options.figure else SEED
    seed, fps = default if options.seed is None else options.seed, options.fps or FPS
    folder = run_folder_of(options.folder)
    say_loading()
    from ltos_pyg import registry
    from ltos_pyg.training.pretrained import is_packaged
    from ltos_pyg.viz.watch import show_run, watch_run

    registry.import_modules(options.imports)
    if options.terminal:
        show_run(folder, seed, fps, options.steps, options.device)
        return 0
    name = f'{options.figure}.png' if options.figure else 'episode.gif'
    out = options.out or (Path(f'{folder.name}-{name}') if is_packaged(folder) else folder / name)
    if options.figure:
        from ltos_pyg.scenarios.traffic.selfishness import draw_selfishness

        written = draw_selfishness(folder, out, device=options.device, seed=seed)
    else:
        written = [watch_run(folder, out, seed, fps, options.steps, options.device)]
    print('\n'.join(f'wrote {path}' for path in written))
    return 0


def _check_together(options: Options) -> None:
    """Raises a ``ValueError`` for the first option that would do nothing beside --terminal or --figure."""
    beside = [('--terminal', name) for name in ('out', 'figure') if options.terminal]
    beside += [('--figure', name) for name in ('fps', 'steps') if options.figure]
    for flag, name in beside:
        if getattr(options, name) is not None:
            raise ValueError(f"'--{name}' does nothing with {flag} (got {getattr(options, name)}). Leave it out.")
