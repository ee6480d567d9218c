"""The compiled half of :class:`~ltos_pyg.data.GraphReplay`: rings of records, and the kernels that read and write them.

Memory layout. A *frame* is one graph at one step. Each is stored once, in rings of contiguous rows: one row per
frame, one per node, one per edge. A frame that was acted on links to the frame that the actions led to, and each of its
nodes to the row of the same agent there. An n-step transition is a walk along these links, so overlapping transitions
share memory. The oldest frames are dropped as soon as any ring is full.

Counters never wrap: the frame with number ``f`` is in slot ``f % capacity``, and the node row at position ``p`` is in
row ``p % rows``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ltos_pyg.jit import jit

Array = np.ndarray[Any, Any]

SIMPLEX_ATOL = 1e-4  # as in `check_sharing`
# Status of a frame. WAITING: no action stored yet. LEFT: the episode goes on, but an agent left; n-step returns end
# there.
WAITING, RUNNING, TERMINATED, TRUNCATED, LEFT = -1, 0, 1, 2, 3
TOO_MANY_NODES, TOO_MANY_EDGES, BAD_EDGE, BAD_ID, BAD_ACTION, BAD_REWARD, BAD_SHARING = range(1, 8)  # findings

FRAME = np.dtype(
    [('node_at', 'i8'), ('edge_at', 'i8'), ('link', 'i8'), ('nodes', 'i4'), ('edges', 'i4'), ('status', 'i8')]
)
NODE = np.dtype([('id', 'i4'), ('action', 'i4'), ('next_row', 'i4'), ('reward', 'f4'), ('kept', 'f4')])
EDGE = {size: np.dtype([('sender', size), ('receiver', size), ('given', 'f4')]) for size in ('i2', 'i4')}


class Rings(NamedTuple):
    """All storage. Records are contiguous, so reading a frame touches few places in memory."""

    frame: Array  # FRAME: position of the first node and edge, number of the successor frame, sizes, status
    acted: Array  # frame numbers, in the order in which they were acted on
    node: Array  # NODE: `next_row` is the row of the same agent in the successor frame, -1 if it left
    edge: Array  # EDGE: ends counted inside the graph
    x: Array  # bytes, as are `mask` (of actions) and `edge_attr`
    mask: Array
    edge_attr: Array


# Content of `counters`: one array, so that a push is one kernel call, which an interrupt cannot split.
OLDEST, FRAMES, NODES, EDGES, ACTED_OLDEST, ACTED, OPEN = range(7)


class Parts(NamedTuple):
    """A batch of graphs as arrays for the kernels."""

    ptr: Array
    edge_ptr: Array
    edge_index: Array
    node_id: Array
    x: Array
    mask: Array
    edge_attr: Array


class Played(NamedTuple):
    """The actions on a batch and their outcome."""

    action: Array
    reward: Array
    given: Array
    kept: Array
    status: Array


@jit()
def copy_rows(source: Array, at: int, target: Array, to: int, rows: int, width: int) -> None:
    """Copies rows of ``width`` bytes between flat arrays; positions wrap at the end of either."""
    if width == 0 or rows == 0:
        return
    source_rows, target_rows = source.size // width, target.size // width
    at, to = at % source_rows, to % target_rows
    while rows > 0:
        run = min(rows, source_rows - at, target_rows - to)
        read = source[at * width : (at + run) * width]
        write = target[to * width : (to + run) * width]
        for i in range(run * width):
            write[i] = read[i]
        rows -= run
        at, to = (at + run) % source_rows, (to + run) % target_rows


@jit()
def same_rows(source: Array, other: Array, to: int, rows: int, width: int) -> bool:
    """Whether the first rows of ``source`` equal those at position ``to`` of the ring ``other``."""
    if width == 0 or rows == 0:
        return True
    other_rows = other.size // width
    at, to = 0, to % other_rows
    while rows > 0:
        run = min(rows, other_rows - to)
        a = source[at * width : (at + run) * width]
        b = other[to * width : (to + run) * width]
        difference = np.uint8(0)
        for i in range(run * width):
            difference |= a[i] ^ b[i]
        if difference != 0:
            return False
        rows -= run
        at, to = at + run, 0
    return True


@jit()
def tabulate(ids: Array, table: Array) -> bool:
    """Fills a hash table (-1: free) with the row of each id; False if an id comes twice."""
    last = table.size - 1  # the size is a power of two
    table[:] = -1
    for row in range(ids.size):
        slot = ((ids[row] * 2654435761) >> 12) & last
        while table[slot] >= 0:
            if ids[table[slot]] == ids[row]:
                return False
            slot = (slot + 1) & last
        table[slot] = row
    return True


@jit()
def look_up(wanted: int, ids: Array, table: Array) -> int:
    last = table.size - 1
    slot = ((wanted * 2654435761) >> 12) & last
    while table[slot] >= 0:
        if ids[table[slot]] == wanted:
            return table[slot]
        slot = (slot + 1) & last
    return -1


@jit()
def table_size(rows: int) -> int:
    size = 2
    while size < 2 * rows:
        size *= 2
    return size


@jit()
def unique(ids: Array, table: Array) -> bool:
    for row in range(1, ids.size):
        if ids[row] <= ids[row - 1]:
            return tabulate(ids, table[: table_size(ids.size)])
    return True


@jit()
def inspect(parts: Parts, max_nodes: int, max_edges: int, table: Array) -> tuple[int, int]:
    """Finds where each graph's edges start; returns a fault code (0: valid) and the graph or edge of the fault."""
    ptr, edge_index = parts.ptr, parts.edge_index
    e, num_edges = 0, edge_index.shape[1]
    for graph in range(ptr.size - 1):
        low, high = ptr[graph], ptr[graph + 1]
        if high < low or high - low > max_nodes:
            return TOO_MANY_NODES, graph
        parts.edge_ptr[graph] = e
        while e < num_edges and edge_index[0, e] < high:
            sender, receiver = edge_index[0, e], edge_index[1, e]
            if sender < low or receiver < low or receiver >= high or sender == receiver:
                return BAD_EDGE, e
            e += 1
        if e - parts.edge_ptr[graph] > max_edges:
            return TOO_MANY_EDGES, graph
        ids = parts.node_id[low:high]
        for row in range(ids.size):
            if ids[row] < 0 or ids[row] > 2147483647:
                return BAD_ID, graph
        if not unique(ids, table):
            return BAD_ID, graph
    parts.edge_ptr[ptr.size - 1] = e
    return (BAD_EDGE, e) if e < num_edges else (0, 0)


