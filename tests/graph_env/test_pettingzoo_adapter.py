from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from mpe2 import simple_spread_v3
from pettingzoo import ParallelEnv

from ltos_pyg.graph_env import FullyConnected, KNearest, NeighbourRule, PettingZooEnv, check_env, from_pettingzoo


class Pond(ParallelEnv):
    """Frogs come and go by a timetable. A frog sees (its number, the time); its reward is 10 x number + action.

    ``timetable[t]`` says what step t (from 1) does: ``dies``, ``late`` and ``born`` list frogs.
    """

    metadata = {'name': 'pond_v0'}
    possible_agents = ['a', 'b', 'c', 'd']

    def __init__(self, timetable: dict[int, dict[str, str]], start: str = 'abc') -> None:
        self.timetable, self.first = timetable, start

    def observation_space(self, agent: str) -> spaces.Space:
        return spaces.Box(0, 100, (2,))

    def action_space(self, agent: str) -> spaces.Space:
        return spaces.Discrete(3)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.time, self.agents = 0, list(self.first)
        return self.observe(self.agents), {agent: {} for agent in self.agents}

    def observe(self, agents: list[str]) -> dict[str, Any]:
        return {agent: np.array([self.number(agent), self.time], dtype=np.float32) for agent in agents}

    def number(self, agent: str) -> int:
        return self.possible_agents.index(agent)

    def step(self, actions: dict[str, int]) -> Any:
        self.time += 1
        today = self.timetable.get(self.time, {})
        dies, late, born = (list(today.get(what, '')) for what in ('dies', 'late', 'born'))
        acted = list(actions)
        self.agents = [agent for agent in [*born, *self.agents] if agent not in dies + late]
        return (
            self.observe(acted + born),
            {agent: 10 * self.number(agent) + actions[agent] for agent in acted},
            {agent: agent in dies for agent in acted},
            {agent: agent in late for agent in acted},
            {agent: {} for agent in acted},
        )


def play(timetable, *, start='abc', action=0, **options):
    """Starts and yields the steps of one episode."""
    env = from_pettingzoo(lambda: Pond(timetable, start), **options)
    graph = env.reset(seed=0)
    while True:
        step = env.step(torch.full((graph.num_nodes,), action))
        yield step
        graph = step.graph


def ids(graph):
    return ''.join('abcd'[i] for i in graph.node_id.tolist())


def flags(step):
    return bool(step.terminated), bool(step.truncated)


# --- Who is there, and how an episode ends ---------------------------------------------------------------------------


def test_an_agent_that_dies_gets_its_last_reward_and_leaves_the_successor():
    one, two = (step for step, _ in zip(play({1: {'dies': 'b'}}, action=2), range(2), strict=False))
    assert one.reward.tolist() == [2, 12, 22]
    assert ids(one.successor) == 'ac'
    assert one.graph is one.successor
    assert flags(one) == (False, False)
    assert one.successor.x.tolist() == [[0, 1], [2, 1]]
    assert two.reward.tolist() == [2, 22]


def test_an_agent_whose_own_clock_ran_out_leaves_too():
    step = next(play({1: {'late': 'a'}}))
    assert ids(step.successor) == 'bc'
    assert flags(step) == (False, False)


def test_an_agent_that_is_born_is_in_the_successor_in_its_place():
    one, two = (step for step, _ in zip(play({1: {'born': 'b'}}, start='dac'), range(2), strict=False))
    assert one.reward.tolist() == [0, 20, 30]  # a, c, d: the order of possible_agents
    assert ids(one.successor) == 'abcd'
    assert two.reward.tolist() == [0, 10, 20, 30]


def test_an_episode_whose_agents_all_died_is_terminated_with_their_last_observations():
    step = next(play({1: {'dies': 'abc'}}))
    assert flags(step) == (True, False)
    assert step.successor.x.tolist() == [[0, 1], [1, 1], [2, 1]]
    assert step.graph.x.tolist() == [[0, 0], [1, 0], [2, 0]]


def test_all_late_is_truncated_with_the_true_successor():
    step = next(play({1: {'late': 'abc'}}))
    assert flags(step) == (False, True)
    assert step.successor.x[:, 1].tolist() == [1, 1, 1]
    assert step.graph.x[:, 1].tolist() == [0, 0, 0]


