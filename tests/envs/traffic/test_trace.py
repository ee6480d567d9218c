"""Traces recorded with CityFlow itself: ours must be the same, array by array, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from traffic_files import DATA, GRID, Write, data_folder, entry, line_network

from ltos_pyg.envs.traffic import load_flow, load_network, make_engine
from ltos_pyg.envs.traffic.trace import load_phases, load_trace, play_phases, replay, save_trace

GRID_FILES = GRID / 'grid_2x3_roadnet.json', GRID / 'grid_2x3_flow.json'


def assert_same_trace(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype, name
        np.testing.assert_array_equal(got[name], array, err_msg=name, strict=True)


@pytest.mark.parametrize('name', ['random', 'max_pressure'])
def test_grid_equals_cityflow(name, tmp_path):
    golden = GRID / f'grid_2x3_{name}.npz'
    result = replay(*GRID_FILES, golden, tmp_path / 'out' / 'trace.npz')
    assert_same_trace(result, load_trace(golden))
    assert_same_trace(load_trace(tmp_path / 'out' / 'trace.npz'), result)
    assert [file.name for file in (tmp_path / 'out').iterdir()] == ['trace.npz']


@pytest.mark.filterwarnings('ignore:.*entries are dropped:UserWarning')
def test_a_network_of_everything_equals_cityflow():
    """One to three lanes, bends, undrawn links, routes with gaps and without a way, several vehicles an entry, endless
    ones, odd digits, phases at random, files out of order, links at a virtual intersection."""
    network = load_network(DATA / 'mixed' / 'roadnet.json')
    flow = load_flow(DATA / 'mixed' / 'flow.json', network)
    golden = load_trace(DATA / 'mixed' / 'trace.npz')
    assert flow.dropped.sum() == 33
    assert any(0 < len(a) < len(r) for a, r in zip(flow.anchors, flow.route, strict=True))
    assert (flow.end == -1).any()
    assert len(golden['vehicles_700']) > 20
    assert_same_trace(play_phases(make_engine(network, flow), golden['phase'], every=100), golden)


@pytest.mark.parametrize(
    ('name', 'files'),
    [
        ('grid_6x6_random', ('6x6/roadnet_6_6.json', '6x6/anon_6_6_small_2570_bi.json')),
        ('shenzhen_random', ('shenzhen/roadnet_1_33.json', 'shenzhen/anon_1_33_fuhua_0.4x24hto1h.json')),
    ],
)
@pytest.mark.filterwarnings('ignore:.*entries are dropped:UserWarning')
def test_networks_of_the_paper_equal_cityflow(name, files, tmp_path):
    golden, data = data_folder('LTOS_GOLDEN') / f'{name}.npz', data_folder('LTOS_ROADNETSZ')
    result = replay(*(data / file for file in files), golden, tmp_path / 'trace.npz')
    assert_same_trace(result, load_trace(golden))


def test_any_episode_of_a_batch_gives_the_trace(grid):
    golden = load_trace(GRID / 'grid_2x3_random.npz')
    engine = make_engine(*grid, num_envs=2, threads=2)
    engine.step(17)
    assert_same_trace(play_phases(engine, golden['phase']), golden)


def test_a_short_trace(grid):
    golden = load_trace(GRID / 'grid_2x3_random.npz')
    trace = play_phases(make_engine(*grid), golden['phase'][:7], every=5)
    names = ['intersections', 'lanes', 'phase', 'lane_vehicle_count', 'lane_waiting_count', 'average_travel_time']
    assert list(trace) == [*names, 'vehicles_5', 'distance_5', 'speed_5']
    np.testing.assert_array_equal(trace['lane_vehicle_count'], golden['lane_vehicle_count'][:7])
    assert len(play_phases(make_engine(*grid), golden['phase'][:0])['phase']) == 0


def test_counts_that_do_not_fit_a_byte(write: Write):
    network = line_network()
    network['intersections'][1]['point']['x'] = network['roads'][0]['points'][1]['x'] = 9000
    network['roads'][1]['points'][1]['x'] = network['intersections'][2]['point']['x'] = 9900
    engine = make_engine(*write(network, entry('in', 'out', end=900)))
    trace = play_phases(engine, np.zeros((1200, 1), int))
    assert trace['lane_vehicle_count'].max() > 255
    assert trace['lane_vehicle_count'].dtype == np.int32
    assert trace['phase'].dtype == np.uint8


def test_bad_phases(grid, tmp_path):
    engine = make_engine(*grid)
    with pytest.raises(ValueError, match=r"'phase' must be of shape \(T, I=6\) \(got \(3, 5\)\)"):
        play_phases(engine, np.zeros((3, 5), int))
    with pytest.raises(ValueError, match=r"signal 'intersection_1_1' .* \(got 9\)"):
        play_phases(engine, np.full((3, 6), 9))
    with pytest.raises(ValueError, match="'every' must be at least 1"):
        play_phases(engine, np.zeros((3, 6), int), every=0)
    path = tmp_path / 'trace.npz'
    for arrays, message in (
        ({'other': np.zeros(3)}, "has no array 'phase' .it has other"),
        ({'phase': np.zeros((3, 5), int)}, r"array 'phase' must hold integers of shape \(T, I=6\)"),
        ({'phase': np.zeros((3, 6))}, r"array 'phase' must hold integers"),
        ({'phase': np.zeros((3, 6), int), 'intersections': np.array(list('abcdef'))}, 'names other signals'),
    ):
        save_trace(path, arrays)
        with pytest.raises(ValueError, match=message):
            load_phases(path, grid[0])


def test_files_that_are_no_traces(tmp_path):
    path = tmp_path / 'trace.npz'
    with pytest.raises(ValueError, match='cannot be read'):
        load_trace(path)
    for junk in (b'', b'junk', b'PK\x03\x04' + b'\0' * 40, (GRID / 'grid_2x3_random.npz').read_bytes()[:9000]):
        path.write_bytes(junk)
        with pytest.raises(ValueError, match='trace '):
            load_trace(path)
    np.save(tmp_path / 'one.npy', np.zeros(3))
    (tmp_path / 'plan.csv').write_text('time,signal,phase\n0,a,1\n')
    for name in ('one.npy', 'plan.csv'):
        with pytest.raises(
            ValueError, match=r"trace '.*' is not a valid .npz archive: .*ltos traffic plan RUN --out plan.npz"
        ):
            load_trace(tmp_path / name)
    np.savez(path, phase=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match='is not a valid'):
        load_trace(path)


def test_a_failed_save_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / 'trace.npz'
    save_trace(path, {'phase': np.zeros(3)})

    class Torn:
        def __array__(self, *args: object, **options: object) -> np.ndarray:
            raise RuntimeError('torn')

    with pytest.raises(RuntimeError, match='torn'):
        save_trace(path, {'phase': np.ones(3), 'torn': Torn()})  # type: ignore[dict-item]
    assert load_trace(path)['phase'].tolist() == [0, 0, 0]
    assert [file.name for file in tmp_path.iterdir()] == ['trace.npz']
