"""Sampling and storing ragged graphs, against PyG's ``Batch.from_data_list`` on stored ``Data`` objects."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from ltos_pyg.data import GraphReplay, Snapshot, batch_snapshots
from ltos_pyg.graph_env import GraphEnvSpec, GraphStep
from ltos_pyg.nn import constant_sharing

NUM_ENVS, BATCH_SIZE, DEGREE = 32, 128, 4
SIZES = (16, 25)  # nodes of a graph: 20 on average
CAPACITY = 8_000  # frames
SPEC = GraphEnvSpec(
    num_envs=NUM_ENVS,
    num_features=123,
    num_actions=13,
    max_nodes=SIZES[1],
    max_edges=DEGREE * SIZES[1],
    feature_dtype=torch.int8,
    fixed_nodes=False,
)


def bench_replay(rounds: int = 40) -> list[dict[str, Any]]:
    """Times sampling and pushing on one thread, in CPU time; the two ways of sampling alternate.

    Args:
        rounds: Repetitions; the median is reported.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _bench(rounds, torch.Generator().manual_seed(0))
    finally:
        torch.set_num_threads(threads)


def _bench(rounds: int, rng: torch.Generator) -> list[dict[str, Any]]:
    replay = GraphReplay(SPEC, CAPACITY)
    pushes = _fill(replay, CAPACITY // NUM_ENVS + 20 + rounds, rng)  # past the first round of the rings
    stored = _stored(replay, 2_000)
    ours, theirs = [], []
    for _ in range(rounds + 3):
        ours.append(_microseconds(lambda: replay.sample(BATCH_SIZE, rng)))
        theirs.append(_microseconds(lambda: _sample_data(stored, rng)))
    sample, peer, push = (median(times) for times in (ours[3:], theirs[3:], pushes[-rounds:]))
    graphs = f'{BATCH_SIZE} graphs of about 20 nodes with their successors'
    return [
        _row('replay: sample', sample, 'us', '<= 300', f'{graphs}, one batch'),
        _row('replay: the same by PyG', peer, 'us', '', 'Batch.from_data_list of stored Data, same fields'),
        _row('replay: PyG / ours', peer / sample, 'x', '>= 4', 'same run, CPU time, one thread'),
        _row('replay: push', push, 'us', '<= 150', f'{NUM_ENVS} graphs of about 20 nodes, rings full'),
    ]


def _row(name: str, value: float, unit: str, target: str, note: str) -> dict[str, Any]:
    return {'name': name, 'value': value, 'unit': unit, 'target': target, 'note': note}


def _microseconds(call: Callable[[], Any]) -> float:
    start = time.process_time_ns()
    call()
    return (time.process_time_ns() - start) / 1e3


def _random_batch(rng: torch.Generator) -> Batch:
    """Ragged graphs; each node sends to the next ones of its graph."""
    nodes = torch.randint(*SIZES, (NUM_ENVS,), generator=rng)
    ptr = torch.cat([nodes.new_zeros(1), nodes.cumsum(0)])
    graph = torch.repeat_interleave(nodes)
    row = torch.arange(int(ptr[-1])) - ptr[graph]
    receiver = (row.unsqueeze(-1) + torch.arange(1, DEGREE + 1)) % nodes[graph].unsqueeze(-1) + ptr[graph].unsqueeze(-1)
    sender = torch.arange(row.numel()).repeat_interleave(DEGREE)
    x = torch.randint(-9, 9, (row.numel(), SPEC.num_features), dtype=torch.int8, generator=rng)
    return batch_snapshots(
        nodes, DEGREE * nodes, x=x, edge_index=torch.stack([sender, receiver.flatten()]), node_id=row
    )


def _fill(replay: GraphReplay, count: int, rng: torch.Generator) -> list[float]:
    """Pushes random steps; at each step, 1 in 50 episodes ends. Returns the time of each push."""
    graph, times = _random_batch(rng), []
    for _ in range(count):
        after, reward = _random_batch(rng), torch.randn(graph.num_nodes, generator=rng)
        ended = torch.rand(NUM_ENVS, generator=rng) < 0.02
        step = GraphStep(
            graph=after, successor=after, reward=reward, terminated=ended, truncated=torch.zeros_like(ended)
        )
        action = torch.randint(SPEC.num_actions, (graph.num_nodes,), generator=rng)
        sharing = constant_sharing(graph.edge_index, graph.num_nodes)
        times.append(_microseconds(lambda: replay.push(graph, action, sharing, step)))  # noqa: B023
        graph = after
    return times


def _stored(replay: GraphReplay, count: int) -> list[tuple[Data, Data]]:
    """The newest transitions as pairs of ``Data``, as a replay based on a list would store them."""
    t = replay.sample(count, torch.Generator().manual_seed(0), newest=count)
    assert t.sharing is not None
    row = torch.where(t.discount > 0, t.successor_node - t.successor.ptr[t.graph.batch], 0)
    per_node = {'action': t.action, 'reward': t.reward, 'discount': t.discount, 'next_row': row, 'kept': t.sharing.kept}
    before = _separate(t.graph, per_node, {'given': t.sharing.given})
    return list(zip(before, _separate(t.successor, {}, {}), strict=True))


def _separate(batch: Batch, per_node: dict[str, Tensor], per_edge: dict[str, Tensor]) -> list[Data]:
    single: list[Snapshot] = batch.to_data_list()
    nodes, edges = [graph.num_nodes for graph in single], [graph.num_edges for graph in single]
    parts = {name: value.split(nodes) for name, value in per_node.items()}
    parts |= {name: value.split(edges) for name, value in per_edge.items()}
    return [
        Data(**graph.to_dict(), **{name: part[i] for name, part in parts.items()}).apply(
            torch.clone  # separate storage, as when each step is stored by itself
        )
        for i, graph in enumerate(single)
    ]


def _sample_data(stored: list[tuple[Data, Data]], rng: torch.Generator) -> tuple[Batch, Batch]:
    pairs = [stored[i] for i in torch.randint(len(stored), (BATCH_SIZE,), generator=rng).tolist()]
    return Batch.from_data_list([pair[0] for pair in pairs]), Batch.from_data_list([pair[1] for pair in pairs])
