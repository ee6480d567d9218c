from __future__ import annotations

import pytest
import torch

from ltos_pyg.data import Rollout


def test_what_was_pushed_is_read_in_order():
    rollout = Rollout(2)
    for t in range(2):
        assert not rollout.full
        rollout.push(x=torch.full((3,), float(t)), ended=torch.tensor(t == 1))
    assert rollout.full
    assert len(rollout) == 2
    read = rollout.read()
    assert read['x'].tolist() == [[0.0] * 3, [1.0] * 3]
    assert read['ended'].tolist() == [False, True]
    rollout.clear()
    assert len(rollout) == 0


def test_a_saved_segment_continues():
    rollout, other = Rollout(3), Rollout(3)
    rollout.push(x=torch.ones(2))
    other.push(x=torch.zeros(2))
    other.load_state_dict(rollout.state_dict())
    rollout.push(x=torch.zeros(2))  # what was saved stays as it was
    assert other.read()['x'].tolist() == [[1.0, 1.0]]


def test_misuse_is_refused():
    with pytest.raises(ValueError, match=r"'length' must be at least 1 \(got 0\)"):
        Rollout(0)
    rollout = Rollout(2)
    with pytest.raises(ValueError, match='the segment is empty'):
        rollout.read()
    rollout.push(x=torch.ones(2))
    with pytest.raises(ValueError, match=r"'step' must have the names and shapes .* got \{'x': \(3,\)\}"):
        rollout.push(x=torch.ones(3))
    with pytest.raises(ValueError, match=r"'step' must have the names"):
        rollout.push(y=torch.ones(2))
    rollout.push(x=torch.ones(2))
    with pytest.raises(ValueError, match='has its 2 steps already'):
        rollout.push(x=torch.ones(2))
