"""Routes in a network: roads between the roads that a flow names, and the lanes and links on them."""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import pairwise

from .road_network import RoadNetwork

Route = tuple[int, ...]


@dataclass(order=True)
class _Reached:
    """Compared by length alone: ties are decided by the heap's own order, which is the same in C++."""

    length: float
    road: int = field(compare=False)


class Router:
    """Caches its results."""

    def __init__(self, network: RoadNetwork) -> None:
        self.network = network
        lane_links: list[list[int]] = [[] for _ in range(network.num_lanes)]
        self._end_lane = network.link_end.tolist()
        self._lane_index = network.lane_index.tolist()
        self._end_road = network.road_link_end[network.link_road_link].tolist()
        for k, lane in enumerate(network.link_start.tolist()):
            lane_links[lane].append(k)
        self._lane_links = lane_links
        lanes = [network.lanes_of(r) for r in range(network.num_roads)]
        self._lanes = [row.tolist() for row in lanes]
        self._follows = [self._after(road) for road in range(network.num_roads)]
        self._length = [float(network.lane_length[row].mean()) for row in lanes]
        self._between: dict[tuple[int, int], Route] = {}
        self._paths: dict[tuple[Route, int], list[int]] = {}

    def route(self, anchors: Route) -> Route:
        """The roads from the first anchor via all others to the last; empty if there is no route.

        Between two anchors this is the shortest route, by the mean length of the roads' lanes; it is direct if the
        first leads to the second. Repeated anchors count once.
        """
        roads = list(anchors[:1])
        for a, b in pairwise(anchors):
            if a == b:
                continue
            between = (b,) if b in self._follows[a] else self._shortest(a, b)
            if not between:
                return ()
            roads += between
        return tuple(roads)

    def first_lanes(self, route: Route) -> list[int]:
        """The lanes of the first road that lead to the second; all of them on a route of one road."""
        if len(route) == 1:
            return self._lanes[route[0]]
        return [lane for lane in self._lanes[route[0]] if self._leads(lane, route[1])]

    def path(self, route: Route, lane: int) -> list[int]:
        """Lanes, and lane links as ``num_lanes + k``, from a lane of the first road on.

        Of the links from a lane to the next road, those count whose end leads on to the road after; among them the one
        that shifts sideways least is taken, the first of several. If there is none, the path ends.
        """
        key = (route, lane)
        if key not in self._paths:
            self._paths[key] = self._path(route, lane)
        return self._paths[key]

    def _path(self, route: Route, lane: int) -> list[int]:
        path = [lane]
        for i, road in enumerate(route[1:], 1):
            links = [
                k
                for k in self._lane_links[lane]
                if self._end_road[k] == road and (i + 1 == len(route) or self._leads(self._end_lane[k], route[i + 1]))
            ]
            if not links:
                break
            at = self._lane_index[lane]
            link = min(links, key=lambda k: abs(self._lane_index[self._end_lane[k]] - at))
            lane = self._end_lane[link]
            path += [self.network.num_lanes + link, lane]
        return path

    def _after(self, road: int) -> list[int]:
        """The roads that links lead to, in the order in which the file lists them at the intersection."""
        n, end = self.network, self.network.road_to[road]
        listed = n.intersection_roads[n.intersection_roads_ptr[end] : n.intersection_roads_ptr[end + 1]].tolist()
        linked = {self._end_road[k] for lane in self._lanes[road] for k in self._lane_links[lane]}
        return [after for after in dict.fromkeys(listed) if after in linked]

    def _leads(self, lane: int, road: int) -> bool:
        return any(self._end_road[k] == road for k in self._lane_links[lane])

    def _shortest(self, start: int, end: int) -> Route:
        """The roads after ``start`` up to ``end``; empty if there is no route."""
        if (start, end) not in self._between:
            self._between[start, end] = self._search(start, end)
        return self._between[start, end]

    def _search(self, start: int, end: int) -> Route:
        before: dict[int, int] = {}
        best = {start: 0.0}
        heap = [_Reached(0.0, start)]
        while heap:
            item = heappop(heap)
            length, road = item.length, item.road
            if road == end:
                way = [end]
                while before[way[-1]] != start:
                    way.append(before[way[-1]])
                return tuple(reversed(way))
            if length > best[road]:
                continue
            for after in self._follows[road]:
                total = length + self._length[after]
                if total < best.get(after, float('inf')):
                    best[after], before[after] = total, road
                    heappush(heap, _Reached(total, after))
        return ()
