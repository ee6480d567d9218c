from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import ltos_pyg
from ltos_pyg.algos import Decision
from ltos_pyg.envs import DilemmasEnv, JungleEnv, PrisonerEnv
from ltos_pyg.nn import constant_sharing
from ltos_pyg.registry import scenario
from ltos_pyg.viz.drawing import Scene, terminal_view


def episode_scenes(algorithm: Any, env: Any, seed: int, steps: int | None = None) -> Iterator[Scene]:
    """The scenes of an episode, as its scenario draws them."""
    name = {JungleEnv: 'jungle', DilemmasEnv: 'dilemmas', PrisonerEnv: 'prisoner'}[type(env)]
    return scenario(name).pictures.scenes(algorithm, env, seed, steps)


class Always:
    """Does one thing all the time, and keeps 0.6."""

    def __init__(self, action: int) -> None:
        self.action = action

    def act(self, graph: Any) -> Decision:
        sharing = constant_sharing(graph.edge_index, graph.num_nodes, 0.6)
        return Decision(torch.full((graph.num_nodes,), self.action), sharing)

    def reset_eval_state(self) -> None:
        pass

    def on_eval_step(self, step: Any) -> None:
        pass


@pytest.mark.parametrize(('action', 'dx', 'dy'), [(5, 0, -1), (6, -1, 0), (7, 1, 0), (8, 0, 1)])
def test_an_attack_is_marked_where_it_hits_an_agent(action, dx, dy):
    env, seen = JungleEnv(num_agents=4, num_foods=1, size=5, horizon=3), 0
    for seed in range(5):
        for scene in episode_scenes(Always(action), env, seed):
            cells = [tuple(p) for p in scene.positions.tolist()]
            hits = [[i, j] for i, (x, y) in enumerate(cells) for j, at in enumerate(cells) if at == (x + dx, y + dy)]
            assert scene.marks.tolist() == hits
            seen += len(hits)
    assert seen > 0


def test_a_move_is_no_attack():
    env = JungleEnv(num_agents=4, num_foods=1, size=5, horizon=3)
    assert all(len(scene.marks) == 0 for scene in episode_scenes(Always(2), env, seed=0))


def test_an_episode_is_drawn_to_its_end_or_for_so_many_steps():
    env = PrisonerEnv(length=9)
    scenes = list(episode_scenes(Always(1), env, seed=0))  # A goes to the middle, B goes home
    assert [scene.positions.tolist() for scene in scenes] == [[[3, 0], [5, 0]]]
    assert scenes[0].kept.tolist() == pytest.approx([0.6, 0.6])
    env = JungleEnv(num_agents=4, num_foods=1, size=5, horizon=6)
    titles = [scene.title for scene in episode_scenes(Always(2), env, seed=0)]
    assert titles == [f'step {step}   return 0.00 an agent' for step in range(6)]
    assert len(list(episode_scenes(Always(2), env, seed=0, steps=4))) == 4


def test_agents_with_the_high_gain_are_a_kind_of_their_own():
    env = JungleEnv(num_agents=4, num_foods=1, size=5, attack_gain_high=3.0)
    scene = next(episode_scenes(Always(2), env, seed=0))
    assert scene.kinds.tolist() == env.high[0].long().tolist()
    assert sum(scene.kinds) == 2
    scene = next(episode_scenes(Always(2), JungleEnv(num_agents=4, num_foods=1, size=5), seed=0))
    assert scene.kinds.tolist() == [0] * 4


@pytest.mark.parametrize(
    'options',
    [
        {'graph': 'groups', 'num_agents': 12},
        {'graph': 'double_star'},
        {'graph': 'offers', 'num_agents': 7},
        {'graph': 'offers', 'topology': 'star', 'num_agents': 7},
    ],
    ids=str,
)
def test_dilemmas_mark_harms_and_show_what_action_1_is(options):
    env = DilemmasEnv(horizon=12, **options)
    scenes = list(episode_scenes(Always(1), env, seed=0))
    assert len(scenes) == 12
    assert sum(len(scene.marks) for scene in scenes) > 0
    for scene in scenes:
        assert len({tuple(p) for p in scene.positions.round(3).tolist()}) == len(scene.positions)
        assert scene.positions.min() >= 0
        assert (scene.positions <= [side - 1 for side in scene.size]).all()
        linked = set(map(tuple, scene.edge_index.T.tolist()))
        assert all(tuple(mark) in linked for mark in scene.marks.tolist())
        assert terminal_view(scene).count('harms: ') == (len(scene.marks) > 0)
    assert {kind for scene in scenes for kind in scene.kinds.tolist()} >= {1, 2}
    assert all(len(scene.marks) == 0 and not scene.kinds.any() for scene in episode_scenes(Always(0), env, seed=0))


def test_groups_are_drawn_as_squares():
    env = DilemmasEnv(num_agents=8)
    scene = next(episode_scenes(Always(0), env, seed=3))
    for members in env.state['members'][0].tolist():
        x, y = scene.positions[members].T
        assert (x.max() - x.min(), y.max() - y.min()) == (2, 2)
    assert scene.size == (7, 3)


def test_an_episode_depends_on_its_seed_alone_also_where_actions_are_drawn():
    policy = ltos_pyg.load_policy('jungle-ltos').algorithm
    assert policy.config.eval_temperature > 0
    before = policy.play_rng.get_state()
    first, second = (list(episode_scenes(policy, JungleEnv(), 5, 12)) for _ in range(2))
    assert all((one.positions == other.positions).all() for one, other in zip(first, second, strict=True))
    assert torch.equal(policy.play_rng.get_state(), before)
