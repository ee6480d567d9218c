"""The common base of on-policy methods with separate networks per agent: acting, and collecting segments."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch_geometric.data import Batch

from ltos_pyg.algos import ranks
from ltos_pyg.algos.base import Algorithm, Decision, ObservationScaler, new_weights
from ltos_pyg.algos.exploration import softmax_choice
from ltos_pyg.data import Rollout, batch_to
from ltos_pyg.data.replay_input import check_observation
from ltos_pyg.graph_env import GraphEnvSpec, GraphStep
from ltos_pyg.nn import AgentLayout
from ltos_pyg.nn.validation import check_finite
from ltos_pyg.ranges import check_range
from ltos_pyg.seeding import generator, restore


@dataclass(frozen=True, kw_only=True)
class OnPolicyConfig:
    """Options of every on-policy method."""

    total_steps: int = 500_000  # env steps of training (one step of one graph each); all schedules run over them
    gamma: float = 0.99  # discount per step
    rollout_steps: int = 20  # steps of a segment, in every graph
    reward_norm: float = 1.0  # rewards are divided by it
    max_agents: int | None = None  # number of agents with networks of their own; None: spec.max_nodes of the env
    max_neighbours: int | None = None  # largest number of neighbours that an agent receives from; None: all others
    eval_temperature: float = 0.0  # without exploration: 0: the likeliest action; 1: draw from the policy

    def __post_init__(self) -> None:
        check_range(self, 'total_steps', 'rollout_steps', least=1)
        check_range(self, 'max_agents', least=1, none=', or None')
        check_range(self, 'max_neighbours', least=0, none=', or None')
        check_range(self, 'gamma', least=0, most=1)
        check_range(self, 'reward_norm', above=0)
        check_range(self, 'eval_temperature', least=0)


class View(NamedTuple):
    """A batch of graphs in the agent layout: n agents, G graphs, K neighbours at most."""

    x: Tensor  # (n, G, F)
    rows: Tensor  # (n G, K): row of the neighbour in each slot, see `AgentLayout.neighbour_rows`
    present: Tensor  # (n, G) bool
    mask: Tensor  # (n, G, A) bool: legal actions


class Memory(NamedTuple):
    """Recurrent state of the agents; zeros at the start of an episode and for absent agents."""

    h: Tensor  # (n, G, H)
    c: Tensor  # (n, G, H)
    policy: Tensor  # (n, G, A): the last action probabilities, as sent to neighbours

    def where(self, keep: Tensor) -> Memory:
        """The state of those in ``keep`` (n, G) or (G,), zeros for the others."""
        return Memory(*(part * keep.unsqueeze(-1) for part in self))


class OnPolicy(Algorithm):
    """Plays segments of ``rollout_steps`` steps in every graph; a method learns from each once and drops it.

    A network belongs to an agent's number (its place in the graph, or ``node_id`` where agents come and go), so agents
    can neither be more than ``max_agents`` nor swap numbers. An agent receives messages from at most ``max_neighbours``
    neighbours, in the order of their numbers; the number of edges beyond that is logged as ``dropped_edges``. Recurrent
    states are zero at the start of each episode, and when an agent returns.
    """

    config: Any
    data_parallel = True
    num_values = 1  # of each agent

    def __init__(self, spec: GraphEnvSpec, config: Any, seed: int = 0, device: str | torch.device = 'cpu') -> None:
        self.spec, self.config, self.device = spec, config, torch.device(device)
        self.env_steps = self.updates = 0
        self.num_agents = config.max_agents or spec.max_nodes
        self.max_neighbours = self.num_agents - 1 if config.max_neighbours is None else config.max_neighbours
        self.act_in(spec)
        with new_weights(seed):
            self.network = self.build_network().to(self.device)
        self.explore_rng = generator(seed, 'explore', self.device)
        self.play_rng = generator(seed, 'play', self.device)
        self.rollout = Rollout(config.rollout_steps)
        self.memory: Memory | None = None  # current, of the training episodes; None: at their start
        self.start: Memory | None = None  # at the first step of the segment
        self.after: Memory | None = None  # after the decision that was not observed yet
        self.play_memory: Memory | None = None

    # defined by each method ----------------------------------------------------------------------------------------

    @abstractmethod
    def build_network(self) -> Any:
        """The networks of all agents: a module with ``initial(num_graphs) -> Memory``."""

    @abstractmethod
    def policy(self, view: View, memory: Memory, explore: bool) -> tuple[Tensor, Memory]:
        """Logits (n, G, A), forbidden actions at minus infinity, and the memory after the step."""

    @abstractmethod
    def bootstrap(self, successor: Batch, memory: Memory) -> Tensor:
        """Values (n, G, V) of the successors, given the memory after the last decision; V is :attr:`num_values`."""

    def learning_reward(self, graph: Batch, layout: AgentLayout, reward: Tensor) -> Tensor:
        """Training rewards, (n, G), from the environment's rewards."""
        return reward

    @abstractmethod
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Optimizers, by name."""

    # acting ------------------------------------------------------------------------------------------------------

    def act_in(self, spec: GraphEnvSpec) -> None:
        self.inputs = ObservationScaler(spec).to(self.device)
        self.by_place = spec.fixed_nodes

    def layout(self, graph: Batch) -> AgentLayout:
        """Agent layout: by position where the environment declares fixed nodes, else by ``node_id``."""
        return AgentLayout.of(graph, self.num_agents, by_place=self.by_place)

    def view(self, graph: Batch) -> tuple[View, AgentLayout, Tensor]:
        """A batch in the agent layout, and how many edges found no slot."""
        layout = self.layout(graph)
        x, edge_index, _ = self.inputs(graph)
        rows, dropped_edges = layout.neighbour_rows(edge_index, self.max_neighbours)
        mask = graph.get('action_mask')
        if mask is None:
            mask = torch.ones(len(x), self.spec.num_actions, dtype=torch.bool, device=x.device)
        present = layout.present()
        return (
            View(layout.to_dense(x), rows, present, layout.to_dense(mask) | ~present.unsqueeze(-1)),
            layout,
            dropped_edges,
        )

    def remember(self, memory: Memory | None, num_graphs: int) -> Memory:
        """The recurrent state to act on; zeros where episodes begin."""
        if memory is None or memory.h.size(1) != num_graphs:
            return self.network.initial(num_graphs)
        return memory

    @torch.no_grad()
    def act(self, graph: Batch, explore: bool = False) -> Decision:
        graph = batch_to(graph, self.device)
        view, layout, _ = self.view(graph)
        memory = self.remember(self.memory if explore else self.play_memory, graph.num_graphs)
        logits, after = self.policy(view, memory, explore)
        logits, mask = layout.from_dense(logits), graph.get('action_mask')
        if explore:
            self.memory, self.after = memory, after
            return Decision(softmax_choice(logits, 1.0, self.explore_rng, mask))
        self.play_memory = after
        return Decision(softmax_choice(logits, self.config.eval_temperature, self.play_rng, mask))

    def reset_eval_state(self) -> None:
        self.play_memory = None

    def on_eval_step(self, step: GraphStep) -> None:
        if self.play_memory is not None:
            self.play_memory = self.play_memory.where(~step.ended.to(self.device))

    # observing ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def observe(self, graph: Batch, decision: Decision, step: GraphStep) -> None:
        if self.after is None or self.memory is None:
            raise ValueError("'decision' must come from act(graph, explore=True), whose memory it continues")
        if len(self.rollout) == 0:  # later ones were checked as what the step before returned
            check_observation('graph', graph)
        check_finite('reward', step.reward)
        for name in ('graph', 'successor') if step.successor is not step.graph else ('graph',):
            check_observation(f'step.{name}', getattr(step, name))
        graph, successor = batch_to(graph, self.device), batch_to(step.successor, self.device)
        view, layout, dropped_edges = self.view(graph)
        then = self.layout(successor).present()
        goes_on = view.present & then & ~step.ended.to(self.device)
        reward = layout.to_dense(step.reward.to(self.device, torch.float32))
        if len(self.rollout) == 0:
            self.start = self.memory
        self.rollout.push(
            **view._asdict(),
            action=layout.to_dense(decision.action.to(self.device)),
            reward=self.learning_reward(graph, layout, reward) / self.config.reward_norm,
            bootstrap=self.bootstrap_if_needed(successor, step, self.after),
            goes_on=goes_on,
            dropped_edges=dropped_edges,
        )
        self.memory, self.after = self.after.where(goes_on), None
        self.env_steps += graph.num_graphs * ranks.current().size

    def bootstrap_if_needed(self, successor: Batch, step: GraphStep, memory: Memory) -> Tensor:
        """Values of the successors, if this step completes the segment or truncates an episode; else zeros, as they are
        then not used."""
        then, goes_on = self.layout(successor).present(), ~step.terminated.to(self.device)
        if not (len(self.rollout) == self.rollout.length - 1 or bool(step.truncated.any())):
            return then.new_zeros((*then.shape, self.num_values), dtype=torch.float32)
        return self.bootstrap(successor, memory) * (then & goes_on).unsqueeze(-1)

    def hot(self, action: Tensor, view: View) -> Tensor:
        """Actions (n, G) as one-hots, zeros for absent agents."""
        return one_hot(action, self.spec.num_actions) * view.present.unsqueeze(-1).float()

    def restart_episodes(self) -> None:
        self.rollout.clear()
        self.memory = self.start = self.after = None

    # learning ----------------------------------------------------------------------------------------------------

    @property
    def due_updates(self) -> int:
        return int(self.rollout.full)

    @property
    def progress(self) -> float:
        """How much of training is done, in [0, 1]."""
        return min(self.env_steps / self.config.total_steps, 1.0)

    # saving ------------------------------------------------------------------------------------------------------

    def modules(self) -> dict[str, nn.Module]:
        """Networks, by name."""
        return {'network': self.network}

    def generators(self) -> dict[str, torch.Generator]:
        """Random generators, by name."""
        return {'explore': self.explore_rng, 'play': self.play_rng}

    def state_dict(self) -> dict[str, Any]:
        return {
            'env_steps': self.env_steps,
            'updates': self.updates,
            'modules': {name: module.state_dict() for name, module in self.modules().items()},
            'optimizers': {name: opt.state_dict() for name, opt in self.optimizers().items()},
            'rollout': self.rollout.state_dict(),
            'memory': {name: None if m is None else list(m) for name, m in self.memories().items()},
            'rng': {name: rng.get_state() for name, rng in self.generators().items()},
        }

    def memories(self) -> dict[str, Memory | None]:
        """Recurrent states from which a resumed run continues."""
        return {'memory': self.memory, 'start': self.start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.load_policy(state)
        for name, opt in self.optimizers().items():
            opt.load_state_dict(state['optimizers'][name])
        self.rollout.load_state_dict(state['rollout'], self.device)
        for name, parts in state['memory'].items():
            setattr(self, name, None if parts is None else Memory(*(part.to(self.device) for part in parts)))
        self.after = None
        restore(self.generators(), state['rng'])

    def policy_state(self) -> dict[str, Any]:
        modules = {name: module.state_dict() for name, module in self.modules().items()}
        return {'env_steps': self.env_steps, 'updates': self.updates, 'modules': modules}

    def load_policy(self, state: dict[str, Any]) -> None:
        self.env_steps, self.updates = state['env_steps'], state['updates']
        for name, module in self.modules().items():
            module.load_state_dict(state['modules'][name])
        self.reset_eval_state()
