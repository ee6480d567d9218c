"""One second of CityFlow's simulation, compiled: without lane changes, with lights, always with a step of one second.

A *drivable* is a lane ``d < L`` or lane link ``d - L``. A vehicle's path is a row of drivables, fixed from the start;
``place`` is the vehicle's position in it. Each drivable holds its vehicles as a list from the front to the back. All
decisions of a second use the state at its start; ``next_*`` fields hold their results.

The order of every sum and product matters: the results equal CityFlow's to the bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..jit import bare_jit

Array = npt.NDArray[Any]

NONE = -1  # no vehicle, no drivable
NEVER = np.int32(2**31 - 1)  # entry time of a vehicle that is not on a link
TURN_SPEED = 8.3333  # metres per second
YIELD_GAP = 5.0  # metres before a crossing at which a yielding vehicle stops
MOVING_ON = 2.0  # metres per second: the last vehicle of the next lane does not block if it is as fast
LINK_SPEED = 10000.0  # links have no limit of their own
WAITING_SPEED = 0.1  # metres per second: slower is waiting
NO_SPEED = -100.0  # no possible speed

# Constant data. One record per drivable:
DRIVABLE = np.dtype(
    [
        ('length', 'f8'),
        ('max_speed', 'f8'),
        ('start', 'i4'),  # of a link: its lanes
        ('end', 'i4'),
        ('row_lo', 'i4'),  # of a link: its row of crossings; of a lane: its row of ``fan``, the links that leave it
        ('row_hi', 'i4'),
        ('rank', 'i4'),  # of a link: 3 straight, 2 left, 1 right
        ('signal', 'i4'),  # signal of the link, or at the lane's end; NONE: always open
        ('movement', 'i4'),  # of a link: its road link's number at the signal
    ],
    align=True,
)
DRIVER = np.dtype(
    [
        ('length', 'f8'),
        ('max_pos_acc', 'f8'),
        ('max_neg_acc', 'f8'),
        ('usual_pos_acc', 'f8'),
        ('usual_neg_acc', 'f8'),
        ('min_gap', 'f8'),
        ('max_speed', 'f8'),
        ('headway', 'f8'),
        ('sight', 'f8'),  # metres of look-ahead
        ('path_lo', 'i4'),
        ('path_hi', 'i4'),
        ('last_signal', 'i4'),  # position of the last lane that ends at lights; NONE
        ('depart', 'i4'),
        ('priority', 'i4'),
    ],
    align=True,
)

# State. One record per episode and vehicle:
VEHICLE = np.dtype(
    [
        ('dis', 'f8'),  # front, from the start of the drivable
        ('speed', 'f8'),
        ('gap', 'f8'),  # to the leader; without one, the last gap
        ('next_dis', 'f8'),
        ('next_speed', 'f8'),
        ('place', 'i4'),  # on its path, as the next
        ('next_place', 'i4'),
        ('drivable', 'i4'),
        ('came_from', 'i4'),  # drivable before this one, which may be earlier than the path's last
        ('leader', 'i4'),
        ('ahead', 'i4'),  # neighbours in the drivable's list
        ('behind', 'i4'),
        ('blocker', 'i4'),  # vehicle that it yielded to in the last second
        ('next_blocker', 'i4'),
        ('link_second', 'i4'),  # when it entered its link; NEVER on lanes
        ('entered', 'i4'),  # seconds of its life; NONE before
        ('left_signal', 'i4'),  # when it last left a lane that leads to lights
        ('left_last_signal', 'i4'),
        ('finished', 'i4'),
    ],
    align=True,
)
LIST = np.dtype([('head', 'i4'), ('tail', 'i4')], align=True)
EPISODE = np.dtype([('second', 'i8'), ('running', 'i8'), ('finished', 'i8'), ('travel', 'i8')], align=True)


class World(NamedTuple):
    """Constant data, shared by all episodes and threads."""

    drivable: Array  # (D,) DRIVABLE
    cross_distance: Array  # (X,) float64 along the link
    cross_link: Array  # (X,) int32 drivables: the other link
    cross_twin: Array  # (X,) int32 the same crossing in the other's row
    fan: Array  # (K,) int32 drivables: the links that leave each lane
    phase_open: Array  # (I, P, M) bool
    driver: Array  # (V,) DRIVER
    path: Array  # (*,) int32 drivables
    entry_lane: Array  # (E,) int32 lanes where vehicles enter, in file order
    queue_ptr: Array  # (E + 1,) int64
    queue: Array  # (V,) int32 vehicles by entry lane, in the order in which they enter


class State(NamedTuple):
    """The state; one row per episode."""

    episode: Array  # (B,) EPISODE
    vehicle: Array  # (B, V) VEHICLE
    running: Array  # (B, V) int32 the first ``episode.running``: vehicles on the road
    lists: Array  # (B, D) LIST
    vehicles: Array  # (B, L) int32 vehicles per lane
    waiting: Array  # (B, L) int32 waiting vehicles per lane
    waited: Array  # (B, L) int64 waiting vehicles, summed over seconds
    queued: Array  # (B, E) int32 vehicles entered per entry lane
    phase: Array  # (B, I) int32


class Scratch(NamedTuple):
    """Per thread: the next vehicle at each crossing of a link, computed when first needed in a second."""

    tick: Array  # (1,) int64 counts seconds, by twos
    noted: Array  # (D,) int64 tick at which a vehicle was about to pass the link; plus one once its row is written
    foe: Array  # (X,) int32
    foe_distance: Array  # (X,) float64
    moved: Array  # (V,) int32


@bare_jit
def play(lo: int, hi: int, seconds: int, world: World, state: State, scratch: Scratch) -> None:
    """Steps the episodes ``[lo, hi)``."""
    for b in range(lo, hi):
        for _ in range(seconds):
            _second(
                world, scratch, state.episode[b], state.vehicle[b], state.running[b], state.lists[b], state.vehicles[b],
                state.waiting[b], state.waited[b], state.queued[b], state.phase[b],
            )  # fmt: skip


@bare_jit
def _second(
    world: World, scratch: Scratch, episode: Any, vehicle: Array, running: Array, lists: Array, count: Array,
    waiting: Array, waited: Array, queued: Array, phase: Array,
) -> None:  # fmt: skip
    L = count.shape[0]
    for lane in range(L):
        waited[lane] += waiting[lane]
        waiting[lane] = 0
    _enter(world, episode, vehicle, running, lists, count, queued)
    scratch.tick[0] += 2
    for r in range(episode.running):
        _mark(world, scratch, running[r], vehicle, lists, phase)
    moved = 0
    for r in range(episode.running):
        v = running[r]
        me = vehicle[v]
        me.next_blocker = NONE
        _move(world.drivable, world.path, world.driver[v], me, _speed(world, scratch, v, vehicle, lists, phase))
        if me.next_place != me.place:
            scratch.moved[moved] = v
            moved += 1
    for r in range(moved):
        _leave(world, scratch.moved[r], vehicle, lists, count, episode.second)
    for r in range(moved):
        _arrive(world, scratch.moved[r], vehicle, lists, count, episode.second)
    _commit(world, episode, vehicle, running, waiting)
    for r in range(episode.running):
        _find_leader(world, running[r], vehicle, lists)
    episode.second += 1


@bare_jit
def _enter(
    world: World, episode: Any, vehicle: Array, running: Array, lists: Array, count: Array, queued: Array
) -> None:
    """The first in the queue of each lane enters, if the lane's last vehicle has left room."""
    for e in range(world.entry_lane.shape[0]):
        q = world.queue_ptr[e] + queued[e]
        if q == world.queue_ptr[e + 1]:
            continue
        v, lane = world.queue[q], world.entry_lane[e]
        driver = world.driver[v]
        if driver.depart > episode.second:
            continue
        tail = lists[lane].tail
        if tail != NONE and not vehicle[tail].dis > world.driver[tail].length + driver.min_gap:
            continue
        me = vehicle[v]
        me.dis, me.speed, me.gap = 0.0, 0.0, 0.0
        me.place = me.next_place = driver.path_lo
        me.drivable, me.came_from = lane, NONE
        me.leader = me.blocker = NONE
        me.link_second = NEVER
        me.entered = episode.second
        _append(v, tail, vehicle, lists[lane])
        count[lane] += 1
        queued[e] += 1
        running[episode.running] = v
        episode.running += 1
        _find_leader(world, v, vehicle, lists)


