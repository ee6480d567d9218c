"""Agent-steps per second of the jungle, compared with MAgent's engine in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ltos_pyg.envs import JungleEnv

AGENTS, NEIGHBOURS = 20, 3
ROUNDS = 9
SECONDS = 0.15  # CPU time of one measurement
OURS = {
    'numba, 1024 episodes': (1024, 'numba'),
    'numba, 64 episodes': (64, 'numba'),
    'numba, 1 episode': (1, 'numba'),
    'torch, 1024 episodes': (1024, 'torch'),
    'torch, 64 episodes': (64, 'torch'),
}
PEER, NATIVE = 'magent2, like for like', 'magent2, its own observation'

Play = Callable[[], None]


def bench_jungle() -> list[dict[str, Any]]:
    """Times step + observations + neighbour graph as one batch, with random actions, episodes restarting as they end.

    Each is measured in CPU time on one thread; the value is the median of rounds in which all of them alternate.
    MAgent's engine plays one board per game. In its first row, its observation is reduced to ours and the graph is
    built with NumPy; in its second row, neither is done.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = _rates()
    finally:
        torch.set_num_threads(threads)
    peer = rates.get(PEER)
    return [_row(name, rate, None if peer is None or name == PEER else rate / peer) for name, rate in rates.items()]


def _row(name: str, rate: float, ratio: float | None) -> dict[str, Any]:
    notes = {'numba, 1024 episodes': 'step + observations + k-NN graph + PyG batch', NATIVE: 'no graph'}
    return {
        'name': f'jungle: {name}',
        'value': rate / 1e6,
        'unit': 'M agent-steps/s',
        'ratio': ratio,
        'target': '>= 10' if name == 'numba, 1024 episodes' else None,
        'note': notes.get(name),
    }


def _rates() -> dict[str, float]:
    """Agent-steps per second."""
    plays = {name: _player(*how) for name, how in OURS.items()}
    boards = {name: how[0] for name, how in OURS.items()}
    if find_spec('magent2') is not None:
        plays |= {PEER: _magent_player(like_for_like=True), NATIVE: _magent_player(like_for_like=False)}
        boards |= {PEER: 1, NATIVE: 1}
    steps = {name: _steps_in(play, SECONDS) for name, play in plays.items()}
    took: dict[str, list[float]] = {name: [] for name in plays}
    for _ in range(ROUNDS):
        for name, play in plays.items():
            took[name].append(_time(play, steps[name]) / steps[name])
    return {name: AGENTS * boards[name] / median(times) for name, times in took.items()}


def _time(play: Play, steps: int) -> float:
    start = time.process_time()
    for _ in range(steps):
        play()
    return time.process_time() - start


def _steps_in(play: Play, seconds: float) -> int:
    """Repetitions that fit, after a warm-up (compilation)."""
    _time(play, 3)
    return max(1, round(5 * seconds / max(_time(play, 5), 1e-6)))


def _player(num_envs: int, backend: str) -> Play:
    env = JungleEnv(num_envs, num_agents=AGENTS, neighbours=NEIGHBOURS, backend=backend)
    env.reset()
    chance = torch.Generator().manual_seed(0)
    actions = [torch.randint(9, (num_envs * AGENTS,), generator=chance) for _ in range(16)]
    turn = 0

    def play() -> None:
        nonlocal turn
        env.step(actions[turn % 16])
        turn += 1

    return play


def _magent_player(like_for_like: bool) -> Play:
    from benchmarks.magent import MAgentJungle

    start = JungleEnv(1, num_agents=AGENTS)
    start.reset()
    game = MAgentJungle(start.agent_positions[0].numpy(), start.food_positions[0].numpy())
    chance = np.random.default_rng(0)
    actions = [chance.integers(9, size=AGENTS, dtype=np.int32) for _ in range(16)]
    turn = 0

    def play() -> None:
        nonlocal turn
        game.step(actions[turn % 16])
        turn += 1
        if like_for_like:
            cells = game.agent_cells()
            np.concatenate([game.windows(), cells / 30], axis=1, dtype=np.float32)
            _neighbour_graph(cells)
        else:
            game.observe()

    return play


def _neighbour_graph(cells: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The symmetric k-nearest graph (2, E) as one would write it with NumPy."""
    apart = cells[:, None] - cells
    distance = (apart * apart).sum(-1)
    np.fill_diagonal(distance, 1 << 20)
    near = np.argpartition(distance, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    joined = np.zeros(distance.shape, dtype=bool)
    joined[np.arange(len(cells))[:, None], near] = True
    return np.stack((joined | joined.T).nonzero())
