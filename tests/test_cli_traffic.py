"""Traffic from the command line: generate, simulate, replay, train, evaluate, watch, export a plan."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from ltos_pyg.cli import main
from ltos_pyg.envs.traffic.controllers import CONTROLLERS
from ltos_pyg.envs.traffic.metrics import DESCRIPTIONS
from ltos_pyg.scenarios.traffic import selfishness
from ltos_pyg.scenarios.traffic.moments import load_traffic_run

TINY = [
    *('--net', '2x2', '--horizon', '12', '--total-steps', '96', '--num-envs', '4', '--learning-starts', '24'),
    *(
        '--eval-every',
        '48',
        '--log-every',
        '48',
        '--hidden-channels',
        '8',
        '--encoder-channels',
        '8',
        '--heads',
        '2',
        '--no-media',
    ),
]


@pytest.fixture(scope='module')
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a generated 2x2 grid."""
    folder = tmp_path_factory.mktemp('grid')
    assert main(['traffic', 'generate', '--rows', '2', '--cols', '2', '--out', str(folder), '--turn', '0.3']) == 0
    return folder


@pytest.fixture(scope='module')
def runs(tmp_path_factory: pytest.TempPathFactory, files: Path) -> Path:
    """A folder with short runs: ltos on a generated grid, dgn on the same from files."""
    folder = tmp_path_factory.mktemp('runs')
    assert main(['train', 'traffic', *TINY, '--out', str(folder / 'ltos')]) == 0
    options = ['--algo', 'dgn', *TINY, '--net', str(files / 'roadnet.json'), '--flow', str(files / 'flow.json')]
    assert main(['train', 'traffic', *options, '--out', str(folder / 'dgn')]) == 0
    return folder


def printed(capsys: pytest.CaptureFixture[str], args: list[str]) -> str:
    """What a command prints."""
    assert main(args) == 0
    return capsys.readouterr().out


# --- networks and controllers ----------------------------------------------------------------------------------------


def test_a_generated_grid_is_simulated_as_the_one_in_memory(capsys, files):
    from_files = ['--net', str(files / 'roadnet.json'), '--flow', str(files / 'flow.json')]
    in_memory = ['--net', '2x2', '--turn', '0.3']
    results = [printed(capsys, ['traffic', 'simulate', *net, '--json']) for net in (from_files, in_memory)]
    assert results[0] == results[1]
    stats = json.loads(results[0])['max-pressure']
    assert stats.keys() == DESCRIPTIONS.keys()
    assert stats['scheduled'] == {'mean': 2570.0, 'std': 0.0, 'count': 1}


def test_one_controller_is_printed_with_the_meaning_of_each_number(capsys):
    lines = printed(capsys, ['traffic', 'simulate', '--net', '1x2', '--horizon', '300']).splitlines()
    assert len(lines) == len(DESCRIPTIONS)
    for line, (name, meaning) in zip(lines, DESCRIPTIONS.items(), strict=True):
        assert line.startswith(name)
        assert line.endswith(meaning)


def test_all_controllers_are_compared(capsys):
    lines = printed(capsys, ['traffic', 'simulate', '--net', '2x2', '--horizon', '600', '--controller', 'all'])
    table = [line.split() for line in lines.splitlines()]
    assert table[0][:3] == ['controller', 'duration', 'average_travel_time']
    assert tuple(row[0] for row in table[2:]) == CONTROLLERS
    duration = {row[0]: float(row[1]) for row in table[2:]}
    assert duration['max-pressure'] < duration['fixed'] < duration['random']


def test_demands_and_episodes_are_counted(capsys):
    args = ['traffic', 'simulate', '--net', '2x2', '--horizon', '300', '--controller', 'random', '--json']
    stats = json.loads(printed(capsys, [*args, '--demands', '2', '--episodes', '3']))['random']
    assert stats['duration']['count'] == 6
    assert stats['duration']['std'] > 0


