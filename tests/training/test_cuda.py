"""Every method on a GPU: trained, resumed, and evaluated there and on the CPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ltos_pyg
from ltos_pyg import cli
from ltos_pyg.algos import ALGORITHMS
from ltos_pyg.data import Snapshot
from ltos_pyg.graph_env import SingleGraphEnv, SingleStep, fully_connected
from ltos_pyg.training.run import load_run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')]

GPU = 'cuda'
JUNGLE = ['--num-agents', '6', '--num-foods', '4', '--size', '9', '--horizon', '12']
SCENARIOS = {
    'prisoner': [],
    'jungle': JUNGLE,
    'dilemmas': [],
    'traffic': ['--net', '2x2', '--horizon', '20'],
}
SMALL: dict[str, list[str]] = {
    'batch_size': ['8'],
    'learning_starts': ['40'],
    'train_freq': ['8'],
    'hidden_channels': ['32'],
    'encoder_channels': ['32'],
    'phi_starts': ['0'],
}
RUNS = [
    *(('prisoner', algo) for algo in ALGORITHMS),
    *(('jungle', algo) for algo in ALGORITHMS if algo not in ('joint_dqn', 'coco_q')),
    *(('dilemmas', algo) for algo in ('dgn', 'ltos', 'ltos_edge')),
    *(('traffic', algo) for algo in ('dgn', 'ltos', 'ltos_edge', 'neurcomm')),
]


class Walk(SingleGraphEnv):
    """Two agents walk on a line, in Python."""

    num_features, num_actions, max_nodes, horizon = 1, 2, 2, 10

    def start(self) -> Snapshot:
        self.place = torch.rand(2, 1, generator=self.generator)
        return self.look()

    def step(self, action: torch.Tensor) -> SingleStep:
        self.place = self.place + 0.1 * (2 * action.unsqueeze(1) - 1)
        return SingleStep(self.look(), reward=-self.place.abs().squeeze(1))

    def look(self) -> Snapshot:
        return Snapshot(x=self.place, edge_index=fully_connected(2))


def train(name: str, algo: str, folder: Path, *more: str) -> dict[str, Any]:
    options = ALGORITHMS[algo][1].__dataclass_fields__
    small = [part for key, words in SMALL.items() if key in options for part in (f'--{key.replace("_", "-")}', *words)]
    flags = ['--num-envs', '4', '--eval-episodes', '2', '--final-episodes', '4', '--no-media']
    command = ['train', name, '--algo', algo, '--device', GPU, *SCENARIOS[name], *small, *flags]
    assert cli.main([*command, '--out', str(folder), *more]) == 0
    return json.loads((folder / 'final.json').read_text())


@pytest.mark.parametrize(('name', 'algo'), RUNS, ids=[f'{name}-{algo}' for name, algo in RUNS])
def test_every_method_trains_and_resumes_there_and_plays_anywhere(name, algo, tmp_path, capsys):
    folder = tmp_path / 'run'
    train(name, algo, folder, '--total-steps', '400')
    train(name, algo, folder, '--total-steps', '600', '--resume')
    for device in (GPU, 'cpu'):
        capsys.readouterr()
        assert cli.main(['evaluate', str(folder), '--episodes', '4', '--device', device, '--json']) == 0
        assert json.loads(capsys.readouterr().out)
    there, _, config = load_run(folder)
    assert (there.env_steps >= 600, there.device.type, config.train.device) == (True, GPU, GPU)
    here, env, _ = load_run(folder, device='cpu')
    for learner in (there, here):  # without draws: each device draws other numbers
        learner.config = replace(learner.config, eval_temperature=0.0)
    graph = env.reset(7)
    (action, sharing), (expected, expected_sharing) = there.act(graph), here.act(graph)
    assert action.device.type == GPU
    assert torch.equal(action.cpu(), expected)
    if sharing is not None:
        torch.testing.assert_close(sharing.to('cpu'), expected_sharing, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('algo', ['dqn', 'ltos', 'neurcomm'])
def test_environments_in_python_stay_on_the_cpu(algo, tmp_path):
    assert ltos_pyg.train(Walk, algo, 200, out=tmp_path, device=GPU, num_envs=4, final_episodes=4).result['eval']


def test_a_run_goes_on_on_another_device(tmp_path):
    options = {'out': tmp_path, 'final_episodes': 4, 'eval_episodes': 2}
    ltos_pyg.train('prisoner', 'ltos', 2_000, device=GPU, **options)
    with pytest.warns(UserWarning, match='saved on another kind of device'):
        ltos_pyg.train('prisoner', 'ltos', 3_000, device='cpu', resume=True, **options)


@pytest.mark.parametrize('algo', ['dgn', 'ltos', 'ltos_edge', 'qmix', 'ip'])
def test_it_trains_in_bfloat16(algo, tmp_path):
    train('jungle', algo, tmp_path / 'run', '--total-steps', '200', '--precision', 'bf16')
