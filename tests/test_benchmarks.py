"""`ltos bench` outside a checkout, and the verdicts of `benchmarks/same_weights.py`; its runs are no test."""

from __future__ import annotations

import csv
import json

import pytest
import torch

import benchmarks
import ltos_pyg
from benchmarks import scale
from benchmarks.same_weights import _digests, compare
from ltos_pyg.cli import main
from ltos_pyg.envs import PrisonerEnv


def test_outside_a_checkout_bench_says_what_it_needs(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(ltos_pyg, '__file__', str(tmp_path / 'ltos_pyg' / '__init__.py'))
    assert main(['bench', 'replay']) == 1
    assert "'ltos bench' needs a checkout of the repository" in capsys.readouterr().err


def test_rows_are_left_in_a_folder_with_the_picture_of_how_they_grow(monkeypatch, tmp_path, capsys):
    """Tiny graphs, measured in this process."""
    rows = []
    for world, sizes in (('jungle', (5, 10)), ('traffic', (1, 4))):
        for agents in sizes:
            make = (lambda: scale.jungle(agents)) if world == 'jungle' else lambda: PrisonerEnv()  # noqa: B023
            edges, found = scale._measure(make, repeat=False)
            assert (set(found), edges > 0) == (set(scale.PARTS), True)
            rows += scale._rows(world, agents, edges, {part: (took, 1.0) for part, (took, _) in found.items()}, rows)
    assert all(row['value'] > 0 for row in rows)
    monkeypatch.setattr(benchmarks, 'run_benchmarks', lambda names: rows)
    assert main(['bench', 'scale', '--out', str(tmp_path / 'out')]) == 0
    assert json.loads((tmp_path / 'out' / 'bench.json').read_text()) == rows
    with (tmp_path / 'out' / 'bench.csv').open(newline='') as file:
        assert [row['name'] for row in csv.DictReader(file)] == [row['name'] for row in rows]
    assert (tmp_path / 'out' / 'scale.png').stat().st_size > 10_000
    assert 'jungle 10: LToS update' in capsys.readouterr().out


def test_long_benchmarks_run_only_where_named(monkeypatch):
    ran = []
    monkeypatch.setattr(benchmarks, 'import_module', lambda name: ran.append(name) or _Silent())
    assert benchmarks.run_benchmarks() == []
    assert 'benchmarks.nn' in ran
    assert not {'benchmarks.gpu', 'benchmarks.scale', 'benchmarks.ranks'} & set(ran)
    benchmarks.run_benchmarks(['scale'])
    assert ran[-1] == 'benchmarks.scale'


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu_its_benchmark_says_what_it_needs(capsys):
    assert main(['bench', 'gpu']) == 1
    assert "'ltos bench gpu' needs a GPU, and PyTorch finds none that it can use here" in capsys.readouterr().err


class _Silent:
    def __getattr__(self, name):
        return list


def weights(tmp_path, name, **tensors):
    folder = tmp_path / name
    folder.mkdir()
    state = {'algorithm': {'modules': {'network': tensors}, 'optimizers': {'step': torch.rand(3)}}}
    torch.save({'state': state}, folder / 'step_000000001.pt')
    return _digests(folder)


@pytest.mark.parametrize(
    ('change', 'same', 'message'),
    [
        ({}, True, 'same (2 tensors)'),
        ({'a': torch.tensor([1.0, -0.0])}, False, 'DIFFERENT: 1 of 2 tensors, first network.a (2,) torch.float32'),
        ({'a': torch.tensor([[1.0, 0.0]])}, False, 'DIFFERENT: 1 of 2 tensors'),
        ({'a': None, 'c': torch.tensor([1.0, 0.0])}, True, 'some under other names'),
        ({'a': None, 'c': torch.tensor([1.0, 0.5])}, False, "1 gone ['network.a'], 1 new ['network.c']"),
    ],
)
def test_weights_are_compared_to_the_bit(tmp_path, change, same, message):
    tensors = {'a': torch.tensor([1.0, 0.0]), 'b': torch.arange(3)}
    base = weights(tmp_path, 'base', **tensors)
    other = weights(
        tmp_path, 'other', **{name: value for name, value in (tensors | change).items() if value is not None}
    )
    verdict, text = compare(base, other)
    assert (verdict, message in text) == (same, True), text


def test_a_run_that_failed_is_no_same():
    assert compare({}, 'ValueError: no') == (False, 'FAILED at other: ValueError: no')
