"""Rules of the one-step dilemmas: how graphs and states are drawn, observations, and payoffs.

Each game is a small class. ``graphs`` and ``state`` are dicts of tensors whose first axis is the graph; payoffs are
float64 and unscaled. All of them are whole numbers or multiples of 2^-24, so that sums are exact in any order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from .checks import check_count
from .streams import draw, draw_rows

GRAPHS = ('groups', 'double_star', 'offers')
TOPOLOGIES = ('ring', 'star', 'tree', 'ba')

HUNT_ALL, HUNT_ALONE, HUNT_STAY = 4, -8, 1  # all hunt; a hunter where not all do; an agent that stays
WORK = (30, 9)  # payoff of action 1 for the agent, and cost for each of the three others
TEMPT = (12, 6)
GOOD = (45, 30)  # an offer on the double star: payoff, and cost for the victim
BAD = (30, 45)
GRAIN = 2**24  # gains and harms of offers are multiples of 1 / GRAIN

_DEFAULT_AGENTS = {'groups': 8, 'double_star': 6, 'offers': 20}
_DEFAULT_SCALE = {'groups': 0.1, 'double_star': 0.1, 'offers': 1.0}
# The best sum of payoffs in each kind of state, in a group and on the double star.
_BEST_GROUP = {'hunt': 4 * HUNT_ALL, 'work': 4 * (WORK[0] - 3 * WORK[1]), 'tempt': 0}
_BEST_STAR = {'hunt': 4 * HUNT_ALL, 'good': GOOD[0] - GOOD[1], 'bad': 0}
_OPTIMUM = {
    'groups': sum(_BEST_GROUP.values()) / 3 / 4,
    'double_star': sum(_BEST_STAR.values()) / 3 / 6,
    'offers': 1 / 12,
}


@dataclass(frozen=True, kw_only=True)
class DilemmasConfig:
    """Options of the dilemmas.

    Raises:
        ValueError: If an option is out of its range; the message names it.
    """

    graph: Literal['groups', 'double_star', 'offers'] = 'groups'  # which of the three games
    num_agents: int | None = None  # N; None: 8 in groups, 6 on the double star (the only size), 20 with offers
    topology: Literal['ring', 'star', 'tree', 'ba'] = 'ba'  # offers: the graph; ba is preferential attachment
    attach: int = 2  # offers on ba: number of edges from each new node to earlier ones
    horizon: int = 10  # steps of an episode
    reward_scale: float | None = None  # factor on all payoffs; None: 0.1, with offers 1

    def __post_init__(self) -> None:
        for name, value, known in (('graph', self.graph, GRAPHS), ('topology', self.topology, TOPOLOGIES)):
            if value not in known:
                raise ValueError(f"'{name}' must be one of {', '.join(known)} (got {value!r})")
        check_count('attach', self.attach, 1)
        check_count('horizon', self.horizon, 1)
        if self.graph != 'offers' and (self.topology, self.attach) != ('ba', 2):
            raise ValueError(
                f"'topology' and 'attach' are options of --graph offers (got {self.topology!r} and {self.attach}, with "
                f'{self.graph!r}). Leave them out, or choose that graph.'
            )
        if self.topology != 'ba' and self.attach != 2:
            raise ValueError(
                f"'attach' is an option of --topology ba (got {self.attach}, with {self.topology!r}). Leave it out, or "
                f'choose that topology.'
            )
        if self.num_agents is not None:
            check_count('num_agents', self.num_agents, 2)
        if self.graph == 'groups' and self.agents % 4:
            raise ValueError(
                f"'num_agents' must be a multiple of 4, as each group has four agents (got {self.num_agents}). "
                f'Try {4 * max(1, round(self.agents / 4))}.'
            )
        if self.graph == 'double_star' and self.agents != 6:
            raise ValueError(f"'num_agents' must be 6 or None on the double star (got {self.num_agents})")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"'reward_scale' must be a positive number (got {self.reward_scale})")

    @property
    def agents(self) -> int:
        """Agents of each graph, N."""
        return _DEFAULT_AGENTS[self.graph] if self.num_agents is None else self.num_agents

    @property
    def scale(self) -> float:
        """Factor on payoffs."""
        return _DEFAULT_SCALE[self.graph] if self.reward_scale is None else self.reward_scale

    @property
    def optimum(self) -> float:
        """The best expected payoff per agent and step, unscaled: 2.333, 1.722, .0833."""
        return _OPTIMUM[self.graph]


Tensors = dict[str, Tensor]


class Rules(Protocol):
    """The interface of a game in :class:`~ltos_pyg.envs.DilemmasEnv`."""

    num_edges: int  # of each graph: constant

    @property
    def num_features(self) -> int: ...

    @property
    def edge_dim(self) -> int | None: ...

    def new_graphs(self, streams: Tensor) -> Tensors:
        """Graphs of new episodes."""

    def new_state(self, streams: Tensor, graphs: Tensors) -> Tensors:
        """The state of the next step. A graph draws the same number of random numbers at each step."""

    def edges(self, graphs: Tensors, state: Tensors) -> tuple[Tensor, Tensor]:
        """Senders and receivers (2, B, E), counted within each graph, by receiver, then sender; and, (B, E), whether
        the receiver harms the sender if it takes action 1."""

    def features(self, graphs: Tensors, state: Tensors) -> tuple[Tensor, Tensor | None]:
        """Observations: of nodes (B, N, F) and of edges (B, E, D)."""

    def play(self, graphs: Tensors, state: Tensors, action: Tensor) -> tuple[Tensor, Tensors]:
        """Payoffs (B, N), and, for each kind of state, by how much their sum falls short of the best there (B,)."""


def make_rules(config: DilemmasConfig, num_envs: int, device: torch.device) -> Rules:
    """The rules of a configuration."""
    if config.graph == 'groups':
        return Groups(config.agents, device)
    if config.graph == 'double_star':
        return DoubleStar(num_envs, device)
    return Offers(config, num_envs, device)


def hunt_payoff(action: Tensor, players: Tensor) -> Tensor:
    """Payoffs of a hunt among the players along the last axis; 0 to the others."""
    all_hunt = (players <= action.bool()).all(-1, keepdim=True)
    hunts = torch.where(all_hunt, HUNT_ALL, HUNT_ALONE)
    return torch.where(action.bool(), hunts, HUNT_STAY).double() * players


# --- Groups: hunt, work, tempt ---------------------------------------------------------------------------------------


class Groups:
    """Groups of four among N agents, redrawn at each step; each has one of three states."""

    num_features, edge_dim = 3, None

    def __init__(self, num_agents: int, device: torch.device) -> None:
        self.num_agents, self.num_edges = num_agents, 3 * num_agents
        self.others = torch.tensor([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]], device=device)

    def new_graphs(self, streams: Tensor) -> Tensors:
        return {}

    def new_state(self, streams: Tensor, graphs: Tensors) -> Tensors:
        B, N = streams.numel(), self.num_agents
        order = draw_rows(streams, 2**31, N).argsort(dim=1, stable=True)
        members = order.view(B, N // 4, 4).sort(dim=2).values
        return {'members': members, 'kind': draw_rows(streams, 3, N // 4)}  # kinds: 0 hunt, 1 work, 2 tempt

    def edges(self, graphs: Tensors, state: Tensors) -> tuple[Tensor, Tensor]:
        members = state['members']
        B, N = members.size(0), self.num_agents
        sender = self._per_agent(members, members[:, :, self.others])  # (B, N, 3)
        receiver = torch.arange(N, device=members.device).view(1, N, 1).expand(B, N, 3)
        harms = self._per_agent(members, (state['kind'] > 0).unsqueeze(2).expand(members.shape))
        return torch.stack([sender, receiver]).view(2, B, -1), harms.repeat_interleave(3, dim=1)

    def features(self, graphs: Tensors, state: Tensors) -> tuple[Tensor, Tensor | None]:
        kind = self._per_agent(state['members'], state['kind'].unsqueeze(2).expand(state['members'].shape))
        return one_hot(kind, 3).float(), None

    def play(self, graphs: Tensors, state: Tensors, action: Tensor) -> tuple[Tensor, Tensors]:
        members, kind = state['members'], state['kind']
        act = action.gather(1, members.flatten(1)).view(members.shape)
        others = act.sum(2, keepdim=True) - act
        payoffs = [hunt_payoff(act, torch.ones_like(act, dtype=torch.bool))]
        payoffs += [(gain * act - harm * others).double() for gain, harm in (WORK, TEMPT)]
        parts = [torch.where((kind == k).unsqueeze(2), payoff, 0.0) for k, payoff in enumerate(payoffs)]
        lost = {
            name: _BEST_GROUP[name] * (kind == k).sum(1) - part.sum((1, 2))
            for k, (name, part) in enumerate(zip(_BEST_GROUP, parts, strict=True))
        }
        return self._per_agent(members, parts[0] + parts[1] + parts[2]), lost

    def _per_agent(self, members: Tensor, value: Tensor) -> Tensor:
        """One entry per place in a group, (B, N / 4, 4, ...), as one per agent, (B, N, ...)."""
        place = members.flatten(1).argsort(dim=1)
        value = value.flatten(1, 2)
        return value.gather(1, place.view(*place.shape, *[1] * (value.dim() - 2)).expand(value.shape))


# --- The double star: hunts and offers on one irregular graph --------------------------------------------------------


class DoubleStar:
    """Hubs 0 and 3 joined, leaves 1, 2 of 0 and 4, 5 of 3."""

    num_features, edge_dim, num_edges = 7, 4, 10
    PAIRS = ((0, 1), (0, 2), (0, 3), (3, 4), (3, 5))
    HUBS = (0, 3)

    def __init__(self, num_envs: int, device: torch.device) -> None:
        pairs = torch.tensor(self.PAIRS, device=device).expand(num_envs, -1, 2)
        self.edge, self.reverse = both_ways(pairs, 6)
        near = torch.eye(6, dtype=torch.bool, device=device)
        near[self.edge[0, 0], self.edge[1, 0]] = True
        self.degree = (near.sum(1) - 1).float()
        self.near, self.hubs = near, torch.tensor(self.HUBS, device=device)

    def new_graphs(self, streams: Tensor) -> Tensors:
        return {}

    def new_state(self, streams: Tensor, graphs: Tensors) -> Tensors:
        kind = draw(streams, 3)  # 0 hunt, 1 good, 2 bad
        return {'kind': kind, 'hub': self.hubs[draw(streams, 2)], 'edge': draw(streams, self.num_edges)}

    def edges(self, graphs: Tensors, state: Tensors) -> tuple[Tensor, Tensor]:
        harms = one_hot(state['edge'], self.num_edges).bool() & (state['kind'] > 0).unsqueeze(1)
        return self.edge, harms

    def features(self, graphs: Tensors, state: Tensors) -> tuple[Tensor, Tensor | None]:
        players, is_hub, actor, victim = self._roles(state)
        sign = (state['kind'] == 1).float() - (state['kind'] == 2).float()
        columns = [players, is_hub, actor, actor * sign.unsqueeze(1), victim, victim * sign.unsqueeze(1)]
        x = torch.stack([*(column.float() for column in columns), (self.degree / 4).expand(players.shape)], dim=2)
        _, harms = self.edges(graphs, state)
        acts = torch.stack([harms.float(), harms * sign.unsqueeze(1)], dim=2)
        return x, torch.cat([acts, along(acts, self.reverse)], dim=2)

    def play(self, graphs: Tensors, state: Tensors, action: Tensor) -> tuple[Tensor, Tensors]:
        players, _, actor, victim = self._roles(state)
        hunt = hunt_payoff(action, players)
        taken = (action * actor).sum(1, keepdim=True)
        parts = [hunt]
        for kind, (gain, harm) in ((1, GOOD), (2, BAD)):
            here = (state['kind'] == kind).unsqueeze(1)
            parts.append((here * taken * (gain * actor.long() - harm * victim.long())).double())
        lost = {
            name: _BEST_STAR[name] * (state['kind'] == kind) - part.sum(1)
            for kind, (name, part) in enumerate(zip(_BEST_STAR, parts, strict=True))
        }
        return parts[0] + parts[1] + parts[2], lost

    def _roles(self, state: Tensors) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, 6) bool each: takes part in a hunt, is the hub of it, has an offer, is the victim of one."""
        hunt = (state['kind'] == 0).unsqueeze(1)
        ends = [one_hot(self.edge[row].gather(1, state['edge'].unsqueeze(1)).squeeze(1), 6).bool() for row in (1, 0)]
        return (
            self.near[state['hub']] & hunt,
            one_hot(state['hub'], 6).bool() & hunt,
            ends[0] & ~hunt,
            ends[1] & ~hunt,
        )