@jit()
def inspect_played(parts: Parts, played: Played, num_actions: int, share: bool) -> tuple[int, int]:
    """A fault code (0: valid), and the node of the fault."""
    for i in range(played.action.size):
        if played.action[i] < 0 or played.action[i] >= num_actions:
            return BAD_ACTION, i
        if not np.isfinite(played.reward[i]):
            return BAD_REWARD, i
    if not share:
        return 0, 0
    total = played.kept.copy()
    lowest = np.float32(0.0)
    for e in range(played.given.size):
        total[parts.edge_index[0, e]] += played.given[e]
        lowest = min(lowest, played.given[e])
    for i in range(total.size):
        lowest = min(lowest, played.kept[i])
        if not abs(total[i] - 1) <= SIMPLEX_ATOL:
            return BAD_SHARING, i
    return (0, 0) if lowest >= -SIMPLEX_ATOL else (BAD_SHARING, 0)


@jit()
def next_slot(row: int, ring: Array) -> int:
    """The next row of a ring; cheaper than a division."""
    return row + 1 if row + 1 < ring.size else 0


@jit()
def continues(rings: Rings, counters: Array, parts: Parts, widths: Array) -> bool:
    """Whether the batch equals the newest frames, one for each stream; if so, fills its ``edge_ptr``."""
    num_graphs = parts.ptr.size - 1
    first = rings.frame[(counters[FRAMES] - num_graphs) % rings.frame.size]
    num_nodes, num_edges = counters[NODES] - first.node_at, counters[EDGES] - first.edge_at
    if parts.ptr[num_graphs] != num_nodes or parts.edge_index.shape[1] != num_edges:
        return False
    row, edge_row, e = first.node_at % rings.node.size, first.edge_at % rings.edge.size, 0
    for b in range(num_graphs):
        frame = rings.frame[(counters[FRAMES] - num_graphs + b) % rings.frame.size]
        low = parts.ptr[b]
        if parts.ptr[b + 1] - low != frame.nodes:
            return False
        for i in range(low, low + frame.nodes):
            if parts.node_id[i] != rings.node[row].id:
                return False
            row = next_slot(row, rings.node)
        parts.edge_ptr[b] = e
        for _ in range(frame.edges):
            edge = rings.edge[edge_row]
            if parts.edge_index[0, e] - low != edge.sender or parts.edge_index[1, e] - low != edge.receiver:
                return False
            edge_row = next_slot(edge_row, rings.edge)
            e += 1
    parts.edge_ptr[num_graphs] = e
    return (
        same_rows(parts.x, rings.x, first.node_at, num_nodes, widths[0])
        and same_rows(parts.mask, rings.mask, first.node_at, num_nodes, widths[1])
        and same_rows(parts.edge_attr, rings.edge_attr, first.edge_at, num_edges, widths[2])
    )


