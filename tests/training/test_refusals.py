"""What would end in a traceback, in a crash or in numbers without a meaning is refused in one sentence."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ltos_pyg import registry
from ltos_pyg.algos import DQN, IndependentQConfig
from ltos_pyg.algos.base import new_weights
from ltos_pyg.cli import main
from ltos_pyg.data import Snapshot
from ltos_pyg.envs import PrisonerEnv
from ltos_pyg.graph_env import GraphEnv, SingleGraphEnv, VectorGraphEnv, fully_connected
from ltos_pyg.training.api import load_policy, train, with_options
from ltos_pyg.training.checkpoint import CheckpointStore, save_file
from ltos_pyg.training.config import TrainConfig
from ltos_pyg.training.evaluate import evaluate
from ltos_pyg.training.lock_file import hold_lock
from ltos_pyg.training.logging import MetricsLogger
from ltos_pyg.training.pretrained import FOLDER
from ltos_pyg.training.run_folder import RunFolder
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


def test_weights_that_are_no_numbers_are_not_loaded(tmp_path: Any) -> None:
    folder = Path(shutil.copytree(FOLDER / 'prisoner-ltos', tmp_path / 'run'))
    content = torch.load(folder / 'policy.pt', weights_only=True)
    weight = content['state']['algorithm']['modules']['averaged']['head.lin.bias']
    weight[0] = math.nan
    save_file(folder / 'policy.pt', content['step'], content['state'], content['fingerprint'])
    with pytest.raises(ValueError, match=r"'network\.head\.lin\.bias' of the policy holds NaN or infinite numbers"):
        load_policy(folder)


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
    message = r'too large: training the first 100,000,000 parameters alone takes 2\.2 GiB; .* has 1\.0 GiB free'
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


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'total_steps': '1000'}, r"'total_steps' must be a whole number \(got '1000'\)"),
        ({'lr': None}, r"'lr' must be a number \(got None\)"),
        ({'encoder_channels': ['wide']}, r"'encoder_channels' must be a list, each a whole number \(got \('wide',\)\)"),
    ],
)
def test_an_option_of_another_type_is_named(tmp_path: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train('prisoner', 'dqn', out=tmp_path / 'run', **options)
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('given', [[8], 8, (8,)])
def test_widths_may_be_a_list_or_one_number(given: Any) -> None:
    config = with_options(registry.scenario('prisoner').config('dqn', 'default'), {'encoder_channels': given}, {})
    assert config.algorithm.encoder_channels == (8,)


def test_the_longest_n_step_that_is_allowed_learns(tmp_path: Any) -> None:
    options = {
        'num_envs': 4, 'horizon': 50, 'n_step': 3, 'total_steps': 200, 'learning_starts': 40, 'eval_episodes': 1,
        'final_episodes': 1, 'media': False,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"'n_step' must be at most 2, .* \(got 3\)"):
        train('prisoner', 'dqn', out=tmp_path / 'none', replay_size=12, **options)
    run = train('prisoner', 'dqn', out=tmp_path / 'run', replay_size=16, **options)
    assert run.result['updates'] > 0


@pytest.mark.parametrize(
    ('size', 'message'),
    [
        (5, r"'replay_size' must be at least 12, three graphs for each of 'num_envs' 4 .*Raise --replay-size"),
        (10**12, r"'replay_size' of 1,000,000,000,000 graphs, .* GiB that the machine has free\. Lower --replay-size"),
    ],
)
def test_a_replay_of_a_run_is_refused_by_the_name_of_the_option(tmp_path: Any, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        train('prisoner', 'dqn', out=tmp_path / 'run', num_envs=4, n_step=1, replay_size=size, media=False)
    assert not any(name in str(refused.value) for name in ('capacity', 'max_nodes', 'max_edges'))


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['reproduce', 'fig3a', '--jobs', '0', '--dry-run'], "'jobs' must be at least 1 (got 0)"),
        (['reproduce', 'fig3a', '--seeds', '0', '--dry-run'], "'seeds' must be at least 1, or be left out (got 0)"),
        (
            ['reproduce', 'fig3a', '--report', '--runs', 'none'],
            "fig3a is not reported: none of its runs is finished in 'none' (--runs)",
        ),
        (['watch', 'pretrained:prisoner-ltos', '--fps', '0'], "'fps' must be at least 1 (got 0)"),
        (['watch', 'pretrained:prisoner-ltos', '--steps', '-1'], "'steps' must be at least 1, or be left out (got -1)"),
        (['train', 'prisoner', '--algo', 'dgn', '--conv', 'functional', '--out', 'x'], "'conv' must name a layer"),
    ],
)
def test_a_number_or_name_that_means_nothing_is_refused(
    args: list[str], message: str, capsys: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(args) == 1
    assert message in capsys.readouterr().err


def test_many_may_ask_for_a_lock_while_it_comes_and_goes(tmp_path: Any) -> None:
    run, held, errors = RunFolder(tmp_path), [0], []

    def ask() -> None:
        try:
            for _ in range(300):
                with hold_lock(run.lock_path, 'asks', wait=True):
                    held[0] += 1
                    assert held[0] == 1
                    held[0] -= 1
        except BaseException as error:
            errors.append(error)

    def look() -> None:
        try:
            for _ in range(2000):
                assert run.is_locked in (True, False)
        except BaseException as error:
            errors.append(error)

    threads = [Thread(target=target) for target in (ask, ask, ask, look)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert not run.is_locked
