"""DGN: Q-learning with message passing between neighbours, each node on its own reward."""

from __future__ import annotations

from ltos_pyg.algos.dqn import DQN


class DGN(DQN):
    r"""Graph convolutional reinforcement learning: DQN whose Q-network sees ``num_layers`` hops of the graph.

    After `"Graph Convolutional Reinforcement Learning" <https://arxiv.org/abs/1810.09202>`_, without its temporal
    relation regularisation (the authors' jungle code has none either).
    """

    messages = True
