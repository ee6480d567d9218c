"""The jungle in torch operations alone: for CUDA, and the readable twin of the compiled one, equal to the last bit."""

from __future__ import annotations

import torch
from torch import Tensor

from ltos_pyg.envs.jungle_rules import DX, DY, FIRST_ATTACK, JungleConfig, Sight
from ltos_pyg.envs.streams import draw


class TorchJungle:
    """B boards on any device. ``cells`` (B, N + L, 2) holds y and x of the agents, then of the foods."""

    def __init__(self, config: JungleConfig, num_envs: int, device: torch.device) -> None:
        self.config, self.num_envs, self.device = config, num_envs, device
        self.streams = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self._cells = torch.zeros(num_envs, config.num_agents + config.num_foods, 2, dtype=torch.int64, device=device)
        self._direction = torch.tensor([DY, DX], device=device).t()
        self._payoffs = torch.from_numpy(config.payoffs).to(device)
        walls = torch.ones(config.size, config.size, dtype=torch.bool, device=device)
        walls[1:-1, 1:-1] = False
        self._walls = walls.flatten()
        sign = torch.ones(self._cells.size(1), dtype=torch.int8, device=device)
        sign[config.num_agents :] = -1
        self._sign = sign

    def start(self) -> None:
        """New random cells for everyone: the first steps of a Fisher-Yates shuffle of the free ones."""
        side = self.config.size - 2
        free = torch.arange(side * side, device=self.device).repeat(self.num_envs, 1)
        chosen = []
        for m in range(self._cells.size(1)):
            pick = (m + draw(self.streams, side * side - m)).unsqueeze(1)
            chosen.append(free.gather(1, pick))
            free.scatter_(1, pick, free[:, m : m + 1].clone())
        cell = torch.cat(chosen, 1)
        self._cells = 1 + torch.stack([cell // side, cell % side], 2)

    def cells(self) -> Tensor:
        """(B, N + L, 2) int64, y and x."""
        return self._cells.clone()

    def place(self, cells: Tensor) -> None:
        """Puts everyone on given cells."""
        self._cells = cells.to(self.device, copy=True)

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Sight]:
        """Rewards (B N,), attacks on agents, food and blanks (3, B), and what the agents see then."""
        action = action.view(self.num_envs, -1)
        N, size = self.config.num_agents, self.config.size
        target = self._cells[:, :N] + self._direction[action]
        here, there = _flat(self._cells, size), _flat(target, size)
        strikes = action >= FIRST_ATTACK
        reward, tally = self._attack(there, here, strikes)
        self._move(there, here, ~strikes)
        return reward, tally, self.observe()

    def close(self) -> None:
        """Holds nothing to release."""

    def _attack(self, there: Tensor, here: Tensor, strikes: Tensor) -> tuple[Tensor, Tensor]:
        """Everyone strikes at once, at where everyone stood when the step began."""
        N = self.config.num_agents
        struck = (there.unsqueeze(2) == here.unsqueeze(1)) & strikes.unsqueeze(2)  # (B, attacker, entity)
        on_agent, on_food = struck[:, :, :N].any(2), struck[:, :, N:].any(2)
        on_blank = strikes & ~on_agent & ~on_food
        food, agent, blank, victim = self._payoffs
        earned = on_food * food + on_agent * agent + on_blank * blank
        reward = earned + victim * struck[:, :, :N].sum(1)
        return reward.flatten(), torch.stack([on_agent.sum(1), on_food.sum(1), on_blank.sum(1)]).float()

    def _move(self, there: Tensor, here: Tensor, moves: Tensor) -> None:
        """One by one in the order of the agents: who comes first takes the cell, and leaves its own to those after."""
        taken = self._walls.repeat(self.num_envs, 1).scatter_(1, here, True)
        size, cell = self.config.size, here.clone()
        for i in range(self.config.num_agents):
            old, new = here[:, i : i + 1], there[:, i : i + 1]
            goes = moves[:, i : i + 1] & ~taken.gather(1, new)
            new = torch.where(goes, new, old)
            taken.scatter_(1, old, False).scatter_(1, new, True)
            cell[:, i : i + 1] = new
        self._cells = torch.stack([cell // size, cell % size], 2)

    def observe(self) -> Sight:
        """What the agents see now."""
        N, k = self.config.num_agents, self.config.degree
        apart = self._cells.unsqueeze(1) - self._cells[:, :N].unsqueeze(2)  # (B, who looks, at whom, 2)
        distance = apart.square().sum(3)
        bits = max(1, (N - 1).bit_length())
        key = distance[:, :, :N] << bits | torch.arange(N, device=self.device)  # ties go to the lower index
        key.diagonal(dim1=1, dim2=2).fill_(torch.iinfo(torch.int64).max)
        nearest = key.topk(k, 2, largest=False).indices
        hears = torch.zeros(self.num_envs, N, N, dtype=torch.bool, device=self.device).scatter_(2, nearest, True)
        if self.config.symmetric:
            hears = hears | hears.transpose(1, 2)
        graph, receiver, sender = hears.nonzero(as_tuple=True)
        edge_index = torch.stack([graph * N + sender, graph * N + receiver])
        edge_attr = apart[graph, receiver, sender].to(torch.int8) if self.config.edge_features else None
        return Sight(self._windows(apart, distance), edge_index, edge_attr, hears.sum((1, 2)))

    def _windows(self, apart: Tensor, distance: Tensor) -> Tensor:
        """Everyone is written into every window: whoever is out of sight into its last column, which then takes x."""
        N, view, columns = self.config.num_agents, self.config.view, self.config.num_features
        place = apart[..., 0] * (2 * view + 1) + apart[..., 1] + 2 * view * (view + 1)
        place = torch.where(distance <= view * view, place, columns - 1)
        x = torch.zeros(self.num_envs, N, columns, dtype=torch.int8, device=self.device)
        x.scatter_(2, place, self._sign.expand_as(place))
        x[:, :, -2:] = self._cells[:, :N].to(torch.int8)
        return x.flatten(0, 1)


def _flat(cells: Tensor, size: int) -> Tensor:
    """(y, x) as one number."""
    return cells[..., 0] * size + cells[..., 1]
