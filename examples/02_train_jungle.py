"""Trains LToS on a small jungle in your own loop, without the command line.

You will see the mean reward per agent and step of greedy episodes, before and during training. It starts below zero
(random agents attack each other and empty cells) and rises as the agents learn to eat and to let each other eat.

    python examples/02_train_jungle.py --steps 20000
"""

import argparse

import torch

from ltos_pyg.algos import LToS, LToSConfig
from ltos_pyg.envs import JungleEnv
from ltos_pyg.training.evaluate import evaluate


def main(steps: int, seed: int) -> None:
    torch.set_num_threads(1)
    board = {'num_agents': 8, 'num_foods': 5, 'size': 16}
    env = JungleEnv(num_envs=16, **board)
    config = LToSConfig(
        total_steps=steps, learning_starts=min(500, steps // 4), hidden_channels=64, encoder_channels=(128,)
    )
    agent = LToS(env.spec, config, seed)

    def report() -> None:
        stats = evaluate(agent, JungleEnv(num_envs=50, **board), seed=10_000)
        reward, attacks = stats['reward'], stats['attacks']
        print(
            f'{agent.env_steps:>7} env steps: reward {reward.mean:+.3f} ± {reward.ci95:.3f} per agent and step, '
            f'{attacks.mean:.2f} attacks per step, share kept {stats["kept"].mean:.2f}'
        )

    report()
    graph = env.reset(seed)
    every = max(steps // 5, 1)
    while agent.env_steps < steps:
        decision = agent.act(graph, explore=True)  # actions and sharing weights
        step = env.step(decision.action)
        agent.observe(graph, decision, step)
        graph = step.graph  # for an ended episode, the start of the next one
        for _ in range(agent.due_updates):
            agent.update()
        if agent.env_steps % every < env.num_envs:
            report()


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=20_000, help='env steps (one graph, one step)')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    main(args.steps, args.seed)