@bare_jit
def _append(v: int, after: int, vehicle: Array, held: Any) -> None:
    """Inserts v into a list behind ``after``; in front if that is NONE."""
    behind = vehicle[after].behind if after != NONE else held.head
    vehicle[v].ahead, vehicle[v].behind = after, behind
    if after != NONE:
        vehicle[after].behind = v
    else:
        held.head = v
    if behind != NONE:
        vehicle[behind].ahead = v
    else:
        held.tail = v


@bare_jit
def _speed(world: World, scratch: Scratch, v: int, vehicle: Array, lists: Array, phase: Array) -> float:
    """The speed at the end of the second; below 0: it stops within the second."""
    me, driver = vehicle[v], world.driver[v]
    here = world.drivable[me.drivable]
    speed = min(driver.max_speed, me.speed + driver.max_pos_acc)
    speed = min(speed, here.max_speed)
    if me.leader != NONE:
        speed = min(speed, _follow(me, driver, vehicle[me.leader], world.driver[me.leader]))
    if here.start != NONE or (me.place + 1 < driver.path_hi and here.length - me.dis <= driver.sight):
        speed = min(speed, _at_junction(world, scratch, v, vehicle, lists, phase))
    return max(speed, me.speed - driver.max_neg_acc)


@bare_jit
def _follow(me: Any, driver: Any, leader: Any, leads: Any) -> float:
    """The speed that the leader allows."""
    speed = min(
        _no_collision(leader.speed, leads.max_neg_acc, me.speed, driver.max_neg_acc, me.gap, 0.0),
        _no_collision(leader.speed, leads.usual_neg_acc, me.speed, driver.usual_neg_acc, me.gap, driver.min_gap),
    )
    pull = (me.gap + (leader.speed + max(me.speed - leader.speed, 0.0) / 2.0) - me.speed / 2.0) / (driver.headway + 0.5)
    return min(speed, pull)


