"""Rewards of neighbourhoods and teams; helpers of the centralised methods: slots, concatenated observations."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch_geometric.data import Batch

from ltos_pyg.nn.per_agent import agent_of_node

TeamReward = Literal['mean', 'sum']
TEAM_REWARDS = ('mean', 'sum')
REWARDS = ('own', 'neighbourhood', 'team')  # what a node of DQN and DGN may maximise


def reward_of(kind: str, graph: Batch, reward: Tensor) -> Tensor:
    r"""What each node maximises, (N,): its ``'own'`` reward, the sum :math:`r_i + \sum_{j \to i} r_j` over its
    ``'neighbourhood'``, or the mean over its graph (``'team'``)."""
    if kind == 'own':
        return reward
    if kind == 'neighbourhood':
        sender, receiver = graph.edge_index.to(reward.device)
        return reward.index_add(0, receiver, reward.index_select(0, sender))
    batch = graph.batch.to(reward.device)
    total = reward.new_zeros(graph.num_graphs).index_add(0, batch, reward)
    return (total / graph.ptr.to(reward.device).diff().clamp(min=1)).index_select(0, batch)


def slots(graph: Batch, num_slots: int, by_place: bool) -> Tensor:
    """The slot of each node (N,), in [0, num_slots): its position in its graph with ``by_place``, else its ``node_id``.

    Raises:
        ValueError: Without ``node_id`` where it is needed, or if one is not below the number of slots (checked on the
            CPU only).
    """
    slot = agent_of_node(graph, by_place, 'a slot of its own')
    if by_place:
        return slot
    if slot.device.type == 'cpu' and slot.numel() > 0 and int(slot.max()) >= num_slots:
        raise ValueError(
            f"'node_id' must lie below spec.max_nodes={num_slots}, as each agent has a slot of its own "
            f'(got {int(slot.max())}). Number the agents from 0, or take a method without slots (qmix --mixing shared).'
        )
    return slot


def side_by_side(x: Tensor, graph: Batch, slot: Tensor, num_slots: int) -> Tensor:
    """The features of all nodes of each graph in the order of their slots, (N, F) -> (B, K * F); 0 where one is empty.

    More nodes than slots would overlap with the next graph: :func:`slots` raises then.
    """
    table = x.new_zeros(graph.num_graphs * num_slots, x.size(1))
    return table.index_copy(0, graph.batch * num_slots + slot, x).view(graph.num_graphs, num_slots * x.size(1))


def team_reward(reward: Tensor, graph: Batch, kind: TeamReward) -> Tensor:
    r"""One reward per graph: :math:`\sum_i r_i`, or its mean over the nodes, (N,) -> (B,); 0 where there are none."""
    total = reward.new_zeros(graph.num_graphs).index_add(0, graph.batch, reward)
    return total if kind == 'sum' else total / graph.ptr.diff().clamp(min=1)


def team_discount(discount: Tensor, graph: Batch) -> Tensor:
    """One discount per graph, (N,) -> (B,): the team continues while one of the agents that acted does."""
    return discount.new_zeros(graph.num_graphs).scatter_reduce(0, graph.batch, discount, 'amax')


def check_team_reward(kind: str) -> None:
    """Raises a ``ValueError`` for an unknown team reward."""
    if kind not in TEAM_REWARDS:
        raise ValueError(f"'team_reward' must be one of {TEAM_REWARDS} (got {kind!r})")


def joint_mask(mask: Tensor) -> Tensor:
    """Which joint actions are allowed, (B, K, A) -> (B, A^K); the last agent's action counts fastest."""
    joint = mask.new_ones(mask.size(0), 1)
    for agent in mask.unbind(1):
        joint = (joint.unsqueeze(-1) & agent.unsqueeze(1)).flatten(1)
    return joint
