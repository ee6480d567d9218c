"""The jungle on the CPU, compiled. A board is ``ys`` and ``xs``, the cells of its N agents, then of its L foods, and a
``grid`` of signed bytes that marks occupied cells (agent 1, food -1). Each function works only on the boards ``[lo,
hi)`` and releases the GIL, so that threads can process a batch together.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ltos_pyg.jit import jit

from . import jungle_rules
from .jungle_rules import FIRST_ATTACK, JungleConfig, Observations

Array = npt.NDArray[Any]
FAR = np.int32(2**31 - 1)  # the key that stands for "no neighbour"
HALF, LOW = np.int32(16), np.int32(2**16 - 1)  # a pair is receiver << 16 | sender
DY = np.array(jungle_rules.DY, dtype=np.int64)
DX = np.array(jungle_rules.DX, dtype=np.int64)
CHUNK = 32  # boards per chunk: few enough to stay in cache


@jit(nogil=True)
def padded(length: int) -> int:
    """The next multiple of 8, so that SIMD loops over int32 have no remainder."""
    return (length + 7) // 8 * 8


@jit(nogil=True)
def _draw(streams: Array, b: int, bound: int) -> np.int64:
    """The next number of stream ``b`` in [0, bound): SplitMix64, its upper 32 bits scaled to the bound."""
    streams[b] += np.uint64(0x9E3779B97F4A7C15)
    z = streams[b]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return np.int64(((z >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32))


@jit(nogil=True)
def draw_cells(lo: int, hi: int, size: int, streams: Array, ys: Array, xs: Array) -> None:
    """Agents, then foods, on distinct free cells, uniformly: the first steps of a Fisher-Yates shuffle."""
    side = size - 2
    cells = np.empty(side * side, dtype=np.int32)
    for b in range(lo, hi):
        for c in range(side * side):
            cells[c] = c
        for m in range(ys.shape[1]):
            pick = m + _draw(streams, b, side * side - m)
            cell = cells[pick]
            cells[pick] = cells[m]
            ys[b, m] = 1 + cell // side
            xs[b, m] = 1 + cell % side


@jit(nogil=True)
def draw_high(lo: int, hi: int, count: int, streams: Array, high: Array) -> None:
    """Flags ``count`` random agents of each board, by the first steps of a Fisher-Yates shuffle."""
    N = high.shape[1]
    agents = np.empty(N, dtype=np.int32)
    for b in range(lo, hi):
        high[b, :] = 0
        for i in range(N):
            agents[i] = i
        for m in range(count):
            pick = m + _draw(streams, b, N - m)
            high[b, agents[pick]] = 1
            agents[pick] = agents[m]


@jit(nogil=True)
def paint(lo: int, hi: int, N: int, ys: Array, xs: Array, grid: Array) -> None:
    """Marks occupied cells: agent +1, food -1."""
    for b in range(lo, hi):
        grid[b, :, :] = 0
        for m in range(ys.shape[1]):
            grid[b, ys[b, m], xs[b, m]] = 1 if m < N else -1


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
            y, x = ys[b, i] + DY[a], xs[b, i] + DX[a]
            what = grid[b, y, x]
            if what < 0:
                reward[b, i] = payoffs[0]
                tally[1, b] += 1
            elif what > 0:
                reward[b, i] = payoffs[4] if flagged and high[b, i] else payoffs[1]
                tally[0, b] += 1
                for j in range(N):
                    if ys[b, j] == y and xs[b, j] == x:
                        hits[j] += 1
                        break
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
                    grid[b, y, x] = 1
                    ys[b, i] = y
                    xs[b, i] = x


@jit(nogil=True)
def look(lo: int, hi: int, view: int, ys: Array, xs: Array, high: Array, out: Array) -> None:
    """Each agent's window, row by row, then its y and x, then its flag of a high gain, if there are such flags.

    Every entity is written into every window: at its position if it is visible, else in the last column, which is
    overwritten afterwards. This is branch-free, and faster than cutting the window out of a map.
    """
    N, M, last, flagged = out.shape[1], ys.shape[1], np.int32(out.shape[2] - 1), high.shape[1] > 0
    side, middle, reach = np.int32(2 * view + 1), np.int32(2 * view * (view + 1)), np.int32(view * view)
    y, x, place = np.zeros(padded(M), np.int32), np.zeros(padded(M), np.int32), np.empty(padded(M), np.int32)
    for b in range(lo, hi):
        out[b, :, :] = 0
        for m in range(M):
            y[m] = ys[b, m]
            x[m] = xs[b, m]
        for i in range(N):
            row, yi, xi = out[b, i], y[i], x[i]
            for m in range(place.shape[0]):
                dy, dx = np.int32(y[m] - yi), np.int32(x[m] - xi)
                seen = np.int32(dy * dy + dx * dx) <= reach
                place[m] = np.int32(np.int32(dy * side) + dx + middle) if seen else last
            for m in range(N):
                row[np.uint32(place[m])] = 1
            for m in range(N, M):
                row[np.uint32(place[m])] = -1
            if flagged:
                for m in range(N):
                    row[np.uint32(place[m])] = 1 + high[b, m]
                row[last - 2] = yi
                row[last - 1] = xi
                row[last] = high[b, i]
            else:
                row[last - 1] = yi
                row[last] = xi


@jit(nogil=True)
def find_neighbours(
    lo: int, hi: int, N: int, k: int, symmetric: bool, ys: Array, xs: Array, pairs: Array, edges: Array
) -> None:
    """The k nearest of each agent, in rising order of receiver, then of sender: the first ``edges[b]`` of ``pairs[b]``.

    A key is ``distance^2 << bits | index``: all differ, and ties go to the lower index. The k smallest keys of all
    receivers lie in k sorted rows, and each sender's keys are inserted into them in parallel, without a branch.
    """
    bits = np.int32(1)
    while (1 << bits) < N:
        bits = np.int32(bits + 1)
    P, last = padded(N), np.int32((1 << bits) - 1)
    y, x, key = np.zeros(P, np.int32), np.zeros(P, np.int32), np.empty(P, np.int32)
    nearest = np.empty((k, P), np.int32)
    receives = np.empty((N, N), np.uint8)
    for b in range(lo, hi):
        for i in range(N):
            y[i] = ys[b, i]
            x[i] = xs[b, i]
        nearest[:] = FAR
        for j in range(N):
            yj, xj, sender = y[j], x[j], np.int32(j)
            for i in range(P):
                dy, dx = np.int32(y[i] - yj), np.int32(x[i] - xj)
                key[i] = np.int32(np.int32(dy * dy + dx * dx) << bits) | sender
            key[j] = FAR
            for r in range(k):
                for i in range(P):
                    best, new = nearest[r, i], key[i]
                    nearest[r, i] = min(best, new)
                    key[i] = max(best, new)
        receives[:] = 0
        for r in range(k):
            for i in range(N):
                near = np.uint32(nearest[r, i] & last)
                receives[i, near] = 1
                if symmetric:
                    receives[near, np.uint32(i)] = 1
        found, end = pairs[b], np.uint32(0)
        for i in range(N):
            sends = receives[i]
            for j in range(N):  # each pair is written, and stays if the end moves on
                found[end] = np.int32(i << HALF | j)
                end = np.uint32(end + sends[j])
        edges[b] = end


@jit(nogil=True)
def find_within(lo: int, hi: int, N: int, reach: int, ys: Array, xs: Array, pairs: Array, edges: Array) -> None:
    """All pairs of a squared distance up to ``reach``, both ways, in the order of :func:`find_neighbours`."""
    y, x = np.zeros(N, np.int32), np.zeros(N, np.int32)
    near, most = np.zeros(N, np.uint8), np.int32(reach)
    for b in range(lo, hi):
        for i in range(N):
            y[i] = ys[b, i]
            x[i] = xs[b, i]
        found, end = pairs[b], np.uint32(0)
        for i in range(N):
            yi, xi = y[i], x[i]
            for j in range(N):
                dy, dx = np.int32(y[j] - yi), np.int32(x[j] - xi)
                near[j] = np.int32(dy * dy + dx * dx) <= most
            near[i] = 0
            for j in range(N):  # each pair is written, and stays if the end moves on
                found[end] = np.int32(i << HALF | j)
                end = np.uint32(end + near[j])
        edges[b] = end


@jit(nogil=True)
def write_edges(
    lo: int, hi: int, N: int, ys: Array, xs: Array, pairs: Array, edges: Array, ends: Array,
    edge_index: Array, edge_attr: Array,
) -> None:  # fmt: skip
    """Node numbers of the whole batch and (dy, dx) of each edge; the edges of board ``b`` end at ``ends[b]``."""
    with_attr = edge_attr.shape[1] > 0
    for b in range(lo, hi):
        count, first = edges[b], ends[b] - edges[b]
        found, y, x = pairs[b], ys[b], xs[b]
        source, target = edge_index[0, first : ends[b]], edge_index[1, first : ends[b]]
        for e in range(count):
            source[e] = b * N + (found[e] & LOW)
            target[e] = b * N + (found[e] >> HALF)
        if with_attr:
            attr = edge_attr[first : ends[b]]
            for e in range(count):
                j, i = np.uint32(found[e] & LOW), np.uint32(found[e] >> HALF)
                attr[e, 0] = y[j] - y[i]
                attr[e, 1] = x[j] - x[i]


@jit(nogil=True)
def observe(
    lo: int, hi: int, N: int, k: int, symmetric: bool, reach: int, view: int, ys: Array, xs: Array, high: Array,
    window: Array, pairs: Array, edges: Array,
) -> None:  # fmt: skip
    """:func:`look` and :func:`find_neighbours`, or :func:`find_within` if ``reach`` is not below 0, chunk by chunk."""
    for start in range(lo, hi, CHUNK):
        stop = min(start + CHUNK, hi)
        look(start, stop, view, ys, xs, high, window)
        if reach < 0:
            find_neighbours(start, stop, N, k, symmetric, ys, xs, pairs, edges)
        else:
            find_within(start, stop, N, reach, ys, xs, pairs, edges)


@jit(nogil=True)
def advance(
    lo: int, hi: int, size: int, payoffs: Array, action: Array, grid: Array, reward: Array, tally: Array,
    N: int, k: int, symmetric: bool, reach: int, view: int, ys: Array, xs: Array, high: Array,
    window: Array, pairs: Array, edges: Array,
) -> None:  # fmt: skip
    """:func:`play`, then :func:`observe`, chunk by chunk."""
    for start in range(lo, hi, CHUNK):
        stop = min(start + CHUNK, hi)
        play(start, stop, size, payoffs, action, ys, xs, high, grid, reward, tally)
        observe(start, stop, N, k, symmetric, reach, view, ys, xs, high, window, pairs, edges)


class NumbaJungle:
    """B boards on the CPU. With ``threads`` above 1, a thread pool processes them."""

    def __init__(self, config: JungleConfig, num_envs: int, threads: int = 1) -> None:
        self.config, self.num_envs = config, num_envs
        entities = config.num_agents + config.num_foods
        self.streams = torch.zeros(num_envs, dtype=torch.int64)
        self._ys = np.zeros((num_envs, entities), dtype=np.int32)
        self._xs = np.zeros((num_envs, entities), dtype=np.int32)
        flags = config.num_agents if config.attack_gain_high is not None else 0
        self._high = np.zeros((num_envs, flags), dtype=np.int8)  # 1: gains `attack_gain_high`; no columns: all the same
        self._payoffs = config.payoffs
        self._allocate()
        self._parts = list(pairwise(np.linspace(0, num_envs, threads + 1).astype(int).tolist()))
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def _allocate(self) -> None:
        c = self.config
        self._grid = np.zeros((self.num_envs, c.size, c.size), dtype=np.int8)
        # Room for one more than the maximum: the branch-free writer writes one ahead.
        self._pairs = np.zeros((self.num_envs, c.max_edges + 1), dtype=np.int32)

    def start(self) -> None:
        """New random cells, and new agents with the high gain."""
        bits = self.streams.numpy().view(np.uint64)  # the same memory
        self._run(draw_cells, self.config.size, bits, self._ys, self._xs)
        self._run(draw_high, self.config.num_high, bits, self._high)
        self._paint()

    def cells(self) -> Tensor:
        """(B, N + L, 2) int64, y and x."""
        return torch.from_numpy(np.stack([self._ys, self._xs], 2)).long()

    def high(self) -> Tensor:
        """Which agents have the high gain (B, N) bool."""
        flags = torch.zeros(self.num_envs, self.config.num_agents, dtype=torch.bool)
        if self._high.shape[1]:
            flags.copy_(torch.from_numpy(self._high))
        return flags

    def place(self, cells: Tensor, high: Tensor | None) -> None:
        """Puts agents and foods on given cells, and flags the agents with the high gain, if any."""
        self._ys[:], self._xs[:] = cells.numpy().transpose(2, 0, 1)
        if high is not None:
            self._high[:] = high.numpy()
        self._paint()

    def observe(self) -> Observations:
        """The current observations."""
        seen = self._unseen()
        self._run(observe, *seen)
        return self._observations(seen)

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Observations]:
        """Rewards (B N,), attacks on agents, food and blanks (3, B), and the observations after the step."""
        B, seen = self.num_envs, self._unseen()
        reward, tally = torch.empty(action.numel()), torch.empty(3, B)
        played = (action.view(B, -1).numpy(), self._grid, reward.view(B, -1).numpy(), tally.numpy())
        self._run(advance, self.config.size, self._payoffs, *played, *seen)
        return reward, tally, self._observations(seen)

    def close(self) -> None:
        """Ends the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def _paint(self) -> None:
        self._run(paint, self.config.num_agents, self._ys, self._xs, self._grid)

    def _unseen(self) -> tuple[Any, ...]:
        """The arguments of :func:`observe`, with a new output array."""
        c = self.config
        window = torch.empty(self.num_envs, c.num_agents, c.num_features, dtype=torch.int8).numpy()
        reach = c.reach
        options = (c.num_agents, c.degree, c.symmetric, -1 if reach is None else reach, c.view)
        edges = np.empty(self.num_envs, dtype=np.int64)
        return *options, self._ys, self._xs, self._high, window, self._pairs, edges

    def _observations(self, seen: tuple[Any, ...]) -> Observations:
        c, window, edges = self.config, seen[-3], seen[-1]
        ends = edges.cumsum()
        edge_index = torch.empty(2, int(ends[-1]), dtype=torch.int64)
        edge_attr = torch.empty(int(ends[-1]), 2 if c.edge_features else 0, dtype=torch.int8)
        found = (self._pairs, edges, ends)
        self._run(write_edges, c.num_agents, self._ys, self._xs, *found, edge_index.numpy(), edge_attr.numpy())
        x = torch.from_numpy(window).view(-1, c.num_features)
        return Observations(x, edge_index, edge_attr if c.edge_features else None, torch.from_numpy(edges))

    def _run(self, kernel: Any, *args: Any) -> None:
        """The kernel over all boards. An error in a thread is raised here."""
        if self._pool is None:
            kernel(0, self.num_envs, *args)
        else:
            for done in [self._pool.submit(kernel, lo, hi, *args) for lo, hi in self._parts]:
                done.result()
