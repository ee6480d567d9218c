"""What runs are called that are shown together."""

from __future__ import annotations

from typing import Any

import pytest

from ltos_pyg.training.labels import distinct_labels


def run_on(net: str) -> dict[str, Any]:
    return {'scenario': 'traffic', 'algo': 'ltos', 'env': {'net': [net]}, 'algorithm': {}, 'train': {'seed': 0}}


@pytest.mark.parametrize(
    ('nets', 'shown'),
    [
        (['a/one.json', 'a/two.json'], ['ltos, net=one.json', 'ltos, net=two.json']),
        (['/x/a/net.json', '/x/b/net.json'], ['ltos, net=a/net.json', 'ltos, net=b/net.json']),
        (['/x/net.json', '/x/net.json'], ['ltos', 'ltos']),
    ],
)
def test_files_of_one_name_in_two_folders_are_two(nets, shown):
    assert distinct_labels([run_on(net) for net in nets]) == shown


def test_a_run_of_several_processes_is_another_row():
    alone = run_on('net.json')
    assert distinct_labels([alone, alone | {'ranks': 2}]) == ['ltos, ranks=1', 'ltos, ranks=2']
    assert distinct_labels([alone, alone | {'ranks': 1}]) == ['ltos', 'ltos']
