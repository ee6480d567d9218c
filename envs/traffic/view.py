"""Observations and neighbours of the signals of a network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .files.network import RoadNetwork
from .signals import Ints, SignalChoices, signal_choices

Columns = npt.NDArray[np.int16]
FARTHEST = np.iinfo(np.int16).max  # metres


@dataclass(frozen=True, eq=False)
class View:
    """Observations, action masks and edges of the signals of a network."""

    choices: SignalChoices
    heads: Columns  # (I, P, H) observation of each phase
    num_lanes: int  # most incoming lanes of a signal
    edge_index: Ints  # (2, E) sender, receiver
    offset: Columns  # (E, 2) metres east and north from receiver to sender

    @classmethod
    def of(cls, network: RoadNetwork, phases: int | None, phase_bits: bool) -> View:
        choices = signal_choices(network, phases)
        edge_index = neighbours(network)
        at = network.intersection_xy[network.signals]
        offset = np.rint(at[edge_index[0]] - at[edge_index[1]])
        heads = _open_bits(network, choices) if phase_bits else _one_hots(network, choices)
        offset = offset.clip(-FARTHEST, FARTHEST).astype(np.int16)
        return cls(choices, heads, network.incoming.shape[1], edge_index, offset)

    @property
    def num_heads(self) -> int:
        return self.heads.shape[-1]

    def head(self, phase: Ints) -> Columns:
        """How the phases (B, I) are observed, (B, I, H)."""
        return self.heads[np.arange(phase.shape[1]), phase]


def neighbours(network: RoadNetwork) -> Ints:
    """(2, E): the pairs of signals that a road joins, both ways, by receiver, then by sender."""
    number = np.full(network.num_intersections, -1)
    number[network.signals] = np.arange(network.num_signals)
    ends = np.stack([number[network.road_from], number[network.road_to]])
    ends = ends[:, (ends >= 0).all(0) & (ends[0] != ends[1])]
    both = np.concatenate([ends, ends[::-1]], axis=1)
    code = np.unique(both[1] * network.num_signals + both[0])
    return np.stack([code % network.num_signals, code // network.num_signals]).astype(np.int64)


def _one_hots(network: RoadNetwork, choices: SignalChoices) -> Columns:
    """(I, P, A); zeros for phases that are not among the choices."""
    phase = np.arange(network.phase_open.shape[1])
    return ((choices.phase[:, None] == phase[:, None]) & choices.allowed[:, None]).astype(np.int16)


def _open_bits(network: RoadNetwork, choices: SignalChoices) -> Columns:
    """(I, P, M): the movements that some choice closes and some opens, in the order of the file, padded with zeros."""
    rows = []
    for i, phases in enumerate(network.phase_open):
        chosen = phases[choices.phase[i][choices.allowed[i]]]
        rows.append(phases[:, chosen.any(0) & ~chosen.all(0)])
    bits = np.zeros((*network.phase_open.shape[:2], max(row.shape[1] for row in rows)), np.int16)
    for i, row in enumerate(rows):
        bits[i, :, : row.shape[1]] = row
    return bits
