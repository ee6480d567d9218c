"""Traffic: options, presets, and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from ltos_pyg.algos import Algorithm
from ltos_pyg.envs.traffic import TrafficConfig, make_traffic
from ltos_pyg.graph_env import GraphEnv
from ltos_pyg.scenarios.base import Scenario
from ltos_pyg.scenarios.presets import PAPER_LTOS, PAPER_TRAFFIC, REFERENCE_CONSENET
from ltos_pyg.scenarios.traffic.moments import Moment, traffic_moments
from ltos_pyg.scenarios.traffic.painter import TrafficPainter, traffic_text
from ltos_pyg.viz.drawing import Frame

STRIDE = 3  # decisions per picture: half a minute
# Own rewards (alpha 0): under the sum over the graph, or over hops, NeurComm learns several times more slowly.
ON_POLICY = {
    'num_envs': 4, 'max_neighbours': 4, 'rollout_steps': 8, 'alpha': 0.0, 'reward_norm': 2.0, 'lr': 2e-3
}  # fmt: skip


class TrafficPictures:
    """Draws the roads; of a whole episode every third decision."""

    def frames(self, algorithm: Algorithm, env: Any, seed: int, steps: int | None = None) -> Iterator[Frame]:
        painter = TrafficPainter(env.engines[0].network, env.choices[0], env.yellow)
        for k, moment in enumerate(islice(traffic_moments(algorithm, env, seed), steps)):
            if steps is not None or k % STRIDE == 0:
                yield painter.draw(moment, _title(moment))

    def views(
        self, algorithm: Algorithm, env: Any, seed: int, steps: int | None = None, colour: bool = False
    ) -> Iterator[str]:
        network = env.engines[0].network
        for moment in islice(traffic_moments(algorithm, env, seed), steps):
            yield traffic_text(network, moment, _title(moment), colour)


def _title(moment: Moment) -> str:
    minutes, seconds = divmod(moment.time, 60)
    return f'{minutes:02d}:{seconds:02d}   {moment.vehicles.sum()} vehicles on the roads, {moment.waiting.sum()} wait'


def _make(config: TrafficConfig, num_envs: int, device: str) -> GraphEnv:
    return make_traffic(config, num_envs, device)


TRAFFIC = Scenario(
    name='traffic',
    env_config=TrafficConfig,
    make=_make,
    pictures=TrafficPictures(),
    primary_metric='duration',
    lower_is_better=True,
    train={
        'num_envs': 16,
        'eval_every': 14_400,  # 40 episodes of 360 decisions
        'eval_episodes': None,  # one of each task: all greedy episodes of a task are equal
        'final_episodes': None,
        'checkpoint_every': 28_800,
        'log_every': 2_880,
    },
    algorithm={
        'total_steps': 144_000,  # 400 episodes
        'gamma': 0.8,
        'action_gap': 0.5,
        'hidden_channels': 64,
        'encoder_channels': (128,),
        'heads': 4,
        'learning_starts': 2_880,
        'train_freq': 16.0,
        'replay_size': 20_000,
    },
    presets={
        ('ltos', 'paper'): PAPER_TRAFFIC | PAPER_LTOS | {'env': {'edge_features': False}},
        ('neurcomm', 'default'): ON_POLICY,
        # the critic of all observations and actions does not learn here
        ('consenet', 'default'): ON_POLICY | {'critic': 'recurrent', 'consensus': 'uniform'},
        ('consenet', 'reference'): {'num_envs': 4, 'max_neighbours': 4, 'reward_norm': 5.0} | REFERENCE_CONSENET,
        ('lio', 'default'): {
            'num_envs': 4,
            'rollout_steps': 24,
            'max_neighbours': 4,
            'lr_actor': 0.03,
            'pay_cost': 1e-4,
        },
    },
)
