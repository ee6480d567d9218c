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
    episode ended they may be one and the same object.) An agent that is in ``graph`` and not in ``successor`` has
    left for good: it has no value to bootstrap from.

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
    """The step that an environment returned; raises a ``ValueError`` if it is none."""
    if not isinstance(step, GraphStep):
        raise ValueError(
            f'{type(env).__name__}.step() must return a GraphStep (got {type(step).__name__}). Does it end in a '
            f'return? ltos_pyg.graph_env.check_env holds an environment to the whole contract.'
        )
    return step


class GraphEnv(ABC):
    """``num_envs`` episodes of one game, stepped together; a finished episode restarts within the step.

    An environment owns its randomness: two of them never disturb each other, and the global generators of torch and
    numpy are left alone. ``reset(seed)`` restarts every episode and the randomness; ``reset()`` restarts the episodes
    and lets the randomness run on.

    Batches are PyG batches of :class:`~ltos_pyg.data.Snapshot`, nodes and edges ordered by graph. ``node_id`` is
    needed unless ``spec.fixed_nodes``; ``edge_attr`` and ``action_mask`` are there exactly when the spec says so. What
    was returned stays as it is: an environment never writes to a tensor that it has handed out.

    :func:`~ltos_pyg.graph_env.check_env` holds an environment to all this. Most environments need not implement this
    class: :class:`~ltos_pyg.graph_env.VectorGraphEnv` makes one from a game that plays a single episode.
    """

    spec: GraphEnvSpec

    @abstractmethod
    def reset(self, seed: int | None = None) -> Batch:
        """Starts ``num_envs`` new episodes and returns the batch to act on."""

    @abstractmethod
    def step(self, action: Tensor) -> GraphStep:
        """Plays one action per node of the last batch, (N,) integers in node order.

        Raises:
            ValueError: If there is not one action per node; nothing has moved then.
        """

    def state_dict(self) -> dict[str, Any] | None:
        """Everything needed to go on exactly from here (tensors and plain containers), or ``None`` where the game
        cannot say: a resumed run then starts new episodes."""
        return None

    def load_state_dict(self, state: dict[str, Any]) -> Batch:
        """Goes back to a saved state and returns the batch to act on."""
        raise RuntimeError(f'{type(self).__name__} does not save its state: call reset() instead')

    def close(self) -> None:  # noqa: B027 (not every game holds something)
        """Releases what the game holds (windows, processes)."""