def test_of_the_last_agents_only_those_late_are_there_to_bootstrap_from():
    step = next(play({1: {'dies': 'a', 'late': 'bc'}}))
    assert flags(step) == (False, True)
    assert ids(step.successor) == 'bc'
    assert ids(step.graph) == 'abc'


def test_an_agent_both_dead_and_late_is_dead():
    step = next(play({1: {'dies': 'abc', 'late': 'abc'}}))
    assert flags(step) == (True, False)


def test_a_horizon_is_a_clock_beside_the_environments_own():
    steps = [step for step, _ in zip(play({}, horizon=3), range(6), strict=False)]
    assert [flags(step) for step in steps] == [(False, False), (False, False), (False, True)] * 2
    assert steps[2].successor.x[:, 1].tolist() == [3, 3, 3]


@pytest.mark.parametrize('timetable', [{1: {'dies': 'b'}, 2: {'born': 'd'}, 5: {'dies': 'ac'}, 6: {'late': 'd'}}])
def test_the_checker_passes_deaths_and_births(timetable):
    check_env(lambda: from_pettingzoo(lambda: Pond(timetable), num_envs=2), steps=30)


# --- Observations, masks and actions ---------------------------------------------------------------------------------


class Zoo(Pond):
    """A pond whose spaces are set by the test; it shows what `show` says."""

    def __init__(self, observation=None, action=None, show=None) -> None:
        super().__init__({4: {'late': 'abc'}})
        self.spaces = observation or {}, action or {}
        self.show = show or {}

    def observation_space(self, agent):
        return self.spaces[0].get(agent, super().observation_space(agent))

    def action_space(self, agent):
        return self.spaces[1].get(agent, super().action_space(agent))

    def observe(self, agents):
        return {agent: self.show.get(agent, seen) for agent, seen in super().observe(agents).items()}

    def step(self, actions):
        self.taken = actions
        return super().step(actions)


def test_shorter_observations_are_padded_with_zeros():
    zoo = {'observation': {'b': spaces.Box(0, 1, (2, 2))}, 'show': {'b': np.full((2, 2), 0.5, dtype=np.float32)}}
    env = from_pettingzoo(lambda: Zoo(**zoo))
    assert env.reset().x.tolist() == [[0, 0, 0, 0], [0.5, 0.5, 0.5, 0.5], [2, 0, 0, 0]]
    check_env(lambda: from_pettingzoo(lambda: Zoo(**zoo)), steps=15)
    with pytest.raises(
        ValueError, match=r"observe equally many values \(got {'a': 2, 'b': 4, .*observation_sizes='pad'"
    ):
        from_pettingzoo(lambda: Zoo(**zoo), observation_sizes='error')


@pytest.mark.parametrize(
    ('dtype', 'expected'), [(np.uint8, torch.uint8), (np.int8, torch.int8), (np.float64, torch.float32)]
)
def test_small_integers_stay_small(dtype, expected):
    box = spaces.Box(0, 100, (2,), dtype=dtype)
    observation, show = dict.fromkeys('abcd', box), dict.fromkeys('abcd', np.array([1, 2], dtype=dtype))
    env = from_pettingzoo(lambda: Zoo(observation, show=show))
    assert env.spec.feature_dtype == env.reset().x.dtype == expected
    mixed = from_pettingzoo(lambda: Zoo({**observation, 'a': spaces.Box(0, 1, (2,), dtype=np.float32)}, show=show))
    assert mixed.spec.feature_dtype == torch.float32


def test_a_space_that_flattens_will_do():
    observation = dict.fromkeys('abcd', spaces.Tuple([spaces.Discrete(3), spaces.MultiBinary(2)]))
    env = from_pettingzoo(lambda: Zoo(observation, show=dict.fromkeys('abcd', (1, np.array([0, 1], dtype=np.int8)))))
    assert env.reset().x[0].tolist() == [0, 1, 0, 0, 1]


def masked(mask, size=3):
    space = spaces.Dict(observation=spaces.Box(0, 9, (1,)), action_mask=spaces.Box(0, 1, (size,), dtype=np.int8))
    seen = {'observation': np.ones(1, dtype=np.float32), 'action_mask': np.array(mask, dtype=np.int8)}
    return {'observation': dict.fromkeys('abcd', space), 'show': dict.fromkeys('abcd', seen)}


