"""The prisoner: options, presets, and pictures."""

from __future__ import annotations

from typing import Any

import torch

from ltos_pyg.algos import Decision
from ltos_pyg.envs import PrisonerConfig, PrisonerEnv
from ltos_pyg.graph_env import GraphEnv
from ltos_pyg.scenarios.base import Scenario
from ltos_pyg.scenarios.presets import PAPER_LTOS, REFERENCE_CONSENET, SMALL
from ltos_pyg.viz.drawing import Scene
from ltos_pyg.viz.pictures import ScenePictures, shares

# LToS takes a quarter of the gradient steps that other methods take, but larger ones, and its target network follows
# faster. The high level takes as many steps as the low level: with one in four, which is 48, it stays where it starts.
FEW_UPDATES: dict[str, Any] = {'total_steps': 10_000, 'train_freq': 32.0, 'lr': 3e-3, 'tau': 0.02, 'phi_every': 1}


def _make(config: PrisonerConfig, num_envs: int, device: str) -> GraphEnv:
    return PrisonerEnv(num_envs, config, device=device)


def _scene(env: PrisonerEnv, graph: Any, decision: Decision, title: str) -> Scene:
    cells = graph.x[:, : env.length].argmax(1).cpu()  # a player's own cell comes first in x
    goals = [0, env.length // 2, env.length - 1]
    return Scene(
        size=(env.length, 1),
        positions=torch.stack([cells, torch.zeros_like(cells)], 1),
        edge_index=graph.edge_index,
        labels=('A', 'B'),
        kinds=[0, 1],
        items={'goal': [(x, 0) for x in goals]},
        title=title,
        **shares(decision),
    )


PRISONER = Scenario(
    name='prisoner',
    env_config=PrisonerConfig,
    make=_make,
    source=PrisonerEnv,
    pictures=ScenePictures(_scene),
    primary_metric='return',
    train={'num_envs': 16, 'eval_every': 2_000, 'checkpoint_every': 10_000, 'log_every': 500},
    algorithm=SMALL
    | {
        'total_steps': 20_000,
        'gamma': 0.99,
        'n_step': 1,
        'batch_size': 64,
        'lr': 1e-3,
        'replay_size': 5_000,
        'learning_starts': 500,
        'train_freq': 16.0,
        'epsilon_end': 0.05,
    },
    presets={
        ('ltos', 'default'): FEW_UPDATES,
        ('ltos_edge', 'default'): FEW_UPDATES,
        ('ltos', 'paper'): PAPER_LTOS,
        ('qmix', 'default'): {'train_freq': 4.0},  # with fewer, a mixing weight often dies, see deviations.md
        ('fixed_ltos', 'default'): {'kept': 0.4},  # at one half both actions are worth the same against a defector
        ('neurcomm', 'default'): {'rollout_steps': 10, 'alpha': 1.0},  # the sum of both rewards
        ('consenet', 'default'): {'rollout_steps': 5, 'entropy': 0.03, 'critic_lr': 4.0},
        ('consenet', 'reference'): {'rollout_steps': 5} | REFERENCE_CONSENET,
        # Payments start at half of the maximum. With a maximum of about 1 or more, the longer way home then pays off at
        # once, without any learning of payments.
        ('lio', 'default'): {'rollout_steps': 5, 'reward_max': 0.5, 'lr_reward': 1e-2},
        ('ip', 'default'): {'beta': 0.2},  # with 0.05 it samples cooperation too rarely to learn it
    },
)
