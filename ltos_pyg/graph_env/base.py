"""The environment contract: many graph episodes at once, each step a batch of snapshots."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch_geometric.data import Batch

from ltos_pyg.graph_env.spec import GraphEnvSpec


@dataclass(frozen=True)
class GraphStep:
    """What one step of a :class:`GraphEnv` returns. N nodes acted, in B graphs.

    ``graph`` and ``successor`` differ only in the graphs whose episode ended: there ``successor`` is the end of the
    old episode and ``graph`` the start of the next one. Bootstrap from ``successor``, act on ``graph``. (Where no
    episode ended they may be the same object.) An agent that is in ``graph`` and not in ``successor`` has left for
    good: it has no value to bootstrap from.

    No episode is both ``terminated`` and ``truncated``: if the task ends just when the clock runs out, it terminated.
    """

    graph: Batch  # what to act on next
    successor: Batch  # what the actions led to
    reward: Tensor  # (N,) float32, one per node that acted
    terminated: Tensor  # (B,) bool: the task ended, do not bootstrap
    truncated: Tensor  # (B,) bool: the clock ran out, bootstrap from `successor`
    info: dict[str, Tensor] = field(default_factory=dict)  # metrics of this step: (B,) per graph or (N,) per node
    outcome: dict[str, Tensor] = field(default_factory=dict)  # metrics of whole episodes (B,), read where one ended

    @property
    def ended(self) -> Tensor:
        """(B,) bool: episodes that are over, for either reason."""
        return self.terminated | self.truncated


def check_step(step: object, env: object) -> GraphStep:
    """The step that an environment returned; raises a ``ValueError`` if it is not a step."""
    if not isinstance(step, GraphStep):
        raise ValueError(
            f'{type(env).__name__}.step() must return a GraphStep (got {type(step).__name__}). Does it end in a '
            f'return? ltos_pyg.graph_env.check_env checks the whole contract.'
        )
    return step


class GraphEnv(ABC):
    """``num_envs`` parallel episodes of one game; a finished episode restarts within the step.

    An environment owns its random generators: instances do not affect each other, and the global generators of torch
    and numpy are not used. ``reset(seed)`` restarts every episode and reseeds the generators; ``reset()`` restarts the
    episodes without reseeding.

    Batches are PyG batches of :class:`~ltos_pyg.data.Snapshot`, nodes and edges ordered by graph. ``node_id`` is
    needed unless ``spec.fixed_nodes``; ``edge_attr`` and ``action_mask`` are present if and only if the spec declares
    them. An environment never writes to a tensor that it has returned.

    :func:`~ltos_pyg.graph_env.check_env` checks all this. Most environments need not implement this
    class: :class:`~ltos_pyg.graph_env.VectorGraphEnv` makes one from a game that plays a single episode.
    """

    spec: GraphEnvSpec

    @abstractmethod
    def reset(self, seed: int | None = None) -> Batch:
        """Starts ``num_envs`` new episodes and returns the batch to act on."""

    @abstractmethod
    def step(self, action: Tensor) -> GraphStep:
        """Plays one action per node of the last batch, (N,) integers in node order.

        The action lies where the networks are, and the graphs may lie elsewhere: move it before you use it.

        Raises:
            ValueError: If there is not one action per node; the state is then unchanged.
        """

    def state_dict(self) -> dict[str, Any] | None:
        """Everything needed to continue exactly from here (tensors and plain containers), or ``None`` if the game
        cannot save its state: a resumed run then starts new episodes."""
        return None

    def load_state_dict(self, state: dict[str, Any]) -> Batch:
        """Restores a saved state and returns the batch to act on."""
        raise RuntimeError(f'{type(self).__name__} does not save its state: call reset() instead')

    def close(self) -> None:  # noqa: B027 (not every game holds resources)
        """Releases the game's resources (windows, processes)."""