@bare_jit
def _no_collision(lead: float, lead_brake: float, own: float, own_brake: float, gap: float, target: float) -> float:
    """The speed from which both vehicles can brake to a stop and keep the target gap."""
    c = own / 2.0 + target - 0.5 * lead * lead / lead_brake - gap
    a = 0.5 / own_brake
    b = 0.5
    if b * b < 4.0 * a * c:
        return NO_SPEED
    return min(0.5 / a * (np.sqrt(b * b - 4.0 * a * c) - b), 2.0 * lead - lead_brake + 2.0 * (gap - target))


@bare_jit
def _stop(speed: float, driver: Any, distance: float) -> float:
    """The speed from which it can stop at a distance."""
    faster = speed + driver.usual_pos_acc
    if (speed + faster) / 2.0 + faster * faster / driver.usual_neg_acc / 2.0 < distance:
        return faster
    k = 2.0 * distance / (speed + 1e-8)
    if k >= 1.0:
        return speed - speed / (np.floor(k) if k < 2147483648.0 else -2147483648.0)  # as a 32-bit integer
    return speed - speed / k


@bare_jit
def _brake(speed: float, driver: Any) -> float:
    """Stopping distance in metres at the hardest braking."""
    return 0.5 * speed * speed / driver.max_neg_acc


@bare_jit
def _is_open(phase_open: Array, link: Any, phase: Array) -> bool:
    return link.signal == NONE or phase_open[link.signal, phase[link.signal], link.movement]


