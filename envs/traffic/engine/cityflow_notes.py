"""When vehicles entered and left, noted down from what CityFlow shows after each step: it keeps no such record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Way(NamedTuple):
    """The lanes of a vehicle from its first on."""

    lanes: list[str]
    lit: list[bool]  # whether each leads to lights
    last_signal: int  # place of the last one that lights end on the way; -1 without


class TripNotes:
    """The notes on one episode, by vehicle id; an event has the time at which its step began.

    Args:
        ways: The way of each vehicle. It may grow while the episode goes on.
    """

    def __init__(self, ways: Mapping[str, Way]) -> None:
        self._ways = ways
        self.entered: dict[str, float] = {}
        self.left_signal: dict[str, float] = {}
        self.left_last_signal: dict[str, float] = {}
        self.finished: dict[str, float] = {}
        self._running: set[str] = set()
        self._lane: dict[str, str] = {}  # of the vehicles that are on a lane
        self._behind: dict[str, int] = {}  # how many of its lanes each running vehicle has left

    def note(self, second: int, running: Iterable[str], lanes: Mapping[str, list[str]]) -> None:
        """Compares with the step before.

        Args:
            second: At which the step began.
            running: The vehicles on the roads.
            lanes: The vehicles on each lane.
        """
        now, on = set(running), {vehicle: lane for lane, queue in lanes.items() for vehicle in queue}
        for vehicle in now - self._running:
            self.entered[vehicle] = second
            self._behind[vehicle] = 0
            self._lane[vehicle] = self._ways[vehicle].lanes[0]
        for vehicle, before in self._lane.items():
            if on.get(vehicle) != before:
                self._leave(second, vehicle, self._behind[vehicle] + 1)
        for vehicle, lane in on.items():
            if self._lane.get(vehicle) != lane:  # a step may have led past a short lane
                self._leave(second, vehicle, self._ways[vehicle].lanes.index(lane, self._behind[vehicle]))
        for vehicle in self._running - now:
            self._leave(second, vehicle, len(self._ways[vehicle].lanes))
            self.finished[vehicle] = second
            del self._behind[vehicle]
        self._running, self._lane = now, on

    def _leave(self, second: int, vehicle: str, behind: int) -> None:
        """From now on so many lanes of its way are behind it."""
        way, before = self._ways[vehicle], self._behind[vehicle]
        self._behind[vehicle] = behind
        if any(way.lit[before:behind]):
            self.left_signal[vehicle] = second
        if before <= way.last_signal < behind:
            self.left_last_signal[vehicle] = second
