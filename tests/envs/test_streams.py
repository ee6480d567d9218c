"""The streams of chance against the published generator, and each other."""

from __future__ import annotations

import pytest
import torch

from ltos_pyg.envs.streams import draw, draw_rows, first_streams


def splitmix64(state: int, count: int) -> list[int]:
    """As in the paper, with Python's unbounded integers."""
    out = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        out.append(z ^ (z >> 31))
    return out


def test_it_is_splitmix64() -> None:
    assert splitmix64(1234567, 2) == [6457827717110365317, 3203168211198807973]  # known numbers of the generator
    streams = torch.tensor([1234567, -5, 2**62])
    expected = [[n >> 32 for n in splitmix64(state % 2**64, 5)] for state in streams.tolist()]
    # A bound of 2^31 keeps the upper 31 of 32 bits.
    assert torch.stack([draw(streams, 2**31) for _ in range(5)], 1).tolist() == [[n >> 1 for n in e] for e in expected]


def test_numbers_lie_below_the_bound_and_are_even() -> None:
    streams = first_streams(0, 7000, 'env')
    counts = draw(streams, 7).bincount(minlength=7)
    assert counts.numel() == 7
    assert (counts - 1000).abs().max() < 4 * (7000 * 6 / 49) ** 0.5


def test_a_row_is_one_draw_after_another() -> None:
    alone, together = first_streams(0, 5, 'env'), first_streams(0, 5, 'env')
    bounds = [3, 2**31, 10, 1]
    expected = torch.stack([draw(alone, bound) for bound in bounds], 1)
    assert torch.equal(draw_rows(together, torch.tensor(bounds), 4), expected)
    assert torch.equal(together, alone)


def test_streams_depend_on_seed_game_and_place_alone() -> None:
    assert torch.equal(first_streams(3, 5, 'a'), first_streams(3, 9, 'a')[:5])
    others = [first_streams(3, 5, 'a'), first_streams(4, 5, 'a'), first_streams(3, 5, 'b')]
    assert torch.cat(others).unique().numel() == 15


@pytest.mark.parametrize('seed', [-1, 1.0, None, True])
def test_bad_seeds_are_refused(seed: object) -> None:
    with pytest.raises(ValueError, match="'seed' must be an integer of at least 0"):
        first_streams(seed, 1, 'a')  # type: ignore[arg-type]
