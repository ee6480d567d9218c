"""Do the critics of a trained LToS agree with the returns that are measured in play?

Sharing weights determine a joint action. LToS looks for better weights with two critics, each of which estimates the
return of a joint action. This script measures the same return in play: from the same boards, all agents act once under
some weights, and then go on under the weights of the policy. Both the estimate and the measured return are given
relative to acting once under uniform weights.

You will see: a row for each constant share kept, and one for the policy's weights. "in play" is the discounted return
of an agent above that under uniform weights, with its standard error over boards. The critics' columns should have the
same signs, and the policy's weights should not be below 0 by more than chance.

    python examples/08_search_critics.py runs/jungle-ltos-seed0 --boards 64
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from ltos_pyg import Run
from ltos_pyg.algos.ltos import JointSearch, LToS
from ltos_pyg.graph_env import GraphEnv
from ltos_pyg.nn import Sharing, constant_sharing
from ltos_pyg.training.evaluate import graph_mean
from ltos_pyg.training.run import load_algorithm
from ltos_pyg.training.run_folder import RunFolder

SHARES = (None, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7)  # None: uniform, with which all others are compared
MOMENTS, APART = 4, 15  # boards are taken at MOMENTS times of an episode, APART steps from one to the next


@torch.no_grad()
def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run', help='the folder of a run of ltos or ltos_edge, with a checkpoint')
    parser.add_argument('--boards', type=int, default=64, help=f'graphs that are played, {MOMENTS} moments of each')
    parser.add_argument('--steps', type=int, default=40, help='steps of play after the first')
    options = parser.parse_args(args)
    torch.set_num_threads(1)

    run = Run(options.run)
    env = run.scenario.make_env(run.config)(options.boards)
    algo = load_algorithm(run.config, env.spec, run.folder)
    if not isinstance(algo, LToS) or not isinstance(algo.objective, JointSearch):
        parser.error(f"'{options.run}' must be a run of ltos or ltos_edge with --objective search")
    if not RunFolder(run.folder).store().steps():
        parser.error(f"'{options.run}' must be a run folder with a checkpoint: an exported policy has no critics")

    rows = look(algo, env, options.steps, run.config.algorithm.gamma)
    print(f'{"kept":>8}{"changed":>10}{"in play":>20}{"critic 1":>10}{"critic 2":>10}')
    for name, (changed, played, first, second) in rows.items():
        error = played.std() / len(played) ** 0.5
        print(f'{name:>8}{changed:>10.1%}{f"{played.mean():+.4f} ± {error:.4f}":>20}{first:>+10.4f}{second:>+10.4f}')


def look(algo: LToS, env: GraphEnv, steps: int, gamma: float) -> dict[str, tuple[float, Tensor, float, float]]:
    """By name of the weights: the actions that they change, their gain in play (boards,), and that of both critics."""
    found: dict[str, list[tuple[float, Tensor, Tensor]]] = {}
    graph = env.reset(2_000_000)
    for moment in range(MOMENTS):
        for _ in range(APART):
            graph = env.step(algo.act(graph).action).graph
        state = env.state_dict()
        base, base_play, base_values = None, None, None
        for name, sharing in weights(algo, graph).items():
            action = algo.greedy_action(graph, sharing)
            play = played(algo, env, state, action, steps, gamma, seed=moment)
            values = by_critics(algo, graph, action)
            if base is None:
                base, base_play, base_values = action, play, values
                continue
            changed = float((action != base).float().mean())
            found.setdefault(name, []).append((changed, play - base_play, values - base_values))
        graph = env.load_state_dict(state)
    return {name: summary(parts) for name, parts in found.items()}


def weights(algo: LToS, graph: Any) -> dict[str, Sharing]:
    """The sharing weights that are compared, by name; uniform ones first."""
    named = {'uniform' if c is None else f'{c:g}': c for c in SHARES}
    constant = {name: constant_sharing(graph.edge_index, graph.num_nodes, c) for name, c in named.items()}
    return constant | {'policy': algo.sharing_under(graph, 'phi')}


def played(
    algo: LToS, env: GraphEnv, state: dict[str, Any], action: Tensor, steps: int, gamma: float, seed: int
) -> Tensor:
    """Discounted return of an agent from a state on, first by an action, then by the policy; mean of each board."""
    env.load_state_dict(state)
    algo.play_rng.manual_seed(seed)  # the same draws for all weights
    total, weight = torch.zeros(env.num_envs), torch.ones(env.num_envs)
    for _ in range(1 + steps):
        step = env.step(action)
        total += weight * graph_mean(step.reward, step.successor.batch, env.num_envs)
        weight *= gamma * ~step.ended
        action = algo.act(step.graph).action
    return total


def by_critics(algo: LToS, graph: Any, action: Tensor) -> Tensor:
    """What each of the two critics estimates for a joint action, as the mean over all agents, (2,)."""
    seen = algo.inputs(graph)
    return torch.stack([critic(*seen, action).mean() for critic in algo.objective.critics])


def summary(parts: list[tuple[float, Tensor, Tensor]]) -> tuple[float, Tensor, float, float]:
    """All moments together."""
    changed, play, values = zip(*parts, strict=True)
    first, second = torch.stack(values).mean(0).tolist()
    return sum(changed) / len(changed), torch.stack(play).mean(0), first, second


if __name__ == '__main__':
    main()
