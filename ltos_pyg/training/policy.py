"""A trained policy as a function of graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from ltos_pyg.algos import Algorithm
from ltos_pyg.graph_env import GraphEnvSpec
from ltos_pyg.nn import Sharing
from ltos_pyg.nn.validation import check_finite


class Policy:
    """The trained policy of a run: ``action, sharing = policy(graph)``.

    Args:
        algorithm: The trained algorithm.
        spec: The spec of the environment of training.
    """

    def __init__(self, algorithm: Algorithm, spec: GraphEnvSpec) -> None:
        self.algorithm, self.spec = algorithm, spec
        self.reset()

    def __repr__(self) -> str:
        return f'{type(self).__name__}({type(self.algorithm).__name__}, num_features={self.spec.num_features})'

    def reset(self) -> None:
        """Starts new episodes: a recurrent method resets its state."""
        self.algorithm.reset_eval_state()

    @torch.no_grad()
    def __call__(self, graph: Data | Batch) -> tuple[Tensor, Sharing | None]:
        """The greedy action of every node, (N,) int64, and the sharing weights (``None``: the method has none): the
        share kept by each node (N,) and the share given along each edge (E,).

        Args:
            graph: One graph or a batch, with ``x`` (N, F) and ``edge_index`` (2, E); ``edge_attr`` (E, D) and
                ``action_mask`` (N, A) if and only if the environment has them. Graphs may have any number of nodes.
                Where agents enter and leave (``spec.fixed_nodes`` is False), methods with networks or slots per agent
                (``qmix``, ``neurcomm``, ``consenet``, ``lio``) also need ``node_id`` (N,), which identifies the agents.

        Raises:
            ValueError: If its features differ from the graphs of training, are NaN or infinite, an edge is there
                twice, or a method needs ``node_id`` and there is none: says which, expected and got.
        """
        check_graph(graph, self.spec)
        batch = graph if isinstance(graph, Batch) else Batch.from_data_list([graph])
        decision = self.algorithm.act(batch, explore=False)
        return decision.action, decision.sharing


def check_graph(graph: Any, spec: GraphEnvSpec) -> None:
    """Raises a ``ValueError`` unless a network for this environment can read the graph."""
    if not isinstance(graph, Data | Batch):
        raise ValueError(
            f"'graph' must be a torch_geometric Data, Snapshot or Batch (got {type(graph).__name__}). Build one with "
            f'Data(x=x, edge_index=edge_index).'
        )
    x, edge_index = graph.get('x'), graph.get('edge_index')
    for name, value in (('x', x), ('edge_index', edge_index)):
        if not isinstance(value, Tensor):
            raise ValueError(
                f"'graph' needs 'x' (N, F) and 'edge_index' (2, E) as tensors (got {type(value).__name__} for '{name}')"
            )
    if edge_index.dim() != 2 or edge_index.size(0) != 2:
        raise ValueError(f"'edge_index' expected shape (2, E), got {tuple(edge_index.shape)}")
    nodes, edges = x.size(0), edge_index.size(1)
    mask = graph.get('action_mask')
    for name, known in (('action_mask', spec.has_action_mask), ('edge_attr', spec.edge_dim is not None)):
        if graph.get(name) is not None and not known:
            raise ValueError(f"'{name}' is given, but the environment of training has none. Leave it out.")
    if edges > 0 and (int(edge_index.min()) < 0 or int(edge_index.max()) >= nodes):
        raise ValueError(
            f"'edge_index' must name nodes in [0, {nodes - 1}] (got {int(edge_index.min())}..{int(edge_index.max())})"
        )
    doubles = edges - (edge_index[0] * nodes + edge_index[1]).unique().numel()
    if doubles > 0:
        raise ValueError(
            f"'edge_index' must have each edge once (got {doubles} too many): a neighbour counts once. Drop them with "
            f'torch_geometric.utils.coalesce.'
        )
    wanted: dict[str, tuple[int, int] | None] = {
        'x': (nodes, spec.num_features),
        'edge_attr': None if spec.edge_dim is None else (edges, spec.edge_dim),
        'action_mask': (nodes, spec.num_actions) if spec.has_action_mask else None,
    }
    for name, shape in wanted.items():
        value = graph.get(name)
        got = None if value is None else tuple(value.shape)
        if shape is not None and got != shape:
            raise ValueError(
                f"'{name}' expected shape {shape}, as in training, got {got}. Build the graph as the environment of "
                f'the run does.'
            )
    if mask is not None and (mask.dtype != torch.bool or not bool(mask.any(1).all())):
        raise ValueError(
            f"'action_mask' must be torch.bool with at least one legal action for each node (got {mask.dtype}, "
            f'{int((mask == 0).all(1).sum())} nodes without one)'
        )
    for name in ('x', 'edge_attr'):
        if wanted[name] is not None:
            check_finite(name, graph[name])