def test_an_action_mask_is_taken_out_of_the_observation():
    def rule(observations, agents):
        assert all(seen.shape == (1,) for seen in observations.values())  # without the mask
        return [[0], [1]]

    env = from_pettingzoo(lambda: Zoo(**masked([0, 1, 1])), rule)
    graph = env.reset()
    assert env.spec.has_action_mask
    assert graph.x.tolist() == [[1]] * 3
    assert graph.action_mask.tolist() == [[False, True, True]] * 3
    check_env(lambda: from_pettingzoo(lambda: Zoo(**masked([0, 1, 1])), rule), steps=15)


def test_a_mask_beside_other_entries_of_the_observation_is_used():
    sizes = {'action_mask': 3, 'speed': 2, 'place': 1}
    space = spaces.Dict([(name, spaces.Box(0, 9, (size,))) for name, size in sizes.items()])
    seen = {'action_mask': np.array([0, 1, 1]), 'speed': np.full(2, 5.0), 'place': np.ones(1)}

    def rule(observations, agents):
        assert all(set(seen) == {'speed', 'place'} for seen in observations.values())  # without the mask
        return [[0], [1]]

    env = from_pettingzoo(lambda: Zoo(dict.fromkeys('abcd', space), show=dict.fromkeys('abcd', seen)), rule)
    graph = env.reset()
    assert graph.x.tolist() == [[5, 5, 1]] * 3
    assert graph.action_mask.tolist() == [[False, True, True]] * 3


class Told(Pond):
    """Its masks are in the infos: each agent may repeat what it did last, and take action 2."""

    masked_from = 0  # the step

    def masks(self, actions):
        if self.time < self.masked_from:
            return {agent: {} for agent in actions}
        return {agent: {'action_mask': np.eye(3, dtype=np.int8)[[actions[agent], 2]].max(0)} for agent in actions}

    def reset(self, seed=None, options=None):
        observations, _ = super().reset()
        return observations, self.masks(dict.fromkeys(self.agents, 0))

    def step(self, actions):
        *results, _ = super().step(actions)
        return *results, self.masks(actions)


def test_a_mask_in_the_infos_is_used():
    env = from_pettingzoo(lambda: Told({2: {'born': 'd'}, 4: {'late': 'abcd'}}))
    assert env.spec.has_action_mask
    assert env.reset().action_mask.tolist() == [[True, False, True]] * 3
    step = env.step(torch.tensor([0, 2, 1]))
    assert step.graph.action_mask.tolist() == [[True, False, True], [False, False, True], [False, True, True]]
    assert env.step(torch.tensor([0, 2, 2])).graph.action_mask[3].all()  # of the newborn there is no mask
    check_env(lambda: from_pettingzoo(lambda: Told({5: {'late': 'abc'}})), steps=15)


def test_a_mask_in_the_infos_is_there_from_the_start_or_never():
    class Late(Told):
        masked_from = 1

    env = from_pettingzoo(lambda: Late({}))
    env.reset()
    with pytest.raises(ValueError, match=r"'action_mask' must be in the infos of pond_v0 from its first reset"):
        env.step(torch.zeros(3, dtype=torch.int64))


def test_agents_with_fewer_actions_have_the_rest_masked():
    actions = {'b': spaces.Discrete(2, start=5)}
    env = from_pettingzoo(lambda: Zoo(action=actions))
    assert env.spec.has_action_mask
    assert env.reset().action_mask.tolist() == [[True] * 3, [True, True, False], [True] * 3]
    env.step(torch.tensor([2, 1, 0]))
    assert env.envs[0].env.taken == {'a': 2, 'b': 6, 'c': 0}  # b's actions start at 5
    check_env(lambda: from_pettingzoo(lambda: Zoo(action=actions)), steps=15)


