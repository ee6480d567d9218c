"""Pictures of an episode: agents on a grid, the share that each keeps of its reward, and the shares that it gives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ltos_pyg.training.atomic import atomic_write

Colour = tuple[int, int, int]
Frame = NDArray[np.uint8]  # (H, W, 3)

GROUND: Colour = (250, 250, 248)
GRID: Colour = (232, 232, 228)
INK: Colour = (40, 40, 40)
KEEPS_NOTHING: Colour = (255, 255, 255)
KEEPS_ALL: Colour = (8, 48, 107)
UNKNOWN: Colour = (170, 170, 170)  # without sharing weights
GIFT: Colour = (230, 140, 0)
ATTACK: Colour = (213, 0, 60)
ITEM_COLOUR: dict[str, Colour] = {'wall': (110, 110, 110), 'food': (46, 150, 80), 'goal': (190, 225, 200)}
ITEM_SIGN = {'wall': '█', 'food': '♣', 'goal': '□'}
RINGS: tuple[Colour, ...] = (INK, (204, 121, 167), (0, 158, 115), (86, 180, 233))  # one per kind of agent
NAMES = '0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ'

_FINE = 2  # a picture is drawn this many times larger and then shrunk, which smooths the edges
_TITLE, _LEGEND, _MARGIN = 26, 34, 8  # pixels
_NARROWEST = 420  # pixels that the legend needs
_LONGEST_PAUSE = 655_350  # milliseconds, of a GIF


def _empty_edges() -> Any:
    return np.zeros((2, 0), dtype=np.int64)


@dataclass(frozen=True, eq=False, kw_only=True)
class Scene:
    r"""The scene of one step of an episode: N agents, E edges, on a grid of ``size`` cells. Tensors and lists are
    taken too; positions count cells from 0, :math:`x` to the right and :math:`y` downwards.

    Raises:
        ValueError: If lengths do not fit each other, or an edge or mark has the number of an absent agent.
    """

    size: tuple[int, int]  # cells: width, height
    positions: Any  # (N, 2) x, y of each agent
    edge_index: Any = field(default_factory=_empty_edges)  # (2, E) sender, receiver
    given: Any = None  # (E,) in [0, 1]: the part of the sender's reward that the receiver gets
    kept: Any = None  # (N,) in [0, 1]: the part that each agent keeps; None: not known
    labels: Sequence[str] = ()  # N short names; none: 0-9, a-z, A-Z
    kinds: Any = None  # (N,) integers: agents of one kind have a rim of one colour
    items: Mapping[str, Any] = field(default_factory=dict)  # 'wall', 'food' or 'goal': (M, 2) x, y of each
    marks: Any = ()  # (K, 2) attacker, victim
    mark_name: str = 'attack'  # what a mark is, in the legend
    title: str = ''  # above the picture, e.g. the step and the return so far

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise ValueError(f"'size' must be at least one cell wide and high (got {self.size})")
        self._set('positions', _points('positions', self.positions))
        n = len(self.positions)
        self._set('edge_index', self._nodes('edge_index', self.edge_index, 0))
        self._set('marks', self._nodes('marks', self.marks, 1))
        edges = self.edge_index.shape[1]
        self._set('given', self._shares('given', self.given, edges, 'edge'))
        self._set('kept', self._shares('kept', self.kept, n, 'agent'))
        kinds = np.zeros(n, np.int64) if self.kinds is None else _array(self.kinds, np.int64)
        labels = self.labels if len(self.labels) > 0 else [NAMES[i] if i < len(NAMES) else '?' for i in range(n)]
        for name, value in (('kinds', kinds), ('labels', labels)):
            if len(value) != n:
                raise ValueError(f"'{name}' needs one entry per agent: expected {n}, got {len(value)}")
        self._set('kinds', kinds)
        self._set('labels', tuple(labels))
        unknown = set(self.items) - set(ITEM_COLOUR)
        if unknown:
            raise ValueError(f"'items' may hold {sorted(ITEM_COLOUR)} (got {sorted(unknown)})")
        self._set('items', {kind: _points(f"items['{kind}']", at) for kind, at in self.items.items()})

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _nodes(self, name: str, value: Any, axis: int) -> NDArray[np.int64]:
        """Pairs of agents; ``axis`` is the one of length 2."""
        nodes = _array(value, np.int64)
        if nodes.size and (nodes.ndim != 2 or nodes.shape[axis] != 2):
            raise ValueError(
                f"'{name}' must have shape {('(2, E)', '(K, 2)')[axis]} (got {nodes.shape}). Transpose it?"
            )
        if nodes.size and not 0 <= nodes.min() <= nodes.max() < len(self.positions):
            raise ValueError(
                f"'{name}' must name agents 0 to {len(self.positions) - 1} (got {nodes.min()} to {nodes.max()}). "
                f'Was it computed for another graph?'
            )
        return nodes.reshape((2, -1) if axis == 0 else (-1, 2))

    def _shares(self, name: str, value: Any, length: int, what: str) -> NDArray[np.float64] | None:
        if value is None:
            return None
        shares = _array(value, np.float64)
        if shares.shape != (length,):
            raise ValueError(f"'{name}' needs one share per {what}: expected shape ({length},), got {shares.shape}")
        if not np.all((shares >= -1e-4) & (shares <= 1 + 1e-4)):
            raise ValueError(f"'{name}' must lie in [0, 1] (got {shares.min():.3g} to {shares.max():.3g})")
        return shares.clip(0, 1)


def _array(value: ArrayLike, dtype: type) -> NDArray[Any]:
    detach = getattr(value, 'detach', None)
    return np.asarray(value if detach is None else detach().cpu().numpy(), dtype=dtype)


def _points(name: str, value: ArrayLike) -> NDArray[np.float64]:
    points = _array(value, np.float64)
    if points.size == 0:
        return points.reshape(0, 2)
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError(f"'{name}' must be finite x, y pairs of shape (N, 2) (got shape {points.shape})")
    return points


def border(size: tuple[int, int]) -> NDArray[np.float64]:
    """(M, 2) positions of the outermost ring of cells, for ``Scene(items={'wall': border(size)})``."""
    y, x = np.mgrid[: size[1], : size[0]]
    ring = (x == 0) | (y == 0) | (x == size[0] - 1) | (y == size[1] - 1)
    return np.stack([x[ring], y[ring]], axis=1).astype(float)


# --- pixels ----------------------------------------------------------------------------------------------------------


def draw_scene(scene: Scene, pixels: int = 510) -> Frame:
    """Draws a scene as an (H, W, 3) picture.

    Agents are circles, darker with a larger share kept. A wedge from one agent to another is a share given: wide at the
    sender, pointed at the receiver, with a width in proportion to the share. Red arrows are attacks.

    Args:
        scene: What to draw.
        pixels: About how wide (or high) the grid gets.

    Raises:
        ImportError: Without Pillow (extra ``plot``).
    """
    return _Painter(scene, pixels).frame()


class _Painter:
    """Draws one scene; lengths ending in ``_px`` are in fine pixels."""

    def __init__(self, scene: Scene, pixels: int) -> None:
        image, image_draw, self.fonts = pillow()
        self.scene = scene
        columns, rows = scene.size
        self.cell = _FINE * max(4, min(64, pixels // max(columns, rows)))
        self.width = max(columns * self.cell, _FINE * _NARROWEST) + 2 * _FINE * _MARGIN
        self.top = _FINE * _TITLE
        self.left = (self.width - columns * self.cell) // 2
        self.bottom = self.top + rows * self.cell
        self.image = image.new('RGB', (self.width, self.bottom + _FINE * (_LEGEND + _MARGIN)), (255, 255, 255))
        self.draw = image_draw.Draw(self.image, 'RGBA')
        self.centre = self._pixel(_apart(scene.positions))

    def frame(self) -> Frame:
        self._ground()
        self._items()
        self._gifts()
        self._agents()
        self._attacks()
        self._text(self.scene.title, _FINE * _MARGIN, self.top // 2, 14, anchor='lm')
        self._legend()
        return np.asarray(self.image.reduce(_FINE))

    def _pixel(self, position: NDArray[np.float64]) -> NDArray[np.float64]:
        return (position + 0.5) * self.cell + (self.left, self.top)

    def _ground(self) -> None:
        columns, rows = self.scene.size
        right = self.left + columns * self.cell
        self.draw.rectangle((self.left, self.top, right, self.bottom), fill=GROUND)
        for i in range(columns + 1):
            x = self.left + i * self.cell
            self.draw.line((x, self.top, x, self.bottom), fill=GRID, width=_FINE)
        for i in range(rows + 1):
            y = self.top + i * self.cell
            self.draw.line((self.left, y, right, y), fill=GRID, width=_FINE)
        self.draw.rectangle((self.left, self.top, right, self.bottom), outline=ITEM_COLOUR['wall'], width=_FINE)

    def _items(self) -> None:
        for kind in ('goal', 'wall', 'food'):
            half = self.cell * (0.3 if kind == 'food' else 0.5)
            for x, y in self._pixel(self.scene.items.get(kind, np.zeros((0, 2)))):
                self._square(x, y, half, kind)

    def _square(self, x: float, y: float, half: float, kind: str) -> None:
        corner = half * 0.35 if kind == 'food' else 0
        self.draw.rounded_rectangle((x - half, y - half, x + half, y + half), corner, fill=ITEM_COLOUR[kind])

    def _gifts(self) -> None:
        if self.scene.given is None:
            return
        for share, (sender, receiver) in zip(self.scene.given, self.scene.edge_index.T, strict=True):
            self._wedge(self.centre[sender], self.centre[receiver], float(share))

    def _wedge(self, start: NDArray[np.float64], end: NDArray[np.float64], share: float) -> None:
        along = end - start
        length = float(np.hypot(*along))
        if share < 0.005 or length == 0:
            return
        along /= length
        right = np.array([-along[1], along[0]])
        shift = right * self.cell * 0.1  # both directions of a pair are shifted to their right
        tip = end + shift - along * min(0.36 * self.cell, 0.4 * length)
        base, half = start + shift, right * (share * 0.4 * self.cell + 0.3 * _FINE)
        self.draw.polygon([tuple(base + half), tuple(tip), tuple(base - half)], fill=(*GIFT, 150 + int(90 * share)))

    def _agents(self) -> None:
        scene = self.scene
        for i, (x, y) in enumerate(self.centre):
            fill = UNKNOWN if scene.kept is None else shade(float(scene.kept[i]))
            self._disc(x, y, 0.44 * self.cell, fill, RINGS[scene.kinds[i] % len(RINGS)])
            if self.cell >= 10 * _FINE:
                ink = (255, 255, 255) if sum(fill) < 450 else INK
                self._text(scene.labels[i][:2], x, y, int(0.5 * self.cell / _FINE), anchor='mm', ink=ink)

    def _disc(self, x: float, y: float, radius: float, fill: Colour, rim: Colour) -> None:
        box = (x - radius, y - radius, x + radius, y + radius)
        self.draw.ellipse(box, fill=fill, outline=rim, width=max(_FINE, round(0.15 * radius)))

    def _attacks(self) -> None:
        for attacker, victim in self.scene.marks:
            self._arrow(self.centre[attacker], self.centre[victim])
            x, y = self.centre[victim]
            radius = 0.5 * self.cell
            self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=ATTACK, width=2 * _FINE)

    def _arrow(self, start: NDArray[np.float64], end: NDArray[np.float64]) -> None:
        along = end - start
        length = float(np.hypot(*along))
        if length == 0:
            return
        along /= length
        inset = along * min(0.3 * self.cell, 0.3 * length)  # so that names stay readable
        start, end, length = start + inset, end - inset, length - 2 * float(np.hypot(*inset))
        side = np.array([-along[1], along[0]]) * 0.22 * self.cell
        neck = end - along * min(0.4 * self.cell, length)
        self.draw.line((*start, *neck), fill=ATTACK, width=max(2 * _FINE, int(0.16 * self.cell)))
        self.draw.polygon([tuple(neck + side), tuple(end), tuple(neck - side)], fill=ATTACK)

    def _legend(self) -> None:
        x, y = float(_FINE * _MARGIN), self.bottom + _FINE * (_MARGIN + _LEGEND) / 2
        size, gap = 11, _FINE * 6
        if self.scene.kept is not None:
            x = self._text('shares all', x, y, size) + gap
            for i in range(40):
                self.draw.rectangle((x, y - 10, x + 3, y + 10), fill=shade(i / 39))
                x += 3
            self.draw.rectangle((x - 120, y - 10, x, y + 10), outline=ITEM_COLOUR['wall'])
            x = self._text('keeps all', x + gap, y, size) + 3 * gap
        if self.scene.given is not None:
            start, end = np.array([[x, y], [x + 80, y]]) - (0, 0.1 * self.cell)
            self._wedge(start, end, 0.5)
            x = self._text('gives 0.5', x + 80, y, size) + 3 * gap
        for kind in ('food', 'goal'):
            if kind in self.scene.items:
                self._square(x + 10, y, 10, kind)
                x = self._text(kind, x + 20 + gap, y, size) + 3 * gap
        if len(self.scene.marks):
            self._arrow(np.array([x, y]), np.array([x + self.cell, y]))
            self._text(self.scene.mark_name, x + self.cell, y, size)

    def _text(self, text: str, x: float, y: float, size: int, anchor: str = 'lm', ink: Colour = INK) -> float:
        """Writes a line and returns where it ends."""
        font = self.fonts.load_default(size * _FINE)
        self.draw.text((x, y), text, fill=ink, font=font, anchor=anchor)
        return x + float(font.getlength(text))


def shade(kept: float) -> Colour:
    """The colour of an agent that keeps this part of its reward: white at 0, dark blue at 1."""
    red, green, blue = (round(a + (b - a) * kept) for a, b in zip(KEEPS_NOTHING, KEEPS_ALL, strict=True))
    return red, green, blue


def _apart(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Moves agents with the same position apart, so that all are visible."""
    _, spot, count = np.unique(positions, axis=0, return_inverse=True, return_counts=True)
    moved = positions.copy()
    for crowd in np.flatnonzero(count > 1):
        here = np.flatnonzero(spot.reshape(-1) == crowd)
        angle = math.pi + 2 * math.pi * np.arange(here.size) / here.size
        moved[here] += 0.25 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return moved


