"""`check_env` is proved by environments that must fail it: one per clause, each by its message."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from checker_zoo import (
    GALLERY,
    Drift,
    Timed,
    Walk,
    broken,
)
from torch import Tensor
from torch_geometric.data import Batch

from ltos_pyg.data import Snapshot
from ltos_pyg.envs import JungleEnv, PrisonerEnv
from ltos_pyg.graph_env import (
    EnvCheckError,
    EnvCheckWarning,
    GraphEnv,
    GraphStep,
    SingleGraphEnv,
    SingleStep,
    VectorGraphEnv,
    check_env,
    fully_connected,
)
from ltos_pyg.graph_env.checker import CLAUSES


@broken(
    'horizon', r'step \d+: expected episodes truncated after 7 steps, .* truncated after [1-6]\.', 'one clock for all'
)
class OneClock(Drift):
    def restart(self, ended: Tensor) -> None:
        clock = self.clock
        super().restart(ended)
        self.clock = clock % 7


@broken('going on', r'step \d+: expected `graph` equal to `successor` wherever no episode ended, got other .*graph\.x')
class RestartsAll(Drift):
    def restart(self, ended: Tensor) -> None:
        super().restart(torch.ones_like(ended) if bool(ended.any()) else ended)


@broken('fixed_nodes', r'step 1: expected the nodes of the step before, in the same order, .* got other nodes\. Keep')
class Shuffles(Drift):
    def look(self) -> Batch:
        graph = super().look()
        graph.node_id = graph.node_id + int(self.clock.max())
        return graph


@broken('overwritten', r'step 1: expected batches returned before to stay unchanged, got other graph\.x\. Return new')
class Buffered(Drift):
    def __init__(self) -> None:
        super().__init__()
        self.buffer = torch.zeros(9, 2)

    def look(self) -> Batch:
        graph = super().look()
        graph.x = self.buffer.copy_(graph.x)
        return graph

    def step(self, action: Tensor) -> GraphStep:
        step = super().step(action)
        # within a step it keeps to the rules
        return replace(step, successor=Batch.from_data_list([one.clone() for one in step.successor.to_data_list()]))


@broken(
    'restart',
    r'at the ends: expected `successor` to be the end of an episode, .* is the same as `successor` in all \d+',
)
class HidesTheEnd(Drift):
    def step(self, action: Tensor) -> GraphStep:
        step = super().step(action)
        return replace(step, successor=step.graph, reward=self.reward(step.graph))


@broken('spec', r'make_env\(\): expected a GraphEnvSpec as `env.spec`, got dict\. Set it')
class NoSpec(Drift):
    def __init__(self) -> None:
        super().__init__()
        self.spec: Any = {'num_envs': 3}


broken('spec types', r'spec.num_features: expected an int, got 2\.0')(lambda: Drift(num_features=2.0))
broken('spec types', r"spec.feature_dtype: expected a torch.dtype, got 'float32'", 'dtype')(
    lambda: Drift(feature_dtype='float32')
)
broken('spec types', r'spec.symmetric: expected a bool, got 1', 'bool')(lambda: Drift(symmetric=1))


@broken('spec changed', r'after the play: expected the spec of the start, got other max_nodes\. Networks')
class Grows(Drift):
    def step(self, action: Tensor) -> GraphStep:
        self.spec = replace(self.spec, max_nodes=4)
        return super().step(action)


@broken('global randomness', r'step 1: expected the global generators left alone, got those of torch used or seeded')
class GlobalTorch(Drift):
    def step(self, action: Tensor) -> GraphStep:
        torch.rand(1)
        return super().step(action)


@broken(
    'global randomness', r'reset: expected the global generators left alone, got those of numpy used or seeded', 'numpy'
)
class GlobalNumpy(Drift):
    def reset(self, seed: int | None = None) -> Batch:
        np.random.seed(seed)  # noqa: NPY002 (the fault)
        return super().reset(seed)


@broken(
    'again',
    r'step 1: expected the same episodes from the same seed and actions, got other truncated\. reset\(seed\) must',
)
class KeepsItsClock(Drift):
    def __init__(self) -> None:
        super().__init__(horizon=None)
        self.age = 0

    def step(self, action: Tensor) -> GraphStep:
        step = super().step(action)
        self.age += 1
        return replace(step, truncated=step.truncated | ((self.age > 24) & ~step.terminated))


@broken('again', r'reset: expected the same episodes .* got other graph\.edge_attr, graph\.x', 'seed not used')
class IgnoresSeed(Drift):
    def reset(self, seed: int | None = None) -> Batch:
        return super().reset()


@broken('new object', r'reset: expected the same episodes .* got other .*graph\.x\. Draw everything from the seed')
class ByObject(Drift):
    made = 0

    def __init__(self) -> None:
        super().__init__()
        ByObject.made += 1
        self.number = ByObject.made

    def reset(self, seed: int | None = None) -> Batch:
        return super().reset(None if seed is None else seed + self.number)


@broken(
    'concurrent instance',
    r'step 1: expected the same episodes from the same seed and actions, got other .* on the object',
)
class SharedGenerator(Drift):
    shared = torch.Generator()

    def __init__(self) -> None:
        super().__init__()
        self.generator = self.shared


@broken(
    'concurrent instance',
    r'play: expected the same episodes as alone, got ValueError: one action per node\. Keep',
    'raises',
)
class OneAtATime(Drift):
    playing: list[GraphEnv] = []

    def reset(self, seed: int | None = None) -> Batch:
        self.playing[:] = [self]
        return super().reset(seed)

    def step(self, action: Tensor) -> GraphStep:
        if self.playing[0] is not self:
            raise ValueError('one action per node')
        return super().step(action)


@broken('wrong length', r'step\(8 actions for 9 nodes\): expected a ValueError, got RuntimeError: shape')
class WrongError(Drift):
    def step(self, action: Tensor) -> GraphStep:
        if action.numel() != 9:
            raise RuntimeError('shape')
        return super().step(action)


@broken('wrong length', r'step\(10 actions for 9 nodes\): expected a ValueError, got a step\. Compare', 'takes more')
class TakesMore(Drift):
    def step(self, action: Tensor) -> GraphStep:
        return super().step(action[:9])


@broken('after a wrong length', r'step 1: expected the same episodes .*\. Check the actions before any state changes')
class DrawsFirst(Drift):
    def step(self, action: Tensor) -> GraphStep:
        torch.rand(1, generator=self.generator)
        return super().step(action)


@broken(
    'plain state', r"state_dict\(\): expected tensors and plain containers, .* got 'state\['spec'\]' must be a dict, "
)
class SavesAnObject(Drift):
    def state_dict(self) -> dict[str, Any] | None:
        return {'spec': self.spec}


@broken('loaded graph', r'load_state_dict\(\): expected the batch that was to be acted on, got another one')
class LoadsAnother(Drift):
    def load_state_dict(self, state: dict[str, Any]) -> Batch:
        super().load_state_dict(state)
        return self.reset()


@broken('saved state', r'step \d+: expected the same episodes .*\. Save clocks, positions and generators, as copies')
class ForgetsTheClock(Drift):
    def load_state_dict(self, state: dict[str, Any]) -> Batch:
        return super().load_state_dict({**state, 'clock': state['clock'] * 0})


@broken('loaded graph', r'load_state_dict\(\): expected the batch that was to be acted on', 'state that moves on')
class AliasedState(Drift):
    def step(self, action: Tensor) -> GraphStep:
        before = self.place
        step = super().step(action)
        self.place = before.copy_(self.place)  # as in-place updates would
        return step

    def look(self) -> Batch:
        graph = super().look()
        graph.x = graph.x.clone()
        return graph


@pytest.mark.parametrize('name', GALLERY)
def test_a_broken_environment_fails_by_its_message(name):
    make_env, message = GALLERY[name]
    with pytest.raises(EnvCheckError, match=rf'^{message}') as caught:
        check_env(make_env, steps=24)
    assert f'[{caught.value.clause}]' in str(caught.value)


def test_every_clause_has_a_broken_environment():
    hung = {re.match(r'\\\[(.*?)\\\]', message)[1].replace('\\', '') for _, message in GALLERY.values()}
    assert hung == set(CLAUSES)


GOOD = {
    'by hand': Drift,
    'by hand, one episode': lambda: Drift(num_envs=1),
    'agents come and go': lambda: VectorGraphEnv(Walk, num_envs=3),
    'a time limit before the horizon': lambda: VectorGraphEnv(Timed, num_envs=3),
    'prisoner': lambda: PrisonerEnv(num_envs=3, horizon=15),
    'jungle': lambda: JungleEnv(num_envs=3, horizon=15),
    'jungle, in torch': lambda: JungleEnv(num_envs=2, num_agents=5, size=8, horizon=15, backend='torch'),
    'jungle, directed, nothing on the edges': lambda: JungleEnv(
        num_envs=2, num_agents=6, size=9, horizon=15, symmetric=False, edge_features=False
    ),
    'jungle, alone': lambda: JungleEnv(num_envs=2, num_agents=1, size=6, num_foods=2, horizon=15),
}


@pytest.mark.parametrize('name', GOOD)
def test_a_good_environment_passes_without_a_warning(name):  # warnings are errors here
    check_env(GOOD[name], steps=40)


# --- Warnings --------------------------------------------------------------------------------------------------------


class Endless(Drift):
    def __init__(self) -> None:
        super().__init__(horizon=None)

    def step(self, action: Tensor) -> GraphStep:
        self.clock = self.clock * 0
        step = super().step(action)
        return replace(step, terminated=step.terminated & False)

    def restart(self, ended: Tensor) -> None:
        pass


class OneSeed(Drift):
    def reset(self, seed: int | None = None) -> Batch:
        return super().reset(None if seed is None else 0)


class OneStartForAll(Drift):
    def start(self, ended: Tensor) -> None:
        super().start(ended)
        if bool(ended.all()):
            self.place = self.place[:1].expand_as(self.place)


class NeverStartsAnew(Drift):
    """Says that it terminated, and goes on."""

    def __init__(self) -> None:
        super().__init__(horizon=None)

    def step(self, action: Tensor) -> GraphStep:
        step = super().step(action)
        return replace(step, terminated=step.ended, truncated=step.truncated & False)

    def restart(self, ended: Tensor) -> None:
        pass


class Clock(SingleGraphEnv):
    """Its state at the horizon is that at the start, as the hour of a day."""

    num_features, num_actions, max_nodes, symmetric, horizon = 1, 2, 2, True, 6

    def start(self) -> Snapshot:
        self.hour = 0
        return self.look()

    def step(self, action: Tensor) -> SingleStep:
        self.hour = (self.hour + 1) % 6
        return SingleStep(self.look(), action.float())

    def look(self) -> Snapshot:
        return Snapshot(x=torch.full((2, 1), float(self.hour)), edge_index=fully_connected(2))


WARNED = {
    'does start() begin a new episode?': lambda: VectorGraphEnv(Clock, num_envs=4),
    'no episode ended within 30 steps': Endless,
    'seeds 0 and 1 gave the same episodes, but reset() without a seed': OneSeed,
    'all graphs of a batch start in the same state': OneStartForAll,
    '`graph` is the same as `successor` in all': NeverStartsAnew,
}


@pytest.mark.parametrize('message', WARNED)
def test_an_environment_with_a_weakness_is_warned_about(message):
    with pytest.warns(EnvCheckWarning, match=re.escape(message)):
        check_env(WARNED[message], steps=30)


def test_steps_must_be_given():
    with pytest.raises(ValueError, match=r"'steps' must be at least 1 \(got 0\)"):
        check_env(Drift, steps=0)


def test_the_checker_leaves_global_rng_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    check_env(Drift, steps=30)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()  # noqa: NPY002
