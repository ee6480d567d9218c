"""Episodes of a trained run, as pictures or in the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from ltos_pyg import registry
from ltos_pyg.progress import Progress
from ltos_pyg.training.run import load_run
from ltos_pyg.viz.curves import plot_curves
from ltos_pyg.viz.drawing import save_gif, save_pngs

T = TypeVar('T')


def watch_run(
    folder: Path, out: Path, seed: int = 2_000_000, fps: int = 8, steps: int | None = None, device: str | None = None
) -> Path:
    """Draws one greedy episode of a run: a GIF, or a folder of PNGs.

    On traffic, every third decision is drawn; ``steps`` then draws all of the first ``steps`` decisions.

    Raises:
        ValueError: If ``out`` is a file name with a suffix other than .gif, or the environment cannot be drawn.
    """
    check_picture(out)
    algorithm, env, config = load_run(folder, device, watch=True)
    with closing(env):
        pictures = registry.scenario(config.scenario).pictures
        frames = _with_bar(pictures.frames(algorithm, env, seed, steps), 'pictures')
        if out.suffix == '.gif':
            return save_gif(frames, out, fps)
        save_pngs(frames, out)
    return out


def save_media(folder: Path, metric: str) -> None:
    """Saves a curve and a GIF in a run folder and prints their paths, or why there are none."""
    try:
        print(f'curve:   {plot_curves([folder], metric, folder / "curve.png")}')
    except (ImportError, ValueError) as error:
        print(f'no curve: {error}', file=sys.stderr)
    try:
        print(f'episode: {watch_run(folder, folder / "episode.gif")}')
    except (ImportError, ValueError) as error:
        print(f'no GIF: {error}', file=sys.stderr)
    except Exception as error:  # a user's drawing may raise anything; the run is finished and its result is written
        print(f'no GIF: {type(error).__name__}: {error}', file=sys.stderr)


def check_picture(out: Path) -> None:
    """Raises a ``ValueError`` unless an episode can be drawn to this path."""
    if out.suffix not in ('', '.gif'):
        raise ValueError(
            f"'out' must end in .gif, or name a folder for PNGs (got '{out}'). Other programs turn a GIF into a film, "
            f'e.g. ffmpeg -i episode.gif episode.mp4'
        )


def show_run(
    folder: Path, seed: int = 2_000_000, fps: int = 8, steps: int | None = None, device: str | None = None
) -> None:
    """Shows one greedy episode of a run in the terminal."""
    live = sys.stdout.isatty()
    algorithm, env, config = load_run(folder, device, watch=True)
    with closing(env):
        for view in registry.scenario(config.scenario).pictures.views(algorithm, env, seed, steps, live):
            print(('\x1b[H\x1b[2J' if live else '') + view, flush=True)
            if live:
                time.sleep(1 / fps)


def _with_bar(items: Iterable[T], what: str) -> Iterator[T]:
    """The items, with a progress bar if they take long."""
    yield from Progress(items, desc=what, unit='', leave=False, delay=2)
