"""Traces: the phases shown in each second, and the resulting traffic."""

from __future__ import annotations

import os
import secrets
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .engine import TrafficEngine, make_engine
from .files.flow import OneRoad, load_flow
from .files.network import RoadNetwork, load_network

Array = npt.NDArray[Any]

SAMPLE_EVERY = 300  # seconds between positions


def replay(
    roadnet: str | Path,
    flow: str | Path,
    phases: str | Path,
    out: str | Path,
    one_road: OneRoad = 'strict',
    seed: int = 0,
) -> dict[str, Array]:
    """Applies the phases of a trace file in the native engine, and writes the resulting trace.

    Args:
        roadnet, flow: CityFlow's files.
        phases: A trace; only its array ``phase`` is used, after a check of ``intersections``.
        out: The file to write, see :func:`play_phases`.
        one_road (str): See :func:`~ltos_pyg.envs.traffic.load_flow`.
        seed (int): CityFlow's.

    Raises:
        ValueError: If one of the files is not valid.
    """
    network = load_network(roadnet)
    engine = make_engine(network, load_flow(flow, network, one_road), seed=seed)
    trace = play_phases(engine, load_phases(phases, network))
    save_trace(out, trace)
    return trace


def play_phases(
    engine: TrafficEngine, phase: npt.NDArray[np.integer[Any]], every: int = SAMPLE_EVERY
) -> dict[str, Array]:
    """Applies phases second by second, from a reset on, and records the first episode of an engine.

    Args:
        engine (TrafficEngine): It is reset first; all its episodes get the same phases.
        phase: (T, I), phase of each signal in each second, set before the step.
        every (int): Seconds between the samples of positions.

    Returns:
        In this order: ``intersections`` (I,) and ``lanes`` (L,), ids; ``phase`` (T, I); ``lane_vehicle_count`` and
        ``lane_waiting_count`` (T, L) after each step, as bytes if they fit; ``average_travel_time``, at the end; and
        for every k-th second ``vehicles_k``, the ids on the road, sorted, ``distance_k`` and ``speed_k``.

    Raises:
        ValueError: If the phases are of another shape, or a signal has no such phase.
    """
    network, phase = engine.network, np.asarray(phase)
    if phase.ndim != 2 or phase.shape[1] != network.num_signals:
        raise ValueError(f"'phase' must be of shape (T, I={network.num_signals}) (got {phase.shape})")
    if every < 1:
        raise ValueError(f"'every' must be at least 1 (got {every})")
    T, L, samples = len(phase), network.num_lanes, {}
    count, waiting = np.zeros((T, L), np.int32), np.zeros((T, L), np.int32)
    engine.reset()
    for t in range(T):
        engine.set_phases(np.repeat(phase[t : t + 1], engine.num_envs, 0))
        engine.step()
        count[t], waiting[t] = engine.lane_vehicle_count()[0], engine.lane_waiting_count()[0]
        if (t + 1) % every == 0:
            table = engine.vehicles(0)
            samples[f'vehicles_{t + 1}'] = np.array(table.vehicle_ids)
            samples[f'distance_{t + 1}'] = table.distance
            samples[f'speed_{t + 1}'] = table.speed
    return {
        'intersections': np.array(network.signal_ids),
        'lanes': np.array(network.lane_ids),
        'phase': _small(phase),
        'lane_vehicle_count': _small(count),
        'lane_waiting_count': _small(waiting),
        'average_travel_time': np.array(engine.average_travel_time()[0]),
        **samples,
    }


def save_trace(path: str | Path, trace: dict[str, Array]) -> None:
    """Writes a trace as ``.npz``, atomically."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f'.{target.name}.{secrets.token_hex(4)}.tmp')
    try:
        with temporary.open('xb') as file:
            np.savez_compressed(file, **trace)  # type: ignore[arg-type]  # no array is called allow_pickle
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_trace(path: str | Path) -> dict[str, Array]:
    """All arrays of a trace.

    Raises:
        ValueError: If the file is not a trace.
    """
    try:
        with Path(path).open('rb') as file:
            if not zipfile.is_zipfile(file):
                raise ValueError('cut off, or of another kind. Of a trained run: ltos traffic plan RUN --out plan.npz')
            file.seek(0)
            loaded = np.load(file, allow_pickle=False)
            trace = {name: loaded[name] for name in loaded.files}
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"trace '{path}' cannot be read: {error}") from error
    except ValueError as error:
        raise ValueError(f"trace '{path}' is not a valid .npz archive: {error}") from error
    if 'phase' not in trace:
        raise ValueError(f"trace '{path}' has no array 'phase' (it has {', '.join(trace) or 'none'})")
    return trace


def load_phases(path: str | Path, network: RoadNetwork) -> npt.NDArray[np.int64]:
    """The phases of a trace, (T, I), for the signals of a network.

    Raises:
        ValueError: If the file is not a trace, or is one of other signals.
    """
    trace = load_trace(path)
    phase = trace['phase']
    if phase.ndim != 2 or not np.issubdtype(phase.dtype, np.integer) or phase.shape[1] != network.num_signals:
        raise ValueError(
            f"trace '{path}': array 'phase' must hold integers of shape (T, I={network.num_signals}) "
            f'(got {phase.dtype}, {phase.shape})'
        )
    named = trace.get('intersections')
    if named is not None and named.tolist() != list(network.signal_ids):
        raise ValueError(f"trace '{path}': array 'intersections' names other signals than the road network has")
    return phase.astype(np.int64)


def _small(array: Array) -> Array:
    """As bytes where they fit."""
    if array.size and (array.min() < 0 or array.max() > 255):
        return array.astype(np.int32)
    return array.astype(np.uint8)
