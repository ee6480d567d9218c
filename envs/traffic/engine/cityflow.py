"""CityFlow itself behind the interface of the native engine; needs the ``cityflow`` module."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...checks import check_count
from ..files.flow import Flow
from ..files.network import RoadNetwork
from .base import Shown, TripTable, VehicleTable
from .cityflow_trips import LanePath, TripRecorder
from .phases import check_phases
from .schedule import Schedule, way_lengths

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

FIRST_PLAN = 3600  # seconds
LINK_SPEED = 10_000.0  # metres per second: lane links have no limit of their own
VIEWER_ROADNET, VIEWER_REPLAY = 'viewer_roadnet.json', 'viewer_replay.txt'  # what CityFlow's web page loads
REST = 0.2  # seconds; an engine deleted while its threads are still leaving a step hangs


class CityFlowEngine:
    """B episodes in CityFlow's own engine, `"CityFlow: A Multi-Agent Reinforcement Learning Environment for Large Scale
    City Traffic Scenario" <https://arxiv.org/abs/1905.05217>`_: one engine per episode, stepped one after the other.

    CityFlow aborts the process, or hangs, on input that it does not expect. Here the phases are checked first, the
    files have been read by our own loader, and engines are reused, and deleted only after a pause. Trips and waiting
    times, which it does not report, are recorded after each step.

    It cannot save its state exactly: a saved state holds the phases shown so far, and loading replays them.

    Args:
        network (RoadNetwork): Its file must still be there.
        flow (Flow): Its file must still be there. CityFlow cannot drive one-road routes.
        num_envs (int): Parallel episodes, B.
        threads (int): CityFlow's threads for each episode.
        seed (int): CityFlow's seed, the same for all episodes.
        record (bool): Record trips and waiting times. Without it, steps are faster, and :meth:`trips` and
            :meth:`waiting_seconds` are not available.
        viewer (Path, optional): A folder in which CityFlow writes the files of its own viewer, of a single episode.

    Raises:
        ImportError: If the module is missing.
        ValueError: If an option is out of range, or CityFlow reads the files differently.
    """

    def __init__(
        self,
        network: RoadNetwork,
        flow: Flow,
        num_envs: int = 1,
        *,
        threads: int = 1,
        seed: int = 0,
        record: bool = True,
        viewer: Path | None = None,
    ) -> None:
        check_count('num_envs', num_envs, 1)
        check_count('threads', threads, 1)
        check_count('seed', seed, 0)
        if viewer is not None and num_envs > 1:
            raise ValueError(f"'num_envs' must be 1 for the files of the viewer (got {num_envs})")
        _check_lights(network)
        _check_flow(flow)
        module = _import_cityflow()
        self.network, self.flow, self.num_envs, self.seed = network, flow, num_envs, seed
        self._record = record
        self._paths: dict[str, LanePath] = {}
        if record:
            self._plan(FIRST_PLAN)
        self._signal_ids = network.signal_ids
        engines = _start(module, network, flow, num_envs, threads, seed, viewer)
        self._engines = engines
        self._drop = weakref.finalize(self, _drop, engines)  # runs when the interpreter ends, too
        for engine in engines:
            _check_lanes(engine, network)
        self._begin()

    @property
    def time(self) -> int:
        return len(self._history)

    def reset(self) -> None:
        self._check_open()
        for engine in self._engines:
            engine.reset(True)
        self._begin()

    def _begin(self) -> None:
        self._phase: Ints = np.zeros((self.num_envs, self.network.num_signals), np.int64)
        self._history: list[Ints] = []
        self._waiting = np.zeros((self.num_envs, self.network.num_lanes))
        self._trips = [TripRecorder(self._paths) for _ in range(self.num_envs)]

    def _note(self) -> None:
        if self.time >= self._schedule.until:
            self._plan(2 * self.time)
        for trips, engine in zip(self._trips, self._engines, strict=True):
            trips.record(self.time, engine.get_vehicles(), engine.get_lane_vehicles())

    def _plan(self, until: int) -> None:
        """Computes the paths of all vehicles that depart before ``until``."""
        self._schedule = Schedule(self.network, self.flow, self.seed, until)
        network, with_light = self.network, _links_with_light(self.network)
        leads_to_lights = np.isin(network.road_to, network.signals)[network.lane_road]
        paths = []
        for path in self._schedule.paths:
            lanes, links = path[::2], np.flatnonzero(with_light[path])
            names = [network.lane_ids[lane] for lane in lanes]
            paths.append(LanePath(names, leads_to_lights[lanes].tolist(), int(links[-1]) // 2 if len(links) else -1))
        self._paths.update((v, paths[p]) for v, p in zip(self._schedule.ids, self._schedule.path.tolist(), strict=True))

    def set_phases(self, phase: npt.NDArray[np.integer[Any]]) -> None:
        self._check_open()
        phase = check_phases(phase, self.network, self.num_envs)
        for b, i in np.argwhere(phase != self._phase):
            self._engines[b].set_tl_phase(self._signal_ids[i], int(phase[b, i]))
        self._phase = phase

    def step(self, seconds: int = 1) -> None:
        self._check_open()
        check_count('seconds', seconds, 0)
        for _ in range(seconds):
            if self._record:
                self._waiting += self.lane_waiting_count()
            for engine in self._engines:
                engine.next_step()
            if self._record:
                self._note()
            self._history.append(self._phase)

    def play(self, shown: Sequence[Shown]) -> None:
        for _, seconds in shown:
            check_count('seconds', seconds, 0)
        for phase, seconds in [(check_phases(phase, self.network, self.num_envs), seconds) for phase, seconds in shown]:
            self.set_phases(phase)
            self.step(seconds)

    def lane_vehicle_count(self) -> npt.NDArray[np.int32]:
        self._check_open()
        return _table(engine.get_lane_vehicle_count() for engine in self._engines)

    def lane_waiting_count(self) -> npt.NDArray[np.int32]:
        self._check_open()
        return _table(engine.get_lane_waiting_vehicle_count() for engine in self._engines)

    def waiting_seconds(self) -> Floats:
        self._check_recorded('waiting_seconds')
        return self._waiting.copy()

    def average_travel_time(self) -> Floats:
        self._check_open()
        return np.array([engine.get_average_travel_time() for engine in self._engines], np.float64)

    def trips(self) -> TripTable:
        self._check_recorded('trips')
        network, plan = self.network, self._schedule
        due = int(np.searchsorted(plan.depart, self.time))
        entry, ids = plan.entry[:due].copy(), plan.ids[:due]
        length = np.concatenate([network.lane_length, network.link_length])
        limit = np.concatenate([network.lane_max_speed, np.full(network.num_links, LINK_SPEED)])
        path = way_lengths(
            plan.path_ptr,
            plan.path_drivable,
            length,
            limit,
            _links_with_light(network),
            plan.path[:due].copy(),
            self.flow.max_speed[entry],
        )
        when = {
            event: np.array([[getattr(trips, event).get(v, np.nan) for v in ids] for trips in self._trips], np.float64)
            for event in ('entered', 'left_signal', 'left_last_signal', 'finished')
        }
        return TripTable(
            vehicle_ids=tuple(ids),
            entry=entry,
            scheduled=plan.depart[:due].astype(np.float64),
            num_signals=path[:, 0].astype(np.int64),
            length=path[:, 1],
            free_time=path[:, 2],
            length_to_last_signal=path[:, 3],
            free_time_to_last_signal=path[:, 4],
            **when,
        )

    def vehicles(self, b: int) -> VehicleTable:
        self._check_open()
        if not 0 <= b < self.num_envs:
            raise ValueError(f"'b' must be an episode in [0, {self.num_envs - 1}] (got {b})")
        engine = self._engines[b]
        speed, distance = engine.get_vehicle_speed(), engine.get_vehicle_distance()
        names = _drivable_names(self.network)
        drivable = [names[engine.get_vehicle_info(vehicle)['drivable']] for vehicle in speed]
        return VehicleTable(
            vehicle_ids=tuple(speed),
            drivable=np.array(drivable, np.int64),
            distance=np.array([distance[vehicle] for vehicle in speed], np.float64),
            speed=np.array(list(speed.values()), np.float64),
        )

    def state_dict(self) -> dict[str, Any]:
        self._check_open()
        shape = (0, *self._phase.shape)
        return {
            'history': np.stack(self._history) if self._history else np.zeros(shape, np.int64),  # (T, B, I)
            'phase': self._phase.copy(),
            'identity': self._identity(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not np.array_equal(state.get('identity', ()), self._identity()):
            raise ValueError(
                "'state' is of another network, flow, seed or backend. Build the engine as the saved one was built."
            )
        history, phase = np.asarray(state['history']), np.asarray(state['phase'])
        if phase.shape != self._phase.shape:
            raise ValueError(f"'state' is of {len(phase)} episodes, expected num_envs={self.num_envs}")
        self.reset()
        for shown in history:
            self.set_phases(shown)
            self.step()
        self.set_phases(phase)

    def close(self) -> None:
        """Waits a moment and deletes the engines; no other method works afterwards."""
        self._drop()

    def _identity(self) -> npt.NDArray[np.uint8]:
        network, flow = self.network, self.flow
        digest = hashlib.sha256(repr((self.seed, network.lane_ids, network.signal_ids, flow.route)).encode())
        for values in (network.lane_length, network.link_length, network.phase_open, flow.start, flow.end):
            digest.update(values.tobytes())
        for values in (flow.max_pos_acc, flow.max_neg_acc, flow.usual_pos_acc, flow.usual_neg_acc, flow.max_speed):
            digest.update(values.tobytes())
        for values in (flow.interval, flow.length, flow.min_gap, flow.headway):
            digest.update(values.tobytes())
        return np.frombuffer(b'cityflow' + digest.digest(), np.uint8).copy()

    def _check_open(self) -> None:
        if not self._drop.alive:
            raise RuntimeError('the engine is closed: make a new one')

    def _check_recorded(self, what: str) -> None:
        self._check_open()
        if not self._record:
            raise RuntimeError(f'{what}() needs records of every step: make the engine with record=True')


def _import_cityflow() -> Any:
    try:
        return import_module('cityflow')
    except ImportError as error:
        raise ImportError(
            "backend='cityflow' needs the 'cityflow' module, which is not on PyPI: build it from source as "
            "https://cityflow.readthedocs.io/en/latest/install.html describes. backend='native' computes the same "
            'numbers, faster, and needs nothing more.'
        ) from error


def _check_lights(network: RoadNetwork) -> None:
    dark = ~network.intersection_virtual
    dark[network.signals] = False
    if dark.any():
        first = network.intersection_ids[int(dark.argmax())]
        raise ValueError(
            f"intersection '{first}' of '{network.source}' is not virtual and has no light phases, on which CityFlow "
            "crashes. Give it one phase that opens everything, or take backend='native'."
        )


def _check_flow(flow: Flow) -> None:
    single = [entry for entry, route in enumerate(flow.route) if len(route) == 1]
    if single:
        raise ValueError(
            f"entry {single[0]} of '{flow.source}' has one road only, which CityFlow does not drive. Load the "
            "flow with one_road='strict', or take backend='native'."
        )


def _start(
    module: Any, network: RoadNetwork, flow: Flow, num_envs: int, threads: int, seed: int, viewer: Path | None
) -> list[Any]:
    config = {
        'interval': 1.0,
        'seed': seed,
        'dir': '',
        'roadnetFile': str(_present(network.source)),
        'flowFile': str(_present(flow.source)),
        'rlTrafficLight': True,
        'laneChange': False,
        'saveReplay': viewer is not None,
        'roadnetLogFile': '' if viewer is None else str(viewer.resolve() / VIEWER_ROADNET),
        'replayLogFile': '' if viewer is None else str(viewer.resolve() / VIEWER_REPLAY),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'config.json'
        path.write_text(json.dumps(config), encoding='utf-8')
        return [module.Engine(str(path), threads) for _ in range(num_envs)]


def _present(path: Path) -> Path:
    path = path.resolve()
    if not path.is_file():
        raise ValueError(f"CityFlow reads the files itself, and '{path}' is gone. Put it back, or load from elsewhere.")
    return path


def _check_lanes(engine: Any, network: RoadNetwork) -> None:
    """Raises a ``ValueError`` if the engine could not read its files: it is then empty, with an error on stderr
    only."""
    lanes = tuple(engine.get_lane_vehicle_count())
    if lanes != network.lane_ids:
        raise ValueError(
            f"CityFlow reads other lanes from '{network.source}' ({len(lanes)} of them) than our loader "
            f'({network.num_lanes}). Has the file changed since? Load the network again; CityFlow gives its reason on '
            'stderr.'
        )


def _drop(engines: list[Any]) -> None:
    time.sleep(REST)
    engines.clear()


def _links_with_light(network: RoadNetwork) -> npt.NDArray[np.bool_]:
    """For each drivable: whether it is a lane link that begins at lights."""
    links = np.isin(network.road_link_intersection[network.link_road_link], network.signals)
    return np.concatenate([np.zeros(network.num_lanes, bool), links])


def _table(outputs: Iterable[Mapping[str, int]]) -> npt.NDArray[np.int32]:
    """Values of CityFlow's dicts, which are sorted by lane id, like our lanes."""
    return np.array([list(output.values()) for output in outputs], np.int32)


def _drivable_names(network: RoadNetwork) -> dict[str, int]:
    names = {lane: k for k, lane in enumerate(network.lane_ids)}
    for k, (start, end) in enumerate(zip(network.link_start, network.link_end, strict=True)):
        names.setdefault(f'{network.lane_ids[start]}_TO_{network.lane_ids[end]}', network.num_lanes + k)
    return names
