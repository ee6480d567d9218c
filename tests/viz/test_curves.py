import builtins
import json
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest

from ltos_pyg.viz.curves import (
    aggregate,
    curve_figure,
    half_interval,
    load_series,
    plot_curves,
    student_t_quantile,
    summarise,
)

STEPS = range(0, 101, 10)


def write_run(folder, values, algo='ltos', seed=0, scenario='jungle', steps=STEPS, **more):
    folder.mkdir(parents=True, exist_ok=True)
    config = {'scenario': scenario, 'algo': algo, 'seed': seed, **more}
    (folder / 'config.json').write_text(json.dumps(config))
    rows = [{'step': int(s), 'eval/return': v, 'loss': 1.0} for s, v in zip(steps, values, strict=True)]
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return folder


@pytest.fixture
def runs(tmp_path):
    """LToS with three seeds around s / 100, DGN with two around s / 200, on the jungle; one DGN run on the prisoner."""
    line = np.array(STEPS) / 100
    return [
        *(write_run(tmp_path / f'l{i}', line + d, seed=i) for i, d in enumerate((-0.3, 0.0, 0.3))),
        *(write_run(tmp_path / f'd{i}', line / 2 + d, algo='dgn', seed=i) for i, d in enumerate((-0.1, 0.1))),
        write_run(tmp_path / 'p', line * 0 + 0.49, algo='dgn', scenario='prisoner'),
    ]


# --- the interval ----------------------------------------------------------------------------------------------------

# the usual table, to six digits
TABLE = {1: 12.706205, 2: 4.302653, 3: 3.182446, 4: 2.776445, 5: 2.570582, 9: 2.262157, 29: 2.045230, 99: 1.984217}


@pytest.mark.parametrize(('dof', 'expected'), TABLE.items())
def test_t_quantiles_have_the_known_values(dof, expected):
    assert student_t_quantile(0.975, dof) == pytest.approx(expected, abs=1e-6)


def test_t_quantiles_at_other_probabilities():
    assert student_t_quantile(0.75, 1) == pytest.approx(1)  # Cauchy: tan(pi (p - 1/2))
    assert student_t_quantile(0.9, 2) == pytest.approx(0.8 * np.sqrt(2 / (1 - 0.8**2)))
    assert student_t_quantile(0.995, 10) == pytest.approx(3.169273, abs=1e-6)
    assert student_t_quantile(0.975, 20_001) == pytest.approx(1.959964, abs=2e-4)  # the normal one
    assert student_t_quantile(0.5, 4) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize('dof', [1, 2, 3, 8, 15, 100])
def test_t_quantiles_are_odd_and_rise(dof):
    quantiles = [student_t_quantile(p, dof) for p in (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)]
    assert quantiles == sorted(quantiles)
    assert quantiles[:3] == pytest.approx([-q for q in quantiles[:2:-1]])


@pytest.mark.parametrize(('p', 'dof', 'said'), [(0.0, 3, "'p' must lie"), (1.0, 3, "'p' must"), (0.9, 0, "'dof' must")])
def test_quantiles_that_do_not_exist_are_refused(p, dof, said):
    with pytest.raises(ValueError, match=said):
        student_t_quantile(p, dof)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    value = np.random.default_rng(0).normal(5, 3, size=(4, 20_000))
    covered = np.abs(value.mean(0) - 5) < half_interval(value)
    assert covered.mean() == pytest.approx(0.95, abs=0.005)


def test_one_value_has_no_interval():
    assert np.isnan(half_interval(np.ones((1, 3)))).all()


# --- the curves ------------------------------------------------------------------------------------------------------


def test_runs_are_grouped_by_scenario_and_label(runs):
    curves = aggregate(runs)
    assert [(c.scenario, c.label, len(c.runs)) for c in curves] == [
        ('jungle', 'dgn', 2),
        ('jungle', 'ltos', 3),
        ('prisoner', 'dgn', 1),
    ]
    assert [c.label for c in aggregate(runs[::-1])] == [c.label for c in curves]


def test_labels_come_from_the_label_or_the_preset(tmp_path):
    folders = [
        write_run(tmp_path / 'a', [0, 1], steps=[0, 1], preset='paper'),
        write_run(tmp_path / 'b', [0, 1], steps=[0, 1], preset='default'),
        write_run(tmp_path / 'c', [0, 1], steps=[0, 1], label='mine', preset='paper'),
    ]
    assert [c.label for c in aggregate(folders)] == ['ltos', 'ltos (paper)', 'mine']


