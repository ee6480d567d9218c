"""Evaluations: statistics, measures of the sharing weights, modes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch
from trainer_zoo import differing, flat, jungle, lottery, make_algo

from ltos_pyg.algos import ALGORITHMS, Decision
from ltos_pyg.data import Snapshot
from ltos_pyg.graph_env import SingleGraphEnv, SingleStep, VectorGraphEnv, fully_connected
from ltos_pyg.nn import Sharing
from ltos_pyg.training import evaluate as evaluation
from ltos_pyg.training.evaluate import EpisodeTally, KeptByNode, Stat, evaluate, evaluate_modes, sharing_measures
from ltos_pyg.training.trainer import flatten

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
    by_node, both = KeptByNode(None), torch.tensor([True, True])
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
    by_node, both = KeptByNode(None), torch.tensor([True])
    for number, kept in (([7, 3], [0.2, 0.9]), ([3, 7], [0.9, 0.2])):
        graph = graphs((2, [(0, 1), (1, 0)]), node_id=torch.tensor(number))
        by_node.step(graph, Sharing(torch.zeros(2), torch.tensor(kept)), both)
    assert by_node.std() == 0.0
    without = KeptByNode(None)
    without.step(graphs((2, [])), Sharing(torch.zeros(0), torch.ones(2)), both)
    assert without.std() == 0.0


def test_nodes_of_different_tasks_are_different_nodes():
    by_node = KeptByNode(num_tasks=2)
    pair = (2, [(0, 1), (1, 0)])
    kept = torch.tensor([0.2, 0.3, 0.8, 0.9] * 2)  # each task always keeps the same
    by_node.step(graphs(pair, pair, pair, pair), Sharing(torch.zeros(8), kept), torch.ones(4, dtype=torch.bool))
    assert by_node.std() == pytest.approx(0, abs=1e-6)


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
def test_an_evaluation_teaches_nothing_and_uses_no_rng_of_the_algorithm(algo):
    env = lottery(3)
    learner = make_algo(algo, env)
    before, chance = flat(learner.state_dict()), torch.get_rng_state()
    first, second = evaluate(learner, env, seed=5, switches=True), evaluate(learner, lottery(3), seed=5, switches=True)
    assert first == second
    assert first['return'].count == 3
    assert evaluate(learner, env, seed=6) != first
    assert differing(before, flat(learner.state_dict())) == []
    assert torch.equal(chance, torch.get_rng_state())


def test_what_is_drawn_in_an_evaluation_depends_on_its_seed_alone():
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
    results = evaluate_modes(learner, lottery, 4, 3, swap_episodes=2)
    assert list(results) == ['policy', 'phi', 'constant', 'uniform', 'keep', 'random']
    assert [stats['return'].count for stats in results.values()] == [4, 2, 2, 2, 2, 2]
    assert results['phi']['return'] == results['constant']['return'] != results['policy']['return']
    assert results['phi']['kept'].mean == pytest.approx(results['policy']['kept'].mean)
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


def test_a_metric_of_the_environment_keeps_its_name_in_the_log():
    stats = {'return': Stat(1.0, 0.5, 4), 'speed_std': Stat(3.0, 0.1, 4), 'speed': Stat(10.0, 0.2, 4)}
    for order in (stats, dict(reversed(stats.items()))):
        flat = flatten(order | {'episodes': Stat(7.0, 0.0, 4)})
        assert (flat['eval/speed_std'], flat['eval/return_std'], flat['eval/episodes']) == (3.0, 0.5, 7.0)


def test_episodes_that_do_not_end_are_spoken_of_before_they_are_given_up(monkeypatch, capsys):
    class Endless(SingleGraphEnv):
        num_features, num_actions, max_nodes = 1, 2, 2

        def start(self) -> Snapshot:
            return Snapshot(x=torch.zeros(2, 1), edge_index=fully_connected(2))

        def step(self, action: Tensor) -> SingleStep:
            return SingleStep(self.start(), torch.zeros(2))

    monkeypatch.setattr(evaluation, 'LONG', 5)
    env = VectorGraphEnv(Endless, 3)
    with pytest.raises(ValueError, match='3 of 3 evaluation episodes did not end within 8 steps'):
        evaluate(make_algo('dqn', env), env, 0, max_steps=8, show='evaluation')
    assert 'ltos: 3 of 3 episodes have not ended after 5 steps.' in capsys.readouterr().err


def test_an_entry_per_node_is_no_metric_also_where_there_are_as_many_nodes_as_graphs():
    pairs, tally = graphs((1, []), (1, [])), EpisodeTally(2)
    tally.step(pairs, torch.ones(2), {'energy': torch.ones(2)}, None)
    tally.step(PAIR_AND_LONER, torch.ones(3), {'energy': torch.ones(3)}, None)
    tally.step(pairs, torch.ones(2), {'energy': torch.ones(2)}, None)
    assert 'energy' not in tally.finish(torch.tensor([True, True]))
