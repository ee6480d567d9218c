"""What the high level is trained for: the interface, and the paper's gradient through the low level."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from ltos_pyg.algos.losses import masked, mean
from ltos_pyg.algos.ltos.critics import LowLevelBatch, Seen
from ltos_pyg.algos.ltos.weights import Logits
from ltos_pyg.graph_env import GraphEnvSpec
from ltos_pyg.nn.functional import softmax_by_sender

if TYPE_CHECKING:
    from ltos_pyg.algos.ltos.config import LToSConfig


class HighLevelBatch(NamedTuple):
    """Some graphs of a batch, ready for a step of the high level."""

    seen: Seen
    graph_of_node: Tensor  # (N,)
    num_graphs: int
    mask: Tensor | None  # (N, A) allowed actions
    logits: Logits  # of phi's weights; the gradient runs through them


@runtime_checkable
class Objective(Protocol):
    """What the high level is trained for: two losses, and the constant share that the weights start from.

    Made as :class:`~ltos_pyg.algos.ltos.JointSearch` is: from the spec, the options, the device, and a generator for
    what it draws.
    """

    @property
    def first_kept(self) -> float | None:
        """The share kept that phi starts from, ``None`` for uniform sharing."""

    @property
    def constant_kept(self) -> float | None:
        """The best constant value of the share kept that was found so far, ``None`` for uniform sharing. It gives the
        weights of sharing mode ``'constant'``."""

    def critic_loss(self, batch: LowLevelBatch) -> Tensor | None:
        """The loss of its own critics on the low level's batch, at each update; ``None`` without critics."""

    def update_targets(self) -> None:
        """Called after each gradient step on :meth:`critic_loss`."""

    def step_loss(self, batch: HighLevelBatch, q_values: Callable[..., Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one step of phi, and what to log. ``q_values(x, edge_index, edge_attr, sharing)`` is the low
        level, whose parameters are frozen meanwhile."""

    def modules(self) -> dict[str, nn.Module]:
        """Its networks, by name; they are saved with the run."""

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimizer of :meth:`critic_loss`, by name, if there is one."""


MakeObjective: TypeAlias = Callable[[GraphEnvSpec, 'LToSConfig', torch.device, torch.Generator], Objective]


class ShapedGradient:
    r"""The paper's objective: maximise :math:`\sum_i \max_a Q_i(o, a; \phi(o))` over :math:`\phi`, with Q
    frozen.

    Args:
        spec: What the environment promises.
        config: The options.
        device: Where the networks live.
        rng: Not used: nothing is drawn.
    """

    def __init__(self, spec: GraphEnvSpec, config: LToSConfig, device: torch.device, rng: torch.Generator) -> None:
        self.first_kept = config.initial_kept

    @property
    def constant_kept(self) -> float | None:
        """The share kept that phi starts from: this objective does not search for a better constant."""
        return self.first_kept

    def critic_loss(self, batch: LowLevelBatch) -> Tensor | None:
        """None: it uses no critic but the low level's."""
        return None

    def update_targets(self) -> None:
        """Does nothing: there are no targets."""

    def step_loss(self, batch: HighLevelBatch, q_values: Callable[..., Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Minus the mean over nodes of the largest value; the caller freezes Q."""
        sharing = softmax_by_sender(*batch.logits, batch.seen[1])
        if batch.seen[0].size(0) == 0:
            return sharing.kept.sum(), {}
        return -mean(masked(q_values(*batch.seen, sharing), batch.mask).amax(-1)), {}

    def modules(self) -> dict[str, nn.Module]:
        """Its additional networks, by name: none."""
        return {}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Its additional optimizers, by name: none."""
        return {}
