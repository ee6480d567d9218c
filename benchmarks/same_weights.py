"""Trains every algorithm for a few hundred steps at two commits and compares the weights to the bit.

    python benchmarks/same_weights.py BASE            # a commit against the working tree, changes included
    python benchmarks/same_weights.py BASE OTHER      # a commit against another
    python benchmarks/same_weights.py BASE --only jungle/ltos --steps 2000

Use it for code changes that must not change results. It prints a table, and exits with 1 if any weight differs. Both
commits train on this machine, each on one thread, since results differ between processors. Each commit trains by its
own ``ltos train``, so modules may have moved and options may have been renamed (see ``FLAGS``). If parameters were
renamed, their values are compared as a set, and the table says so.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

ALGORITHMS = (
    'dqn', 'dgn', 'fixed_ltos', 'ltos', 'ltos_edge', 'qmix', 'joint_dqn', 'coco_q', 'neurcomm', 'consenet', 'ip', 'lio'
)  # fmt: skip
RUNS = (
    *(f'prisoner/{algo}' for algo in ALGORITHMS),
    *(f'{scenario}/{algo}' for scenario in ('jungle', 'dilemmas') for algo in ('dgn', 'ltos', 'ltos_edge')),
)
# The names that each option has had, the newest last. An option that an algorithm does not have is left out.
FLAGS: tuple[tuple[str, ...], ...] = (
    ('--learning-starts=64',),
    ('--steps-per-update=8', '--train-freq=8'),
    ('--batch-size=16',),
    ('--hidden-channels=32',),
    ('--encoder-channels 32',),
    ('--num-envs=4',),
    ('--eval-every=1000000',),
    ('--eval-episodes=2',),
    ('--final-episodes=2',),
    ('--checkpoint-every=1000000',),
    ('--no-media',),
)
SCENARIO_FLAGS: dict[str, tuple[tuple[str, ...], ...]] = {
    'jungle': (('--num-agents=8',), ('--num-foods=5',), ('--size=12',), ('--horizon=15',)),
}

LEARNED = ('.modules.', '.table.')  # keys of learned weights in a checkpoint: networks, or the table of Coco-Q

Weights = dict[str, tuple[str, str]]  # name -> (shape and dtype, digest)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n', 1)[0])
    parser.add_argument('base', help='the commit that the results must equal')
    parser.add_argument('other', nargs='?', help='another commit (default: the working tree)')
    parser.add_argument('--steps', type=int, default=400, help='env steps of each run (default: 400)')
    parser.add_argument('--only', nargs='+', metavar='RUN', help=f'some of the runs, e.g. {RUNS[3]} (default: all)')
    parser.add_argument('--cache', type=Path, help='a folder that keeps the results of commits for the next call')
    args = parser.parse_args()
    unknown = [name for name in args.only or () if name not in RUNS]
    if unknown:
        parser.error(f"unknown run '{unknown[0]}'. Choose from: {', '.join(RUNS)}")
    names = tuple(args.only or RUNS)
    start = time.perf_counter()
    with ThreadPoolExecutor(2) as side:  # each trains in a process of its own
        base, other = side.map(
            lambda commit: weights_at(commit, names, args.steps, args.cache), (args.base, args.other)
        )
    verdicts = {name: compare(base[name], other[name]) for name in names}
    width = max(map(len, names))
    for name, (_, text) in verdicts.items():
        print(f'{name:{width}}  {text}')
    same = sum(equal for equal, _ in verdicts.values())
    print(
        f'{same} of {len(names)} runs have the same weights at {args.base} and {args.other or "the working tree"} '
        f'({time.perf_counter() - start:.0f} s)'
    )
    return 0 if same == len(names) else 1


def compare(base: Weights | str, other: Weights | str) -> tuple[bool, str]:
    """Whether two runs ended in the same weights, and a line about it."""
    for side, weights in (('base', base), ('other', other)):
        if isinstance(weights, str):
            return False, f'FAILED at {side}: {weights}'
    assert not isinstance(base, str)
    assert not isinstance(other, str)
    if base.keys() == other.keys():
        differ = [name for name in base if base[name] != other[name]]
        if not differ:
            return True, f'same ({len(base)} tensors)'
        return False, f'DIFFERENT: {len(differ)} of {len(base)} tensors, first {differ[0]} {base[differ[0]][0]}'
    if Counter(base.values()) == Counter(other.values()):
        return True, f'same ({len(base)} tensors, some under other names)'
    gone, new = sorted(base.keys() - other.keys()), sorted(other.keys() - base.keys())
    return False, f'DIFFERENT, and other names: {len(gone)} gone {gone[:2]}, {len(new)} new {new[:2]}'


def weights_at(commit: str | None, names: tuple[str, ...], steps: int, cache: Path | None) -> dict[str, Weights | str]:
    """The final weights of runs at a commit (None: the working tree), or why a run failed."""
    if commit is None:
        return train_all(ROOT, names, steps)
    full = _git('rev-parse', '--verify', f'{commit}^{{commit}}')
    kept = None if cache is None else cache / f'{full}-{steps}.json'
    known: dict[str, Any] = json.loads(kept.read_text()) if kept is not None and kept.is_file() else {}
    missing = tuple(name for name in names if name not in known)
    if missing:
        with tempfile.TemporaryDirectory() as folder:
            tree = Path(folder) / 'tree'
            _git('worktree', 'add', '--detach', '--quiet', str(tree), full)
            try:
                known |= train_all(tree, missing, steps)
            finally:
                _git('worktree', 'remove', '--force', str(tree))
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(known))
    return {name: _as_weights(known[name]) for name in names}


def _as_weights(plain: Any) -> Weights | str:
    return plain if isinstance(plain, str) else {name: (about, digest) for name, (about, digest) in plain.items()}


def train_all(tree: Path, names: tuple[str, ...], steps: int) -> dict[str, Weights | str]:
    """Trains with the code of a checkout, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        # The package as it would be installed: `envs/` of the same checkout is `ltos_pyg.envs`.
        package = Path(folder) / 'site' / 'ltos_pyg'
        package.mkdir(parents=True)
        for entry in (tree / 'ltos_pyg').iterdir():
            if entry.name not in ('__pycache__', 'envs'):
                (package / entry.name).symlink_to(entry)
        (package / 'envs').symlink_to(tree / 'envs')
        threads = dict.fromkeys(('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'NUMBA_NUM_THREADS'), '1')
        environment = {**os.environ, **threads, 'PYTHONPATH': str(package.parent)}
        out = Path(folder) / 'weights.json'
        command = [sys.executable, str(Path(__file__).resolve()), '--worker', str(out), str(steps), *names]
        subprocess.run(command, cwd=folder, env=environment, check=True)
        plain = json.loads(out.read_text())
        return {name: _as_weights(plain[name]) for name in names}


def _git(*args: str) -> str:
    done = subprocess.run(['git', '-C', str(ROOT), *args], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f'git {args[0]}: {done.stderr.strip()}')
    return done.stdout.strip()


# --- In the process that trains, where `ltos_pyg` is the checkout's -------------------------------------------------


def worker(out: Path, steps: int, names: list[str]) -> None:
    """Trains each run and writes the digests of its weights to ``out``."""
    import ltos_pyg

    assert Path.cwd() in Path(ltos_pyg.__file__).parents, f'another ltos_pyg was imported: {ltos_pyg.__file__}'
    results: dict[str, Any] = {}
    for name in names:
        scenario, algo = name.split('/')
        folder = Path.cwd() / name
        command = ['train', scenario, '--algo', algo]
        known = _run([*command, '--help'])[1]
        flags = [f'--total-steps={steps}', '--seed=3', f'--out={folder}']
        for options in (*FLAGS, *SCENARIO_FLAGS.get(scenario, ())):
            # `--no-media` stands in the help as `--media, --no-media`; a name is followed by a blank or a comma
            found = [option for option in options if f'{option.split("=")[0].split()[0]} ' in known.replace(',', ' ')]
            flags += found[-1].split() if found else []
        code, text = _run([*command, *flags])
        results[name] = _digests(folder) if code == 0 else text.strip().splitlines()[-1][:300]
        print('.' if code == 0 else 'F', end='', file=sys.stderr, flush=True)
    print(file=sys.stderr)
    out.write_text(json.dumps(results))


def _run(args: list[str]) -> tuple[int, str]:
    """Calls ``ltos``; its exit code and what it printed."""
    from ltos_pyg.cli import main as ltos

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            code = ltos(args)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except Exception as error:
            return 1, f'{type(error).__name__}: {error}'
    return code, text.getvalue()


def _digests(folder: Path) -> Weights:
    import torch

    checkpoint = torch.load(sorted(folder.rglob('*.pt'))[-1], map_location='cpu', weights_only=True)
    weights: Weights = {}
    for name, tensor in _tensors(checkpoint, ''):
        kind = next((kind for kind in LEARNED if kind in name), None)
        if kind is not None:
            data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            digest = hashlib.blake2b(data, digest_size=16).hexdigest()
            weights[name.split(kind)[1]] = (f'{tuple(tensor.shape)} {tensor.dtype}', digest)
    assert weights, f'{folder}: the checkpoint holds nothing under {LEARNED}'
    return weights


def _tensors(value: Any, where: str) -> Any:
    import torch

    if isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, f'{where}.{key}')
    elif isinstance(value, torch.Tensor):
        yield where, value


if __name__ == '__main__':
    if sys.argv[1:2] == ['--worker']:
        worker(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    else:
        sys.exit(main())
