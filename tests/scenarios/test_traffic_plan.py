"""Signal plans, pictures and patterns of selfishness of episodes on small grids."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ltos_pyg.algos import Decision
from ltos_pyg.envs.traffic import TrafficConfig, TrafficEnv, make_traffic
from ltos_pyg.envs.traffic.trace import play_phases
from ltos_pyg.nn import constant_sharing
from ltos_pyg.scenarios.traffic.moments import Moment, traffic_moments
from ltos_pyg.scenarios.traffic.painter import LIGHTS, QUEUED, TrafficPainter, traffic_text
from ltos_pyg.scenarios.traffic.plan import plan_phases, signal_plan
from ltos_pyg.scenarios.traffic.selfishness import selfishness_figure, selfishness_of
from ltos_pyg.viz.drawing import shade


class Wandering:
    """Draws its actions, and keeps 0.6."""

    def __init__(self, shares: bool = True) -> None:
        self.shares, self.generator = shares, torch.Generator().manual_seed(0)
        self.eval_steps: int | None = None

    def reset_eval_state(self) -> None:
        self.eval_steps = 0

    def on_eval_step(self, step: Any) -> None:
        assert self.eval_steps is not None
        self.eval_steps += 1

    def act(self, graph: Any) -> Decision:
        action = torch.randint(4, (graph.num_nodes,), generator=self.generator)
        return Decision(action, constant_sharing(graph.edge_index, graph.num_nodes, 0.6) if self.shares else None)


def grid(**options: Any) -> TrafficEnv:
    return make_traffic(TrafficConfig(net=('2x2',), turn=0.3, **{'horizon': 30, **options}))


def moment(before: list[int], phase: list[int], time: int = 0, waiting: Any = None) -> Moment:
    lanes = np.zeros(48, np.int64) if waiting is None else waiting
    return Moment(time, np.array(before), np.array(phase), lanes, lanes, None, np.zeros((2, 0), np.int64), None)


# --- plans -----------------------------------------------------------------------------------------------------------


def test_a_plan_worked_by_hand() -> None:
    moments = [
        moment([1, 1, 1], [1, 2, 2]),
        moment([1, 2, 2], [1, 3, 1], time=10),
        moment([1, 3, 1], [1, 3, 1], time=20),
    ]
    rows = signal_plan(moments, np.array([True, True, False]), yellow=5)
    assert rows == [
        *[(0, 0, 1), (0, 1, 0), (0, 2, 2), (5, 1, 2)],  # the first shows what it showed; the last has no yellow
        *[(10, 1, 0), (10, 2, 1), (15, 1, 3)],
    ]
    at_once = signal_plan(moments, np.array([True, True, False]), yellow=0)
    assert at_once == [(0, 0, 1), (0, 1, 2), (0, 2, 2), (10, 1, 3), (10, 2, 1)]
    assert plan_phases(rows, 3, 20)[[0, 4, 5, 9, 10, 14, 15, 19]].tolist() == [
        *[[1, 0, 2], [1, 0, 2], [1, 2, 2], [1, 2, 2]],
        *[[1, 0, 1], [1, 0, 1], [1, 3, 1], [1, 3, 1]],
    ]


@pytest.mark.parametrize('yellow', [0, 5])
def test_a_plan_played_second_by_second_is_the_same_episode(yellow: int) -> None:
    env = grid(yellow=yellow)
    rows = signal_plan(traffic_moments(Wandering(), env), env.choices[0].yellow, yellow)  # type: ignore[arg-type]
    beside = grid(yellow=yellow, horizon=31)
    list(traffic_moments_until(beside, 30))
    trace = play_phases(env.engines[0], plan_phases(rows, 4, 300))
    assert trace['lane_vehicle_count'][-1].tolist() == beside.engines[0].lane_vehicle_count()[0].tolist()
    assert trace['lane_vehicle_count'][-1].sum() > 50


def traffic_moments_until(env: TrafficEnv, count: int) -> Any:
    for k, one in enumerate(traffic_moments(Wandering(), env)):  # type: ignore[arg-type]
        if k == count:
            return
        yield one


# --- pictures --------------------------------------------------------------------------------------------------------


def test_lights_are_green_yellow_and_red_where_they_should_be() -> None:
    env = grid()
    network = env.engines[0].network
    painter = TrafficPainter(network, env.choices[0], yellow=5)

    def lights(before: int, phase: int, yellow: int = 5) -> dict[int, str]:
        """By direction in which the road leads: 0 E, 1 N, 2 W, 3 S."""
        painter.yellow = yellow
        found = painter.lights(moment([before] * 4, [phase] * 4), 0)
        return {int(network.road_ids[road][-1]): light for road, light in found}

    assert lights(1, 1) == {0: 'green', 1: 'red', 2: 'green', 3: 'red'}
    assert lights(2, 2) == {0: 'red', 1: 'green', 2: 'red', 3: 'green'}
    assert lights(1, 2) == {0: 'yellow', 1: 'red', 2: 'yellow', 3: 'red'}
    assert lights(1, 2, yellow=0) == {0: 'red', 1: 'green', 2: 'red', 3: 'green'}


def test_a_queue_is_red_and_a_selfish_signal_dark() -> None:
    env = grid()
    network = env.engines[0].network
    painter = TrafficPainter(network, env.choices[0])
    lane = int(network.incoming[0, 0])
    waiting = np.zeros(network.num_lanes, np.int64)
    waiting[lane] = 8
    empty, full = (painter.draw(moment([1] * 4, [1] * 4, waiting=w)) for w in (0 * waiting, waiting))
    assert empty.shape == full.shape
    changed = (empty != full).any(-1)
    assert changed.sum() > 100
    assert (full[changed] == QUEUED).all(-1).mean() > 0.6
    every = list(traffic_moments(Wandering(), env))  # type: ignore[arg-type]
    picture = painter.draw(every[-1], 'at the end')
    assert (picture == shade(0.6)).all(-1).sum() > 4 * 80
    assert all((picture == colour).all(-1).any() for colour in LIGHTS.values())


def test_an_episode_in_the_terminal_shows_phases_and_queues() -> None:
    env = grid()
    last = list(traffic_moments(Wandering(), env))[-1]  # type: ignore[arg-type]
    network = env.engines[0].network
    queue = last.waiting[network.incoming].sum(1)
    text = traffic_text(network, last, 'now')
    words = text.split()
    assert words[0] == 'now'
    north = [f'{last.phase[i]}:{queue[i]}' for i in (1, 3)]  # intersection_1_2, intersection_2_2
    south = [f'{last.phase[i]}:{queue[i]}' for i in (0, 2)]
    assert words[1:5] == [*north, *south]
    assert 'kept 0.60 (0.60 to 0.60)' in text
    assert ('\x1b[1;31m' in traffic_text(network, last, colour=True)) == bool((queue >= 10).any())


# --- selfishness -----------------------------------------------------------------------------------------------------


def test_selfishness_is_recorded_for_each_signal_and_drawn() -> None:
    env = grid()
    data = selfishness_of(Wandering(), env)  # type: ignore[arg-type]
    assert data.kept.shape == (30, 4)
    assert np.allclose(data.kept, 0.6)
    assert data.time.tolist() == list(range(0, 300, 10))
    assert data.vehicles[0] == 0
    assert data.vehicles[-1] > 50
    assert data.roads.shape == (8, 2, 2)
    assert np.isnan(data.correlation)  # of a constant
    rows = [line.split(',') for line in data.csv().splitlines()]
    assert rows[0] == ['seconds', 'vehicles', *(f'signal {i}' for i in range(4))]
    assert rows[3] == ['20', str(data.vehicles[2]), *['0.6000'] * 4]
    falling = replace(data, kept=0.9 - 0.001 * data.vehicles[:, None] * np.ones(4))
    assert falling.correlation == pytest.approx(-1)
    assert selfishness_figure(falling).axes[0].get_title().endswith('correlation with the mean share -1.00')
    figure = selfishness_figure(data, maps=3)
    assert len(figure.axes) == 1 + 1 + 3 + 1  # over time, vehicles, maps, colours
    assert len(figure.axes[0].lines) == 4 + 1
    for axes in figure.axes[2:5]:  # dots on the border are drawn whole
        for (low, high), places in zip((axes.get_xlim(), axes.get_ylim()), data.position.T, strict=True):
            room = 0.05 * np.ptp(places)
            assert low + room < places.min()
            assert places.max() < high - room
    scales = {(dots.norm.vmin, dots.norm.vmax) for axes in figure.axes[2:5] for dots in axes.collections}
    assert len(scales) == 1  # a constant is one colour in all maps, that of the colour bar


def test_without_sharing_there_is_no_selfishness() -> None:
    with pytest.raises(
        ValueError, match='this run has no sharing weights: expected one of ltos, ltos_edge or fixed_ltos'
    ):
        selfishness_of(Wandering(shares=False), grid())  # type: ignore[arg-type]


def test_a_policy_with_a_memory_starts_each_plan_without_it() -> None:
    policy = Wandering()
    for _ in range(2):
        steps = len(list(traffic_moments(policy, grid())))  # type: ignore[arg-type]
        assert policy.eval_steps == steps == 30
