"""How often does an attack pay its attacker on the jungle, under constant sharing weights? No training.

An attack brings its attacker i a gain g and costs its victim j 4. For both together it pays if g > 4. Under sharing
weights w it pays for the attacker if w_ii g > 4 w_ji. Agents walk at random. The script looks at each pair of
neighbours of the graph that stand side by side, and counts how often an attack would pay for the attacker.

You will see: a table with one row per graph and share kept. What is best for the two agents together is 0 % with gain
2 and 100 % with gain 6.

    python examples/07_jungle_incentives.py --episodes 20
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from ltos_pyg.envs import JungleEnv
from ltos_pyg.nn import constant_sharing

GRAPHS: dict[str, dict[str, Any]] = {
    'k = 1': {'neighbours': 1},
    'k = 3': {'neighbours': 3},
    'k = 8': {'neighbours': 8},
    'radius 9': {'graph': 'radius'},
}
SHARES = (None, 0.1, 0.2, 0.4, 1.0)  # None: uniform
GAINS = (2.0, 6.0)
COST = 4.0
BOARDS, STEPS, WALKS = 64, 30, 5  # WALKS: the actions that move or stay


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--episodes', type=int, default=20, help=f'times {BOARDS} boards')
    options = parser.parse_args(args)
    print(f'{"graph":10}{"degrees":>10}{"encounters":>12}{"kept":>10}' + ''.join(f'{f"gain {g:g}":>10}' for g in GAINS))
    for name, graph in GRAPHS.items():
        degrees, encounters, pays = look(graph, options.episodes)
        for share, row in zip(SHARES, pays, strict=True):
            shown = 'uniform' if share is None else f'{share:g}'
            print(f'{name:10}{degrees:>10}{encounters:>12}{shown:>10}' + ''.join(f'{part:>10.2%}' for part in row))


def look(graph: dict[str, Any], episodes: int) -> tuple[str, int, torch.Tensor]:
    """Smallest and largest degree, the number of encounters, and the part in which an attack pays (shares, gains)."""
    env = JungleEnv(BOARDS, horizon=STEPS, seed=0, **graph)
    rng = torch.Generator().manual_seed(0)
    pays, encounters, degrees = torch.zeros(len(SHARES), len(GAINS)), 0, []
    state = env.reset()
    for _ in range(episodes * STEPS):
        victim, attacker = state.edge_index
        beside = state.edge_attr.abs().sum(1) == 1
        for row, share in enumerate(SHARES):
            given, kept = constant_sharing(state.edge_index, state.num_nodes, share)
            for column, gain in enumerate(GAINS):
                pays[row, column] += (kept[attacker] * gain > COST * given)[beside].sum()
        encounters += int(beside.sum())
        degrees.append(torch.bincount(victim, minlength=state.num_nodes))
        state = env.step(torch.randint(WALKS, (state.num_nodes,), generator=rng)).graph
    every = torch.cat(degrees)
    return f'{int(every.min())}-{int(every.max())}', encounters, pays / max(encounters, 1)


if __name__ == '__main__':
    main()