def pillow() -> tuple[Any, Any, Any]:
    """Pillow's modules for images, drawing and fonts, or an ``ImportError`` with the command that installs them."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise ImportError("pictures need Pillow: install it with pip install 'ltos_pyg[plot]'") from error
    return Image, ImageDraw, ImageFont


# --- files -----------------------------------------------------------------------------------------------------------


def save_gif(frames: Iterable[Frame], path: Path | str, fps: float = 8) -> Path:
    """Writes frames as an endless GIF; all of them share one palette, so that nothing flickers. A frame equal to the
    one before is stored as a longer pause, of at most 655 s: the format has no longer ones.

    Raises:
        ValueError: If there is no frame, their sizes differ, or ``fps`` is not in [0.002, 50] (pauses are whole 10 ms).
        OSError: As :func:`~ltos_pyg.training.atomic.atomic_write`.
    """
    image = pillow()[0]
    if not 0.002 <= fps <= 50:
        raise ValueError(
            f"'fps' must lie in [0.002, 50] (got {fps}): players slow down faster files, and no pause is longer"
        )
    stack = _same_size(frames)
    palette = _palette(stack)
    pictures = [image.fromarray(frame).quantize(palette=palette, dither=image.Dither.NONE) for frame in stack]
    pause = 10 * round(100 / fps)  # milliseconds
    first, *others = _without_longer_pauses(pictures, _LONGEST_PAUSE // pause)
    return atomic_write(
        Path(path),
        lambda file: first.save(
            file, format='GIF', save_all=True, append_images=others, duration=pause, loop=0, optimize=False
        ),
    )


def _without_longer_pauses(pictures: list[Any], most: int) -> list[Any]:
    """The pictures, but at most so many equal ones after each other."""
    return [picture for _, equal in groupby(pictures, key=lambda p: p.tobytes()) for picture in islice(equal, most)]


def _palette(frames: list[Frame]) -> Any:
    """256 colours for all frames: all flat colours of a scene, however rare (an attack is a few pixels in one frame),
    and the rest by frequency."""
    image = pillow()[0]
    flat = [(255, 255, 255), GROUND, GRID, INK, KEEPS_ALL, GIFT, ATTACK, *ITEM_COLOUR.values(), *RINGS]
    sample = image.fromarray(np.concatenate([frame[::3, ::3] for frame in frames]))
    common = sample.quantize(256 - len(flat), dither=image.Dither.NONE).getpalette()[: 3 * (256 - len(flat))]
    palette = image.new('P', (1, 1))
    palette.putpalette([*common, *(channel for colour in flat for channel in colour)])
    return palette


def save_pngs(frames: Iterable[Frame], folder: Path | str) -> list[Path]:
    """Writes frames as ``frame_0000.png``, ``frame_0001.png``, … into a folder, which is created. Frames of an earlier
    episode in it are removed.

    Raises:
        ValueError: If there is no frame, or their sizes differ.
        OSError: As :func:`~ltos_pyg.training.atomic.atomic_write`.
    """
    image = pillow()[0]
    stack = _same_size(frames)
    Path(folder).mkdir(parents=True, exist_ok=True)
    written = [
        atomic_write(Path(folder) / f'frame_{i:04d}.png', partial(image.fromarray(frame).save, format='PNG'))
        for i, frame in enumerate(stack)
    ]
    for path in set(Path(folder).glob('frame_*.png')) - set(written):
        path.unlink()
    return written


def _same_size(frames: Iterable[Frame]) -> list[Frame]:
    stack = list(frames)
    shapes = {frame.shape for frame in stack}
    if len(shapes) != 1:
        got = ', '.join(map(str, sorted(shapes))) or 'no frame'
        raise ValueError(
            f"'frames' must be one or more pictures of one size (got {got}). Give all of them one height and width."
        )
    return stack


# --- text ------------------------------------------------------------------------------------------------------------


def terminal_view(scene: Scene, colour: bool = False) -> str:
    """The scene as text, two columns a cell: agents by their label (``+`` where several stand), food, goals, walls;
    below it the attacks, and the mean share kept.

    Args:
        scene: What to show.
        colour: Whether to add ANSI colours, for a terminal that supports them.
    """
    columns, rows = scene.size
    grid = [['·'] * columns for _ in range(rows)]
    ink: dict[tuple[int, int], Colour] = {}
    for kind in ('goal', 'wall', 'food'):
        for x, y in _cells(scene.items.get(kind, np.zeros((0, 2))), scene.size):
            grid[y][x], ink[y, x] = ITEM_SIGN[kind], ITEM_COLOUR[kind]
    taken: set[tuple[int, int]] = set()
    victims = set(scene.marks[:, 1].tolist())
    for i, (x, y) in enumerate(_cells(scene.positions, scene.size)):
        grid[y][x] = '+' if (y, x) in taken else (scene.labels[i] or '?')[:1]
        ink[y, x] = ATTACK if i in victims else (30, 120, 220)
        taken.add((y, x))
    lines = [' '.join(_tint(sign, ink.get((y, x)), colour) for x, sign in enumerate(row)) for y, row in enumerate(grid)]
    return '\n'.join([*([scene.title] if scene.title else []), *lines, *_below(scene)])


def _cells(positions: NDArray[np.float64], size: tuple[int, int]) -> list[tuple[int, int]]:
    inside = np.rint(positions).astype(int).clip(0, np.array(size) - 1)
    return [(int(x), int(y)) for x, y in inside]


def _tint(sign: str, ink: Colour | None, colour: bool) -> str:
    if not colour or ink is None:
        return sign
    return '\x1b[1;38;2;{};{};{}m{}\x1b[0m'.format(*ink, sign)


def _below(scene: Scene) -> list[str]:
    lines = []
    if len(scene.marks):
        pairs = ', '.join(f'{scene.labels[a]}→{scene.labels[v]}' for a, v in scene.marks)
        lines.append(f'{scene.mark_name}s: {pairs}')
    if scene.kept is not None and len(scene.kept):
        lines.append(f'kept {scene.kept.mean():.2f} ({scene.kept.min():.2f} to {scene.kept.max():.2f})')
    return lines
