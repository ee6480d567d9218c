"""The jungle: options, presets, and pictures."""

from __future__ import annotations

from typing import Any

import torch

from ltos_pyg.algos import Decision
from ltos_pyg.envs import JungleConfig, JungleEnv
from ltos_pyg.envs.jungle_rules import DX, DY, FIRST_ATTACK
from ltos_pyg.graph_env import GraphEnv
from ltos_pyg.scenarios.base import Scenario
from ltos_pyg.scenarios.presets import PAPER_DGN, PAPER_LTOS, REFERENCE_CONSENET
from ltos_pyg.viz.drawing import Scene, border
from ltos_pyg.viz.pictures import ScenePictures, shares

# There is one gradient step per segment, so with many graphs at once there would be few gradient steps. The likeliest
# action is played.
ON_POLICY: dict[str, Any] = {'num_envs': 8, 'max_neighbours': 8, 'eval_temperature': 0.0}
TUNED: dict[str, Any] = {'rollout_steps': 5, 'alpha': 0.9, 'eval_temperature': 1.0}


def _make(config: JungleConfig, num_envs: int, device: str) -> GraphEnv:
    return JungleEnv(num_envs, config, device=device)


def _scene(env: JungleEnv, graph: Any, decision: Decision, title: str) -> Scene:
    agents, foods = env.agent_positions[0].cpu(), env.food_positions[0].cpu()
    action = decision.action.cpu()
    aim = agents + torch.tensor([DY, DX]).t()[action]
    hit = (aim.unsqueeze(1) == agents.unsqueeze(0)).all(-1) & (action >= FIRST_ATTACK).unsqueeze(1)
    size = (env.config.size, env.config.size)
    return Scene(
        size=size,
        positions=agents.flip(1),
        edge_index=graph.edge_index,
        kinds=env.high[0].long(),  # agents with the high gain have another rim colour
        items={'wall': border(size), 'food': foods.flip(1)},
        marks=hit.nonzero(),
        title=title,
        **shares(decision),
    )


JUNGLE = Scenario(
    name='jungle',
    env_config=JungleConfig,
    make=_make,
    source=JungleEnv,
    pictures=ScenePictures(_scene),
    primary_metric='reward',
    train={'eval_every': 20_000, 'eval_episodes': None, 'final_episodes': None},  # sized to the run
    algorithm={
        'total_steps': 120_000,
        'gamma': 0.9,
        'action_gap': 0.5,
        'average_views': True,
        'encoder_channels': (256,),
        'train_freq': 16.0,
        'eval_temperature': 0.02,  # without a memory, the greedy policy walks in circles: see docs/trials.md
    },
    presets={
        ('ltos', 'paper'): PAPER_DGN | PAPER_LTOS | {'env': {'edge_features': False}},
        ('dgn', 'paper'): PAPER_DGN,
        ('dqn', 'paper'): PAPER_DGN,
        ('fixed_ltos', 'paper'): PAPER_DGN | {'kept': 0.8},
        # NeurComm and ConseNet: the best of eight trials each, seed 100 (docs/trials.md).
        ('neurcomm', 'default'): ON_POLICY | TUNED | {'lr': 4e-3},
        ('consenet', 'default'): ON_POLICY | TUNED | {'lr': 9.5e-3, 'critic': 'recurrent', 'reward_norm': 5.0},
        ('consenet', 'reference'): ON_POLICY | {'rollout_steps': 10, 'reward_norm': 5.0} | REFERENCE_CONSENET,
        # LIO: an odd number of segments per episode. With an even number, policies would be trained on only one half of
        # each episode's segments, always the same ones.
        ('lio', 'default'): ON_POLICY | {'rollout_steps': 8, 'pay_cost': 1e-4},
        ('ip', 'default'): {'aggr': 'mean', 'eval_temperature': 0.4},  # it divides log q, which is about Q / beta
    },
)
