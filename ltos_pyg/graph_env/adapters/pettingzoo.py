"""Any PettingZoo parallel environment as a graph environment, with a rule that defines the neighbours."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ltos_pyg.data.snapshot import Snapshot
from ltos_pyg.graph_env.neighbours import fully_connected, k_nearest
from ltos_pyg.graph_env.vector import SingleGraphEnv, SingleStep, VectorGraphEnv

Agent = Any  # PettingZoo names agents by strings, mostly
EdgeFunction = Callable[[dict[Agent, Any], list[Agent]], Tensor]  # (observations, agents) -> edge_index

_OWN_DTYPES = {np.dtype(np.int8): torch.int8, np.dtype(np.uint8): torch.uint8}  # all others become float32


class NeighbourRule(ABC):
    """Defines which agents are neighbours. ``symmetric`` and :meth:`max_edges` go into the spec."""

    symmetric: bool = False
    flattened: ClassVar[bool] = False  # whether :meth:`edges` gets flattened observations

    @abstractmethod
    def edges(self, env: Any, agents: list[Agent], observations: dict[Agent, Any]) -> Tensor:
        """Edge indices (2, E) between the positions of ``agents``; row 0 sends, row 1 receives.

        ``env`` is the PettingZoo environment, for state that is not in the observations. ``observations`` are as the
        environment returned them, without the action mask; flattened if :attr:`flattened`.
        """

    def max_edges(self, num_agents: int) -> int:
        """Most edges among ``num_agents`` agents."""
        return num_agents * (num_agents - 1)


class FullyConnected(NeighbourRule):
    """All living agents are neighbours of each other."""

    symmetric = True

    def edges(self, env: Any, agents: list[Agent], observations: dict[Agent, Any]) -> Tensor:
        return fully_connected(len(agents))


class KNearest(NeighbourRule):
    """Each agent receives messages from the ``k`` nearest others; see :func:`~ltos_pyg.graph_env.k_nearest`.

    Args:
        k (int): Number of senders for each agent.
        position: Where an agent is: a slice of its flattened observation (``slice(2, 4)`` in MPE), or a function
            ``(env, agent) -> coordinates`` for positions that are not in the observation.
        symmetric (bool): If ``True``, two agents are connected in both directions if either is among the other's ``k``
            nearest.
    """

    flattened = True

    def __init__(
        self, k: int, position: slice | Callable[[Any, Agent], Sequence[float]], symmetric: bool = True
    ) -> None:
        if k < 1:
            raise ValueError(f"'k' must be at least 1 (got {k})")
        self.k = k
        self.position = position
        self.symmetric = symmetric

    def edges(self, env: Any, agents: list[Agent], observations: dict[Agent, Any]) -> Tensor:
        if not agents:
            return fully_connected(0)
        if isinstance(self.position, slice):
            seen = [np.ravel(observations[agent]) for agent in agents]
            for agent, row in zip(agents, seen, strict=True):
                if (self.position.stop or 0) > len(row) or len(row[self.position]) == 0:
                    raise ValueError(
                        f"'position' must lie within the observation: agent {agent!r} has {len(row)} values (got "
                        f'{self.position})'
                    )
            rows = [row[self.position] for row in seen]
        else:
            rows = [np.ravel(self.position(env, agent)) for agent in agents]
        return k_nearest(torch.from_numpy(np.stack(rows).astype(np.float64)), self.k, self.symmetric)

    def max_edges(self, num_agents: int) -> int:
        nearest_edges = num_agents * min(self.k, num_agents - 1)
        return min(2 * nearest_edges, num_agents * (num_agents - 1)) if self.symmetric else nearest_edges


class _OwnRule(NeighbourRule):
    def __init__(self, function: EdgeFunction) -> None:
        self.function = function

    def edges(self, env: Any, agents: list[Agent], observations: dict[Agent, Any]) -> Tensor:
        return torch.as_tensor(self.function(observations, agents), dtype=torch.int64)


class PettingZooEnv(SingleGraphEnv):
    """One PettingZoo parallel environment as a :class:`~ltos_pyg.graph_env.SingleGraphEnv`.

    Nodes are the living agents in the order of ``possible_agents``, and ``node_id`` is an agent's place there. Agents
    map to nodes as follows:

    - an agent terminates while others continue: it gets its last reward and is missing from the successor, so its
      target does not bootstrap;
    - an agent is truncated while others continue: the same. A graph environment has only one time limit per episode, so
      the value after an agent's own time limit is lost;
    - an agent enters: it is in the successor, and acts from then on. It must be one of ``possible_agents``;
    - no agent is left: the episode ends, ``truncated`` if any of the last agents was truncated (the successor then
      holds those agents, to bootstrap from) and ``terminated`` if all terminated.

    An agent both terminated and truncated counts as terminated. Each episode is reset with a seed drawn from
    :attr:`generator`, so episodes are reproducible even where ``reset(seed=None)`` seeds from the operating system.

    Args:
        make_env: Makes the PettingZoo environment.
        neighbours: A :class:`NeighbourRule`, or a function ``(observations, agents) -> edge_index``. An attribute
            ``symmetric = True`` on the function goes into the spec.
        observation_sizes: What to do if observation sizes differ: ``'pad'`` appends zeros up to the
            largest, ``'error'`` refuses.
        fixed_nodes (bool): Declares that no agent enters or leaves during an episode.
        horizon (int, optional): Truncate episodes after this many steps, in addition to the environment's own time
            limit.

    Observations may be of any space that Gymnasium can flatten. They are flattened to float32, or stay int8 or uint8 if
    all agents observe that dtype. Actions must be ``Discrete``; where agents have different numbers of actions, the
    action mask excludes the actions that an agent lacks.

    Action masks are read from either place where PettingZoo environments have them: the entry ``action_mask`` of a
    ``Dict`` observation (all other entries are what the agent observes), or ``infos[agent]['action_mask']``. To find
    out whether the infos have masks, the environment is reset once when it is wrapped.

    Raises:
        ValueError: If the environment is not a parallel one, or its spaces do not fit.
        ImportError: If PettingZoo is not installed.
    """

    def __init__(
        self,
        make_env: Callable[[], Any],
        neighbours: NeighbourRule | EdgeFunction | None = None,
        *,
        observation_sizes: Literal['pad', 'error'] = 'pad',
        fixed_nodes: bool = False,
        horizon: int | None = None,
    ) -> None:
        if observation_sizes not in ('pad', 'error'):
            raise ValueError(f"'observation_sizes' must be 'pad' or 'error' (got {observation_sizes!r})")
        self.env = make_env()
        _check_parallel(self.env)
        self.rule = _as_rule(neighbours)
        self.possible_agents = list(self.env.possible_agents)
        self._number = {agent: i for i, agent in enumerate(self.possible_agents)}
        self._observers = {agent: _Observer(agent, self.env) for agent in self.possible_agents}
        self._first_action, self._num_actions = _read_actions(self.env, self.possible_agents)
        self._agents: list[Agent] = []  # agents that act next, in node order
        self._last_seen: dict[Agent, Any] = {}

        sizes = {agent: observer.size for agent, observer in self._observers.items()}
        if observation_sizes == 'error' and len(set(sizes.values())) > 1:
            raise ValueError(
                f'Agents must observe equally many values (got {sizes}). '
                f"Wrap the environment, or append zeros with observation_sizes='pad'."
            )
        counts = set(self._num_actions.values())
        dtypes = {observer.dtype for observer in self._observers.values()}
        self.num_features = max(sizes.values())
        self.num_actions = max(counts)
        self.max_nodes = len(self.possible_agents)
        self.max_edges = self.rule.max_edges(self.max_nodes)
        self.feature_dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
        self._masks_in_observations = any(observer.masks for observer in self._observers.values())
        self._masks_in_infos = not self._masks_in_observations and _has_masks(self.env.reset(seed=0)[1])
        self.has_action_mask = len(counts) > 1 or self._masks_in_observations or self._masks_in_infos
        self.symmetric = self.rule.symmetric
        self.fixed_nodes = fixed_nodes
        self.horizon = horizon

    def start(self) -> Snapshot:
        seed = int(torch.randint(2**31 - 1, (1,), generator=self.generator))
        observations, infos = self.env.reset(seed=seed)
        self._agents = self._in_order(self.env.agents)
        if not self._agents:
            raise ValueError(f'{self._name} has no agent after reset(). An episode needs at least one.')
        self._last_seen = {}
        return self._look(self._agents, observations, infos)

    def step(self, action: Tensor) -> SingleStep:
        acted = self._agents
        observations, rewards, terminations, truncations, infos = self.env.step(
            {agent: self._first_action[agent] + a for agent, a in zip(acted, action.tolist(), strict=True)}
        )
        reward = torch.tensor([float(self._of('reward', rewards, agent)) for agent in acted])
        gone = {agent for agent in acted if self._of('termination', terminations, agent)}
        late = [agent for agent in acted if self._of('truncation', truncations, agent) and agent not in gone]
        self._agents = [agent for agent in self._in_order(self.env.agents) if agent not in gone and agent not in late]
        if self._agents:
            return SingleStep(self._look(self._agents, observations, infos), reward)
        if late and self.fixed_nodes and len(late) < len(acted):
            raise ValueError(
                f'{self._name}: with fixed_nodes=True all agents must end alike (got {late} truncated and the others '
                f'terminated in one step). Pass fixed_nodes=False.'
            )
        if late:  # the bootstrap needs their current observations, not older ones
            return SingleStep(self._look(late, observations, infos, over=True), reward, truncated=True)
        seen = {**self._last_seen, **observations}
        return SingleStep(self._look(acted, seen, infos, over=True), reward, terminated=True)

    def close(self) -> None:
        self.env.close()

    @property
    def _name(self) -> str:
        return str(self.env)

    def _in_order(self, agents: Sequence[Agent]) -> list[Agent]:
        unknown = [agent for agent in agents if agent not in self._number]
        if unknown:
            raise ValueError(
                f"'agents' of {self._name} must be among 'possible_agents' (got {unknown} beside "
                f'{self.possible_agents}). List all agents that may ever take part.'
            )
        return sorted(agents, key=self._number.__getitem__)

    def _of(self, what: str, per_agent: dict[Agent, Any], agent: Agent) -> Any:
        # aec_to_parallel returns a defaultdict, in which a missing agent would get 0
        if agent not in per_agent:
            raise ValueError(
                f'{self._name} must give every agent that acted its {what} (got none for {agent!r}, only for '
                f'{list(per_agent)}). Return it from step(), also at the step in which the agent leaves.'
            )
        return per_agent[agent]

    def _look(
        self, agents: list[Agent], observations: dict[Agent, Any], infos: dict[Agent, Any], over: bool = False
    ) -> Snapshot:
        if _has_masks(infos) and not (self._masks_in_infos or self._masks_in_observations):
            raise ValueError(
                f"'action_mask' must be in the infos of {self._name} from its first reset() on, or never (got one only "
                f'later). Return it from reset(), too: the networks must know from the start whether there are masks.'
            )
        seen = {agent: self._of('observation', observations, agent) for agent in agents}
        self._last_seen = seen
        x = np.zeros((len(agents), self.num_features), dtype=_numpy_dtype(self.feature_dtype))
        for row, agent in zip(x, agents, strict=True):
            values = self._observers[agent].flatten(seen[agent])
            row[: values.size] = values
        read = [self._observers[a].flatten if self.rule.flattened else self._observers[a].plain for a in agents]
        plain = {agent: as_rule(seen[agent]) for agent, as_rule in zip(agents, read, strict=True)}
        fields = {'action_mask': self._masks(seen, infos, over)} if self.has_action_mask else {}
        return Snapshot(
            x=torch.from_numpy(x),
            edge_index=self.rule.edges(self.env, agents, plain),
            node_id=torch.tensor([self._number[agent] for agent in agents], dtype=torch.int64),
            **fields,
        )

    def _masks(self, seen: dict[Agent, Any], infos: dict[Agent, Any], over: bool) -> Tensor:
        masks = np.zeros((len(seen), self.num_actions), dtype=bool)
        for row, (agent, observation) in zip(masks, seen.items(), strict=True):
            count = self._num_actions[agent]
            mask = infos.get(agent, {}).get('action_mask') if self._masks_in_infos else None
            row[:count] = self._observers[agent].mask(observation, count) if mask is None else _as_mask(mask, count)
            if over and not row.any():
                row[:count] = True  # agents that left may have no legal action, but still need a value
            if not row.any():
                raise ValueError(
                    f"'action_mask' must leave each agent an action (got none for {agent!r}). An environment in which "
                    f'agents take turns needs an action that means "wait".'
                )
        return torch.from_numpy(masks)


def from_pettingzoo(
    make_env: Callable[[], Any],
    neighbours: NeighbourRule | EdgeFunction | None = None,
    num_envs: int = 1,
    *,
    seed: int = 0,
    observation_sizes: Literal['pad', 'error'] = 'pad',
    fixed_nodes: bool = False,
    horizon: int | None = None,
) -> VectorGraphEnv:
    """``num_envs`` episodes of a PettingZoo parallel environment as a :class:`~ltos_pyg.graph_env.GraphEnv`.

    .. code-block:: python

        from mpe2 import simple_spread_v3

        env = from_pettingzoo(
            lambda: simple_spread_v3.parallel_env(N=5), neighbours=KNearest(2, position=slice(2, 4)), num_envs=16
        )

    Args:
        neighbours: :class:`FullyConnected` (the default), :class:`KNearest`, or a function
            ``(observations, agents) -> edge_index``.
        seed (int): Each episode gets its own seed derived from it. ``reset(seed)`` replaces it.

    For the other arguments, and how agents enter and leave, see :class:`PettingZooEnv`.
    """
    make = partial(
        PettingZooEnv,
        make_env,
        neighbours,
        observation_sizes=observation_sizes,
        fixed_nodes=fixed_nodes,
        horizon=horizon,
    )
    return VectorGraphEnv(make, num_envs=num_envs, seed=seed)


class _Observer:
    """Reads the observations of one agent."""

    def __init__(self, agent: Agent, env: Any) -> None:
        from gymnasium import spaces

        space = env.observation_space(agent)
        self.masks = isinstance(space, spaces.Dict) and 'action_mask' in space.spaces and len(space.spaces) > 1
        if self.masks:
            entries = [(name, entry) for name, entry in space.spaces.items() if name != 'action_mask']
            self.single = [name for name, _ in entries] == ['observation']
            space = entries[0][1] if self.single else spaces.Dict(entries)
        self.space = space
        if not self.space.is_np_flattenable:
            raise ValueError(
                f'The observation space of {agent!r} must be one that flattens to a fixed number of values, or a Dict '
                f"of such spaces and an 'action_mask' (got {space}). Wrap the environment so that it observes a Box."
            )
        self._flatten = spaces.flatten
        self.size = int(spaces.flatdim(self.space))
        self.dtype = _OWN_DTYPES.get(spaces.flatten_space(self.space).dtype, torch.float32)

    def plain(self, observation: Any) -> Any:
        """The observation without its action mask."""
        if not self.masks:
            return observation
        if self.single:
            return observation['observation']
        return {name: value for name, value in observation.items() if name != 'action_mask'}

    def flatten(self, observation: Any) -> np.ndarray[Any, Any]:
        values = np.asarray(self._flatten(self.space, self.plain(observation)))
        if values.size != self.size:
            raise ValueError(
                f'An observation must fit its space {self.space} of {self.size} values (got {values.size}). '
                f'The space must be the same at every step.'
            )
        return values

    def mask(self, observation: Any, count: int) -> np.ndarray[Any, Any]:
        if not self.masks:
            return np.ones(count, dtype=bool)
        return _as_mask(observation['action_mask'], count)


def _as_mask(mask: Any, count: int) -> np.ndarray[Any, Any]:
    mask = np.ravel(mask)
    if mask.size != count:
        raise ValueError(f"'action_mask' needs one entry per action: expected {count}, got {mask.size}")
    return np.asarray(mask, dtype=bool)


def _has_masks(infos: dict[Agent, Any]) -> bool:
    return any(info.get('action_mask') is not None for info in infos.values())


def _check_parallel(env: Any) -> None:
    try:
        from pettingzoo import AECEnv, ParallelEnv
    except ImportError as error:
        raise ImportError('PettingZoo is not installed: run `pip install "ltos_pyg[pettingzoo]"`') from error
    if isinstance(env, AECEnv):
        raise ValueError(
            f"'make_env' must make a parallel environment, in which all agents act at once (got the AEC environment "
            f'{env}). Use its parallel_env(), or pettingzoo.utils.aec_to_parallel where agents need not take turns.'
        )
    if not isinstance(env, ParallelEnv):
        raise ValueError(
            f"'make_env' must make a pettingzoo.ParallelEnv (got {type(env).__name__}). A game of your own is better "
            f'written as ltos_pyg.graph_env.SingleGraphEnv.'
        )
    if not getattr(env, 'possible_agents', None):
        raise ValueError(
            f"{env} must list all agents that can ever take part in 'possible_agents' (got none): nodes are numbered, "
            f'and networks and memory sized, by it.'
        )


def _as_rule(neighbours: NeighbourRule | EdgeFunction | None) -> NeighbourRule:
    if neighbours is None:
        return FullyConnected()
    if isinstance(neighbours, NeighbourRule):
        return neighbours
    if isinstance(neighbours, type) or not callable(neighbours):
        raise ValueError(
            f"'neighbours' must be a NeighbourRule or a function (observations, agents) -> edge_index (got "
            f'{neighbours!r}). Did you mean FullyConnected() or KNearest(k, position)?'
        )
    rule = _OwnRule(neighbours)
    rule.symmetric = bool(getattr(neighbours, 'symmetric', False))
    return rule


def _read_actions(env: Any, agents: list[Agent]) -> tuple[dict[Agent, int], dict[Agent, int]]:
    """The first action and the number of actions of each agent."""
    from gymnasium import spaces

    action_spaces = {agent: env.action_space(agent) for agent in agents}
    other = {agent: space for agent, space in action_spaces.items() if not isinstance(space, spaces.Discrete)}
    if other:
        raise ValueError(
            f'Actions must be Discrete (got {other}). Many environments offer them (continuous_actions=False in MPE); '
            f'otherwise wrap the environment so that it picks from a list of actions.'
        )
    start = {agent: int(space.start) for agent, space in action_spaces.items()}
    return start, {agent: int(space.n) for agent, space in action_spaces.items()}


def _numpy_dtype(dtype: torch.dtype) -> Any:
    return torch.empty(0, dtype=dtype).numpy().dtype
