"""A real environment of others, from its package to a trained and resumed policy."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from ltos_pyg.algos import ALGORITHMS
from ltos_pyg.envs import PrisonerEnv
from ltos_pyg.graph_env import GraphEnv, KNearest, from_pettingzoo
from ltos_pyg.training.checkpoint import CheckpointStore
from ltos_pyg.training.config import TrainConfig
from ltos_pyg.training.logging import MetricsLogger, read_metrics
from ltos_pyg.training.trainer import Trainer, how_to_resume_exactly

with warnings.catch_warnings():  # what it imports is not ours to mend
    warnings.simplefilter('ignore')
    simple_spread = pytest.importorskip('mpe2.simple_spread_v3')

OPTIONS: dict[str, Any] = {
    'total_steps': 400,
    'batch_size': 8,
    'replay_size': 300,
    'learning_starts': 40,
    'train_freq': 8.0,
    'hidden_channels': 16,
    'encoder_channels': (16,),
    'num_layers': 1,
    'heads': 2,
}
HIGH: dict[str, Any] = {'phi_channels': 8, 'phi_every': 2, 'phi_starts': 0.0, 'hold_steps': 10}


def spread(num_envs: int) -> GraphEnv:
    """Three agents are to cover three landmarks; each receives from its nearest neighbour."""
    return from_pettingzoo(
        lambda: simple_spread.parallel_env(N=3, max_cycles=10, continuous_actions=False),
        neighbours=KNearest(1, position=slice(2, 4)),
        num_envs=num_envs,
    )


def test_what_helps_a_game_that_cannot_be_saved_is_something_that_can_be_done() -> None:
    assert 'Write it as a SingleGraphEnv with state_dict()' in how_to_resume_exactly(spread(1))
    assert how_to_resume_exactly(PrisonerEnv(num_envs=1)) == 'Give it state_dict() and load_state_dict().'


def train(algo: str, folder: Path, until: int = 400) -> Trainer:
    """A run, or what is left of it."""
    config = TrainConfig(num_envs=4, log_every=100, eval_every=200, eval_episodes=3, checkpoint_every=200)
    maker, options = ALGORITHMS[algo]
    env = spread(config.num_envs)
    learner = maker(env.spec, options(**OPTIONS, **(HIGH if algo == 'ltos' else {})), seed=1)
    store = CheckpointStore(folder / 'checkpoints')
    saved = store.load_latest()
    with MetricsLogger(folder / 'metrics.jsonl', saved[0] if saved else None) as log:
        trainer = Trainer(learner, env, spread, config, until, log, store, 'return')
        if saved:
            trainer.load(saved[1])
        trainer.run()
    env.close()
    return trainer


@pytest.mark.parametrize('algo', ['dgn', 'ltos'])
def test_a_pettingzoo_environment_is_trained_stopped_and_resumed(tmp_path, algo):
    first = train(algo, tmp_path, until=200)
    weights = {name: value.clone() for name, value in first.algorithm.network.state_dict().items()}
    assert first.store.load_latest()[1]['env'] is None  # the game cannot say where it is

    second = train(algo, tmp_path)
    assert (second.algorithm.env_steps, second.algorithm.updates) == (400, (400 - 40) // 8)
    assert second.store.steps() == [200, 400]
    for name, value in second.algorithm.network.state_dict().items():
        assert value.isfinite().all(), name
        assert not torch.equal(value, weights[name]), name

    rows = read_metrics(tmp_path / 'metrics.jsonl')
    losses = [row['loss'] for row in rows if 'loss' in row]
    assert [row['step'] for row in rows if 'loss' in row] == [100, 200, 300, 400]
    assert all(loss is not None and loss > 0 for loss in losses)
    assert all(row['eval/return'] < 0 and row['eval/length'] == 10 for row in rows if 'eval/return' in row)
    if algo == 'ltos':
        assert all(0 < row['phi/kept'] < 1 for row in rows if 'phi/kept' in row)
        assert {'eval/kept', 'eval/kept_std_nodes', 'eval/uneven'} <= rows[0].keys()


def test_the_same_seed_trains_the_same_policy(tmp_path):
    first, second = (train('ltos', tmp_path / name, until=200).algorithm for name in ('first', 'second'))
    for name, value in first.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[name]), name
