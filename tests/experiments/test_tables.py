"""The Markdown table of how runs end, from folders written by hand."""

import json
import subprocess
import sys

import numpy as np
import pytest

from ltos_pyg.experiments.statistics import bootstrap_interval
from ltos_pyg.experiments.tables import final_table
from ltos_pyg.training.run_folder import RunFolder

COUNTS = {'policy': 100}  # episodes; 20 under other weights


def write_run(folder, algo, seed, **modes):
    folder.mkdir()
    (folder / 'config.json').write_text(json.dumps({'scenario': 'jungle', 'algo': algo, 'seed': seed}))
    (folder / 'metrics.jsonl').write_text('')
    final = {
        'eval': {
            mode: {name: {'mean': value, 'count': COUNTS.get(mode, 20)} for name, value in values.items()}
            for mode, values in modes.items()
        }
    }
    (folder / 'final.json').write_text(json.dumps(final))
    return folder


def test_seeds_stand_in_order_with_their_means_and_interval(tmp_path):
    runs = [
        write_run(tmp_path / 'b', 'ltos', 1, policy={'reward': 0.9, 'queue': 30.0}, keep={'reward': 0.2, 'queue': 7.0}),
        write_run(tmp_path / 'a', 'ltos', 0, policy={'reward': 0.8, 'queue': 20.0}, keep={'reward': 0.4, 'queue': 9.0}),
        write_run(tmp_path / 'c', 'dqn', 0, policy={'reward': -0.25, 'queue': 3.5}),
    ]
    assert final_table(runs, ['reward', 'queue']).splitlines() == [
        '| mean, IQM [95 % interval] (each seed) | seeds | episodes | reward | queue |',
        '| --- | --- | --- | --- | --- |',
        '| jungle: ltos | 2 | 100 | 0.850, 0.850 [0.800, 0.900] (0.800, 0.900) '
        '| 25.0, 25.0 [20.0, 30.0] (20.0, 30.0) |',
        '| jungle: ltos, played with all kept | 2 | 20 | 0.300, 0.300 [0.200, 0.400] (0.400, 0.200) '
        '| 8.000, 8.000 [7.000, 9.000] (9.000, 7.000) |',
        '| jungle: dqn | 1 | 100 | -0.250 | 3.500 |',
    ]


def test_a_number_that_is_not_finite_is_null_in_the_file_and_nan_in_the_table(tmp_path):
    run = RunFolder(write_run(tmp_path / 'a', 'dqn', 0, policy={}))
    run.write_final({'eval': {'policy': {'reward': {'mean': np.nan, 'std': np.inf, 'count': 2}}}})
    stored = json.loads(run.final_path.read_text(), parse_constant=pytest.fail)
    assert stored == {'eval': {'policy': {'reward': {'mean': None, 'std': None, 'count': 2}}}}
    assert final_table([run.path], ['reward']).splitlines()[-1] == '| jungle: dqn | 1 | 2 | nan |'
    assert np.isnan(run.final()['eval']['policy']['reward']['std'])


def test_the_interquartile_mean_leaves_the_extremes_out(tmp_path):
    values = [1.0, 2.0, 3.0, 5.0, -90.0]
    runs = [write_run(tmp_path / str(i), 'dqn', i, policy={'reward': v}) for i, v in enumerate(values)]
    (line,) = final_table(runs, ['reward'], format='csv').splitlines()[1:]
    name, metric, seeds, mean, middle, low, high, by_seed = line.split(',')
    assert (name, metric, seeds, by_seed) == ('jungle: dqn', 'reward', '5', '1.0 2.0 3.0 5.0 -90.0')
    assert (float(mean), float(middle)) == pytest.approx((-79 / 5, 2.0))
    assert (float(low), float(high)) == bootstrap_interval(np.array(values))


MEASURED = {'reward': 0.8, 'switched_uniform': 0.04, 'uneven': 0.3, 'kept': 0.5, 'kept_std_nodes': 0.1}


