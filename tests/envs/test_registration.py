"""The games by their Gymnasium names, and the package by its folder's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from ltos_pyg.data import Snapshot
from ltos_pyg.envs import JungleEnv, PrisonerEnv, register_envs
from ltos_pyg.envs.traffic import TrafficConfig, make_traffic
from ltos_pyg.graph_env import SingleGraphEnv, SingleStep, VectorGraphEnv
from ltos_pyg.graph_env.adapters.gymnasium import GymnasiumEnv

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize('name', ['ltos_pyg/Dilemmas-v0', 'ltos_pyg/Jungle-v0', 'ltos_pyg/Prisoner-v0'])
def test_gymnasium_accepts_the_games(name: str) -> None:
    env = gymnasium.make(name)
    check_env(env.unwrapped)
    for _ in range(2):
        env.reset(seed=3)
        for _ in range(5):
            env.step(np.zeros(env.action_space.shape, dtype=np.int64))
            env.reset()
    env.close()


class Blinkers(SingleGraphEnv):
    """Two agents whose features are of a dtype that NumPy or Gymnasium lacks."""

    num_features, num_actions, max_nodes, max_edges = 1, 2, 2, 2
    horizon = 3

    def __init__(self, dtype: torch.dtype) -> None:
        self.feature_dtype = dtype

    def start(self) -> Snapshot:
        return self._graph(torch.zeros(2))

    def step(self, action: torch.Tensor) -> SingleStep:
        return SingleStep(self._graph(action), torch.ones(2))

    def _graph(self, x: torch.Tensor) -> Snapshot:
        return Snapshot(x=x.to(self.feature_dtype).unsqueeze(-1), edge_index=torch.tensor([[0, 1], [1, 0]]))


@pytest.mark.parametrize(('dtype', 'array'), [(torch.bool, np.int8), (torch.bfloat16, np.float32)])
def test_features_of_dtypes_that_arrays_lack(dtype: torch.dtype, array: type) -> None:
    env = GymnasiumEnv(VectorGraphEnv(lambda: Blinkers(dtype), 1))
    check_env(env, skip_render_check=True)
    env.reset(seed=0)
    observation = env.step(np.array([1, 0]))[0]
    assert observation['x'].dtype == array
    assert observation['x'].tolist() == [[1], [0]]


def test_registering_again_changes_nothing() -> None:
    before = dict(gymnasium.registry)
    register_envs()
    assert gymnasium.registry == before


def test_it_plays_the_episodes_of_the_graph_environment() -> None:
    """Padded, one at a time, the true end shown; a reset goes on to the very next episode."""
    alone, graph_env = GymnasiumEnv(JungleEnv(num_agents=5, horizon=4)), JungleEnv(num_agents=5, horizon=4)
    graph, chance = graph_env.reset(), torch.Generator().manual_seed(0)
    for _ in range(2):
        observation, _ = alone.reset()
        for t in range(4):
            E = int(observation['num_edges'])
            assert np.array_equal(observation['edge_index'][:, :E], graph.edge_index.numpy())
            assert np.array_equal(observation['edge_attr'][:E], graph.edge_attr.numpy())
            assert not observation['edge_index'][:, E:].any()
            assert np.array_equal(observation['x'], graph.x.numpy())
            action = torch.randint(9, (5,), generator=chance)
            step = graph_env.step(action)
            observation, reward, terminated, truncated, info = alone.step(action.numpy())
            assert np.array_equal(info['rewards'], step.reward.numpy())
            assert reward == pytest.approx(step.reward.mean().item())
            assert info['blanks'] == step.info['blanks'].item()
            assert (terminated, truncated) == (False, t == 3)
            graph = step.successor
        assert np.array_equal(observation['x'], graph.x.numpy())
        graph = step.graph
        with pytest.raises(RuntimeError, match=r'no episode is going on: call reset\(\) first'):
            alone.step(action.numpy())


def test_a_seed_restarts_it() -> None:
    env = GymnasiumEnv(JungleEnv())
    first, second, again = (env.reset(seed=seed)[0]['x'] for seed in (1, 2, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)


def test_it_takes_one_episode_at_a_time() -> None:
    with pytest.raises(ValueError, match=r'one episode at a time \(got num_envs=2\)'):
        GymnasiumEnv(PrisonerEnv(num_envs=2))
    with pytest.raises(RuntimeError, match='call reset'):
        GymnasiumEnv(PrisonerEnv()).step(np.zeros(2))


def run(code: str, cwd: Path) -> str:
    """In a fresh interpreter, away from the checkout, so that what is installed counts."""
    done = subprocess.run([sys.executable, '-c', code], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_gymnasium_finds_the_games_by_the_module_and_the_folder_is_the_package(tmp_path: Path) -> None:
    code = (
        "import gymnasium; print(gymnasium.make('ltos_pyg.envs:ltos_pyg/Prisoner-v0').unwrapped.env.length)\n"
        f'import sys; sys.path.append({str(ROOT)!r})\n'
        'from envs.jungle import JungleEnv; import envs, ltos_pyg.envs as e; print(JungleEnv is e.JungleEnv, envs is e)'
    )
    assert run(code, tmp_path) == '9\nTrue True\n'


def test_the_last_step_has_the_metrics_of_the_episode():
    env = GymnasiumEnv(make_traffic(TrafficConfig(net=('1x2',), horizon=3)))
    env.reset(seed=0)
    infos = [env.step(np.zeros(2, dtype=np.int64))[-1] for _ in range(3)]
    assert ['duration' in info for info in infos] == [False, False, True]
