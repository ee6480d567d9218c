"""Sharing weights learned by LToS, used in your own network.

LToS is trained on the double star, a game where agents should keep their reward in one state and share it in another.
Then a small network of yours predicts each agent's reward from all observations. Its `LToSConv` layers move
features along the edges, once with weights that the layers learn themselves, once with those of the trained policy:
`action, sharing = policy(graph)`, then `conv(x, edge_index, share=sharing)`.

You will see the shares kept by the trained policy, and the two networks' errors on new episodes.

    python examples/06_trained_weights_in_your_gnn.py --steps 40000
"""

import argparse
import tempfile

import torch
from torch import Tensor
from torch.nn import Linear, Module
from torch_geometric.data import Batch

import ltos_pyg
from ltos_pyg.envs import DilemmasEnv
from ltos_pyg.nn import LToSConv, Sharing


class RewardNet(Module):
    """Two `LToSConv` layers and a linear one: each agent's predicted reward."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.first, self.second = LToSConv(num_features, 32), LToSConv(32, 32)
        self.out = Linear(num_features + 64, 1)

    def forward(self, graph: Batch, share: Sharing | None) -> Tensor:
        a = self.first(graph.x, graph.edge_index, share=share).relu()
        b = self.second(a, graph.edge_index, share=share).relu()
        return self.out(torch.cat([graph.x, a, b], dim=-1)).squeeze(-1)


def episodes(policy: ltos_pyg.Policy, seed: int, steps: int) -> list[tuple[Batch, Sharing, Tensor]]:
    """Observations, the policy's weights, and each agent's reward."""
    env = DilemmasEnv(num_envs=32, graph='double_star')
    graph, rows = env.reset(seed), []
    for _ in range(steps):
        action, sharing = policy(graph)
        step = env.step(action)
        rows.append((graph, sharing, step.reward))
        graph = step.graph
    return rows


def error(net: Module, rows: list[tuple[Batch, Sharing, Tensor]], use_policy: bool) -> Tensor:
    losses = [(net(graph, sharing if use_policy else None) - reward).square().mean() for graph, sharing, reward in rows]
    return torch.stack(losses).mean()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--steps', type=int, default=40_000, help='env steps that LToS trains for')
    parser.add_argument('--epochs', type=int, default=200, help='training epochs of your network')
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        run = ltos_pyg.train(
            'dilemmas', algo='ltos', graph='double_star', total_steps=args.steps, out=f'{folder}/run', media=False
        )
        policy = run.policy
        print(f'LToS reaches {run.result["eval"]["policy"]["optimality"]["mean"]:.2f} of the best possible reward')

    known, new = episodes(policy, seed=1, steps=10), episodes(policy, seed=2, steps=10)
    kept = torch.cat([sharing.kept for _, sharing, _ in new])
    print(f'its agents keep {kept.min():.2f} to {kept.max():.2f} of their reward (standard deviation {kept.std():.2f})')
    for name, use_policy in (('learned by the layers', False), ("the trained policy's", True)):
        torch.manual_seed(0)
        net = RewardNet(known[0][0].num_features)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(args.epochs):
            optimizer.zero_grad()
            error(net, known, use_policy).backward()
            optimizer.step()
        with torch.no_grad():
            print(f'weights {name:<22} squared error on new episodes {error(net, new, use_policy):.4f}')


if __name__ == '__main__':
    main()
