"""For all tests: a checkout's `benchmarks` can be imported, and what one test registers does not reach the next."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import settings

from ltos_pyg import registry

settings.register_profile('machine', deadline=None)  # how long a case takes is no property of the code
settings.load_profile('machine')
sys.path.append(str(Path(__file__).resolve().parents[1]))


@pytest.fixture(autouse=True)
def registry_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    for name in ('_scenarios', '_algorithms'):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
