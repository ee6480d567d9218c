"""Real PettingZoo environments through the adapter: simple_spread and battle."""

from __future__ import annotations

import numpy as np
import torch
from magent2.environments import battle_v4
from mpe2 import simple_spread_v3

from ltos_pyg.graph_env import KNearest, check_env, from_pettingzoo


def spread():
    return simple_spread_v3.parallel_env(N=3, max_cycles=10)


def test_simple_spread_keeps_the_contract():
    rule = KNearest(1, position=slice(2, 4))
    check_env(lambda: from_pettingzoo(spread, rule, num_envs=2, fixed_nodes=True, horizon=10), steps=25)


def test_simple_spread_is_what_the_environment_says():
    env = from_pettingzoo(spread, KNearest(1, position=slice(2, 4), symmetric=False), num_envs=2)
    assert (env.spec.num_features, env.spec.num_actions, env.spec.max_nodes, env.spec.max_edges) == (18, 5, 3, 3)
    assert (env.spec.symmetric, env.spec.has_action_mask, env.spec.feature_dtype) == (False, False, torch.float32)
    graph, raw = env.reset(seed=3), [spread(), spread()]
    rngs = [torch.Generator().manual_seed(one.generator.initial_seed()) for one in env.envs]
    draw = [lambda d=d: int(torch.randint(2**31 - 1, (1,), generator=d)) for d in rngs]
    seen = [one.reset(seed=d())[0] for one, d in zip(raw, draw, strict=True)]
    for t in range(25):
        assert torch.equal(graph.x, torch.from_numpy(np.stack([v for s in seen for v in s.values()])))
        action = torch.randint(5, (6,), generator=torch.Generator().manual_seed(t))
        step = env.step(action)
        results = [
            one.step(dict(zip(one.agents, a, strict=True)))
            for one, a in zip(raw, action.view(2, 3).tolist(), strict=True)
        ]
        rewards = [r[agent] for _, r, *_ in results for agent in ('agent_0', 'agent_1', 'agent_2')]
        assert torch.allclose(step.reward, torch.tensor(rewards))
        assert torch.equal(step.successor.x, torch.from_numpy(np.stack([v for s, *_ in results for v in s.values()])))
        assert step.truncated.tolist() == [not one.agents for one in raw] == [t % 10 == 9] * 2
        assert not bool(step.terminated.any())
        seen = [r[0] if one.agents else one.reset(seed=d())[0] for one, r, d in zip(raw, results, draw, strict=True)]
        graph = step.graph


def test_simple_spread_neighbours_are_the_nearest():
    def place_of(env, agent):
        return env.unwrapped.world.agents[int(agent[-1])].state.p_pos

    env = from_pettingzoo(spread, KNearest(1, position=slice(2, 4), symmetric=False))
    by_state = from_pettingzoo(spread, KNearest(1, place_of, symmetric=False))
    graph, other = env.reset(seed=1), by_state.reset(seed=1)
    for t in range(15):
        place = graph.x[:, 2:4]
        distance = torch.cdist(place, place).fill_diagonal_(torch.inf)
        assert dict(graph.edge_index.flip(0).t().tolist()) == dict(enumerate(distance.argmin(1).tolist()))
        assert torch.equal(graph.edge_index, other.edge_index)
        action = torch.randint(5, (3,), generator=torch.Generator().manual_seed(t))
        graph, other = env.step(action).graph, by_state.step(action).graph


def test_battle_loses_agents_until_a_team_is_gone():
    env = from_pettingzoo(lambda: battle_v4.parallel_env(map_size=12, max_cycles=300), num_envs=1)
    assert (env.spec.num_features, env.spec.num_actions, env.spec.max_nodes) == (13 * 13 * 5, 21, 4)
    graph, rng = env.reset(seed=0), np.random.default_rng(0)
    sizes, deaths, ends = [], 0, 0
    for _ in range(600):
        view = graph.x.view(-1, 13, 13, 5)
        enemy_beside = (view[:, 5:8, 5:8, 3] > 0).flatten(1).any(1)
        move, hit = (torch.from_numpy(rng.integers(*span, graph.num_nodes)) for span in ((0, 13), (13, 21)))
        step = env.step(torch.where(enemy_beside, hit, move))
        sizes.append(graph.num_nodes)
        assert set(step.successor.node_id.tolist()) <= set(graph.node_id.tolist())
        deaths += graph.num_nodes - step.successor.num_nodes
        teams = {int(i) // 2 for i in step.successor.node_id}
        assert bool(step.terminated) or bool(step.truncated) or len(teams) == 2
        ends += bool(step.terminated)
        graph = step.graph
    assert deaths >= 3
    assert ends >= 1
    assert set(sizes) == {2, 3, 4}


def test_battle_keeps_the_contract():
    check_env(lambda: from_pettingzoo(lambda: battle_v4.parallel_env(map_size=12, max_cycles=12), num_envs=2), steps=30)
