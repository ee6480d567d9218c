"""Networks and flows, written and read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from traffic_files import GRID, Json, Loaded, Write

from ltos_pyg.envs.traffic import load_flow, load_network


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a network and a flow, and reads them."""

    def save(network: Json, *entries: Json, **options: Any) -> Loaded:
        (tmp_path / 'net.json').write_text(json.dumps(network))
        (tmp_path / 'flow.json').write_text(json.dumps(entries))
        loaded = load_network(tmp_path / 'net.json')
        return loaded, load_flow(tmp_path / 'flow.json', loaded, **options)

    return save


@pytest.fixture(scope='session')
def grid() -> Loaded:
    network = load_network(GRID / 'grid_2x3_roadnet.json')
    return network, load_flow(GRID / 'grid_2x3_flow.json', network)
