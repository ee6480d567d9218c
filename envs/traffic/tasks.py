"""Networks and flows by name: CityFlow's files, or generated grids with the demand of the paper."""

from __future__ import annotations

import atexit
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import torch

from ..checks import check_count
from .config import TrafficConfig
from .env import Task, TrafficEnv
from .files.flow import OneRoad, load_flow
from .files.generate import generate_flow, generate_grid
from .files.network import RoadNetwork, load_network


def make_traffic(config: TrafficConfig, num_envs: int = 1, device: str | torch.device = 'cpu') -> TrafficEnv:
    """The environment of a configuration.

    Raises:
        ValueError: If an option is out of its range, or a file is not a valid network or flow.
    """
    tasks = load_tasks(config.net, config.flow, config.demand_seed, config.demands, config.turn, config.one_road)
    return TrafficEnv(tasks, num_envs, config, device=device)


def load_tasks(
    net: Sequence[str],
    flow: Sequence[str] = (),
    demand_seed: int = 0,
    demands: int = 1,
    turn: float = 0.0,
    one_road: OneRoad = 'strict',
) -> list[Task]:
    """Networks with their flows.

    Args:
        net: ``ROWSxCOLS`` of a generated grid, or the path of a road network.
        flow: Paths of flows: one for each network, or several for the only one. None: ``demands`` generated flows on
            each network, the hour of the paper's Table 2.
        demand_seed: Seed of the first generated flow; the others have the next seeds.
        demands: Generated flows for each network.
        turn: Probability that a generated vehicle turns at an intersection.
        one_road: As for :func:`~ltos_pyg.envs.traffic.load_flow`.

    Raises:
        ValueError: If the numbers of networks and flows do not match, a file is not valid, or an option of generated
            demand is given with a flow.
    """
    check_count('demand_seed', demand_seed, 0)
    check_count('demands', demands, 1)
    if not net:
        raise ValueError("'net' must name at least one network: a grid such as 6x6, or a file (got none)")
    if flow and len(net) not in (1, len(flow)):
        raise ValueError(
            f"'flow' needs one file for each network, or several for a single one: expected {len(net)}, got {len(flow)}"
        )
    if flow and (demand_seed, demands, turn) != (0, 1, 0.0):
        raise ValueError(
            f"'demand_seed', 'demands' and 'turn' are options of generated demand (got {demand_seed}, {demands}, "
            f"{turn}, and the flow '{flow[0]}'). Leave them out, or leave 'flow' out."
        )
    if flow:
        nets = list(net) * len(flow) if len(net) == 1 else list(net)
        pairs = zip(nets, flow, strict=True)
        return [_from_files(name, path, _changed(name), _changed(path), one_road) for name, path in pairs]
    seeds = range(demand_seed, demand_seed + demands)
    return [_generated(name, _changed(name), seed, turn) for name in net for seed in seeds]


def _changed(path: str) -> int:
    """Modification time of a file, so that cached content is not used after a change."""
    return Path(path).stat().st_mtime_ns if _grid_size(path) is None and Path(path).is_file() else 0


def _grid_size(name: str) -> tuple[int, int] | None:
    size = re.fullmatch(r'(\d{1,3})x(\d{1,3})', name)
    return None if size is None else (int(size[1]), int(size[2]))


@lru_cache(maxsize=32)
def _from_files(net: str, flow: str, net_changed: int, flow_changed: int, one_road: OneRoad) -> Task:
    network = _network(net, net_changed)
    return network, load_flow(flow, network, one_road)


@lru_cache(maxsize=32)
def _network(net: str, changed: int) -> RoadNetwork:
    size = _grid_size(net)
    if size is None:
        return load_network(net)
    return load_network(_write(f'{net}.json', generate_grid(*size)))


@lru_cache(maxsize=32)
def _generated(net: str, changed: int, seed: int, turn: float) -> Task:
    network = _network(net, changed)
    size = _grid_size(net)
    document = generate_grid(*size) if size else json.loads(Path(net).read_text(encoding='utf-8'))
    flow = _write(f'demand_{seed}.json', generate_flow(document, seed=seed, turn=turn))
    return network, load_flow(flow, network)


def _write(name: str, document: object) -> Path:
    """A new file in a temporary folder of this process, as CityFlow's own engine reads files."""
    path = Path(tempfile.mkdtemp(dir=_folder())) / name
    path.write_text(json.dumps(document), encoding='utf-8')
    return path


@cache
def _folder() -> str:
    folder = tempfile.mkdtemp(prefix='ltos_traffic_')
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
