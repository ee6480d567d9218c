"""What the tests of the methods with networks of each agent's own share: small games and a loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ltos_pyg.algos import ALGORITHMS
from ltos_pyg.data import Snapshot
from ltos_pyg.graph_env import GraphEnv, SingleGraphEnv, SingleStep, VectorGraphEnv

NETWORKED: dict[str, dict[str, Any]] = {
    'neurcomm': {'hidden_channels': 8, 'rollout_steps': 4, 'lr': 1e-2},
    'consenet': {'hidden_channels': 8, 'rollout_steps': 4, 'lr': 1e-2},
    'consenet recurrent': {'hidden_channels': 8, 'rollout_steps': 4, 'lr': 1e-2, 'critic': 'recurrent', 'alpha': 0.9},
    'lio': {'policy_channels': (8,), 'incentive_channels': (8,), 'rollout_steps': 4, 'lr_reward': 1e-2},
    'ip': {
        'hidden_channels': 8, 'encoder_channels': (8,), 'batch_size': 4, 'replay_size': 200, 'learning_starts': 8,
        'train_freq': 8.0,
    },
}  # fmt: skip


class Path3(SingleGraphEnv):
    """Three agents in a row; observations are redrawn at each step, and rewards depend on it and on their actions."""

    num_features, num_actions, max_nodes, symmetric, horizon = 2, 3, 3, True, 5
    edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])

    def start(self) -> Snapshot:
        self.x = torch.randn(3, 2, generator=self.generator)
        return Snapshot(x=self.x, edge_index=self.edges)

    def step(self, action: Tensor) -> SingleStep:
        reward = self.x[:, 0] * action
        return SingleStep(self.start(), reward)

    def state_dict(self) -> dict[str, Any]:
        return {'x': self.x}

    def load_state_dict(self, state: dict[str, Any]) -> Snapshot:
        self.x = state['x']
        return Snapshot(x=self.x, edge_index=self.edges)


class NoEdges(Path3):
    """The same without edges."""

    edges = torch.zeros(2, 0, dtype=torch.int64)


def path3(num_envs: int = 2) -> GraphEnv:
    return VectorGraphEnv(Path3, num_envs)


def make(variant: str, env: GraphEnv, seed: int = 0, **options: Any) -> Any:
    maker, config = ALGORITHMS[variant.split()[0]]
    return maker(env.spec, config(**{'total_steps': 10_000, **NETWORKED[variant], **options}), seed)


class Loop:
    """The least loop that trains."""

    def __init__(self, algo: Any, env: GraphEnv, seed: int = 0) -> None:
        self.algo, self.env, self.graph = algo, env, env.reset(seed)
        self.metrics: list[dict[str, float]] = []

    def step(self) -> None:
        decision = self.algo.act(self.graph, explore=True)
        step = self.env.step(decision.action)
        self.algo.observe(self.graph, decision, step)
        self.graph = step.graph

    def until(self, updates: int) -> Loop:
        while self.algo.updates < updates:
            self.step()
            for _ in range(self.algo.due_updates):
                self.metrics.append(self.algo.update())
        return self
