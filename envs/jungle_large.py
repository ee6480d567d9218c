"""The jungle on the CPU for large boards: the same episodes as :mod:`.jungle_numba`, in time and memory that grow with
the number of agents and cells, not with the pairs of agents.

A board's ``grid`` has the number of the entity on each cell, counted from 1 (agents, then foods), 0 where it is blank.
Windows are read from it. Neighbours are found in square buckets of cells: an agent looks through those around its own.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltos_pyg.jit import jit

from .jungle_numba import DX, DY, Array, NumbaJungle
from .jungle_rules import FIRST_ATTACK, Observations

PER_BUCKET = 2.0  # agents in a bucket of the k-nearest search, on average


@jit(nogil=True)
def paint(lo: int, hi: int, ys: Array, xs: Array, grid: Array) -> None:
    """Marks occupied cells."""
    for b in range(lo, hi):
        grid[b, :, :] = 0
        for m in range(ys.shape[1]):
            grid[b, ys[b, m], xs[b, m]] = m + 1


@jit(nogil=True)
def play(
    lo: int, hi: int, size: int, payoffs: Array, action: Array, ys: Array, xs: Array, high: Array, grid: Array,
    reward: Array, tally: Array,
) -> None:  # fmt: skip
    """One step: attacks on the start-of-step cells, then moves one by one."""
    N, flagged = reward.shape[1], high.shape[1] > 0
    hits = np.empty(N, dtype=np.int32)
    for b in range(lo, hi):
        hits[:] = 0
        tally[:, b] = 0
        for i in range(N):
            a = action[b, i]
            reward[b, i] = 0
            if a < FIRST_ATTACK:
                continue
            what = grid[b, ys[b, i] + DY[a], xs[b, i] + DX[a]]
            if what > N:
                reward[b, i] = payoffs[0]
                tally[1, b] += 1
            elif what > 0:
                reward[b, i] = payoffs[4] if flagged and high[b, i] else payoffs[1]
                tally[0, b] += 1
                hits[what - 1] += 1
            else:
                reward[b, i] = payoffs[2]
                tally[2, b] += 1
        for i in range(N):
            reward[b, i] += payoffs[3] * hits[i]
            a = action[b, i]
            if a < FIRST_ATTACK:
                y, x = ys[b, i] + DY[a], xs[b, i] + DX[a]
                if 0 < y < size - 1 and 0 < x < size - 1 and grid[b, y, x] == 0:
                    grid[b, ys[b, i], xs[b, i]] = 0
                    grid[b, y, x] = i + 1
                    ys[b, i] = y
                    xs[b, i] = x


@jit(nogil=True)
def look(lo: int, hi: int, view: int, ys: Array, xs: Array, high: Array, grid: Array, out: Array) -> None:
    """Each agent's window, row by row, then its y and x, then its flag of a high gain, if there are such flags."""
    N, size, own, flagged = out.shape[1], grid.shape[1], (2 * view + 1) ** 2, high.shape[1] > 0
    for b in range(lo, hi):
        out[b, :, :] = 0
        for i in range(N):
            y, x = ys[b, i], xs[b, i]
            for dy in range(max(-view, -y), min(view, size - 1 - y) + 1):
                for dx in range(max(-view, -x), min(view, size - 1 - x) + 1):
                    what = grid[b, y + dy, x + dx]
                    if what > 0 and dy * dy + dx * dx <= view * view:
                        mark = -1 if what > N else 1 + high[b, what - 1] if flagged else 1
                        out[b, i, (dy + view) * (2 * view + 1) + dx + view] = mark
            out[b, i, own] = y
            out[b, i, own + 1] = x
            if flagged:
                out[b, i, own + 2] = high[b, i]


