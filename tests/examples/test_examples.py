"""Every example runs as its docstring says, in a process of its own, in few steps."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import ltos_pyg

EXAMPLES = Path(__file__).parents[2] / 'examples'

# file, arguments, what its output must match
TABLE = [
    (
        '01_ltos_conv_in_your_gnn.py',
        ['--epochs', '200'],  # with 60, what the layer has learned by then depends on the machine's rounding
        r'test accuracy +LToSConv +GCNConv +GATConv +guessing\n'
        r'roles +0\.[89]\d\d .*\ncommunities .*\n'
        r'kept in the first layer of roles: none 0\.\d\d, wall 0\.\d\d, ground 0\.\d\d, roof 0\.\d\d',
    ),
    ('02_train_jungle.py', ['--steps', '1200'], r'env steps: reward [+-]0\.\d\d\d ± 0\.\d\d\d'),
    ('03_batch_many_episodes.py', ['--steps', '8', '--num-envs', '32'], r'sampled 64 graphs with \d+ to \d+ edges'),
    (
        '05_dilemmas_reference.py',
        ['--graphs', '2'],
        r'groups +2\.3333 +2\.3333 +1\.3333 .*\ndouble star +1\.7222 +1\.7222 +0\.9722 +0\.8889 .*\noffers, ring',
    ),
    (
        '06_trained_weights_in_your_gnn.py',
        ['--steps', '2000', '--epochs', '20'],
        r'LToS reaches -?\d\.\d\d .*\nits agents keep 0\.\d\d to 0\.\d\d .*\n'
        r"weights learned by the layers +squared error .* \d\.\d+\nweights the trained policy's +squared error",
    ),
    (
        '07_jungle_incentives.py',
        ['--episodes', '1'],
        r'k = 3 +3-\d+ +\d{4} +uniform +0\.\d\d% +9\d\.\d\d%\n(.*\n){2}k = 3 .* 0\.4 +[56]\d\.\d\d% +100\.00%\n'
        r'k = 3 .* 1 +100\.00% +100\.00%',
    ),
    (
        '09_learned_and_controls.py',
        [str(EXAMPLES.parent / 'docs' / 'results' / 'tables')],
        r"groups +learned, the paper's critic +1\.000 .*\n(.*\n){4}groups +sums of rewards, no weights +0\.562(.*\n)+"
        r'jungle, dense, unequal gains .*\noverview\.png',
    ),
]


SLOW = (
    '01_ltos_conv_in_your_gnn.py',  # its tutorial runs when the documentation is built
    '02_train_jungle.py',  # training is what the README's command does
    '06_trained_weights_in_your_gnn.py',
    '07_jungle_incentives.py',
)


def run_example(file, *args, cwd=None):
    command = [sys.executable, str(EXAMPLES / file), *args]
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=cwd, env=env)


@pytest.mark.parametrize(
    ('file', 'args', 'expected'),
    [pytest.param(*row, id=row[0], marks=[pytest.mark.slow] if row[0] in SLOW else []) for row in TABLE],
)
def test_example_runs_and_shows_what_it_promises(file, args, expected, tmp_path):
    done = run_example(file, *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(expected, done.stdout), done.stdout
    ours = [line for line in done.stderr.splitlines() if 'Warning' in line and 'torch.jit' not in line]
    assert not ours  # torch.jit's warnings are PyG's, on import


def refused_by_example_8(policy, capsys):
    """What it says of a policy that it cannot examine."""
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(EXAMPLES / '08_search_critics.py'))['main']([policy])
    assert end.value.code == 2
    return capsys.readouterr().err


def test_an_exported_policy_has_no_critics_to_hold_against_play(capsys):
    said = refused_by_example_8('pretrained:prisoner-ltos', capsys)
    assert 'must be a run folder with a checkpoint: an exported policy has no critics' in said


def test_the_critics_of_another_method_cannot_be_held_against_play(tmp_path, capsys):
    ltos_pyg.train('prisoner', 'dqn', 100, out=tmp_path, learning_starts=10, eval_episodes=1, final_episodes=1)
    said = refused_by_example_8(str(tmp_path), capsys)
    assert 'must be a run of ltos or ltos_edge with --objective search' in said


@pytest.mark.slow
def test_critics_of_trained_weights_have_the_signs_that_play_has(tmp_path):
    options = {'graph': 'groups', 'eval_episodes': 2, 'final_episodes': 2, 'threads': 1}
    ltos_pyg.train('dilemmas', 'ltos', 24_000, seed=100, out=tmp_path, **options)
    done = run_example('08_search_critics.py', str(tmp_path), '--boards', '64', '--steps', '1')
    assert done.returncode == 0, done.stderr
    row = re.compile(r'^ *(\S+) +[\d.]+% +([+-][\d.]+) ± [\d.]+ +([+-][\d.]+) +([+-][\d.]+)$', re.MULTILINE)
    rows = {name: tuple(map(float, values)) for name, *values in row.findall(done.stdout)}
    assert list(rows) == ['0.1', '0.2', '0.3', '0.4', '0.5', '0.7', 'policy']
    assert rows['policy'][0] > 0.09  # of 0.23, the best joint actions
    for played, *critics in rows.values():
        assert all(abs(value - played) < 0.02 for value in critics), done.stdout


def test_every_example_says_how_to_run_it():
    for path in EXAMPLES.glob('*.py'):
        assert f'python examples/{path.name}' in path.read_text(encoding='utf-8'), path.name
