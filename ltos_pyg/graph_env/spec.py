"""What an environment declares about the graphs that it emits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ltos_pyg.graph_env.symmetry import Symmetry
from ltos_pyg.ranges import check_range


@dataclass(frozen=True, kw_only=True)
class GraphEnvSpec:
    """The declarations of a :class:`~ltos_pyg.graph_env.GraphEnv`: sizes, dtypes and bounds.

    Networks are sized from it, :class:`~ltos_pyg.data.GraphReplay` allocates memory by it, and
    :func:`~ltos_pyg.graph_env.check_env` checks the environment against it.
    """

    num_envs: int  # B: graphs per batch
    num_features: int  # F: columns of `x`
    num_actions: int  # A: actions are integers in [0, A)
    max_nodes: int  # of one graph, at any step
    max_edges: int  # of one graph, at any step
    edge_dim: int | None = None  # D: columns of `edge_attr`; None: the env emits none
    feature_dtype: torch.dtype = torch.float32  # dtype of `x`, also in the replay (int8 windows stay int8)
    edge_dtype: torch.dtype = torch.float32  # dtype of `edge_attr`
    feature_scale: tuple[float, ...] | None = None  # networks see x * feature_scale; None: x as it is
    edge_scale: tuple[float, ...] | None = None  # networks see edge_attr * edge_scale
    has_action_mask: bool = False  # the env emits `action_mask`
    fixed_nodes: bool = True  # each graph has the same nodes in the same order at every step of an episode
    symmetric: bool = False  # with j -> i there is always i -> j
    horizon: int | None = None  # steps after which an episode is truncated; None: no time limit
    num_tasks: int | None = None  # set if nothing is random: graph b plays task b % num_tasks; None: episodes differ
    symmetries: tuple[Symmetry, ...] = ()  # symmetries of the game, the identity first; (): none known

    def __post_init__(self) -> None:
        check_range(self, 'num_envs', 'num_features', 'num_actions', 'max_nodes', least=1)
        check_range(self, 'edge_dim', 'horizon', 'num_tasks', least=1, none=', or None for none')
        check_range(self, 'max_edges', least=0)
        for name, length in (('feature_scale', self.num_features), ('edge_scale', self.edge_dim)):
            scale = getattr(self, name)
            if scale is None:
                continue
            if not hasattr(scale, '__len__') or len(scale) != length:
                raise ValueError(f"'{name}' needs one number per column: expected {length}, got {scale}")
            plain = tuple(float(factor) for factor in scale)  # not NumPy's: JSON has none
            if not all(math.isfinite(factor) for factor in plain):
                raise ValueError(f"'{name}' must be finite (got {plain}). Does a column have no range?")
            object.__setattr__(self, name, plain)

        for symmetry in self.symmetries:
            symmetry.check(self.num_features, self.num_actions, self.edge_dim)

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        plain = dataclasses.asdict(self)
        return plain | {name: str(plain[name]).removeprefix('torch.') for name in ('feature_dtype', 'edge_dtype')}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> GraphEnvSpec:
        """From what :meth:`as_dict` gave, also after JSON has made lists of its tuples."""
        values = _tuples(plain)
        dtypes = {name: getattr(torch, values[name]) for name in ('feature_dtype', 'edge_dtype')}
        symmetries = tuple(Symmetry(**_tuples(symmetry)) for symmetry in values['symmetries'])
        return cls(**(values | dtypes | {'symmetries': symmetries}))

    def scale(self, of: str = 'feature') -> Tensor | None:
        """``feature_scale`` or ``edge_scale`` as a float32 tensor."""
        scale = self.feature_scale if of == 'feature' else self.edge_scale
        return None if scale is None else torch.tensor(scale, dtype=torch.float32)


def _tuples(plain: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
