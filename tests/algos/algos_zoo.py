"""What the tests of all value methods share: small games, a loop that trains, and tools to compare states."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from ltos_pyg.algos import ALGORITHMS
from ltos_pyg.data import Snapshot, batch_snapshots
from ltos_pyg.envs import JungleEnv
from ltos_pyg.graph_env import GraphEnv, SingleGraphEnv, SingleStep, VectorGraphEnv, fully_connected

SMALL: dict[str, Any] = {
    'total_steps': 400,
    'n_step': 2,
    'batch_size': 4,
    'lr': 1e-2,
    'replay_size': 200,
    'learning_starts': 8,
    'train_freq': 3.0,
    'hidden_channels': 16,
    'encoder_channels': (16,),
    'num_layers': 1,
    'heads': 2,
}
HIGH: dict[str, Any] = {
    'phi_lr': 1e-2,
    'phi_every': 2,
    'phi_starts': 0.0,
    'phi_channels': 8,
    'search_channels': 8,
    'candidates': 4,
    'hold_steps': 3,
}
GRADIENT = {'objective': 'gradient', 'search_channels': 64, 'candidates': 12}  # without the options of the search
VARIANTS: dict[str, dict[str, Any]] = {
    'dqn': {},
    'dgn': {},
    'dgn neighbourhood': {'reward': 'neighbourhood'},
    'fixed_ltos node': {'critic': 'node'},
    'fixed_ltos edge': {'critic': 'edge'},
    'ltos search': {'objective': 'search'},
    'ltos gradient': GRADIENT,
    'ltos_edge search': {'objective': 'search'},
    'ltos_edge gradient': GRADIENT,
}
LTOS = [name for name in VARIANTS if name.startswith('ltos')]
SEARCH = [name for name in LTOS if 'search' in name]
SHARING = [name for name in VARIANTS if 'ltos' in name]  # methods with sharing weights


class Crowd(SingleGraphEnv):
    """Agents come and go, down to one and at last to none, and each has actions that it may not take."""

    num_features, num_actions, max_nodes, horizon = 2, 4, 4, 6
    fixed_nodes, symmetric, has_action_mask = False, True, True

    def start(self) -> Snapshot:
        self.members = torch.arange(1 + int(torch.randint(4, (1,), generator=self.generator)))
        return self.look()

    def step(self, action: Tensor) -> SingleStep:
        assert self.mask.gather(1, action.unsqueeze(1)).all(), 'an illegal action was taken'
        here = torch.rand(4, generator=self.generator) < 0.7
        reward = action.float() - self.members
        self.members = here.nonzero().flatten()
        return SingleStep(self.look(), reward, terminated=len(self.members) == 0)

    def look(self) -> Snapshot:
        n = len(self.members)
        self.mask = torch.rand(n, 4, generator=self.generator) < 0.5
        self.mask[:, 1] = True  # waiting is always legal
        self.mask[:, 3] = False  # and flying never
        x = torch.rand(n, 2, generator=self.generator)
        return Snapshot(x=x, edge_index=fully_connected(n), node_id=self.members, action_mask=self.mask)


class OneShot(SingleGraphEnv):
    """One step, after which no agent is left."""

    num_features, num_actions, max_nodes, fixed_nodes, symmetric = 1, 2, 2, False, True

    def start(self) -> Snapshot:
        return Snapshot(x=torch.ones(2, 1), edge_index=fully_connected(2), node_id=torch.arange(2))

    def step(self, action: Tensor) -> SingleStep:
        empty = Snapshot(x=torch.ones(0, 1), edge_index=fully_connected(0), node_id=torch.arange(0))
        return SingleStep(empty, action.float(), terminated=True)


class Payday(SingleGraphEnv):
    """Two agents with rewards independent of their actions."""

    num_features, num_actions, max_nodes, symmetric, horizon = 1, 2, 2, True, 3
    pay, sight = 1.0, 1.0

    def start(self) -> Snapshot:
        return Snapshot(x=torch.full((2, 1), self.sight), edge_index=fully_connected(2))

    def step(self, action: Tensor) -> SingleStep:
        return SingleStep(self.start(), torch.full((2,), self.pay))


class Isolated(SingleGraphEnv):
    """A fixed number of agents without edges; with none, every graph is empty."""

    num_features, num_actions, max_nodes, horizon = 2, 3, 3, 5
    fixed_nodes, edge_dim, symmetric = False, 1, True
    agents = 3

    def start(self) -> Snapshot:
        x = torch.rand(self.agents, 2, generator=self.generator)
        no_edges = torch.zeros(2, 0, dtype=torch.int64)
        return Snapshot(x=x, edge_index=no_edges, edge_attr=torch.zeros(0, 1), node_id=torch.arange(self.agents))

    def step(self, action: Tensor) -> SingleStep:
        return SingleStep(self.start(), action.float())


def isolated(agents: int) -> GraphEnv:
    return VectorGraphEnv(type('Isolated', (Isolated,), {'agents': agents}), 4)


def jungle(num_envs: int = 4) -> GraphEnv:
    return JungleEnv(num_envs=num_envs, num_agents=5, num_foods=4, size=8, horizon=12)


def crowd(num_envs: int = 4) -> GraphEnv:
    return VectorGraphEnv(Crowd, num_envs)


def make(variant: str, env: GraphEnv, seed: int = 0, **options: Any) -> Any:
    name = variant.split()[0]
    maker, config = ALGORITHMS[name]
    high = HIGH if name.startswith('ltos') else {}
    small = {name: value for name, value in {**SMALL, **high}.items() if name in config.__dataclass_fields__}
    return maker(env.spec, config(**{**small, **VARIANTS.get(variant, {}), **options}), seed)


class Loop:
    """The least loop that trains."""

    def __init__(self, algo: Any, env: GraphEnv, seed: int = 0) -> None:
        self.algo, self.env, self.graph = algo, env, env.reset(seed)
        self.metrics: list[dict[str, float]] = []

    def until(self, updates: int) -> Loop:
        while self.algo.updates < updates:
            decision = self.algo.act(self.graph, explore=True)
            step = self.env.step(decision.action)
            self.algo.observe(self.graph, decision, step)
            self.graph = step.graph
            for _ in range(self.algo.due_updates):
                self.metrics.append(self.algo.update())
        return self


def trained(variant: str, updates: int = 6, make_env: Any = jungle, **options: Any) -> Any:
    env = make_env()
    return Loop(make(variant, env, **options), env).until(updates).algo


def sample(algo: Any) -> Any:
    return algo.replay.sample(8, torch.Generator().manual_seed(5), algo.config.n_step, algo.config.gamma)


def flat(value: Any, name: str = '') -> dict[str, Any]:
    """Nested containers as one dict from path to leaf."""
    if isinstance(value, dict):
        parts = [flat(item, f'{name}.{key}') for key, item in value.items()]
    elif isinstance(value, list | tuple):
        parts = [flat(item, f'{name}[{i}]') for i, item in enumerate(value)]
    else:
        return {name: value.clone() if isinstance(value, Tensor) else value}
    return dict(itertools.chain.from_iterable(part.items() for part in parts))


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Names under which two flat states differ in any bit."""
    same = {k for k in a.keys() & b.keys() if (torch.equal(a[k], b[k]) if isinstance(a[k], Tensor) else a[k] == b[k])}
    return sorted((a.keys() | b.keys()) - same)


def weights(*modules: torch.nn.Module) -> dict[str, Any]:
    return flat([module.state_dict() for module in modules])


def chance(algo: Any) -> dict[str, Any]:
    """The states of all random streams of a method."""
    return flat(algo.state_dict()['rng'])


def without_edges(graph: Any) -> Any:
    nodes = graph.ptr.diff()
    edges = {'edge_index': graph.edge_index[:, :0], 'edge_attr': graph.edge_attr[:0]}
    return batch_snapshots(nodes, torch.zeros_like(nodes), x=graph.x, node_id=graph.node_id, **edges)
