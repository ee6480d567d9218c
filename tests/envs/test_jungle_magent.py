"""The jungle against the engine that it re-implements, over whole episodes: same cells, same rewards, same windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.magent import MAgentJungle
from ltos_pyg.envs import GreedyAttacker, JungleEnv, PeacefulEater, RandomPolicy

pytest.importorskip('magent2')

STEPS = 120
CHANCE = 0.25  # of a random action instead of the policy's, so that no episode freezes
POLICIES = {'random': RandomPolicy, 'peaceful': PeacefulEater, 'attacking': GreedyAttacker}


def engine_like(env: JungleEnv) -> MAgentJungle:
    return MAgentJungle(env.agent_positions[0].numpy(), env.food_positions[0].numpy(), env.config.size)


@pytest.mark.parametrize('policy', POLICIES)
@pytest.mark.parametrize('seed', range(3))
def test_a_whole_episode_goes_as_in_the_engine(policy: str, seed: int) -> None:
    env = JungleEnv(horizon=STEPS + 1, cost_on_hit=True, seed=seed)
    graph = env.reset()
    engine = engine_like(env)
    plan, noise = POLICIES[policy](seed=seed), torch.Generator().manual_seed(seed)
    hits = 0.0
    for _ in range(STEPS):
        assert np.array_equal(graph.x[:, :-2].numpy(), engine.windows())
        astray = torch.rand(20, generator=noise) < CHANCE
        action = torch.where(astray, torch.randint(9, (20,), generator=noise), plan.act(graph))
        step = env.step(action)
        np.testing.assert_allclose(step.reward.numpy(), engine.step(action.int().numpy()), atol=1e-5)
        assert np.array_equal(env.agent_positions[0].numpy(), engine.agent_cells())
        assert np.array_equal(env.food_positions[0].numpy(), engine.food_cells())
        hits += step.info['attacks'].item() + step.info['food'].item()
        graph = step.graph
    assert hits > 10  # else the rewards compared say nothing


def test_a_crowd_goes_as_in_the_engine() -> None:
    """A full corner of the board: victims of several attackers, moves that wait for others, queues."""
    env = JungleEnv(num_agents=60, num_foods=20, horizon=STEPS + 1, cost_on_hit=True)
    corner = torch.cartesian_prod(torch.arange(1, 10), torch.arange(1, 10))
    cells = corner[torch.randperm(81, generator=torch.Generator().manual_seed(0))]
    env.set_positions(cells[None, :60], cells[None, 60:80])
    engine, chance, worst = engine_like(env), torch.Generator().manual_seed(1), 0.0
    for _ in range(STEPS):
        action = torch.randint(9, (60,), generator=chance)
        step = env.step(action)
        np.testing.assert_allclose(step.reward.numpy(), engine.step(action.int().numpy()), atol=1e-5)
        assert np.array_equal(env.agent_positions[0].numpy(), engine.agent_cells())
        worst = min(worst, step.reward.min().item())
    assert worst < -7  # somebody had two attackers at once
