"""Broken files: whatever is wrong with them, a ``ValueError`` says so, and what is let through can be driven on."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from traffic_files import GRID, Json

from ltos_pyg.envs.traffic import load_flow, load_network
from ltos_pyg.envs.traffic.engine.native import NativeEngine

FEW = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(max_examples=4000, deadline=None, suppress_health_check=list(HealthCheck))

JUNK: list[Any] = [
    None, True, False, 0, -1, 1, 2, 7, 0.5, -0.0, 1e-300, 1e300, -1e300, float('nan'), float('inf'), 2**31, 2**63,
    2**64, -(2**70), 10**30, '', 'x', '\0', '\ud800', 'road_0_1_0', 'intersection_1_1', 'turn_left', [], {}, [[]],
    [0], [-1], [10**9], [None], {'x': 0}, {'x': 1, 'y': 2}, {'x': 'a', 'y': None}, 'y' * 5000,
]  # fmt: skip


def small_network() -> Json:
    """The grid with four of its seven crossings' links thinned out, so that a case takes milliseconds."""
    network = json.loads((GRID / 'grid_2x3_roadnet.json').read_text())
    for i in network['intersections'][:-4]:
        for link in i['roadLinks']:
            link['laneLinks'] = link['laneLinks'][:1]
            link['laneLinks'][0]['points'] = link['laneLinks'][0]['points'][::5]
    return network


NETWORK = small_network()
FLOW = json.loads((GRID / 'grid_2x3_flow.json').read_text())[:40]


def place(draw: Any, root: Any) -> tuple[Any, Any]:
    """A container somewhere within, and one of its keys; deep places are as likely as high ones."""
    while True:
        keys = list(root) if isinstance(root, dict) else list(range(len(root)))
        key = draw(st.sampled_from(keys))
        below = root[key]
        if not isinstance(below, (dict, list)) or not below or draw(st.integers(0, 3)) == 0:
            return root, key
        root = below


def mutate(draw: Any, root: Any) -> Any:
    root = json.loads(json.dumps(root))
    for _ in range(draw(st.integers(1, 3))):
        holder, key = place(draw, root)
        match draw(st.sampled_from(['replace', 'remove', 'repeat', 'swap', 'scale'])):
            case 'replace':
                holder[key] = copy.deepcopy(draw(st.sampled_from(JUNK)))
            case 'remove':
                del holder[key]
                if not root:
                    break
            case 'repeat' if isinstance(holder, list):
                holder.insert(key, holder[key])
            case 'swap':
                other, there = place(draw, root)
                holder[key], other[there] = json.loads(json.dumps((other[there], holder[key])))
            case 'scale' if isinstance(holder[key], (int, float)):
                holder[key] *= draw(st.sampled_from([-1, 0, 0.001, 2, 1000, 1e9]))
        if not isinstance(root, (dict, list)) or not root:
            break
    return root


def garble(draw: Any, text: str) -> str:
    """Some text cut out, or put in."""
    at = draw(st.integers(0, len(text)))
    new = draw(
        st.sampled_from(['', '{', '[', '"', ',', 'NaN', '1e999', '-', '0', '\\u12', '[' * 5000, '9' * 5000, '\t\x01'])
    )
    return text[:at] + new + text[at + draw(st.integers(0, 50)) :]


def drive(network_file: Path, flow_file: Path) -> None:
    """Reads both and drives for a while; only a ``ValueError`` of the readers may come of it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', UserWarning)
            network = load_network(network_file)
            flow = load_flow(flow_file, network)
        engine = NativeEngine(network, flow)
    except ValueError as error:
        if not 0 < len(str(error)) < 2000:
            raise AssertionError('the error says nothing, or too much') from error
        return
    for shown in range(4):
        engine.set_phases(np.minimum(shown, network.num_phases - 1)[None])
        engine.step(60)
    table, trips = engine.vehicles(0), engine.trips()
    assert np.isfinite(table.distance).all()
    assert np.isfinite(table.speed).all()
    assert len(table.vehicle_ids) == (np.isfinite(trips.entered) & np.isnan(trips.finished)).sum()


def fuzz_network(data: Any, folder: Path) -> None:
    (folder / 'flow.json').write_text(json.dumps(FLOW))
    text = json.dumps(mutate(data.draw, NETWORK))
    if data.draw(st.integers(0, 9)) == 0:
        text = garble(data.draw, text)
    (folder / 'net.json').write_text(text)
    drive(folder / 'net.json', folder / 'flow.json')


def fuzz_flow(data: Any, folder: Path) -> None:
    text = json.dumps(mutate(data.draw, FLOW))
    if data.draw(st.integers(0, 9)) == 0:
        text = garble(data.draw, text)
    (folder / 'flow.json').write_text(text)
    (folder / 'net.json').write_text(json.dumps(NETWORK))
    drive(folder / 'net.json', folder / 'flow.json')


@FEW
@given(st.data())
def test_broken_networks(tmp_path, data):
    fuzz_network(data, tmp_path)


@FEW
@given(st.data())
def test_broken_flows(tmp_path, data):
    fuzz_flow(data, tmp_path)


@pytest.mark.slow
@MANY
@given(st.data())
def test_many_broken_networks(tmp_path, data):
    fuzz_network(data, tmp_path)


@pytest.mark.slow
@MANY
@given(st.data())
def test_many_broken_flows(tmp_path, data):
    fuzz_flow(data, tmp_path)