# --- Offers on random graphs -----------------------------------------------------------------------------------------


class Offers:
    """Each agent may have an offer that harms one of its neighbours."""

    num_features, edge_dim = 6, 6

    def __init__(self, config: DilemmasConfig, num_envs: int, device: torch.device) -> None:
        self.config, self.num_agents = config, config.agents
        first = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self.num_edges = 2 * draw_pairs(config, first).size(1)

    def new_graphs(self, streams: Tensor) -> Tensors:
        edge, reverse = both_ways(draw_pairs(self.config, streams), self.num_agents)
        degree = torch.zeros(edge.size(1), self.num_agents, dtype=torch.int64, device=edge.device)
        degree.scatter_add_(1, edge[1], torch.ones_like(edge[1]))
        return {'sender': edge[0], 'receiver': edge[1], 'reverse': reverse, 'degree': degree}

    def new_state(self, streams: Tensor, graphs: Tensors) -> Tensors:
        N, degree = self.num_agents, graphs['degree']
        has = draw_rows(streams, 2, N).bool()
        gain, harm = (draw_rows(streams, GRAIN, N) * has for _ in range(2))
        victim = degree.cumsum(1) - degree + draw_rows(streams, degree, N)  # the edge that comes from the victim
        return {'has': has, 'gain': gain, 'harm': harm, 'victim': victim}

    def edges(self, graphs: Tensors, state: Tensors) -> tuple[Tensor, Tensor]:
        harms = torch.zeros(graphs['sender'].shape, dtype=torch.bool, device=graphs['sender'].device)
        return torch.stack([graphs['sender'], graphs['receiver']]), harms.scatter(1, state['victim'], state['has'])

    def features(self, graphs: Tensors, state: Tensors) -> tuple[Tensor, Tensor | None]:
        gain, harm = (state[name].double() / GRAIN for name in ('gain', 'harm'))
        against = self._at_victim(graphs, state, state['has'].double())
        threat = self._at_victim(graphs, state, harm)
        columns = [state['has'], gain, harm, against / 4, threat, graphs['degree'] / 4]
        _, harms = self.edges(graphs, state)
        per_edge = (value.gather(1, graphs['receiver']) * harms for value in (gain, harm))
        acts = torch.stack([harms.double(), *per_edge], dim=2)
        return (
            torch.stack([column.float() for column in columns], dim=2),
            torch.cat([acts, along(acts, graphs['reverse'])], dim=2).float(),
        )

    def play(self, graphs: Tensors, state: Tensors, action: Tensor) -> tuple[Tensor, Tensors]:
        gain, harm = (state[name].double() / GRAIN for name in ('gain', 'harm'))
        net = gain - harm
        good = net > 0
        lost = net.clamp(min=0) - action * net  # good ones not taken, bad ones taken
        payoff = action * gain - self._at_victim(graphs, state, action * harm)
        return payoff, {'good': (lost * good).sum(1), 'bad': (lost * ~good).sum(1)}

    def _at_victim(self, graphs: Tensors, state: Tensors, value: Tensor) -> Tensor:
        """The sum over the offers against each agent, (B, N) -> (B, N)."""
        return torch.zeros_like(value).scatter_add(1, graphs['sender'].gather(1, state['victim']), value)