@jit()
def write_frame(rings: Rings, counters: Array, parts: Parts, graph: int, widths: Array) -> None:
    frame = rings.frame[counters[FRAMES] % rings.frame.size]
    low, edge_low = parts.ptr[graph], parts.edge_ptr[graph]
    n, m = parts.ptr[graph + 1] - low, parts.edge_ptr[graph + 1] - edge_low
    at, edge_at = counters[NODES], counters[EDGES]
    frame.node_at, frame.edge_at, frame.nodes, frame.edges = at, edge_at, n, m
    frame.link, frame.status = -1, WAITING
    copy_rows(parts.x, low, rings.x, at, n, widths[0])
    copy_rows(parts.mask, low, rings.mask, at, n, widths[1])
    copy_rows(parts.edge_attr, edge_low, rings.edge_attr, edge_at, m, widths[2])
    row = at % rings.node.size
    for i in range(low, low + n):
        rings.node[row].id = parts.node_id[i]
        row = next_slot(row, rings.node)
    row = edge_at % rings.edge.size
    for e in range(edge_low, edge_low + m):
        rings.edge[row].sender = parts.edge_index[0, e] - low
        rings.edge[row].receiver = parts.edge_index[1, e] - low
        row = next_slot(row, rings.edge)
    counters[FRAMES] += 1
    counters[NODES] += n
    counters[EDGES] += m


@jit()
def write_next_rows(nodes: Array, at: int, ids: Array, new_ids: Array, table: Array) -> bool:
    """For each agent its row among ``new_ids``, -1 if it left; returns whether any did."""
    tabulated, left = False, False
    part = table[: table_size(new_ids.size)]
    row = at % nodes.size
    for i in range(ids.size):
        next_row = i if i < new_ids.size and new_ids[i] == ids[i] else -1
        if next_row < 0:
            if not tabulated:
                tabulated = tabulate(new_ids, part)
            next_row = look_up(ids[i], new_ids, part)
        nodes[row].next_row = next_row
        left |= next_row < 0
        row = next_slot(row, nodes)
    return left