@bare_jit
def _at_junction(world: World, scratch: Scratch, v: int, vehicle: Array, lists: Array, phase: Array) -> float:
    """The speed that lights, the lane behind the junction and crossing traffic allow."""
    me, driver = vehicle[v], world.driver[v]
    here = world.drivable[me.drivable]
    speed = driver.max_speed
    if here.start != NONE:
        d, link, at = me.drivable, here, me.dis
    else:
        d = world.path[me.place + 1]
        link = world.drivable[d]
        remaining = here.length - me.dis
        at = -remaining
        clear = _is_open(world.phase_open, link, phase) and _has_room(world, driver, link.end, vehicle, lists)
        if not clear and not _brake(me.speed, driver) > remaining:
            return min(speed, _stop(me.speed, driver, remaining))
        if link.rank < 3:
            speed = min(speed, TURN_SPEED)
    tick = scratch.tick[0]
    for x in range(link.row_lo, link.row_hi):
        other = world.cross_link[x]
        if scratch.noted[other] < tick or world.cross_distance[x] < at:
            continue
        if scratch.noted[other] == tick:
            _note(world, scratch, other, vehicle, lists, phase)
        twin = world.cross_twin[x]
        foe = scratch.foe[twin]
        if foe == NONE:
            continue
        ahead = world.cross_distance[x] - at
        foe_rank = world.drivable[other].rank
        if not _may_pass(world, v, foe, link.rank, foe_rank, ahead, scratch.foe_distance[twin], vehicle):
            me.next_blocker = foe
            return min(speed, _stop(me.speed, driver, ahead - YIELD_GAP))
    return speed


@bare_jit
def _has_room(world: World, driver: Any, lane: int, vehicle: Array, lists: Array) -> bool:
    """Whether the lane behind a link can be entered."""
    tail = lists[lane].tail
    if tail == NONE:
        return True
    last = vehicle[tail]
    return last.dis > world.driver[tail].length + driver.length or last.speed >= MOVING_ON


@bare_jit
def _mark(world: World, scratch: Scratch, v: int, vehicle: Array, lists: Array, phase: Array) -> None:
    """Marks the links that v is about to pass, is on, or has left with its front only."""
    me, driver = vehicle[v], world.driver[v]
    if world.drivable[me.drivable].start != NONE:
        scratch.noted[me.drivable] = scratch.tick[0]
        return
    held = lists[me.drivable]
    if held.head == v and _enters_next(world, me, driver, phase):
        scratch.noted[world.path[me.place + 1]] = scratch.tick[0]
    if held.tail == v and me.came_from != NONE:
        scratch.noted[me.came_from] = scratch.tick[0]


@bare_jit
def _enters_next(world: World, me: Any, driver: Any, phase: Array) -> bool:
    """Whether a vehicle on a lane has a link ahead with a green light."""
    return me.place + 1 < driver.path_hi and _is_open(world.phase_open, world.drivable[world.path[me.place + 1]], phase)


@bare_jit
def _note(world: World, scratch: Scratch, d: int, vehicle: Array, lists: Array, phase: Array) -> None:
    """Writes the next vehicle at each crossing of a link, and its distance (negative: past it)."""
    scratch.noted[d] = scratch.tick[0] + 1
    link = world.drivable[d]
    last, on, coming = lists[link.end].tail, lists[d].head, lists[link.start].head
    if last != NONE and vehicle[last].came_from != d:
        last = NONE
    if coming != NONE and not (
        _enters_next(world, vehicle[coming], world.driver[coming], phase) and world.path[vehicle[coming].place + 1] == d
    ):
        coming = NONE
    x = link.row_hi - 1
    if last != NONE:  # its rear may still be on crossings
        rear = vehicle[last].dis - world.driver[last].length
        while x >= link.row_lo and (link.length - world.cross_distance[x]) + rear < 0.0:
            scratch.foe[x] = last
            scratch.foe_distance[x] = -(vehicle[last].dis + (link.length - world.cross_distance[x]))
            x -= 1
    while on != NONE and x >= link.row_lo:
        dis, length = vehicle[on].dis, world.driver[on].length
        while x >= link.row_lo:
            distance = world.cross_distance[x]
            if dis > distance and dis - distance - length > 0.0:
                break
            scratch.foe[x] = on
            scratch.foe_distance[x] = distance - dis
            x -= 1
        on = vehicle[on].behind
    remaining = world.drivable[link.start].length - vehicle[coming].dis if coming != NONE else 0.0
    while x >= link.row_lo:
        scratch.foe[x] = coming
        scratch.foe_distance[x] = remaining + world.cross_distance[x]
        x -= 1