def test_measures_stand_beside_the_metrics_where_a_run_has_them(tmp_path):
    runs = [
        write_run(tmp_path / 'a', 'ltos', 0, policy=MEASURED, uniform={'reward': 0.7, 'kept': 0.25}),
        write_run(tmp_path / 'b', 'dqn', 0, policy={'reward': 0.2}),
    ]
    assert final_table(runs, ['reward'], measures=True).splitlines()[0::2] == [
        '| mean, IQM [95 % interval] (each seed) | seeds | episodes | reward | kept | kept_std_nodes | uneven '
        '| switched_uniform |',
        '| jungle: ltos | 1 | 100 | 0.800 | 0.500 | 0.100 | 0.300 | 0.040 |',
        '| jungle: dqn | 1 | 100 | 0.200 |  |  |  |  |',
    ]
    assert final_table(runs, ['reward'], measures=True, format='csv').splitlines() == [
        'run,metric,seeds,mean,iqm,low,high,by_seed',
        'jungle: ltos,reward,1,0.8,,,,0.8',
        'jungle: ltos,kept,1,0.5,,,,0.5',
        'jungle: ltos,kept_std_nodes,1,0.1,,,,0.1',
        'jungle: ltos,uneven,1,0.3,,,,0.3',
        'jungle: ltos,switched_uniform,1,0.04,,,,0.04',
        '"jungle: ltos, played with uniform weights",reward,1,0.7,,,,0.7',
        '"jungle: ltos, played with uniform weights",kept,1,0.25,,,,0.25',
        'jungle: dqn,reward,1,0.2,,,,0.2',
    ]


def test_a_value_that_one_seed_lacks_is_left_out(tmp_path):
    runs = [
        write_run(tmp_path / 'a', 'ltos', 0, policy=MEASURED),
        write_run(tmp_path / 'b', 'ltos', 1, policy={'reward': 0.8, 'kept': 0.5}),
    ]
    (line,) = final_table(runs, ['reward'], measures=True).splitlines()[2:]
    assert line.split(' | ')[3:] == [
        '0.800, 0.800 [0.800, 0.800] (0.800, 0.800)', '0.500, 0.500 [0.500, 0.500] (0.500, 0.500)', '', '', ' |'
    ]  # fmt: skip


def test_runs_of_earlier_versions_have_the_names_of_today(tmp_path):
    run = write_run(tmp_path / 'a', 'ltos', 0, policy={'reward': 0.8, 'selfishness': 0.4})
    assert final_table([run], ['kept']).splitlines()[2] == '| jungle: ltos | 1 | 100 | 0.400 |'


def test_what_cannot_be_computed_is_named(tmp_path):
    one, same = (write_run(tmp_path / name, 'dqn', 0, policy={'reward': 1.0}) for name in 'ab')
    with pytest.raises(ValueError, match=r"'.*a' has no metric \['luck'\]\. Choose from: reward"):
        final_table([one], ['luck'])
    with pytest.raises(
        ValueError, match=r"'.*b' is a second run of dqn with seed 0\. .* name each by ltos train --label"
    ):
        final_table([one, same], ['reward'])
    (same / 'final.json').unlink()
    with pytest.raises(ValueError, match=r"'.*b' has no 'final.json': its training has not ended"):
        final_table([same], ['reward'])
    with pytest.raises(ValueError, match='is not a run folder'):
        final_table([tmp_path], ['reward'])


def test_runs_of_one_label_with_other_options_are_rows_of_their_own(tmp_path):
    runs = [write_run(tmp_path / str(seed), 'ltos', seed, policy={'reward': 0.5 + seed / 10}) for seed in range(4)]
    for seed, run in enumerate(runs):
        config = json.loads((run / 'config.json').read_text())
        config |= {'algorithm': {'gamma': 0.9, 'lr': 0.1 + seed // 2}, 'env': {'flow': ['/data/flow.json']}}
        config |= {'train': {'seed': seed, 'final_episodes': seed}}  # what is measured, not what is trained
        (run / 'config.json').write_text(json.dumps(config))
    rows = final_table(runs, ['reward']).splitlines()[2:]
    assert [row.split(' | ')[:2] for row in rows] == [['| jungle: ltos, lr=0.1', '2'], ['| jungle: ltos, lr=1.1', '2']]


def test_tables_and_curves_do_not_wait_for_pytorch(tmp_path):
    run = write_run(tmp_path / 'run', 'mine', 0, policy={'reward': 0.5})
    (run / 'metrics.jsonl').write_text('{"step": 0, "eval/reward": 0.1}\n{"step": 9, "eval/reward": 0.5}\n')
    config = json.loads((run / 'config.json').read_text()) | {'scenario': 'pursuit', 'primary_metric': 'reward'}
    (run / 'config.json').write_text(json.dumps(config))
    code = (
        'import sys; from ltos_pyg.cli import main; '
        f'codes = [main(["table", "{run}"]), main(["plot", "{run}", "--out", "{tmp_path}/curves.png"])]; '
        'print(codes, "torch" in sys.modules)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == '[0, 0] False'
    assert '| pursuit: mine | 1 | 100 | 0.500 |' in done.stdout
