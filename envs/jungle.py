"""The jungle: agents on a board eat food, and may attack each other."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch

from ltos_pyg.data import batch_snapshots
from ltos_pyg.graph_env import GraphEnv, GraphEnvSpec, GraphStep

from .checks import check_action, check_count
from .jungle_large import LargeJungle
from .jungle_numba import NumbaJungle
from .jungle_rules import (
    NUM_ACTIONS,
    JungleConfig,
    Observations,
    board_symmetries,
    check_cells,
    check_high,
)
from .jungle_torch import TorchJungle
from .options import options_of
from .streams import first_streams


class JungleEnv(GraphEnv):
    r"""Agents on a walled board eat foods that never run out, and may attack each other: a social dilemma on a moving
    graph, after the "eat" game of MAgent that `"Graph Convolutional Reinforcement Learning"
    <https://arxiv.org/abs/1810.09202>`_ made and `"Learning to Share in Multi-Agent Reinforcement Learning"
    <https://arxiv.org/abs/2112.08702>`_ reports.

    **Rules.** N agents and L foods start on distinct free cells, drawn uniformly. Agents never die. Actions: 0 up,
    1 left, 2 stay, 3 right, 4 down; attack 5 up, 6 left, 7 right, 8 down (y goes down, x right). Within a step all
    attacks come first, on the cells of the start of the step; then the agents move one by one in the order of their
    numbers, and a move into a wall, a food or an agent fails at no cost.

    **Reward.** An attack on a food brings 1, on an agent 2, on a blank or a wall -0.01; each attack costs its victim 4.
    With ``cost_on_hit`` every attack costs 0.01, also one that hits, as in MAgent's engine.

    **Unequal gains.** With ``attack_gain_high`` set, ``round(high_fraction * num_agents)`` agents of each board, drawn
    uniformly at the start of each episode, gain ``attack_gain_high`` instead of 2 by an attack on an agent (less the
    0.01 of ``cost_on_hit``). All else is the same for them, including the cost for the victim. Every agent observes
    which agents have the high gain.

    **Observation**, int8 (int16 if ``size`` is above 127): the window of radius ``view`` around the agent, row by row
    (agents, itself included, 1; foods -1; else 0; cells farther than ``view`` are blank, as are walls), then its y and
    x. With ``attack_gain_high`` set, agents with the high gain appear as 2 in the windows, and one more column, the
    last, is 1 for an agent with the high gain, else 0. ``spec.feature_scale`` is ``1 / size`` for y and x, and 1 for
    everything else.

    **Graph**, recomputed at each step. With ``graph='knn'`` each agent receives messages from its ``neighbours``
    nearest others (Euclidean; ties go to the lower number); if ``symmetric``, the reverse edges are added. With
    ``graph='radius'`` two agents are connected in both directions if they are at most ``radius`` apart (Euclidean):
    degrees range from 0 to N - 1, and ``neighbours`` and ``symmetric`` are unused. Edges are sorted by graph, receiver
    and sender. ``edge_attr`` is (dy, dx) from receiver to sender, of the same dtype, and ``spec.edge_scale`` is
    ``1 / (2 view)``.

    All ``num_envs`` episodes share one clock: they start together, and are truncated and restarted together at
    ``horizon``. Nothing terminates.

    Args:
        num_envs (int): Parallel episodes, B.
        config (JungleConfig, optional): The options of the game.
        seed (int): Seed of the env's own random streams. Graph b draws the same cells in a batch of any size.
        backend (str): ``'numba'`` (CPU), ``'torch'`` (any device), or ``'auto'``: Numba on the CPU, else torch. Both
            give the same episodes, to the bit. Time and memory of Numba's grow with the number of agents (100,000 fit),
            those of torch's with its square.
        device: Where the tensors live.
        threads (int): Threads of the Numba backend.
        **options: Single options of :class:`~ltos_pyg.envs.JungleConfig`, e.g. ``num_agents=10``.

    ``info`` has for each graph (B,) how many attacks hit an agent (``attacks``), a food (``food``) and nothing
    (``blanks``).

    Raises:
        ValueError: If an option or an action is out of its range.
    """

    def __init__(
        self,
        num_envs: int = 1,
        config: JungleConfig | None = None,
        *,
        seed: int = 0,
        backend: str = 'auto',
        device: str | torch.device = 'cpu',
        threads: int = 1,
        **options: Any,
    ) -> None:
        check_count('num_envs', num_envs, 1)
        self.config = options_of(JungleConfig, config, options)
        self.num_envs, self.device = num_envs, torch.device(device)
        self.spec = _spec(self.config, num_envs)
        self._board = _board(self.config, num_envs, backend, self.device, threads)
        self._board.streams.copy_(first_streams(seed, num_envs, 'jungle'))
        self._clock: int | None = None  # steps played; None before the first reset
        self._fixed = _unchanging(num_envs, self.config.num_agents, self.device)

    @property
    def agent_positions(self) -> Tensor:
        """Cells of the agents (B, N, 2) int64, y and x."""
        return self._board.cells()[:, : self.config.num_agents]

    @property
    def food_positions(self) -> Tensor:
        """Cells of the foods (B, L, 2) int64, y and x."""
        return self._board.cells()[:, self.config.num_agents :]

    @property
    def high(self) -> Tensor:
        """Which agents gain ``attack_gain_high`` (B, N) bool; none where it is ``None``."""
        return self._board.high()

    def reset(self, seed: int | None = None) -> Batch:
        if seed is not None:
            self._board.streams.copy_(first_streams(seed, self.num_envs, 'jungle'))
        return self._restart()

    def set_positions(self, agents: Tensor, foods: Tensor, high: Tensor | None = None) -> Batch:
        """Starts episodes from given cells instead of random ones, and returns the batch to act on.

        Args:
            agents (Tensor): Cells of the agents (B, N, 2), integers, y and x.
            foods (Tensor): Cells of the foods (B, L, 2).
            high (Tensor, optional): Which agents gain ``attack_gain_high`` (B, N) bool, any number of them. Without it,
                the first ``round(high_fraction * num_agents)``.

        Raises:
            ValueError: If a cell is a wall or is given twice, if shapes or dtypes do not fit, or if ``high`` is given
                although all agents have the same gain.
        """
        cells = check_cells(agents, foods, self.config, self.num_envs)
        self._board.place(cells, check_high(high, self.config, self.num_envs))
        self._clock = 0
        return self._batch(self._board.observe())

    def step(self, action: Tensor) -> GraphStep:
        if self._clock is None:
            raise RuntimeError('the episodes have not begun: call reset() before step()')
        action = check_action(action, self.num_envs * self.config.num_agents, NUM_ACTIONS, self.device)
        reward, tally, observed = self._board.step(action)
        graph = successor = self._batch(observed)
        self._clock += 1
        over = self._clock >= self.config.horizon
        if over:
            graph = self._restart()
        terminated = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        info = {'attacks': tally[0], 'food': tally[1], 'blanks': tally[2]}
        return GraphStep(graph, successor, reward, terminated, torch.full_like(terminated, over), info)

    def state_dict(self) -> dict[str, Any]:
        return {
            'config': asdict(self.config),
            'cells': self._board.cells().cpu(),
            'high': self._board.high().cpu(),
            'streams': self._board.streams.cpu().clone(),
            'clock': self._clock,
        }

    def load_state_dict(self, state: dict[str, Any]) -> Batch:
        mine = {'num_envs': self.num_envs, **asdict(self.config)}
        defaults = asdict(JungleConfig())  # of options that are newer than the state
        theirs = {'num_envs': state['streams'].numel(), **defaults, **state['config']}
        wrong = {name: (mine[name], theirs.get(name)) for name in mine if mine[name] != theirs.get(name)}
        if wrong:
            said = ', '.join(f'{name}={there!r} where this env has {here!r}' for name, (here, there) in wrong.items())
            raise ValueError(f"'state' is of a jungle with {said}. Build the env with the options of the saved one.")
        self._board.streams.copy_(state['streams'])
        self._board.place(state['cells'], None if self.config.attack_gain_high is None else state['high'])
        self._clock = state['clock']
        return self._batch(self._board.observe())

    def close(self) -> None:
        self._board.close()

    def _restart(self) -> Batch:
        self._clock = 0
        self._board.start()
        return self._batch(self._board.observe())

    def _batch(self, observed: Observations) -> Batch:
        fields: dict[str, Any] = {'x': observed.x, 'edge_index': observed.edge_index, **self._fixed}
        if observed.edge_attr is not None:
            fields['edge_attr'] = observed.edge_attr
        return batch_snapshots(edges_per_graph=observed.edges_per_graph, **fields)


def _board(
    config: JungleConfig, num_envs: int, backend: str, device: torch.device, threads: int
) -> NumbaJungle | TorchJungle:
    if backend == 'auto':
        backend = 'numba' if device.type == 'cpu' else 'torch'
    if backend not in ('numba', 'torch'):
        raise ValueError(f"'backend' must be 'auto', 'numba' or 'torch' (got {backend!r})")
    if backend == 'torch':
        return TorchJungle(config, num_envs, device)
    if device.type != 'cpu':
        raise ValueError(f"'backend' must be 'torch' or 'auto' on {device}: Numba's runs on the CPU (got 'numba')")
    check_count('threads', threads, 1)
    return (LargeJungle if config.is_large else NumbaJungle)(config, num_envs, threads)


def _unchanging(num_envs: int, num_agents: int, device: torch.device) -> dict[str, Tensor]:
    """The fields that are the same in every batch."""
    return {
        'nodes_per_graph': torch.full((num_envs,), num_agents, device=device),
        'ptr': num_agents * torch.arange(num_envs + 1, device=device),
        'batch': torch.arange(num_envs, device=device).repeat_interleave(num_agents),
        'node_id': torch.arange(num_agents, device=device).repeat(num_envs),
    }


def _spec(config: JungleConfig, num_envs: int) -> GraphEnvSpec:
    window = (2 * config.view + 1) ** 2
    flag = config.num_features - window - 2
    return GraphEnvSpec(
        num_envs=num_envs,
        num_features=config.num_features,
        num_actions=NUM_ACTIONS,
        max_nodes=config.num_agents,
        max_edges=config.max_edges,
        edge_dim=2 if config.edge_features else None,
        feature_dtype=config.dtype,
        edge_dtype=config.dtype,
        feature_scale=(1.0,) * window + (1 / config.size,) * 2 + (1.0,) * flag,
        edge_scale=(1 / (2 * config.view),) * 2 if config.edge_features else None,
        symmetric=config.symmetric or config.graph == 'radius',
        horizon=config.horizon,
        symmetries=board_symmetries(config),
    )
