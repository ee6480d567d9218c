"""Greedy evaluation: whole episodes, one per graph of the batch, with mean, standard deviation and count."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ltos_pyg.algos import Algorithm
from ltos_pyg.graph_env import GraphEnv

OWN_METRICS = ('return', 'reward', 'length', 'selfishness')  # an env's `info` and `outcome` cannot redefine these


@dataclass(frozen=True)
class Stat:
    """A metric over episodes."""

    mean: float
    std: float  # sample standard deviation over the episodes
    count: int

    @classmethod
    def of(cls, values: Tensor) -> Stat:
        """The statistics of one value per episode, (B,)."""
        values = values.double()
        std = float(values.std()) if len(values) > 1 else 0.0
        return cls(float(values.mean()), std, len(values))

    @property
    def ci95(self) -> float:
        """Half the width of the 95 % interval of the mean over episodes (normal approximation)."""
        return 1.96 * self.std / self.count**0.5


class EpisodeTally:
    """Sums what happens in each graph of a batch until its episode ends.

    Metrics of an episode: ``return``, the undiscounted reward of a node (mean over nodes); ``reward``, the same per
    step; ``length``; ``selfishness``, the mean share kept; each per-graph entry of ``info``, per step; and each entry
    of ``outcome``, as the environment gave it at the end of the episode.
    """

    def __init__(self, num_graphs: int) -> None:
        self.num_graphs = num_graphs
        self.sums: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Adds one value per graph, (B,)."""
        value = value.detach().to('cpu', torch.float64)
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def step(self, batch: Tensor, reward: Tensor, info: dict[str, Tensor], kept: Tensor | None) -> None:
        """Adds one step."""
        self.add('return', self.mean(reward, batch))
        self.add('length', torch.ones(self.num_graphs))
        if kept is not None:
            self.add('selfishness', self.mean(kept, batch))
        for name, value in info.items():
            if value.shape == (self.num_graphs,) and name not in OWN_METRICS:
                self.add(name, value)

    def mean(self, value: Tensor, batch: Tensor) -> Tensor:
        """Mean over the nodes of each graph, (N,) -> (B,); 0 where a graph has none."""
        batch = batch.cpu()
        total = torch.zeros(self.num_graphs, dtype=torch.float64).index_add(0, batch, value.detach().cpu().double())
        return total / torch.bincount(batch, minlength=self.num_graphs).clamp(min=1)

    def finish(self, which: Tensor, outcome: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Metrics of the episodes that ended, (number of them,) each; their sums start again at zero."""
        length = self.sums['length'][which]
        episodes = {'return': self.sums['return'][which], 'reward': self.sums['return'][which] / length}
        episodes['length'] = length
        for name, value in self.sums.items():
            if name not in ('return', 'length'):
                episodes[name] = value[which] / length
        for name, value in (outcome or {}).items():
            if name not in OWN_METRICS:
                episodes[name] = value.detach().to('cpu', torch.float64)[which]
        for name in self.sums:
            self.sums[name] = torch.where(which, 0.0, self.sums[name])
        return episodes


@torch.no_grad()
def evaluate(algorithm: Algorithm, env: GraphEnv, seed: int, max_steps: int = 100_000) -> dict[str, Stat]:
    """Plays one whole episode in each graph of ``env``, without exploration.

    Every graph counts its first episode and no other, so long episodes are not undercounted.

    Args:
        algorithm: Acts without exploration; it learns nothing and its randomness is left alone.
        env: As many graphs as episodes are wanted.
        seed: Seeds the environment.
        max_steps: After so many steps the episodes that never ended are an error.

    Returns:
        Mean, standard deviation and count of every metric of :class:`EpisodeTally`.
    """
    graph = env.reset(seed)
    algorithm.start_play()
    tally = EpisodeTally(env.spec.num_envs)
    pending = torch.ones(env.spec.num_envs, dtype=torch.bool)
    done: dict[str, list[Tensor]] = {}
    for _ in range(max_steps):
        decision = algorithm.act(graph, explore=False)
        step = env.step(decision.action)
        algorithm.note_play(step)
        tally.step(graph.batch, step.reward, step.info, decision.sharing.kept if decision.sharing else None)
        ended = step.ended.cpu() & pending
        if bool(ended.any()):
            for name, values in tally.finish(ended, step.outcome).items():
                done.setdefault(name, []).append(values)
            pending &= ~ended
            if not bool(pending.any()):
                return {name: Stat.of(torch.cat(values)) for name, values in done.items()}
        graph = step.graph
    raise ValueError(
        f'{int(pending.sum())} of {len(pending)} evaluation episodes did not end within {max_steps} steps. '
        f'Give the environment a horizon.'
    )


def evaluate_modes(algorithm: Algorithm, env: GraphEnv, seed: int) -> dict[str, dict[str, Stat]]:
    """:func:`evaluate` under each of the algorithm's sharing modes, on the same episodes.

    One network under phi, under "keep all" and under uniform weights tells at once whether the weights matter and
    whether phi found them. An algorithm without modes has one, called ``''``.
    """
    modes = getattr(algorithm, 'sharing_modes', None)
    if modes is None:
        return {'': evaluate(algorithm, env, seed)}
    before = algorithm.sharing_mode  # type: ignore[attr-defined]
    try:
        results = {}
        for mode in modes:
            algorithm.sharing_mode = mode  # type: ignore[attr-defined]
            results['' if mode == modes[0] else mode] = evaluate(algorithm, env, seed)
        return results
    finally:
        algorithm.sharing_mode = before  # type: ignore[attr-defined]
