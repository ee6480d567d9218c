"""`ltos bench` outside a checkout, and the verdicts of `benchmarks/same_weights.py`; its runs are no test."""

from __future__ import annotations

import pytest
import torch

import ltos_pyg
from benchmarks.same_weights import _digests, compare
from ltos_pyg.cli import main


def test_outside_a_checkout_bench_says_what_it_needs(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(ltos_pyg, '__file__', str(tmp_path / 'ltos_pyg' / '__init__.py'))
    assert main(['bench', 'replay']) == 1
    assert "'ltos bench' needs a checkout of the repository" in capsys.readouterr().err


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
