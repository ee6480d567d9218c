"""Cards and exported policies: the same actions as the run, what a hub reads, the policies of the package."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import ltos_pyg
from ltos_pyg import registry
from ltos_pyg.algos import ALGORITHMS
from ltos_pyg.cli import main
from ltos_pyg.cli.train import parse_options
from ltos_pyg.envs import PrisonerEnv
from ltos_pyg.training import pretrained
from ltos_pyg.training.card import command_of, export_policy, write_card
from ltos_pyg.training.checkpoint import CheckpointStore
from ltos_pyg.training.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
QUICK: dict[str, Any] = {
    'num_envs': 4,
    'learning_starts': 40,
    'eval_episodes': 2,
    'final_episodes': 6,
    'hidden_channels': 8,
    'encoder_channels': (8,),
    'heads': 2,
}


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> ltos_pyg.Run:
    """A short run of LToS on the prisoner, with a curve and an evaluation in other settings."""
    out = tmp_path_factory.mktemp('card') / 'run'
    run = ltos_pyg.train('prisoner', 'ltos', 160, out=out, phi_starts=0.0, horizon=20, **QUICK)
    run.plot()
    assert main(['evaluate', str(out), '--over', 'horizon=10,20', '--episodes', '2']) == 0
    return run


@pytest.fixture
def exported(run: ltos_pyg.Run, tmp_path: Path) -> Path:
    """The run as a folder for a hub."""
    out = tmp_path / 'prisoner-mine'
    assert main(['card', str(run.folder), '--out', str(out), '--license', 'cc-by-4.0']) == 0
    return out


def numbers(folder: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """The greedy evaluation of a policy under all sharing modes."""
    capsys.readouterr()
    assert main(['evaluate', str(folder), '--episodes', '5', '--json']) == 0
    return json.loads(capsys.readouterr().out)


# --- exported policies -----------------------------------------------------------------------------------------------


def test_an_exported_policy_plays_as_the_run_does(run, exported, capsys):
    assert {path.name for path in exported.iterdir()} == {
        'README.md', 'config.json', 'final.json', 'policy.pt', 'curve.png', 'zero_shot'
    }  # fmt: skip
    assert numbers(exported, capsys) == numbers(run.folder, capsys)
    graph = PrisonerEnv(num_envs=5).reset(3)
    (action, sharing), (same, shares) = (ltos_pyg.load_policy(folder)(graph) for folder in (run.folder, exported))
    assert torch.equal(action, same)
    assert torch.equal(sharing.kept, shares.kept)
    assert ltos_pyg.Run(exported).result == run.result
    assert main(['watch', str(exported), '--terminal', '--steps', '1']) == 0


def test_the_curve_of_a_run_without_pictures_is_drawn(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / 'run')
    (tmp_path / 'run/curve.png').unlink()
    out = export_policy(tmp_path / 'run', tmp_path / 'drawn')
    assert (out / 'curve.png').stat().st_size > 1000
    assert '![the learning curve](curve.png)' in (out / 'README.md').read_text()
    assert not (tmp_path / 'run/curve.png').exists()
    (tmp_path / 'run/metrics.jsonl').unlink()
    out = export_policy(tmp_path / 'run', tmp_path / 'plain')
    assert not (out / 'curve.png').exists()
    assert 'curve.png' not in (out / 'README.md').read_text()


def test_a_run_on_a_gpu_is_exported_anywhere(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / 'run')
    config = json.loads((tmp_path / 'run' / 'config.json').read_text())
    config['train']['device'] = 'cuda:99'  # which no machine here has
    (tmp_path / 'run' / 'config.json').write_text(json.dumps(config))
    assert main(['card', str(tmp_path / 'run'), '--out', str(tmp_path / 'out')]) == 0
    graph = PrisonerEnv(num_envs=5).reset(3)
    assert torch.equal(ltos_pyg.load_policy(tmp_path / 'out', device='cpu')(graph)[0], run.policy(graph)[0])


def test_it_holds_what_acts_and_nothing_else(run, exported):
    state = torch.load(exported / 'policy.pt', weights_only=True)['state']
    assert state.keys() == {'algorithm'}
    assert state['algorithm'].keys() == {'env_steps', 'updates', 'modules'}
    assert state['algorithm']['modules'].keys() == {'averaged', 'target_phi', 'constant'}
    _, whole = CheckpointStore(run.folder / 'checkpoints').load_latest()
    averaged = whole['algorithm']['modules']['averaged']
    algorithm = ltos_pyg.load_policy(exported).algorithm
    for module in (algorithm.averaged, algorithm.network, algorithm.target):  # what is left out is not random
        assert all(torch.equal(value, averaged[name]) for name, value in module.state_dict().items())
    assert algorithm.replay.capacity == 3


def test_an_export_says_nothing_of_the_machine(run, exported):
    for path in exported.rglob('*'):
        if path.is_file():
            assert str(run.folder.parent).encode() not in path.read_bytes(), path


def test_an_export_is_replaced_and_other_folders_are_left_alone(run, exported, tmp_path, capsys):
    (exported / 'episode.gif').write_bytes(b'GIF of an earlier run')
    assert main(['card', str(run.folder), '--out', str(exported)]) == 0
    assert not (exported / 'episode.gif').exists()
    assert 'None is stated for the weights' in (exported / 'README.md').read_text()
    (tmp_path / 'killed').mkdir()
    (tmp_path / 'killed' / '.policy.pt.12ab.tmp').touch()  # of an export that was killed
    assert main(['card', str(run.folder), '--out', str(tmp_path / 'killed')]) == 0
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.tex').touch()
    for out in (tmp_path / 'mine', run.folder):
        before = sorted(path.name for path in out.iterdir())
        assert main(['card', str(run.folder), '--out', str(out)]) == 1
        assert 'must be a new folder, or one that ltos card made (got another)' in capsys.readouterr().err
        assert sorted(path.name for path in out.iterdir()) == before


def test_what_cannot_be_exported_or_loaded_is_refused(run, exported, tmp_path, capsys):
    shutil.copytree(run.folder, tmp_path / 'unfinished')
    (tmp_path / 'unfinished' / 'final.json').unlink()
    assert main(['card', str(tmp_path / 'unfinished')]) == 1
    assert 'its training has not ended. Continue it with ltos train --resume' in capsys.readouterr().err
    assert main(['train', 'prisoner', '--out', str(exported), '--resume']) == 1
    assert 'holds an exported policy, which cannot be trained on' in capsys.readouterr().err
    with pytest.raises(ValueError, match=r'has no best model'):
        ltos_pyg.load_policy(exported, best=True)
    whole = (exported / 'policy.pt').read_bytes()
    (exported / 'policy.pt').write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ValueError, match=r"policy.pt' is damaged: no whole archive in .* Restore it from where it came"
    ):
        ltos_pyg.load_policy(exported)
    (exported / 'policy.pt').write_bytes(whole)
    config = json.loads((exported / 'config.json').read_text())
    config['algorithm']['hidden_channels'] = 16
    (exported / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"'algorithm.hidden_channels' expected 16, got 8"):
        ltos_pyg.load_policy(exported)


@pytest.mark.parametrize('name', ALGORITHMS)
def test_the_state_to_act_is_enough_for_every_algorithm(name):
    env = PrisonerEnv(num_envs=6)
    entry = registry.algorithm(name)
    options = {k: v for k, v in QUICK.items() if k in {f.name for f in dataclasses.fields(entry.config)}}
    small = {'replay_size': 60} if 'replay_size' in {f.name for f in dataclasses.fields(entry.config)} else {}
    one, other = (entry.make(env.spec, entry.config(**options, **small), seed, 'cpu') for seed in (0, 1))
    graph = env.reset(0)
    for _ in range(3):
        decision = one.act(graph, explore=True)
        step = env.step(decision.action)
        one.observe(graph, decision, step)
        graph = step.graph
    if name == 'coco_q':
        for _ in range(one.due_updates):
            one.update()
    for number, module in enumerate(getattr(one, 'modules', dict)().values()):  # each network has its own weights
        for parameter in module.parameters():
            with torch.no_grad():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    state = one.policy_state()
    assert not {'replay', 'optimizers', 'rollout', 'rng'} & state.keys()
    other.load_policy(state)
    for algorithm in (one, other):
        algorithm.reset_eval_state()
    first, second = one.act(graph), other.act(graph)
    assert torch.equal(first.action, second.action)
    if first.sharing is not None and getattr(one.config, 'kept', None) != 'random':
        assert torch.equal(first.sharing.kept, second.sharing.kept)


# --- cards -----------------------------------------------------------------------------------------------------------


def test_a_hub_reads_the_front_matter(exported):
    yaml = pytest.importorskip('yaml')
    _, front, body = (exported / 'README.md').read_text().split('---\n', 2)
    read = yaml.safe_load(front)
    assert (read['library_name'], read['license']) == ('ltos_pyg', 'cc-by-4.0')
    assert read['pipeline_tag'] == 'reinforcement-learning'
    assert {'prisoner', 'ltos', 'multi-agent-reinforcement-learning'} <= set(read['tags'])
    (model,) = read['model-index']
    assert model['name'] == 'prisoner-mine'
    (metric,) = model['results'][0]['metrics']
    assert metric['name'] == 'return'
    assert f'| `return` | {metric["value"]} |' in body


def test_a_card_has_the_facts_of_the_run(run, exported):
    text = (exported / 'README.md').read_text()
    stat = run.result['eval']['policy']['return']
    half = 1.96 * stat['std'] / 6**0.5
    assert f'| `return` | {stat["mean"]:.3f} ± {half:.3f} | {stat["std"]:.3g} | 6 |' in text
    assert "policy = ltos_pyg.load_policy('prisoner-mine')" in text
    assert '![the learning curve](curve.png)' in text
    assert '![one greedy episode]' not in text
    assert '| horizon=20 (as trained) |' in text
    assert '| environment steps | 160 |' in text
    assert f'| commit | {RunFolder(run.folder).read()["git_commit"]} |' in text
    assert '`length=9`, `horizon=20`, `cost=0.01`' in text
    assert 'This is one training run.' in text
    assert 'It was evaluated in the environment of its training only.' not in text
    assert main(['card', str(run.folder)]) == 0
    assert (run.folder / 'card.md').read_text().splitlines()[-1] == 'None is stated for the weights: ask the author.'


def test_a_card_tells_a_temperature_and_several_processes(run, tmp_path):
    folder = tmp_path / 'run'
    shutil.copytree(run.folder, folder)
    assert main(['evaluate', str(folder), '--over', 'horizon=10,20', '--episodes', '2', '--temperature', '5']) == 0
    plain = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps(plain | {'ranks': 2}))
    text = write_card(folder).read_text()
    assert text.count('\n2 episodes each:\n') == 1
    assert text.count('\n2 episodes each, with temperature=5.0:\n') == 1
    assert '| processes | 2: each has the batch and the replay that the options say |' in text
    assert '\ntorchrun --nproc-per-node 2 -m ltos_pyg train prisoner --algo ltos --seed 0 ' in text


@pytest.mark.parametrize(
    ('scenario', 'algo', 'preset', 'flags'),
    [
        ('jungle', 'ltos', 'default', '--graph radius --attack-gain-high 6.0 --no-symmetric --encoder-channels 16 8'),
        ('jungle', 'dgn', 'paper', '--huber None --no-double-q --num-envs 8 --seed 3'),
        ('traffic', 'fixed_ltos', 'default', '--net 3x3 4x4 --phases None --kept uniform --critic edge'),
        ('prisoner', 'lio', 'default', ''),
    ],
)
def test_the_command_of_a_card_trains_the_same_run(scenario, algo, preset, flags):
    base = registry.scenario(scenario).config(algo, preset)
    _, config = parse_options(base, [scenario, *shlex.split(flags)])
    command = command_of(config)
    assert command.startswith(f'ltos train {scenario} --algo {algo} --seed ')
    _, again = parse_options(base, shlex.split(command)[2:])
    assert again == config


# --- policies of the package -----------------------------------------------------------------------------------------


def test_a_folder_comes_before_a_name_and_an_unknown_name_lists_those_there_are(
    exported, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(pretrained, 'FOLDER', tmp_path)
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    assert pretrained.find_run('prisoner-mine') == exported
    assert ltos_pyg.load_policy('prisoner-mine').spec.num_features == 20
    Path('prisoner-mine').mkdir()
    with pytest.raises(ValueError, match=r"'prisoner-mine' is not a run folder: it has no config.json"):
        ltos_pyg.load_policy('prisoner-mine')
    assert pretrained.find_run('pretrained:prisoner-mine') == exported
    with pytest.raises(
        ValueError, match=r"'prisoner-min' is not a run folder.* Pretrained policies: prisoner-mine. Did"
    ):
        ltos_pyg.load_policy('prisoner-min')
    assert main(['watch', 'pretrained:moon']) == 1
    assert "no pretrained policy is called 'moon'. Pretrained policies: prisoner-mine" in capsys.readouterr().err


def test_nothing_is_written_into_the_package(exported, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrained, 'FOLDER', tmp_path)
    here = tmp_path / 'here'
    here.mkdir()
    monkeypatch.chdir(here)
    before = {path: path.read_bytes() for path in exported.rglob('*') if path.is_file()}
    assert main(['watch', 'pretrained:prisoner-mine', '--steps', '1']) == 0
    assert main(['evaluate', 'pretrained:prisoner-mine', '--over', 'horizon=5', '--episodes', '1']) == 0
    assert capsys.readouterr().out.startswith('wrote prisoner-mine-episode.gif\nsetting')
    assert main(['card', 'pretrained:prisoner-mine', '--out', 'copy']) == 0
    assert main(['card', 'pretrained:prisoner-mine']) == 1
    assert 'give --out' in capsys.readouterr().err
    assert {path: path.read_bytes() for path in exported.rglob('*') if path.is_file()} == before
    assert sorted(path.name for path in here.iterdir()) == ['copy', 'prisoner-mine-episode.gif']
