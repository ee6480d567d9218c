"""Options of an environment of one's own, read from its parameters."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from ltos_pyg.scenarios.custom import scenario_of

if TYPE_CHECKING:
    from somewhere import Table


def maker(pair=(1, 2), mixed=(1, 'a'), far: float | None = None, rate: float = 1, table: Table | None = None):
    """Its parameters are read; it is never called."""


def test_options_are_the_simple_parameters_also_beside_one_that_cannot_be_read():
    fields = {field.name: field.type for field in dataclasses.fields(scenario_of(maker, 'maker').env_config)}
    assert fields == {'pair': tuple[int, ...], 'far': float | None, 'rate': float}
