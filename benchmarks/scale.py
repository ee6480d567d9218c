"""How time and memory grow with the number of agents, to 100,000 in one graph."""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch

from ltos_pyg.algos import LToS, LToSConfig
from ltos_pyg.envs import JungleEnv, TrafficConfig
from ltos_pyg.envs.traffic import make_traffic
from ltos_pyg.graph_env import GraphEnv
from ltos_pyg.nn import DGN, LToSConv

JUNGLE = (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)  # agents
TRAFFIC = (3, 10, 30, 100)  # signals on a side of the grid
CELLS, FOODS = 39.2, 0.6  # free cells and foods of each agent, as in the jungle's default
SECONDS = 0.5  # of repetitions of a short call
# a gradient step of every level on one graph
ONE_GRAPH = LToSConfig(
    n_step=1, batch_size=1, replay_size=6, learning_starts=0, train_freq=1.0, phi_starts=0.0, phi_every=1,
    encoder_channels=(256,),
)  # fmt: skip
PARTS = ('environment step', 'LToSConv, forward and backward', 'DGN, forward', 'LToS update')

Row = dict[str, Any]


def bench_scale() -> list[Row]:
    """For one call each on one graph: CPU seconds on one thread, and the growth of the peak resident memory.

    Every graph has a process of its own. The board of the jungle grows with its number of agents. Memory is
    measured on Linux only, and ``None`` elsewhere.
    """
    cases = [('jungle', agents) for agents in JUNGLE] + [('traffic', side**2) for side in TRAFFIC]
    for world in MAKERS:  # compiles: kernels are cached on disk
        _measured(world, 400, repeat=False)
    context = multiprocessing.get_context('spawn')  # where there is a GPU, PyTorch fails in a fork
    rows: list[Row] = []
    for world, agents in cases:
        with context.Pool(1) as pool:
            rows += _rows(world, agents, *pool.apply(_measured, (world, agents)), rows)
    return rows


def jungle(agents: int) -> GraphEnv:
    """A jungle with the default's density."""
    return JungleEnv(num_agents=agents, num_foods=round(FOODS * agents), size=jungle_size(agents))


def jungle_size(agents: int) -> int:
    """Cells on a side of a board with the default's density."""
    return 2 + round(math.sqrt(CELLS * agents))


def traffic(signals: int) -> GraphEnv:
    """A square grid of signals with an hour of the paper's demand."""
    side = math.isqrt(signals)
    return make_traffic(TrafficConfig(net=(f'{side}x{side}',)))


MAKERS: dict[str, Callable[[int], GraphEnv]] = {'jungle': jungle, 'traffic': traffic}


def _measured(world: str, agents: int, repeat: bool = True) -> tuple[int, dict[str, tuple[float, float | None]]]:
    torch.set_num_threads(1)
    return _measure(lambda: MAKERS[world](agents), repeat)


def _measure(make: Callable[[], GraphEnv], repeat: bool = True) -> tuple[int, dict[str, tuple[float, float | None]]]:
    """The number of edges, and for each part the CPU seconds and the growth of memory in MiB."""
    env = make()
    spec = env.spec
    graph = env.reset(0)
    learner = LToS(spec, ONE_GRAPH)
    conv = LToSConv(spec.num_features, 64, heads=4, edge_dim=spec.edge_dim)
    network = DGN(spec.num_features, spec.num_actions, encoder_channels=(256,), edge_dim=spec.edge_dim)
    graph, action = play(learner, env, graph, 2)
    seen = learner.inputs(graph)
    with torch.no_grad():
        calls: dict[str, Callable[[], Any]] = {
            PARTS[0]: lambda: env.step(action),
            PARTS[1]: lambda: torch.enable_grad()(lambda: conv(*seen).sum().backward())(),
            PARTS[2]: lambda: network(*seen),
            PARTS[3]: torch.enable_grad()(learner.update),
        }
        return graph.num_edges, {part: _once(call, repeat) for part, call in calls.items()}


def play(learner: LToS, env: GraphEnv, graph: Batch, steps: int) -> tuple[Batch, Tensor]:
    """Plays ``steps`` steps and stores them; returns the next graph and the last actions."""
    for _ in range(steps):
        decision = learner.act(graph, explore=True)
        step = env.step(decision.action)
        learner.observe(graph, decision, step)
        graph = step.graph
    return graph, decision.action


def _once(call: Callable[[], Any], repeat: bool) -> tuple[float, float | None]:
    """CPU seconds and MiB of a call; short ones are repeated, after one to warm up."""
    before = _fresh_peak()
    start = time.process_time()
    call()
    took = time.process_time() - start
    peak = _status('VmHWM')
    grown = None if before is None or peak is None else (peak - before) / 1024
    if repeat and took < SECONDS:
        times = max(1, int(SECONDS / max(took, 1e-4)))
        start = time.process_time()
        for _ in range(times):
            call()
        took = (time.process_time() - start) / times
    return took, grown


def _fresh_peak() -> int | None:
    """Returns freed memory to the system and resets the recorded peak; returns the resident memory in KiB."""
    if not Path('/proc/self/clear_refs').exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)
    Path('/proc/self/clear_refs').write_text('5')
    return _status('VmRSS')


def _status(name: str) -> int | None:
    if not Path('/proc/self/status').exists():
        return None
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def _rows(
    world: str, agents: int, edges: int, found: dict[str, tuple[float, float | None]], before: list[Row]
) -> list[Row]:
    rows = []
    for part, (seconds, mib) in found.items():
        last = [row for row in before if row['world'] == world and row['part'] == part]
        power = math.log(seconds / last[-1]['value']) / math.log(agents / last[-1]['agents']) if last else None
        memory = '' if mib is None else f'{mib:,.1f} MiB'
        rows.append(
            {
                'name': f'{world} {agents:,}: {part}',
                'value': seconds,
                'unit': 's',
                'ratio': power,
                'ratio_to': 'agents: the power of their number by which time grows, from the row before',
                'note': memory,
                'world': world,
                'part': part,
                'agents': agents,
                'edges': edges,
                'mib': mib,
            }
        )
    return rows


def plot_scale(rows: list[Row], path: Path) -> Path:
    """Draws time and memory over the number of agents, both logarithmic, beside a line of slope 1."""
    from matplotlib.figure import Figure

    worlds, looks = ('jungle', 'traffic'), dict(zip(PARTS, ('o-', 's--', '^-.', 'D:'), strict=True))
    figure = Figure(figsize=(9.5, 6.4), layout='constrained')
    axes = figure.subplots(2, 2, sharex='col', sharey='row')
    for column, world in enumerate(worlds):
        mine = [row for row in rows if row['world'] == world]
        for line, (key, label) in enumerate((('value', 'CPU seconds'), ('mib', 'growth of memory, MiB'))):
            ax = axes[line][column]
            for part, look in looks.items():
                points = [(row['agents'], row[key]) for row in mine if row['part'] == part and row[key]]
                ax.loglog(*zip(*points, strict=True), look, label=part, markersize=4, linewidth=1.2)
            top = max(row[key] for row in mine if row[key])
            ends = mine[0]['agents'], mine[-1]['agents']
            ax.loglog(ends, [top * end / ends[1] for end in ends], color='0.7', linewidth=3, zorder=0, label='slope 1')
            ax.set_ylabel(label if column == 0 else '')
            ax.grid(alpha=0.3)
        axes[0][column].set_title(f'{world}, one graph')
        axes[1][column].set_xlabel('agents' if world == 'jungle' else 'signals')
    axes[0][0].legend(fontsize=7.5)
    figure.savefig(path, dpi=130)
    return path
