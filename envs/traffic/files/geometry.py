"""Geometry of lanes and lane links, and crossings of links."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ..jit import jit

Array = npt.NDArray[Any]
Point = tuple[float, float]
EPS = 1e-8
CURVE_POINTS = 11
SHORT_HANDLE = 5.0  # metres


def length_of(points: Array) -> float:
    """Length of a polyline (n, 2)."""
    total = 0.0
    xy = points.tolist()
    for (x0, y0), (x1, y1) in pairwise(xy):
        total += math.sqrt((x1 - x0) * (x1 - x0) + (y1 - y0) * (y1 - y0))
    return total


def lane_lines(centre: Array, cut_start: float, cut_end: float, widths: list[float]) -> list[Array]:
    """The lanes' centre lines: the road's centre line, cut at both ends, shifted right by each lane's distance from it.

    At a bend the shift is along the normal of the mean of both directions. NaN where two points coincide.
    """
    xy: list[Point] = [(x, y) for x, y in centre.tolist()]
    first = _direction(xy[0], xy[1])
    if cut_start:
        xy[0] = (xy[0][0] + first[0] * cut_start, xy[0][1] + first[1] * cut_start)
    last = _direction(xy[-2], xy[-1])  # of the line as cut so far: the result depends on it to the last bit
    if cut_end:
        xy[-1] = (xy[-1][0] - last[0] * cut_end, xy[-1][1] - last[1] * cut_end)
    along = [_direction(a, b) for a, b in pairwise(xy)]
    facing = [
        along[0],
        *(_unit(a[0] + b[0], a[1] + b[1]) for a, b in zip(along[1:], along[:-1], strict=True)),
        along[-1],
    ]
    lines, inner = [], 0.0
    for width in widths:
        outer = inner + width
        shift = (inner + outer) / 2.0
        lines.append(np.array([(x + dy * shift, y - dx * shift) for (x, y), (dx, dy) in zip(xy, facing, strict=True)]))
        inner = outer
    return lines


def curve(start: Array, end: Array, width: float) -> Array:
    """A cubic Bezier from lane to lane, for links without points in the file.

    Args:
        start, end: The lanes' lines, not cut at the junction.
        width (float): Distance of its ends from the lanes' intersection.

    Its handles are along the lanes, half as long as the straight line. Where that is below 10 m and the width 5 m or
    more they are 5 m long, and the second points onward instead of back, as measured in CityFlow.
    """
    first, out = _place_on(start, length_of(start) - width)
    last, into = _place_on(end, width)
    apart = math.sqrt((last[0] - first[0]) * (last[0] - first[0]) + (last[1] - first[1]) * (last[1] - first[1]))
    leave, reach = (SHORT_HANDLE, -SHORT_HANDLE) if apart < 10.0 and width >= 5.0 else (apart * 0.5, apart * 0.5)
    handles = [
        first,
        (first[0] + out[0] * leave, first[1] + out[1] * leave),
        (last[0] - into[0] * reach, last[1] - into[1] * reach),
        last,
    ]
    return np.array([_bezier(handles, i / (CURVE_POINTS - 1.0)) for i in range(CURVE_POINTS)])


def _bezier(handles: list[Point], t: float) -> Point:
    """De Casteljau's point: each pair of neighbouring points is replaced by the point between them, until one is
    left."""
    while len(handles) > 1:
        handles = [(a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t) for a, b in pairwise(handles)]
    return handles[0]


def _place_on(line: Array, distance: float) -> tuple[Point, Point]:
    """The point at a distance along a line, and the direction there; beyond its ends on the extended first or last
    segment."""
    pairs = list(pairwise([(x, y) for x, y in line.tolist()]))
    if distance <= 0:
        return pairs[0][0], _direction(*pairs[0])
    for k, (a, b) in enumerate(pairs):
        length = math.sqrt((b[0] - a[0]) * (b[0] - a[0]) + (b[1] - a[1]) * (b[1] - a[1]))
        if length >= distance or k == len(pairs) - 1:
            break
        distance -= length
    ratio = distance / length
    return (a[0] + (b[0] - a[0]) * ratio, a[1] + (b[1] - a[1]) * ratio), _direction(a, b)


def _unit(x: float, y: float) -> Point:
    size = math.sqrt(x * x + y * y)
    return (x / size, y / size) if size > 0 else (math.nan, math.nan)


def _direction(a: Point, b: Point) -> Point:
    return _unit(b[0] - a[0], b[1] - a[1])


@jit
def _on_segment(ax: float, ay: float, bx: float, by: float, px: float, py: float) -> bool:
    """Whether the point lies between the ends, which belong to the segment."""
    off_line = (bx - ax) * (py - ay) - (by - ay) * (px - ax)
    between = (px - ax) * (px - bx) + (py - ay) * (py - by)
    return abs(off_line) <= EPS and between <= EPS


@jit
def _meet(a: Array, b: Array) -> tuple[bool, float, float]:
    """Whether two polylines cross, and how far along each: at the first pair of segments that do.

    A parallel pair is skipped, and leaves the distance along the second line unchanged, as in CityFlow.
    """
    along_a = 0.0
    for i in range(a.shape[0] - 1):
        ux, uy = a[i + 1, 0] - a[i, 0], a[i + 1, 1] - a[i, 1]
        along_b = 0.0
        for j in range(b.shape[0] - 1):
            vx, vy = b[j + 1, 0] - b[j, 0], b[j + 1, 1] - b[j, 1]
            cross = ux * vy - uy * vx
            if abs(cross) < EPS:
                continue
            t = ((b[j, 0] - a[i, 0]) * vy - (b[j, 1] - a[i, 1]) * vx) / cross
            px, py = a[i, 0] + ux * t, a[i, 1] + uy * t
            if _on_segment(a[i, 0], a[i, 1], a[i + 1, 0], a[i + 1, 1], px, py) and _on_segment(
                b[j, 0], b[j, 1], b[j + 1, 0], b[j + 1, 1], px, py
            ):
                dx, dy = px - a[i, 0], py - a[i, 1]
                ex, ey = px - b[j, 0], py - b[j, 1]
                return True, along_a + np.sqrt(dx * dx + dy * dy), along_b + np.sqrt(ex * ex + ey * ey)
            along_b += np.sqrt(vx * vx + vy * vy)
        along_a += np.sqrt(ux * ux + uy * uy)
    return False, 0.0, 0.0


@jit
def _swap(p: int, q: int, distance: Array, link: Array, twin: Array) -> None:
    """Swaps two crossings of a row; the entries for them in the other links' rows then point to the new places."""
    if p != q:
        distance[p], distance[q] = distance[q], distance[p]
        link[p], link[q] = link[q], link[p]
        twin[p], twin[q] = twin[q], twin[p]
        twin[twin[p]], twin[twin[q]] = p, q


