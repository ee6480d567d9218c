import builtins
import errno
import json
import math
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
import torch

from ltos_pyg.training.logging import MetricsLogger, TensorBoardSink, WandbSink, read_metrics


class ListSink:
    def __init__(self):
        self.rows, self.closed = [], 0

    def write(self, step, metrics):
        self.rows.append((step, dict(metrics)))

    def close(self):
        self.closed += 1


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'run' / 'metrics.jsonl'


def log_steps(path, steps, resume_step=None):
    with MetricsLogger(path, resume_step) as logger:
        for step in steps:
            logger.log(step, **{'eval/return': step / 10, 'loss': 1.0})


def test_rows_are_read_as_they_were_logged(path):
    with MetricsLogger(path) as logger:
        logger.log(0, loss=0.1, count=3)
        logger.log(10, **{'eval/return': torch.tensor(0.5), 'std': np.float32(0.25), 'n': torch.tensor([7])})
        assert len(read_metrics(path)) == 2  # flushed while the run goes on
    assert read_metrics(path) == [
        {'step': 0, 'loss': 0.1, 'count': 3},
        {'step': 10, 'eval/return': 0.5, 'std': 0.25, 'n': 7.0},
    ]
    assert type(read_metrics(path)[0]['count']) is int


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf, torch.tensor(math.nan), np.float32('inf')])
def test_what_json_cannot_say_becomes_null(path, value):
    with MetricsLogger(path) as logger:
        logger.log(1, bad=value, good=1.5)

    def refuse(name):
        raise AssertionError(f'{name} is not JSON')

    row = json.loads(path.read_text(), parse_constant=refuse)
    assert row == {'step': 1, 'bad': None, 'good': 1.5}


@pytest.mark.parametrize('value', [torch.ones(2), None, 'high', [1.0]])
def test_a_metric_that_is_no_number_is_refused_and_nothing_is_written(path, value):
    with MetricsLogger(path) as logger, pytest.raises(ValueError, match=r"metric 'loss' must be one number \(got"):
        logger.log(1, loss=value)
    assert path.read_bytes() == b''


def test_a_resumed_run_has_no_row_twice(path):
    log_steps(path, range(0, 60, 10))
    log_steps(path, range(40, 100, 10), resume_step=30)
    assert [row['step'] for row in read_metrics(path)] == list(range(0, 100, 10))


def test_a_run_cut_at_any_byte_ends_in_the_same_file(path):
    log_steps(path, range(0, 60, 10))
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        complete = whole[:size].count(b'\n') + whole.startswith(whole[:size] + b'\n')
        assert len(read_metrics(path)) == complete
        half_a_line = size > 0 and whole[size - 1 : size] != b'\n' and whole[size : size + 1] != b'\n'
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            last = 10 * (complete - 1)
            log_steps(path, range(last + 10, 60, 10), resume_step=last)
        assert path.read_bytes() == whole
        assert [str(w.message)[:34] for w in caught] == ['dropped an unfinished last line of'] * half_a_line
    assert [p.name for p in path.parent.iterdir()] == ['metrics.jsonl']


def test_zeros_after_a_power_cut_are_dropped(path):
    log_steps(path, [0, 10])
    with path.open('ab') as file:
        file.write(bytes(500))
    assert len(read_metrics(path)) == 2
    with pytest.warns(UserWarning, match='unfinished last line'):
        log_steps(path, [20], resume_step=10)
    assert [row['step'] for row in read_metrics(path)] == [0, 10, 20]


@pytest.mark.parametrize(
    ('line', 'said'),
    [
        (b'{"step": 1, "loss"', 'line 2 is not valid JSON'),
        (b'{"step": 1, "loss": NaN}', r'line 2 is not valid JSON \(NaN is not JSON\)'),
        (b'\xff\xfe', 'line 2 is not valid JSON'),
        (b'', 'line 2 is not valid JSON'),
        (b'[1, 2]', "line 2 must be a JSON object with an integer 'step'"),
        (b'{"loss": 1}', "line 2 must be a JSON object with an integer 'step'"),
        (b'{"step": true}', "line 2 must be a JSON object with an integer 'step'"),
    ],
)
def test_garbage_in_the_middle_is_named_by_its_line_and_left_alone(path, line, said):
    log_steps(path, [0])
    content = path.read_bytes() + line + b'\n' + b'{"step": 5}\n'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_metrics(path)
    with pytest.raises(ValueError, match=said):
        MetricsLogger(path, resume_step=5)
    assert path.read_bytes() == content


def test_a_new_run_does_not_add_to_another(path):
    log_steps(path, [0])
    with pytest.raises(ValueError, match=r'already holds metrics: .* Resume that run, or choose another folder'):
        MetricsLogger(path)
    assert len(read_metrics(path)) == 1


def test_a_full_disk_leaves_no_half_row(path):
    code = """
        import resource, sys
        from ltos_pyg.training.logging import MetricsLogger
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        with MetricsLogger(sys.argv[1]) as logger:
            for step in range(5):
                try:
                    logger.log(step, value=0.123456789)
                except OSError as error:
                    print(error.errno, error)
    """
    done = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(code), str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f'{errno.EFBIG} [Errno') and 'cannot log to' in line for line in lines)
    assert [row['step'] for row in read_metrics(path)] == [0, 1]
    assert path.read_bytes().endswith(b'}\n')


def test_sinks_get_the_same_numbers_and_are_closed_once(path):
    sink = ListSink()
    with MetricsLogger(path, sinks=[sink]) as logger:
        logger.log(3, loss=torch.tensor(2.0), bad=math.inf)
        logger.close()
    assert sink.rows == [(3, {'loss': 2.0, 'bad': math.inf})]
    assert sink.closed == 1


def test_tensorboard_gets_every_scalar(path, tmp_path):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    folder = tmp_path / 'tb'
    with MetricsLogger(path, sinks=[TensorBoardSink(folder)]) as logger:
        for step in (0, 10, 20):
            logger.log(step, **{'eval/return': step / 10})
    with MetricsLogger(path, resume_step=10, sinks=[TensorBoardSink(folder, resume_step=10)]) as logger:
        logger.log(20, **{'eval/return': 5.0})
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars('eval/return')] == [(0, 0.0), (10, 1.0), (20, 5.0)]


@pytest.mark.parametrize(
    ('sink', 'module', 'extra'),
    [(TensorBoardSink, 'torch.utils.tensorboard', 'tensorboard'), (WandbSink, 'wandb', 'wandb')],
)
def test_a_sink_without_its_package_says_what_to_install(tmp_path, monkeypatch, sink, module, extra):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == module:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', without)
    with pytest.raises(ImportError, match=rf"pip install 'ltos_pyg\[{extra}\]'"):
        sink(tmp_path)


def test_importing_the_logger_loads_no_sink():
    code = 'import sys, ltos_pyg.training.logging; print({"tensorboard", "wandb"} & set(sys.modules))'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout == 'set()\n'
