"""Fixed LToS: DGN on rewards that are shared with constant weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch_geometric.data import Batch

from ltos_pyg.algos.dgn import DGN
from ltos_pyg.algos.dqn import DQNConfig
from ltos_pyg.data import Transition
from ltos_pyg.nn import Sharing, constant_sharing


@dataclass(frozen=True, kw_only=True)
class FixedLToSConfig(DQNConfig):
    """Options of fixed LToS."""

    own: float | None = None  # share that a node with neighbours keeps; None: 1 / (1 + number of neighbours)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.own is not None and not 0 <= self.own <= 1:
            raise ValueError(f"'own' must lie in [0, 1] (got {self.own})")


class FixedLToS(DGN):
    r"""LToS with constant weights (the paper's ablation): DGN on
    :math:`r^w_i = w_{ii} r_i + \sum_{j \to i} w_{ji} r_j`.

    The paper does not state its weights; see :class:`FixedLToSConfig` for ours.
    """

    config: FixedLToSConfig
    stores_sharing = True

    def choose_sharing(self, graph: Batch, explore: bool) -> Sharing | None:
        return constant_sharing(graph.edge_index, graph.num_nodes, self.config.own)

    def reward(self, t: Transition) -> Tensor:
        return t.shaped
