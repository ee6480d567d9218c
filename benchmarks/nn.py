"""DGNConv and a gradient step of DGN, compared with PyG's own layers in the same run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import MLP, TransformerConv
from torch_geometric.utils import add_self_loops

from ltos_pyg.nn import DGN, DGNConv, kernels

NODES, DEGREE = 20, 3  # of each graph; in-neighbours of each node, besides itself
WIDTH, HEADS, EDGE_DIM = 128, 8, 3
FEATURES, ACTIONS, ENCODER = 123, 9, 512  # as in the jungle
LAYER_GRAPHS, STEP_GRAPHS = 256, 32
LINEAR = 'linear layers'
STEP_NOTE = f'{STEP_GRAPHS} graphs x {NODES}, {FEATURES}-{ENCODER}-{WIDTH}, 2 layers, target network, Adam'

Call = Callable[[], Any]


def bench_nn(rounds: int = 30) -> list[dict[str, Any]]:
    """Times layers and gradient steps on one thread, in CPU time; compared versions alternate.

    Args:
        rounds: Repetitions; the median counts.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _layers(rounds) + _gradient_steps(rounds)
    finally:
        torch.set_num_threads(threads)


def _layers(rounds: int) -> list[dict[str, Any]]:
    edge_index = _edges(LAYER_GRAPHS)
    x = torch.randn(LAYER_GRAPHS * NODES, WIDTH, requires_grad=True)
    edge_attr = torch.randn(edge_index.size(1), EDGE_DIM)
    with_loops = add_self_loops(edge_index, num_nodes=x.size(0))[0]
    conv, rich = DGNConv(WIDTH, WIDTH, HEADS), DGNConv(WIDTH, WIDTH, HEADS, EDGE_DIM)
    linears = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
    peer = _PyGLayer()
    calls: dict[str, Call] = {
        'linears': lambda: linears[3](linears[0](x) + linears[1](x) + linears[2](x)),
        'ours': lambda: conv(x, edge_index),
        'edges': lambda: rich(x, edge_index, edge_attr),
        'eager': lambda: _eager(lambda: conv(x, edge_index)),
        'peer': lambda: peer(x, with_loops),
    }
    both_ways = {name: _forward_and_backward(call) for name, call in calls.items()}
    us = {name: 1e6 * seconds / LAYER_GRAPHS for name, seconds in _taking_turns(both_ways, rounds).items()}
    shape = f'{LAYER_GRAPHS} graphs x {NODES} nodes, {DEGREE} in-edges, {WIDTH} wide, {HEADS} heads, there and back'
    linear, ours = us['linears'], us['ours']
    return [
        _row('layer: its four linear layers', linear, 'us/graph', note=shape),
        _row('layer: DGNConv', ours, 'us/graph', ours / linear, LINEAR, '<= 1.5'),
        _row(f'layer: DGNConv, edge_dim={EDGE_DIM}', us['edges'], 'us/graph', us['edges'] / linear, LINEAR),
        _row('layer: DGNConv, eager', us['eager'], 'us/graph', us['eager'] / linear, LINEAR, note='without Numba'),
        _row('layer: PyG', us['peer'], 'us/graph', us['peer'] / linear, LINEAR, note='TransformerConv, output layer'),
        _row('layer: PyG / DGNConv', us['peer'] / ours, 'x', target='>= 1.5'),
    ]


