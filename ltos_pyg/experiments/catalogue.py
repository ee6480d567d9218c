"""What ``ltos reproduce`` can make: the paper's tables and figures, and what this library adds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltos_pyg.experiments.experiment import Experiment, Method, Setting

LTOS = Method(label='LToS', algo='ltos')
LTOS_EDGE = Method(label='LToS-edge (ours)', algo='ltos_edge')
FIXED = Method(label='fixed LToS', algo='fixed_ltos')
FIXED_QUARTER = Method(label='fixed LToS, keeps 0.25', algo='fixed_ltos', options={'critic': 'node', 'kept': 0.25})
FIXED_EDGE = Method(label='fixed LToS, edge critic', algo='fixed_ltos', options={'critic': 'edge', 'kept': 'uniform'})
DGN = Method(label='DGN', algo='dgn')
DQN = Method(label='DQN', algo='dqn')
QMIX = Method(label='QMIX', algo='qmix')
IP = Method(label='IP', algo='ip')
NEURCOMM = Method(label='NeurComm', algo='neurcomm')
CONSENET = Method(label='ConseNet', algo='consenet')
LIO = Method(label='LIO', algo='lio')
JOINT_DQN = Method(label='JointDQN', algo='joint_dqn')
COCO_Q = Method(label='Coco-Q', algo='coco_q')

OFF_POLICY = (LTOS, LTOS_EDGE, FIXED, DGN, DQN, QMIX, IP)
ON_POLICY = (NEURCOMM, CONSENET, LIO)

JUNGLE = Setting(label='jungle', scenario='jungle', options={'final_episodes': 100})
GRID_FILES = {'net': ('roadnet_6_6.json',), 'flow': ('anon_6_6_small_2570_bi.json',)}
SHENZHEN_FILES = {'net': ('roadnet_1_33.json',), 'flow': ('anon_1_33_fuhua_0.4x24hto1h.json',)}
TRAFFIC_6X6 = Setting(label='6x6', scenario='traffic', options=GRID_FILES, metric='red_lights_delay')
TRAFFIC_SHENZHEN = Setting(label='Shenzhen', scenario='traffic', options=SHENZHEN_FILES, metric='red_lights_delay')
TRAFFIC_NOTE = (
    "The paper does not define its unit, red lights per vehicle and intersection. Ours is a vehicle's delay over 10 s, "
    'per intersection (definition A of docs/traffic.md): compare methods within one column of ours, not with the paper.'
)


def jungle(label: str, x: float | None = None, **options: Any) -> Setting:
    """A variant of the jungle."""
    return Setting(label=label, scenario='jungle', options={**JUNGLE.options, **options}, x=x)


def each_with_seeds(methods: tuple[Method, ...], seeds: int) -> tuple[Method, ...]:
    """The methods with so many seeds."""
    return tuple(dataclasses.replace(method, seeds=seeds) for method in methods)


def by_row(setting: str, numbers: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Numbers of the paper for one setting, by method."""
    return {method: {setting: number} for method, number in numbers.items()}


TABLE1 = by_row(
    'jungle',
    {'DQN': 0.24, 'DGN': 0.66, 'fixed LToS': 0.71, 'LToS': 0.86, 'NeurComm': -0.05, 'ConseNet': -0.04, 'LIO': 0.0,
     'IP': 0.63, 'QMIX': 0.04},
)  # fmt: skip
TABLE3 = {
    'DQN': {'6x6': 0.90, 'Shenzhen': 13.99},
    'DGN': {'6x6': 0.78, 'Shenzhen': 2.02},
    'fixed LToS': {'6x6': 0.80, 'Shenzhen': 1.94},
    'LToS': {'6x6': 0.58, 'Shenzhen': 1.71},
    'NeurComm': {'6x6': 0.71, 'Shenzhen': 2.27},
    'ConseNet': {'6x6': 0.78, 'Shenzhen': 7.63},
    'LIO': {'6x6': 7.74, 'Shenzhen': 19.15},
    'IP': {'6x6': 4.67, 'Shenzhen': 5.52},
    'QMIX': {'6x6': 5.94, 'Shenzhen': 19.74},
}
FIGURE5 = {
    'DGN': {'N = 10': 0.52, 'N = 20': 0.66, 'N = 30': 0.77, 'N = 40': 0.84, 'N = 50': 0.86},
    'fixed LToS': {'N = 10': 0.63, 'N = 20': 0.71, 'N = 30': 0.79, 'N = 40': 0.80, 'N = 50': 0.79},
    'LToS': {'N = 10': 0.71, 'N = 20': 0.86, 'N = 30': 0.88, 'N = 40': 0.90, 'N = 50': 0.91},
}
FIGURE6 = {'LToS': {'k = 1': 0.83, 'k = 2': 0.84, 'k = 3': 0.86, 'k = 4': 0.66, 'k = 5': 0.80}}