@jit()
def write_played(rings: Rings, at: int, edge_at: int, parts: Parts, b: int, played: Played) -> None:
    share = played.kept.size > 0
    row = at % rings.node.size
    for i in range(parts.ptr[b], parts.ptr[b + 1]):
        node = rings.node[row]
        node.action, node.reward = played.action[i], played.reward[i]
        if share:
            node.kept = played.kept[i]
        row = next_slot(row, rings.node)
    if not share:
        return
    row = edge_at % rings.edge.size
    for e in range(parts.edge_ptr[b], parts.edge_ptr[b + 1]):
        rings.edge[row].given = played.given[e]
        row = next_slot(row, rings.edge)


@jit()
def evict(rings: Rings, counters: Array, room: Array) -> None:
    """Moves the oldest frame forward until that many frames, nodes and edges fit."""
    while counters[OLDEST] < counters[FRAMES]:
        frame = rings.frame[counters[OLDEST] % rings.frame.size]
        if (
            counters[FRAMES] + room[0] - counters[OLDEST] <= rings.frame.size
            and counters[NODES] + room[1] - frame.node_at <= rings.node.size
            and counters[EDGES] + room[2] - frame.edge_at <= rings.edge.size
        ):
            break
        counters[OLDEST] += 1
    while (
        counters[ACTED_OLDEST] < counters[ACTED]
        and rings.acted[counters[ACTED_OLDEST] % rings.acted.size] < counters[OLDEST]
    ):
        counters[ACTED_OLDEST] += 1


@jit()
def commit_step(
    rings: Rings,
    counters: Array,
    parts: Parts,
    first: Parts,
    last: Parts,
    played: Played,
    room: Array,
    widths: Array,
    table: Array,
) -> None:
    """One push: makes room, stores what is new, and links the frames acted on to it.

    New frames are the ``last`` graphs of the episodes that ended, then ``first``, the next graph of each stream.
    """
    num_graphs = parts.ptr.size - 1
    evict(rings, counters, room)
    if counters[OPEN] == 0:
        for b in range(num_graphs):
            write_frame(rings, counters, parts, b, widths)
    acted, end = counters[FRAMES] - num_graphs, counters[FRAMES]
    for b in range(num_graphs):
        if played.status[b] != RUNNING:
            write_frame(rings, counters, last, b, widths)
    for b in range(num_graphs):
        write_frame(rings, counters, first, b, widths)
    for b in range(num_graphs):
        frame = rings.frame[(acted + b) % rings.frame.size]
        frame.status, frame.link = played.status[b], counters[FRAMES] - num_graphs + b
        after = first
        if frame.status != RUNNING:
            frame.link, after = end, last
            end += 1
        write_played(rings, frame.node_at, frame.edge_at, parts, b, played)
        ids, new_ids = parts.node_id[parts.ptr[b] : parts.ptr[b + 1]], after.node_id[after.ptr[b] : after.ptr[b + 1]]
        left = write_next_rows(rings.node, frame.node_at, ids, new_ids, table)
        if left and frame.status == RUNNING:
            frame.status = LEFT
        rings.acted[counters[ACTED] % rings.acted.size] = acted + b
        counters[ACTED] += 1
    counters[OPEN] = 1


@jit()
def cut_streams(rings: Rings, counters: Array, num_graphs: int) -> None:
    """Ends the running episodes at their current frame."""
    if counters[OPEN] == 0:
        return
    for k in range(counters[ACTED] - num_graphs, counters[ACTED]):
        frame = rings.frame[rings.acted[k % rings.acted.size] % rings.frame.size]
        if frame.status == RUNNING:
            frame.status = TRUNCATED
    counters[OPEN] = 0


@jit()
def is_complete(rings: Rings, number: int, n_step: int) -> bool:
    for _ in range(n_step):
        frame = rings.frame[number % rings.frame.size]
        if frame.status != RUNNING:
            return frame.status != WAITING
        number = frame.link
    return True


