"""The jungle in MAgent's own engine (``magent2``, an extra), for comparison in benchmarks and tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class MAgentJungle:
    """One board of MAgent's "eat" game, as the authors of `"Graph Convolutional Reinforcement Learning"
    <https://arxiv.org/abs/1810.09202>`_ configured it, started on given cells.

    Args:
        agents: Cells of the agents (N, 2), y and x, inside the wall.
        foods: Cells of the foods (L, 2).
        size (int): Cells on a side of the board, with its wall.
    """

    def __init__(self, agents: Array, foods: Array, size: int = 30) -> None:
        from magent2 import gridworld

        self.game = gridworld.GridWorld(_eat_config(gridworld, size))
        self.game.reset()
        self._agents, self._foods = self.game.get_handles()
        for handle, cells in ((self._agents, agents), (self._foods, foods)):
            self.game.add_agents(handle, method='custom', pos=np.asarray(cells)[:, ::-1].tolist())  # it counts (x, y)

    def step(self, action: Array) -> Array:
        """Plays one int32 action per agent (N,), numbered as ours, and returns their rewards (N,)."""
        self.game.set_action(self._agents, action)
        self.game.step()
        reward: Array = self.game.get_reward(self._agents)
        self.game.clear_dead()
        return reward

    def agent_cells(self) -> Array:
        """(N, 2), y and x."""
        return self.game.get_pos(self._agents)[:, ::-1]

    def food_cells(self) -> Array:
        """(L, 2), y and x."""
        return self.game.get_pos(self._foods)[:, ::-1]

    def observe(self) -> Array:
        """The engine's observations (N, 11, 11, 5); it writes to the same memory each time."""
        view: Array = self.game.get_observation(self._agents)[0]
        return view

    def windows(self) -> Array:
        """(N, 121): agents 1, foods -1. The engine's channels are wall, own group, its health, the others, theirs."""
        view = self.observe()
        return (view[..., 1] - view[..., 3]).reshape(len(view), -1)


def _eat_config(gridworld: Any, size: int) -> Any:
    config = gridworld.Config()
    config.set({'map_width': size, 'map_height': size, 'minimap_mode': False})
    body = {'width': 1, 'length': 1, 'step_recover': 0}
    eater = {'hp': 400, 'speed': 1, 'damage': 1, 'attack_in_group': True, 'attack_penalty': -0.01}
    ranges = {'view_range': gridworld.CircleRange(5), 'attack_range': gridworld.CircleRange(1)}
    agents = config.add_group(config.register_agent_type('agent', body | eater | ranges))
    ranges = {'view_range': gridworld.CircleRange(1), 'attack_range': gridworld.CircleRange(0)}
    foods = config.add_group(config.register_agent_type('food', body | {'hp': 500, 'speed': 0} | ranges))
    one, other = (gridworld.AgentSymbol(agents, index='any') for _ in range(2))
    meal = gridworld.AgentSymbol(foods, index='any')
    config.add_reward_rule(gridworld.Event(one, 'attack', meal), receiver=[one], value=[1])
    config.add_reward_rule(gridworld.Event(one, 'attack', other), receiver=[one, other], value=[2, -4])
    return config
