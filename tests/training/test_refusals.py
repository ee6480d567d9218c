"""What would end in a traceback, in a crash or in numbers without a meaning is refused in one sentence."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ltos_pyg.algos import DQN, IndependentQConfig
from ltos_pyg.algos.base import new_weights
from ltos_pyg.data import Snapshot
from ltos_pyg.envs import PrisonerEnv
from ltos_pyg.graph_env import GraphEnv, SingleGraphEnv, VectorGraphEnv, fully_connected
from ltos_pyg.training.checkpoint import CheckpointStore
from ltos_pyg.training.config import TrainConfig
from ltos_pyg.training.evaluate import evaluate
from ltos_pyg.training.logging import MetricsLogger
from ltos_pyg.training.trainer import Trainer


def dqn(env: GraphEnv) -> DQN:
    return DQN(env.spec, IndependentQConfig(hidden_channels=4, encoder_channels=(), replay_size=100))


@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_not_evaluated(bad: float) -> None:
    env = PrisonerEnv(num_envs=2)
    algorithm = dqn(env)
    evaluate(algorithm, env, seed=0)
    with torch.no_grad():
        algorithm.averaged.head.lin.bias[0] = bad
    with pytest.raises(ValueError, match=r"'averaged\.head\.lin\.bias' of the policy holds NaN or infinite numbers"):
        evaluate(algorithm, env, seed=0)


class Forgetful(PrisonerEnv):
    """Its step forgets to return."""

    def step(self, action: Tensor) -> Any:
        super().step(action)


class ForgetfulGame(SingleGraphEnv):
    num_features, num_actions, max_nodes, horizon = 1, 2, 2, 5

    def start(self) -> Snapshot:
        return Snapshot(x=torch.ones(2, 1), edge_index=fully_connected(2))

    def step(self, action: Tensor) -> Any:
        pass


def trainer(env: GraphEnv, folder: Any, log: Any) -> Trainer:
    config = TrainConfig(num_envs=env.spec.num_envs, eval_episodes=1)
    return Trainer(dqn(env), env, lambda n: PrisonerEnv(num_envs=n), config, 100, log, CheckpointStore(folder))


@pytest.mark.parametrize(
    ('env', 'message'),
    [
        (
            Forgetful(num_envs=2),
            r'Forgetful\.step\(\) must return a GraphStep \(got NoneType\)\. Does it end in a return',
        ),
        (VectorGraphEnv(ForgetfulGame, 2), r'ForgetfulGame\.step\(\) must return a SingleStep \(got NoneType\)'),
    ],
)
def test_a_step_that_returns_nothing_is_named(tmp_path: Any, env: GraphEnv, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(dqn(env), env, seed=0)
    with MetricsLogger(tmp_path / 'metrics.jsonl') as log, pytest.raises(ValueError, match=message):
        trainer(env, tmp_path, log).advance()


@pytest.mark.parametrize('state', [{}, {'algorithm': {'env_steps': 3}}, {'algorithm': [1, 2]}])
def test_a_checkpoint_of_something_else_is_one_sentence(tmp_path: Any, state: dict[str, Any]) -> None:
    with MetricsLogger(tmp_path / 'metrics.jsonl') as log:
        run = trainer(PrisonerEnv(num_envs=2), tmp_path, log)
        with pytest.raises(ValueError, match=r'the checkpoint does not fit this run: .*Use the version that wrote it'):
            run.load(state)


def test_so_many_threads_are_refused() -> None:
    assert TrainConfig(threads=1024).threads == 1024
    with pytest.raises(ValueError, match=r"'threads' must be at most 1024 \(got 100000\)"):
        TrainConfig(threads=100_000)


def test_networks_larger_than_the_memory_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('psutil.virtual_memory', lambda: SimpleNamespace(available=2**30))
    with new_weights(0):
        nn.Linear(1000, 1000)
    message = r'the networks are too large: training 100,000,000 parameters, .* takes 2\.2 GiB; .* has 1\.0 GiB free'
    with pytest.raises(ValueError, match=message), new_weights(0):
        nn.Linear(10_000, 10_000, bias=False)
    env = PrisonerEnv(num_envs=2)
    with pytest.raises(ValueError, match=r"Lower 'hidden_channels', 'encoder_channels' and the like"):
        DQN(env.spec, IndependentQConfig(hidden_channels=65_536, encoder_channels=(65_536,), replay_size=100))
    with pytest.raises(ValueError, match=r"'hidden_channels' must be at most 65536 \(got 10000000\)"):
        IndependentQConfig(hidden_channels=10_000_000)
    with new_weights(0):  # nothing of the refused ones is counted
        nn.Linear(1000, 1000)


def test_networks_that_cannot_be_allocated_are_refused_too() -> None:
    with pytest.raises(ValueError, match=r'the networks are too large: .* GiB free\. Lower'), new_weights(0):
        nn.Linear(10**8, 10**8)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    before = torch.get_rng_state()
    weights = []
    for seed in (0, 0, 1):
        torch.rand(1)
        with new_weights(seed):
            weights.append(nn.Linear(3, 3).weight)
    torch.set_rng_state(before)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
