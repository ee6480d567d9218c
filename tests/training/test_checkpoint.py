import errno
import hashlib
import re
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from ltos_pyg.training import checkpoint
from ltos_pyg.training.atomic import atomic_write
from ltos_pyg.training.checkpoint import CheckpointStore, state_must_fit


def make_state(step=0):
    rng = torch.Generator().manual_seed(step)
    model = torch.nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.copy_(torch.rand(3, 4, generator=rng))
        model.bias.zero_()
    adam = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    adam.step()
    return {
        'model': model.state_dict(),
        'optimizer': adam.state_dict(),
        'replay': {'x': torch.randint(-1, 2, (50, 7), generator=rng).to(torch.int8), 'ends': [3, 50], 'pair': (1, 'a')},
        'generator': rng.get_state(),
        'none': None,
        'best': float('-inf'),
        'done': step > 3,
        'step': step,
    }


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def files(folder):
    return sorted(path.name for path in folder.iterdir())


# --- atomic_write ----------------------------------------------------------------------------------------------------


def test_a_write_replaces_the_whole_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / 'config.json'
    for content in (b'a long first version', b'short'):
        assert atomic_write(path, lambda file, content=content: file.write(content)) == path
        assert path.read_bytes() == content
    assert files(tmp_path) == ['config.json']


def test_the_file_has_ordinary_permissions(tmp_path):
    (tmp_path / 'plain').write_bytes(b'x')
    atomic_write(tmp_path / 'atomic', lambda file: file.write(b'x'))
    assert (tmp_path / 'atomic').stat().st_mode == (tmp_path / 'plain').stat().st_mode


@pytest.mark.parametrize('error', [KeyboardInterrupt, ZeroDivisionError])
def test_an_error_in_the_middle_leaves_the_earlier_file(tmp_path, error):
    path = tmp_path / 'config.json'
    path.write_bytes(b'earlier')

    def write(file):
        file.write(b'half of it')
        raise error

    with pytest.raises(error):
        atomic_write(path, write)
    assert path.read_bytes() == b'earlier'
    assert files(tmp_path) == ['config.json']


def fill_a_device_that_is_full(_):
    Path('/dev/full').write_bytes(b'x' * 100_000)


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs /dev/full')
@pytest.mark.parametrize(
    ('earlier', 'said'), [(True, 'the earlier file is untouched'), (False, 'there was no earlier')]
)
def test_a_full_disk_is_reported_with_file_room_and_next_move(tmp_path, earlier, said):
    path = tmp_path / 'a.pt'
    if earlier:
        path.write_bytes(b'earlier')
    pattern = (
        rf"cannot write '{re.escape(str(path))}': the disk is full \([\d,]+ bytes free; {said}.*\). Free some space"
    )
    with pytest.raises(OSError, match=pattern) as caught:
        atomic_write(path, fill_a_device_that_is_full)
    assert caught.value.errno == errno.ENOSPC
    assert files(tmp_path) == (['a.pt'] if earlier else [])


def test_a_name_that_no_file_can_have_is_reported(tmp_path):
    with pytest.raises(OSError, match=r"cannot write '.*a{300}': File name too long .* Give it a shorter name, or"):
        atomic_write(tmp_path / ('a' * 300), lambda file: file.write(b''))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(OSError, match=r"the folder '.*nowhere' does not exist. Create it first") as caught:
        atomic_write(tmp_path / 'nowhere' / 'a', lambda file: file.write(b''))
    assert caught.value.errno == errno.ENOENT


def run_python(code, *args, **kwargs):
    return subprocess.run([sys.executable, '-c', textwrap.dedent(code), *map(str, args)], text=True, **kwargs)


