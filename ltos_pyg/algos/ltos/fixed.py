"""Fixed LToS: the low level of LToS under weights that are never learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch_geometric.data import Batch

from ltos_pyg.algos.ltos.config import SharingQConfig
from ltos_pyg.algos.ltos.sharing_q import SharingQ
from ltos_pyg.data import Transition
from ltos_pyg.graph_env import GraphEnvSpec
from ltos_pyg.nn import Sharing, constant_sharing
from ltos_pyg.nn.functional import softmax_by_sender
from ltos_pyg.seeding import generator


@dataclass(frozen=True, kw_only=True)
class FixedLToSConfig(SharingQConfig):
    """Options of fixed LToS."""

    critic: Literal['node', 'edge'] = 'node'  # 'node': the paper's; 'edge': one value per pair of agents (ours)
    kept: float | Literal['uniform', 'random'] = 'uniform'  # share kept; the rest is split evenly; see FixedLToS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.critic not in ('node', 'edge'):
            raise ValueError(f"'critic' must be 'node' or 'edge' (got {self.critic!r})")
        if self.kept not in ('uniform', 'random') and not (isinstance(self.kept, (int, float)) and 0 <= self.kept <= 1):
            raise ValueError(f"'kept' must lie in [0, 1], or be 'uniform' or 'random' (got {self.kept!r})")


class FixedLToS(SharingQ):
    r"""LToS with constant weights (the paper's ablation): its low level on
    :math:`r^w_i = w_{ii} r_i + \sum_{j \to i} w_{ji} r_j`, with either critic.

    ``kept`` sets the weights: ``'uniform'``, :math:`w_{jj} = w_{ji} = 1 / (1 + d_j)`; a number :math:`s`, the share
    that each node with neighbours keeps (1: every agent keeps all); or ``'random'``, drawn uniformly on each sender's
    simplex at each step. The paper does not state which weights its ablation uses. The weights are not inputs of the
    networks, so with ``kept=1`` and the node critic this is DGN, to the bit.
    """

    config: FixedLToSConfig
    sees_weights = False

    def __init__(
        self, spec: GraphEnvSpec, config: FixedLToSConfig, seed: int = 0, device: str | torch.device = 'cpu'
    ) -> None:
        self.critic = config.critic
        self.shares_rng = generator(seed, 'shares', torch.device(device))
        super().__init__(spec, config, seed, device)

    def constant(self, graph: Batch, rng: torch.Generator) -> Sharing:
        """The weights of a batch of graphs."""
        edge_index, N = graph.edge_index, graph.num_nodes
        if self.config.kept == 'random':
            return random_sharing(edge_index, N, rng)
        return constant_sharing(edge_index, N, None if self.config.kept == 'uniform' else self.config.kept)

    def choose_sharing(self, graph: Batch, explore: bool) -> Sharing:
        return self.constant(graph, self.shares_rng if explore else self.play_rng)

    def next_sharing(self, t: Transition) -> Sharing:
        return self.constant(t.successor, self.shares_rng)

    def generators(self) -> dict[str, torch.Generator]:
        return super().generators() | {'shares': self.shares_rng}


def random_sharing(edge_index: torch.Tensor, num_nodes: int, rng: torch.Generator) -> Sharing:
    """Weights drawn uniformly on each sender's simplex, Dirichlet(1, ..., 1)."""
    device = edge_index.device
    sizes = edge_index.size(1), num_nodes
    edge, own = (torch.empty(size, device=device).exponential_(generator=rng) for size in sizes)
    return softmax_by_sender(edge.log(), own.log(), edge_index)