def test_yellow_costs_time(capsys):
    args = ['traffic', 'simulate', '--net', '3x3', '--horizon', '1200', '--json', '--yellow']
    with_yellow, without = (json.loads(printed(capsys, [*args, y]))['max-pressure'] for y in ('5', '0'))
    assert with_yellow['duration']['mean'] > 1.1 * without['duration']['mean']


def test_a_trace_is_replayed(capsys, files, tmp_path):
    phase = np.random.default_rng(0).integers(1, 5, (40, 4)).repeat(10, 0)
    np.savez(tmp_path / 'trace.npz', phase=phase)
    args = ['--roadnet', str(files / 'roadnet.json'), '--flow', str(files / 'flow.json')]
    args += ['--phases', str(tmp_path / 'trace.npz'), '--out', str(tmp_path / 'out.npz')]
    assert printed(capsys, ['traffic', 'replay', *args]) == f'wrote {tmp_path / "out.npz"}\n'
    with np.load(tmp_path / 'out.npz') as out:
        assert out.files[:6] == [
            *('intersections', 'lanes', 'phase', 'lane_vehicle_count', 'lane_waiting_count', 'average_travel_time')
        ]
        assert (out['phase'] == phase).all()
        assert out['lane_vehicle_count'].shape == (400, len(out['lanes']))
        assert 'vehicles_300' in out.files


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['simulate', '--controller', 'mystery'], "unknown controller 'mystery'. Choose one of: fixed, random"),
        (['simulate', '--net', 'nowhere.json'], "road network 'nowhere.json' cannot be read"),
        (['simulate', '--net', '1x1', '--flow', 'nowhere.json'], "flow 'nowhere.json' cannot be read"),
        (['simulate', '--net', '1x1', '--yellow', '10'], "'yellow' must be shorter than a decision of 10 s (got 10)"),
        (['simulate', '--net', '1x1', '--episodes', '0'], "'--episodes' must be an integer of at least 1 (got 0)"),
        (['simulate', '--net', '1x1', '--seed', '-1'], "'--seed' must be an integer of at least 0 (got -1)"),
        (
            ['simulate', '--net', '1x1', '--fixed-seconds', '5', '--controller', 'fixed'],
            "a multiple of a decision's 10 s",
        ),
        (['simulate', '--net', '1x1', '--phases', '-1'], "'phases' must be an integer of at least 1 (got -1)"),
        (['generate', '--rows', '0', '--out', 'x'], "'rows' must be an integer of at least 1 (got 0)"),
        (['plan', 'nowhere'], "'nowhere' is not a run folder"),
        (['plan', 'nowhere', '--out', 'plan.txt'], "'out' must end in .csv or .npz (got 'plan.txt')"),
    ],
)
def test_a_command_that_makes_no_sense_says_what_would(capsys, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    assert main(['traffic', *args]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- trained runs ----------------------------------------------------------------------------------------------------


def test_training_ends_with_the_metrics_of_traffic(runs):
    final = json.loads((runs / 'ltos' / 'final.json').read_text())
    assert final['eval'].keys() == {'policy', 'constant', 'uniform', 'keep', 'random'}
    assert DESCRIPTIONS.keys() <= final['eval']['policy'].keys()
    rows = [json.loads(line) for line in (runs / 'dgn' / 'metrics.jsonl').read_text().splitlines()]
    assert any('eval/duration' in row for row in rows)
    assert any('train/duration' in row for row in rows)


def test_a_run_is_evaluated_on_other_demands(capsys, runs):
    folder = str(runs / 'ltos')
    one = json.loads(printed(capsys, ['evaluate', folder, '--json']))['policy']
    assert one['duration'] == json.loads((runs / 'ltos' / 'final.json').read_text())['eval']['policy']['duration']
    others = ['--env', 'demand_seed=1', 'demands=3', '--episodes', '3']
    three = json.loads(printed(capsys, ['evaluate', folder, '--json', *others]))['policy']
    assert three['duration']['count'] == 3
    assert three['duration']['std'] > 0
    assert main(['evaluate', folder, '--env', 'demands']) == 1
    assert "'--env' takes options as NAME=VALUE (got 'demands')" in capsys.readouterr().err


def test_each_task_is_trained_on_and_played_once(capsys, tmp_path):
    def durations(folder: str, *args: str) -> dict[str, float]:
        return json.loads(printed(capsys, ['evaluate', str(tmp_path / folder), '--json', *args]))['policy']['duration']

    several = ['train', 'traffic', '--algo', 'fixed_ltos', *TINY, '--demands', '3', '--turn', '0.3']
    assert main([*several, '--num-envs', '2', '--out', str(tmp_path / 'few')]) == 1
    assert "'num_envs' must be at least 3, the number of tasks" in capsys.readouterr().err
    assert not (tmp_path / 'few').exists()
    printed(capsys, [*several, '--out', str(tmp_path / 'all')])
    final = json.loads((tmp_path / 'all' / 'final.json').read_text())['eval']
    assert {mode: stats['duration']['count'] for mode, stats in final.items()} == dict.fromkeys(final, 3)
    assert durations('all') == final['policy']['duration']
    assert durations('all', '--env', 'demands=2')['count'] == 2
    assert durations('all', '--episodes', '1')['count'] == 1
    rows = [json.loads(line) for line in (tmp_path / 'all' / 'metrics.jsonl').read_text().splitlines()]
    alone = [durations('all', '--env', 'demands=1', f'demand_seed={seed}')['mean'] for seed in range(3)]
    mean = [row['eval/duration'] for row in rows if 'eval/duration' in row][-1]
    assert mean == pytest.approx(np.mean(alone))  # of the evaluations during training, too
    assert len(set(alone)) == 3
    over = ['evaluate', str(tmp_path / 'all'), '--over', 'demands=1,2', '--json']
    result = json.loads(printed(capsys, over))
    assert [setting['eval']['duration']['count'] for setting in result['settings']] == [1, 2]
    printed(capsys, ['card', str(tmp_path / 'all')])
    assert 'One episode of each task:' in (tmp_path / 'all' / 'card.md').read_text()
    assert main(['traffic', 'plan', str(tmp_path / 'all'), '--out', str(tmp_path / 'plan.csv')]) == 0
    assert 'the run has 3 networks or demands; the plan is of the first' in capsys.readouterr().err


def test_runs_on_traffic_are_plotted_by_duration(capsys, runs, tmp_path):
    out = tmp_path / 'curve.png'
    assert '"metric": "eval/duration"' in printed(capsys, ['plot', str(runs / 'dgn'), '--out', str(out), '--json'])
    assert out.read_bytes().startswith(b'\x89PNG')


def test_an_episode_is_watched(capsys, runs, tmp_path):
    for name in ('ltos', 'dgn'):
        frames, gif = tmp_path / name, tmp_path / f'{name}.gif'
        printed(capsys, ['watch', str(runs / name), '--out', str(frames), '--steps', '2'])
        assert len(list(frames.glob('*.png'))) == 2
        printed(capsys, ['watch', str(runs / name), '--out', str(gif)])
        assert gif.read_bytes().startswith(b'GIF')
        shown = printed(capsys, ['watch', str(runs / name), '--terminal', '--steps', '2'])
        assert '00:10 ' in shown
        assert ('kept' in shown) == (name == 'ltos')


def test_selfishness_is_drawn(capsys, runs, tmp_path):
    assert main(['watch', str(runs / 'ltos'), '--figure', 'selfishness', '--out', str(tmp_path / 's.png')]) == 0
    assert (tmp_path / 's.png').read_bytes().startswith(b'\x89PNG')
    assert capsys.readouterr().out == f'wrote {tmp_path / "s.png"}\nwrote {tmp_path / "s.csv"}\n'
    assert (tmp_path / 's.csv').read_text().startswith('seconds,vehicles,signal 0,')
    assert main(['watch', str(runs / 'dgn'), '--figure', 'selfishness', '--out', str(tmp_path / 't.png')]) == 1
    assert 'this run has no sharing weights' in capsys.readouterr().err
    assert main(['watch', str(runs / 'ltos'), '--figure', 'selfishness', '--out', str(tmp_path / 't.gif')]) == 1
    assert "'out' must end in .png, .svg or .pdf" in capsys.readouterr().err


def test_selfishness_is_drawn_of_the_episode_of_a_seed(monkeypatch, runs, tmp_path):
    def load(*args):  # actions are drawn, so that episodes differ
        algorithm, env = load_traffic_run(*args)
        algorithm.config = dataclasses.replace(algorithm.config, eval_temperature=1.0)
        return algorithm, env

    monkeypatch.setattr(selfishness, 'load_traffic_run', load)
    out = ['--seed', '1', '--out', str(tmp_path / 's.png')]
    assert main(['watch', str(runs / 'ltos'), '--figure', 'selfishness', *out]) == 0
    first, second = (selfishness.selfishness_of(*load(runs / 'ltos'), seed).csv() for seed in (1, 2))
    assert (tmp_path / 's.csv').read_text() == first != second


def test_the_plan_of_a_run_replays_to_its_own_metrics(capsys, runs, files, tmp_path):
    assert main(['traffic', 'plan', str(runs / 'dgn'), '--out', str(tmp_path / 'plan.csv')]) == 0
    with (tmp_path / 'plan.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0].keys() == {'time', 'signal', 'phase'}
    assert {row['signal'] for row in rows if row['time'] == '0'} == {
        *('intersection_1_1', 'intersection_1_2', 'intersection_2_1', 'intersection_2_2')
    }
    assert main(['traffic', 'plan', str(runs / 'dgn'), '--out', str(tmp_path / 'plan.npz')]) == 0
    args = ['--roadnet', str(files / 'roadnet.json'), '--flow', str(files / 'flow.json')]
    args += ['--phases', str(tmp_path / 'plan.npz'), '--out', str(tmp_path / 'out.npz')]
    assert main(['traffic', 'replay', *args]) == 0
    evaluated = json.loads((runs / 'dgn' / 'final.json').read_text())['eval']['policy']['average_travel_time']
    with np.load(tmp_path / 'out.npz') as out:
        assert float(out['average_travel_time']) == pytest.approx(evaluated['mean'], rel=1e-6)


def test_a_run_without_signals_has_no_plan(capsys, tmp_path):
    from test_cli import QUICK

    args = ['train', 'prisoner', '--algo', 'dqn', '--no-media', *QUICK, '--out', str(tmp_path / 'prisoner')]
    assert main(args) == 0
    assert main(['traffic', 'plan', str(tmp_path / 'prisoner'), '--out', str(tmp_path / 'plan.csv')]) == 1
    assert "is a run without signals: expected one on 'traffic'" in capsys.readouterr().err


def test_cityflow_writes_the_files_of_its_viewer_for_a_replayed_plan(capsys, runs, files, tmp_path):
    pytest.importorskip('cityflow')
    assert main(['traffic', 'plan', str(runs / 'dgn'), '--out', str(tmp_path / 'plan.npz')]) == 0
    args = ['--roadnet', str(files / 'roadnet.json'), '--flow', str(files / 'flow.json')]
    args += ['--phases', str(tmp_path / 'plan.npz'), '--out', str(tmp_path / 'out.npz')]
    assert main(['traffic', 'replay', *args, '--viewer', str(tmp_path / 'viewer')]) == 0
    assert json.loads((tmp_path / 'viewer' / 'viewer_roadnet.json').read_text())['static']
    seconds = (tmp_path / 'viewer' / 'viewer_replay.txt').read_text().splitlines()
    assert len(seconds) == 120
    with np.load(tmp_path / 'out.npz') as out:
        on_lanes = out['lane_vehicle_count'].sum(1)
    vehicles = [line.split(';')[0].count('flow_') for line in seconds]
    assert max(vehicles) > 50
    assert (np.array(vehicles) >= on_lanes).all()  # those on lane links too
