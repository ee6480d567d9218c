"""CityFlow's traffic model without CityFlow: many episodes in one process, compiled by Numba."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ...checks import check_count
from ..files.flow import Flow
from ..files.road_network import RoadNetwork
from . import native_kernel as kernel
from .base import Shown, TripTable, VehicleTable
from .native_kernel import NONE, Scratch, State, World
from .phases import check_phases
from .schedule import Schedule, way_lengths

Array = npt.NDArray[Any]

FIRST_TABLE = 3600  # seconds of departures computed ahead


class NativeEngine:
    r"""CityFlow's semantics, to the bit: without lane changes, with lights, in steps of one second.

    Where CityFlow's behaviour is undefined: intersections without phases are always open, by the right of way. Vehicles
    that reach a lane in the same second at the same position keep the order in which they are updated.

    Args:
        network (RoadNetwork): The roads.
        flow (Flow): The vehicles.
        num_envs (int): Parallel episodes, B. They differ only by their lights.
        threads (int): Threads that share the episodes.
        seed (int): CityFlow's seed.

    The state is one record array per kind, with one row per episode, in :class:`~native_kernel.State`.
    """

    _schedule: Schedule
    _world: World
    _scratch: list[Scratch]

    def __init__(self, network: RoadNetwork, flow: Flow, num_envs: int = 1, threads: int = 1, seed: int = 0) -> None:
        check_count('num_envs', num_envs, 1)
        check_count('threads', threads, 1)
        check_count('seed', seed, 0)
        if seed >= 2**32:
            raise ValueError(f"'seed' must be less than 2**32 (got {seed})")
        self.network, self.flow, self.num_envs, self.seed = network, flow, num_envs, seed
        threads = min(threads, num_envs)
        self._parts = list(pairwise(np.linspace(0, num_envs, threads + 1).astype(int).tolist()))
        self._pool = ThreadPoolExecutor(threads - 1) if threads > 1 else None  # the calling thread takes part, too
        self._drivable, self._fan = _network_tables(network)
        self._tabulate(FIRST_TABLE)
        self.reset()

    @property
    def time(self) -> int:
        return int(self._state.episode['second'][0])

    def reset(self) -> None:
        self._state = _fresh_state(self.num_envs, self._world, self.network)

    def set_phases(self, phase: npt.NDArray[np.integer[Any]]) -> None:
        self._state.phase[:] = check_phases(phase, self.network, self.num_envs)

    def step(self, seconds: int = 1) -> None:
        check_count('seconds', seconds, 0)
        self._advance([(self._state.phase, seconds)])

    def play(self, shown: Sequence[Shown]) -> None:
        for _, seconds in shown:
            check_count('seconds', seconds, 0)
        self._advance([(check_phases(phase, self.network, self.num_envs), seconds) for phase, seconds in shown])

    def _advance(self, shown: Sequence[Shown]) -> None:
        until = self.time + sum(seconds for _, seconds in shown)
        if until > self._schedule.until and not self._all_due:
            self._look_further(until)
        own, *others = zip(self._parts, self._scratch, strict=True)
        played = [] if self._pool is None else [self._pool.submit(self._play_part, *part, shown) for part in others]
        self._play_part(*own, shown)
        for part in played:
            part.result()

    def _play_part(self, episodes: tuple[int, int], scratch: Scratch, shown: Sequence[Shown]) -> None:
        """Steps some of the episodes, on the calling thread."""
        for phase, seconds in shown:
            self._state.phase[slice(*episodes)] = phase[slice(*episodes)]
            kernel.play(*episodes, seconds, self._world, self._state, scratch)

    def lane_vehicle_count(self) -> npt.NDArray[np.int32]:
        return self._state.vehicles.copy()

    def lane_waiting_count(self) -> npt.NDArray[np.int32]:
        return self._state.waiting.copy()

    def waiting_seconds(self) -> npt.NDArray[np.float64]:
        return self._state.waited.astype(np.float64)

    def average_travel_time(self) -> npt.NDArray[np.float64]:
        due = self._num_due()
        if due == 0:
            return np.zeros(self.num_envs)
        finished = self._state.vehicle['finished'][:, :due].astype(np.int64)
        spent = np.where(finished == NONE, self.time, finished) - self._schedule.depart[:due]
        return spent.sum(1) / due

    def trips(self) -> TripTable:
        due, schedule = self._num_due(), self._schedule
        entry = schedule.entry[:due].copy()
        lanes, with_light = self.network.num_lanes, self._drivable['signal'] != NONE
        with_light[:lanes] = False
        way = way_lengths(
            schedule.path_ptr, schedule.path_drivable, self._drivable['length'].copy(),
            self._drivable['max_speed'].copy(), with_light, schedule.path[:due].copy(), self.flow.max_speed[entry],
        )  # fmt: skip
        return TripTable(
            vehicle_ids=tuple(schedule.ids[:due]),
            entry=entry,
            scheduled=schedule.depart[:due].astype(np.float64),
            entered=self._when('entered', due),
            left_signal=self._when('left_signal', due),
            left_last_signal=self._when('left_last_signal', due),
            finished=self._when('finished', due),
            num_signals=way[:, 0].astype(np.int64),
            length=way[:, 1],
            free_time=way[:, 2],
            length_to_last_signal=way[:, 3],
            free_time_to_last_signal=way[:, 4],
        )

    def vehicles(self, b: int) -> VehicleTable:
        if not 0 <= b < self.num_envs:
            raise ValueError(f"'b' must lie in [0, {self.num_envs - 1}] (got {b})")
        running = self._state.running[b, : self._state.episode['running'][b]].tolist()
        order = sorted(running, key=self._schedule.ids.__getitem__)
        found = self._state.vehicle[b][order]
        return VehicleTable(
            vehicle_ids=tuple(self._schedule.ids[v] for v in order),
            drivable=found['drivable'].astype(np.int64),
            distance=found['dis'].copy(),
            speed=found['speed'].copy(),
        )

    def state_dict(self) -> dict[str, Any]:
        arrays = {name: array.copy() for name, array in self._state._asdict().items()}
        return {'of': self._fingerprint(), 'until': self._schedule.until, **arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        missing = {'of', 'until', *State._fields} - set(state)
        if missing:
            raise ValueError(f"'state' must be one that state_dict() gave (it lacks {', '.join(sorted(missing))})")
        if state['of'] != self._fingerprint():
            raise ValueError("'state' is of another network, flow or seed. Build the engine as the saved one was.")
        if len(state['episode']) != self.num_envs:
            raise ValueError(
                f"'state' is of {len(state['episode'])} episodes, expected num_envs={self.num_envs}. Build the engine "
                f'with the num_envs of the saved one.'
            )
        known = self._schedule, self._world, self._scratch
        self._tabulate(int(state['until']))
        fresh = _fresh_state(self.num_envs, self._world, self.network)
        for name, array in fresh._asdict().items():
            if (state[name].shape, state[name].dtype) != (array.shape, array.dtype):
                self._schedule, self._world, self._scratch = known
                raise ValueError(
                    f"'state' must have '{name}' of shape {array.shape} and dtype {array.dtype} (got "
                    f'{state[name].shape}, {state[name].dtype})'
                )
            array[:] = state[name]
        self._state = fresh

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def _num_due(self) -> int:
        """Number of departed vehicles, the first of the table."""
        return int(np.searchsorted(self._schedule.depart, self.time))

    def _when(self, event: str, due: int) -> npt.NDArray[np.float64]:
        second = self._state.vehicle[event][:, :due].astype(np.float64)
        return np.where(second == NONE, np.nan, second)

    def _fingerprint(self) -> str:
        """Fingerprint of network, flow and seed."""
        digest = hashlib.blake2b(repr((self.seed, self.flow.one_road, self.flow.route)).encode(), digest_size=16)
        flow, network = self.flow, self.network
        for array in (
            flow.start, flow.end, flow.interval, flow.length, flow.max_pos_acc, flow.max_neg_acc, flow.usual_pos_acc,
            flow.usual_neg_acc, flow.min_gap, flow.max_speed, flow.headway, network.lane_length,
            network.lane_max_speed, network.link_start, network.link_end, network.link_length, network.phase_open,
            network.cross_distance,
        ):  # fmt: skip
            digest.update(array.tobytes())
        return digest.hexdigest()

    def _tabulate(self, until: int) -> None:
        """Computes the departures before a second, and the kernel's data about them."""
        self._schedule = Schedule(self.network, self.flow, self.seed, until)
        ends = np.where(self.flow.end == -1, until, self.flow.end)[~self.flow.dropped]
        self._all_due = bool((ends < until).all())  # no departures follow
        entry_lane, queue_ptr, queue = _queues(self.network, self._schedule)
        self._world = World(
            self._drivable,
            self.network.cross_distance,
            (self.network.cross_link + self.network.num_lanes).astype(np.int32),
            self.network.cross_twin.astype(np.int32),
            self._fan,
            self.network.phase_open,
            _drivers(self.flow, self._schedule, self._drivable),
            self._schedule.path_drivable.astype(np.int32),
            entry_lane,
            queue_ptr,
            queue,
        )
        self._scratch = [_scratch(self._world) for _ in self._parts]

    def _look_further(self, until: int) -> None:
        """Tabulates more departures; those known keep their numbers."""
        old, lanes = self._state, self._world.entry_lane
        self._tabulate(max(until, 2 * self._schedule.until))
        new = _fresh_state(self.num_envs, self._world, self.network)
        known = old.vehicle.shape[1]
        new.vehicle[:, :known], new.running[:, :known] = old.vehicle, old.running
        new.queued[:, np.searchsorted(self._file_rank(self._world.entry_lane), self._file_rank(lanes))] = old.queued
        kept = ('episode', 'lists', 'vehicles', 'waiting', 'waited', 'phase')
        self._state = new._replace(**{name: getattr(old, name) for name in kept})

    def _file_rank(self, lanes: Array) -> Array:
        return _inverse(self.network.road_lanes)[lanes]


