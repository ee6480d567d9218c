"""``ltos sweep``: spaces, studies that resume, pruning, and the configuration that it writes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
import tomllib
from types import SimpleNamespace

import pytest

from ltos_pyg.cli import main
from ltos_pyg.experiments import sweep_worker
from ltos_pyg.experiments.runner import config_of
from ltos_pyg.experiments.search_space import FIRST_SEED, Dimension, Sweep, check, parse_dimension, read_sweep
from ltos_pyg.experiments.sweep import _best, _point, _queue_missing, failures_of, run_sweep, write_best, write_table
from ltos_pyg.experiments.sweep_worker import open_study
from ltos_pyg.training.run_folder import RunFolder

pytest.importorskip('optuna')
STEPS = (
    ('eval_episodes', 2),
    ('eval_every', 150),
    ('final_episodes', 4),
    ('learning_starts', 100),
    ('total_steps', 300),
)
LR = Dimension('lr', low=1e-4, high=1e-2, log=True)


def sweep(**changes) -> Sweep:
    return Sweep(**{
        'scenario': 'prisoner', 'algo': 'dqn', 'preset': 'default', 'options': STEPS, 'space': (LR,), 'trials': 3
    } | changes)  # fmt: skip


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('lr=1e-4..1e-2:log', LR),
        ('--hidden-channels=32,64', Dimension('hidden_channels', (32, 64))),
        ('n_step=1..5', Dimension('n_step', low=1, high=5)),
        ('kept=uniform,0.4', Dimension('kept', ('uniform', 0.4))),
        ('augment=true,false', Dimension('augment', (True, False))),
        ('net=../x', Dimension('net', ('../x',))),  # a path, not a range
        ('net=../a:b.json,1..2', Dimension('net', ('../a:b.json', '1..2'))),
        ('encoder_channels=[64,32],[512]', Dimension('encoder_channels', ((64, 32), (512,)))),
        ('flow=[a.json, b.json],[]', Dimension('flow', (('a.json', 'b.json'), ()))),
    ],
)
def test_dimensions(text, expected):
    assert parse_dimension(text) == expected


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('lr', r"takes NAME=A,B,C for choices or NAME=LOW..HIGH .*\(got 'lr'\)"),
        ('lr=2..1', r"'lr': the range must rise \(got 2..1\)"),
        ('lr=0..1:log', r"'lr': a logarithmic range must be above 0"),
        ('lr=0..1:exp', r"expected ':log' or nothing after the range \(got ':exp'\)"),
    ],
)
def test_wrong_dimensions_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_dimension(text)


def test_wrong_sweeps_are_refused(tmp_path):
    with pytest.raises(ValueError, match='needs at least one option to vary'):
        sweep(space=())
    with pytest.raises(ValueError, match=r'the grid sampler needs choices.*a range for lr'):
        sweep(sampler='grid')
    with pytest.raises(ValueError, match=r"unknown option 'gama'.*Did you mean 'gamma'"):
        check(sweep(space=(Dimension('gama', (0.5, 0.9)),)))
    with pytest.raises(ValueError, match=r"'gamma' must lie in \[0, 1\]"):
        run_sweep(sweep(space=(Dimension('gamma', low=0.5, high=1.5),)), tmp_path / 'none', quiet=True)
    with pytest.raises(ValueError, match=r"'batch_size' must be a whole number \(got 47"):  # its ends are whole
        check(sweep(space=(parse_dimension('batch_size=16..1e2'),)))
    with pytest.raises(ValueError, match=r"'lr' must be a number .*'a\.\.b'"):
        check(sweep(space=(parse_dimension('lr=a..b'),)))
    for options, space in (((('seed', 3),), (LR,)), ((), (Dimension('seed', (3, 4)),))):
        with pytest.raises(ValueError, match=r"'seed' cannot be set or varied .* seeds from 100 on.*--seeds"):
            sweep(options=options, space=space)
    with pytest.raises(ValueError, match=r"'media' cannot be set in a sweep"):
        sweep(options=(('media', True),))
    for options, space in (((('lr', 0.1),), (LR,)), ((), (LR, LR)), ((('gamma', 0.1), ('gamma', 0.2)), (LR,))):
        with pytest.raises(ValueError, match=r"'(lr|gamma)' is given twice"):
            sweep(options=options, space=space)
    assert not (tmp_path / 'none').exists()


@pytest.mark.parametrize('name', ['a?b/one', 'a%20b é', 'a#b'])
def test_a_study_lies_in_its_folder_whatever_the_name(tmp_path, name):
    out = tmp_path / name
    out.mkdir(parents=True)
    open_study(sweep(), out)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*') if path.is_file()] == [f'{name}/study.db']


@pytest.mark.slow
def test_a_sweep_runs_resumes_and_trains_with_its_best(tmp_path, capsys):
    out = tmp_path / 'sweep'
    grid = sweep(space=(Dimension('hidden_channels', (8, 16)), Dimension('lr', (1e-3, 1e-2))), sampler='grid')
    best = run_sweep(grid, out, jobs=2, quiet=True)
    rows = list(csv.DictReader((out / 'trials.csv').read_text().splitlines()))
    assert {(row['hidden_channels'], row['lr']) for row in rows} == {
        (width, lr) for width in ('8', '16') for lr in ('0.001', '0.01')
    }  # fmt: skip
    finals = {int(p.name[5:9]): RunFolder(p).final()['eval']['policy']['return']['mean'] for p in out.glob('trial*-*')}
    assert {int(row['trial']): float(row['return']) for row in rows} == finals
    assert best['value'] == max(finals.values())

    times = {path: path.stat().st_mtime_ns for path in out.glob('*/final.json')}
    assert run_sweep(grid, out, quiet=True) == best  # nothing is left to do
    assert {path: path.stat().st_mtime_ns for path in out.glob('*/final.json')} == times
    assert read_sweep(out) == grid
    with pytest.raises(ValueError, match=r"holds another sweep: algo was 'dqn'"):
        run_sweep(sweep(algo='dgn', space=grid.space, sampler='grid'), out, quiet=True)

    run = tmp_path / 'run'
    assert main(['train', '--config', str(out / 'best.toml'), '--seed', '3', '--no-media', '--out', str(run)]) == 0
    trained = RunFolder(run).config()
    assert (trained.scenario, trained.algo, trained.train.seed) == ('prisoner', 'dqn', 3)
    assert {name: getattr(trained.algorithm, name) for name in best['options']} == best['options']
    assert trained.algorithm.total_steps == 300


def test_the_command_line_wins_over_a_configuration(tmp_path):
    path = tmp_path / 'c.toml'
    path.write_text('scenario = "prisoner"\nalgo = "dqn"\n[options]\ntotal_steps = 5000\ngamma = 0.5\n')
    short = ['--total-steps', '200', '--learning-starts', '50', '--final-episodes', '2', '--no-media']
    assert main(['train', '--config', str(path), *short, '--out', str(tmp_path / 'run')]) == 0
    config = RunFolder(tmp_path / 'run').config()
    assert (config.algorithm.total_steps, config.algorithm.gamma) == (200, 0.5)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('scenario = "prisoner"\ncolour = 1', r"expected the keys scenario, algo, preset, options.*\['colour'\]"),
        ('scenario = "prisoner"\n[options]\ngama = 1', "unknown option 'gama'"),
        ('scenario = ', 'is not valid TOML'),
        ('scenario = "prisoner"\nalgo = 5', r"'algo' must be a name \(got 5\)"),
        ('scenario = "prisoner"\nimports = [1]', r"'imports' must be names \(got 1\)"),
    ],
)
def test_a_wrong_configuration_is_refused(tmp_path, capsys, text, message):
    path = tmp_path / 'c.toml'
    path.write_text(text)
    assert main(['train', '--config', str(path), '--out', str(tmp_path / 'run')]) == 1
    import re

    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ('algo', 'metric', 'known'),
    [
        ('dqn', 'rewardd', 'return, reward, length, races'),
        ('dqn', 'kept', 'return, reward, length, races'),
        ('dqn', 'episodes', 'return, reward, length, races'),
        ('ltos', 'switched_keep', 'return, reward, length, races, kept, kept_std_nodes, kept_std_states, uneven'),
    ],
)
def test_an_unknown_metric_is_refused_before_anything_is_written(tmp_path, algo, metric, known):
    with pytest.raises(ValueError, match=rf"'--metric' must be one of {known} \(got '{metric}'\)"):
        run_sweep(sweep(algo=algo, metric=metric), tmp_path / 'sweep', quiet=True)
    assert not (tmp_path / 'sweep').exists()
    check(sweep(algo='ltos', metric='kept'))


def test_a_value_is_set_as_one_and_said_so(capsys):
    for text in ('lr', 'lr=', 'lr=1,2'):
        assert main(['sweep', 'prisoner', '--set', text, '--vary', 'gamma=0.5,0.9']) == 1
        assert f"'--set' takes NAME=VALUE (got '{text}')" in capsys.readouterr().err


def test_an_option_of_several_values_is_set_and_varied_in_brackets(tmp_path, capsys):
    args = ['sweep', 'prisoner', '--algo', 'dqn', '--vary', 'gamma=0.5,0.9', '--out', str(tmp_path / 'sweep')]
    assert main([*args, '--set', 'encoder_channels=[64,0]']) == 1
    assert "'encoder_channels' must be at least 1 each (got (64, 0))" in capsys.readouterr().err
    one = sweep(options=(*STEPS, ('encoder_channels', (16, 8))), space=(parse_dimension('hidden_channels=8,16'),))
    assert config_of(one.run({'hidden_channels': 8}, FIRST_SEED)).algorithm.encoder_channels == (16, 8)
    varied = sweep(space=(parse_dimension('encoder_channels=[16,8],[8]'),))
    check(varied)
    saved = json.loads(json.dumps({'encoder_channels': (16, 8)}))  # as the study returns it
    assert varied.run(saved, FIRST_SEED) == varied.run({'encoder_channels': (16, 8)}, FIRST_SEED)
    write_best(varied, saved, tmp_path / 'best.toml')
    assert tomllib.loads((tmp_path / 'best.toml').read_text())['options']['encoder_channels'] == [16, 8]


def test_a_sweep_without_a_success_names_the_last_error(tmp_path, monkeypatch):
    one = sweep(trials=1)
    study = sweep_worker.open_study(one, tmp_path)
    trial = sweep_worker._next_trial(study, one, tmp_path)
    monkeypatch.setattr(sweep_worker, '_train', lambda *_: ending(float('nan')))
    sweep_worker._run_trial(study, trial, one, tmp_path)
    with pytest.raises(ValueError, match=r"no trial of .* succeeded. The last error: .*'return' is not a number"):
        _best(study, tmp_path)
    error = "ValueError: the final 'return' is not a number"
    (tmp_path / 'trial0000-seed100').mkdir()
    assert failures_of(study, tmp_path) == [f'trial 0 failed: {error} (see {tmp_path / "trial0000-seed100"})']
    write_table(study, one, tmp_path / 'trials.csv')
    (row,) = csv.DictReader((tmp_path / 'trials.csv').read_text().splitlines())
    assert (row['state'], row['error']) == ('fail', error)


@pytest.mark.parametrize('sampler', ['random', 'tpe'])
def test_an_interrupted_sweep_tries_the_same_values(tmp_path, sampler):
    one, found = sweep(sampler=sampler, trials=4), []
    for name, stops in (('calm', ()), ('stopped', (1, 2))):
        (tmp_path / name).mkdir()
        study, values = open_study(one, tmp_path / name), []
        while (trial := sweep_worker._next_trial(study, one, tmp_path / name)) is not None:
            if trial.number in stops:
                _queue_missing(study, one)  # as the next call does with a trial that was interrupted
            else:
                values.append(trial.user_attrs['values']['lr'])
                study.tell(trial, values[-1])
        found.append(values)
    assert found[0] == found[1]


def test_a_resumed_trial_keeps_what_it_has_reported(tmp_path, monkeypatch):
    one = sweep(trials=1, prune=True)
    study = open_study(one, tmp_path)
    sweep_worker._next_trial(study, one, tmp_path).report(0.5, 150)
    _queue_missing(study, one)
    trial = sweep_worker._next_trial(study, one, tmp_path)

    def train(run, folder, callbacks):
        (pruning,) = [callback for callback in callbacks if isinstance(callback, sweep_worker.PruneTrial)]
        trainer = Trainer()
        for trainer.algorithm.env_steps, value in ((150, 0.5), (300, 0.7)):
            pruning.on_evaluation(trainer, {'eval/return': value})
        return ending(0.7)

    monkeypatch.setattr(sweep_worker, '_train', train)
    sweep_worker._run_trial(study, trial, one, tmp_path)
    assert study.get_trials()[-1].intermediate_values == {150: 0.5, 300: 0.7}


def test_the_best_options_may_be_infinite(tmp_path):
    path = tmp_path / 'best.toml'
    values = {'clip': float('inf'), 'width': (8, 16), 'low': float('-inf'), 'text': 'Infinity', 'on': True}
    write_best(sweep(options=()), values, path)
    assert tomllib.loads(path.read_text())['options'] == values | {'width': [8, 16]}


@pytest.mark.slow
def test_a_killed_driver_leaves_trials_that_resume(tmp_path):
    out = tmp_path / 'sweep'
    options = [f'--set={name}={value}' for name, value in {**dict(STEPS), 'total_steps': 4000}.items()]
    what = ['prisoner', '--algo', 'dqn', '--vary', 'lr=1e-4..1e-2:log', *options, '--set=checkpoint_every=200']
    command = [sys.executable, '-m', 'ltos_pyg.cli', 'sweep', *what, '--trials', '2', '--out', str(out)]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(out.glob('trial0000-*/checkpoints/*.pt')):
        assert driver.poll() is None
        time.sleep(0.2)
    driver.kill()
    driver.wait()
    assert subprocess.run(command, capture_output=True).returncode == 0
    rows = list(csv.DictReader((out / 'trials.csv').read_text().splitlines()))
    assert [row['state'] for row in rows] == ['complete', 'complete']
    folders = sorted(path.name for path in out.glob('trial*-*'))
    assert folders == [f'trial0000-seed{FIRST_SEED}', f'trial{int(rows[1]["trial"]):04d}-seed{FIRST_SEED}']
    assert json.loads((out / folders[0] / 'final.json').read_text())['env_steps'] == 4000


def ending(mean, **more):
    return {'eval': {'policy': {'return': {'mean': mean}}}, **more}


@pytest.mark.parametrize(
    ('result', 'state', 'error'),
    [
        (ending(0.5), 'COMPLETE', None),
        (ending(float('nan')), 'FAIL', "ValueError: the final 'return' is not a number"),
        (ending(0.5, stopped='pruned: worse than the median of the earlier trials'), 'PRUNED', None),
    ],
)
def test_how_a_trial_ends_follows_from_the_result_of_its_run(tmp_path, monkeypatch, result, state, error):
    one = sweep(trials=1, prune=True)
    study = sweep_worker.open_study(one, tmp_path)
    trial = sweep_worker._next_trial(study, one, tmp_path)
    monkeypatch.setattr(sweep_worker, '_train', lambda *_: result)
    sweep_worker._run_trial(study, trial, one, tmp_path)
    (ended,) = study.get_trials()
    assert (ended.state.name, ended.user_attrs.get('error')) == (state, error)
    assert sweep_worker._next_trial(study, one, tmp_path) is None  # it counts


def test_bad_trials_are_pruned(tmp_path):
    """A trial below the median of the earlier one at the same step stops its run."""
    import optuna

    from ltos_pyg.experiments.sweep_worker import PRUNED, PruneTrial

    study = optuna.create_study(direction='maximize', pruner=optuna.pruners.MedianPruner(n_startup_trials=1))
    callbacks, reasons = [], []
    for values in ([1.0, 2.0], [0.0, 0.5]):
        trial = study.ask()
        callbacks.append(PruneTrial(trial, 'return'))
        trainer = Trainer()
        for step, value in enumerate(values, 1):
            trainer.algorithm.env_steps = step
            callbacks[-1].on_evaluation(trainer, {'eval/return': value})
        study.tell(trial, values[-1])
        reasons.append(trainer.reasons)
    assert reasons == [[], [PRUNED] * 2]


class Trainer:
    """What the callback needs of a trainer."""

    def __init__(self) -> None:
        self.algorithm = SimpleNamespace(env_steps=0)
        self.reasons: list[str] = []

    def stop(self, reason: str) -> None:
        self.reasons.append(reason)


def test_the_best_options_keep_a_none(tmp_path, capsys):
    path = tmp_path / 'best.toml'
    space = (Dimension('alpha', (None, 0.9)),)
    write_best(sweep(algo='neurcomm', options=(), space=space), {'alpha': None}, path)
    short = ['--total-steps', '64', '--final-episodes', '2', '--eval-episodes', '2', '--no-media']
    assert main(['train', '--config', str(path), *short, '--out', str(tmp_path / 'run')]) == 0
    assert RunFolder(tmp_path / 'run').config().algorithm.alpha is None


@pytest.mark.slow
def test_the_best_options_of_a_plug_in_name_its_modules(tmp_path, monkeypatch):
    (tmp_path / 'my_algo.py').write_text(
        'from ltos_pyg import register_algorithm\nfrom ltos_pyg.algos.dqn import DQN\n'
        "@register_algorithm('mine')\nclass Mine(DQN):\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    write_best(sweep(algo='mine', imports=('my_algo',)), {'lr': 1e-3}, tmp_path / 'best.toml')
    command = [sys.executable, '-m', 'ltos_pyg', 'train', '--config', 'best.toml', '--no-media', '--out', 'run']
    ended = subprocess.run(command, capture_output=True, text=True)  # which has not imported the module yet
    assert ended.returncode == 0, ended.stderr
    assert json.loads((tmp_path / 'run' / 'config.json').read_text())['imports'] == ['my_algo']


@pytest.mark.skipif(sys.platform == 'win32', reason='Windows has no resource limits')
@pytest.mark.slow
def test_a_full_disk_stops_a_sweep_that_goes_on_later(tmp_path):
    import resource

    large = sweep(options=(*STEPS, ('hidden_channels', 512)), trials=2)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limit[1]))  # enough for the study, not for a checkpoint
    try:
        with pytest.raises(ValueError, match=r'(?s)a worker ended early .*larger than allowed.*Call the same command'):
            run_sweep(large, tmp_path / 'sweep', quiet=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [trial.state.name for trial in open_study(large, tmp_path / 'sweep').trials] == ['RUNNING']
    run_sweep(large, tmp_path / 'sweep', quiet=True)
    rows = list(csv.DictReader((tmp_path / 'sweep' / 'trials.csv').read_text().splitlines()))
    assert [row['state'] for row in rows] == ['complete', 'complete']


def test_an_interrupted_grid_is_completed(tmp_path):
    grid = sweep(space=(Dimension('lr', (1e-4, 1e-3, 1e-2)),), sampler='grid')
    (tmp_path / 'sweep').mkdir()
    study = open_study(grid, tmp_path / 'sweep')
    points = list(grid.grid())
    study.enqueue_trial(points[0])  # then the driver died
    study.ask()
    study.enqueue_trial(points[1])
    _queue_missing(study, grid)
    _queue_missing(study, grid)
    queued = [
        trial.params or trial.system_attrs['fixed_params'] for trial in study.trials if trial.state.name == 'WAITING'
    ]
    assert sorted(map(str, queued)) == sorted(map(str, points))  # the first one again, as it was interrupted


def test_a_queued_trial_that_has_only_some_values_keeps_the_others(tmp_path):
    study = open_study(sweep(), tmp_path)
    study.enqueue_trial({'lr': 0.5, 'gamma': 0.25})
    study.ask().suggest_float('lr', 0.0, 1.0)  # then the worker died
    assert _point(study.trials[0]) == {'lr': 0.5, 'gamma': 0.25}


def test_resuming_with_a_configuration_applies_it(tmp_path):
    path, out = tmp_path / 'c.toml', str(tmp_path / 'run')
    short = ['--final-episodes', '2', '--eval-episodes', '2', '--no-media', '--out', out]
    head = 'scenario = "prisoner"\nalgo = "dqn"\n[options]\nlearning_starts = 50\n'
    path.write_text(head + 'total_steps = 160\n')
    assert main(['train', '--config', str(path), *short]) == 0
    path.write_text(head + 'total_steps = 320\n')
    assert main(['train', '--config', str(path), '--resume', *short]) == 0
    assert RunFolder(tmp_path / 'run').final()['env_steps'] == 320


def test_the_command_line_completes_the_options_of_a_file(tmp_path, capsys):
    path = tmp_path / 'options.toml'
    path.write_text('scenario = "prisoner"\nalgo = "dqn"\n[options]\nlearning_starts = 20_000\n')
    with pytest.raises(SystemExit):
        main(['train', '--config', str(path), '--no-media', '--out', str(tmp_path / 'run')])
    assert "'learning_starts' must lie below 'total_steps'" in capsys.readouterr().err  # those of the preset
    file = ['train', '--config', str(path), '--total-steps', '20_080', '--no-media', '--out', str(tmp_path / 'run')]
    assert main([*file, '--num-envs', '80', '--eval-episodes', '1', '--final-episodes', '1']) == 0
    path.write_text('scenario = "prisoner"\n[options]\nlearning_starts = "soon"\n')
    assert main(file) == 1
    assert f"'{path}': 'learning_starts' must be a whole number (got 'soon')" in capsys.readouterr().err
