"""Social dilemmas of one step, small enough that the optimum of sharing is known exactly."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch

from ltos_pyg.data import batch_snapshots
from ltos_pyg.graph_env import GraphEnv, GraphEnvSpec, GraphStep

from .checks import check_action, check_count
from .dilemmas_rules import DilemmasConfig, make_rules
from .options import options_of
from .streams import first_streams

__all__ = ['DilemmasConfig', 'DilemmasEnv']


class DilemmasEnv(GraphEnv):
    r"""Three games on graphs in which each step is a separate dilemma. There are two actions; action 1 hunts, works or
    takes the offer.

    *groups*: complete graphs of four, redrawn at each step among N agents. Each group has one of three states, each
    with probability 1/3, and all four of it play:

    - **hunt**: action 1 pays +4 if all four choose it and -8 otherwise; action 0 pays +1;
    - **work**: action 1 pays +30 to oneself and -9 to each of the three others; action 0 nothing;
    - **tempt**: action 1 pays +12 to oneself and -6 to each of the three others; action 0 nothing.

    *double_star*: a fixed graph of six agents: hubs 0 and 3 are joined, 1 and 2 are leaves of 0, 4 and 5 leaves of 3.
    At each step, each with probability 1/3:

    - **hunt** as above, among a hub (each with probability 1/2) and its three neighbours;
    - **good**: one agent may gain 45 at a cost of 30 to one of its neighbours (a random directed edge);
    - **bad**: the same with a gain of 30 at a cost of 45.

    Actions of all other agents have no effect.

    *offers*: at each step each agent has, with probability 1/2, an offer: a gain of a for itself and a harm of b to a
    random neighbour, both uniform in [0, 1]. The graph is a ring, a star, a random recursive tree or a graph grown by
    preferential attachment; random ones are redrawn in each episode. Offers are **good** where a > b, else **bad**.

    Agents observe the state, on nodes ``x`` (and edges j -> i ``edge_attr``):

    - *groups*: the state as a one-hot of 3; edges have no features;
    - *double_star*: takes part in a hunt, is its hub, has an offer, the offer's sign (good 1, bad -1), is the victim of
      an offer, that offer's sign, degree / 4; on edges, whether the receiver may harm the sender and the sign of that
      offer, whether the sender may harm the receiver and the sign of that offer;
    - *offers*: has an offer, a, b, offers against it / 4, the sum of their harms, degree / 4; on edges, whether the
      receiver may harm the sender, a, b, whether the sender may harm the receiver, a, b.

    All ``num_envs`` episodes share one clock: they are truncated together at ``horizon``. Nothing terminates. Actions
    do not affect the next state.

    Args:
        num_envs (int): Parallel episodes, B.
        config (DilemmasConfig, optional): The options of the game.
        seed (int): Seed of the env's own random streams; graph b draws the same numbers in a batch of any size.
        device: Where the tensors live.
        **options: Single options of :class:`~ltos_pyg.envs.DilemmasConfig`, e.g. ``graph='offers'``.

    ``info`` has for each graph (B,) ``optimality = 1 - (best - payoff) / E[best]``. Here ``payoff`` is the sum of the
    agents' payoffs, ``best`` its maximum in the state of this step, and ``E[best]`` the expectation of ``best``
    (``config.optimum`` times N). ``optimality`` has the same expectation as ``payoff / E[best]``, since their
    difference, ``best / E[best] - 1``, has mean 0 (a control variate). But for optimal joint actions it is 1 at every
    step, whatever states are drawn.

    The losses ``(best - payoff) / E[best]`` come by kind of state: ``lost_hunt``, ``lost_work`` and ``lost_tempt`` in
    *groups*, ``lost_hunt``, ``lost_good`` and ``lost_bad`` on the *double_star*, and with *offers* ``lost_good`` (good
    ones not taken) and ``lost_bad`` (bad ones taken). ``optimality`` is 1 less their sum.

    Raises:
        ValueError: If an option or an action is out of its range.
    """

    def __init__(
        self,
        num_envs: int = 1,
        config: DilemmasConfig | None = None,
        *,
        seed: int = 0,
        device: str | torch.device = 'cpu',
        **options: Any,
    ) -> None:
        check_count('num_envs', num_envs, 1)
        self.config = options_of(DilemmasConfig, config, options)
        graph, horizon = self.config.graph, self.config.horizon
        self.num_envs, self.horizon, self.device = num_envs, horizon, torch.device(device)
        self._streams = first_streams(seed, num_envs, f'dilemmas {graph}').to(self.device)
        self._rules = make_rules(self.config, num_envs, self.device)
        N, E = self.config.agents, self._rules.num_edges
        self.spec = GraphEnvSpec(
            num_envs=num_envs,
            num_features=self._rules.num_features,
            num_actions=2,
            max_nodes=N,
            max_edges=E,
            edge_dim=self._rules.edge_dim,
            symmetric=True,
            horizon=horizon,
        )
        number = torch.arange(num_envs, device=self.device)
        self._first = N * number
        self._fixed: dict[str, Any] = {
            'nodes_per_graph': torch.full_like(number, N),
            'edges_per_graph': torch.full_like(number, E),
            'ptr': N * torch.arange(num_envs + 1, device=self.device),
            'batch': number.repeat_interleave(N),
            'node_id': torch.arange(N, device=self.device).repeat(num_envs),
        }
        self._graphs: dict[str, Tensor] = {}
        self._state: dict[str, Tensor] = {}
        self._clock = 0

    def reset(self, seed: int | None = None) -> Batch:
        if seed is not None:
            self._streams = first_streams(seed, self.num_envs, f'dilemmas {self.config.graph}').to(self.device)
        self._start()
        return self._batch()

    def step(self, action: Tensor) -> GraphStep:
        self._check_begun('step')
        N = self.config.agents
        action = check_action(action, N * self.num_envs, 2, self.device).view(-1, N)
        payoff, lost = self._rules.play(self._graphs, self._state, action)
        expected = N * self.config.optimum
        info = {f'lost_{name}': value / expected for name, value in lost.items()}
        info = {'optimality': 1 - torch.stack(list(info.values())).sum(0), **info}
        self._state = self._rules.new_state(self._streams, self._graphs)
        self._clock += 1
        successor = graph = self._batch()
        ended = self._clock >= self.horizon
        if ended:
            self._start()
            graph = self._batch()
        return GraphStep(
            graph,
            successor,
            (payoff * self.config.scale).float().flatten(),
            terminated=torch.zeros(self.num_envs, dtype=torch.bool, device=self.device),
            truncated=torch.full((self.num_envs,), ended, device=self.device),
            info={name: value.float() for name, value in info.items()},
        )

    def harms(self, action: Tensor) -> Tensor:
        """The harms of these actions, (2, K): agents and victims, as node numbers of the whole batch.

        A failed hunter harms only itself and is not included.
        """
        self._check_begun('harms')
        action = check_action(action, self.config.agents * self.num_envs, 2, self.device)
        edge, harms = self._rules.edges(self._graphs, self._state)
        sender, receiver = (edge + self._first.view(1, -1, 1)).flatten(1)
        done = harms.flatten() & (action[receiver] == 1)
        return torch.stack([receiver[done], sender[done]])

    @property
    def state(self) -> dict[str, Tensor]:
        """A copy of the state of the current step, one row per graph. *groups*: the ``members`` of each group and
        its ``kind`` (0 hunt, 1 work, 2 tempt). *double_star*: ``kind`` (0 hunt, 1 good, 2 bad), the ``hub`` that a hunt
        is around, and the ``edge`` of an offer. *offers*: ``has``, ``gain`` and ``harm`` in units of 2^-24, and
        ``victim``, the number of the edge that comes from the victim."""
        self._check_begun('state')
        return {name: value.clone() for name, value in self._state.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            'config': dataclasses.asdict(self.config),
            'clock': self._clock,
            'streams': self._streams.cpu().clone(),
            'graphs': {name: value.cpu().clone() for name, value in self._graphs.items()},
            'state': {name: value.cpu().clone() for name, value in self._state.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> Batch:
        if state['streams'].numel() != self.num_envs:
            raise ValueError(
                f"'state' is of {state['streams'].numel()} episodes, expected num_envs={self.num_envs}. Build the env "
                f'with the num_envs of the saved one.'
            )
        if state['config'] != dataclasses.asdict(self.config):
            raise ValueError(
                f"'state' is of another game: expected {dataclasses.asdict(self.config)}, got {state['config']}. Build "
                f'the env with the options of the saved one.'
            )
        self._clock = state['clock']
        self._streams = state['streams'].to(self.device, copy=True)
        self._graphs = {name: value.to(self.device, copy=True) for name, value in state['graphs'].items()}
        self._state = {name: value.to(self.device, copy=True) for name, value in state['state'].items()}
        return self._batch()

    def _start(self) -> None:
        self._graphs = self._rules.new_graphs(self._streams)
        self._state = self._rules.new_state(self._streams, self._graphs)
        self._clock = 0

    def _check_begun(self, name: str) -> None:
        if not self._state:
            raise RuntimeError(f'the episodes have not begun: call reset() before {name}')

    def _batch(self) -> Batch:
        edge, _ = self._rules.edges(self._graphs, self._state)
        x, edge_attr = self._rules.features(self._graphs, self._state)
        fields: dict[str, Any] = {'x': x.flatten(0, 1), 'edge_index': (edge + self._first.view(1, -1, 1)).flatten(1)}
        if edge_attr is not None:
            fields['edge_attr'] = edge_attr.flatten(0, 1)
        return batch_snapshots(**self._fixed, **fields)
