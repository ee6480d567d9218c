"""Learned sharing weights against every control, in one picture.

Reads the tables that `ltos reproduce sharing-groups sharing-star ... --report` writes, and draws a row for each
setting: a mark is the interquartile mean over seeds, a line its 95 % bootstrap interval. `ROWS` lists the rows of a
table that a mark stands for; of several, the best is drawn. The best possible value is 1 on the games, and 0.97 on the
prisoner.

You will see a printed line for each setting, and the picture in the file that `--out` names.

    python examples/09_learned_and_controls.py docs/results/tables --out overview.png
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ltos_pyg.experiments.statistics import bootstrap_interval, iqm

SETTINGS = {
    'groups': 'groups', 'double_star': 'double star', 'star': 'offers, star', 'ba': 'offers, preferential attachment',
    'tree': 'offers, trees', 'prisoner': 'prisoner', 'jungle': 'jungle, k = 3', 'jungle-radius': 'jungle, dense',
    'jungle-gains': 'jungle, dense, unequal gains',
}  # fmt: skip
ROWS = {  # what a mark stands for: the rows of the tables
    "learned, the paper's critic": ('node, learned',),
    'learned, our critic': ('edge, learned',),
    'weights that do not learn, same exploration': ('node, frozen', 'edge, frozen'),
    'best known constant share': ('node, constant', 'edge, constant'),
    'uniform weights': ('node, uniform', 'edge, uniform'),
    'sums of rewards, no weights': ('DGN, neighbourhood reward', 'DGN, team reward'),
    'own reward': ('node, keep all', 'edge, keep all', 'DGN'),
}
COLOURS = ('#D55E00', '#E69F00', '#56B4E9', '#0072B2', '#009E73', '#CC79A7', '#000000')
MARKERS = ('o', 'D', 'v', 's', '^', 'P', 'x')


def values_of(table: Path) -> dict[str, np.ndarray]:
    """The result of each seed, by row."""
    rows = defaultdict(list)
    with table.open() as file:
        for line in csv.DictReader(file):
            rows[line['method']].append(float(line['value']))
    return {name: np.array(values) for name, values in rows.items()}


def best_row(values: dict[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray | None:
    """The seeds of the row with the highest interquartile mean, None if none was run."""
    return max((values[name] for name in names if name in values), key=iqm, default=None)


def draw(tables: Path) -> Figure:
    found = {title: values_of(tables / f'sharing-{name}' / 'table.csv') for name, title in SETTINGS.items()}
    figure = Figure(figsize=(8.6, 6), layout='constrained')
    axes = figure.subplots()
    for row, (title, values) in enumerate(found.items()):
        if row:
            axes.axhline(0.5 - row, color='0.85', linewidth=0.8)
        for rank, (label, names) in enumerate(ROWS.items()):
            seeds = best_row(values, names)
            if seeds is None:
                continue
            low, high = bootstrap_interval(seeds) if len(seeds) > 1 else (seeds[0], seeds[0])
            y = 0.33 - 0.11 * rank - row
            axes.plot([low, high], [y, y], color=COLOURS[rank], linewidth=1.5)
            axes.plot(iqm(seeds), y, MARKERS[rank], color=COLOURS[rank], markersize=6)
            print(f'{title:33} {label:45} {iqm(seeds):6.3f} [{low:.3f}, {high:.3f}] {len(seeds)} seeds')
    for label, colour, marker in zip(ROWS, COLOURS, MARKERS, strict=True):
        axes.plot([], [], marker, color=colour, label=label)
    axes.set_yticks([-row for row in range(len(found))], list(found))
    axes.axvline(1, color='0.6', linewidth=0.8)
    axes.set_xlabel('optimality (games), reward per step (jungle), return (prisoner)')
    figure.legend(loc='outside upper center', ncols=3, frameon=False, fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('tables', type=Path, help='a folder with tables of `ltos reproduce`')
    parser.add_argument('--out', default='overview.png', help='the picture')
    args = parser.parse_args()
    draw(args.tables).savefig(args.out, dpi=150)
    print(args.out)


if __name__ == '__main__':
    main()
