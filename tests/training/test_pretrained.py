"""The policies of the package: what is shipped, how large it is, and that it plays as its run did."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import ltos_pyg
from ltos_pyg.training.card import card_text
from ltos_pyg.training.pretrained import FOLDER, is_packaged, pretrained_names
from ltos_pyg.training.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
NAMES = pretrained_names()
SLOW = {'jungle-ltos', 'traffic-6x6-ltos'}  # final evaluations of a minute and more


def test_there_are_policies_and_a_wheel_has_them():
    assert {'prisoner-ltos', 'dilemmas-ltos'} <= set(NAMES)
    setup = (ROOT / 'setup.py').read_text(encoding='utf-8')
    (patterns,) = re.findall(r"package_data=\{\s*'ltos_pyg': \[(.*?)\]", setup)
    wheel = {path for pattern in re.findall("'(.*?)'", patterns) for path in FOLDER.parent.glob(pattern)}
    assert {path for path in FOLDER.rglob('*') if path.is_file()} - wheel == set()


def test_together_they_are_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob('*') if path.is_file()) < 5_000_000


@pytest.mark.parametrize('name', NAMES)
def test_each_has_a_card_a_licence_and_no_paths(name):
    card = (FOLDER / name / 'README.md').read_text(encoding='utf-8')
    assert 'license: "mit"' in card
    assert f"load_policy('{name}')" in card
    assert card == card_text(RunFolder(FOLDER / name), name, name, license='mit')  # as it would be written today
    for file in ('README.md', 'config.json', 'final.json'):
        assert not re.search(r'/(tmp|home|root|work)\b', (FOLDER / name / file).read_text(encoding='utf-8'))
    config = RunFolder(FOLDER / name).config()
    assert ('actions drawn at temperature' in card) == (config.algorithm.eval_temperature > 0)
    assert config.train.seed == 10  # of every shipped run, whatever it reached


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in NAMES]
)
def test_each_plays_as_its_run_did(name):
    run = ltos_pyg.Run(f'pretrained:{name}')
    final = run.result['eval']['policy']
    metric = run.scenario.primary_metric
    stats = run.evaluate(episodes=final[metric]['count'], seed=run.result['eval_seed'])
    # Where actions are drawn, a change in the rounding of the networks changes the draws.
    drawn = run.config.algorithm.eval_temperature > 0
    for known in (metric, 'kept'):
        error = final[known]['std'] / final[known]['count'] ** 0.5
        assert stats[known].mean == pytest.approx(final[known]['mean'], rel=1e-6, abs=2 * error if drawn else 0)
    assert stats[metric].std == pytest.approx(final[metric]['std'], rel=0.5 if drawn else 1e-6, abs=1e-12)


@pytest.mark.parametrize('name', NAMES)
def test_each_acts_on_graphs_of_its_environment(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # far from the checkout
    policy = ltos_pyg.load_policy(name)
    run = ltos_pyg.Run(name)
    env = run.scenario.make_env(run.config)(2)
    graph = env.reset(1)
    action, sharing = policy(graph)
    env.close()
    assert action.shape == (graph.num_nodes,)
    given = torch.zeros(graph.num_nodes).index_add(0, graph.edge_index[0], sharing.given)
    torch.testing.assert_close(given + sharing.kept, torch.ones(graph.num_nodes))


def test_a_path_from_the_checkout_is_known_as_the_packages_own(monkeypatch):
    monkeypatch.chdir(FOLDER.parents[1])
    assert is_packaged(Path('ltos_pyg/pretrained/jungle-ltos'))
    assert not is_packaged(Path('runs/jungle-ltos'))