def _fixed(critic: str, kept: float | str) -> Method:
    name = kept if isinstance(kept, str) else 'keep all' if kept == 1 else 'constant'
    return Method(label=f'{critic}, {name}', algo='fixed_ltos', options={'critic': critic, 'kept': kept})


LEARNED = {'node': 'ltos', 'edge': 'ltos_edge'}


def _learned(critic: str, seeds: int | None = None) -> Method:
    return Method(label=f'{critic}, learned', algo=LEARNED[critic], seeds=seeds)


def _frozen(critic: str) -> Method:
    """The same networks and exploration, with a high level that never moves."""
    return Method(label=f'{critic}, frozen', algo=LEARNED[critic], options={'phi_starts': 1.0})


# the usual sums of rewards, which are not on the simplex
SUMS = tuple(
    Method(label=f'DGN, {reward} reward', algo='dgn', options={'reward': reward})
    for reward in ('neighbourhood', 'team')
)


def factorial(best_constant: float, learned: int) -> tuple[Method, ...]:
    """{node, edge} x {keep all, uniform, best constant, random, frozen, learned}, and the usual sums of rewards."""
    rows: list[Method] = []
    for critic in LEARNED:
        rows += [_fixed(critic, kept) for kept in (1.0, 'uniform', best_constant, 'random')]
        rows += [_frozen(critic), _learned(critic, learned)]
    return (*rows, *SUMS)


OFFERS_BA = {'graph': 'offers', 'topology': 'ba'}
GAINS: dict[str, Any] = {'graph': 'radius', 'attack_gain_high': 6.0, 'eval_temperature': 0.0}
LONG_REPLAY: dict[str, Any] = {'replay_size': 120_000}
DENSE_ROWS = (*(_fixed('edge', kept) for kept in (1.0, 'uniform', 0.2)), _learned('edge'), DGN, *SUMS)


def _dilemma(name: str, title: str, best_constant: float, **options: Any) -> Experiment:
    return Experiment(
        name=f'sharing-{name}', title=title, report='sharing', methods=factorial(best_constant, learned=10),
        settings=(Setting(label=name, scenario='dilemmas', options=options),), compared='node, learned',
    )  # fmt: skip