@bare_jit
def _can_yield(speed: float, driver: Any, distance: float) -> bool:
    if distance > 0.0:
        return _brake(speed, driver) < distance - YIELD_GAP
    return distance < 0.0 and distance + driver.length < 0.0


@bare_jit
def _may_pass(
    world: World, v: int, foe: int, rank: int, foe_rank: int, ahead: float, foe_ahead: float, vehicle: Array
) -> bool:
    """Whether v goes first at a crossing that lies ``ahead`` of it."""
    me, driver, other, drives = vehicle[v], world.driver[v], vehicle[foe], world.driver[foe]
    if not _can_yield(me.speed, driver, ahead):
        return True
    if _can_yield(other.speed, drives, foe_ahead) and _goes_first(
        me, driver, rank, ahead, other, drives, foe_rank, foe_ahead
    ):
        return True
    return _is_deadlock(foe, vehicle)


@bare_jit
def _goes_first(
    me: Any, driver: Any, rank: int, ahead: float, other: Any, drives: Any, foe_rank: int, foe_ahead: float
) -> bool:
    """The right of way between two vehicles that could both yield."""
    if rank > foe_rank:
        return True
    if foe_ahead <= 0.0:
        return foe_ahead + drives.length < 0.0
    own_steps = _steps(me.speed, driver, rank, ahead)
    foe_steps = _steps(other.speed, drives, foe_rank, foe_ahead)
    if rank < foe_rank or own_steps != foe_steps:
        return foe_steps > own_steps
    if me.link_second != other.link_second:
        return me.link_second < other.link_second
    if ahead != foe_ahead:
        return ahead < foe_ahead
    return driver.priority > drives.priority


@bare_jit
def _steps(speed: float, driver: Any, rank: int, distance: float) -> float:
    """Seconds for a distance at the usual acceleration."""
    if distance <= 0.0:
        return 0.0
    target = TURN_SPEED if rank < 3 else driver.max_speed
    acc = driver.usual_pos_acc
    if speed > target:
        return np.ceil(distance / speed)
    k = np.floor((target - speed) / acc)
    reached = speed + k * acc
    until_target = (speed + reached) * k / 2.0
    if reached < target:
        until_target += (reached + target) / 2.0
    if until_target > distance:
        return np.ceil((np.sqrt(speed * speed + 2.0 * acc * distance) - speed) / acc)
    return np.ceil((target - speed) / acc) + np.ceil((distance - until_target) / target)


@bare_jit
def _is_deadlock(foe: int, vehicle: Array) -> bool:
    """Whether the chain of vehicles that yield to each other, from ``foe`` on, is a cycle."""
    slow, fast = foe, foe
    while fast != NONE and vehicle[fast].blocker != NONE:
        slow = vehicle[slow].blocker
        fast = vehicle[vehicle[fast].blocker].blocker
        if slow == fast:
            return True
    return False


@bare_jit
def _move(drivable: Array, path: Array, driver: Any, me: Any, speed: float) -> None:
    """Computes its position after the second; ``path_hi`` means out of the network."""
    if speed < 0.0:
        dis = me.dis + 0.5 * me.speed * me.speed / driver.max_neg_acc
        speed = 0.0
    else:
        dis = me.dis + (me.speed + speed) / 2.0
    place = me.place
    while place < driver.path_hi and dis > drivable[path[place]].length:
        dis -= drivable[path[place]].length
        place += 1
    me.next_dis, me.next_speed, me.next_place = dis, speed, place


