"""The runs behind ``docs/results.md``, which test whether learned sharing helps: every critic with every sharing mode.

``python -m ltos_pyg.experiments.sharing run --jobs 2 --only groups`` trains the missing runs of one table, and
``… table`` prints the tables. An interrupted run is resumed; a finished one is not run again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ltos_pyg.experiments.statistics import bootstrap_interval, iqm
from ltos_pyg.training.run_folder import RunFolder

RESULTS = Path('docs/results/sharing')
FIRST_SEED = 10  # those below, and 100 to 104, were used to choose settings
KEPT = ('config.json', 'final.json', 'metrics.jsonl')  # files of a run folder that are results; checkpoints are not


@dataclass(frozen=True)
class Row:
    """Runs that differ only in the seed: one line of a table."""

    label: str
    algo: str
    options: tuple[str, ...] = ()
    seeds: int = 5


@dataclass(frozen=True)
class Study:
    """One table: a scenario with its options, and the rows to compare."""

    name: str
    title: str
    scenario: str
    options: tuple[str, ...]
    metric: str
    rows: tuple[Row, ...]

    def runs(self) -> Iterator[tuple[Row, int, str]]:
        """Every run: its row, seed and folder name. All rows of one seed come before the next seed."""
        for number in range(max(row.seeds for row in self.rows)):
            seed = FIRST_SEED + number
            for row in self.rows:
                if number < row.seeds:
                    yield row, seed, f'{self.name}-{row.label.replace(", ", "-").replace(" ", "_")}-seed{seed}'

    def command(self, row: Row, seed: int, folder: Path) -> list[str]:
        """The command that trains one run."""
        common = ['--algo', row.algo, '--seed', str(seed), '--label', row.label, '--no-media', '--out', str(folder)]
        return [sys.executable, '-m', 'ltos_pyg.cli', 'train', self.scenario, *self.options, *row.options, *common]


def factorial(best_constant: str, learned: int = 10, others: int = 5) -> tuple[Row, ...]:
    """{node, edge} x {keep all, uniform, best constant, random, frozen, learned}, and the usual sums."""
    rows = []
    for critic, algo in (('node', 'ltos'), ('edge', 'ltos_edge')):
        constants = {'keep all': '1', 'uniform': 'uniform', 'constant': best_constant, 'random': 'random'}
        for name, kept in constants.items():
            rows.append(Row(f'{critic}, {name}', 'fixed_ltos', ('--critic', critic, '--kept', kept), others))
        rows.append(Row(f'{critic}, frozen', algo, ('--phi-starts', '1'), others))
        rows.append(Row(f'{critic}, learned', algo, (), learned))
    for reward in ('neighbourhood', 'team'):
        rows.append(Row(f'DGN, {reward} reward', 'dgn', ('--reward', reward), others))
    return tuple(rows)


def rows_that_decide(learned: int, others: int, dgn: int) -> tuple[Row, ...]:
    """{node, edge} x {uniform, learned}, and DGN."""
    return (
        Row('node, uniform', 'fixed_ltos', ('--critic', 'node', '--kept', 'uniform'), others),
        Row('node, learned', 'ltos', (), learned),
        Row('edge, uniform', 'fixed_ltos', ('--critic', 'edge', '--kept', 'uniform'), others),
        Row('edge, learned', 'ltos_edge', (), learned),
        Row('DGN', 'dgn', (), dgn),
    )


def edge_rows(seeds: int) -> tuple[Row, ...]:
    """Edge critic, uniform and learned, and DGN: every agent keeps all."""
    return (
        Row('edge, uniform', 'fixed_ltos', ('--critic', 'edge', '--kept', 'uniform'), seeds),
        Row('edge, learned', 'ltos_edge', (), seeds),
        Row('DGN', 'dgn', (), seeds),
    )


CLOSING = ('--final-episodes', '100')  # for a table: the same number in every run, however long

STUDIES = (
    Study(
        'groups', 'Game A: hunt, work, tempt', 'dilemmas', ('--graph', 'groups', '--total-steps', '24000'),
        'optimality', factorial('0.1'),
    ),
    Study(
        'double_star', 'Games A + B: the double star', 'dilemmas', ('--graph', 'double_star'),
        'optimality', factorial('0.05'),
    ),
    Study(
        'star', 'Game C: offers on a star of 20', 'dilemmas', ('--graph', 'offers', '--topology', 'star'),
        'optimality', factorial('0.05'),
    ),
    Study(
        'ba', 'Game C: offers on preferential attachment, 20 agents', 'dilemmas',
        ('--graph', 'offers', '--topology', 'ba'), 'optimality', factorial('0.18'),
    ),
    Study('prisoner', 'Prisoner', 'prisoner', (), 'return', factorial('0.4', learned=5)),
    Study('jungle', 'Jungle, 20 agents, k = 3', 'jungle', CLOSING, 'reward', rows_that_decide(5, 5, 10)),
    Study(
        'jungle-radius', 'Jungle, neighbours within 9 cells', 'jungle', ('--graph', 'radius', *CLOSING), 'reward',
        edge_rows(3),
    ),
    Study(
        'jungle-gains', 'Jungle, half of the agents gain 6 from an attack', 'jungle',
        ('--graph', 'radius', '--attack-gain-high', '6', *CLOSING), 'reward', edge_rows(3),
    ),
    Study('traffic', 'Generated grid of signals', 'traffic', (), 'duration', edge_rows(1)[1:]),
)  # fmt: skip


def train_missing(
    studies: Sequence[Study], out: Path, jobs: int, seeds: int | None = None, rows: str = ''
) -> list[str]:
    """Trains the runs without a result, ``jobs`` at once; returns the names of those that failed.

    ``seeds`` limits the seeds of each row, and ``rows`` selects rows with this text in their name.
    """
    wanted = [(study, row, seed, name) for study in studies for row, seed, name in study.runs()]
    todo = [
        (study, row, seed, name)
        for study, row, seed, name in sorted(wanted, key=lambda run: run[2])
        if not RunFolder(out / name).is_finished and (seeds is None or seed < FIRST_SEED + seeds) and rows in row.label
    ]
    failed = []
    environment = os.environ | {'OMP_NUM_THREADS': '1'}

    def one(run: tuple[Study, Row, int, str]) -> tuple[str, bool]:
        study, row, seed, name = run
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        command = study.command(row, seed, folder)
        if RunFolder(folder).has_config:
            command.append('--resume')
        with (folder / 'log.txt').open('ab') as log:
            return name, subprocess.run(command, stdout=log, stderr=log, env=environment).returncode == 0

    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(todo), unit=' runs', smoothing=0.1) as bar:
        for name, worked in pool.map(one, todo):
            bar.update()
            bar.set_postfix_str(name)
            if not worked:
                failed.append(name)
                tqdm.write(f'{name} failed: see {out / name / "log.txt"}', file=sys.stderr)
    return failed


def copy_results(out: Path, target: Path) -> int:
    """Copies the small files of finished runs, without the curve of every metric but the evaluations."""
    count = 0
    for final in sorted(out.glob('*/final.json')):
        folder = target / final.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            text = (final.parent / name).read_text(encoding='utf-8')
            if name == 'metrics.jsonl':
                text = ''.join(f'{line}\n' for line in text.splitlines() if '"eval/' in line)
            (folder / name).write_text(text, encoding='utf-8')
        count += 1
    return count


def study_table(study: Study, results: Path) -> str:
    """One table in Markdown: a line a row, from the final evaluations of the runs."""
    swaps = ('constant', 'uniform', 'keep', 'random')
    measures = {'kept': 'kept', 'sd states': 'kept_std_states', 'sd nodes': 'kept_std_nodes'}
    header = ['trained with', 'seeds', study.metric, 'each', *measures, *(f'play {swap}' for swap in swaps)]
    lines = [header, ['---'] * len(header)]
    for row in study.rows:
        ends = [
            RunFolder(results / name).final()['eval']
            for r, _, name in study.runs()
            if r is row and RunFolder(results / name).is_finished
        ]
        if not ends:
            continue
        value = np.array([end['policy'][study.metric]['mean'] for end in ends])
        shares = [_mean(ends, 'policy', name) for name in measures.values()]
        swapped = [_mean(ends, mode, study.metric) for mode in swaps]
        each = ' '.join(_number(v) for v in value)
        lines.append([row.label, str(len(ends)), _with_interval(value), each, *shares, *swapped])
    table = '\n'.join(f'| {" | ".join(line)} |' for line in lines)
    return f'### {study.title}\n\n`ltos train {" ".join([study.scenario, *study.options])}`\n\n{table}\n'


def _mean(ends: Sequence[dict[str, Any]], mode: str, metric: str) -> str:
    values = [end[mode][metric]['mean'] for end in ends if mode in end and metric in end[mode]]
    return _number(float(np.mean(values))) if values else ''


def _with_interval(value: np.ndarray[Any, Any]) -> str:
    if len(value) == 1:
        return _number(float(value[0]))
    low, high = bootstrap_interval(value)
    return f'{_number(iqm(value))} [{_number(low)}, {_number(high)}]'


def _number(value: float) -> str:
    return f'{value:.1f}' if abs(value) >= 10 else f'{value:.3f}'


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, copies or prints."""
    parser = argparse.ArgumentParser(prog='python -m ltos_pyg.experiments.sharing', description=__doc__)
    parser.add_argument('what', choices=['list', 'run', 'copy', 'table'])
    parser.add_argument('--only', nargs='+', choices=[study.name for study in STUDIES], help='tables (default: all)')
    parser.add_argument('--jobs', type=int, default=1, help='runs at once, one core each')
    parser.add_argument('--seeds', type=int, help='at most so many seeds a row')
    parser.add_argument('--rows', default='', help='only rows with this in their name, e.g. learned')
    parser.add_argument('--out', type=Path, default=Path('runs/sharing'), help='where run folders are')
    args = parser.parse_args(argv)
    studies = [study for study in STUDIES if args.only is None or study.name in args.only]
    if args.what == 'list':
        for study in studies:
            for row, seed, name in study.runs():
                print(name, '<-', ' '.join(study.command(row, seed, args.out / name)[3:]))
    elif args.what == 'run':
        return 1 if train_missing(studies, args.out, args.jobs, args.seeds, args.rows) else 0
    elif args.what == 'copy':
        print(f'copied {copy_results(args.out, RESULTS)} runs to {RESULTS}')
    else:
        print('\n'.join(study_table(study, args.out) for study in studies))
    return 0


if __name__ == '__main__':
    sys.exit(main())