def _gradient_steps(rounds: int) -> list[dict[str, Any]]:
    edge_index = _edges(STEP_GRAPHS)
    N = STEP_GRAPHS * NODES
    with_loops = add_self_loops(edge_index, num_nodes=N)[0]
    x, x_next = torch.randn(2, N, FEATURES)
    reward, action = torch.randn(N), torch.randint(ACTIONS, (N,))
    calls: dict[str, Call] = {}
    for precision in ('float32', 'bf16'):
        ours, eager = (_Learner(lambda: DGN(FEATURES, ACTIONS, encoder_channels=(ENCODER,)), precision) for _ in 'oe')
        peer = _Learner(_PyGNet, precision)
        calls[f'ours {precision}'] = partial(ours.step, x, x_next, edge_index, action, reward)
        calls[f'peer {precision}'] = partial(peer.step, x, x_next, with_loops, action, reward)
        calls[f'eager {precision}'] = partial(_eager, partial(eager.step, x, x_next, edge_index, action, reward))
    rate = {name: N / seconds for name, seconds in _taking_turns(calls, rounds).items()}
    unit = 'agent-transitions/s'
    rows = []
    for precision in ('float32', 'bf16'):
        mine, theirs, plain = (rate[f'{layer_kind} {precision}'] for layer_kind in ('ours', 'peer', 'eager'))
        name = f'DGN step, {precision}'
        rows += [
            _row(name, mine, unit, mine / theirs, 'PyG', '>= 1.4', STEP_NOTE),
            _row(f'{name}: the same, eager', plain, unit, plain / theirs, 'PyG', note='without Numba'),
            _row(f'{name}: PyG', theirs, unit, note='TransformerConv in place of DGNConv'),
        ]
    return [*rows, _row('DGN step: bf16 / float32', rate['ours bf16'] / rate['ours float32'], 'x')]


def _row(
    name: str,
    value: float,
    unit: str,
    ratio: float | None = None,
    ratio_to: str = '',
    target: str = '',
    note: str = '',
) -> dict[str, Any]:
    note = ', '.join(part for part in (f'ratio to {ratio_to}' if ratio_to else '', note) if part)
    return {
        'name': name,
        'value': value,
        'unit': unit,
        'ratio': ratio,
        'ratio_to': ratio_to,
        'target': target,
        'note': note,
    }


class _PyGLayer(nn.Module):
    """Like DGNConv, without the ReLU on queries, keys and values; edges must include self-loops."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = TransformerConv(WIDTH, WIDTH // HEADS, HEADS, root_weight=False)
        self.lin = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.lin(self.conv(x, edge_index)).relu()


class _PyGNet(nn.Module):
    """DGN of PyG's layers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = MLP([FEATURES, ENCODER, WIDTH], norm=None, plain_last=False)
        self.layers = nn.ModuleList(_PyGLayer() for _ in range(2))
        self.head = nn.Linear(3 * WIDTH, ACTIONS)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        outs = [self.encoder(x)]
        for layer in self.layers:
            outs.append(layer(outs[-1], edge_index))
        return self.head(torch.cat(outs, dim=-1)).float()


class _Learner:
    """One network, its target and its optimizer."""

    def __init__(self, build: Callable[[], nn.Module], precision: str) -> None:
        self.network, self.target = build(), build().requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-4, fused=True)
        self.autocast = precision == 'bf16'

    def step(self, x: Tensor, x_next: Tensor, edge_index: Tensor, action: Tensor, reward: Tensor) -> None:
        with torch.autocast('cpu', torch.bfloat16, enabled=self.autocast):
            with torch.no_grad():
                target = reward + 0.96 * self.target(x_next, edge_index).amax(-1)
            q = self.network(x, edge_index).gather(-1, action.unsqueeze(-1)).squeeze(-1)
        self.optimizer.zero_grad(set_to_none=True)
        nn.functional.smooth_l1_loss(q, target).backward()
        self.optimizer.step()


def _edges(num_graphs: int) -> Tensor:
    """Each node receives messages from ``DEGREE`` random others of its graph; edges are sorted by receiver."""
    receiver = torch.arange(NODES).repeat(num_graphs, 1)
    others = torch.rand(num_graphs, NODES, NODES - 1).argsort(-1)[..., :DEGREE]
    sender = others + (others >= receiver.unsqueeze(-1)).long()
    shift = NODES * torch.arange(num_graphs).view(-1, 1, 1)
    return torch.stack([(sender + shift).flatten(), (receiver.unsqueeze(-1) + shift).expand_as(sender).flatten()])


def _eager(call: Call) -> Any:
    least, kernels.MIN_EDGES = kernels.MIN_EDGES, sys.maxsize
    try:
        return call()
    finally:
        kernels.MIN_EDGES = least


def _forward_and_backward(call: Call) -> Call:
    return lambda: call().sum().backward()


def _taking_turns(calls: dict[str, Call], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each call, after three to warm up (compilation)."""
    took: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 3):
        for name, call in calls.items():
            start = time.process_time()
            call()
            took[name].append(time.process_time() - start)
    return {name: median(times[3:]) for name, times in took.items()}
