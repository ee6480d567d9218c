"""Exploration of sharing weights: noise shared by all agents of a graph and held for several steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ltos_pyg.nn.functional import kept_logit

MOST_AGENTS = 2**31  # a `node_id` is below it, see GraphReplay


class Logits(NamedTuple):
    """Sharing weights before the softmax over each sender."""

    edge: Tensor  # (E,)
    own: Tensor  # (N,)


class Noise(NamedTuple):
    """What is added to logits: :math:`z_i` to each self logit and :math:`v_i` to those of the edges into i."""

    own: Tensor  # (N,)
    received: Tensor  # (N,)

    def on(self, logits: Logits, edge_index: Tensor, scale: float = 1.0) -> Logits:
        """The logits with the noise on them."""
        return Logits(logits.edge + scale * self.received.index_select(0, edge_index[1]), logits.own + scale * self.own)


@dataclass(frozen=True)
class JointNoise:
    r"""Noise that moves the shares kept in a whole graph at once, and those of single agents around it.

    .. math::
        z_i = c + u\,\sigma_s\,\varepsilon_i, \qquad v_i = u\,\sigma_r\,\varepsilon'_i, \qquad
        c \sim U(-J, J), \quad u \sim U(0, 1), \quad \varepsilon, \varepsilon' \sim N(0, 1)

    with one :math:`c` and one :math:`u` a graph. Where cooperation pays only if all agents take part, independent noise
    almost never samples it: all agents must share at the same time.

    Args:
        joint: :math:`J`.
        own: :math:`\sigma_s`.
        received: :math:`\sigma_r`.
    """

    joint: float
    own: float
    received: float

    def draw(self, batch: Tensor, num_graphs: int, rng: torch.Generator) -> Noise:
        """Noise of every node of a batch; ``batch`` (N,) is the graph of each."""
        device = batch.device
        c, u = torch.rand((2, num_graphs), generator=rng, device=device)
        own, received = torch.randn((2, len(batch)), generator=rng, device=device)
        return Noise(self.joint * (2 * c[batch] - 1) + u[batch] * self.own * own, u[batch] * self.received * received)


class HeldNoise:
    """Noise for the streams of an environment, held for some steps; it also decides which streams explore widely.

    Whether a stream explores widely is redrawn with the noise, independently for each stream: it must not correlate
    with other differences between streams, such as which of them act greedily.

    Args:
        noise: What to draw.
        hold: Steps until new noise is drawn. For a single graph, new noise is also drawn when an episode starts, and
            when an agent enters or leaves.
    """

    def __init__(self, noise: JointNoise, hold: int) -> None:
        self.noise, self.hold = noise, hold
        self._held: dict[str, Tensor] | None = None  # own, received, agent (N,), and wide, age, size (B,)

    def current(
        self, batch: Tensor, num_graphs: int, wide: float, rng: torch.Generator, node_id: Tensor | None = None
    ) -> tuple[Noise, Tensor]:
        """The current noise, and which graphs explore widely (B,), each with probability ``wide`` when drawn.

        An agent keeps its noise by its ``node_id`` (N,), or without one by its place in its graph.
        """
        drawn = self.noise.draw(batch, num_graphs, rng)
        fresh = {
            'own': drawn.own,
            'received': drawn.received,
            'wide': torch.rand(num_graphs, generator=rng, device=batch.device) < wide,
            'age': torch.zeros(num_graphs, dtype=torch.int64, device=batch.device),
            'size': torch.bincount(batch, minlength=num_graphs),
        }
        if node_id is None:
            node_id = torch.arange(len(batch), device=batch.device) - (fresh['size'].cumsum(0) - fresh['size'])[batch]
        agents = {'agent': batch * MOST_AGENTS + node_id}
        held = self._held
        if held is not None and 'agent' in held and len(held['size']) == num_graphs and len(held['own']) > 0:
            held = {name: value.to(batch.device) for name, value in held.items()}  # a checkpoint is on the CPU
            known, order = held['agent'].sort()
            at = torch.searchsorted(known, agents['agent']).clamp(max=len(known) - 1)
            entered = torch.zeros_like(fresh['size']).index_add_(0, batch, (known[at] != agents['agent']).long())
            new = (held['age'] == 0) | (held['size'] != fresh['size']) | (entered > 0)
            held |= {name: held[name][order[at]] for name in ('own', 'received')}
            renew = {'own': new[batch], 'received': new[batch], 'wide': new, 'age': new, 'size': new}
            fresh = {name: torch.where(renew[name], fresh[name], held[name]) for name in fresh}
        self._held = fresh | agents
        return Noise(fresh['own'], fresh['received']), fresh['wide']

    def step(self, ended: Tensor) -> None:
        """Advances by one played step; ``ended`` (B,) are the episodes that ended."""
        if self._held is not None:
            age = self._held['age']
            self._held['age'] = torch.where(ended.to(age.device), 0, (age + 1) % self.hold)

    def restart(self) -> None:
        """Drops all noise: it is redrawn at the next step."""
        self._held = None

    def state_dict(self) -> dict[str, Any]:
        """The current noise and its age."""
        return {} if self._held is None else dict(self._held)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores saved noise."""
        self._held = dict(state) or None


def constant_logits(edge_index: Tensor, num_nodes: int, kept: float | None) -> Logits:
    """Logits that keep the share ``kept`` and split the rest evenly; ``None`` is uniform sharing."""
    zeros = torch.zeros(edge_index.size(1), device=edge_index.device)
    return Logits(zeros, kept_logit(edge_index, num_nodes, kept))
