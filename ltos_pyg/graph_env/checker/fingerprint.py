"""Fingerprints of returned batches: two runs are compared without storing them."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
from torch_geometric.data import Batch

from ltos_pyg.data.snapshot import Snapshot
from ltos_pyg.graph_env.base import GraphStep
from ltos_pyg.graph_env.checker.clauses import EnvCheckError

Digest = dict[str, bytes]  # a fingerprint per tensor


def digest(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    about = f'{tensor.dtype}{tuple(tensor.shape)}'.encode()
    return hashlib.blake2b(about + flat.view(torch.uint8).numpy().tobytes(), digest_size=16).digest()


def digest_graph(name: str, graph: Batch) -> Digest:
    return {f'{name}.{key}': digest(graph[key]) for key in graph.keys() if isinstance(graph[key], Tensor)}  # noqa: SIM118


def digest_step(step: GraphStep) -> Digest:
    graphs = digest_graph('graph', step.graph)
    graphs |= digest_graph('successor', step.successor)
    flags = {name: digest(getattr(step, name)) for name in ('reward', 'terminated', 'truncated')}
    measured = {f'info.{name}': value for name, value in step.info.items()}
    measured |= {f'outcome.{name}': value for name, value in step.outcome.items()}
    return graphs | flags | {name: digest(value) for name, value in measured.items()}


def digest_seen(graph: Snapshot | Batch) -> Digest:
    return {key: digest(graph[key]) for key in ('x', 'edge_index')}


def differences(expected: Digest, got: Digest) -> list[str]:
    return sorted(key for key in expected.keys() | got.keys() if expected.get(key) != got.get(key))


def check_same(expected: list[Digest], got: list[Digest], clause: str) -> None:
    """Raises for ``clause`` at the first step at which two runs differ."""
    for t, (one, other) in enumerate(zip(expected, got, strict=True)):
        names = differences(one, other)
        if names:
            where = 'reset' if t == 0 else f'step {t}'
            raise EnvCheckError(
                clause, where, 'the same episodes from the same seed and actions', f'other {", ".join(names)}'
            )
