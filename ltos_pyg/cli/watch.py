"""``ltos watch``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ltos_pyg.cli.options import ImportArg, RunArg, parse


@dataclass
class Options:
    """Draw an episode of a trained run."""

    folder: RunArg
    out: Path | None = None
    """a .gif, or a folder for PNGs (default: RUN/episode.gif)"""
    seed: int = 2_000_000
    """seed of the episode"""
    fps: int = 8
    """pictures per second"""
    steps: int | None = None
    """draw only this many steps"""
    device: str | None = None
    """device of the network, e.g. cpu (default: as in training)"""
    terminal: bool = False
    """draw in the terminal instead"""
    figure: Literal['selfishness'] | None = None
    """draw a figure of the episode instead: on traffic, the share kept by each signal"""
    imports: ImportArg = ()


def main(args: Sequence[str]) -> int:
    """Draws."""
    options = parse(Options, args, 'ltos watch')
    from ltos_pyg import registry
    from ltos_pyg.viz.watch import show_run, watch_run

    registry.import_modules(options.imports)
    if options.terminal:
        show_run(options.folder, options.seed, options.fps, options.steps, options.device)
        return 0
    if options.figure:
        from ltos_pyg.scenarios.traffic.selfishness import draw_selfishness

        out = options.out or options.folder / f'{options.figure}.png'
        draw_selfishness(options.folder, out, options.device)
    else:
        out = options.out or options.folder / 'episode.gif'
        watch_run(options.folder, out, options.seed, options.fps, options.steps, options.device)
    print(f'wrote {out}')
    return 0
