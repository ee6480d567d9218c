"""Times the same short runs by ``ltos train`` one after the other, and by ``ltos reproduce``.

    python benchmarks/experiment_overhead.py
    python benchmarks/experiment_overhead.py --seeds 4 --total-steps 4000 --rounds 5

It prints the median wall-clock time and CPU (user) time of each way, in seconds, over rounds in which the ways
alternate, and their ratios to ``ltos train``. CPU time is summed over all processes. Other programs on the machine
hardly change CPU time, but they can change the wall-clock time a lot. ``ltos reproduce`` also writes the report, and
its runs start from one process that has PyTorch loaded. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from ltos_pyg.experiments.experiment import Experiment, read_experiment

ROOT = Path(__file__).resolve().parents[1]
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: processes that outlive their parent become ours, and their CPU time is counted
WAYS = ('ltos train', 'ltos reproduce --jobs 1', 'ltos reproduce --jobs 2')

Seconds = tuple[float, float]  # by the clock, of CPU


def main() -> int:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=3, help='runs of DQN and of DGN on the prisoner (default: 3)')
    parser.add_argument('--total-steps', type=int, default=2000, help='env steps of each (default: 2000)')
    parser.add_argument('--rounds', type=int, default=3, help='times that each way is measured (default: 3)')
    options = parser.parse_args()
    if min(options.seeds, options.total_steps, options.rounds) < 1:
        parser.error('--seeds, --total-steps and --rounds must be at least 1')
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    took: dict[str, list[Seconds]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way in WAYS:
            with tempfile.TemporaryDirectory() as folder:
                took[way].append(_timed(_commands(way, Path(folder), options.seeds, options.total_steps)))
    middle = {way: [median(kind) for kind in zip(*found, strict=True)] for way, found in took.items()}
    print(f'{2 * options.seeds} runs of {options.total_steps:,} env steps, median of {options.rounds} rounds')
    print(f'{"":26}{"clock":>10}{"ratio":>8}{"CPU":>10}{"ratio":>8}')
    for way, (clock, cpu) in middle.items():
        base = middle[WAYS[0]]
        print(f'{way:26}{clock:8.1f} s{clock / base[0]:8.2f}{cpu:8.1f} s{cpu / base[1]:8.2f}')
    return 0


def _commands(way: str, folder: Path, seeds: int, steps: int) -> list[list[str]]:
    """The commands of one way, one after the other, without their ``ltos``."""
    file = folder / 'overhead.toml'
    file.write_text(
        f'seeds = {seeds}\n[[settings]]\nscenario = "prisoner"\noptions = {{ total_steps = {steps} }}\n'
        + ''.join(f'[[methods]]\nalgo = {json.dumps(algo)}\n' for algo in ('dqn', 'dgn'))
    )
    if way == 'ltos train':
        experiment: Experiment = read_experiment(file)
        return [run.arguments(folder / run.name) for run in experiment.runs()]
    return [[*way.split()[1:], str(file), '--runs', str(folder / 'runs'), '--out', str(folder / 'out')]]


def _timed(commands: list[list[str]]) -> Seconds:
    clock, cpu = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    environment = os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    for command in commands:
        ended = subprocess.run(
            [sys.executable, '-m', 'ltos_pyg.cli', *command], env=environment, capture_output=True, text=True
        )
        if ended.returncode:
            raise SystemExit(f'ltos {" ".join(command)} failed:\n{ended.stderr}')
    clock = time.perf_counter() - clock
    while True:  # those that outlived their parent: the process that runs are forked from
        try:
            os.wait()
        except ChildProcessError:
            break
    return clock, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - cpu


if __name__ == '__main__':
    sys.exit(main())