@bare_jit
def _leave(world: World, v: int, vehicle: Array, lists: Array, count: Array, second: int) -> None:
    """Removes v from its list."""
    me, driver = vehicle[v], world.driver[v]
    held = lists[me.drivable]
    if me.ahead != NONE:
        vehicle[me.ahead].behind = me.behind
    else:
        held.head = me.behind
    if me.behind != NONE:
        vehicle[me.behind].ahead = me.ahead
    else:
        held.tail = me.ahead
    if me.drivable < count.shape[0]:
        count[me.drivable] -= 1
    for place in range(me.place, me.next_place):
        passed = world.drivable[world.path[place]]
        if passed.start == NONE and passed.signal != NONE:
            me.left_signal = second
    if me.place <= driver.last_signal < me.next_place:
        me.left_last_signal = second
    if me.next_place == driver.path_hi:
        me.finished = second


@bare_jit
def _arrive(world: World, v: int, vehicle: Array, lists: Array, count: Array, second: int) -> None:
    """Appends v to its new list; of vehicles that arrive in the same second, the foremost comes first."""
    me = vehicle[v]
    if me.finished != NONE:
        return
    L = count.shape[0]
    me.came_from = me.drivable
    me.drivable = world.path[me.next_place]
    me.link_second = NEVER if me.drivable < L else second
    if me.drivable < L:
        count[me.drivable] += 1
    after = lists[me.drivable].tail
    while after != NONE and vehicle[after].place != vehicle[after].next_place and vehicle[after].next_dis < me.next_dis:
        after = vehicle[after].ahead
    _append(v, after, vehicle, lists[me.drivable])


@bare_jit
def _commit(world: World, episode: Any, vehicle: Array, running: Array, waiting: Array) -> None:
    """Applies the decisions, and counts waiting vehicles."""
    kept = 0
    for r in range(episode.running):
        v = running[r]
        me = vehicle[v]
        if me.finished != NONE:
            episode.finished += 1
            episode.travel += me.finished - world.driver[v].depart
            continue
        running[kept] = v
        kept += 1
        me.dis, me.speed, me.place = me.next_dis, me.next_speed, me.next_place
        blocker = me.next_blocker
        me.blocker = NONE if blocker != NONE and vehicle[blocker].finished != NONE else blocker
        if me.drivable < waiting.shape[0] and me.speed < WAITING_SPEED:
            waiting[me.drivable] += 1
    episode.running = kept


@bare_jit
def _find_leader(world: World, v: int, vehicle: Array, lists: Array) -> None:
    """The leader of v and its distance: in its list, or else on its path within its look-ahead."""
    me = vehicle[v]
    if me.ahead != NONE:
        me.leader = me.ahead
        lead = vehicle[me.ahead]
        me.gap = lead.dis - world.driver[me.ahead].length - me.dis
        return
    me.leader = NONE
    driver = world.driver[v]
    remaining = world.drivable[me.drivable].length - me.dis
    for place in range(me.place + 1, driver.path_hi):
        d = world.path[place]
        here = world.drivable[d]
        if here.start == NONE:
            tail = lists[d].tail
            if tail != NONE:
                me.leader, me.gap = tail, remaining + vehicle[tail].dis - world.driver[tail].length
                return
        else:  # all links that leave the lane count: they overlap at first
            lane = world.drivable[here.start]
            gap = np.inf
            for f in range(lane.row_lo, lane.row_hi):
                tail = lists[world.fan[f]].tail
                if tail != NONE and remaining + vehicle[tail].dis - world.driver[tail].length < gap:
                    gap = remaining + vehicle[tail].dis - world.driver[tail].length
                    me.leader = tail
            if me.leader != NONE:
                me.gap = gap
                return
        remaining += here.length
        if remaining > driver.sight:
            return
