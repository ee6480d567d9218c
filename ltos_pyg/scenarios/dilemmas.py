"""The dilemmas of one step: options, presets, and pictures."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch

from ltos_pyg.algos import Decision
from ltos_pyg.envs import DilemmasConfig, DilemmasEnv
from ltos_pyg.graph_env import GraphEnv
from ltos_pyg.scenarios.base import Scenario
from ltos_pyg.scenarios.presets import PAPER_LTOS, SMALL
from ltos_pyg.viz.drawing import Scene
from ltos_pyg.viz.pictures import ScenePictures, shares


def _make(config: DilemmasConfig, num_envs: int, device: str) -> GraphEnv:
    return DilemmasEnv(num_envs, config, device=device)


def _scene(env: DilemmasEnv, graph: Any, decision: Decision, title: str) -> Scene:
    """Groups in a grid, the double star, or a circle. Rims: black for action 0 and for agents without a decision; green
    for action 1 where it is good for the team, pink where it is not."""
    x, action = graph.x.cpu(), decision.action.cpu()
    if env.config.graph == 'groups':
        size, positions = _in_groups(env.state['members'][0].cpu())
        decides, good = torch.ones(len(x), dtype=torch.bool), x[:, 2] == 0
        names = [('hunt', 'work', 'tempt')[kind] for kind in env.state['kind'][0].tolist()]
        if len(names) > 4:
            names = [f'{count} {name}' for name, count in Counter(names).items()]
        title = f'{title}   {", ".join(names)}'
    elif env.config.graph == 'double_star':
        size, positions = (7, 3), torch.tensor([[2, 1], [0, 0], [0, 2], [4, 1], [6, 0], [6, 2]])
        decides, good = (x[:, 0] + x[:, 2]) > 0, (x[:, 0] + x[:, 3]) > 0
        title = f'{title}   {("hunt", "good offer", "bad offer")[int(env.state["kind"][0])]}'
    else:
        size, positions = _on_a_circle(len(x), env.config.topology == 'star')
        decides, good = x[:, 0] > 0, x[:, 1] > x[:, 2]
    rim = torch.where(good, 2, 1) * (decides & (action == 1))
    return Scene(
        size=size,
        positions=positions,
        edge_index=graph.edge_index,
        kinds=rim,
        marks=env.harms(decision.action).t(),
        mark_name='harm',
        title=title,
        **shares(decision),
    )


def _in_groups(members: torch.Tensor) -> tuple[tuple[int, int], torch.Tensor]:
    """Size of the grid, and positions: a square of four per group, (G, 4), in rows."""
    columns = math.ceil(math.sqrt(len(members)))
    group = torch.arange(len(members)).unsqueeze(1)
    corner = torch.tensor([[0, 0], [2, 0], [0, 2], [2, 2]])
    place = 4 * torch.stack([group % columns, group // columns], 2) + corner
    positions = torch.empty(members.numel(), 2, dtype=torch.int64)
    positions[members.flatten()] = place.flatten(0, 1)
    return (4 * columns - 1, 4 * math.ceil(len(members) / columns) - 1), positions


def _on_a_circle(num_agents: int, hub: bool) -> tuple[tuple[int, int], torch.Tensor]:
    """Size of the grid, and positions on a circle; the hub of a star in the middle."""
    around = max(num_agents - hub, 1)
    radius = max(2, math.ceil(1.6 * around / (2 * math.pi)))
    angle = 2 * math.pi * (torch.arange(num_agents) - int(hub)) / around
    circle = torch.stack([angle.sin(), -angle.cos()], 1)
    if hub:
        circle[0] = 0
    return (2 * radius + 1, 2 * radius + 1), radius * (1 + circle)


DILEMMAS = Scenario(
    name='dilemmas',
    env_config=DilemmasConfig,
    make=_make,
    source=DilemmasEnv,
    pictures=ScenePictures(_scene),
    primary_metric='optimality',
    train={
        'num_envs': 16,
        'eval_every': 4_000,
        'eval_episodes': 50,
        'final_episodes': 200,
        'checkpoint_every': 12_000,
        'log_every': 1_000,
    },
    algorithm=SMALL
    | {
        'total_steps': 40_000,
        'hidden_channels': 64,
        'encoder_channels': (64,),
        'gamma': 0.0,  # one-step games
        'n_step': 1,
        'batch_size': 64,
        'lr': 3e-3,
        'huber': None,
        'replay_size': 50_000,
        'learning_starts': 500,
        'train_freq': 16.0,
        'epsilon_end': 0.05,
    },
    presets={('ltos', 'paper'): PAPER_LTOS},
)