def test_runs_of_earlier_versions_have_the_names_of_today(tmp_path):
    folder = write_run(tmp_path / 'a', [0, 1], steps=[0, 1])
    rows = [{'step': 0, 'eval/selfishness': 0.4}, {'step': 10, 'eval/selfishness': 0.3, 'eval/selfishness_std': 0.1}]
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    assert load_series(folder, 'eval/kept').value.tolist() == [0.4, 0.3]
    assert load_series(folder, 'eval/kept_std').value.tolist() == [0.1]
    with pytest.raises(ValueError, match=r"expected one of \['eval/kept', 'eval/kept_std'\]"):
        load_series(folder, 'eval/selfishness')


def test_mean_band_and_interval_are_those_of_the_seeds(runs):
    curve = aggregate(runs)[1]
    line = np.array(STEPS) / 100
    assert np.allclose(curve.mean, line)
    assert np.allclose(curve.band, (line - 0.3, line + 0.3))
    assert np.allclose(curve.interval, 4.302653 * 0.3 / np.sqrt(3))


def test_seeds_with_other_steps_meet_on_what_all_of_them_cover(tmp_path):
    folders = [
        write_run(tmp_path / 'a', [0, 2, 4], seed=0, steps=[0, 20, 40]),
        write_run(tmp_path / 'b', [1, 3, 9], seed=1, steps=[10, 30, 90]),
    ]
    (curve,) = aggregate(folders)
    assert curve.step.tolist() == [10, 20, 30, 40]
    assert curve.value.tolist() == [[1, 2, 3, 4], [1, 2, 3, 4]]  # the second falls on its own chords


def test_interpolation_stays_between_neighbouring_values(tmp_path):
    rng = np.random.default_rng(1)
    steps = [np.sort(rng.choice(1000, 30, replace=False)) for _ in range(4)]
    values = [rng.normal(size=30) for _ in range(4)]
    (curve,) = aggregate(
        [write_run(tmp_path / str(i), v, seed=i, steps=s) for i, (s, v) in enumerate(zip(steps, values, strict=True))]
    )
    for row, v, s in zip(curve.value, values, steps, strict=True):
        assert v.min() <= row.min() <= row.max() <= v.max()
        inside = np.isin(s, curve.step)
        assert np.allclose(row[np.isin(curve.step, s)], v[inside])
    assert curve.step[0] == max(s[0] for s in steps)
    assert curve.step[-1] == min(s[-1] for s in steps)


