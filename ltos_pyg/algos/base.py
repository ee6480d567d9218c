"""The interface of every algorithm: act, observe, update."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from ltos_pyg.graph_env import GraphEnvSpec, GraphStep
from ltos_pyg.nn import Sharing


class Decision(NamedTuple):
    """What an algorithm does with a batch of graphs."""

    action: Tensor  # (N,) int64
    sharing: Sharing | None = None  # the weights in force, where the algorithm has any


class NonFiniteLossError(RuntimeError):
    """The loss or a gradient is NaN or infinite; names the first bad tensor. Nothing was updated."""


class Algorithm(ABC):
    """A learner on batches of graphs. It sees snapshots and rewards, never the environment itself."""

    config: Any
    env_steps: int  # graph steps observed so far: the clock of every schedule
    updates: int  # gradient steps done so far

    @abstractmethod
    def act(self, graph: Batch, explore: bool = False) -> Decision:
        """Chooses for every node of a batch; with ``explore`` as in training."""

    @abstractmethod
    def observe(self, graph: Batch, decision: Decision, step: GraphStep) -> None:
        """Takes in what a decision led to."""

    @property
    @abstractmethod
    def due_updates(self) -> int:
        """Gradient steps that the data observed so far calls for and that were not done yet."""

    @abstractmethod
    def update(self) -> dict[str, float]:
        """One gradient step; returns its metrics."""

    @abstractmethod
    def restart_episodes(self) -> None:
        """Tells that the environment starts new episodes without having ended the old ones."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on exactly."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to a saved state, to train on."""

    @abstractmethod
    def load_policy(self, state: dict[str, Any]) -> None:
        """Takes the networks of a saved state, to act."""


class Inputs(nn.Module):
    """Turns a snapshot's stored columns into what networks see: float32, times the scale that the env declares."""

    feature_scale: Tensor | None
    edge_scale: Tensor | None

    def __init__(self, spec: GraphEnvSpec) -> None:
        super().__init__()
        self.register_buffer('feature_scale', spec.scale('feature'), persistent=False)
        self.register_buffer('edge_scale', spec.scale('edge'), persistent=False)

    def forward(self, graph: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns (x, edge_index, edge_attr)."""
        x = (graph.x if self.feature_scale is None else graph.x * self.feature_scale).float()
        edge_attr = graph.get('edge_attr')
        if edge_attr is not None:
            edge_attr = (edge_attr if self.edge_scale is None else edge_attr * self.edge_scale).float()
        return x, graph.edge_index, edge_attr


def soft_update(target: nn.Module, online: nn.Module, tau: float) -> None:
    r"""Moves the target network: :math:`\theta' \leftarrow \theta' + \tau (\theta - \theta')`."""
    with torch.no_grad():
        for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
            slow.lerp_(fast, tau)


def first_nonfinite(named: dict[str, Tensor | None]) -> str | None:
    """Name of the first tensor with a NaN or infinite entry, or ``None``."""
    for name, tensor in named.items():
        if tensor is not None and not bool(tensor.isfinite().all()):
            return name
    return None