@jit
def _middle(x: int, y: int, z: int, distance: Array) -> int:
    """The position of the median of three; ties as in `std::sort`."""
    if distance[x] < distance[y]:
        if distance[y] < distance[z]:
            return y
        return z if distance[x] < distance[z] else x
    if distance[x] < distance[z]:
        return x
    return z if distance[y] < distance[z] else y


@jit
def _split(lo: int, hi: int, distance: Array, link: Array, twin: Array) -> int:
    """Partitions a row around the median of its second, middle and last crossing; returns where the right part is."""
    _swap(lo, _middle(lo + 1, lo + (hi - lo) // 2, hi - 1, distance), distance, link, twin)
    left, right = lo + 1, hi
    while True:
        while distance[left] < distance[lo]:
            left += 1
        right -= 1
        while distance[lo] < distance[right]:
            right -= 1
        if left >= right:
            return left
        _swap(left, right, distance, link, twin)
        left += 1


@jit
def _sort_row(lo: int, hi: int, distance: Array, link: Array, twin: Array) -> None:
    """Sorts a row by distance. Crossings at the same distance have the order of the standard library of GCC, and so of
    CityFlow: quicksort down to parts of 16, then insertion sort. (Not reproduced: its fallback to heapsort.)"""
    parts, waiting = np.empty((64, 2), np.int64), 1
    parts[0, 0], parts[0, 1] = lo, hi
    while waiting > 0:
        waiting -= 1
        first, last = parts[waiting, 0], parts[waiting, 1]
        while last - first > 16 and waiting < 64:
            cut = _split(first, last, distance, link, twin)
            parts[waiting, 0], parts[waiting, 1] = cut, last
            waiting += 1
            last = cut
    for p in range(lo + 1, hi):
        q = p
        while q > lo and distance[q - 1] > distance[q]:
            _swap(q - 1, q, distance, link, twin)
            q -= 1


@jit
def crossings(group_ptr: Array, points_ptr: Array, points: Array) -> tuple[Array, Array, Array, Array]:
    """The crossings of lane links, sorted along each link.

    Args:
        group_ptr: The links of group g, an intersection, are ``group_ptr[g]:group_ptr[g + 1]``.
        points_ptr, points: The links' polylines.

    Returns:
        ``ptr`` (K + 1,), the rows; ``distance`` along the link; ``link``, the other one; ``twin``, the position of the
        same crossing in the other's row.
    """
    K = points_ptr.shape[0] - 1
    ptr, room, found = np.zeros(K + 1, np.int64), 1024, 0
    pair, place = np.empty((room, 2), np.int64), np.empty((room, 2), np.float64)
    for g in range(group_ptr.shape[0] - 1):
        for k in range(group_ptr[g], group_ptr[g + 1]):
            for m in range(k + 1, group_ptr[g + 1]):
                meets, at_k, at_m = _meet(
                    points[points_ptr[k] : points_ptr[k + 1]], points[points_ptr[m] : points_ptr[m + 1]]
                )
                if not meets:
                    continue
                if found == room:
                    pair, place = np.concatenate((pair, pair)), np.concatenate((place, place))
                    room *= 2
                pair[found, 0], pair[found, 1] = k, m
                place[found, 0], place[found, 1] = at_k, at_m
                ptr[k + 1] += 1
                ptr[m + 1] += 1
                found += 1
    ptr = np.cumsum(ptr)
    distance, link, twin = np.empty(2 * found, np.float64), np.empty(2 * found, np.int64), np.empty(2 * found, np.int64)
    fill = ptr[:-1].copy()
    for c in range(found):
        k, m = pair[c]
        p, q = fill[k], fill[m]
        distance[p], link[p], twin[p] = place[c, 0], m, q
        distance[q], link[q], twin[q] = place[c, 1], k, p
        fill[k] += 1
        fill[m] += 1
    for k in range(K):
        _sort_row(ptr[k], ptr[k + 1], distance, link, twin)
    return ptr, distance, link, twin
