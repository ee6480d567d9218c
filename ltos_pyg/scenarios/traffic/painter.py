"""Pictures of a road network: queues, lights, and the share kept by each signal."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ltos_pyg.envs.traffic import RoadNetwork
from ltos_pyg.envs.traffic.signals import SignalChoices
from ltos_pyg.scenarios.traffic.moments import Moment
from ltos_pyg.viz.drawing import GROUND, INK, UNKNOWN, Colour, Frame, pillow, shade

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

EMPTY: Colour = (205, 205, 200)
MOVING: Colour = (90, 150, 210)
QUEUED: Colour = (200, 30, 40)
LIGHTS: dict[str, Colour] = {'green': (0, 158, 75), 'yellow': (240, 180, 0), 'red': (200, 30, 40)}
CAR_METRES = 7.5  # metres of lane per waiting vehicle

_FINE = 2  # drawn this many times larger and shrunk, which smooths the edges
_MARGIN, _TITLE, _LEGEND = 24, 26, 34  # pixels


class TrafficPainter:
    """Draws the decisions of an episode on one network.

    A road is a line on its right-hand side, blue for moving vehicles, red for waiting ones, wider with more vehicles. A
    disc is a signal, darker with a larger share kept. The bars at the ends of roads are their lights: green if any
    movement that the signal can also close is open, yellow at a change, else red.

    Args:
        network: What to draw.
        choices: The phases that its signals choose from.
        yellow: Seconds of yellow.
        pixels: About how wide (or high) the network gets.
    """

    def __init__(self, network: RoadNetwork, choices: SignalChoices, yellow: int = 5, pixels: int = 560) -> None:
        self.network, self.choices, self.yellow = network, choices, yellow
        low, high = network.intersection_xy.min(0), network.intersection_xy.max(0)
        span = np.maximum(high - low, 1.0)
        self.scale = _FINE * pixels / float(span.max())
        self.origin = low
        drawn = np.ceil(span * self.scale).astype(int)
        self.width = max(int(drawn[0]), _FINE * 420) + 2 * _FINE * _MARGIN
        self.left = (self.width - int(drawn[0])) // 2
        self.bottom = int(drawn[1]) + _FINE * (_TITLE + _MARGIN)
        self.height = self.bottom + _FINE * (_LEGEND + _MARGIN)

    def draw(self, moment: Moment, title: str = '') -> Frame:
        """One moment as an (H, W, 3) picture.

        Raises:
            ImportError: Without Pillow (extra ``plot``).
        """
        image, image_draw, self.fonts = pillow()
        picture = image.new('RGB', (self.width, self.height), GROUND)
        self.pen = image_draw.Draw(picture)
        vehicles, waiting = self._per_road(moment.vehicles), self._per_road(moment.waiting)
        for road in range(self.network.num_roads):
            self._road(road, vehicles[road], waiting[road])
        for signal in range(self.network.num_signals):
            for road, light in self.lights(moment, signal):
                self._light(road, LIGHTS[light])
        for signal, (x, y) in enumerate(self._pixel(self.network.intersection_xy[self.network.signals])):
            fill = UNKNOWN if moment.kept is None else shade(float(moment.kept[signal]))
            self._disc(x, y, fill)
        self._text(title, _FINE * 8, _FINE * _TITLE // 2, 14)
        self._legend(moment)
        return np.asarray(picture.reduce(_FINE))

    def lights(self, moment: Moment, signal: int) -> list[tuple[int, str]]:
        """The roads that lead to a signal and can be closed, with their light right after the decision."""
        phase, before = int(moment.phase[signal]), int(moment.before[signal])
        pause = phase != before and self.yellow > 0 and bool(self.choices.yellow[signal])
        was_open = dict(self._open_roads(signal, before))
        found = []
        for road, is_open in self._open_roads(signal, phase):
            if pause:
                found.append((road, 'yellow' if was_open[road] else 'red'))
            else:
                found.append((road, 'green' if is_open else 'red'))
        return found

    def _open_roads(self, signal: int, phase: int) -> list[tuple[int, bool]]:
        links = self.network.signal_road_links[signal]
        phases = self.choices.phase[signal][self.choices.allowed[signal]]
        opened = self.network.phase_open[signal]
        can_shut = (links >= 0) & ~opened[phases].all(0)
        starts = self.network.road_link_start[links]
        return [
            (int(road), bool((opened[phase] & can_shut & (starts == road)).any()))
            for road in dict.fromkeys(starts[can_shut].tolist())
        ]

    @cached_property
    def _room(self) -> Floats:
        """Capacity of each road in waiting vehicles, (R,)."""
        return np.maximum(self._per_road(self.network.lane_length / CAR_METRES), 1.0)

    def _per_road(self, count: npt.NDArray[Any]) -> Floats:
        total: Floats = np.zeros(self.network.num_roads)
        np.add.at(total, self.network.lane_road, count)
        return total

    def _pixel(self, xy: Floats) -> Floats:
        at = (xy - self.origin) * self.scale
        return np.stack([self.left + at[..., 0], self.bottom - at[..., 1]], -1)

    def _line_of(self, road: int) -> Floats:
        """Its centre line, moved to the right, in fine pixels."""
        a, b = self.network.road_points_ptr[road : road + 2]
        line = self._pixel(self.network.road_points[a:b])
        along = line[-1] - line[0]
        length = float(np.hypot(*along))
        return line if length == 0 else line + 5 * _FINE * np.array([-along[1], along[0]]) / length

    def _road(self, road: int, vehicles: float, waiting: float) -> None:
        line = [tuple(point) for point in self._line_of(road)]
        self.pen.line(line, fill=EMPTY, width=_FINE)
        if vehicles == 0:
            return
        full = min(1.0, vehicles / self._room[road] * 3)
        self.pen.line(line, fill=_mix(MOVING, QUEUED, waiting / vehicles), width=round(_FINE * (2 + 6 * full)))

    def _light(self, road: int, colour: Colour) -> None:
        line = self._line_of(road)
        along = line[-1] - line[-2]
        length = float(np.hypot(*along))
        if length == 0:
            return
        along /= length
        inset = min(0.3 * length, 14 * _FINE)
        stop, across = line[-1] - inset * along, 5 * _FINE * np.array([-along[1], along[0]])
        self.pen.line([tuple(stop - across), tuple(stop + across)], fill=colour, width=2 * _FINE)

    def _disc(self, x: float, y: float, fill: Colour) -> None:
        radius = 7 * _FINE
        self.pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill, outline=INK, width=_FINE)

    def _legend(self, moment: Moment) -> None:
        x, y, gap = 8.0 * _FINE, self.height - _FINE * _LEGEND / 2, 6 * _FINE
        for name, colour in (('moving', MOVING), ('waiting', QUEUED)):
            self.pen.line((x, y, x + 40, y), fill=colour, width=5 * _FINE)
            x = self._text(name, x + 40 + gap, y, 11) + 2 * gap
        if moment.kept is not None:
            x = self._text('shares all', x, y, 11) + gap
            for i in range(40):
                self.pen.rectangle((x, y - 10, x + 3, y + 10), fill=shade(i / 39))
                x += 3
            self._text('keeps all', x + gap, y, 11)

    def _text(self, text: str, x: float, y: float, size: int) -> float:
        """Writes a line and returns where it ends."""
        font = self.fonts.load_default(size * _FINE)
        self.pen.text((x, y), text, fill=INK, font=font, anchor='lm')
        return x + float(font.getlength(text))


def _mix(a: Colour, b: Colour, part: float) -> Colour:
    red, green, blue = (round(p + (q - p) * part) for p, q in zip(a, b, strict=True))
    return red, green, blue


def traffic_text(network: RoadNetwork, moment: Moment, title: str = '', colour: bool = False, width: int = 76) -> str:
    """A decision as text: for each signal, at about its position, the phase shown and the number of waiting vehicles.

    Args:
        network: What to show.
        moment: When.
        title: A line above.
        colour: Whether to colour long queues red, for a terminal that supports ANSI colours.
        width: Columns.
    """
    incoming = network.incoming
    queue = (moment.waiting[np.maximum(incoming, 0)] * (incoming >= 0)).sum(1)
    xy = network.intersection_xy[network.signals]
    low, span = xy.min(0), np.maximum(np.ptp(xy, axis=0), 1.0)
    rows = max(1, min(24, round(span[1] / span[0] * width / 2.5)))
    column = np.rint((xy[:, 0] - low[0]) / span[0] * (width - 8)).astype(int)
    row = np.rint((1 - (xy[:, 1] - low[1]) / span[1]) * (rows - 1)).astype(int)
    lines: list[str] = [title] if title else []
    for r in range(rows):
        line, at = '', 0
        for i in sorted(np.flatnonzero(row == r), key=lambda i: int(column[i])):
            label = f'{moment.phase[i]}:{queue[i]}'
            start = max(int(column[i]), at + (at > 0))
            shown = f'\x1b[1;31m{label}\x1b[0m' if colour and queue[i] >= 10 else label
            line, at = line + ' ' * (start - at) + shown, start + len(label)
        lines.append(line)
    lines.append(f'phase:queue of each signal; {moment.vehicles.sum()} vehicles, {moment.waiting.sum()} wait')
    if moment.kept is not None:
        kept: Any = moment.kept
        lines.append(f'kept {kept.mean():.2f} ({kept.min():.2f} to {kept.max():.2f})')
    return '\n'.join(lines)
