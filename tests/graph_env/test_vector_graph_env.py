from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

import ltos_pyg
from ltos_pyg.data import Snapshot
from ltos_pyg.graph_env import (
    GraphEnvSpec,
    SingleGraphEnv,
    SingleStep,
    VectorGraphEnv,
    check_env,
    fully_connected,
)


class Leader(Snapshot):
    NODE_NUMBERS = Snapshot.NODE_NUMBERS | {'leader'}


class Camp(SingleGraphEnv):
    """0 to 4 campers at random places; each follows a leader. It ends when no camper is left, or at the horizon."""

    num_features, num_actions, max_nodes, horizon = 2, 3, 4, 5
    fixed_nodes, symmetric = False, True

    def start(self) -> Snapshot:
        self.campers = torch.arange(1 + int(torch.randint(4, (1,), generator=self.generator)))
        return self.look()

    def step(self, action: Tensor) -> SingleStep:
        reward = action.float() + self.campers
        stay = torch.rand(len(action), generator=self.generator) < 0.9
        self.campers = self.campers[stay]
        over = len(self.campers) == 0
        return SingleStep(self.look(), reward, terminated=over, info={'left': float(len(self.campers))})

    def look(self) -> Snapshot:
        n = len(self.campers)
        x = torch.rand(n, 2, generator=self.generator)
        leader = torch.arange(n).flip(0)
        return Leader(x=x, edge_index=fully_connected(n), node_id=self.campers, leader=leader)