@jit()
def late_frames(rings: Rings, counters: Array, n_step: int, num_graphs: int) -> tuple[int, Array]:
    """Only the last ``n_step - 1`` pushes can lack an n-step future: where they start, and which of them have one."""
    start = max(counters[ACTED_OLDEST], counters[ACTED] - (n_step - 1) * num_graphs)
    complete = np.empty(counters[ACTED] - start, np.int64)
    count = 0
    for k in range(start, counters[ACTED]):
        if is_complete(rings, rings.acted[k % rings.acted.size], n_step):
            complete[count] = k
            count += 1
    return start, complete[:count]


@jit()
def plan_walks(rings: Rings, counters: Array, draw: Array, start: int, late: Array, n_step: int, plan: Array) -> None:
    """Rows of ``plan``: frame, last frame, steps between; ptr and edge_ptr of both batches (one entry more)."""
    early = start - counters[ACTED_OLDEST]
    plan[3:, 0] = 0
    for i in range(draw.size):
        k = counters[ACTED_OLDEST] + draw[i] if draw[i] < early else late[draw[i] - early]
        number = rings.acted[k % rings.acted.size]
        frame = rings.frame[number % rings.frame.size]
        plan[0, i] = number
        plan[3, i + 1] = plan[3, i] + frame.nodes
        plan[4, i + 1] = plan[4, i] + frame.edges
        steps = 0
        while steps < n_step:
            steps += 1
            status, number = frame.status, frame.link
            frame = rings.frame[number % rings.frame.size]
            if status != RUNNING:
                break
        plan[1, i], plan[2, i] = number, steps
        plan[5, i + 1] = plan[5, i] + frame.nodes
        plan[6, i + 1] = plan[6, i] + frame.edges


@jit()
def read_frames(
    rings: Rings,
    frames: Array,
    out: Parts,
    widths: Array,
    graph_of_node: Array,
    share: bool,
    given: Array,
    kept: Array,
) -> None:
    """Concatenates graphs; with ``share``, which needs frames that were acted on, their weights too."""
    for g in range(frames.size):
        frame = rings.frame[frames[g] % rings.frame.size]
        low, edge_low, n, m = out.ptr[g], out.edge_ptr[g], frame.nodes, frame.edges
        copy_rows(rings.x, frame.node_at, out.x, low, n, widths[0])
        copy_rows(rings.mask, frame.node_at, out.mask, low, n, widths[1])
        copy_rows(rings.edge_attr, frame.edge_at, out.edge_attr, edge_low, m, widths[2])
        row = frame.node_at % rings.node.size
        for i in range(low, low + n):
            graph_of_node[i] = g
            out.node_id[i] = rings.node[row].id
            if share:
                kept[i] = rings.node[row].kept
            row = next_slot(row, rings.node)
        row = frame.edge_at % rings.edge.size
        for e in range(edge_low, edge_low + m):
            out.edge_index[0, e] = rings.edge[row].sender + low
            out.edge_index[1, e] = rings.edge[row].receiver + low
            if share:
                given[e] = rings.edge[row].given
            row = next_slot(row, rings.edge)


@jit()
def read_returns(
    rings: Rings,
    plan: Array,
    gamma: float,
    action: Array,
    reward: Array,
    discount: Array,
    next_row: Array,
) -> None:
    """n-step sums, discounts and the agents' rows in the successor, along the links."""
    for g in range(plan.shape[1] - 1):
        first = rings.frame[plan[0, g] % rings.frame.size]
        for i in range(plan[3, g], plan[3, g + 1]):
            frame, row = first, i - plan[3, g]
            action[i] = rings.node[(first.node_at + row) % rings.node.size].action
            total, factor = 0.0, 1.0
            for _ in range(plan[2, g]):
                node = rings.node[(frame.node_at + row) % rings.node.size]
                total += factor * node.reward
                row = node.next_row
                factor = 0.0 if row < 0 or frame.status == TERMINATED else factor * gamma
                if row < 0:
                    break
                frame = rings.frame[frame.link % rings.frame.size]
            reward[i], discount[i] = total, factor
            next_row[i] = row + plan[5, g] if row >= 0 else 0
