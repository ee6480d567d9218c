"""The prisoner's payoffs, worked by hand, and its ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch

from ltos_pyg.envs import PrisonerEnv
from ltos_pyg.graph_env import check_env

LEFT, RIGHT = 0, 1
HOME, RACE = torch.tensor([LEFT, RIGHT]), torch.tensor([RIGHT, LEFT])  # of A, of B


def play(plan: Tensor, num_envs: int = 1, **options: Any) -> tuple[Tensor, int]:
    """Returns (B, 2) of the first episodes and their length, for plans that end all of them at once."""
    env = PrisonerEnv(num_envs=num_envs, **options)
    env.reset()
    total, length = torch.zeros(num_envs, 2), 0
    while True:
        step = env.step(plan.repeat(num_envs))
        total += step.reward.view(-1, 2)
        length += 1
        if bool(step.ended.all()):
            return total, length


@pytest.mark.parametrize(
    ('plan', 'returns', 'length'),
    [
        ([LEFT, RIGHT], [0.97, 0.97], 3),  # both go home
        ([RIGHT, RIGHT], [0.99, -0.01], 1),  # A takes the middle
        ([LEFT, LEFT], [-0.01, 0.99], 1),  # B does
    ],
)
def test_payoffs(plan: list[int], returns: list[float], length: int) -> None:
    total, steps = play(torch.tensor(plan))
    torch.testing.assert_close(total, torch.tensor([returns]))
    assert steps == length


def test_a_race_goes_to_either_with_a_fair_coin() -> None:
    total, length = play(RACE, num_envs=4000)
    assert length == 1
    torch.testing.assert_close(total.sum(1), torch.full((4000,), 0.98))  # one gets .99, the other -.01
    deviation = 0.5 / 4000**0.5
    assert (total.mean(0) - 0.49).abs().max() < 4 * deviation


@pytest.mark.parametrize(('length', 'steps'), [(5, 1), (7, 2), (9, 3), (15, 6)])
def test_the_way_home_grows_with_the_corridor(length: int, steps: int) -> None:
    total, played = play(HOME, length=length, cost=0.05)
    assert played == steps
    torch.testing.assert_close(total, torch.full((1, 2), 1 - 0.05 * steps))


def test_the_agent_that_loses_a_race_stays_where_it_was() -> None:
    env = PrisonerEnv(num_envs=50)
    env.reset()
    step = env.step(RACE.repeat(50))
    cell = step.successor.x[:, :9].argmax(1).view(-1, 2)
    assert set(map(tuple, cell.tolist())) == {(4, 5), (3, 4)}
    winner = (step.reward > 0).view(-1, 2).float().argmax(1)
    assert torch.equal(cell.gather(1, winner.unsqueeze(1)).squeeze(1), torch.full((50,), 4))
    assert step.info['races'].tolist() == [1.0] * 50


def test_each_player_observes_both_cells_and_its_identity() -> None:
    env = PrisonerEnv()
    env.reset()
    x = env.step(HOME).successor.x
    own, other, number = x.split([9, 9, 2], dim=1)
    assert own.argmax(1).tolist() == [2, 6]
    assert other.argmax(1).tolist() == [6, 2]
    assert number.tolist() == [[1, 0], [0, 1]]
    assert x.sum().item() == 6


def test_episodes_end_on_their_own() -> None:
    """The first goes home (3 steps), the second takes the middle (1 step): only the ended episode restarts."""
    env = PrisonerEnv(num_envs=2)
    start = env.reset().x
    action = torch.tensor([LEFT, RIGHT, RIGHT, RIGHT])
    steps = [env.step(action) for _ in range(3)]
    assert [step.terminated.tolist() for step in steps] == [[False, True], [False, True], [True, True]]
    assert [step.info['length'].tolist() for step in steps] == [[1, 1], [2, 1], [3, 1]]
    first = steps[0]
    assert torch.equal(first.graph.x[:2], first.successor.x[:2])
    assert torch.equal(first.graph.x[2:], start[2:])
    assert not torch.equal(first.successor.x[2:], start[2:])


def test_the_cap_truncates() -> None:
    """Back and forth, both on their own side, until the clock runs out."""
    env = PrisonerEnv(horizon=4)
    env.reset()
    away, back = torch.tensor([LEFT, RIGHT]), torch.tensor([RIGHT, LEFT])
    steps = [env.step(action) for action in (away, back, away, back, away)]
    assert [step.truncated.item() for step in steps] == [False, False, False, True, False]
    assert not any(step.terminated.item() for step in steps)
    assert steps[3].successor.x[:, :9].argmax(1).tolist() == [3, 5]
    assert [step.graph is step.successor for step in steps] == [True, True, True, False, True]


def test_a_goal_on_the_last_step_terminates() -> None:
    env = PrisonerEnv(horizon=3)
    env.reset()
    last = [env.step(HOME) for _ in range(3)][-1]
    assert last.terminated.item()
    assert not last.truncated.item()


def test_the_contract_holds() -> None:
    check_env(lambda: PrisonerEnv(num_envs=4, horizon=10), steps=60)


def test_a_batch_is_its_graphs_side_by_side() -> None:
    graph = PrisonerEnv(num_envs=3).reset()
    again = Batch.from_data_list(graph.to_data_list())
    assert set(graph.keys()) == set(again.keys())  # PyG hashes field names: their order is chance
    assert all(torch.equal(graph[key], again[key]) for key in graph.keys())  # noqa: SIM118  a batch is no dict


def test_a_graph_tosses_the_same_coins_in_a_batch_of_any_size() -> None:
    small, large = PrisonerEnv(num_envs=2, seed=4), PrisonerEnv(num_envs=30, seed=4)
    small.reset(), large.reset()
    few, many = ([env.step(RACE.repeat(env.num_envs)).reward for _ in range(20)] for env in (small, large))
    assert all(torch.equal(one, other[:4]) for one, other in zip(few, many, strict=True))
    assert len({tuple(coins) for coins in torch.stack(many).T.tolist()}) > 30  # and the others other ones


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'length': 8}, r"'length' must be odd, .* \(got 8\). Try 9"),
        ({'length': 3}, "'length' must be an integer of at least 5"),
        ({'horizon': 0}, "'horizon' must be"),
        ({'num_envs': True}, "'num_envs' must be an integer"),
        ({'seed': 0.5}, "'seed' must be an integer"),
    ],
)
def test_nonsense_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrisonerEnv(**options)


def test_bad_actions_and_states_are_refused() -> None:
    env = PrisonerEnv(num_envs=2)
    with pytest.raises(RuntimeError, match=r'call reset\(\)'):
        env.step(HOME.repeat(2))
    env.reset()
    with pytest.raises(ValueError, match=r'expected shape \(4,\), got \(2,\)'):
        env.step(HOME)
    with pytest.raises(ValueError, match=r'must lie in \[0, 1\] \(got 2..2\)'):
        env.step(torch.full((4,), 2))
    with pytest.raises(ValueError, match='of 2 episodes, expected num_envs=3'):
        PrisonerEnv(num_envs=3).load_state_dict(env.state_dict())
    with pytest.raises(ValueError, match='of a corridor of length 9, expected 11'):
        PrisonerEnv(num_envs=env.num_envs, length=11).load_state_dict(env.state_dict())