def along(value: Tensor, edge: Tensor) -> Tensor:
    """``value`` (B, E, D) in another order of the edges, (B, E)."""
    return value.gather(1, edge.unsqueeze(2).expand(value.shape))


def both_ways(pairs: Tensor, num_agents: int) -> tuple[Tensor, Tensor]:
    """Neighbours (B, P, 2) as edges in both directions, (2, B, 2 P), by receiver, then sender; and the number of each
    edge's reverse edge, (B, 2 P)."""
    code = torch.cat([pairs[..., 0] * num_agents + pairs[..., 1], pairs[..., 1] * num_agents + pairs[..., 0]], 1)
    code = code.sort(dim=1).values
    receiver, sender = code // num_agents, code % num_agents
    return torch.stack([sender, receiver]), torch.searchsorted(code, sender * num_agents + receiver)


def draw_pairs(config: DilemmasConfig, streams: Tensor) -> Tensor:
    """The neighbours of new graphs, (B, P, 2). Ring and star are the same in every episode; a tree joins each agent to
    a uniformly random earlier one, preferential attachment to ``attach`` of them in proportion to their degrees."""
    B, N = streams.numel(), config.agents
    later = torch.arange(1, N, device=streams.device)
    if config.topology == 'tree':
        return torch.stack([draw_rows(streams, later, N - 1), later.expand(B, -1)], dim=2)
    if config.topology == 'ba':
        return _preferential(streams, N, config.attach)
    pairs = torch.stack([later - 1 if config.topology == 'ring' else torch.zeros_like(later), later], dim=1)
    if config.topology == 'ring' and N > 2:
        pairs = torch.cat([pairs, pairs.new_tensor([[0, N - 1]])])
    return pairs.expand(B, -1, 2)


def _preferential(streams: Tensor, N: int, attach: int) -> Tensor:
    """Starts from a star of ``attach + 1`` agents."""
    B, first = streams.numel(), min(attach, N - 1)
    degree = torch.zeros(B, N, dtype=torch.int64, device=streams.device)
    degree[:, :first], degree[:, first] = 1, first
    pairs = [torch.tensor([[i, first] for i in range(first)], device=streams.device).expand(B, -1, 2)]
    for new in range(first + 1, N):
        open_to = degree[:, :new].clone()  # degrees, 0 for agents already joined to the new one
        for _ in range(attach):
            total = open_to.cumsum(1)
            chosen = (total <= draw_rows(streams, total[:, -1:], 1)).sum(1, keepdim=True)
            open_to.scatter_(1, chosen, 0)
            pairs.append(torch.stack([chosen, torch.full_like(chosen, new)], dim=2))
        degree[:, :new] += open_to == 0
        degree[:, new] = attach
    return torch.cat(pairs, dim=1)