def test_a_mask_that_allows_nothing_is_refused_while_the_agent_lives():
    with pytest.raises(ValueError, match=r"'action_mask' must leave each agent an action \(got none for 'a'\)"):
        from_pettingzoo(lambda: Zoo(**masked([0, 0, 0]))).reset()

    class Last(Zoo):
        def observe(self, agents):
            legal = [0, 0, 0] if self.time == 4 else [1, 0, 0]
            return {a: {**seen, 'action_mask': np.array(legal)} for a, seen in super().observe(agents).items()}

    env = from_pettingzoo(lambda: Last(**masked([1, 0, 0])))
    env.reset()
    steps = [env.step(torch.zeros(3, dtype=torch.int64)) for _ in range(4)]
    assert bool(steps[-1].truncated)
    assert steps[-1].successor.action_mask.all()  # its value is that of its best action, of all


# --- Neighbours ------------------------------------------------------------------------------------------------------


def test_rules_go_into_the_spec():
    def near(rule):
        spec = from_pettingzoo(lambda: Pond({}), rule).spec
        return spec.symmetric, spec.max_edges

    def own(observations, agents):
        return torch.empty(2, 0, dtype=torch.int64)

    assert near(None) == near(FullyConnected()) == (True, 12)
    assert near(KNearest(1, slice(0, 1))) == (True, 8)
    assert near(KNearest(2, slice(0, 1))) == (True, 12)
    assert near(KNearest(2, slice(0, 1), symmetric=False)) == (False, 8)
    assert near(own) == (False, 12)
    own.symmetric = True
    assert near(own) == (True, 12)


@pytest.mark.parametrize('symmetric', [True, False])
@pytest.mark.parametrize('k', [1, 2, 5])
def test_k_nearest_never_has_more_edges_than_it_says(k, symmetric):
    rule, rng = KNearest(k, slice(None), symmetric), np.random.default_rng(0)
    for n in (1, 2, 6):
        agents = list(range(n))
        counts = [rule.edges(None, agents, {a: rng.normal(size=2) for a in agents}).size(1) for _ in range(50)]
        assert max(counts) <= rule.max_edges(n)


def test_a_custom_edge_rule_gets_the_live_agents():
    class Chain(NeighbourRule):
        def edges(self, env, agents, observations):
            assert env.agents == agents == list(observations)
            return torch.stack([torch.arange(len(agents) - 1), torch.arange(1, len(agents))])

        def max_edges(self, num_agents):
            return num_agents - 1

    steps = play({1: {'dies': 'b'}}, neighbours=Chain())
    assert next(steps).graph.edge_index.tolist() == [[0], [1]]


# --- Bad input -------------------------------------------------------------------------------------------------------


class NoList(Pond):
    possible_agents: list[str] = []


class Unnamed(Pond):
    def reset(self, seed=None, options=None):
        observations, infos = super().reset()
        self.agents.append('zebra')
        return observations, infos


class Blind(Pond):
    def step(self, actions):
        observations, *others = super().step(actions)
        return {a: o for a, o in observations.items() if a != 'b'}, *others


class Unpaid(Pond):
    def step(self, actions):
        observations, rewards, *others = super().step(actions)
        del rewards['c']
        return observations, rewards, *others


class Empty(Pond):
    def reset(self, seed=None, options=None):
        self.agents = []
        return {}, {}


@pytest.mark.parametrize(
    ('make_env', 'message'),
    [
        (
            lambda: simple_spread_v3.env(),
            r'in which all agents act at once \(got the AEC environment .*aec_to_parallel',
        ),
        (lambda: 'battle', r'must make a pettingzoo.ParallelEnv \(got str\)\. A game of your own'),
        (lambda: NoList({}), r"pond_v0 must list all agents that can ever take part in 'possible_agents' \(got none\)"),
        (
            lambda: simple_spread_v3.parallel_env(continuous_actions=True),
            r"Actions must be Discrete \(got {'agent_0': Box\(.*continuous_actions=False",
        ),
        (
            lambda: Zoo({'a': spaces.Graph(spaces.Box(0, 1, (2,)), None)}),
            r"observation space of 'a' must be one that flattens .*\(got Graph\(",
        ),
    ],
)
def test_an_environment_that_does_not_fit_is_refused_at_once(make_env, message):
    with pytest.raises(ValueError, match=message):
        PettingZooEnv(make_env)