class Count(SingleGraphEnv):
    """Two agents see the step's number and a random one; it can be saved."""

    num_features, num_actions, max_nodes, symmetric, horizon = 2, 2, 2, True, 4

    def start(self) -> Snapshot:
        self.seen = torch.zeros(2, 2)
        return self.look()

    def step(self, action: Tensor) -> SingleStep:
        self.seen[:, 0] += 1
        self.seen[:, 1] = torch.rand(2, generator=self.generator)
        return SingleStep(self.look(), action.float(), terminated=bool((self.seen[:, 1] < 0.1).any()))

    def look(self) -> Snapshot:
        return Snapshot(x=self.seen.clone(), edge_index=fully_connected(2))

    def state_dict(self) -> dict[str, Any]:
        return {'seen': self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> Snapshot:
        self.seen = state['seen']
        return self.look()


def assert_same_graph(one: Data, other: Data) -> None:
    assert set(one.keys()) == set(other.keys())
    for key in one.keys():  # noqa: SIM118
        assert torch.equal(one[key], other[key]), key


def actions(n: int, t: int, high: int = 3) -> Tensor:
    return torch.randint(high, (n,), generator=torch.Generator().manual_seed(t))


@pytest.mark.parametrize('game', [Camp, Count])
def test_the_checker_passes(game):
    check_env(lambda: VectorGraphEnv(game, num_envs=3), steps=40)


def test_a_batch_is_its_games_side_by_side():
    env = VectorGraphEnv(Camp, num_envs=4)
    graph = env.reset(seed=5)
    singles = [Camp() for _ in range(4)]
    for single, stream in zip(singles, env.envs, strict=True):
        single.seed(stream.generator.initial_seed())
    shown, clocks = [single.start() for single in singles], [0] * 4
    for t in range(30):
        assert_same_graph(graph, Batch.from_data_list(shown))
        action = actions(graph.num_nodes, t)
        step = env.step(action)
        alone = [s.step(a) for s, a in zip(singles, action.split([g.x.size(0) for g in shown]), strict=True)]
        clocks = [clock + 1 for clock in clocks]
        assert torch.equal(step.reward, torch.cat([one.reward for one in alone]))
        assert step.info['left'].tolist() == [one.info['left'] for one in alone]
        assert_same_graph(step.successor, Batch.from_data_list([one.graph for one in alone]))
        assert step.terminated.tolist() == [one.terminated for one in alone]
        late = [clock == 5 and not one.terminated for clock, one in zip(clocks, alone, strict=True)]
        assert step.truncated.tolist() == late
        ended = step.ended.tolist()
        shown = [s.start() if end else one.graph for s, end, one in zip(singles, ended, alone, strict=True)]
        clocks = [0 if end else clock for clock, end in zip(clocks, ended, strict=True)]
        graph = step.graph


def test_node_numbers_of_a_subclass_are_shifted_and_come_back():
    graph = VectorGraphEnv(Camp, num_envs=3).reset()
    assert graph.leader.tolist() == [
        int(p) + i for p, n in zip(graph.ptr[:-1], graph.ptr.diff(), strict=True) for i in reversed(range(n))
    ]
    for one in graph.to_data_list():
        assert isinstance(one, Leader)
        assert one.leader.tolist() == list(reversed(range(one.num_nodes)))


@pytest.mark.parametrize('end', [3, 4, 5, None])
def test_a_task_that_ends_at_the_horizon_is_terminated_not_truncated(end):
    class Ends(Count):  # its horizon is 4
        def step(self, action: Tensor) -> SingleStep:
            return super().step(action)._replace(terminated=bool(self.seen[0, 0] == end))

    env = VectorGraphEnv(Ends)
    env.reset()
    steps = [env.step(torch.zeros(2, dtype=torch.int64)) for _ in range(4)]
    length = 4 if end is None else min(end, 4)
    assert [bool(s.ended) for s in steps[:length]] == [False] * (length - 1) + [True]
    assert bool(steps[length - 1].terminated) == (end in (3, 4))
    assert bool(steps[length - 1].truncated) == (end not in (3, 4))


def test_a_clock_of_its_own_truncates_unless_the_task_ended():
    class Tired(Count):
        def step(self, action: Tensor) -> SingleStep:
            return super().step(action)._replace(terminated=bool(action[0]), truncated=True)

    env = VectorGraphEnv(Tired, num_envs=2)
    env.reset()
    step = env.step(torch.tensor([0, 0, 1, 0]))
    assert (step.truncated.tolist(), step.terminated.tolist()) == ([True, False], [False, True])


def test_where_nothing_ended_graph_and_successor_are_one():
    env = VectorGraphEnv(Count, num_envs=2)
    env.reset(seed=0)
    steps = [env.step(torch.ones(4, dtype=torch.int64)) for _ in range(12)]
    assert {bool(step.ended.any()) for step in steps} == {True, False}
    for step in steps:
        assert (step.graph is step.successor) == (not bool(step.ended.any()))
        assert step.graph.x[step.ended[step.graph.batch], 0].eq(0).all()  # a new start
        assert step.successor.x[:, 0].gt(0).all()  # the end of the old episode


def test_each_game_has_its_own_seed_whatever_their_number():
    few, many = VectorGraphEnv(Camp, num_envs=2, seed=3), VectorGraphEnv(Camp, num_envs=50, seed=3)
    seeds = [env.generator.initial_seed() for env in many.envs]
    assert len(set(seeds)) == 50
    assert [env.generator.initial_seed() for env in few.envs] == seeds[:2]
    many.reset(seed=4)
    assert not set(seeds) & {env.generator.initial_seed() for env in many.envs}


def test_reset_without_a_seed_continues_the_rng():
    env = VectorGraphEnv(Camp, num_envs=8)
    first, second = env.reset(seed=1), env.reset()
    assert first.x.shape != second.x.shape or not torch.equal(first.x, second.x)
    assert_same_graph(first, env.reset(seed=1))


def test_a_state_can_be_loaded_twice():
    env = VectorGraphEnv(Count, num_envs=3)
    graph = env.reset(seed=2)
    env.step(torch.ones(6, dtype=torch.int64))
    state = env.state_dict()
    plays = []
    for _ in range(3):
        plays.append([env.step(torch.ones(6, dtype=torch.int64)) for _ in range(9)])
        graph = env.load_state_dict(state)
    assert graph.x[0, 0] == 1
    for one, two, three in zip(*plays, strict=True):
        assert torch.equal(one.successor.x, two.successor.x)
        assert torch.equal(one.successor.x, three.successor.x)
        assert torch.equal(one.terminated, two.terminated)


def test_no_state_where_a_game_has_none():
    env = VectorGraphEnv(Camp, num_envs=2)
    env.reset()
    assert env.state_dict() is None
    with pytest.raises(RuntimeError, match=r'Camp does not save its state: call start\(\) instead'):
        env.load_state_dict({'envs': [None, None], 'generators': [], 'elapsed': []})
    two, three = VectorGraphEnv(Count, num_envs=2), VectorGraphEnv(Count, num_envs=3)
    assert two.state_dict() is None  # nothing has started
    two.reset()
    with pytest.raises(ValueError, match=r"'state' must hold 3 games \(got 2\). Make the environment with num_envs=2"):
        three.load_state_dict(two.state_dict())


def test_every_game_is_closed():
    closed = []

    class Door(Count):
        def close(self) -> None:
            closed.append(self)

    VectorGraphEnv(Door, num_envs=3).close()
    assert len(closed) == 3


@pytest.mark.parametrize(
    ('action', 'message'),
    [
        (torch.zeros(3, dtype=torch.int64), r"'action' needs one entry per node .* expected shape \(4,\), got \(3,\)"),
        (torch.zeros(4, 1, dtype=torch.int64), r'expected shape \(4,\), got \(4, 1\)'),
        (torch.zeros(4), r"'action' must be integers \(got torch.float32\)"),
        (torch.tensor([0, 0, 2, 0]), r"'action' must lie in \[0, 1\] \(got 0..2\). Does the network have 2 outputs"),
        (torch.tensor([0, -1, 0, 0]), r"'action' must lie in \[0, 1\] \(got -1..0\)"),
    ],
)
def test_bad_actions_are_refused_before_anything_moves(action, message):
    env = VectorGraphEnv(Count, num_envs=2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(action)
    other = VectorGraphEnv(Count, num_envs=2)
    other.reset(seed=0)
    right = torch.ones(4, dtype=torch.int64)
    assert torch.equal(env.step(right).successor.x, other.step(right).successor.x)


def test_actions_of_any_integer_type_are_taken():
    env = VectorGraphEnv(Count)
    env.reset()
    assert env.step(torch.ones(2, dtype=torch.uint8)).reward.tolist() == [1, 1]


def with_method(name: str, method: Any) -> type[Count]:
    return type('Broken', (Count,), {name: method})


def test_a_game_that_returns_the_wrong_thing_raises():
    short = with_method('step', lambda self, action: SingleStep(self.look(), torch.ones(1)))
    env = VectorGraphEnv(short)
    env.reset()
    with pytest.raises(
        ValueError, match=r"'reward' needs one entry per agent that acted: expected shape \(2,\), got \(1,\)"
    ):
        env.step(torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r'Broken.start\(\) must return a Snapshot as its graph \(got Data\)'):
        VectorGraphEnv(with_method('start', lambda self: Data())).reset()
    with pytest.raises(RuntimeError, match=r'No episode has started yet: call reset\(\) before step\(\)'):
        VectorGraphEnv(Count).step(torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"'num_envs' must be at least 1 \(got 0\)"):
        VectorGraphEnv(Count, num_envs=0)


def test_info_has_the_same_names_everywhere():
    def step(self, action):
        info = {'odd': 1.0} if self.generator.initial_seed() % 2 else {}
        return SingleStep(self.look(), torch.ones(2), info=info)

    env = VectorGraphEnv(with_method('step', step), num_envs=8)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"'info' must have the same names in every game .*\['odd'\]"):
        env.step(torch.zeros(16, dtype=torch.int64))


def test_info_has_the_same_names_at_every_step():
    def step(self, action):
        self.seen = self.seen + 1
        last = bool((self.seen == 4).all())
        return SingleStep(self.look(), torch.ones(2), info={'won': 1.0} if last else {})

    env = VectorGraphEnv(with_method('step', step), num_envs=2)
    env.reset(seed=0)
    for _ in range(3):
        env.step(torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"'info' must have the same names .* belongs in 'outcome'"):
        env.step(torch.zeros(4, dtype=torch.int64))


def test_an_outcome_is_that_of_the_episode_and_not_divided_by_its_length(tmp_path):
    class Raffle(Count):
        def step(self, action: Tensor) -> SingleStep:
            step = super().step(action)
            won = torch.rand((), generator=self.generator) < 0.5
            return step._replace(outcome={'won': won}, terminated=(self.seen[0, 0] == 2) & won)

    env = VectorGraphEnv(Raffle, num_envs=8)
    check_env(lambda: VectorGraphEnv(Raffle, num_envs=8), steps=30)
    env.reset(seed=1)
    ended = 0
    for _ in range(4):
        step = env.step(torch.zeros(16, dtype=torch.int64))
        assert set(step.outcome) == ({'won'} if bool(step.ended.any()) else set())
        ended += int(step.ended.sum())
        if step.outcome:
            assert bool((step.outcome['won'][step.terminated] == 1).all())
            assert bool((step.outcome['won'][~step.ended] == 0).all())
    assert ended >= 8
    steps = {'learning_starts': 100, 'num_envs': 8, 'eval_episodes': 8, 'final_episodes': 64, 'media': False}
    run = ltos_pyg.train(Raffle, 'dqn', 200, out=tmp_path, **steps)
    won = run.result['eval']['policy']['won']
    assert won['count'] == 64
    assert 0.5 < won['mean'] < 0.95  # half of those that are not ended by it, and all that are: 0.75


def test_numbers_of_a_game_may_be_tensors_of_one_element():
    def step(self, action):
        self.seen = self.seen + 1
        over = (self.seen > 2).all()
        return SingleStep(self.look(), torch.ones(2), terminated=over, info={'seen': self.seen.mean()})

    env = VectorGraphEnv(with_method('step', step), num_envs=2)
    env.reset(seed=0)
    steps = [env.step(torch.zeros(4, dtype=torch.int64)) for _ in range(3)]
    assert [step.terminated.tolist() for step in steps] == [[False, False], [False, False], [True, True]]
    assert [step.info['seen'].dim() for step in steps] == [1, 1, 1]


def test_graphs_of_a_batch_have_the_same_fields():
    def start(self):
        graph = Count.start(self)
        if self.generator.initial_seed() % 2:
            graph.extra = torch.zeros(2)
        return graph

    with pytest.raises(ValueError, match=r'graphs of a batch must have the same fields .*extra.*or in none'):
        VectorGraphEnv(with_method('start', start), num_envs=8).reset(seed=0)


def test_sizes_must_be_said_and_be_the_same():
    class Silent(Count):
        def __getattribute__(self, name: str) -> Any:
            if name in ('num_actions', 'max_nodes'):
                raise AttributeError(name)
            return super().__getattribute__(name)

    with pytest.raises(ValueError, match=r'Silent must declare its sizes: num_actions, max_nodes missing'):
        VectorGraphEnv(Silent)
    sizes = iter([2, 3])

    class Growing(Count):
        def __init__(self) -> None:
            self.max_nodes = next(sizes)

    with pytest.raises(
        ValueError, match=r"'make_env' must make games of the same sizes every time .*game 1: .*max_nodes=3"
    ):
        VectorGraphEnv(Growing, num_envs=2)


def test_the_spec_says_what_the_game_says():
    class Wide(Count):
        max_edges, edge_dim, edge_scale, feature_scale, feature_dtype = 7, 2, (1.0, 0.5), (1.0, 2.0), torch.int8

    spec = VectorGraphEnv(Wide, num_envs=3).spec
    assert (spec.num_envs, spec.max_edges, spec.edge_dim, spec.horizon) == (3, 7, 2, 4)
    assert (spec.feature_dtype, spec.edge_scale, spec.feature_scale) == (torch.int8, (1.0, 0.5), (1.0, 2.0))
    assert VectorGraphEnv(Camp).spec.max_edges == 12  # four fully connected nodes


@pytest.mark.parametrize(
    ('graph', 'more', 'message'),
    [
        ({'x': np.ones((2, 2))}, {}, r"'x' from Mistaken.step\(\) must be a torch.Tensor \(got ndarray\)"),
        ({'note': 'a'}, {}, r"'note' of the graph from Mistaken.step\(\) must be a torch.Tensor, .* \(got str\)"),
        (
            {'edge_index': torch.tensor([[0, 2], [1, 0]])},
            {},
            r'nodes of its graph, in \[0, 1\] \(got 0\.\.2\)',
        ),
        (
            {'edge_index': torch.tensor([[0.0], [1.0]])},
            {},
            r'of torch.int64 \(got \(2, 1\) of torch.float32\)',
        ),
        ({}, {'terminated': torch.tensor([True, False])}, "'terminated' must be one bool for the whole episode"),
        ({}, {'info': {'c': torch.ones(2)}}, r"'info' must hold one number per game under each name \(got 'c'"),
        ({}, {'info': {'c': 'hi'}}, r"'info' must hold one number per game under each name \(got 'c': 'hi'\)"),
    ],
)
def test_mistakes_of_a_game_are_named_at_its_step(graph, more, message):
    class Mistaken(Count):
        def step(self, action: Tensor) -> SingleStep:
            fields = {'x': self.seen, 'edge_index': fully_connected(2), **graph}
            return SingleStep(Snapshot(**fields), action.float(), **more)

    env = VectorGraphEnv(Mistaken, 2)
    env.reset(0)
    with pytest.raises(ValueError, match=message):
        env.step(torch.zeros(4, dtype=torch.int64))


WIDTHS = {
    'x': r"'x' .* expected shape \(N, num_features=2\), got \(2, 3\)\. .* declare their number as num_features",
    'edge_attr': r"'edge_attr' .* expected shape \(E, edge_dim=1\), got \(2, 3\)",
    'action_mask': r"'action_mask' .* expected shape \(N, num_actions=2\), got \(2, 3\)",
}


@pytest.mark.parametrize('method', ['start', 'step'])
@pytest.mark.parametrize('name', WIDTHS)
def test_columns_that_the_spec_does_not_declare_are_named(name, method):
    numbers = iter(range(2))

    class Wide(Count):
        edge_dim, has_action_mask = 1, True

        def __init__(self) -> None:
            self.broken = next(numbers) == 1 and method == 'start'

        def look(self) -> Snapshot:
            sizes = {'x': (2, 2), 'edge_attr': (2, 1), 'action_mask': (2, 2)} | ({name: (2, 3)} if self.broken else {})
            return Snapshot(edge_index=fully_connected(2), **{field: torch.ones(sizes[field]) for field in sizes})

    env = VectorGraphEnv(Wide, 2)
    with pytest.raises(ValueError, match=rf'Wide.{method}\(\) of game 1 must fit the spec') as error:  # noqa: PT012
        env.reset(0)
        env.envs[1].broken = True
        env.step(torch.zeros(4, dtype=torch.int64))
    assert re.search(WIDTHS[name], str(error.value))


def test_actions_must_be_tensors():
    env = VectorGraphEnv(Count, 2)
    env.reset(0)
    with pytest.raises(ValueError, match=r"'action' must be a torch.Tensor \(got ndarray\)"):
        env.step(np.zeros(4, int))


def test_each_step_has_metrics_of_its_own():
    """The default of ``info`` was one dict for all games, which each of them overwrote."""
    with pytest.raises(TypeError, match='does not support item assignment'):
        SingleStep(Snapshot(x=torch.zeros(1, 1), edge_index=fully_connected(1)), torch.zeros(1)).info['a'] = 1.0


def test_the_same_game_does_not_play_several_episodes():
    game = Count()
    with pytest.raises(ValueError, match="'make_env' must make a new game at each call"):
        VectorGraphEnv(lambda: game, 2)


def test_a_plain_graph_is_named_at_the_step_too():
    class Plain(Count):
        def step(self, action: Tensor) -> SingleStep:
            return SingleStep(Data(x=self.seen, edge_index=fully_connected(2)), action.float())

    env = VectorGraphEnv(Plain, 2)
    env.reset(0)
    with pytest.raises(ValueError, match=r'Plain.step\(\) must return a Snapshot as its graph \(got Data\)'):
        env.step(torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize(
    ('scale', 'message'),
    [
        (0.5, "'feature_scale' needs one number per column: expected 2, got 0.5"),
        ((float('nan'), 1.0), r"'feature_scale' must be finite \(got \(nan, 1.0\)\)"),
    ],
)
def test_a_scale_is_a_finite_number_per_column(scale, message):
    class Scaled(Count):
        feature_scale = scale

    with pytest.raises(ValueError, match=message):
        VectorGraphEnv(Scaled, 1)


def test_a_scale_of_numpy_is_plain_data():
    class Scaled(Count):
        feature_scale = np.ones(2, np.float32) / 3

    spec = VectorGraphEnv(Scaled, 1).spec
    assert type(spec.feature_scale[0]) is float
    assert GraphEnvSpec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec


class Leaves(SingleGraphEnv):
    """Declares fixed nodes, and loses one of three at its second step."""

    num_features, num_actions, max_nodes, horizon = 1, 2, 3, 100

    def start(self) -> Snapshot:
        self.left = 3
        return self.look()

    def step(self, action: Tensor) -> SingleStep:
        self.left -= 1
        return SingleStep(self.look(), torch.zeros(3))

    def look(self) -> Snapshot:
        nodes = min(self.left + 1, 3)
        return Snapshot(x=torch.zeros(nodes, 1), edge_index=torch.zeros(2, 0, dtype=torch.int64))


def test_fixed_nodes_stay_fixed_also_after_the_check():
    env = VectorGraphEnv(Leaves, 2)
    env.reset(0)
    env.step(torch.zeros(6, dtype=torch.int64))
    with pytest.raises(ValueError, match=r'must stay the same .* \(got 2 after 3\)\. Set fixed_nodes = False'):
        env.step(torch.zeros(6, dtype=torch.int64))
