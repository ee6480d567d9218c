"""One thread and seeded initial weights; and the modules of this folder can be imported from the folders below it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)  # the graphs are small: threads would only wait for each other


@pytest.fixture(autouse=True)
def seeded_weights() -> Iterator[None]:
    """PyTorch draws initial weights from its global generator: seeded here, and left as it was found."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