@jit(nogil=True)
def fill_buckets(N: int, size: int, side: int, y: Array, x: Array) -> tuple[Array, Array, int]:
    """Agents by bucket: those of bucket c are ``agent[start[c]:start[c + 1]]``, by rising number; buckets of a row."""
    width = (size - 1) // side + 1
    start = np.zeros(width * width + 1, np.int32)
    for i in range(N):
        start[y[i] // side * width + x[i] // side + 1] += 1
    for c in range(width * width):
        start[c + 1] += start[c]
    agent, end = np.empty(N, np.int32), start[:-1].copy()
    for i in range(N):
        c = y[i] // side * width + x[i] // side
        agent[end[c]] = i
        end[c] += 1
    return start, agent, width


@jit(nogil=True)
def find_nearest(
    lo: int, hi: int, N: int, k: int, symmetric: bool, side: int, size: int, ys: Array, xs: Array, nearest: Array,
    edges: Array,
) -> None:  # fmt: skip
    """The k nearest of each agent, ``nearest`` (B, N, k) by rising number, and the number of edges of each board.

    A key is ``distance^2 << 32 | number``: all differ, and ties go to the lower number. Rings of buckets are searched
    outwards, until no agent outside can be nearer than, or as near as, the k-th.
    """
    keys = np.empty(k + 1, np.int64)
    for b in range(lo, hi):
        y, x = ys[b], xs[b]
        start, agent, width = fill_buckets(N, size, side, y, x)
        for i in range(N):
            row, column, found, ring = y[i] // side, x[i] // side, 0, 0
            while ring < width:
                for r in range(max(row - ring, 0), min(row + ring, width - 1) + 1):
                    step = 1 if abs(r - row) == ring else 2 * ring
                    for c in range(column - ring, column + ring + 1, step):
                        if c < 0 or c >= width:
                            continue
                        for m in range(start[r * width + c], start[r * width + c + 1]):
                            j = agent[m]
                            dy, dx = np.int64(y[j] - y[i]), np.int64(x[j] - x[i])
                            key = (dy * dy + dx * dx) << 32 | j
                            if j == i or (found == k and key > keys[k - 1]):
                                continue
                            at = found
                            while at > 0 and keys[at - 1] > key:
                                keys[at] = keys[at - 1]
                                at -= 1
                            keys[at] = key
                            found = min(found + 1, k)
                up, down = y[i] - (row - ring) * side + 1, (row + ring + 1) * side - y[i]
                left, right = x[i] - (column - ring) * side + 1, (column + ring + 1) * side - x[i]
                outside = np.int64(min(min(up, down), min(left, right)))
                if found == k and (k == 0 or keys[k - 1] >> 32 < outside * outside):
                    break
                ring += 1
            for r in range(k):
                nearest[b, i, r] = keys[r] & 0xFFFFFFFF
            nearest[b, i].sort()
        edges[b] = N * k + (one_sided(nearest[b]) if symmetric else 0)


@jit(nogil=True)
def is_among(number: int, numbers: Array) -> bool:
    """Whether a number is in a short list."""
    for other in numbers:  # noqa: SIM110  any() of a generator is not compiled
        if other == number:
            return True
    return False


@jit(nogil=True)
def one_sided(nearest: Array) -> int:
    """How many times i is among the nearest of j, but j not of i."""
    count = 0
    for j in range(len(nearest)):
        for i in nearest[j]:
            count += not is_among(j, nearest[i])
    return count


@jit(nogil=True)
def write_nearest(
    lo: int, hi: int, N: int, k: int, symmetric: bool, ys: Array, xs: Array, nearest: Array, ends: Array, edges: Array,
    edge_index: Array, edge_attr: Array,
) -> None:  # fmt: skip
    """The edges to each agent from its k nearest and, if ``symmetric``, from those of whose k nearest it is one, by
    rising receiver and sender."""
    for b in range(lo, hi):
        more = np.zeros(N + 1, np.int32)  # where the further senders of each agent begin
        if symmetric:
            for j in range(N):
                for i in nearest[b, j]:
                    more[i + 1] += not is_among(j, nearest[b, i])
        for i in range(N):
            more[i + 1] += more[i]
        further, last = np.empty(more[N], np.int32), more[:-1].copy()
        if symmetric:
            for j in range(N):
                for i in nearest[b, j]:
                    if not is_among(j, nearest[b, i]):
                        further[last[i]] = j
                        last[i] += 1
        e = ends[b] - edges[b]
        for i in range(N):
            near, far = 0, more[i]
            while near < k or far < more[i + 1]:
                if far == more[i + 1] or (near < k and nearest[b, i, near] < further[far]):
                    j = nearest[b, i, near]
                    near += 1
                else:
                    j = further[far]
                    far += 1
                write_edge(e, b * N, i, j, ys[b], xs[b], edge_index, edge_attr)
                e += 1


@jit(nogil=True)
def write_edge(
    e: int, first: int, i: int, j: int, y: Array, x: Array, edge_index: Array, edge_attr: Array
) -> None:  # fmt: skip
    """Edge number e, from j to i of the board whose first node is ``first``."""
    edge_index[0, e] = first + j
    edge_index[1, e] = first + i
    if edge_attr.shape[1] > 0:
        edge_attr[e, 0] = y[j] - y[i]
        edge_attr[e, 1] = x[j] - x[i]


@jit(nogil=True)
def within(
    i: int, reach: int, side: int, width: int, start: Array, agent: Array, y: Array, x: Array, out: Array
) -> int:
    """Writes the agents of a squared distance up to ``reach`` from agent i, by rising number; returns how many."""
    row, column, count = y[i] // side, x[i] // side, 0
    for r in range(max(row - 1, 0), min(row + 1, width - 1) + 1):
        for c in range(max(column - 1, 0), min(column + 1, width - 1) + 1):
            for m in range(start[r * width + c], start[r * width + c + 1]):
                j = agent[m]
                dy, dx = np.int64(y[j] - y[i]), np.int64(x[j] - x[i])
                if j != i and dy * dy + dx * dx <= reach:
                    out[count] = j
                    count += 1
    out[:count].sort()
    return count


@jit(nogil=True)
def count_within(
    lo: int, hi: int, N: int, reach: int, side: int, size: int, ys: Array, xs: Array, edges: Array
) -> None:
    """The number of edges of each board; ``side`` is not below the distance."""
    out = np.empty(N, np.int32)
    for b in range(lo, hi):
        start, agent, width = fill_buckets(N, size, side, ys[b], xs[b])
        edges[b] = 0
        for i in range(N):
            edges[b] += within(i, reach, side, width, start, agent, ys[b], xs[b], out)


@jit(nogil=True)
def write_within(
    lo: int, hi: int, N: int, reach: int, side: int, size: int, ys: Array, xs: Array, ends: Array, edges: Array,
    edge_index: Array, edge_attr: Array,
) -> None:  # fmt: skip
    """All pairs of a squared distance up to ``reach``, both ways, by rising receiver and sender."""
    out = np.empty(N, np.int32)
    for b in range(lo, hi):
        start, agent, width = fill_buckets(N, size, side, ys[b], xs[b])
        e = ends[b] - edges[b]
        for i in range(N):
            for m in range(within(i, reach, side, width, start, agent, ys[b], xs[b], out)):
                write_edge(e, b * N, i, out[m], ys[b], xs[b], edge_index, edge_attr)
                e += 1


class LargeJungle(NumbaJungle):
    """B large boards on the CPU."""

    def _allocate(self) -> None:
        c = self.config
        self._grid = np.zeros((self.num_envs, c.size, c.size), dtype=np.int32)
        self._nearest = np.empty((self.num_envs, c.num_agents, c.degree if c.reach is None else 0), dtype=np.int32)
        if c.reach is None:
            self._side = max(1, round(c.size * math.sqrt(PER_BUCKET / c.num_agents)))
        else:
            self._side = math.isqrt(c.reach) + 1

    def observe(self) -> Observations:
        """The current observations."""
        c = self.config
        x = torch.empty(self.num_envs, c.num_agents, c.num_features, dtype=c.dtype)
        self._run(look, c.view, self._ys, self._xs, self._high, self._grid, x.numpy())
        edges = np.empty(self.num_envs, dtype=np.int64)
        board = self._side, c.size, self._ys, self._xs
        if c.reach is None:
            self._run(find_nearest, c.num_agents, c.degree, c.symmetric, *board, self._nearest, edges)
        else:
            self._run(count_within, c.num_agents, c.reach, *board, edges)
        ends = edges.cumsum()
        edge_index = torch.empty(2, int(ends[-1]), dtype=torch.int64)
        edge_attr = torch.empty(int(ends[-1]), 2 if c.edge_features else 0, dtype=c.dtype)
        out = ends, edges, edge_index.numpy(), edge_attr.numpy()
        if c.reach is None:
            who = c.num_agents, c.degree, c.symmetric, self._ys, self._xs, self._nearest
            self._run(write_nearest, *who, *out)
        else:
            self._run(write_within, c.num_agents, c.reach, *board, *out)
        x = x.view(-1, c.num_features)
        return Observations(x, edge_index, edge_attr if c.edge_features else None, torch.from_numpy(edges))

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Observations]:
        """As of small boards."""
        B = self.num_envs
        reward, tally = torch.empty(action.numel()), torch.empty(3, B)
        played: tuple[Any, ...] = (action.view(B, -1).numpy(), self._ys, self._xs, self._high, self._grid)
        self._run(play, self.config.size, self._payoffs, *played, reward.view(B, -1).numpy(), tally.numpy())
        return reward, tally, self.observe()

    def _paint(self) -> None:
        self._run(paint, self._ys, self._xs, self._grid)
