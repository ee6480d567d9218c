"""Records when vehicles entered and left, from CityFlow's output after each step, as CityFlow does not report it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class LanePath(NamedTuple):
    """The lanes of a vehicle's path."""

    lanes: list[str]
    lit: list[bool]  # whether each leads to lights
    last_signal: int  # position of the last one that ends at lights; -1 without


class TripRecorder:
    """The records of one episode, by vehicle id; an event has the time at which its step began.

    Args:
        paths: The path of each vehicle. More may be added during the episode.
    """

    def __init__(self, paths: Mapping[str, LanePath]) -> None:
        self._paths = paths
        self.entered: dict[str, float] = {}
        self.left_signal: dict[str, float] = {}
        self.left_last_signal: dict[str, float] = {}
        self.finished: dict[str, float] = {}
        self._running: set[str] = set()
        self._lane: dict[str, str] = {}  # of the vehicles that are on a lane
        self._behind: dict[str, int] = {}  # number of lanes that each running vehicle has left

    def record(self, second: int, running: Iterable[str], lanes: Mapping[str, list[str]]) -> None:
        """Updates the records by comparing with the step before.

        Args:
            second: The second at which the step began.
            running: The vehicles on the roads.
            lanes: The vehicles on each lane.
        """
        now, on = set(running), {vehicle: lane for lane, queue in lanes.items() for vehicle in queue}
        for vehicle in now - self._running:
            self.entered[vehicle] = second
            self._behind[vehicle] = 0
            self._lane[vehicle] = self._paths[vehicle].lanes[0]
        for vehicle, before in self._lane.items():
            if on.get(vehicle) != before:
                self._leave(second, vehicle, self._behind[vehicle] + 1)
        for vehicle, lane in on.items():
            if self._lane.get(vehicle) != lane:  # a step may have passed a short lane
                self._leave(second, vehicle, self._paths[vehicle].lanes.index(lane, self._behind[vehicle]))
        for vehicle in self._running - now:
            self._leave(second, vehicle, len(self._paths[vehicle].lanes))
            self.finished[vehicle] = second
            del self._behind[vehicle]
        self._running, self._lane = now, on

    def _leave(self, second: int, vehicle: str, behind: int) -> None:
        """Records that it has left its first lanes."""
        path, before = self._paths[vehicle], self._behind[vehicle]
        self._behind[vehicle] = behind
        if any(path.lit[before:behind]):
            self.left_signal[vehicle] = second
        if before <= path.last_signal < behind:
            self.left_last_signal[vehicle] = second
