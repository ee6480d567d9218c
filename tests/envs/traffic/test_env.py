"""The environment: the contract, what its agents see and are paid for, ragged batches, saved states, bad input."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch

from ltos_pyg.data import GraphReplay
from ltos_pyg.envs.traffic import TrafficConfig, TrafficEnv, load_tasks, make_traffic
from ltos_pyg.envs.traffic.controllers import drive
from ltos_pyg.envs.traffic.metrics import DESCRIPTIONS, TrafficMetrics
from ltos_pyg.graph_env import check_env

STRAIGHT_X, STRAIGHT_Y, LEFT_X, LEFT_Y = range(4)


@cache
def tasks(*nets: str, demands: int = 1) -> tuple[Any, ...]:
    return tuple(load_tasks(nets, demands=demands, turn=0.3))


def random_actions(graph: Batch, env: TrafficEnv, generator: torch.Generator) -> Tensor:
    mask = graph.get('action_mask', torch.ones(graph.num_nodes, env.spec.num_actions))
    return torch.multinomial(mask.float(), 1, generator=generator).squeeze(1)


def play(env: TrafficEnv, steps: int, seed: int = 0) -> list[Any]:
    generator, graph, played = torch.Generator().manual_seed(seed), env.reset(), []
    for _ in range(steps):
        played.append(env.step(random_actions(graph, env, generator)))
        graph = played[-1].graph
    return played


@pytest.mark.parametrize(
    ('nets', 'options'),
    [
        (('2x3',), {}),
        (('2x3',), {'yellow': 0, 'phases': None, 'edge_features': False}),
        (('2x2', '1x3', '1x1'), {'phase_bits': True, 'observe_waiting': True}),
        (('1x1',), {'phases': 1}),
    ],
)
def test_the_contract_is_kept(nets: tuple[str, ...], options: dict[str, Any]) -> None:
    check_env(lambda: TrafficEnv(tasks(*nets), num_envs=4, horizon=7, **options), steps=20)


# --- what agents see -------------------------------------------------------------------------------------------------


def test_an_agent_sees_its_phase_and_the_vehicles_on_its_lanes() -> None:
    env = TrafficEnv(tasks('2x3'), num_envs=2, observe_waiting=True)
    network = env.engines[0].network
    assert env.spec.num_features == 4 + 12 + 12
    graph = play(env, 40)[-1].graph
    counts, waiting = env.engines[0].lane_vehicle_count(), env.engines[0].lane_waiting_count()
    assert waiting.sum() > 10
    x = graph.x.view(2, 6, -1)
    for b in range(2):
        for i in range(6):
            assert x[b, i, :4].tolist() == [int(env.phases[0][b, i] == phase) for phase in (1, 2, 3, 4)]
            assert x[b, i, 4:16].tolist() == counts[b, network.incoming[i]].tolist()
            assert x[b, i, 16:].tolist() == waiting[b, network.incoming[i]].tolist()


def test_the_bits_of_a_phase_are_the_authors_eight_on_their_phase_table() -> None:
    env = TrafficEnv(tasks('1x2'), phase_bits=True)
    env.reset()
    bits = [env.step(torch.tensor([a, a])).graph.x[0, :-12].tolist() for a in range(4)]
    assert bits == [  # movements 0 1 4 5 7 8 9 11 of the file: through and left; right turns are never shut
        [1, 0, 0, 0, 1, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0, 1],
        [0, 1, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 0, 0, 1, 0],
    ]


def test_neighbours_are_joined_by_roads_and_know_where_the_other_lies() -> None:
    env = TrafficEnv(tasks('2x3'))
    graph, network = env.reset(), env.engines[0].network
    xy = network.intersection_xy[network.signals]
    distance = np.abs(xy[:, None] - xy).sum(-1)
    expected = [(j, i) for i in range(6) for j in range(6) if distance[j, i] == 100]  # by receiver, then sender
    assert [tuple(edge) for edge in graph.edge_index.t().tolist()] == expected
    assert graph.edge_attr.tolist() == [(xy[j] - xy[i]).tolist() for j, i in expected]
    assert env.spec.max_edges == len(expected) == 14


def test_a_lone_signal_has_no_neighbours() -> None:
    graph = TrafficEnv(tasks('1x1')).reset()
    assert graph.edge_index.shape == (2, 0)
    assert graph.edge_attr.shape == (0, 2)


# --- what they are paid for ------------------------------------------------------------------------------------------


def test_the_reward_is_minus_a_tenth_of_the_mean_queue_before_each_second() -> None:
    env, beside = TrafficEnv(tasks('2x2')), TrafficEnv(tasks('2x2'))
    env.reset()
    beside.reset()
    engine, incoming = beside.engines[0], beside.engines[0].network.incoming
    phase, paid = np.ones((1, 4), np.int64), 0.0
    for action in torch.randint(4, (60, 4), generator=torch.Generator().manual_seed(1)):
        target, queue = action.numpy()[None] + 1, np.zeros(4)
        for second in range(10):
            engine.set_phases(np.where((target != phase) & (second < 5), 0, target))
            queue += engine.lane_waiting_count()[0, incoming].sum(1) / 10
            engine.step()
        phase, step = target, env.step(action)
        torch.testing.assert_close(step.reward, torch.from_numpy(-queue / 10).float())
        assert step.info['queue'].item() == pytest.approx(queue.mean(), rel=1e-5)
        paid += queue.sum()
    assert paid > 100


def test_the_share_of_signals_that_change_is_a_metric() -> None:
    env = TrafficEnv(tasks('2x2'), num_envs=2)
    env.reset()
    step = env.step(torch.tensor([0, 0, 0, 1, 2, 3, 1, 1]))
    assert step.info['switches'].tolist() == [0.25, 1.0]


def test_an_episode_ends_with_the_metrics_of_the_same_plan_driven_alone() -> None:
    env = TrafficEnv(tasks('2x2'), num_envs=3, horizon=50)
    steps = play(env, 50)
    assert all(step.outcome == {} for step in steps[:-1])
    outcome = steps[-1].outcome
    assert bool(steps[-1].truncated.all())
    assert outcome.keys() == DESCRIPTIONS.keys()
    alone = TrafficEnv(tasks('2x2'), num_envs=3, horizon=60)
    graph, generator, chosen = alone.reset(), torch.Generator().manual_seed(0), []
    for _ in range(50):
        chosen.append(random_actions(graph, alone, generator))
        graph = alone.step(chosen[-1]).graph
    rows = iter(action.view(3, 4).numpy() + 1 for action in chosen)
    engine = alone.engines[0]
    drive(engine, lambda engine: next(rows), alone.choices[0], horizon=500)
    for name, value in TrafficMetrics(engine)().items():
        torch.testing.assert_close(outcome[name], torch.from_numpy(value).float())
    assert outcome['duration'].unique().numel() > 1


# --- many networks in one batch --------------------------------------------------------------------------------------


def test_networks_of_several_sizes_play_in_one_batch_as_they_do_alone() -> None:
    nets = tasks('2x2', '1x3', '1x1')
    env = TrafficEnv(nets, num_envs=5)
    assert (env.spec.max_nodes, env.spec.max_edges) == (4, 8)
    graph = env.reset()
    assert graph.ptr.tolist() == [0, 4, 7, 8, 12, 15]
    alone = [TrafficEnv(nets[b % 3]) for b in range(5)]
    for one in alone:
        one.reset()
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        action = random_actions(graph, env, generator)
        step = env.step(action)
        parts = [one.step(a) for one, a in zip(alone, action.split([4, 3, 1, 4, 3]), strict=True)]
        torch.testing.assert_close(step.reward, torch.cat([part.reward for part in parts]))
        for one, part in zip(step.graph.to_data_list(), parts, strict=True):
            assert torch.equal(one.x, part.graph.x)
            assert torch.equal(one.edge_index, part.graph.edge_index)
        graph = step.graph
    assert step.reward.min() < 0


def test_tasks_beyond_the_number_of_episodes_count_for_the_sizes_only() -> None:
    env = TrafficEnv(tasks('1x1', '2x2'), num_envs=1)
    assert env.reset().num_nodes == 1
    assert env.spec.max_nodes == 4


def test_other_demands_are_other_episodes() -> None:
    outcome = play(TrafficEnv(tasks('2x2', demands=3), num_envs=6, horizon=30, phases=1), 30)[-1].outcome
    first, again = outcome['average_travel_time'].view(2, 3)
    assert torch.equal(first, again)
    assert first.unique().numel() == 3


def test_transitions_of_a_ragged_batch_go_through_the_replay() -> None:
    env = TrafficEnv(tasks('2x2', '1x1'), num_envs=4, horizon=6)
    replay, graph, generator = GraphReplay(env.spec, 500, share=False), env.reset(), torch.Generator().manual_seed(0)
    for _ in range(20):
        action = random_actions(graph, env, generator)
        step = env.step(action)
        replay.push(graph, action, None, step)
        graph = step.graph
    t = replay.sample(16, generator, n_step=3, gamma=0.9)
    assert t.graph.x.dtype == torch.int16
    assert set(t.graph.ptr.diff().tolist()) == {1, 4}


# --- states ----------------------------------------------------------------------------------------------------------


def test_a_state_of_another_batch_is_refused() -> None:
    env = TrafficEnv(tasks('2x2'), num_envs=2)
    env.reset()
    state = env.state_dict()
    with pytest.raises(ValueError, match=r"'state' is of 1 tasks, expected 2"):
        TrafficEnv(tasks('2x2', '1x1'), num_envs=2).load_state_dict(state)
    with pytest.raises(ValueError, match=r"'state' is of 2 episodes, expected num_envs=3"):
        TrafficEnv(tasks('2x2'), num_envs=3).load_state_dict(state)
    with pytest.raises(ValueError, match="'state' is of another network, flow or seed"):
        TrafficEnv(tasks('1x3'), num_envs=2).load_state_dict(state)


def test_threads_change_nothing() -> None:
    one, two = (play(TrafficEnv(tasks('2x2'), num_envs=4, engine_threads=threads), 40)[-1] for threads in (1, 2))
    assert torch.equal(one.graph.x, two.graph.x)
    assert torch.equal(one.reward, two.reward)


# --- what makes no sense ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('action', 'message'),
    [
        (torch.zeros(3, dtype=torch.int64), r'expected shape \(4,\), got \(3,\)'),
        (torch.zeros(4, 1, dtype=torch.int64), r'expected shape \(4,\), got \(4, 1\)'),
        (torch.zeros(4), r"'action' must hold integers \(got torch.float32\)"),
        (torch.tensor([0, 0, 0, 4]), r"'action' must lie in \[0, 3\] \(got 0..4\)"),
        (torch.tensor([0, 0, -1, 0]), r"'action' must lie in \[0, 3\] \(got -1..0\)"),
    ],
)
def test_a_wrong_action_is_refused(action: Tensor, message: str) -> None:
    env = TrafficEnv(tasks('2x2'))
    env.reset()
    with pytest.raises(ValueError, match=message):
        env.step(action)


def test_an_action_that_its_mask_forbids_is_refused() -> None:
    env = TrafficEnv(tasks('2x2'), phases=None)
    env.reset()
    few = TrafficEnv([_with_few_phases(tasks('2x2')[0])], phases=None)
    graph = few.reset()
    assert few.spec.has_action_mask
    assert graph.action_mask.sum(1).tolist() == [8, 2, 8, 8]
    few.step(torch.tensor([7, 1, 7, 7]))
    with pytest.raises(ValueError, match=r"'action' of node 1 .* expected one of \[0, 1\], got 2"):
        few.step(torch.tensor([7, 2, 7, 7]))


def _with_few_phases(task: Any) -> Any:
    """The second signal has 3 phases, its yellow included."""
    network, flow = task
    num_phases = network.num_phases.copy()
    num_phases[1] = 3
    return dataclasses.replace(network, num_phases=num_phases), flow


def test_stepping_before_the_start_is_refused() -> None:
    with pytest.raises(RuntimeError, match='call reset'):
        TrafficEnv(tasks('2x2')).step(torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'num_envs': 0}, "'num_envs' must be an integer of at least 1"),
        ({'horizon': 0}, "'horizon' must be an integer of at least 1"),
        ({'phases': 0}, "'phases' must be an integer of at least 1"),
        ({'yellow': 10}, "'yellow' must be shorter than a decision of 10 s"),
        ({'backend': 'sumo'}, "'backend' must be one of"),
        ({'tasks': []}, "'tasks' must hold at least one pair"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrafficEnv(**{'tasks': tasks('1x1'), **options})


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'net': ()}, "'net' must name at least one network"),
        ({'net': ('nowhere.json',)}, r"road network 'nowhere.json' cannot be read"),
        ({'net': ('0x3',)}, "'rows' must be an integer of at least 1"),
        ({'demands': 0}, "'demands' must be an integer of at least 1"),
        ({'demand_seed': -1}, "'demand_seed' must be an integer of at least 0"),
        ({'net': ('1x1', '2x2'), 'flow': ('a.json',)}, r"'flow' needs one file for each network.*expected 2, got 1"),
        ({'net': ('1x1',), 'flow': ('nowhere.json',)}, "flow 'nowhere.json' cannot be read"),
        ({'turn': 2.0}, r"'turn' must be a probability in \[0, 1\]"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_traffic(TrafficConfig(**options))


def test_a_network_without_any_signal_is_refused() -> None:
    network, flow = tasks('1x1')[0]
    none = np.zeros(0, np.int64)
    with pytest.raises(ValueError, match="'network' has no signal: there is nothing to decide"):
        TrafficEnv((dataclasses.replace(network, signals=none), flow))


def test_where_phase_0_is_no_yellow_it_can_be_chosen() -> None:
    network, flow = tasks('1x2')[0]
    phase_open = network.phase_open.copy()
    phase_open[0, 0] = phase_open[0, 3]
    env = TrafficEnv((dataclasses.replace(network, phase_open=phase_open), flow), phases=3)
    assert env.choices[0].yellow.tolist() == [False, True]
    assert env.choices[0].phase.tolist() == [[0, 1, 2], [1, 2, 3]]
    env.reset()
    env.step(torch.tensor([2, 0]))
    assert env.phases[0].tolist() == [[2, 1]]


def test_a_network_without_vehicles_has_zero_metrics() -> None:
    network, flow = tasks('1x1')[0]
    late = dataclasses.replace(flow, start=flow.start + 10_000, end=flow.end + 10_000)
    last = play(TrafficEnv((network, late), horizon=5), 5)[-1]
    assert last.reward.tolist() == [0.0]
    assert {name: value.item() for name, value in last.outcome.items()} == dict.fromkeys(DESCRIPTIONS, 0.0)


@pytest.mark.parametrize('option', [{'demand_seed': 1}, {'demands': 2}, {'turn': 0.5}])
def test_options_of_generated_demand_are_refused_beside_a_flow(option):
    with pytest.raises(
        ValueError, match=r"'demand_seed', 'demands' and 'turn' are options of generated demand .*'flow.json'"
    ):
        load_tasks(('6x6',), ('flow.json',), **option)
