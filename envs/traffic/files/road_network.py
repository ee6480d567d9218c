"""A road network in CityFlow's terms, read from its JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

STRAIGHT, LEFT, RIGHT = 3, 2, 1  # types of road links, ordered by right of way
ROAD_LINK_TYPES = {'go_straight': STRAIGHT, 'turn_left': LEFT, 'turn_right': RIGHT}


@dataclass(frozen=True, eq=False)
class RoadNetwork:
    r"""Roads, lanes, junctions and lights. Metres, seconds, metres per second.

    N intersections and R roads are in file order. **The I signals** are the intersections with lights, in file order:
    those that are not virtual and have at least one phase. **The L lanes** are sorted by id as strings, as CityFlow's
    outputs are. M road links (movements from road to road) and K lane links are in file order; ``*_ptr`` arrays cut a
    flat array into rows, row i being ``[ptr[i]:ptr[i + 1]]``.

    Virtual intersections have neither links nor lights, whatever is in the file, as in CityFlow. Links of other
    intersections without phases, on which CityFlow crashes, are always open, with the right of way.
    """

    source: Path  # the file it was read from

    intersection_ids: tuple[str, ...]  # (N,)
    intersection_xy: Floats  # (N, 2)
    intersection_width: Floats  # (N,) distance of the stop lines from the middle
    intersection_virtual: Bools  # (N,) ends of the network

    intersection_roads_ptr: Ints  # (N + 1,) rows of ``intersection_roads``
    intersection_roads: Ints  # (*,) the roads that the file lists at each intersection, in its order

    road_ids: tuple[str, ...]  # (R,)
    road_from: Ints  # (R,) intersection
    road_to: Ints  # (R,) intersection
    road_points_ptr: Ints  # (R + 1,) rows of ``road_points``
    road_points: Floats  # (*, 2) centre lines, from middle to middle of the intersections
    road_lanes_ptr: Ints  # (R + 1,) rows of ``road_lanes``
    road_lanes: Ints  # (L,) lanes road by road, each road's by index: the order in the file

    lane_ids: tuple[str, ...]  # (L,) '<road>_<index>', sorted
    lane_road: Ints  # (L,)
    lane_index: Ints  # (L,) 0 is next to the centre line
    lane_length: Floats  # (L,) from stop line to stop line
    lane_max_speed: Floats  # (L,)

    road_link_intersection: Ints  # (M,)
    road_link_start: Ints  # (M,) road
    road_link_end: Ints  # (M,) road
    road_link_type: Ints  # (M,) STRAIGHT, LEFT or RIGHT

    link_road_link: Ints  # (K,)
    link_start: Ints  # (K,) lane
    link_end: Ints  # (K,) lane
    link_length: Floats  # (K,)

    signals: Ints  # (I,) intersections with lights
    num_phases: Ints  # (I,)
    phase_open: Bools  # (I, P, M_max) whether phase p opens the signal's road link m; False where padded
    phase_time: Floats  # (I, P) the file's durations: information only; 0 where padded
    signal_road_links: Ints  # (I, M_max) the signal's road links in the order of ``phase_open``; -1 where padded
    incoming: Ints  # (I, *) lanes that lead to the signal's links, by the first road link of their road, then by lane
    # index; -1 where padded

    lane_points_ptr: Ints  # (L + 1,) rows of ``lane_points``
    lane_points: Floats  # (*, 2)
    link_points_ptr: Ints  # (K + 1,) rows of ``link_points``
    link_points: Floats  # (*, 2)

    cross_ptr: Ints  # (K + 1,) rows of the arrays below: the crossings of a lane link with others, by distance
    cross_distance: Floats  # (X,) along the link
    cross_link: Ints  # (X,) the other link
    cross_twin: Ints  # (X,) the same crossing in the other link's row

    @property
    def num_intersections(self) -> int:
        return len(self.intersection_ids)

    @property
    def num_roads(self) -> int:
        return len(self.road_ids)

    @property
    def num_lanes(self) -> int:
        return len(self.lane_ids)

    @property
    def num_links(self) -> int:
        return len(self.link_start)

    @property
    def num_signals(self) -> int:
        return len(self.signals)

    @property
    def signal_ids(self) -> tuple[str, ...]:
        """Ids of the intersections with lights, (I,)."""
        return tuple(self.intersection_ids[n] for n in self.signals)

    def lanes_of(self, road: int) -> Ints:
        """The lanes of a road by index."""
        return self.road_lanes[self.road_lanes_ptr[road] : self.road_lanes_ptr[road + 1]]
