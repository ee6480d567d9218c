"""Your own environment in thirty lines, and the checker, which tests whether it keeps the rules for environments.

You will see: the checker passing, then a few steps of four parallel meadows, in which fireflies leave and others
arrive, and a finished episode restarts.

    python examples/04_your_own_environment.py --steps 12
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from ltos_pyg.data import Snapshot
from ltos_pyg.graph_env import SingleGraphEnv, SingleStep, VectorGraphEnv, check_env, k_nearest


class Fireflies(SingleGraphEnv):
    """Fireflies drift over a meadow. Each may keep its rhythm (0) or swap it (1), and is rewarded for the share of its
    neighbours in its own rhythm. Fireflies that drift off the meadow leave; at times another one arrives."""

    num_features, num_actions, max_nodes = 3, 2, 10  # observation: position and rhythm
    fixed_nodes, symmetric, horizon = False, True, 25  # agents enter and leave; edges go both ways; short episodes

    def start(self) -> Snapshot:
        self.arrived = 0
        self.names = torch.empty(0, dtype=torch.int64)
        self.place, self.rhythm = torch.empty(0, 2), torch.empty(0)
        return self.arrive(6)

    def step(self, action: Tensor) -> SingleStep:
        self.rhythm = (self.rhythm - action).abs()
        reward = self.agreement()
        self.place = self.place + 0.1 * torch.randn(self.place.shape, generator=self.generator)
        here = ((self.place > 0) & (self.place < 1)).all(dim=1)
        self.names, self.place, self.rhythm = self.names[here], self.place[here], self.rhythm[here]
        room = self.max_nodes - len(self.names)
        graph = self.arrive(min(room, int(torch.randint(3, (1,), generator=self.generator))))
        return SingleStep(graph, reward, terminated=len(self.names) == 0, info={'in_rhythm': float(reward.mean())})

    def arrive(self, count: int) -> Snapshot:
        self.names = torch.cat([self.names, self.arrived + torch.arange(count)])
        self.arrived += count
        self.place = torch.cat([self.place, torch.rand(count, 2, generator=self.generator)])
        self.rhythm = torch.cat([self.rhythm, torch.randint(2, (count,), generator=self.generator).float()])
        x = torch.cat([self.place, self.rhythm.unsqueeze(1)], dim=1)
        self.neighbours = k_nearest(self.place, k=2)
        return Snapshot(x=x, edge_index=self.neighbours, node_id=self.names)

    def agreement(self) -> Tensor:
        sender, receiver = self.neighbours
        same = (self.rhythm[sender] == self.rhythm[receiver]).float()
        total, degree = (
            torch.zeros(len(self.names)).index_add(0, receiver, part) for part in (same, torch.ones_like(same))
        )
        return total / degree.clamp(min=1)


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=12, help='steps to show')
    parser.add_argument('--seed', type=int, default=0)
    options = parser.parse_args(args)

    check_env(lambda: VectorGraphEnv(Fireflies, num_envs=3), steps=60)  # raises at the first rule that is broken
    print('Fireflies keeps the contract.')

    env = VectorGraphEnv(Fireflies, num_envs=4)
    graph = env.reset(seed=options.seed)
    rng = torch.Generator().manual_seed(options.seed)
    for t in range(options.steps):
        step = env.step(torch.randint(env.spec.num_actions, (graph.num_nodes,), generator=rng))
        graph = step.graph
        print(
            f'step {t + 1:3}: fireflies {graph.ptr.diff().tolist()}, in rhythm {step.info["in_rhythm"].mean():.2f}, '
            f'nights over {step.ended.tolist()}'
        )


if __name__ == '__main__':
    main()
