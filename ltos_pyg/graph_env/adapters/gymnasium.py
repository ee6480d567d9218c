"""One episode of a graph environment as a Gymnasium environment, for tools that support only that API."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch_geometric.data import Batch

from ltos_pyg.graph_env.base import GraphEnv
from ltos_pyg.graph_env.spec import GraphEnvSpec

Observation = dict[str, Any]  # NumPy arrays, and two counts
AS_NUMPY = {torch.bool: torch.int8, torch.bfloat16: torch.float32}  # dtypes that differ in the arrays


class GymnasiumEnv(gymnasium.Env[Observation, np.ndarray]):
    """A :class:`~ltos_pyg.graph_env.GraphEnv` of one episode as a :class:`gymnasium.Env`.

    All agents together are one actor: ``MultiDiscrete`` actions, one per node, and the mean of their rewards. The
    reward of each agent is in ``info['rewards']``, with the metrics of the step and, at its end, of the episode.

    The observation is a ``Dict`` of arrays of fixed size, padded with zeros after the nodes and edges:

    ===============  =========================  =====================================================================
    ``x``            ``(max_nodes, F)``         features in the dtype of the spec (see below), not scaled
    ``edge_index``   ``(2, max_edges)`` int64   row 0 sends, row 1 receives; the first ``num_edges`` columns count
    ``num_nodes``    ``Discrete``               nodes in this step
    ``num_edges``    ``Discrete``               edges in this step
    ``edge_attr``    ``(max_edges, D)``         where the spec has ``edge_dim``
    ``node_id``      ``(max_nodes,)`` int64     where nodes come and go
    ``action_mask``  ``(max_nodes, A)`` int8    where the spec has one: 1 where an action is legal
    ===============  =========================  =====================================================================

    Features of bfloat16, which NumPy lacks, are float32; bool features are int8. Actions of padded nodes are ignored.
    ``reset(seed=...)`` reseeds the graph environment; ``reset()`` starts its next episode.

    Args:
        env (GraphEnv): The environment, made with ``num_envs=1``.

    Raises:
        ValueError: If the environment plays more than one episode at once.
        RuntimeError: If ``step`` is called after an episode ended.
    """

    metadata: dict[str, Any] = {'render_modes': []}

    def __init__(self, env: GraphEnv) -> None:
        if env.spec.num_envs != 1:
            raise ValueError(
                f"'env' must play one episode at a time (got num_envs={env.spec.num_envs}). Make it with "
                f'num_envs=1, or use its batched reset() and step() as they are.'
            )
        self.env = env
        self.observation_space = _observation_space(env.spec)
        self.action_space = spaces.MultiDiscrete([env.spec.num_actions] * env.spec.max_nodes)
        self._num_nodes: int | None = None  # None: no episode is running
        self._next: Batch | None = None  # start of the next episode, once one has ended

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        graph = self.env.reset(seed) if seed is not None or self._next is None else self._next
        self._next = None
        return self._observe(graph), {}

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        if self._num_nodes is None:
            raise RuntimeError('no episode is going on: call reset() first')
        step = self.env.step(torch.as_tensor(np.asarray(action)[: self._num_nodes]))
        observation = self._observe(step.successor)
        if bool(step.ended[0]):
            self._next, self._num_nodes = step.graph, None
        rewards = _array(step.reward)
        mean = float(rewards.mean()) if rewards.size else 0.0
        of_episode = step.outcome if bool(step.ended[0]) else {}
        info = {'rewards': rewards, **{name: _plain(value) for name, value in {**step.info, **of_episode}.items()}}
        return observation, mean, bool(step.terminated[0]), bool(step.truncated[0]), info

    def close(self) -> None:
        self.env.close()

    def _observe(self, graph: Batch) -> Observation:
        spec = self.env.spec
        N, E = graph.x.size(0), graph.edge_index.size(1)
        self._num_nodes = N
        out = {
            'x': _padded(graph.x, spec.max_nodes),
            'edge_index': np.ascontiguousarray(_padded(graph.edge_index.t(), spec.max_edges).T),
            'num_nodes': np.int64(N),
            'num_edges': np.int64(E),
        }
        if spec.edge_dim is not None:
            out['edge_attr'] = _padded(graph.edge_attr, spec.max_edges)
        if not spec.fixed_nodes:
            out['node_id'] = _padded(graph.node_id, spec.max_nodes)
        if spec.has_action_mask:
            out['action_mask'] = _padded(graph.action_mask.to(torch.int8), spec.max_nodes)
        return out


def _observation_space(spec: GraphEnvSpec) -> spaces.Dict:
    N, E = spec.max_nodes, spec.max_edges
    fields: dict[str, spaces.Space[Any]] = {
        'x': _box((N, spec.num_features), spec.feature_dtype),
        'edge_index': spaces.Box(0, N - 1, (2, E), np.int64),
        'num_nodes': spaces.Discrete(N + 1),
        'num_edges': spaces.Discrete(E + 1),
    }
    if spec.edge_dim is not None:
        fields['edge_attr'] = _box((E, spec.edge_dim), spec.edge_dtype)
    if not spec.fixed_nodes:
        fields['node_id'] = spaces.Box(0, 2**31 - 1, (N,), np.int64)
    if spec.has_action_mask:
        fields['action_mask'] = spaces.Box(0, 1, (N, spec.num_actions), np.int8)
    return spaces.Dict(fields)


def _box(shape: tuple[int, ...], dtype: torch.dtype) -> spaces.Box:
    """All numbers of a dtype; of floats, the finite ones of float32, which Gymnasium can draw from."""
    numpy_dtype = _array(torch.empty(0, dtype=dtype)).dtype
    if dtype == torch.bool:
        return spaces.Box(0, 1, shape, numpy_dtype.type)
    if dtype.is_floating_point:
        most = numpy_dtype.type(min(torch.finfo(dtype).max, torch.finfo(torch.float32).max))
        return spaces.Box(-most, most, shape, numpy_dtype.type)
    limits = torch.iinfo(dtype)
    return spaces.Box(numpy_dtype.type(limits.min), numpy_dtype.type(limits.max), shape, numpy_dtype.type)


def _padded(rows: Tensor, length: int) -> np.ndarray:
    array = _array(rows)
    out = np.zeros((length, *array.shape[1:]), dtype=array.dtype)
    out[: len(array)] = array
    return out


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return tensor.to(AS_NUMPY.get(tensor.dtype, tensor.dtype)).numpy()


def _plain(value: Tensor) -> Any:
    """A per-graph value as a number: there is one graph."""
    return value.item() if value.numel() == 1 else _array(value)
