from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch

from ltos_pyg.algos import ALGORITHMS, Decision, NonFiniteLossError
from ltos_pyg.data import Snapshot
from ltos_pyg.envs import JungleEnv
from ltos_pyg.graph_env import GraphEnv, SingleGraphEnv, SingleStep, VectorGraphEnv, fully_connected
from ltos_pyg.nn import Sharing
from ltos_pyg.training.checkpoint import CheckpointStore
from ltos_pyg.training.config import TrainConfig, check_device
from ltos_pyg.training.evaluate import EpisodeTally, KeptByNode, Stat, evaluate, evaluate_modes, sharing_measures
from ltos_pyg.training.logging import MetricsLogger, read_metrics
from ltos_pyg.training.trainer import Interrupted, MetricWindow, Trainer, flatten

SMALL: dict[str, Any] = {
    'n_step': 2,
    'batch_size': 4,
    'replay_size': 200,
    'learning_starts': 16,
    'train_freq': 8.0,
    'hidden_channels': 8,
    'encoder_channels': (8,),
    'num_layers': 1,
    'heads': 2,
}
TRAIN: dict[str, Any] = {'num_envs': 4, 'log_every': 40, 'eval_every': 80, 'eval_episodes': 3, 'checkpoint_every': 60}


class Lottery(SingleGraphEnv):
    """Two agents with random rewards, independent of their actions. It cannot save its state."""

    num_features, num_actions, max_nodes, symmetric, horizon = 1, 2, 2, True, 5
    prize = 1.0

    def start(self) -> Snapshot:
        x = torch.rand(2, 1, generator=self.generator)
        return Snapshot(x=x, edge_index=fully_connected(2))

    def step(self, action: Tensor) -> SingleStep:
        return SingleStep(self.start(), self.prize * torch.rand(2, generator=self.generator), info={'tickets': 2.0})


class Bomb(Lottery):
    """Something happens in one of its steps."""

    def __init__(self, at: int, what: Any) -> None:
        self.left, self.what = at, what

    def step(self, action: Tensor) -> SingleStep:
        self.left -= 1
        if self.left == 0:
            self.what(self)
        return super().step(action)


def jungle(num_envs: int) -> GraphEnv:
    return JungleEnv(num_envs=num_envs, num_agents=4, num_foods=3, size=7, horizon=7)


def lottery(num_envs: int) -> GraphEnv:
    return VectorGraphEnv(Lottery, num_envs)


def make_algo(algo: str, env: GraphEnv, seed: int = 0, **options: Any) -> Any:
    maker, config = ALGORITHMS[algo]
    high = {'phi_channels': 8, 'phi_starts': 0.0} if algo == 'ltos' else {}
    known = {field.name for field in dataclasses.fields(config)}
    small = {name: value for name, value in {**SMALL, **high}.items() if name in known}
    return maker(env.spec, config(**{**small, **options}), seed)


@pytest.fixture
def make_trainer() -> Iterator[Callable[..., Trainer]]:
    with ExitStack() as stack:

        def make(folder: Path, make_env: Any = jungle, algo: str = 'ltos', steps: int = 200, **train: Any) -> Trainer:
            config = TrainConfig(**{**TRAIN, **train})
            env = make_env(config.num_envs)
            store = CheckpointStore(folder / 'checkpoints', keep=9)
            logger = stack.enter_context(MetricsLogger(folder / 'metrics.jsonl', max(store.steps(), default=None)))
            learner = make_algo(algo, env, total_steps=steps)
            eval_env = jungle if make_env is jungle else lottery
            return Trainer(learner, env, eval_env, config, steps, logger, store, 'return')

        yield make


def flat(value: Any, name: str = '') -> dict[str, Any]:
    if isinstance(value, dict):
        parts = [flat(item, f'{name}.{key}') for key, item in value.items()]
    elif isinstance(value, list | tuple):
        parts = [flat(item, f'{name}[{i}]') for i, item in enumerate(value)]
    else:
        return {name: value.clone() if isinstance(value, Tensor) else value}
    return dict(itertools.chain.from_iterable(part.items() for part in parts))


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    same = {k for k in a.keys() & b.keys() if (torch.equal(a[k], b[k]) if isinstance(a[k], Tensor) else a[k] == b[k])}
    return sorted((a.keys() | b.keys()) - same)


def untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if 'seconds' not in name} for row in rows]


# --- statistics ------------------------------------------------------------------------------------------------------


def test_a_statistic_worked_by_hand():
    stat = Stat.of(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert (stat.mean, stat.count) == (3.0, 4)
    assert stat.std == pytest.approx((14 / 3) ** 0.5)  # of a sample
    assert stat.ci95 == pytest.approx(1.96 * stat.std / 2)
    assert Stat.of(torch.tensor([7.0])) == Stat(7.0, 0.0, 1)


def graphs(*parts: tuple[int, list[tuple[int, int]]], **fields: Tensor) -> Batch:
    """A batch of graphs, each a number of nodes and its edges."""
    snapshots = [
        Snapshot(x=torch.zeros(n, 1), edge_index=torch.tensor(edges, dtype=torch.int64).view(-1, 2).T)
        for n, edges in parts
    ]
    batch = Batch.from_data_list(snapshots)
    for name, value in fields.items():
        batch[name] = value
    return batch


PAIR_AND_LONER = graphs((2, [(0, 1), (1, 0)]), (1, []))


def test_an_episode_is_tallied_by_hand():
    tally, one = EpisodeTally(2), torch.tensor(1.0)
    info = {'food': torch.tensor([4.0, 1.0]), 'return': torch.tensor([99.0, 99.0]), 'per_node': torch.ones(3)}
    info |= {'kept': torch.tensor([99.0, 99.0]), 'switched_keep': torch.tensor([99.0, 99.0])}
    for reward, kept in (([1.0, 3.0, 5.0], torch.tensor([0.2, 0.4])), ([0.0, 2.0, 7.0], torch.tensor([0.1, 0.7]))):
        tally.step(PAIR_AND_LONER, torch.tensor(reward), info, Sharing(1 - kept, torch.cat([kept, one[None]])))
    episodes = tally.finish(torch.tensor([True, False]))
    weights = {'kept': 0.35, 'kept_std_nodes': 0.2, 'uneven': 0.0}
    expected = {'return': 3.0, 'reward': 1.5, 'length': 2.0, 'food': 4.0, **weights}
    assert {name: value.item() for name, value in episodes.items()} == pytest.approx(expected, abs=1e-7)

    loner = graphs((0, []), (1, []))
    tally.step(loner, torch.tensor([9.0]), {'food': torch.tensor([0.0, 1.0])}, Sharing(torch.zeros(0), torch.ones(1)))
    episodes = tally.finish(torch.tensor([True, True]))
    assert episodes['return'].tolist() == [0.0, 21.0]  # no node was left in the first
    assert episodes['length'].tolist() == [1.0, 3.0]
    assert episodes['kept'].tolist() == [1.0, 1.0]


def test_what_the_environment_says_at_the_end_of_an_episode_is_not_divided_by_its_length():
    tally, batch = EpisodeTally(2), graphs((1, []), (1, []))
    for _ in range(3):
        tally.step(batch, torch.ones(2), {'food': torch.tensor([6.0, 9.0])}, None)
    outcome = {'duration': torch.tensor([7.0, 8.0]), 'food': torch.tensor([0.5, 0.25]), 'return': torch.zeros(2)}
    episodes = tally.finish(torch.tensor([False, True]), outcome)
    assert {name: value.tolist() for name, value in episodes.items()} == {
        'return': [3.0], 'reward': [1.0], 'length': [3.0], 'food': [0.25], 'duration': [8.0]
    }  # fmt: skip


# --- measures of the weights -----------------------------------------------------------------------------------------


def test_measures_of_the_weights_worked_by_hand():
    graph = graphs((3, [(0, 1), (0, 2), (1, 0)]), (2, []), (0, []), (2, [(1, 0)]))
    given = torch.tensor([0.7, 0.1, 0.4, 0.9])  # 0 gives 0.3 more and 0.3 less than evenly, 1 gives evenly
    kept = torch.tensor([0.2, 0.6, 1.0, 1.0, 1.0, 1.0, 0.1])  # those without out-edges do not count
    measures = sharing_measures(graph, Sharing(given, kept))
    assert measures['kept'].tolist() == pytest.approx([0.4, 1.0, 1.0, 0.1])
    assert measures['kept_std_nodes'].tolist() == pytest.approx([0.2, 0.0, 0.0, 0.0])
    assert measures['uneven'].tolist() == pytest.approx([0.15, 0.0, 0.0, 0.0], abs=1e-7)


def test_the_spread_over_states_is_that_of_one_node_at_a_time():
    by_node, both = KeptByNode(), torch.tensor([True, True])
    graph = graphs((3, [(0, 1), (1, 0)]), (2, [(0, 1), (1, 0)]))  # place 2 has nothing to decide
    for kept in (
        [0.1, 0.5, 1.0, 0.1, 0.7],
        [0.3, 0.5, 1.0, 0.3, 0.7],
    ):  # place 0 moves by 0.1, place 1 differs by graph
        by_node.step(graph, Sharing(torch.zeros(4), torch.tensor(kept)), both)
    assert by_node.std() == pytest.approx(0.1)  # and 0.1 for place 1
    by_node.step(graph, Sharing(torch.zeros(4), torch.tensor([0.2, 0.6, 1.0, 0.9, 0.9])), torch.tensor([True, False]))
    assert by_node.std() == pytest.approx((4 * 0.1**2 / 5) ** 0.5)  # the episode that is over counts no more


def test_a_node_is_known_by_its_number_where_it_has_one():
    by_node, both = KeptByNode(), torch.tensor([True])
    for number, kept in (([7, 3], [0.2, 0.9]), ([3, 7], [0.9, 0.2])):
        graph = graphs((2, [(0, 1), (1, 0)]), node_id=torch.tensor(number))
        by_node.step(graph, Sharing(torch.zeros(2), torch.tensor(kept)), both)
    assert by_node.std() == 0.0
    without = KeptByNode()
    without.step(graphs((2, [])), Sharing(torch.zeros(0), torch.ones(2)), both)
    assert without.std() == 0.0


# --- evaluation ------------------------------------------------------------------------------------------------------


class Countdown(SingleGraphEnv):
    """Game i lasts 1, 2, 5 … steps, and pays 1 a step in its first episode and 100 after it."""

    num_features, num_actions, max_nodes = 1, 2, 1

    def __init__(self, length: int) -> None:
        self.length, self.episodes = length, 0

    def start(self) -> Snapshot:
        self.left = self.length
        self.episodes += 1
        return Snapshot(x=torch.ones(1, 1), edge_index=fully_connected(1))

    def step(self, action: Tensor) -> SingleStep:
        self.left -= 1
        pay = 1.0 if self.episodes == 1 else 100.0
        look = Snapshot(x=torch.ones(1, 1), edge_index=fully_connected(1))
        return SingleStep(look, torch.tensor([pay]), terminated=self.left == 0)


def test_each_graph_counts_its_first_episode_and_no_other():
    lengths = iter([1, 2, 5, 2])
    env = VectorGraphEnv(lambda: Countdown(next(lengths)), 4)
    stats = evaluate(make_algo('dqn', env), env, seed=0)
    expected = Stat.of(torch.tensor([1.0, 2.0, 5.0, 2.0]))
    assert stats['return'] == stats['length'] == expected
    assert stats['reward'] == Stat(1.0, 0.0, 4)


def test_an_episode_without_end_is_an_error_and_not_an_endless_wait():
    env = VectorGraphEnv(lambda: Countdown(30), 2)
    with pytest.raises(ValueError, match=r'2 of 2 evaluation episodes did not end within 20 steps\. Give .* a horizon'):
        evaluate(make_algo('dqn', env), env, seed=0, max_steps=20)


@pytest.mark.parametrize('algo', ALGORITHMS)
def test_an_evaluation_teaches_nothing_and_uses_no_chance_of_the_algorithm(algo):
    env = lottery(3)
    learner = make_algo(algo, env)
    before, chance = flat(learner.state_dict()), torch.get_rng_state()
    first, second = evaluate(learner, env, seed=5, switches=True), evaluate(learner, lottery(3), seed=5, switches=True)
    assert first == second
    assert first['return'].count == 3
    assert evaluate(learner, env, seed=6) != first
    assert differing(before, flat(learner.state_dict())) == []
    assert torch.equal(chance, torch.get_rng_state())


def test_what_is_drawn_in_an_evaluation_hangs_on_its_seed_alone():
    env = jungle(3)
    learner = make_algo('ltos', env, eval_temperature=10.0)
    first = evaluate(learner, env, seed=5)
    learner.act(env.reset(0))  # draws actions
    before = learner.play_rng.get_state()
    assert evaluate(learner, env, seed=5) == first
    assert torch.equal(learner.play_rng.get_state(), before)
    learner.play_rng.manual_seed(9)
    assert evaluate(learner, env, seed=5) == first


def test_an_evaluation_has_the_measures_of_the_weights():
    env = jungle(3)
    learner = make_algo('ltos', env)
    measures = ('kept', 'kept_std_nodes', 'kept_std_states', 'uneven')
    stats = evaluate(learner, env, seed=5)
    assert stats['uneven'].mean == pytest.approx(0, abs=1e-6)  # phi starts as a constant
    assert not any(name.startswith('switched') for name in stats)
    learner.sharing_mode = 'random'
    drawn = evaluate(learner, env, seed=5)
    assert all(drawn[name].mean > 0.1 for name in measures)
    assert drawn['kept_std_states'] == Stat(drawn['kept_std_states'].mean, 0.0, 3)
    learner.sharing_mode = 'keep'
    assert [evaluate(learner, env, seed=5)[name].mean for name in measures] == [1.0, 0.0, 0.0, 0.0]
    assert not {*measures} & evaluate(make_algo('dgn', env), env, seed=5).keys()


class Scripted:
    """Acts 0, and 1 under the weights 'other' at the steps that are named. Weights stand for their mode's number."""

    sharing_modes, sharing_mode = ('own', 'other', 'same'), 'own'

    def __init__(self, at: set[int], temperature: float = 0.0) -> None:
        self.at, self.now, self.config = at, -1, SimpleNamespace(eval_temperature=temperature)
        self.compared: list[int] = []

    def reset_eval_state(self) -> None:
        self.now = -1

    def on_eval_step(self, step: Any) -> None:
        pass

    def act(self, graph: Batch, explore: bool) -> Decision:
        self.now += 1
        drawn = self.config.eval_temperature > 0  # then the action is not the greedy one
        return Decision(torch.full((graph.num_nodes,), int(drawn)), self.sharing_under(graph, 'own'))

    def sharing_under(self, graph: Batch, mode: str) -> Sharing:
        return Sharing(torch.zeros(0), torch.full((graph.num_nodes,), float(mode == 'other')))

    def greedy_action(self, graph: Batch, sharing: Sharing) -> Tensor:
        self.compared.append(self.now)
        return (sharing.kept * (self.now in self.at)).long()


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_switched_actions_are_counted_by_hand(temperature):
    lengths = iter([25, 12, 2])
    env = VectorGraphEnv(lambda: Countdown(next(lengths)), 3)
    learner = Scripted({3, 15, 20}, temperature)
    stats = evaluate(learner, env, seed=0, switches=True)  # type: ignore[arg-type]
    # the steps 0 to 9 count once, 10 and 20 ten times; 15 is not looked at
    assert stats['switched_other'] == Stat.of(torch.tensor([(1 + 10) / 30, 1 / 20, 0.0], dtype=torch.float64))
    assert stats['switched_same'] == Stat(0.0, 0.0, 3)
    assert sorted({*learner.compared}) == [*range(11), 20]
    assert 'switched_own' not in stats


def test_switched_actions_are_those_that_the_network_would_choose():
    env = jungle(5)
    learner = make_algo('ltos', env)
    learner.sharing_mode = 'uniform'
    stats = evaluate(learner, env, seed=3, switches=True)
    graph, differ = env.reset(3), []
    for _ in range(7):
        action = learner.act(graph).action
        learner.sharing_mode = 'keep'
        differ.append((learner.act(graph).action != action).double().mean())
        learner.sharing_mode = 'uniform'
        graph = env.step(action).graph
    assert stats['switched_keep'].mean == pytest.approx(float(torch.stack(differ).mean()))
    assert stats['switched_keep'].mean > 0
    assert [name for name in stats if name.startswith('switched')] == [
        'switched_phi', 'switched_constant', 'switched_keep', 'switched_random'
    ]  # fmt: skip
    plain = evaluate(learner, env, seed=3)
    assert plain == {name: stats[name] for name in plain}  # looking changes nothing


@pytest.mark.parametrize('average_views', [False, True])
def test_a_greedy_action_is_what_is_played_under_the_weights(average_views):
    env = jungle(3)
    graph = env.reset(0)
    greedy, drawing = (make_algo('ltos', env, average_views=average_views, eval_temperature=t) for t in (0.0, 100.0))
    for mode in ('uniform', 'keep'):
        greedy.sharing_mode = mode
        decision = greedy.act(graph)
        assert torch.equal(greedy.greedy_action(graph, decision.sharing), decision.action)
        assert torch.equal(drawing.greedy_action(graph, decision.sharing), decision.action)
    assert not torch.equal(drawing.act(graph).action, decision.action)


def test_the_modes_are_compared_on_the_same_episodes():
    learner = make_algo('ltos', lottery(1))
    learner.sharing_mode = 'keep'
    results = evaluate_modes(learner, lottery, 4, seed=3)
    assert list(results) == ['policy', 'constant', 'uniform', 'keep', 'random']
    assert all(stats['return'] == results['policy']['return'] for stats in results.values())
    assert results['policy']['return'].std > 0
    assert [results[mode]['kept'].mean for mode in ('uniform', 'keep')] == pytest.approx([0.5, 1.0])
    assert results['policy']['kept'] == results['constant']['kept']  # where phi starts
    assert ['switched_keep' in stats for stats in results.values()] == [True, False, False, False, False]
    assert learner.sharing_mode == 'keep'
    counts = [stats['return'].count for stats in evaluate_modes(learner, lottery, 4, 3, swap_episodes=2).values()]
    assert counts == [4, 2, 2, 2, 2]
    assert list(evaluate_modes(learner, lottery, 4, 3, swap_episodes=0)) == ['policy']


def test_an_algorithm_without_modes_has_one():
    env = lottery(2)
    learner = make_algo('dgn', env)
    assert evaluate_modes(learner, lottery, 2, seed=3) == {'policy': evaluate(learner, env, seed=3)}


def test_the_mode_is_put_back_also_after_an_error():
    env = VectorGraphEnv(lambda: Countdown(200_000), 1)
    env.step = lambda action: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    learner = make_algo('ltos', env)
    learner.sharing_mode = 'uniform'
    with pytest.raises(ZeroDivisionError):
        evaluate_modes(learner, lambda num_envs: env, 1, seed=0)
    assert learner.sharing_mode == 'uniform'


def test_results_get_names_of_their_own_in_the_log():
    assert flatten({'kept': Stat(0.2, 0.0, 7), 'return': Stat(1.0, 0.5, 7)}) == {
        'eval/kept': 0.2,
        'eval/kept_std': 0.0,
        'eval/return': 1.0,
        'eval/return_std': 0.5,
        'eval/episodes': 7.0,
    }


# --- the window of metrics -------------------------------------------------------------------------------------------


def test_a_window_means_what_came_since_it_was_last_asked():
    window = MetricWindow()
    for loss in (1.0, 3.0):
        window.add({'loss': loss})
    window.add({'loss': 5.0, 'q': 2.0})
    assert window.means() == {'loss': 3.0, 'q': 2.0}
    assert window.means() == {}
    window.add({'q': 4.0})
    assert window.latest == {'loss': 5.0, 'q': 4.0}


def test_a_window_is_saved_and_goes_on():
    window, again = MetricWindow(), MetricWindow()
    window.add({'loss': 1.0})
    again.load_state_dict(window.state_dict())
    again.add({'loss': 3.0})
    assert again.means() == {'loss': 2.0}
    assert window.means() == {'loss': 1.0}


# --- the loop --------------------------------------------------------------------------------------------------------


def test_the_loop_logs_evaluates_and_saves_when_it_is_asked_to(tmp_path, make_trainer):
    trainer = make_trainer(tmp_path)
    trainer.run()
    rows = read_metrics(tmp_path / 'metrics.jsonl')
    assert [row['step'] for row in rows if 'eval/return' in row] == [0, 80, 160, 200]
    assert [row['step'] for row in rows if 'updates' in row] == [40, 80, 120, 160, 200]
    assert trainer.store.steps() == [60, 120, 180, 200]
    learnt = [row for row in rows if 'loss' in row]
    assert learnt[0]['updates'] == (40 - 16) // 8
    assert {'q', 'phi/kept', 'train/return', 'train/kept', 'seconds/env'} <= learnt[-1].keys()
    assert rows[0]['eval/episodes'] == 3
    assert {'eval/kept', 'eval/kept_std_nodes', 'eval/kept_std_states', 'eval/uneven'} <= rows[0].keys()
    assert not any('keep' in name for row in rows for name in row)  # other weights are for the closing evaluation


@pytest.mark.parametrize('algo', ['dqn', 'fixed_ltos', 'ltos'])
@pytest.mark.parametrize('at', [60, 180])
def test_a_run_taken_up_from_a_checkpoint_is_the_run_itself(tmp_path, make_trainer, algo, at):
    whole, parts = (make_trainer(tmp_path / name, algo=algo) for name in ('whole', 'parts'))
    whole.run()
    parts.run()
    for step in parts.store.steps():
        if step > at:
            parts.store.path(step).unlink()
    again = make_trainer(tmp_path / 'parts', algo=algo, seed=0)
    again.load(again.store.load_latest()[1])
    assert again.algorithm.env_steps == at
    again.run()
    assert differing(flat(whole.algorithm.state_dict()), flat(again.algorithm.state_dict())) == []
    rows, expected = (read_metrics(tmp_path / name / 'metrics.jsonl') for name in ('parts', 'whole'))
    assert untimed(rows) == untimed(expected)


def test_the_clocks_of_a_resumed_run_go_on(tmp_path, make_trainer):
    make_trainer(tmp_path, checkpoint_every=100).run()
    (tmp_path / 'checkpoints' / 'step_000000200.pt').unlink()
    again = make_trainer(tmp_path, checkpoint_every=100)
    state = again.store.load_latest()[1]
    state['seconds'] = dict.fromkeys(state['seconds'], 1000.0)  # the first part took long
    again.load(state)
    again.run()
    assert all(seconds >= 1_000 for seconds in again.seconds.values())
    timed = [row for row in read_metrics(tmp_path / 'metrics.jsonl') if 'seconds/other' in row]
    assert timed[-1]['seconds/other'] >= 1_000


def test_a_game_that_cannot_be_saved_starts_new_episodes(tmp_path, make_trainer):
    make_trainer(tmp_path, lottery).run()
    ends = []
    for _ in range(2):  # what is taken up twice comes out the same
        (tmp_path / 'checkpoints' / 'step_000000200.pt').unlink()
        again = make_trainer(tmp_path, lottery)
        start = again.graph.x
        state = again.store.load_latest()[1]
        assert state['env'] is None
        again.load(state)
        assert not torch.equal(again.graph.x, start)  # the episodes that the run began with are not played again
        again.run()
        assert again.algorithm.env_steps == 200
        ends.append(flat(again.algorithm.state_dict()))
    assert differing(*ends) == []


def test_games_are_closed_after_an_evaluation(tmp_path, make_trainer):
    closed = []

    class Room(Lottery):
        def close(self) -> None:
            closed.append(self)

    trainer = make_trainer(tmp_path, lottery)
    trainer.make_eval_env = lambda num_envs: VectorGraphEnv(Room, num_envs)
    trainer.evaluate()
    assert len(closed) == TRAIN['eval_episodes']


def interrupt(_: Any) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def bombed(at: int, what: Any) -> Any:
    return lambda num_envs: VectorGraphEnv(lambda: Bomb(at, what), num_envs)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_stop_finishes_the_step_saves_and_says_so(tmp_path, make_trainer, number):
    first = iter([lambda _: os.kill(os.getpid(), number)])
    make_env = bombed(13, lambda env: next(first, lambda _: None)(env))
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    trainer = make_trainer(tmp_path, make_env)
    with pytest.raises(Interrupted):
        trainer.run()
    assert trainer.store.steps() == [52]
    assert trainer.store.load_latest()[1]['algorithm']['env_steps'] == 52 == trainer.algorithm.env_steps
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_a_second_request_stops_at_once(tmp_path, make_trainer):
    before = signal.getsignal(signal.SIGINT)
    trainer = make_trainer(tmp_path, bombed(13, interrupt))  # all four games ask
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert trainer.algorithm.env_steps == 48
    assert signal.getsignal(signal.SIGINT) is before


def test_a_request_in_the_last_step_finds_the_run_done(tmp_path, make_trainer):
    asked = []
    make_env = bombed(50, lambda env: asked or (asked.append(env), interrupt(env)))
    trainer = make_trainer(tmp_path, make_env)
    trainer.run()
    assert asked
    assert trainer.store.steps()[-1] == 200


def test_a_run_may_live_in_a_thread_of_its_own(tmp_path, make_trainer):
    trainer = make_trainer(tmp_path)
    thread = threading.Thread(target=trainer.run)
    thread.start()
    thread.join(60)
    assert trainer.algorithm.env_steps == 200
    assert trainer.store.steps()[-1] == 200


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, make_trainer):
    def win(env: Bomb) -> None:
        env.prize = 1e30

    trainer = make_trainer(tmp_path, bombed(35, win), algo='dgn')
    trainer.algorithm.config.__dict__['huber'] = None
    with pytest.raises(NonFiniteLossError, match='loss is NaN or infinite at gradient step'):
        trainer.run()
    assert trainer.store.steps() == [60, 120]
    weights = flat(trainer.store.load_latest()[1]['algorithm']['modules'])
    assert all(torch.isfinite(value).all() for value in weights.values())


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'num_envs': 0}, r"'num_envs' must be at least 1 \(got 0\)"),
        ({'eval_every': 0}, r"'eval_every' must be at least 1 \(got 0\)"),
        ({'checkpoint_every': -5}, r"'checkpoint_every' must be at least 1 \(got -5\)"),
        ({'seed': -1}, r"'seed' must lie in \[0, 2\*\*32\) \(got -1\)"),
        ({'seed': 2**32}, r"'seed' must lie in \[0, 2\*\*32\) \(got 4294967296\)"),
        ({'seed': 1_000_000}, r"'seed' must differ from those of the evaluations, 1000000 and 1000001 \(got 1000000\)"),
        ({'seed': 8, 'eval_seed': 7}, r"'seed' must differ from those of the evaluations, 7 and 8 \(got 8\)"),
        ({'eval_seed': -1}, r"'eval_seed' must be at least 0 \(got -1\)"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


@pytest.mark.parametrize('name', ['gpu', 'meta', 'cuda:-1', ''])
def test_a_device_must_be_one_that_networks_can_live_on(name):
    with pytest.raises(ValueError, match=rf"'device' must be 'cpu', 'cuda' or 'cuda:N' \(got '{name}'\)"):
        check_device(name)


def test_a_device_must_be_there():
    check_device('cpu')
    count = torch.cuda.device_count()
    with pytest.raises(ValueError, match=rf"'device' is 'cuda:{count}', but PyTorch finds {count} CUDA devices here"):
        check_device(f'cuda:{count}')
