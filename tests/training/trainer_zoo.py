"""Small games and helpers for tests of the loop and of evaluations."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import torch
from torch import Tensor

from ltos_pyg.algos import ALGORITHMS
from ltos_pyg.data import Snapshot
from ltos_pyg.envs import JungleEnv
from ltos_pyg.graph_env import GraphEnv, SingleGraphEnv, SingleStep, VectorGraphEnv, fully_connected

SMALL: dict[str, Any] = {
    'n_step': 2,
    'batch_size': 4,
    'replay_size': 200,
    'learning_starts': 16,
    'train_freq': 8.0,
    'hidden_channels': 8,
    'encoder_channels': (8,),
    'num_layers': 1,
    'heads': 2,
}
TRAIN: dict[str, Any] = {'num_envs': 4, 'log_every': 40, 'eval_every': 80, 'eval_episodes': 3, 'checkpoint_every': 60}


class Lottery(SingleGraphEnv):
    """Two agents with random rewards, independent of their actions. It cannot save its state."""

    num_features, num_actions, max_nodes, symmetric, horizon = 1, 2, 2, True, 5
    prize = 1.0

    def start(self) -> Snapshot:
        x = torch.rand(2, 1, generator=self.generator)
        return Snapshot(x=x, edge_index=fully_connected(2))

    def step(self, action: Tensor) -> SingleStep:
        return SingleStep(self.start(), self.prize * torch.rand(2, generator=self.generator), info={'tickets': 2.0})


class Bomb(Lottery):
    """Something happens in one of its steps."""

    def __init__(self, at: int, what: Any) -> None:
        self.left, self.what = at, what

    def step(self, action: Tensor) -> SingleStep:
        self.left -= 1
        if self.left == 0:
            self.what(self)
        return super().step(action)


def jungle(num_envs: int) -> GraphEnv:
    return JungleEnv(num_envs=num_envs, num_agents=4, num_foods=3, size=7, horizon=7)


def lottery(num_envs: int) -> GraphEnv:
    return VectorGraphEnv(Lottery, num_envs)


def make_algo(algo: str, env: GraphEnv, seed: int = 0, **options: Any) -> Any:
    maker, config = ALGORITHMS[algo]
    high = {'phi_channels': 8, 'phi_starts': 0.0} if algo == 'ltos' else {}
    known = {field.name for field in dataclasses.fields(config)}
    small = {name: value for name, value in {**SMALL, **high}.items() if name in known}
    return maker(env.spec, config(**{**small, **options}), seed)


def flat(value: Any, name: str = '') -> dict[str, Any]:
    if isinstance(value, dict):
        parts = [flat(item, f'{name}.{key}') for key, item in value.items()]
    elif isinstance(value, list | tuple):
        parts = [flat(item, f'{name}[{i}]') for i, item in enumerate(value)]
    else:
        return {name: value.clone() if isinstance(value, Tensor) else value}
    return dict(itertools.chain.from_iterable(part.items() for part in parts))


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    same = {k for k in a.keys() & b.keys() if (torch.equal(a[k], b[k]) if isinstance(a[k], Tensor) else a[k] == b[k])}
    return sorted((a.keys() | b.keys()) - same)


def untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if 'seconds' not in name} for row in rows]
