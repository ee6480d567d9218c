"""The compiled half of :mod:`ltos_pyg.nn.kernels`: plain loops over NumPy arrays, for Numba.

Row ``p = ptr[i] + i`` of ``alpha`` is node i itself, and the rows ``p + 1 ... ptr[i + 1] + i`` are its in-edges in the
order of ``order``: the rows of one receiver are contiguous. Each loop over ``c`` runs along one head's channels, which
are contiguous too, so the compiler vectorises it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ltos_pyg.jit import jit

Array = npt.NDArray[Any]

ZERO, ONE = np.float32(0), np.float32(1)
# Sums may be reordered; NaN and infinities are respected, so that they propagate from input to output.
FASTMATH = {'reassoc', 'nsz', 'arcp', 'contract', 'afn'}


_jit = jit(nogil=True, fastmath=FASTMATH)


@_jit
def relu(x: Any) -> Any:
    return ZERO if x < ZERO else x  # a NaN stays one


@_jit
def group_by_receiver(receiver: Array, num_nodes: int) -> tuple[Array, Array]:
    """Counting sort: the edges of node i are ``order[ptr[i]:ptr[i + 1]]``."""
    ptr = np.zeros(num_nodes + 1, np.int64)
    for e in range(receiver.shape[0]):
        ptr[receiver[e] + 1] += 1
    for i in range(num_nodes):
        ptr[i + 1] += ptr[i]
    fill = ptr[:-1].copy()
    order = np.empty(receiver.shape[0], np.int64)
    for e in range(receiver.shape[0]):
        order[fill[receiver[e]]] = e
        fill[receiver[e]] += 1
    return ptr, order


@_jit
def attention_forward(
    qkv: Array, edge_attr: Array, edge_key: Array, edge_value: Array, sender: Array, ptr: Array, order: Array,
    alpha: Array, mean_attr: Array, out: Array,
) -> None:  # fmt: skip
    """Writes ``alpha`` (E + N, H), ``mean_attr`` (N, D, H) and ``out`` (N, H, C)."""
    N, _, H, C = qkv.shape
    D = edge_attr.shape[1]
    scale = np.float32(1 / math.sqrt(C))
    top, total, q_edge = np.empty(H, np.float32), np.empty(H, np.float32), np.empty((D, H), np.float32)
    for i in range(N):
        first, degree = ptr[i], ptr[i + 1] - ptr[i]
        q, y, z = qkv[i, 0], out[i], mean_attr[i]
        for d in range(D):
            for h in range(H):
                dot = ZERO
                for c in range(C):
                    dot += relu(q[h, c]) * edge_key[d, h, c]
                q_edge[d, h] = dot
        for p in range(degree + 1):
            e = order[first + p - 1] if p > 0 else 0
            k = qkv[sender[e] if p > 0 else i, 1]
            score = alpha[first + i + p]
            for h in range(H):
                dot = ZERO
                for c in range(C):
                    dot += relu(q[h, c]) * relu(k[h, c])
                score[h] = dot
            if p > 0:
                for d in range(D):
                    for h in range(H):
                        score[h] += q_edge[d, h] * edge_attr[e, d]
            for h in range(H):
                top[h] = max(top[h], score[h]) if p > 0 else score[h]
        total[:] = ZERO
        for p in range(degree + 1):
            weight = alpha[first + i + p]
            for h in range(H):
                weight[h] = np.exp((weight[h] - top[h]) * scale)
                total[h] += weight[h]
        z[:] = ZERO
        for p in range(degree + 1):
            e = order[first + p - 1] if p > 0 else 0
            v = qkv[sender[e] if p > 0 else i, 2]
            weight = alpha[first + i + p]
            for h in range(H):
                w = weight[h] / total[h]
                weight[h] = w
                if p == 0:
                    for c in range(C):
                        y[h, c] = w * relu(v[h, c])
                else:
                    for c in range(C):
                        y[h, c] += w * relu(v[h, c])
            if p > 0:
                for d in range(D):
                    for h in range(H):
                        z[d, h] += weight[h] * edge_attr[e, d]
        for d in range(D):
            for h in range(H):
                w = z[d, h]
                for c in range(C):
                    y[h, c] += w * edge_value[d, h, c]


@_jit
def attention_backward(
    qkv: Array, edge_attr: Array, edge_key: Array, edge_value: Array, sender: Array, ptr: Array, order: Array,
    alpha: Array, mean_attr: Array, g_out: Array, g_qkv: Array, g_edge_attr: Array, g_edge_key: Array,
    g_edge_value: Array,
) -> None:  # fmt: skip
    """Writes ``g_qkv`` and ``g_edge_attr``, and adds to ``g_edge_key`` and ``g_edge_value``."""
    N, _, H, C = qkv.shape
    D = edge_attr.shape[1]
    scale = np.float32(1 / math.sqrt(C))
    g_rows, fresh = g_qkv.reshape(N, 3 * H * C), 0
    most = 0
    for i in range(N):
        most = max(most, ptr[i + 1] - ptr[i])
    g_score, mean = np.empty((most + 1, H), np.float32), np.empty(H, np.float32)
    q_edge, g_q_edge, g_z = np.empty((D, H), np.float32), np.empty((D, H), np.float32), np.empty((D, H), np.float32)
    for i in range(N):
        first, degree = ptr[i], ptr[i + 1] - ptr[i]
        q, g_q, g_y, z = qkv[i, 0], g_qkv[i, 0], g_out[i], mean_attr[i]
        for d in range(D):
            for h in range(H):
                dot, g_dot, w = ZERO, ZERO, z[d, h]
                for c in range(C):
                    dot += relu(q[h, c]) * edge_key[d, h, c]
                    g_dot += g_y[h, c] * edge_value[d, h, c]
                for c in range(C):
                    g_edge_value[d, h, c] += w * g_y[h, c]
                q_edge[d, h], g_z[d, h] = dot, g_dot
        g_q_edge[:] = ZERO
        mean[:] = ZERO
        for p in range(degree + 1):
            e = order[first + p - 1] if p > 0 else 0
            j = sender[e] if p > 0 else i
            while fresh <= j:  # a row is zeroed just before its first use: it is then in the cache
                g_rows[fresh] = ZERO
                fresh += 1
            v, g_v = qkv[j, 2], g_qkv[j, 2]
            weight, g = alpha[first + i + p], g_score[p]
            for h in range(H):
                dot, w = ZERO, weight[h]
                for c in range(C):
                    x, g_x = v[h, c], g_y[h, c]
                    dot += g_x * relu(x)
                    g_v[h, c] += w * g_x if x > ZERO else ZERO
                g[h] = dot
            if p > 0:
                for d in range(D):
                    for h in range(H):
                        g[h] += g_z[d, h] * edge_attr[e, d]
            for h in range(H):
                mean[h] += weight[h] * g[h]
        for p in range(degree + 1):
            e = order[first + p - 1] if p > 0 else 0
            j = sender[e] if p > 0 else i
            k, g_k = qkv[j, 1], g_qkv[j, 1]
            weight, g = alpha[first + i + p], g_score[p]
            for h in range(H):
                w = weight[h] * (g[h] - mean[h]) * scale
                g[h] = w
                for c in range(C):
                    x, g_x = k[h, c], w * relu(q[h, c])
                    g_q[h, c] += w * relu(x)
                    g_k[h, c] += g_x if x > ZERO else ZERO
            if p > 0:
                for d in range(D):
                    total = ZERO
                    for h in range(H):
                        g_q_edge[d, h] += g[h] * edge_attr[e, d]
                        total += g[h] * q_edge[d, h] + weight[h] * g_z[d, h]
                    g_edge_attr[e, d] = total
        for d in range(D):
            for h in range(H):
                w = g_q_edge[d, h]
                for c in range(C):
                    g_q[h, c] += w * edge_key[d, h, c]
                    g_edge_key[d, h, c] += w * relu(q[h, c])
        for h in range(H):
            for c in range(C):
                g_x = g_q[h, c]
                g_q[h, c] = g_x if q[h, c] > ZERO else ZERO