def _inverse(permutation: Array) -> Array:
    inverse = np.empty_like(permutation)
    inverse[permutation] = np.arange(len(permutation))
    return inverse


def _network_tables(network: RoadNetwork) -> tuple[Array, Array]:
    """Drivables, and the links that leave each lane."""
    L, K = network.num_lanes, network.num_links
    table = np.zeros(L + K, dtype=kernel.DRIVABLE)
    lanes, links = table[:L], table[L:]
    lanes['length'], lanes['max_speed'] = network.lane_length, network.lane_max_speed
    lanes['start'] = lanes['end'] = lanes['movement'] = NONE
    light_at = np.full(network.num_intersections, NONE)
    light_at[network.signals] = np.arange(network.num_signals)
    lanes['signal'] = light_at[network.road_to[network.lane_road]]
    fan_ptr = np.concatenate([[0], np.cumsum(np.bincount(network.link_start, minlength=L))])
    lanes['row_lo'], lanes['row_hi'] = fan_ptr[:-1], fan_ptr[1:]
    links['length'], links['max_speed'] = network.link_length, kernel.LINK_SPEED
    links['start'], links['end'] = network.link_start, network.link_end
    links['row_lo'], links['row_hi'] = network.cross_ptr[:-1], network.cross_ptr[1:]
    links['rank'] = network.road_link_type[network.link_road_link]
    signal, movement = np.full((2, len(network.road_link_start)), NONE)
    for i, row in enumerate(network.signal_road_links):
        own = row[row >= 0]
        signal[own], movement[own] = i, np.arange(len(own))
    links['signal'], links['movement'] = signal[network.link_road_link], movement[network.link_road_link]
    fan = (np.argsort(network.link_start, kind='stable') + L).astype(np.int32)
    return table, fan


