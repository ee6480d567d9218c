"""What a run is called in tables and figures."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from ltos_pyg.training.config import RECORDING


def run_label(config: Mapping[str, Any]) -> str:
    """The label of a run, which runs that differ only in their seed have in common."""
    if config.get('label'):
        return str(config['label'])
    preset = config.get('preset')
    return str(config['algo']) if preset in (None, '', 'default') else f'{config["algo"]} ({preset})'


def distinct_labels(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The labels of runs that are shown together, from their configurations as plain data.

    Runs of one scenario and label are seeds of one row or curve only if their options are equal; otherwise the options
    that differ join the label: ``'ltos, gamma=0.9'``.
    """
    options = [_options_of(run) for run in runs]
    names = [(run['scenario'], run_label(run)) for run in runs]
    labels = []
    for name, mine in zip(names, options, strict=True):
        same = [one for other, one in zip(names, options, strict=True) if other == name]
        differ = [key for key in mine if any(key in one and one[key] != mine[key] for one in same)]
        shown = {key: _shortened(mine[key], [one[key] for one in same if key in one]) for key in differ}
        labels.append(', '.join([name[1], *(f'{key.partition(".")[2]}={text}' for key, text in shown.items())]))
    return labels


def _shortened(mine: str, every: Sequence[str]) -> str:
    """The value as a label shows it. A path is cut to as many of its last parts as tell different paths apart."""
    for parts in itertools.count(1):
        short = {text: ' '.join('/'.join(word.split('/')[-parts:]) for word in text.split(' ')) for text in every}
        if len(set(short.values())) == len(short) or all(short[text] == text for text in every):
            return short[mine]
    raise AssertionError('unreachable')


def _options_of(run: Mapping[str, Any]) -> dict[str, str]:
    """The number of ranks, and the options that training depends on but for the seed, each as text."""
    left_out = {*RECORDING, 'seed', 'eval_every', 'eval_episodes', 'eval_seed'}
    return {'run.ranks': str(run.get('ranks', 1))} | {
        f'{part}.{name}': _as_text(value)
        for part in ('env', 'algorithm', 'train')
        for name, value in run.get(part, {}).items()
        if name not in left_out
    }


def _as_text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ' '.join(map(_as_text, value))
    return str(value)