def test_a_checkpoint_that_does_not_fit_leaves_the_last_good_one(tmp_path):
    code = """
        import resource, sys, torch
        from ltos_pyg.training.checkpoint import CheckpointStore
        store = CheckpointStore(sys.argv[1])
        store.save(1, {'x': torch.arange(1000)})
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        for size in (100_000, 25_500, 30_000):  # fails in the middle, or close to the end
            try:
                store.save(2, {'x': torch.arange(size)})
            except OSError as error:
                print(error.errno, error)
    """
    done = run_python(code, tmp_path, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert line.startswith(f'{errno.EFBIG} ')
        assert 'step_000000002.pt' in line
        assert 'the file is larger than allowed here' in line
        assert line.endswith('Earlier checkpoints are kept: steps [1].')
    assert files(tmp_path) == ['step_000000001.pt']
    step, state = CheckpointStore(tmp_path).load_latest()
    assert step == 1
    assert torch.equal(state['x'], torch.arange(1000))


def test_an_interrupt_while_torch_writes_stays_an_interrupt(tmp_path):
    class Interrupted:
        def write(self, data):
            raise KeyboardInterrupt

        def flush(self):
            pass

    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / 'a.pt', lambda _: checkpoint._save({'x': torch.ones(3)}, Interrupted()))
    assert files(tmp_path) == []


def test_killed_at_any_moment_a_sound_checkpoint_is_left(tmp_path):
    code = """
        import sys, torch
        from ltos_pyg.training.checkpoint import CheckpointStore
        store = CheckpointStore(sys.argv[1], keep=1)
        for step in range(10**6):
            store.save(step, {'step': step, 'x': torch.full((2_000_000,), float(step))})
            print(step, flush=True)
    """
    last = -1
    for delay in (0.0, 0.008):
        folder = tmp_path / str(delay)
        process = subprocess.Popen([sys.executable, '-c', textwrap.dedent(code), str(folder)], stdout=subprocess.PIPE)
        for _ in range(3):
            last = int(process.stdout.readline())
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        step, state = CheckpointStore(folder).load_latest()  # a warning would be an error here
        assert step >= last
        assert state['step'] == step
        assert torch.equal(state['x'], torch.full((2_000_000,), float(step)))
        CheckpointStore(folder, keep=1).save(step + 1, {})
        assert files(folder) == [f'step_{step + 1:09d}.pt']  # what the killed process left over is gone too


# --- CheckpointStore -------------------------------------------------------------------------------------------------


def test_what_is_loaded_is_what_was_saved(tmp_path):
    store = CheckpointStore(tmp_path / 'run' / 'checkpoints')
    assert store.load_latest() is None
    state = make_state(5)
    path = store.save(5, state)
    assert path == tmp_path / 'run' / 'checkpoints' / 'step_000000005.pt'
    step, loaded = CheckpointStore(path.parent).load_latest()
    assert step == 5
    assert_same(loaded, state)


