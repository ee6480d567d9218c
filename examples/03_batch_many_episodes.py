"""Many graph episodes as one PyG batch: one forward pass, one scatter for all shaped rewards, one replay.

You will see how many agent-steps one core collects per second, that sharing conserves the reward of each of the 256
graphs, and a batch sampled from graphs of different sizes.

    python examples/03_batch_many_episodes.py --steps 60
"""

import argparse
import time

import torch
from torch_geometric.utils import scatter

from ltos_pyg.data import GraphReplay
from ltos_pyg.envs import JungleEnv
from ltos_pyg.graph_env import GraphStep
from ltos_pyg.nn import DGN, SharingPolicy, share_value


@torch.no_grad()
def main(steps: int, num_envs: int) -> None:
    torch.set_num_threads(1)
    env = JungleEnv(num_envs=num_envs)
    spec = env.spec
    q_network = DGN(spec.num_features, spec.num_actions, edge_dim=spec.edge_dim)
    phi = SharingPolicy(spec.num_features, edge_dim=spec.edge_dim, initial_kept=0.4)
    replay = GraphReplay(spec, capacity=20_000)

    graph = env.reset(seed=0)
    print(f'{graph.num_graphs} graphs in one batch: {graph.num_nodes} nodes, {graph.num_edges} edges')
    start = time.perf_counter()
    for _ in range(steps):
        x, edge_attr = graph.x * env.spec.scale('feature'), graph.edge_attr * env.spec.scale('edge')
        sharing = phi(x, graph.edge_index, edge_attr)
        action = q_network(x, graph.edge_index, edge_attr).argmax(-1)
        step: GraphStep = env.step(action)
        replay.push(graph, action, sharing, step)
        shaped = share_value(step.reward, graph.edge_index, sharing)
        before, after = (scatter(r, graph.batch, reduce='sum') for r in (step.reward, shaped))
        torch.testing.assert_close(before, after, atol=1e-4, rtol=0)
        graph = step.graph
    seconds = time.perf_counter() - start
    print(f'{steps * graph.num_nodes / seconds:,.0f} agent-steps per second, networks included')
    print(
        'sharing moved reward inside each graph and lost none: '
        f"largest change of a graph's sum {(after - before).abs().max():.1e}"
    )

    t = replay.sample(batch_size=64, generator=torch.Generator().manual_seed(0), n_step=3, gamma=0.96)
    edges = torch.bincount(t.graph.batch[t.graph.edge_index[0]], minlength=64)
    print(f'sampled {t.num_graphs} graphs with {int(edges.min())} to {int(edges.max())} edges: {t.graph}')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=60)
    parser.add_argument('--num-envs', type=int, default=256)
    args = parser.parse_args()
    main(args.steps, args.num_envs)