@pytest.mark.parametrize(
    ('make_env', 'message'),
    [
        (lambda: Unnamed({}), r"'agents' of pond_v0 must be among 'possible_agents' \(got \['zebra'\] beside \['a'"),
        (lambda: Empty({}), r'pond_v0 has no agent after reset\(\)'),
        (lambda: Blind({}), r"give every agent that acted its observation \(got none for 'b', only for \['a', 'c'\]\)"),
        (lambda: Unpaid({}), r"give every agent that acted its reward \(got none for 'c', only for \['a', 'b'\]\)"),
        (lambda: Blind({1: {'late': 'abc'}}), r"its observation \(got none for 'b'.*also at the step in which"),
        (lambda: Zoo(show={'a': np.ones(3)}), r'An observation must fit its space .* of 2 values \(got 3\)'),
        (lambda: Zoo(**masked([1, 1])), r"'action_mask' needs one entry per action: expected 3, got 2"),
    ],
)
def test_an_environment_that_breaks_its_declaration_raises(make_env, message):
    env = from_pettingzoo(make_env)
    with pytest.raises(ValueError, match=message):  # noqa: PT012 (some fail at once, some in the first step)
        env.reset()
        env.step(torch.zeros(3, dtype=torch.int64))


def test_the_dead_need_no_last_sight():
    env = from_pettingzoo(lambda: Blind({1: {'dies': 'abc'}}))
    env.reset()
    step = env.step(torch.zeros(3, dtype=torch.int64))
    assert step.successor.x.tolist() == [[0, 1], [1, 0], [2, 1]]  # of b, what it saw before


@pytest.mark.parametrize('neighbours', [KNearest, 3, 'all'])
def test_neighbours_must_be_a_rule(neighbours):
    with pytest.raises(ValueError, match=r"'neighbours' must be a NeighbourRule or a function .*Did you mean Fully"):
        PettingZooEnv(lambda: Pond({}), neighbours)


def test_options_are_checked():
    with pytest.raises(ValueError, match=r"'k' must be at least 1 \(got 0\)"):
        KNearest(0, slice(0, 2))
    with pytest.raises(ValueError, match=r"'observation_sizes' must be 'pad' or 'error' \(got 'cut'\)"):
        PettingZooEnv(lambda: Pond({}), observation_sizes='cut')


def test_the_environment_is_closed():
    closed = []

    class Door(Pond):
        def close(self) -> None:
            closed.append(self)

    from_pettingzoo(lambda: Door({}), num_envs=2).close()
    assert len(closed) == 2


def test_without_pettingzoo_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pettingzoo', None)
    with pytest.raises(ImportError, match=r'PettingZoo is not installed: run `pip install "ltos_pyg\[pettingzoo\]"`'):
        from_pettingzoo(lambda: Pond({}))


@pytest.mark.parametrize('position', [slice(2, 4), slice(1, 3), slice(1, 1)])
def test_a_position_lies_within_the_observation(position):
    with pytest.raises(ValueError, match=r"'position' must lie within the observation: agent 0 has 2 values"):
        KNearest(1, position).edges(None, [0, 1], {a: np.zeros(2) for a in (0, 1)})


class Meadow(Pond):
    """Its observation is a place and a speed."""

    def observation_space(self, agent: str) -> spaces.Space:
        return spaces.Dict({'place': spaces.Box(0, 9, (2,)), 'speed': spaces.Box(0, 9, (1,))})

    def observe(self, agents: list[str]) -> dict[str, Any]:
        places = {agent: np.array([self.number(agent) ** 2, 0.0], dtype=np.float32) for agent in agents}
        return {agent: {'place': place, 'speed': np.ones(1, np.float32)} for agent, place in places.items()}


def test_a_position_is_a_slice_of_the_flattened_observation():
    env = from_pettingzoo(lambda: Meadow({}), KNearest(1, position=slice(0, 2), symmetric=False))
    graph = env.reset(seed=0)
    assert graph.x.tolist() == [[0, 0, 1], [1, 0, 1], [4, 0, 1]]
    assert sorted(graph.edge_index.t().tolist()) == [[0, 1], [1, 0], [1, 2]]


def test_agents_of_a_fixed_set_must_end_alike():
    with pytest.raises(ValueError, match=r"with fixed_nodes=True all agents must end alike \(got \['b', 'c'\] trunc"):
        list(zip(range(3), play({2: {'dies': 'a', 'late': 'bc'}}, fixed_nodes=True), strict=False))