def test_the_newest_are_kept(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for step in (0, 10, 200, 1_000_000_000, 2_000_000_000):  # the last two need ten digits
        store.save(step, {'step': step})
        assert store.load_latest() == (step, {'step': step})
    assert store.steps() == [1_000_000_000, 2_000_000_000]


def test_saving_a_step_again_replaces_it(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, {'x': 1})
    store.save(1, {'x': 2})
    assert store.load_latest() == (1, {'x': 2})


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    others = ['best.pt', 'step_000000001.pt.bak', 'step_x.pt', '.step_000000001.swp']
    for name in others:
        (tmp_path / name).write_bytes(b'mine')
    store = CheckpointStore(tmp_path, keep=1)
    for step in range(3):
        store.save(step, {})
    assert files(tmp_path) == sorted([*others, 'step_000000002.pt'])


def cuts(size):
    return sorted({0, 1, 47, 48, 49, size // 3, size // 2, size - 49, size - 48, size - 47, size - 1})


def test_every_truncation_is_seen_and_the_last_good_one_is_used(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, make_state(1))
    path = store.save(2, make_state(2))
    whole = path.read_bytes()
    for size in [*cuts(len(whole)), *range(64, len(whole), 257)]:
        path.write_bytes(whole[:size])
        with pytest.warns(UserWarning, match=r"checkpoint '.*step_000000002.pt' is damaged \(.+\) and skipped"):
            step, state = store.load_latest()
        assert step == 1
        assert_same(state, make_state(1))
    path.write_bytes(whole)
    assert store.load_latest()[0] == 2


def test_a_flipped_bit_is_seen_or_changes_nothing(tmp_path):
    store = CheckpointStore(tmp_path)
    path = store.save(1, make_state(1))
    whole = path.read_bytes()
    rng, harmless = np.random.default_rng(0), 0
    for at in [0, len(whole) - 1, *rng.integers(len(whole), size=100)]:
        flipped = bytearray(whole)
        flipped[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            try:
                loaded = store.load_latest()
            except ValueError as error:
                loaded, message = None, str(error)
        if loaded is None:
            assert re.search(r'no checkpoint in .* can be loaded: .* got 1 damaged \(steps \[1\]\)', message)
            assert 'is damaged' in str(caught[0].message)
        else:  # in the padding between the parts, or in a date
            assert loaded[0] == 1
            assert_same(loaded[1], make_state(1))
            harmless += 1
    assert harmless < 80  # small tensors have much padding between them


def test_a_flipped_bit_of_a_tensor_is_seen(tmp_path):
    store = CheckpointStore(tmp_path)
    path = store.save(1, {'x': torch.arange(1000, dtype=torch.float64)})
    whole = bytearray(path.read_bytes())
    whole[whole.index(torch.arange(500, 502, dtype=torch.float64).numpy().tobytes())] ^= 1
    path.write_bytes(whole)
    message = r"the checksum of '.*/data/0' does not match"
    with pytest.warns(UserWarning, match=message), pytest.raises(ValueError, match='no checkpoint'):
        store.load_latest()


def test_an_emptied_file_is_damaged_too(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, {'x': 1}).write_bytes(b'')
    with pytest.warns(UserWarning, match='no whole archive in 0 bytes'), pytest.raises(ValueError, match='no check'):
        store.load_latest()


def test_checkpoints_that_end_in_a_digest_still_load(tmp_path):
    store = CheckpointStore(tmp_path)
    path = store.save(1, make_state(1))
    whole = path.read_bytes()
    path.write_bytes(whole + b'ltos_pyg:sha256:' + hashlib.sha256(whole).digest())  # as earlier versions wrote them
    step, state = store.load_latest()
    assert step == 1
    assert_same(state, make_state(1))


@pytest.mark.parametrize(
    ('content', 'got'), [([1, 2], 'got list'), ({'model': torch.ones(2)}, r"got a dict with \['model'\]")]
)
def test_another_file_under_a_checkpoints_name_is_named(tmp_path, content, got):
    torch.save(content, tmp_path / 'step_000000001.pt')
    with pytest.raises(ValueError, match=rf"'.*step_000000001.pt' was not written by a run: expected .*, {got}\."):
        CheckpointStore(tmp_path).load_latest()


def test_a_state_of_something_else_is_one_sentence():
    message = r'does not fit this run: .* \(KeyError: .modules.\)\. Use the version that'
    with pytest.raises(ValueError, match=message), state_must_fit():
        {}['modules']


def test_a_damaged_newest_never_pushes_out_a_good_one(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    store.save(900, {'x': 900}).write_bytes(b'damaged')
    store.save(850, {'x': 850})
    assert files(tmp_path) == ['step_000000850.pt']
    assert store.load_latest() == (850, {'x': 850})


def test_a_new_run_does_not_overwrite_another(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(900, {'x': 900})
    with pytest.raises(
        ValueError, match=r"'step' must not lie before .* expected at least 900, got 5. Resume that run"
    ):
        store.save(5, {})
    assert store.load_latest() == (900, {'x': 900})


def test_another_config_is_refused_field_by_field(tmp_path):
    config = {'algo': {'name': 'ltos', 'lr': 1e-3, 'sizes': (128, 128)}, 'seed': 0, 'folder': Path('a')}
    CheckpointStore(tmp_path, fingerprint=config).save(1, {})
    store = CheckpointStore(tmp_path)
    assert store.load_latest(expect=config) == (1, {})
    assert store.load_latest() == (1, {})
    other = {'algo': {'name': 'ltos', 'lr': 2e-3, 'sizes': [128, 64]}, 'seed': 0, 'folder': Path('a'), 'new': True}
    with pytest.raises(ValueError, match='belongs to another config') as caught:
        store.load_latest(expect=other)
    message = str(caught.value)
    assert "'algo.lr' expected 0.002, got 0.001" in message
    assert "'algo.sizes' expected [128, 64], got [128, 128]" in message
    assert "'new' expected True, got '(absent)'" in message
    assert 'seed' not in message
    assert 'Resume with the config that it was saved with' in message


def test_an_option_that_is_not_a_number_is_equal_to_itself(tmp_path):
    nan = float('nan')
    CheckpointStore(tmp_path, fingerprint={'env': {'x': nan}}).save(1, {})
    assert CheckpointStore(tmp_path).load_latest(expect={'env': {'x': nan}}) == (1, {})
    with pytest.raises(ValueError, match=r"'env\.x' expected 1\.0, got nan"):
        CheckpointStore(tmp_path).load_latest(expect={'env': {'x': 1.0}})


def test_another_format_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, 'FORMAT', 99)
        CheckpointStore(tmp_path).save(1, {})
    with pytest.raises(ValueError, match=r'another format: expected format 1, got 99. Load it with the version'):
        CheckpointStore(tmp_path).load_latest()


@pytest.mark.parametrize(
    ('state', 'said'),
    [
        (
            {'a': {'b': [1, np.ones(2)]}},
            r"'state\['a'\]\['b'\]\[1\]' must be .*\(got ndarray\). Turn arrays into tensors",
        ),
        ({'a': np.float64(1)}, r"'state\['a'\]' must be .* \(got float64\)"),
        ({'rng': torch.Generator()}, r"'state\['rng'\]' must be .* \(got Generator\)"),
        ({'a': {(1, 2): 3}}, r"'state\['a'\]' needs str or int as keys \(got \(1, 2\), a tuple\)"),
    ],
)
def test_what_could_not_be_loaded_again_is_refused_when_saved(tmp_path, state, said):
    store = CheckpointStore(tmp_path)
    with pytest.raises(ValueError, match=said):
        store.save(1, state)
    assert files(tmp_path) == []


def test_loading_never_runs_code(tmp_path):
    CheckpointStore(tmp_path).save(1, OrderedDict(a=torch.nn.Parameter(torch.ones(2))))
    loaded = CheckpointStore(tmp_path).load_latest()[1]
    assert type(loaded) is OrderedDict
    assert torch.equal(loaded['a'], torch.ones(2))


def test_any_torch_reads_the_file(tmp_path):
    path = CheckpointStore(tmp_path).save(3, {'x': torch.arange(5)})
    assert torch.equal(torch.load(path, weights_only=True)['state']['x'], torch.arange(5))


def test_nothing_kept_makes_no_sense():
    with pytest.raises(ValueError, match="'keep' must be at least 1 \\(got 0\\)"):
        CheckpointStore('runs', keep=0)


def test_a_checkpoint_of_a_version_with_fewer_options_may_be_taken(tmp_path):
    store = CheckpointStore(tmp_path, fingerprint={'algorithm': {'gamma': 0.9}})
    store.save(1, {'a': 1})
    expect = {'algorithm': {'gamma': 0.9, 'invented_later': 0.5}}
    assert store.load_latest(expect, older=True) == (1, {'a': 1})
    with pytest.raises(ValueError, match=r"'algorithm.invented_later' expected 0.5, got '\(absent\)'"):
        store.load_latest(expect)
    with pytest.raises(ValueError, match=r"'algorithm.gamma' expected 0.8, got 0.9"):
        store.load_latest({'algorithm': {'gamma': 0.8}}, older=True)
    with pytest.raises(ValueError, match=r"'algorithm.gamma' expected '.absent.', got 0.9"):
        store.load_latest({'algorithm': {}}, older=True)
