"""The options of traffic."""

from __future__ import annotations

from dataclasses import dataclass

from .engine import Backend
from .files.flow import OneRoad


@dataclass(frozen=True, kw_only=True)
class TrafficConfig:
    """Options of traffic: road networks, flows, signals."""

    net: tuple[str, ...] = ('6x6',)  # a grid of ROWSxCOLS, or a CityFlow road network file; several: in one batch
    flow: tuple[str, ...] = ()  # CityFlow flow file of each network; none: one hour of generated demand
    demand_seed: int = 0  # seed of the generated demand
    demands: int = 1  # number of generated demands in one batch, of this seed and the next ones
    turn: float = 0.0  # probability that a generated vehicle turns at an intersection
    one_road: OneRoad = 'strict'  # routes of a single road: 'strict' drops them, as CityFlow now; 'legacy' drives them
    phases: int | None = 4  # largest number of phases that a signal chooses from; None: all of its phases
    yellow: int = 5  # seconds of yellow at a change; 0: none
    horizon: int = 360  # decisions of 10 s
    phase_bits: bool = False  # observe which movements are open instead of the phase
    observe_waiting: bool = False  # observe the waiting vehicles of each lane too
    edge_features: bool = True  # position of the neighbour relative to the agent, on each edge
    backend: Backend = 'native'  # simulation engine; 'cityflow' where that module is installed
    engine_threads: int = 1  # threads over which the native engine splits the episodes

    def check_evaluation(self, trained: TrafficConfig) -> None:
        """Raises a ``ValueError`` if a policy is to be evaluated on other networks with the flows of training, whose
        routes are paths on the networks of training."""
        if self.flow and self.flow == trained.flow and self.net != trained.net:
            raise ValueError(
                f"'net' was changed to {', '.join(self.net)}, but 'flow' is still that of training "
                f"('{self.flow[0]}'), with routes on another network. Change 'flow' too; without any file "
                f'(--env flow=, or flow=()) demand is generated.'
            )