def _drivers(flow: Flow, schedule: Schedule, drivable: Array) -> Array:
    driver = np.zeros(schedule.num_vehicles, dtype=kernel.DRIVER)
    for name in (
        'length', 'max_pos_acc', 'max_neg_acc', 'usual_pos_acc', 'usual_neg_acc', 'min_gap', 'max_speed', 'headway'
    ):  # fmt: skip
        driver[name] = getattr(flow, name)[schedule.entry]
    speed = driver['max_speed']
    driver['sight'] = 0.5 * speed * speed / driver['usual_neg_acc'] + speed * 2.0
    driver['path_lo'], driver['path_hi'] = schedule.path_ptr[schedule.path], schedule.path_ptr[schedule.path + 1]
    driver['depart'], driver['priority'] = schedule.depart, schedule.priority
    last = np.full(len(schedule.paths), NONE)
    for p, path in enumerate(schedule.paths):
        lit = np.flatnonzero((drivable['start'][path] != NONE) & (drivable['signal'][path] != NONE))
        if len(lit):
            last[p] = schedule.path_ptr[p] + lit[-1] - 1  # the lane before the link
    driver['last_signal'] = last[schedule.path]
    return driver


def _queues(network: RoadNetwork, schedule: Schedule) -> tuple[Array, Array, Array]:
    """The lanes where vehicles enter, in file order, and the vehicles of each."""
    first = schedule.path_drivable[schedule.path_ptr[schedule.path]]
    rank = _inverse(network.road_lanes)[first]
    queue = np.argsort(rank, kind='stable')
    present, count = np.unique(rank, return_counts=True)
    ptr = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
    return network.road_lanes[present].astype(np.int32), ptr, queue.astype(np.int32)


def _fresh_state(num_envs: int, world: World, network: RoadNetwork) -> State:
    V, D, L = len(world.driver), len(world.drivable), network.num_lanes
    vehicle = np.zeros((num_envs, V), dtype=kernel.VEHICLE)
    for name in ('drivable', 'came_from', 'leader', 'ahead', 'behind', 'blocker', 'next_blocker', 'entered',
                 'left_signal', 'left_last_signal', 'finished'):  # fmt: skip
        vehicle[name] = NONE
    lists = np.zeros((num_envs, D), dtype=kernel.LIST)
    lists['head'] = lists['tail'] = NONE
    return State(
        episode=np.zeros(num_envs, dtype=kernel.EPISODE),
        vehicle=vehicle,
        running=np.zeros((num_envs, V), dtype=np.int32),
        lists=lists,
        vehicles=np.zeros((num_envs, L), dtype=np.int32),
        waiting=np.zeros((num_envs, L), dtype=np.int32),
        waited=np.zeros((num_envs, L), dtype=np.int64),
        queued=np.zeros((num_envs, len(world.entry_lane)), dtype=np.int32),
        phase=np.zeros((num_envs, network.num_signals), dtype=np.int32),
    )


def _scratch(world: World) -> Scratch:
    return Scratch(
        tick=np.zeros(1, dtype=np.int64),
        noted=np.zeros(len(world.drivable), dtype=np.int64),
        foe=np.zeros(len(world.cross_link), dtype=np.int32),
        foe_distance=np.zeros(len(world.cross_link), dtype=np.float64),
        moved=np.zeros(len(world.driver), dtype=np.int32),
    )
