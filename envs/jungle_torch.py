"""The jungle in torch operations alone: for CUDA, and as the readable form of the compiled one, equal to the bit."""

from __future__ import annotations

import torch
from torch import Tensor

from .jungle_rules import DX, DY, FIRST_ATTACK, JungleConfig, Observations
from .streams import draw


class TorchJungle:
    """B boards on any device. ``cells`` (B, N + L, 2) holds y and x of the agents, then of the foods; ``high`` (B, N)
    says which agents gain ``attack_gain_high``."""

    def __init__(self, config: JungleConfig, num_envs: int, device: torch.device) -> None:
        self.config, self.num_envs, self.device = config, num_envs, device
        self.streams = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self._cells = torch.zeros(num_envs, config.num_agents + config.num_foods, 2, dtype=torch.int64, device=device)
        self._flagged = config.attack_gain_high is not None
        self._high = torch.zeros(num_envs, config.num_agents, dtype=torch.bool, device=device)
        self._direction = torch.tensor([DY, DX], device=device).t()
        self._payoffs = torch.from_numpy(config.payoffs).to(device)
        walls = torch.ones(config.size, config.size, dtype=torch.bool, device=device)
        walls[1:-1, 1:-1] = False
        self._walls = walls.flatten()
        sign = torch.ones(self._cells.size(1), dtype=config.dtype, device=device)
        sign[config.num_agents :] = -1
        self._sign = sign

    def start(self) -> None:
        """New random cells, and new agents with the high gain."""
        side = self.config.size - 2
        cell = self._draw_distinct(side * side, self._cells.size(1))
        self._cells = 1 + torch.stack([cell // side, cell % side], 2)
        if self._flagged:
            agents = self._draw_distinct(self.config.num_agents, self.config.num_high)
            self._high = torch.zeros_like(self._high).scatter_(1, agents, True)

    def _draw_distinct(self, bound: int, count: int) -> Tensor:
        """Distinct numbers below a bound (B, count): the first steps of a Fisher-Yates shuffle."""
        left = torch.arange(bound, device=self.device).repeat(self.num_envs, 1)
        chosen = torch.empty(self.num_envs, count, dtype=torch.int64, device=self.device)
        for m in range(count):
            pick = (m + draw(self.streams, bound - m)).unsqueeze(1)
            chosen[:, m : m + 1] = left.gather(1, pick)
            left.scatter_(1, pick, left[:, m : m + 1].clone())
        return chosen

    def cells(self) -> Tensor:
        """(B, N + L, 2) int64, y and x."""
        return self._cells.clone()

    def high(self) -> Tensor:
        """Which agents have the high gain (B, N) bool."""
        return self._high.clone()

    def place(self, cells: Tensor, high: Tensor | None) -> None:
        """Puts agents and foods on given cells, and flags the agents with the high gain, if any."""
        self._cells = cells.to(self.device, copy=True)
        if high is not None:
            self._high = high.to(self.device, copy=True)

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Observations]:
        """Rewards (B N,), attacks on agents, food and blanks (3, B), and the observations after the step."""
        action = action.view(self.num_envs, -1)
        N, size = self.config.num_agents, self.config.size
        target = self._cells[:, :N] + self._direction[action]
        here, there = _flat(self._cells, size), _flat(target, size)
        strikes = action >= FIRST_ATTACK
        reward, tally = self._attack(there, here, strikes)
        self._move(there, here, ~strikes)
        return reward, tally, self.observe()

    def close(self) -> None:
        """No resources to release."""

    def _attack(self, there: Tensor, here: Tensor, strikes: Tensor) -> tuple[Tensor, Tensor]:
        """All attacks are simultaneous, on the positions at the start of the step."""
        N = self.config.num_agents
        struck = (there.unsqueeze(2) == here.unsqueeze(1)) & strikes.unsqueeze(2)  # (B, attacker, entity)
        on_agent, on_food = struck[:, :, :N].any(2), struck[:, :, N:].any(2)
        on_blank = strikes & ~on_agent & ~on_food
        food, agent, blank, victim, high = self._payoffs
        gain = torch.where(self._high, high, agent) if self._flagged else agent
        earned = on_food * food + on_agent * gain + on_blank * blank
        reward = earned + victim * struck[:, :, :N].sum(1)
        return reward.flatten(), torch.stack([on_agent.sum(1), on_food.sum(1), on_blank.sum(1)]).float()

    def _move(self, there: Tensor, here: Tensor, moves: Tensor) -> None:
        """Agents move one by one, in the order of their numbers; later agents see the cells taken and left by earlier
        ones."""
        taken = self._walls.repeat(self.num_envs, 1).scatter_(1, here, True)
        size, cell = self.config.size, here.clone()
        for i in range(self.config.num_agents):
            old, new = here[:, i : i + 1], there[:, i : i + 1]
            goes = moves[:, i : i + 1] & ~taken.gather(1, new)
            new = torch.where(goes, new, old)
            taken.scatter_(1, old, False).scatter_(1, new, True)
            cell[:, i : i + 1] = new
        self._cells = torch.stack([cell // size, cell % size], 2)

    def observe(self) -> Observations:
        """The current observations."""
        N = self.config.num_agents
        apart = self._cells.unsqueeze(1) - self._cells[:, :N].unsqueeze(2)  # (B, observer, entity, 2)
        distance = apart.square().sum(3)
        receives = self._neighbours(distance[:, :, :N])
        graph, receiver, sender = receives.nonzero(as_tuple=True)
        edge_index = torch.stack([graph * N + sender, graph * N + receiver])
        edge_attr = apart[graph, receiver, sender].to(self.config.dtype) if self.config.edge_features else None
        return Observations(self._windows(apart, distance), edge_index, edge_attr, receives.sum((1, 2)))

    def _neighbours(self, distance: Tensor) -> Tensor:
        """Whether each agent receives messages from each (B, receiver, sender), from their squared distances."""
        N, reach = self.config.num_agents, self.config.reach
        if reach is not None:
            within = distance <= reach
            within.diagonal(dim1=1, dim2=2).fill_(False)
            return within
        bits = max(1, (N - 1).bit_length())
        key = distance << bits | torch.arange(N, device=self.device)  # ties go to the lower index
        key.diagonal(dim1=1, dim2=2).fill_(torch.iinfo(torch.int64).max)
        nearest = key.topk(self.config.degree, 2, largest=False).indices
        receives = torch.zeros_like(key, dtype=torch.bool).scatter_(2, nearest, True)
        return receives | receives.transpose(1, 2) if self.config.symmetric else receives

    def _windows(self, apart: Tensor, distance: Tensor) -> Tensor:
        """Every entity is written into every window; entities out of view go to the last column, which is overwritten
        afterwards."""
        N, view, columns = self.config.num_agents, self.config.view, self.config.num_features
        place = apart[..., 0] * (2 * view + 1) + apart[..., 1] + 2 * view * (view + 1)
        place = torch.where(distance <= view * view, place, columns - 1)
        x = torch.zeros(self.num_envs, N, columns, dtype=self.config.dtype, device=self.device)
        mark = self._sign.expand_as(place)
        if self._flagged:
            mark = mark.clone()
            mark[:, :, :N] += self._high.unsqueeze(1)
        x.scatter_(2, place, mark)
        own = (2 * view + 1) ** 2
        x[:, :, own : own + 2] = self._cells[:, :N].to(self.config.dtype)
        if self._flagged:
            x[:, :, -1] = self._high
        return x.flatten(0, 1)


def _flat(cells: Tensor, size: int) -> Tensor:
    """(y, x) as one number."""
    return cells[..., 0] * size + cells[..., 1]
