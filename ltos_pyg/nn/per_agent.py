r"""Separate networks per agent: parameters stacked along the agents, one batched matrix product for all of them.

Everything here works on the *agent layout*: a batch of G graphs of at most n agents as one dense tensor
:math:`(n, G, F)`, in which an absent agent is a row of zeros. Agents and edges may change from step to step; the shapes
stay the same, and so does the row of each agent, which holds its recurrent state.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch


def agent_of_node(graph: Batch, by_place: bool, each_has: str) -> Tensor:
    """Which agent each node is, (N,): its place in the graph with ``by_place``, else its ``node_id``.

    Raises:
        ValueError: Without ``node_id``; says that each agent has ``each_has``.
    """
    if by_place:
        return torch.arange(graph.num_nodes, device=graph.batch.device) - graph.ptr[graph.batch]
    agent: Tensor | None = graph.get('node_id')
    if agent is None:
        raise ValueError(
            f"graphs need 'node_id' (N,), which identifies the agents: each has {each_has}, and "
            f'spec.fixed_nodes is False (got none). Have the environment emit it, or set it on the graph.'
        )
    return agent


@dataclass(frozen=True)
class AgentLayout:
    """Position of each node of a batch in tensors :math:`(n, G, F)`."""

    place: Tensor  # (N,) int64: agent * num_graphs + graph
    num_agents: int  # n
    num_graphs: int  # G

    @classmethod
    def of(cls, graph: Batch, num_agents: int, by_place: bool = False) -> AgentLayout:
        """The layout of a batch. A node's agent is its ``node_id``, or its place in the graph with ``by_place``.

        Raises:
            ValueError: Without ``node_id``, or if an agent's number is not in [0, num_agents). (Not checked on CUDA.)
        """
        agent = agent_of_node(graph, by_place, 'networks of its own')
        if (
            agent.device.type == 'cpu'
            and agent.numel() > 0
            and not 0 <= int(agent.min()) <= int(agent.max()) < num_agents
        ):
            raise ValueError(
                f"'node_id' must lie in [0, {num_agents}), for every agent has networks of its own (got "
                f"{int(agent.min())}..{int(agent.max())}). Number the agents so, or raise 'max_agents'."
            )
        return cls(agent * graph.num_graphs + graph.batch, num_agents, graph.num_graphs)

    @property
    def rows(self) -> int:
        """Rows of the flat layout, n G."""
        return self.num_agents * self.num_graphs

    def to_dense(self, value: Tensor) -> Tensor:
        """(N, …) to (n, G, …), zeros for absent agents."""
        flat = value.new_zeros(self.rows, *value.shape[1:]).index_copy(0, self.place, value)
        return flat.view(self.num_agents, self.num_graphs, *value.shape[1:])

    def from_dense(self, dense: Tensor) -> Tensor:
        """(n, G, …) to (N, …)."""
        return dense.flatten(0, 1).index_select(0, self.place)

    def present(self) -> Tensor:
        """(n, G) bool: whether each agent is present."""
        return self.to_dense(torch.ones_like(self.place, dtype=torch.bool))

    def neighbour_rows(self, edge_index: Tensor, max_neighbours: int) -> tuple[Tensor, Tensor]:
        r"""The in-neighbours of each agent, in the order of their numbers.

        Returns:
            Rows of the flat layout :math:`(n G, K)`, with ``rows`` where there are fewer than
            K; and the number of edges beyond the K of an agent, which are dropped.
        """
        sender, receiver = self.place[edge_index]
        order = (receiver * self.rows + sender).argsort()
        sender, receiver = sender[order], receiver[order]
        first = torch.searchsorted(receiver, receiver)
        rank = torch.arange(len(receiver), device=receiver.device) - first
        table = torch.full((self.rows, max_neighbours + 1), self.rows, dtype=torch.int64, device=receiver.device)
        table[receiver, rank.clamp(max=max_neighbours)] = sender  # dropped edges go to the last column
        return table[:, :max_neighbours], (rank >= max_neighbours).sum()


def gather_slots(value: Tensor, rows: Tensor) -> Tensor:
    """Concatenates the values of the neighbours in each agent's slots: (n, G, d) and (n G, K) to (n, G, K d); an empty
    slot is zeros."""
    n, G, d = value.shape
    flat = torch.cat([value.reshape(n * G, d), value.new_zeros(1, d)])
    return flat.index_select(0, rows.flatten()).view(n, G, -1)


class AgentLinear(nn.Module):
    r"""One linear map per agent: :math:`y_{ig} = x_{ig} W_i + b_i`.

    Args:
        num_agents: n.
        in_channels: Size of each input.
        out_channels: Size of each output.
        bias: Whether there is :math:`b_i`.
        gain: Of the orthogonal initial weights, drawn for each agent by itself; biases start at zero.

    Shapes:
        - **input:** :math:`(n, G, F)`
        - **output:** :math:`(n, G, F')`
    """

    def __init__(
        self, num_agents: int, in_channels: int, out_channels: int, bias: bool = True, gain: float = 2**0.5
    ) -> None:
        super().__init__()
        self.gain = gain
        self.weight = nn.Parameter(torch.empty(num_agents, in_channels, out_channels))
        self.bias = nn.Parameter(torch.empty(num_agents, 1, out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new weights."""
        for weight in self.weight.detach():
            if weight.numel() > 0:
                nn.init.orthogonal_(weight, self.gain)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x, self.weight) if self.bias is None else torch.baddbmm(self.bias, x, self.weight)

    def __repr__(self) -> str:
        n, i, o = self.weight.shape
        return f'{self.__class__.__name__}({n} agents, {i}, {o})'


class AgentMLP(nn.Module):
    """One multilayer perceptron per agent, ReLU between its layers.

    Args:
        num_agents: n.
        channels: Sizes from the input to the output.
        bias: Whether the last layer has a bias.
        gain: Of the last layer's initial weights.
    """

    def __init__(self, num_agents: int, channels: Sequence[int], bias: bool = True, gain: float = 2**0.5) -> None:
        super().__init__()
        *hidden, last = itertools.pairwise(channels)
        lins = [AgentLinear(num_agents, i, o) for i, o in hidden]
        self.lins = nn.ModuleList([*lins, AgentLinear(num_agents, *last, bias=bias, gain=gain)])

    def reset_parameters(self) -> None:
        """Draws new weights."""
        for lin in self.modules():
            if isinstance(lin, AgentLinear):
                lin.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """(n, G, F) to (n, G, F')."""
        *hidden, last = self.lins
        for lin in hidden:
            x = lin(x).relu()
        return last(x)


class AgentLSTMCell(nn.Module):
    r"""One LSTM cell per agent, gates in the order input, forget, cell, output as in :class:`torch.nn.LSTMCell`.

    Shapes:
        - **input:** :math:`(n, G, F)`, state :math:`(h, c)`, each :math:`(n, G, H)`
        - **output:** the new state
    """

    def __init__(self, num_agents: int, in_channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.input = AgentLinear(num_agents, in_channels, 4 * hidden_channels)
        self.hidden = AgentLinear(num_agents, hidden_channels, 4 * hidden_channels, bias=False)

    def reset_parameters(self) -> None:
        """Draws new weights."""
        self.input.reset_parameters()
        self.hidden.reset_parameters()

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, g, o = (self.input(x) + self.hidden(h)).chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
