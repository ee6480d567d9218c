"""The interface of a traffic engine: native or CityFlow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ..files.flow import Flow
from ..files.network import RoadNetwork

Backend = Literal['native', 'cityflow']
BACKENDS: tuple[Backend, ...] = ('native', 'cityflow')
Shown = tuple[npt.NDArray[np.integer[Any]], int]  # phases (B, I), and the seconds for which they are shown


@dataclass(frozen=True)
class VehicleTable:
    """The vehicles on the road, sorted by id as strings (so ``flow_10_0`` comes after ``flow_108_0``)."""

    vehicle_ids: tuple[str, ...]
    drivable: npt.NDArray[np.int64]  # a lane's index below ``network.num_lanes``; ``num_lanes + k`` is lane link k
    distance: npt.NDArray[np.float64]  # metres from the start of the drivable to the vehicle's front
    speed: npt.NDArray[np.float64]  # metres per second


@dataclass(frozen=True)
class TripTable:
    """The V vehicles due so far, in the order of departure; B episodes.

    Times are seconds since the reset, NaN for events that have not happened; an event within a step has the time at
    which that step began, which is how CityFlow counts travel times.
    """

    vehicle_ids: tuple[str, ...]  # (V,)
    entry: npt.NDArray[np.int64]  # (V,) which entry of the flow file
    scheduled: npt.NDArray[np.float64]  # (V,) due to depart
    entered: npt.NDArray[np.float64]  # (B, V) entered its first lane
    left_signal: npt.NDArray[np.float64]  # (B, V) last left a lane that leads to lights, also by arriving
    left_last_signal: npt.NDArray[np.float64]  # (B, V) crossed the last stop line with lights on its path
    finished: npt.NDArray[np.float64]  # (B, V) left the network
    num_signals: npt.NDArray[np.int64]  # (V,) stop lines with lights on its path
    length: npt.NDArray[np.float64]  # (V,) metres of the whole path, lane links included
    free_time: npt.NDArray[np.float64]  # (V,) seconds of the whole path at the speed limit
    length_to_last_signal: npt.NDArray[np.float64]  # (V,) metres to the last stop line with lights; 0 without
    free_time_to_last_signal: npt.NDArray[np.float64]  # (V,) seconds of that at the speed limit; 0 without


class TrafficEngine(Protocol):
    """B episodes on one network with one flow, second by second. Lights show phase 0 after a reset, as in CityFlow."""

    network: RoadNetwork
    flow: Flow
    num_envs: int

    @property
    def time(self) -> int:
        """Seconds since the reset."""

    def reset(self) -> None:
        """Empties the roads and starts the flow again."""

    def set_phases(self, phase: npt.NDArray[np.integer[Any]]) -> None:
        """Sets the phase of each signal, (B, I), from the next step on.

        Raises:
            ValueError: If the shape is another, or a signal has no such phase.
        """

    def step(self, seconds: int = 1) -> None:
        """Steps all episodes."""

    def play(self, shown: Sequence[Shown]) -> None:
        """Shows phases one after another: as :meth:`set_phases` and :meth:`step` for each, in one call.

        Raises:
            ValueError: As :meth:`set_phases`, or for negative seconds; the state is then unchanged.
        """

    def lane_vehicle_count(self) -> npt.NDArray[np.int32]:
        """Vehicles on each lane, (B, L)."""

    def lane_waiting_count(self) -> npt.NDArray[np.int32]:
        """Vehicles on each lane slower than 0.1 m/s, (B, L)."""

    def waiting_seconds(self) -> npt.NDArray[np.float64]:
        """The waiting count before each step since the reset, summed, (B, L): vehicle-seconds."""

    def average_travel_time(self) -> npt.NDArray[np.float64]:
        """Seconds from departure to arrival or until now, mean over the vehicles due by now, (B,); 0 without any."""

    def trips(self) -> TripTable:
        """When each vehicle departed, entered and left."""

    def vehicles(self, b: int) -> VehicleTable:
        """Positions of the vehicles of episode ``b``."""

    def state_dict(self) -> dict[str, Any]:
        """The complete state: loaded into an engine of the same network and flow, it continues identically."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a saved state.

        Raises:
            ValueError: If it is of another network, flow or number of episodes.
        """

    def close(self) -> None:
        """Ends threads and releases other resources."""


def make_engine(
    network: RoadNetwork,
    flow: Flow,
    num_envs: int = 1,
    backend: Backend = 'native',
    threads: int = 1,
    seed: int = 0,
) -> TrafficEngine:
    """An engine by name.

    Args:
        network (RoadNetwork): From :func:`~ltos_pyg.envs.traffic.load_network`.
        flow (Flow): From :func:`~ltos_pyg.envs.traffic.load_flow`, on that network.
        num_envs (int): Parallel episodes, B.
        backend (str): ``'native'``, compiled by Numba, or ``'cityflow'``, where that module is installed.
        threads (int): Threads that share the episodes.
        seed (int): CityFlow's seed. The same for all episodes; it matters only if a vehicle may choose its first lane,
            or if two with equal priority conflict.

    Raises:
        ValueError: If the backend is unknown or an option out of range.
    """
    if backend == 'native':
        from .native import NativeEngine

        return NativeEngine(network, flow, num_envs, threads=threads, seed=seed)
    if backend == 'cityflow':
        from .cityflow import CityFlowEngine

        return CityFlowEngine(network, flow, num_envs, threads=threads, seed=seed)
    raise ValueError(f"'backend' must be one of {BACKENDS} (got {backend!r})")
