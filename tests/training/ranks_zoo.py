"""What the tests of runs on several processes share: starting ranks on this machine, and reading what they left."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ltos_pyg import cli
from ltos_pyg.algos.ranks import Ranks, training_with
from ltos_pyg.experiments.processes import process_context
from ltos_pyg.training.checkpoint import CheckpointStore
from ltos_pyg.training.logging import read_metrics

FLAGS = [
    *('train', 'prisoner', '--algo', 'ltos', '--no-media', '--num-envs', '4', '--total-steps', '640'),
    *('--log-every', '160', '--eval-every', '320', '--eval-episodes', '2', '--final-episodes', '2'),
    *('--checkpoint-every', '160', '--learning-starts', '80', '--train-freq', '32', '--batch-size', '4'),
    *('--hidden-channels', '8', '--encoder-channels', '8', '--phi-channels', '8', '--search-channels', '8'),
    *('--phi-starts', '0.1', '--phi-every', '2', '--candidates', '4', '--replay-size', '400'),
]
LAST = 640

context = process_context(['ltos_pyg.training.api', 'ltos_pyg.experiments.tables', 'torch.distributed'])


def start(folder: Path, work: Callable[..., Any], *args: Any, size: int = 2) -> list[Any]:
    """The ranks, each in ``work(rank, *args)``; they find each other by a file, so no port can be taken."""
    folder.mkdir(parents=True, exist_ok=True)
    meeting = folder / f'meeting-{time.monotonic_ns()}'
    ranks = [context.Process(target=_rank, args=(rank, size, meeting, folder, work, args)) for rank in range(size)]
    for process in ranks:
        process.start()
    return ranks


def end(ranks: list[Any]) -> list[int]:
    """The exit codes."""
    for process in ranks:
        process.join(300)
        assert process.exitcode is not None, 'a rank hangs'
    return [process.exitcode for process in ranks]


def _rank(rank: int, size: int, meeting: Path, folder: Path, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ |= {
        'RANK': str(rank),
        'WORLD_SIZE': str(size),
        'TORCHELASTIC_RUN_ID': 'test',
        'GLOO_SOCKET_IFNAME': 'lo',
    }
    sys.stdout, sys.stderr = ((folder / f'{name}{rank}.txt').open('w', buffering=1) for name in ('out', 'err'))
    dist.init_process_group('gloo', store=dist.FileStore(str(meeting), size), rank=rank, world_size=size)
    with training_with(Ranks(rank, size)):
        code = work(rank, *args)
    dist.destroy_process_group()
    sys.exit(code)


def both(folder: Path, work: Callable[..., Any], *args: Any) -> None:
    """Both ranks, to a good end."""
    codes = end(start(folder, work, *args))
    assert codes == [0, 0], [said(folder, rank) for rank in (0, 1)]


def said(folder: Path, rank: int) -> str:
    """What a rank wrote to standard error, without its bars."""
    lines = (folder / f'err{rank}.txt').read_text().replace('\r', '\n').splitlines()
    return '\n'.join(line for line in lines if '%|' not in line).strip()


def command(rank: int, *args: str) -> int:
    return cli.main([*FLAGS, *args])


def until(condition: Callable[[], bool], ranks: list[Any]) -> None:
    for _ in range(6_000):
        if condition():
            return
        assert all(process.is_alive() for process in ranks), end(ranks)
        time.sleep(0.02)
    raise AssertionError('nothing happened for two minutes')


def parts(folder: Path) -> list[CheckpointStore]:
    return [CheckpointStore(folder / 'checkpoints'), CheckpointStore(folder / 'checkpoints' / 'rank_1')]


def states(folder: Path) -> list[dict[str, Any]]:
    found = []
    for store in parts(folder):
        saved = store.load_latest()
        assert saved is not None
        assert saved[0] == LAST
        found.append(saved[1])
    return found


def flat(value: Any, name: str = '') -> dict[str, Any]:
    if not isinstance(value, dict | list | tuple):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {path: leaf for key, item in items for path, leaf in flat(item, f'{name}.{key}').items()}


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    got, want = ({name: value for name, value in flat(s).items() if 'seconds' not in name} for s in (a, b))
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert torch.equal(got[name], value) if isinstance(value, Tensor) else got[name] == value, name


def numbers(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if 'seconds' not in k} for row in read_metrics(folder / 'metrics.jsonl')]