def test_null_values_are_gaps_that_are_counted_and_missing_ones_are_left_out(tmp_path):
    folder = write_run(tmp_path / 'a', [0, None, 1], steps=[0, 10, 20])
    with (folder / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 25, "loss": 1.0}\n{"step": 20, "eval/return": 3.0}\n{"step": 30, "eval')  # and a torn line
    (curve,) = aggregate([folder])
    assert curve.step.tolist() == [0, 10, 20]
    np.testing.assert_array_equal(curve.value, [[0, np.nan, 3]])
    (row,) = summarise([folder])
    assert (row['not_finite'], row['final_mean'], row['area_mean']) == (1, 3, None)


def test_a_value_that_is_not_finite_hides_no_value_of_another_seed(tmp_path):
    folders = [
        write_run(tmp_path / 'a', [0, 2, 4], seed=0, steps=[0, 10, 20]),
        write_run(tmp_path / 'b', [0, 2, None], seed=1, steps=[0, 10, 20]),
    ]
    (curve,) = aggregate(folders)
    np.testing.assert_array_equal(curve.value, [[0, 2, 4], [0, 2, np.nan]])
    np.testing.assert_array_equal(curve.mean, [0, 2, np.nan])
    figure = curve_figure([curve])
    assert figure.get_supxlabel().endswith('; gap: a value that is not finite')
    write_run(tmp_path / 'b', [None] * 3, seed=1, steps=[0, 10, 20])
    (curve,) = aggregate(folders)
    assert curve.step.tolist() == [0, 10, 20]
    plot_curves(folders, out=tmp_path / 'one.png')
    with pytest.raises(ValueError, match="no run has a finite value of 'eval/return'"):
        plot_curves(folders[1:], out=tmp_path / 'none.png')


def test_a_value_between_gaps_has_a_marker(tmp_path):
    values = [None] * 4 + [1] + [None] * 7
    folder = write_run(tmp_path / 'a', values, steps=range(0, 120, 10))
    (line,) = curve_figure(aggregate([folder])).axes[0].get_lines()
    assert line.get_markevery().count(4) == 1


# --- the summary -----------------------------------------------------------------------------------------------------


def test_the_summary_has_hand_computed_numbers(runs):
    row = summarise(runs)[1]
    half = 4.302653 * 0.3 / np.sqrt(3)
    assert row == {
        'scenario': 'jungle',
        'label': 'ltos',
        'metric': 'eval/return',
        'count': 3,
        'final_mean': pytest.approx(1.0),
        'final_std': pytest.approx(0.3),
        'final_low': pytest.approx(1 - half),
        'final_high': pytest.approx(1 + half),
        'area_mean': pytest.approx(0.5),
        'area_std': pytest.approx(0.3),
        'area_low': pytest.approx(0.5 - half),
        'area_high': pytest.approx(0.5 + half),
        'first_step': 0,
        'last_step': 100,
        'not_finite': 0,
    }


def test_a_single_seed_has_no_spread_and_the_summary_is_json(runs):
    row = json.loads(json.dumps(summarise(runs), allow_nan=False))[2]
    assert (row['count'], row['final_std'], row['final_low'], row['area_high']) == (1, None, None, None)
    assert row['final_mean'] == row['area_mean'] == pytest.approx(0.49)


def test_the_area_weighs_by_steps_and_not_by_rows(tmp_path):
    folder = write_run(tmp_path / 'a', [0, 1, 1, 1], steps=[0, 10, 11, 20])
    assert summarise([folder])[0]['area_mean'] == pytest.approx((5 + 10) / 20)
    folder = write_run(tmp_path / 'b', [0.25], steps=[10])
    assert summarise([folder])[0]['area_mean'] == 0.25


# --- the figure ------------------------------------------------------------------------------------------------------


def test_the_figure_shows_every_curve_with_its_number_of_seeds(runs):
    jungle, prisoner = curve_figure(aggregate(runs)).axes
    assert (jungle.get_title(), prisoner.get_title()) == ('jungle', 'prisoner')
    assert [text.get_text() for text in jungle.get_legend().get_texts()] == ['dgn (2 seeds)', 'ltos (3 seeds)']
    assert [text.get_text() for text in prisoner.get_legend().get_texts()] == ['dgn (1 seed)']
    lines = {line.get_label(): line for line in jungle.lines}
    assert np.allclose(lines['ltos (3 seeds)'].get_xydata(), np.stack([STEPS, np.array(STEPS) / 100], 1))
    assert lines['dgn (2 seeds)'].get_color() == prisoner.lines[0].get_color()  # one colour per method everywhere
    assert lines['dgn (2 seeds)'].get_color() != lines['ltos (3 seeds)'].get_color()
    assert (jungle.get_xlabel(), jungle.get_ylabel()) == ('environment steps', 'eval/return')


def test_band_and_bars_have_the_heights_of_band_and_interval(runs):
    curve = aggregate(runs)[1]
    (axes,) = curve_figure([curve]).axes
    band, bars = axes.collections
    corners = band.get_paths()[0].vertices
    assert corners[:, 1].min() == pytest.approx(-0.3)
    assert corners[:, 1].max() == pytest.approx(1.3)
    heights = [path.vertices[:, 1] for path in bars.get_paths()]
    assert len(heights) >= 5
    assert [high - low for low, high in heights] == pytest.approx([2 * curve.interval[0]] * len(heights))


def test_a_logarithmic_scale_needs_values_above_zero(runs, tmp_path):
    above = [write_run(tmp_path / f'a{i}', [2000.0 + i, 90.0], seed=i, steps=[0, 1]) for i in range(2)]
    (axes,) = curve_figure(aggregate(above), log=True).axes
    assert axes.get_yscale() == 'log'
    plot_curves(above, out=tmp_path / 'log.png', log=True)
    with pytest.raises(ValueError, match=r"'eval/return' must be above 0 on a logarithmic scale \(got -0\.3\)"):
        plot_curves(runs, out=tmp_path / 'bad.png', log=True)
    assert not (tmp_path / 'bad.png').exists()


def test_many_methods_all_look_different(tmp_path):
    folders = [write_run(tmp_path / f'{i}', [0, i], algo=f'm{i:02d}', steps=[0, 1]) for i in range(20)]
    (axes,) = curve_figure(aggregate(folders)).axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 20


@pytest.mark.parametrize(('suffix', 'start'), [('.png', b'\x89PNG'), ('.svg', b'<?xml'), ('.pdf', b'%PDF')])
def test_the_same_runs_give_the_same_file_whatever_the_settings(runs, tmp_path, suffix, start):
    first, again = tmp_path / 'plots' / f'a{suffix}', tmp_path / 'plots' / f'b{suffix}'
    assert plot_curves(runs, out=first) == first
    with mpl.rc_context({'font.size': 20, 'axes.facecolor': 'red', 'savefig.dpi': 20}):
        before = dict(mpl.rcParams)
        plot_curves(runs, out=again)
        assert dict(mpl.rcParams) == before
    assert first.read_bytes().startswith(start)
    assert first.read_bytes() == again.read_bytes()
    assert first.stat().st_size > 8_000
    assert len(list(first.parent.iterdir())) == 2


def test_plotting_leaves_pyplot_alone_and_importing_loads_no_matplotlib(runs, tmp_path):
    code = (
        'import sys; from ltos_pyg.viz.curves import plot_curves, summarise; '
        f'summarise(["{runs[0]}"]); print("matplotlib" in sys.modules); '
        f'plot_curves(["{runs[0]}"], out="{tmp_path}/x.png"); print("matplotlib.pyplot" in sys.modules)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.split() == ['False', 'False'], done.stderr


def test_without_matplotlib_the_extra_is_named(runs, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith('matplotlib'):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', without)
    with pytest.raises(ImportError, match=r"pip install 'ltos_pyg\[plot\]'"):
        plot_curves(runs, out=tmp_path / 'x.png')


# --- bad input -------------------------------------------------------------------------------------------------------


def test_no_runs():
    with pytest.raises(ValueError, match=r"'runs' must name at least one run folder \(got none\)"):
        summarise([])


@pytest.mark.parametrize('name', ['config.json', 'metrics.jsonl'])
def test_a_folder_that_is_no_run(runs, name):
    (runs[0] / name).unlink()
    with pytest.raises(ValueError, match=rf"is not a run folder: .* no '?{name}'?"):
        summarise(runs)


def test_a_config_of_something_else(runs):
    (runs[0] / 'config.json').write_text('{"scenario": "jungle", "lr": 1}')
    with pytest.raises(ValueError, match=r"must have .* \(got no \['algo', 'seed'\]\)"):
        summarise(runs)
    (runs[0] / 'config.json').write_text('{"scenario": ')
    with pytest.raises(ValueError, match=r'config.json.* is not valid JSON'):
        summarise(runs)


def test_an_unknown_metric_lists_the_known_ones(runs):
    with pytest.raises(ValueError, match=r"has no value of 'reward': expected one of \['eval/return', 'loss'\]"):
        summarise(runs, 'reward')


def test_a_seed_that_counts_twice(runs):
    with pytest.raises(ValueError, match=r"seeds of 'ltos' on 'jungle' must differ: .* got seed 0 in .* Leave one out"):
        summarise([*runs, runs[0]])


def test_runs_that_share_no_step(tmp_path):
    folders = [write_run(tmp_path / f'{i}', [0, 1], seed=i, steps=[100 * i, 100 * i + 50]) for i in range(2)]
    with pytest.raises(ValueError, match=r"must share steps: got '.*0' 0-50, '.*1' 100-150. Leave out"):
        summarise(folders)


def test_an_unknown_suffix(runs, tmp_path):
    with pytest.raises(ValueError, match=r"'out' must end in .png, .svg or .pdf \(got '.*curve.txt'\)"):
        plot_curves(runs, out=tmp_path / 'curve.txt')


def test_runs_of_one_label_with_other_options_are_curves_of_their_own(tmp_path):
    runs = [write_run(tmp_path / str(i), [i, i], steps=[0, 1], algorithm={'gamma': 0.5 * i}) for i in range(2)]
    assert [curve.label for curve in aggregate(runs)] == ['ltos, gamma=0.0', 'ltos, gamma=0.5']
