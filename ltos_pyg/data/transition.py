"""What :class:`~ltos_pyg.data.GraphReplay` returns: a batch of n-step transitions."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch

from ltos_pyg.nn.functional import Sharing
from ltos_pyg.nn.validation import check_rows


@dataclass(frozen=True)
class Transition:
    r"""A batch of n-step graph transitions. N nodes in B graphs, N' nodes in the B successors.

    ``m`` is the number of steps between a graph and its successor. It is n, or fewer if the episode ended or any agent
    left before that (also an agent that arrived after the graph): a return that neighbours share must not go on paying
    an agent that has left. All methods get these returns, so LToS in which every agent keeps all is the same as DGN.
    """

    graph: Batch  # o_t
    action: Tensor  # (N,) int64
    sharing: Sharing | None  # the weights stored with the action: given (E,), kept (N,); None: the replay stores none
    reward: Tensor  # (N,) float32: sum over k < m of gamma^k times the node's own reward, up to its last step
    discount: Tensor  # (N,) float32: gamma^m, and 0 where the task terminated or the agent left
    successor: Batch  # o_{t+m}
    successor_node: Tensor  # (N,) int64: row of the same agent in `successor`; 0 where it left (there discount is 0)
    index: Tensor  # (B,) int64: number of the frame, counted from the first one ever stored

    @property
    def num_graphs(self) -> int:
        return self.index.numel()

    def bootstrap(self, value: Tensor) -> Tensor:
        r"""``discount`` times each agent's value in ``successor``: what a TD target adds to ``reward``.

        Also valid if no agent is left in any successor and ``value`` (N',) is therefore empty.
        """
        check_rows('value', value, self.successor.num_nodes, 'node of successor')
        if value.size(0) == 0:
            return self.discount.clone()
        return self.discount * value.index_select(0, self.successor_node)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Transition:
        """The same transition on ``device``."""
        return Transition(**{f.name: _move(getattr(self, f.name), device, non_blocking) for f in fields(self)})


def _move(value: Any, device: torch.device | str, non_blocking: bool) -> Any:
    return None if value is None else value.to(device, non_blocking=non_blocking)
