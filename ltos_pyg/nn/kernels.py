"""The attention core of :class:`~ltos_pyg.nn.DGNConv` as one compiled CPU kernel, with its exact gradient.

PyTorch's scatter operations write one row per edge and head several times over. This kernel walks over the receivers,
reads each sender's row in place and stores only the attention weights. It is compiled by Numba on first
use (some seconds, then cached on disk), is imported only when a layer asks for it, and needs no C++ compiler.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ltos_pyg.nn.validation import is_traced

# Fewer edges run in plain PyTorch, which also has second derivatives. Without gradients a quarter is enough.
MIN_EDGES = 64


# The kernel writes the gradients of `qkv` and `edge_attr`, and adds to those of `edge_key` and `edge_value`.
_GRADIENTS = torch.empty_like, torch.empty_like, torch.zeros_like, torch.zeros_like


class _NeighbourAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, edge_attr: Tensor, edge_key: Tensor, edge_value: Tensor, edge_index: Tensor
    ) -> Tensor:
        from ltos_pyg.nn.kernels_numba import attention_forward, group_by_receiver

        inputs = [t.detach().contiguous() for t in (qkv, edge_attr, edge_key, edge_value)]
        N, _, H, C = qkv.shape
        E, D = edge_attr.shape
        sender, receiver = (row.contiguous().numpy() for row in edge_index)
        csr = sender, *group_by_receiver(receiver, N)
        alpha, mean_attr, out = (qkv.new_empty(shape) for shape in ((E + N, H), (N, D, H), (N, H, C)))
        attention_forward(*[t.numpy() for t in inputs], *csr, alpha.numpy(), mean_attr.numpy(), out.numpy())
        # `csr` reads the memory of `edge_index`: saved too, PyTorch refuses a backward after it was changed in place.
        ctx.save_for_backward(*inputs, alpha, mean_attr, edge_index)
        ctx.csr = csr
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g_out: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        from ltos_pyg.nn.kernels_numba import attention_backward

        *inputs, alpha, mean_attr, _ = ctx.saved_tensors
        gradients = [make(t) for make, t in zip(_GRADIENTS, inputs, strict=True)]
        rest = [t.numpy() for t in (alpha, mean_attr, g_out.contiguous(), *gradients)]
        attention_backward(*[t.numpy() for t in inputs], *ctx.csr, *rest)
        return *gradients, None  # type: ignore[return-value]


@lru_cache(maxsize=1)
def _has_numba() -> bool:
    found = find_spec('numba') is not None
    if not found:
        warnings.warn('Numba is missing: DGNConv runs in plain PyTorch, slower. Install numba.', stacklevel=2)
    return found


def can_use_kernel(qkv: Tensor, edge_index: Tensor) -> bool:
    """Whether the compiled kernel can be used: float32 on the CPU, enough edges, and no tracing or transforming.

    Tracing is checked first: under ``torch.export``, comparing the number of edges would specialise the graph to it.
    """
    return (
        not is_traced()
        and qkv.device.type == 'cpu'
        and qkv.dtype == torch.float32
        and edge_index.size(1) >= (MIN_EDGES if torch.is_grad_enabled() else MIN_EDGES // 4)
        and not torch._C._are_functorch_transforms_active()  # torch.func, as autograd.Function itself asks
        and _has_numba()
    )


def neighbour_attention(
    qkv: Tensor, edge_attr: Tensor, edge_key: Tensor, edge_value: Tensor, edge_index: Tensor
) -> Tensor:
    r"""Attention of each node over itself and its in-neighbours, with :math:`\mathrm{ReLU}` on queries, keys, values.

    .. math::
        \alpha_{ij} \propto \exp\frac{q_i^\top (k_j + K a_{ji})}{\sqrt{C}}, \qquad
        y_i = \sum_{j \in \{i\} \cup \mathcal{N}_i} \alpha_{ij} (v_j + V a_{ji})

    for each head, with :math:`a_{ii} = 0`.

    Shapes:
        - **input:** stacked queries, keys and values before the ReLU :math:`(N, 3, H, C)`, edge features :math:`a`
          :math:`(E, D)`, their maps :math:`K` and :math:`V` of shape :math:`(D, H, C)`, edge indices :math:`(2, E)`;
          all in float32 on the CPU
        - **output:** :math:`y` of shape :math:`(N, H, C)`

    The input is not checked here: the compiled loops have no bounds checks, and :class:`~ltos_pyg.nn.DGNConv` does
    them.
    """
    return _NeighbourAttention.apply(qkv, edge_attr, edge_key, edge_value, edge_index)
