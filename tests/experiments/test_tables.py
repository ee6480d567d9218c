"""The Markdown table of how runs end, from folders written by hand."""

import json

import pytest

from ltos_pyg.experiments.tables import final_table


def write_run(folder, algo, seed, **modes):
    folder.mkdir()
    (folder / 'config.json').write_text(json.dumps({'scenario': 'jungle', 'algo': algo, 'seed': seed}))
    (folder / 'metrics.jsonl').write_text('')
    final = {
        'eval': {mode: {name: {'mean': value} for name, value in values.items()} for mode, values in modes.items()}
    }
    (folder / 'final.json').write_text(json.dumps(final))
    return folder


def test_seeds_stand_in_order_with_their_mean_and_interval(tmp_path):
    runs = [
        write_run(tmp_path / 'b', 'ltos', 1, policy={'reward': 0.9, 'queue': 30.0}, keep={'reward': 0.2, 'queue': 7.0}),
        write_run(tmp_path / 'a', 'ltos', 0, policy={'reward': 0.8, 'queue': 20.0}, keep={'reward': 0.4, 'queue': 9.0}),
        write_run(tmp_path / 'c', 'dqn', 0, policy={'reward': -0.25, 'queue': 3.5}),
    ]
    half = 12.706 * 0.05  # Student's t of one degree of freedom times the standard error
    assert final_table(runs, ['reward', 'queue']).splitlines() == [
        '|  | seeds | reward | queue |',
        '| --- | --- | --- | --- |',
        f'| jungle: ltos | 2 | 0.850 ± {half:.3f} (0.800, 0.900) | 25.0 ± {half * 100:.1f} (20.0, 30.0) |',
        f'| jungle: ltos, nobody shares | 2 | 0.300 ± {half * 2:.3f} (0.400, 0.200) '
        f'| 8.000 ± {half * 20:.3f} (9.000, 7.000) |',
        '| jungle: dqn | 1 | -0.250 | 3.500 |',
    ]


def test_what_cannot_be_told_is_named(tmp_path):
    one, same = (write_run(tmp_path / name, 'dqn', 0, policy={'reward': 1.0}) for name in 'ab')
    with pytest.raises(ValueError, match=r"'.*a' has no metric \['luck'\]\. Choose from: reward"):
        final_table([one], ['luck'])
    with pytest.raises(ValueError, match=r"'.*b' is a second run of dqn with seed 0"):
        final_table([one, same], ['reward'])
    (same / 'final.json').unlink()
    with pytest.raises(ValueError, match=r"'.*b' has no 'final.json': its training has not ended"):
        final_table([same], ['reward'])
    with pytest.raises(ValueError, match='is no run folder'):
        final_table([tmp_path], ['reward'])
