"""A scenario: an environment with default options for each algorithm, and its pictures."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ltos_pyg import registry
from ltos_pyg.graph_env import GraphEnv
from ltos_pyg.training.config import MakeEnv, RunConfig, TrainConfig, check_device
from ltos_pyg.viz.pictures import Pictures, RenderPictures

Options = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A named environment with the default options of its runs."""

    name: str
    env_config: type  # the environment's options, a dataclass
    make: Callable[[Any, int, str], GraphEnv]  # from (environment options, number of graphs, device)
    primary_metric: str = 'return'  # the metric by which policies are compared
    lower_is_better: bool = False  # of that metric
    train: Options = field(default_factory=dict)
    algorithm: Options = field(default_factory=dict)  # for every algorithm that has them
    # (algorithm, preset) -> options of the algorithm; 'num_envs' is the loop's, and 'env' holds the environment's
    presets: Mapping[tuple[str, str], Options] = field(default_factory=dict)
    pictures: Pictures = field(default_factory=RenderPictures)
    make_to_watch: Callable[[Any, str], GraphEnv] | None = None  # from (options, device), for drawing; None: make
    check: bool = False  # whether the environment is checked against the contract before a run
    module: str | None = None  # the plug-in that it comes from
    source: Any = None  # the class or function that it was made from, if any

    def config(self, algo: str, preset: str = 'default') -> RunConfig:
        """The options of a preset.

        Raises:
            ValueError: If the algorithm or preset is unknown (lists the known ones), or one of its options is.
        """
        entry = registry.algorithm(algo)
        known = sorted({'default', *(p for a, p in self.presets if a == algo)})
        if preset not in known:
            raise ValueError(f"unknown preset '{preset}' of {algo} on {self.name}. Choose one of: {', '.join(known)}")
        names = _fields(entry.config)
        chosen = dict(self.presets.get((algo, preset), {}))
        train = dict(self.train) | ({'num_envs': chosen.pop('num_envs')} if 'num_envs' in chosen else {})
        chosen_env = chosen.pop('env', {})
        where = f"preset '{preset}' of {algo} on {self.name}"
        _check_options(f"the options for algorithms of scenario '{self.name}'", self.algorithm, _any_algorithm(names))
        _check_options(where, chosen, names)
        _check_options(f"the options for training of scenario '{self.name}'", train, _fields(TrainConfig))
        _check_options(where, chosen_env, _fields(self.env_config))
        options = {k: v for k, v in self.algorithm.items() if k in names} | chosen
        modules = [module for module in (self.module, entry.module) if module not in (None, '__main__')]
        return RunConfig(
            scenario=self.name,
            algo=algo,
            preset=preset,
            env=self.env_config(**chosen_env),
            algorithm=entry.config(**options),
            train=TrainConfig(**train),
            imports=tuple(dict.fromkeys(str(module) for module in modules)),
        )

    def make_env(self, config: RunConfig) -> MakeEnv:
        """Makes the environment of a run with any number of graphs."""
        check_device(config.train.device)
        return lambda num_envs: self.make(config.env, num_envs, config.train.device)

    def make_watched(self, config: RunConfig) -> GraphEnv:
        """The environment of a run with one graph, to be drawn."""
        check_device(config.train.device)
        if self.make_to_watch is not None:
            return self.make_to_watch(config.env, config.train.device)
        return self.make(config.env, 1, config.train.device)


def _fields(cls: type) -> set[str]:
    return {f.name for f in dataclasses.fields(cls)}


def _any_algorithm(names: Iterable[str]) -> set[str]:
    """The options of all algorithms."""
    return set(names).union(*(_fields(registry.algorithm(name).config) for name in registry.algorithm_names()))


def _check_options(where: str, options: Iterable[str], known: set[str]) -> None:
    unknown = sorted(set(options) - known)
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, 1)
        raise ValueError(
            f'{where} has unknown options: {", ".join(unknown)}'
            + (f". Did you mean '{near[0]}'?" if near else f'. Choose from: {", ".join(sorted(known))}')
        )
