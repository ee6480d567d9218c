"""Options of an environment of one's own, read from its parameters."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ltos_pyg.scenarios.custom import scenario_of
from ltos_pyg.training.run_folder import RunFolder

if TYPE_CHECKING:
    from somewhere import Table


def maker(pair=(1, 2), mixed=(1, 'a'), far: float | None = None, rate: float = 1, table: Table | None = None):
    """Its parameters are read; it is never called."""


def test_options_are_the_simple_parameters_also_beside_one_that_cannot_be_read():
    fields = {field.name: field.type for field in dataclasses.fields(scenario_of(maker, 'maker').env_config)}
    assert fields == {'pair': tuple[int, ...], 'far': float | None, 'rate': float}


@dataclasses.dataclass(frozen=True)
class Weather:
    wind: float = 0.5


@dataclasses.dataclass(frozen=True)
class Options:
    weather: Weather = Weather()
    names: list[str] = dataclasses.field(default_factory=lambda: ['x'])
    sizes: tuple[int, ...] = (1, 2)


@dataclasses.dataclass(frozen=True)
class WithPath:
    where: Path = Path('here')


def with_options(config: Options = Options(), num_envs: int = 1):
    """Its config is read; it is never called."""


def with_path(config: WithPath = WithPath()):
    """As above."""


def test_options_within_options_come_back_from_the_run_folder_as_they_were(tmp_path):
    scenario = scenario_of(with_options, 'nested')
    config = scenario.config('dqn')
    config = dataclasses.replace(config, env=Options(Weather(0.25), ['y'], (3,)))
    RunFolder(tmp_path).write_config(config)
    assert RunFolder(tmp_path).config(scenario).env == config.env


def test_an_option_that_a_run_folder_cannot_hold_is_named():
    with pytest.raises(ValueError, match=r"field 'where' of the config of environment 'with_path' must be what JSON"):
        scenario_of(with_path, 'with_path')