_ALL = (
    Experiment(
        name='fig3a', title='Figure 3a: prisoner, all methods', report='curves',
        settings=(Setting(label='prisoner', scenario='prisoner'),),
        methods=(LTOS, LTOS_EDGE, FIXED, DGN, DQN, QMIX, IP, JOINT_DQN, COCO_Q, *ON_POLICY),
        text='Return of an episode, as the mean over both agents; 1 is mutual cooperation from the first step.',
    ),
    Experiment(
        name='fig3b', title='Figure 3b: learning curves on the jungle, 20 agents', report='curves',
        settings=(JUNGLE,), methods=(*OFF_POLICY, *each_with_seeds(ON_POLICY, 2)),
    ),
    Experiment(
        name='fig3c', title='Figure 3c: learning curves on traffic, 6x6', report='curves', files=True,
        settings=(TRAFFIC_6X6,),
        methods=(*each_with_seeds((LTOS, FIXED, DGN, DQN), 3), *each_with_seeds((QMIX, IP, *ON_POLICY), 1)),
    ),
    Experiment(
        name='table1', title='Table 1: reward a step on the jungle, 20 agents',
        settings=(JUNGLE,), methods=(*OFF_POLICY, *each_with_seeds(ON_POLICY, 2)), paper=TABLE1,
        text="The paper's upper bound is 0.95.",
    ),
    Experiment(
        name='fig4', title='Figure 4: what agents do on the jungle', report='behaviour', seeds=1,
        settings=(JUNGLE,), methods=(*OFF_POLICY, *ON_POLICY),
    ),
    Experiment(
        name='fig5', title='Figure 5: 10 to 50 agents on the jungle', report='line', seeds=2,
        settings=tuple(
            jungle(f'N = {n}', n, **({} if n == 20 else {'num_agents': n, 'num_foods': 3 * n // 5}))
            for n in (10, 20, 30, 40, 50)
        ),
        methods=(LTOS, LTOS_EDGE, FIXED, DGN), paper=FIGURE5,
        text='As in the paper, there are 3 foods for 5 agents; the board stays the same.',
    ),
    Experiment(
        name='fig6', title='Figure 6: 1 to 8 neighbours on the jungle', report='line', seeds=2,
        settings=tuple(
            jungle(f'k = {k}', k, **({} if k == 3 else {'neighbours': k})) for k in (1, 2, 3, 4, 5, 8)
        ),
        methods=(LTOS, LTOS_EDGE, FIXED, FIXED_QUARTER, FIXED_EDGE, DGN), paper=FIGURE6,
    ),
    Experiment(
        name='table3', title='Table 3: red lights on traffic, 6x6 and Shenzhen', files=True,
        settings=(TRAFFIC_6X6, TRAFFIC_SHENZHEN),
        methods=(*each_with_seeds((LTOS, LTOS_EDGE, FIXED, DGN, DQN), 3), *each_with_seeds((QMIX, IP, *ON_POLICY), 1)),
        paper=TABLE3, text=TRAFFIC_NOTE,
    ),
    Experiment(
        name='fig7', title='Figure 7: the share kept by each signal, 6x6 and Shenzhen', report='selfishness',
        files=True, seeds=1, settings=(TRAFFIC_6X6, TRAFFIC_SHENZHEN), methods=(LTOS, LTOS_EDGE),
    ),
    Experiment(
        name='zero-shot-jungle', title='Trained with 20 agents on the jungle, played elsewhere', report='zero_shot',
        settings=(JUNGLE,), methods=(LTOS, LTOS_EDGE, FIXED, FIXED_EDGE, DGN), seeds=2,
        over={
            'num_agents': (10, 50, 100), 'size': (20, 40), 'num_foods': (6, 24), 'neighbours': (1, 5, 8),
            'graph': ('radius',),
        },
    ),
    Experiment(
        name='zero-shot-offers', title='Offers: trained with 20 agents on preferential attachment, played elsewhere',
        report='zero_shot', settings=(Setting(label='ba', scenario='dilemmas', options=OFFERS_BA),), seeds=5,
        methods=(LTOS, LTOS_EDGE, _fixed('node', 0.18), SUMS[0]),
        over={'num_agents': (10, 50, 100), 'topology': ('ring', 'tree', 'star')},
    ),
    Experiment(
        name='zero-shot-traffic', title='Trained on a generated 6x6 grid, played on others', report='zero_shot',
        settings=(Setting(label='grid', scenario='traffic'),), methods=(LTOS, LTOS_EDGE, DGN), seeds=1,
        over={'net': (('3x3',), ('10x10',)), 'demand_seed': (1, 2), 'turn': (0.2,)},
    ),
    _dilemma('groups', 'Groups: hunt, work or tempt', 0.1, graph='groups', total_steps=24_000),
    _dilemma('double_star', 'Double star: hunts and offers', 0.05, graph='double_star'),
    _dilemma('star', 'Offers on a star, 20 agents', 0.05, graph='offers', topology='star'),
    _dilemma('tree', 'Offers on random trees, 20 agents', 0.25, graph='offers', topology='tree'),
    _dilemma('ba', 'Offers on preferential attachment, 20 agents', 0.18, **OFFERS_BA),
    Experiment(
        name='sharing-prisoner', title='Prisoner: critics and weights', report='sharing',
        settings=(Setting(label='prisoner', scenario='prisoner'),), methods=factorial(0.4, learned=5),
        compared='node, learned',
    ),
    Experiment(
        name='sharing-paper', title="The paper's high level and ours", report='sharing', seeds=3,
        settings=(
            Setting(label='prisoner', scenario='prisoner'),
            Setting(label='groups', scenario='dilemmas', options={'graph': 'groups', 'total_steps': 24_000}),
            Setting(label='double star', scenario='dilemmas', options={'graph': 'double_star'}),
        ),
        methods=(
            Method(label='preset paper', algo='ltos', preset='paper'),
            Method(label='preset paper, one step of phi in 4', algo='ltos', preset='paper', options={'phi_every': 4}),
            Method(
                label="the paper's objective, all else default", algo='ltos',
                options={'objective': 'gradient', 'initial_kept': 0.4},
            ),
            Method(label='default', algo='ltos'),
        ),
    ),
    Experiment(
        name='sharing-noise', title='Double star: how weights are explored', report='sharing', seeds=3,
        settings=(Setting(label='double_star', scenario='dilemmas', options={'graph': 'double_star'}),),
        methods=(
            Method(label='noise of the graph and of each agent (default)', algo='ltos'),
            Method(label='noise of the graph only', algo='ltos', options={'noise_own': 0.0, 'noise_received': 0.0}),
            Method(label='noise of each agent only', algo='ltos', options={'noise_joint': 0.0, 'noise_own': 4.0}),
            Method(label='held for 10 steps', algo='ltos', options={'hold_steps': 10}),
        ),
    ),
    Experiment(
        name='sharing-jungle', title='Jungle, 20 agents, k = 3: critics and weights', report='sharing',
        settings=(JUNGLE,), compared='node, learned',
        methods=(
            Method(label='node, uniform', algo='fixed_ltos'), _frozen('node'), _learned('node'),
            _fixed('edge', 'uniform'), _learned('edge'),
            Method(label='DGN', algo='dgn', seeds=10),
        ),
    ),
    Experiment(
        name='replay-jungle', title='Jungle: a replay of the last 50,000 steps, and one of all 120,000',
        seeds=2, methods=(LTOS, LTOS_EDGE, FIXED_EDGE, DGN),
        settings=(
            jungle('k = 3, 50,000'), jungle('k = 3, 120,000', **LONG_REPLAY),
            jungle('k = 8, 50,000', neighbours=8), jungle('k = 8, 120,000', neighbours=8, **LONG_REPLAY),
        ),
    ),
    Experiment(
        name='replay-jungle-gains', title='Unequal gains: a replay of the last 50,000 steps, and one of all 120,000',
        seeds=3, methods=(_learned('edge'), _fixed('edge', 0.2), _fixed('edge', 'uniform'), DGN),
        settings=(jungle('50,000', **GAINS), jungle('120,000', **GAINS, **LONG_REPLAY)),
    ),
    Experiment(
        name='sharing-jungle-radius', title='Jungle, neighbours within 9 cells', report='sharing', seeds=3,
        settings=(jungle('radius', graph='radius'),), methods=DENSE_ROWS, compared='edge, learned',
    ),
    Experiment(
        name='sharing-jungle-gains', title='Jungle, half of the agents gain 6 from an attack', report='sharing',
        seeds=3, methods=DENSE_ROWS, compared='edge, learned',
        settings=(jungle('gains', **GAINS),),
    ),
    Experiment(
        name='sharing-traffic', title='Generated grid of signals', report='sharing', seeds=1,
        settings=(Setting(label='grid', scenario='traffic'),), methods=(_learned('node'), _learned('edge'), DGN),
    ),
)  # fmt: skip

EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in _ALL}


def experiment(name: str, data: Path | None = None) -> Experiment:
    """An experiment by its name.

    Args:
        name: One of :data:`EXPERIMENTS`.
        data: Folder of the road networks, for those that need them.

    Raises:
        ValueError: If there is none of this name, or a road network is missing.
    """
    if name not in EXPERIMENTS:
        raise ValueError(
            f"unknown experiment '{name}'. Choose from: {', '.join(EXPERIMENTS)}, or name a TOML file of your own."
        )
    found = EXPERIMENTS[name]
    return with_files(found, data) if found.files else found


def with_files(experiment: Experiment, data: Path | None) -> Experiment:
    """The experiment with the paths of its road networks."""
    names = {name for setting in experiment.settings for names in setting.options.values() for name in names}
    if data is None or any(not (data / name).is_file() for name in names):
        raise ValueError(
            f"'{experiment.name}' needs road networks that are not part of this package: {', '.join(sorted(names))}. "
            f'Name their folder by --data (got {data}); docs/traffic.md says where they are published.'
        )
    settings = tuple(
        dataclasses.replace(
            s, options={key: tuple(str(data / name) for name in names) for key, names in s.options.items()}
        )
        for s in experiment.settings
    )
    return dataclasses.replace(experiment, settings=settings)
