from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ltos_pyg
from ltos_pyg.cli import main
from ltos_pyg.cli.options import env_flags
from ltos_pyg.cli.train import read_head
from ltos_pyg.experiments.tables import format_bench, format_stats, format_summary, table
from ltos_pyg.formatting import rounded
from ltos_pyg.training.checkpoint import CheckpointStore
from ltos_pyg.training.run_folder import RunFolder

QUICK = [
    *('--total-steps', '600', '--eval-every', '300', '--eval-episodes', '3', '--final-episodes', '4'),
    *('--hidden-channels', '8', '--encoder-channels', '8', '--num-envs', '8'),
]
MODES = {'policy', 'constant', 'uniform', 'keep', 'random'}
SMALL_JUNGLE = ['--num-agents', '5', '--num-foods', '4', '--size', '10', '--horizon', '12', '--learning-starts', '100']


@pytest.fixture(scope='module')
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with short runs: ltos and dqn on the prisoner, ltos on the jungle."""
    folder = tmp_path_factory.mktemp('runs')
    for name, args in {
        'prisoner': ['prisoner', *QUICK],
        'prisoner-dqn': ['prisoner', '--algo', 'dqn', '--no-media', *QUICK],
        'jungle': ['jungle', '--no-media', *QUICK, *SMALL_JUNGLE],
    }.items():
        assert main(['train', *args, '--out', str(folder / name)]) == 0
    return folder


def said(capsys: pytest.CaptureFixture[str], args: list[str]) -> tuple[int, str]:
    """Exit code of a command, and all that it printed with its spaces and frames taken out."""
    try:
        code = main(args)
    except SystemExit as error:  # how argparse and tyro leave
        code = int(error.code or 0)
    printed = capsys.readouterr()
    return code, ' '.join((printed.out + printed.err).replace('│', ' ').split())


# --- what can be asked for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('args', 'code', 'message'),
    [
        ([], 2, 'train an algorithm on a scenario, or on'),
        (['--help'], 0, 'play episodes without exploration with a trained run'),
        (['--version'], 0, f'ltos_pyg {ltos_pyg.__version__}'),
        (['fly'], 2, "invalid choice: 'fly' (choose from"),
        (['train'], 2, 'scenarios: jungle, dilemmas, prisoner, traffic algorithms: dqn, dgn, fixed_ltos, ltos'),
        (['train', '--help'], 0, 'all options, with their defaults: ltos train SCENARIO --algo ALGO --help'),
        (['train', 'moon'], 1, "unknown scenario 'moon'. Choose one of: jungle, dilemmas, prisoner"),
        (
            ['train', 'prisoner', '--algo', 'sarsa'],
            1,
            "unknown algorithm 'sarsa'. Choose one of: dqn, dgn, fixed_ltos, ltos",
        ),
        (
            ['train', 'jungle', '--preset', 'best'],
            1,
            "unknown preset 'best' of ltos on jungle. Choose one of:",
        ),
        (['train', 'prisoner', '--warp', '9'], 2, 'Unrecognized options: --warp'),
        (['train', 'prisoner', '--res'], 2, 'Unrecognized options: --res'),
        (['train', 'prisoner', '--gamma', '2'], 2, "'gamma' must lie in [0, 1] (got 2.0)"),
        (['train', 'prisoner', '--gamma', 'high'], 2, "could not convert string to float: 'high'"),
        (['train', 'prisoner', '--num-envs', '0'], 2, "'num_envs' must be at least 1 (got 0)"),
        (['train', 'prisoner', '--precision', 'fp8'], 2, "Expected one of ('float32', 'bf16')"),
        (['train', 'prisoner', '--algo', 'dqn', '--phi-lr', '1'], 2, 'Unrecognized options: --phi-lr'),
        (
            ['train', 'prisoner', '--length', '8'],
            2,
            "'length' must be odd, as the corridor needs a middle cell (got 8)",
        ),
        (['train', 'prisoner', '--device', 'gpu'], 1, "'device' must be 'cpu', 'cuda' or 'cuda:N' (got 'gpu')"),
        (['train', 'prisoner', '--algo', 'dqn', '--help'], 0, 'chance of a random action at the end (default: 0.05)'),
        (['train', 'prisoner', '--label', ''], 1, "'label' must not be empty (got '')"),
        (['train', 'prisoner', '--label', ' '], 1, "'label' must not be empty (got ' ')"),
        (['train'], 2, '--label: name of the run in tables and plots'),
        (['evaluate'], 2, 'RUN'),
        (['evaluate', 'nowhere'], 1, "'nowhere' is not a run folder: it has no config.json. Train first: ltos train"),
        (['evaluate', 'nowhere', '--episodes', '0'], 1, "'--episodes' must be at least 1 (got 0)"),
        (['evaluate', 'nowhere', '--warp'], 2, 'Unrecognized options: --warp'),
        (['watch', 'nowhere'], 1, "'nowhere' is not a run folder"),
        (['watch', 'pretrained:prisoner-ltos', '--out', ''], 1, "'--out' must name a file or a folder (got '')"),
        (['reproduce', 'fig3a', '--out='], 1, "'--out' must name a file or a folder (got '')"),
        (['plot', 'nowhere', '--out', ''], 1, "'--out' must name a file or a folder (got '')"),
        (['plot', 'nowhere'], 1, "'nowhere' is not a run folder"),
        (['table', 'nowhere'], 1, "'nowhere' is not a run folder"),
        (['bench', 'nothing'], 1, 'nothing'),
    ],
)
def test_a_command_that_makes_no_sense_says_what_would(capsys, tmp_path, monkeypatch, args, code, message):
    monkeypatch.chdir(tmp_path)
    got, printed = said(capsys, args)
    assert message in printed
    assert got == code
    assert 'Traceback' not in printed
    assert list(tmp_path.iterdir()) == []


def test_the_command_is_installed():
    command = Path(sys.executable).with_name('ltos')
    done = subprocess.run([command, '--version'], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f'ltos_pyg {ltos_pyg.__version__}\n')


@pytest.mark.parametrize('command', ['watch', 'evaluate', 'sweep', 'table', 'train prisoner'])
def test_help_names_one_default_for_each_option(command, capsys):
    with pytest.raises(SystemExit, match='0'):
        main([*command.split(), '--help'])
    options = ' '.join(capsys.readouterr().out.replace('│', ' ').split()).split(' --')
    assert len(options) > 5
    assert [option for option in options if option.lower().count('default: ') > 1] == []


def test_names_are_checked_and_help_is_printed_before_pytorch_is_loaded():
    code = (
        'import sys; from ltos_pyg.cli import main\n'
        "for args in (['--help'], ['train', '--help'], ['train', 'moon'], ['train', 'jungle', '--algo', 'sarsa']):\n"
        '    main(args)\n'
        "print([name for name in ('torch', 'numpy', 'tyro') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == '[]'


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['evaluate', 'nothere'], "'nothere' is not a run folder"),
        (['evaluate', 'not/here'], "'not/here' is not a run folder"),
        (['watch', 'pretrained:jungel'], "no pretrained policy is called 'jungel'"),
        (['card', 'nothere'], "'nothere' is not a run folder"),
        (['plot', 'nothere'], "'nothere' is not a run folder"),
        (['table', 'nothere'], "'nothere' is not a run folder"),
        (['sweep', 'jungel'], "unknown scenario 'jungel'"),
        (['sweep', 'jungle', '--algo', 'sarsa'], "unknown algorithm 'sarsa'"),
        (['reproduce', 'nosuch'], "unknown experiment 'nosuch'"),
    ],
)
def test_names_of_runs_and_experiments_are_checked_before_pytorch_is_loaded(tmp_path, args, message):
    code = f"import sys; from ltos_pyg.cli import main; main({args}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert message in done.stderr
    assert done.stdout.splitlines()[-1] == 'False'


# --- train -----------------------------------------------------------------------------------------------------------


def test_training_leaves_a_run_a_curve_and_a_picture(runs):
    left = {path.name for path in (runs / 'prisoner').iterdir()}
    assert left == {'config.json', 'metrics.jsonl', 'checkpoints', 'final.json', 'curve.png', 'episode.gif'}
    assert (runs / 'prisoner' / 'curve.png').read_bytes().startswith(b'\x89PNG')
    assert (runs / 'prisoner' / 'episode.gif').read_bytes().startswith(b'GIF')
    assert {path.name for path in (runs / 'jungle').iterdir()} == left - {'curve.png', 'episode.gif'}


def test_a_run_goes_to_a_folder_named_after_it(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = ['--total-steps', '80', '--learning-starts', '40']
    args = ['train', 'prisoner', '--algo', 'dqn', '--seed', '3', '--no-media', *QUICK, *short]
    assert main(args) == 0
    assert 'runs/prisoner-dqn-seed3: 80 env steps, 2 gradient steps' in capsys.readouterr().out
    assert (tmp_path / 'runs' / 'prisoner-dqn-seed3' / 'final.json').exists()


def test_flags_reach_the_environment_the_algorithm_and_the_loop(runs):
    config = json.loads((runs / 'jungle' / 'config.json').read_text())
    assert (config['env']['size'], config['algorithm']['hidden_channels'], config['train']['num_envs']) == (10, 8, 8)
    assert config['algorithm']['encoder_channels'] == [8]
    assert config['train']['media'] is False


def test_a_resumed_run_knows_its_options(capsys, runs, tmp_path):
    folder = tmp_path / 'again'
    shutil.copytree(runs / 'prisoner-dqn', folder)
    (folder / 'final.json').unlink()
    assert main(['train', 'prisoner', '--out', str(folder), '--resume']) == 0
    assert 'ltos: prisoner: loading PyTorch' in capsys.readouterr().err  # not the default algorithm
    assert json.loads((folder / 'config.json').read_text())['algo'] == 'dqn'
    assert json.loads((folder / 'final.json').read_text())['env_steps'] == 600
    code, printed = said(capsys, ['train', 'prisoner', '--out', str(folder), '--resume', '--gamma', '0.5'])
    assert code == 1
    assert 'gamma' in printed
    code, printed = said(capsys, ['train', 'jungle', '--out', str(folder), '--resume'])
    assert code == 1
    assert "holds a run on prisoner (got 'jungle')" in printed


def test_a_label_names_a_run_and_decides_nothing(capsys, runs, tmp_path):
    folder, label = tmp_path / 'named', 'LToS: mine'
    shutil.copytree(runs / 'prisoner-dqn', folder)
    (folder / 'final.json').unlink()
    again = ['train', 'prisoner', '--out', str(folder), '--resume']
    assert main([*again, '--label', label]) == 0
    config = json.loads((folder / 'config.json').read_text())
    assert config.pop('label') == label
    assert RunFolder(folder).config() == RunFolder(runs / 'prisoner-dqn').config()
    (folder / 'final.json').unlink()
    assert main(again) == 0  # the label need not be given again
    assert json.loads((folder / 'config.json').read_text())['label'] == label
    capsys.readouterr()
    assert main(['table', str(folder), str(runs / 'prisoner-dqn')]) == 0
    assert [line.split(' | ')[0] for line in capsys.readouterr().out.splitlines()[2:]] == [
        f'| prisoner: {label}', '| prisoner: dqn'
    ]  # fmt: skip


# --- evaluate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'modes', 'metrics'),
    [
        ('prisoner', MODES, {'return', 'length', 'kept', 'races'}),
        ('prisoner-dqn', {'policy'}, {'return', 'length', 'races'}),
        ('jungle', MODES, {'return', 'reward', 'kept', 'uneven', 'attacks', 'food', 'blanks'}),
    ],
)
def test_an_evaluation_for_machines_has_mean_deviation_and_count(capsys, runs, name, modes, metrics):
    assert main(['evaluate', str(runs / name), '--episodes', '7', '--json']) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.keys() == modes
    for stats in printed.values():
        assert metrics <= stats.keys()
        assert all(stat.keys() == {'mean', 'std', 'count'} and stat['count'] == 7 for stat in stats.values())
    switched = {f'switched_{mode}' for mode in modes - {'policy'}}
    assert {name for name in printed['policy'] if name.startswith('switched')} == switched


def test_an_evaluation_for_people_is_a_table_of_the_same_numbers(capsys, runs):
    folder = str(runs / 'jungle')
    assert main(['evaluate', folder, '--episodes', '7', '--seed', '5', '--json']) == 0
    stat = json.loads(capsys.readouterr().out)['policy']['reward']
    assert main(['evaluate', folder, '--episodes', '7', '--seed', '5']) == 0
    lines = {line.split('  ')[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    mean, half = rounded(stat['mean'], 1.96 * stat['std'] / 7**0.5)
    assert lines['mean ± 95 %'][4:] == ['policy', 'constant', 'uniform', 'keep', 'random']
    assert lines['reward'][1:4] == [mean, '±', half]
    assert lines['episodes'][1:] == ['7'] * 5


def test_an_evaluation_may_draw_actions_from_a_softmax(capsys, runs):
    means = {}
    for temperature in ('0', '0.02', '100'):
        args = ['evaluate', str(runs / 'jungle'), '--episodes', '7', '--temperature', temperature, '--json']
        assert main(args) == 0
        means[temperature] = json.loads(capsys.readouterr().out)['policy']['reward']['mean']
    assert main(['evaluate', str(runs / 'jungle'), '--episodes', '7', '--json']) == 0
    assert json.loads(capsys.readouterr().out)['policy']['reward']['mean'] == means['0.02']  # the jungle's
    assert len(set(means.values())) == 3


def test_an_option_of_the_environment_that_is_off_is_written_false():
    for flag in ('no-symmetric', 'no_symmetric', '--no-symmetric'):
        with pytest.raises(ValueError, match=r'as NAME=VALUE .*, e\.g\. --env symmetric=False$'):
            env_flags(flag)
    assert env_flags('symmetric=False') == ('symmetric', ['--no-symmetric'])


def test_blanks_part_values_but_not_the_name_of_a_file(tmp_path):
    file = tmp_path / 'my flow.json'
    assert env_flags(f'flow={file}')[1] == ['--flow', str(tmp_path / 'my'), 'flow.json']
    file.touch()
    assert env_flags(f'flow={file}')[1] == ['--flow', str(file)]


def test_an_evaluation_leaves_the_run_alone(runs):
    before = {path: path.stat().st_mtime_ns for path in (runs / 'prisoner').rglob('*')}
    assert main(['evaluate', str(runs / 'prisoner'), '--episodes', '2']) == 0
    assert {path: path.stat().st_mtime_ns for path in (runs / 'prisoner').rglob('*')} == before


# --- plot and watch --------------------------------------------------------------------------------------------------


def test_runs_are_plotted_together(capsys, runs, tmp_path):
    out = tmp_path / 'both.png'
    assert main(['plot', str(runs / 'prisoner'), str(runs / 'prisoner-dqn'), '--out', str(out), '--json']) == 0
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)) == 2
    assert printed.err == f'wrote {out}\n'
    assert out.read_bytes().startswith(b'\x89PNG')
    assert main(['plot', str(runs / 'jungle'), '--metric', 'eval/attacks', '--out', str(out)]) == 0
    assert 'ltos' in capsys.readouterr().out


def test_how_runs_ended_is_a_markdown_table(capsys, runs):
    assert main(['table', str(runs / 'prisoner'), str(runs / 'prisoner-dqn')]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == '| mean, IQM [95 % interval] (each seed) | seeds | episodes | return |'
    swaps = [f'| prisoner: ltos, played with {what}' for what in ('constant weights', 'uniform weights', 'all kept')]
    assert [line.split(' | ')[0] for line in lines[2:]] == [
        '| prisoner: ltos', *swaps, '| prisoner: ltos, played with random weights', '| prisoner: dqn'
    ]  # fmt: skip
    shown = json.loads((runs / 'prisoner-dqn' / 'final.json').read_text())['eval']['policy']['reward']['mean']
    assert main(['table', str(runs / 'prisoner-dqn'), '--metric', 'length', 'reward']) == 0
    assert f'{shown:.3f}' in capsys.readouterr().out
    assert main(['table', str(runs / 'prisoner'), '--measures', '--format', 'csv']) == 0
    measured = [line.split(',')[1] for line in capsys.readouterr().out.splitlines() if line.startswith('prisoner')]
    switched = [f'switched_{mode}' for mode in ('constant', 'uniform', 'keep', 'random')]
    assert measured == ['return', 'kept', 'kept_std_nodes', 'kept_std_states', 'uneven', *switched]


def test_a_metric_that_no_run_has_is_named(capsys, runs, tmp_path):
    code, printed = said(
        capsys, ['plot', str(runs / 'prisoner'), '--metric', 'eval/luck', '--out', str(tmp_path / 'x')]
    )
    assert code == 1
    assert 'eval/luck' in printed


@pytest.mark.parametrize('name', ['prisoner', 'prisoner-dqn', 'jungle'])
def test_an_episode_is_watched_as_a_gif_as_pictures_and_in_the_terminal(capsys, runs, tmp_path, name):
    folder, gif, frames = str(runs / name), tmp_path / 'episode.gif', tmp_path / 'frames'
    assert main(['watch', folder, '--out', str(gif), '--steps', '3']) == 0
    assert gif.read_bytes().startswith(b'GIF')
    assert main(['watch', folder, '--out', str(frames), '--steps', '2']) == 0
    assert 1 <= len(list(frames.glob('*.png'))) <= 2
    assert capsys.readouterr().out == f'wrote {gif}\nwrote {frames}\n'
    assert main(['watch', folder, '--terminal', '--steps', '2']) == 0
    shown = capsys.readouterr().out
    assert 'step 0 return 0.00 an agent' in ' '.join(shown.split())
    assert ('♣' in shown) == (name == 'jungle')
    assert ('kept' in shown) == (name != 'prisoner-dqn')


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['watch', '--terminal', '--out', 'x.gif'], "'--out' does nothing with --terminal (got x.gif). Leave it out."),
        (['watch', '--terminal', '--figure', 'selfishness'], "'--figure' does nothing with --terminal"),
        (['watch', '--figure', 'selfishness', '--steps', '3'], "'--steps' does nothing with --figure (got 3)"),
        (['watch', '--figure', 'selfishness', '--fps', '8'], "'--fps' does nothing with --figure (got 8)"),
        (['evaluate', '--over', 'length=9', '--json', '--format', 'csv'], "'--format csv' does nothing with --json"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(capsys, runs, args, message):
    code, printed = said(capsys, [args[0], str(runs / 'prisoner'), *args[1:]])
    assert (code, message in printed) == (1, True), printed


def test_a_run_of_a_machine_with_cuda_is_evaluated_and_watched_on_one_without(capsys, runs, tmp_path):
    folder = tmp_path / 'elsewhere'
    shutil.copytree(runs / 'prisoner', folder)
    config = json.loads((folder / 'config.json').read_text())
    config['train']['device'] = f'cuda:{torch.cuda.device_count()}'
    (folder / 'config.json').write_text(json.dumps(config))
    for command in ('evaluate', 'watch'):
        code, printed = said(capsys, [command, str(folder)])
        assert code == 1
        assert 'CUDA devices here. Use --device cpu.' in printed
        assert main([command, str(folder), '--device', 'cpu']) == 0


def test_a_run_of_a_version_with_other_networks_is_refused(capsys, runs, tmp_path):
    folder = tmp_path / 'older'
    shutil.copytree(runs / 'prisoner', folder)
    (checkpoint,) = (folder / 'checkpoints').iterdir()
    store, step = CheckpointStore(folder / 'checkpoints'), int(checkpoint.stem.split('_')[1])
    _, state = store.load_latest()
    network = state['algorithm']['modules']['network']
    name = next(iter(network))
    network['head.pair.weight'] = network.pop(name)
    store.save(step, state)
    code, printed = said(capsys, ['evaluate', str(folder), '--episodes', '1'])
    assert code == 1
    assert 'was trained by a version with other networks than this one (Error(s) in loading' in printed
    assert "see 'git_commit' in its config.json, or train again." in printed


# --- tables ----------------------------------------------------------------------------------------------------------


def test_a_table_pads_its_columns():
    lines = table(['name', 'n'], [['a', '1'], ['long name', '23']]).splitlines()
    assert lines == ['name        n', '---------  --', 'a           1', 'long name  23']


def test_results_are_printed_with_their_interval_beside_those_under_other_weights():
    policy = {
        'return': {'mean': 0.5, 'std': 0.2, 'count': 16},
        'kept_std_states': {'mean': 0.1, 'std': 0.0, 'count': 16},
    }
    printed = format_stats({'policy': policy, 'uniform': {'return': {'mean': -2.0, 'std': 0.0, 'count': 1}}})
    assert printed.splitlines() == [
        'mean ± 95 %             policy  uniform',
        '---------------  -------------  -------',
        'return           0.500 ± 0.098   -2.000',
        'kept_std_states          0.100         ',
        'episodes                    16        1',
    ]


def test_numbers_of_all_sizes_are_readable():
    rows = [{'name': 'a', 'value': 12_345_678.9, 'unit': 'steps/s'}, {'name': 'b', 'value': 0.01234, 'note': 'slow'}]
    first, second = (line.split() for line in format_bench(rows).splitlines()[2:])
    assert first == ['a', '12,345,679', 'steps/s']
    assert second == ['b', '0.01234', 'slow']
    assert format_summary([{'algo': 'ltos', 'mean': 0.5, 'runs': 3}]).splitlines()[2].split() == ['ltos', '0.5', '3']


def test_a_seed_may_be_a_power_of_ten():
    assert read_head(['jungle', '--seed', '1e1']).seed == read_head(['jungle', '--seed=10']).seed == 10
