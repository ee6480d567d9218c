"""The scripted policies bring the reference lines again, and act as they say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ltos_pyg.envs import GreedyAttacker, JungleEnv, PeacefulEater, RandomPolicy

EPISODES, STEPS = 96, 120
HIT_UP, HIT_LEFT, HIT_RIGHT, HIT_DOWN = 5, 6, 7, 8

# Mean reward per agent and step as reported, and the error of the report. The lines of the eaters were 10 episodes (the
# deviation between episodes is .07 for the peaceful ones; .35 for the attackers, as measured here), the random one is
# printed to three places; .007 is its deviation between episodes.
REFERENCE = {
    RandomPolicy: (-0.017, 0.007 / 10**0.5),
    PeacefulEater: (0.82, 0.07 / 10**0.5),
    GreedyAttacker: (-0.31, 0.35 / 10**0.5),
}


@pytest.mark.parametrize('policy', REFERENCE)
def test_reference_lines(policy: type[RandomPolicy] | type[PeacefulEater]) -> None:
    env = JungleEnv(num_envs=EPISODES, cost_on_hit=True, seed=1)
    graph, plan, total = env.reset(), policy(seed=2), torch.zeros(EPISODES)
    attacks = 0.0
    for _ in range(STEPS):
        step = env.step(plan.act(graph))
        total += step.reward.view(EPISODES, -1).mean(1) / STEPS
        attacks += step.info['attacks'].sum().item()
        graph = step.graph
    line, error = REFERENCE[policy]
    assert abs(total.mean().item() - line) < 3 * (error**2 + total.var().item() / EPISODES) ** 0.5
    assert (attacks == 0) == (policy is PeacefulEater)


def choose(
    policy: PeacefulEater, agents: list[tuple[int, int]], foods: list[tuple[int, int]], tries: int = 40
) -> Tensor:
    """(tries, N): actions in the same place again and again."""
    env = JungleEnv(num_agents=len(agents), num_foods=len(foods), size=20)
    graph = env.set_positions(torch.tensor([agents]), torch.tensor([foods], dtype=torch.int64).view(1, -1, 2))
    return torch.stack([policy.act(graph) for _ in range(tries)])


@pytest.mark.parametrize(
    ('food', 'bite'), [((9, 10), HIT_UP), ((10, 9), HIT_LEFT), ((10, 11), HIT_RIGHT), ((11, 10), HIT_DOWN)]
)
def test_it_eats_what_is_beside_it(food: tuple[int, int], bite: int) -> None:
    assert set(choose(PeacefulEater(), [(10, 10)], [food, (10, 14)]).flatten().tolist()) == {bite}


def test_it_takes_either_way_to_the_nearest_food() -> None:
    """Two up and one to the left is nearer than four to the right."""
    assert set(choose(PeacefulEater(), [(10, 10)], [(8, 9), (10, 14)]).flatten().tolist()) == {0, 1}


def test_it_walks_round_agents_in_the_way() -> None:
    action = choose(PeacefulEater(), [(10, 10), (9, 10), (10, 9)], [(8, 9)])[:, 0]
    assert set(action.tolist()) == {3, 4}


def test_it_wanders_where_it_sees_nothing() -> None:
    assert set(choose(PeacefulEater(), [(10, 10)], [(17, 17)], tries=200).flatten().tolist()) == {0, 1, 3, 4}


def test_the_attacker_attacks_before_it_eats() -> None:
    agents, foods = [(10, 10), (10, 11)], [(9, 10)]
    assert set(choose(GreedyAttacker(), agents, foods)[:, 0].tolist()) == {HIT_RIGHT}
    assert set(choose(PeacefulEater(), agents, foods)[:, 0].tolist()) == {HIT_UP}


@pytest.mark.parametrize('policy', [RandomPolicy, PeacefulEater])
def test_a_policy_owns_its_rng(policy: type[RandomPolicy] | type[PeacefulEater]) -> None:
    graph = JungleEnv(num_envs=4).reset()
    one, two = policy(seed=3), policy(seed=3)
    before = torch.get_rng_state()
    assert torch.equal(one.act(graph), two.act(graph))
    assert not torch.equal(one.act(graph), policy(seed=4).act(graph))
    assert torch.equal(torch.get_rng_state(), before)


def test_it_reads_a_jungle_only() -> None:
    graph = JungleEnv().reset()
    graph.x = graph.x[:, :-1]
    with pytest.raises(ValueError, match=r'square window of odd side, then y and x \(got 122 columns\)'):
        PeacefulEater().act(graph)
