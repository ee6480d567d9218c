"""The exact optimum of sharing in the one-step dilemmas, computed without training.

You will see: a table with one row per game. Its columns are sharing schemes, its entries rewards per agent and step
(unscaled) of greedy learners: the optimum, state-dependent weights, the best constant weights, the best single kept
share, an even split, keeping all, and learning from the plain sum over the neighbourhood. Best constants need SciPy (in
the extra ``test``).

    python examples/05_dilemmas_reference.py --graphs 10
    python examples/05_dilemmas_reference.py --plot dilemmas.png    # reward over the share kept, with the other schemes
    python examples/05_dilemmas_reference.py --zero-shot --graphs 50    # controls of `ltos reproduce zero-shot-offers`
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ltos_pyg.envs import DilemmasConfig
from ltos_pyg.envs.dilemmas_theory import (
    best_kept,
    constant_sharing,
    equilibrium_value,
    games,
    neighbourhood_sum,
    optimum,
    references,
)

GAMES = {
    'groups': DilemmasConfig(graph='groups'),
    'double star': DilemmasConfig(graph='double_star'),
    'offers, ring': DilemmasConfig(graph='offers', topology='ring'),
    'offers, star': DilemmasConfig(graph='offers', topology='star'),
    'offers, tree': DilemmasConfig(graph='offers', topology='tree'),
    'offers, ba': DilemmasConfig(graph='offers', topology='ba'),
}
ELSEWHERE = ({}, *({'num_agents': n} for n in (10, 50, 100)), *({'topology': t} for t in ('ring', 'tree', 'star')))
TRAINED_KEPT = 0.18  # about the best share kept on preferential attachment with 20 agents, where policies were trained
COLUMNS = ('optimum', 'oracle', 'best_constant', 'best_kept', 'uniform', 'keep_all', 'neighbourhood_sum')
LINES = {
    'optimum': ('optimum = state-dependent weights', '#000000', (0, ())),
    'neighbourhood_sum': ('sum over neighbours (no shares)', '#777777', (0, (6, 3))),
    'best_constant': ('best constant weights', '#0072B2', (0, (3, 6))),
    'uniform': ('uniform', '#009E73', (4, (2, 7))),
}


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--graphs', type=int, default=10, help='number of random graphs to average over (tree, ba)')
    parser.add_argument('--plot', help='draw a figure into this file instead of printing the table')
    parser.add_argument('--zero-shot', action='store_true', help='print the controls of zero-shot-offers instead')
    options = parser.parse_args(args)
    if options.zero_shot:
        print(f'{"optimality":20}{"best kept":>10}{TRAINED_KEPT:10}{"sums":>10}')
        for name, *found in controls(options.graphs):
            print(f'{name:20}' + ''.join(f'{value:10.3f}' for value in found))
        return
    if options.plot:
        plot(options.plot, options.graphs)
        return
    print(f'{"game":14}' + ''.join(f'{name.replace("_", " "):>19}' for name in COLUMNS))
    for game, config in GAMES.items():
        found = references(config, options.graphs)
        cells = {name: f'{found[name]:.4f}' for name in COLUMNS}
        cells['best_kept'] += f' ({found["kept"]:.3f})'
        print(f'{game:14}' + ''.join(f'{cell:>19}' for cell in cells.values()))


def controls(graphs: int) -> Iterator[tuple[str, float, float, float]]:
    """For each setting, the optimality of three controls: the best share kept in that setting, ``TRAINED_KEPT``, and
    the sum of the neighbours' rewards."""
    for change in ELSEWHERE:
        config = replace(GAMES['offers, ba'], **change)
        many, best = games(config, graphs), optimum(config)
        kept = np.mean([equilibrium_value(g, constant_sharing(g.neighbours, TRAINED_KEPT)) for g in many])
        sums = np.mean([equilibrium_value(g, neighbourhood_sum(g.neighbours)) for g in many])
        yield (
            str(next(iter(change.values()), 'as trained')),
            best_kept(many)[1] / best,
            float(kept) / best,
            float(sums) / best,
        )


def plot(path: str, graphs: int) -> None:
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    shares = np.linspace(0, 1, 401)
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout='constrained')
    for ax, name in zip(axes, ('groups', 'double star', 'offers, ba'), strict=True):
        many, found = games(GAMES[name], graphs), references(GAMES[name], graphs)
        values = [np.mean([equilibrium_value(g, constant_sharing(g.neighbours, s)) for g in many]) for s in shares]
        ax.plot(shares, values, color='#D55E00', label='one kept share for all')
        for scheme, (label, colour, dashes) in LINES.items():
            ax.axhline(found[scheme], color=colour, linewidth=1.6, linestyle=dashes, label=label)
        ax.set(title=name, xlabel='share kept', xlim=(0, 1))
    axes[0].set_ylabel('reward per agent and step')
    fig.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=5, frameon=False, fontsize=9)
    fig.savefig(path, dpi=110)


if __name__ == '__main__':
    main()
