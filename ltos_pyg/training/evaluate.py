"""Greedy evaluation: whole episodes, one per graph of the batch, with mean, standard deviation and count."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch

from ltos_pyg.algos import Algorithm, Decision
from ltos_pyg.algos.base import first_nonfinite
from ltos_pyg.data import batch_to
from ltos_pyg.graph_env import GraphEnv, GraphEnvSpec
from ltos_pyg.graph_env.base import check_step
from ltos_pyg.graph_env.checker.walk import random_action
from ltos_pyg.nn import Sharing
from ltos_pyg.progress import Progress
from ltos_pyg.seeding import seed_stream
from ltos_pyg.training.metrics import SWITCHED, is_own

SWAP_EPISODES = 20  # most episodes for each other sharing mode
SWITCH_EVERY = 10  # from this step of an episode on, `switched_*` looks at every tenth step only
EVAL_PART = 0.02  # share of a run's steps that an evaluation plays, if its size is not given
FINAL_PART = 0.08  # the same for the final evaluation: about a seventh of the time, as greedy steps cost more
LENGTH = 100  # assumed steps of an episode without a horizon
LONG = 10_000  # steps of an episode after which an evaluation says that it still goes on


def eval_episodes(wanted: int | None, total_steps: int, horizon: int | None, tasks: int | None = None) -> int:
    """Episodes of each evaluation: as given, or one of each task, or sized to the run, 4 to 100."""
    if wanted is not None:
        return wanted
    if tasks is not None:
        return tasks
    return min(100, max(4, int(EVAL_PART * total_steps / (horizon or LENGTH))))


def final_episodes(
    wanted: int | None, total_steps: int, horizon: int | None, modes: int, tasks: int | None = None
) -> tuple[int, int]:
    """Episodes of the final evaluation: of the policy, and the most of each other sharing mode.

    If not given, each plays one episode of each task. Where there are no tasks, episodes are sized to the run
    together: 4 to 400 of the policy, and 2 to ``SWAP_EPISODES`` of each of the ``modes`` other modes, or none if
    the run is too short.
    """
    if wanted is not None:
        return wanted, SWAP_EPISODES
    if tasks is not None:
        return tasks, tasks
    total = int(FINAL_PART * total_steps / (horizon or LENGTH))
    swap = min(SWAP_EPISODES, max(2, total // (3 * modes))) if total >= 4 + 2 * modes and modes else 0
    return min(400, max(4, total - modes * swap)), swap


@dataclass(frozen=True)
class Stat:
    """A metric over episodes."""

    mean: float
    std: float  # sample standard deviation over the episodes
    count: int

    @classmethod
    def of(cls, values: Tensor) -> Stat:
        """The statistics of one value per episode, (B,)."""
        values = values.double()
        std = float(values.std()) if len(values) > 1 else 0.0
        return cls(float(values.mean()), std, len(values))

    @property
    def ci95(self) -> float:
        """Half the width of the 95 % interval of the mean over episodes (normal approximation)."""
        return 1.96 * self.std / self.count**0.5


class EpisodeTally:
    """Accumulates metrics of each graph of a batch until its episode ends.

    Metrics of an episode: ``return``, the undiscounted reward of a node (mean over nodes); ``reward``, the same per
    step; ``length``; each entry of :func:`sharing_measures`, per step; each per-graph entry of ``info``, per step; and
    each entry of ``outcome``, as the environment returned it at the end of the episode.
    """

    def __init__(self, num_graphs: int) -> None:
        self.num_graphs = num_graphs
        self.sums: dict[str, Tensor] = {}
        self.per_node: set[str] = set()  # entries of info that had one value per node, so are no metrics

    def add(self, name: str, value: Tensor) -> None:
        """Adds one value per graph, (B,)."""
        value = value.detach().to('cpu', torch.float64)
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def step(self, graph: Batch, reward: Tensor, info: dict[str, Tensor], sharing: Sharing | None) -> None:
        """Adds one step: the graph acted on, and its outcome."""
        self.add('return', graph_mean(reward, graph.batch, self.num_graphs))
        self.add('length', torch.ones(self.num_graphs))
        if sharing is not None:
            for name, value in sharing_measures(graph, sharing).items():
                self.add(name, value)
        for name, value in info.items():
            if value.shape != (self.num_graphs,):
                self.per_node.add(name)
                self.sums.pop(name, None)
            elif name not in self.per_node and not is_own(name):
                self.add(name, value)

    def finish(self, which: Tensor, outcome: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Metrics of the episodes that ended, (number of them,) each; their sums start again at zero."""
        length = self.sums['length'][which]
        episodes = {'return': self.sums['return'][which], 'reward': self.sums['return'][which] / length}
        episodes['length'] = length
        for name, value in self.sums.items():
            if name not in ('return', 'length'):
                episodes[name] = value[which] / length
        for name, value in (outcome or {}).items():
            if not is_own(name):
                episodes[name] = value.detach().to('cpu', torch.float64)[which]
        for name in self.sums:
            self.sums[name] = torch.where(which, 0.0, self.sums[name])
        return episodes


def graph_mean(value: Tensor, batch: Tensor, num_graphs: int, empty: float = 0.0) -> Tensor:
    """Mean over the nodes of each graph in float64 on the CPU, (N,) -> (B,); ``empty`` where a graph has none."""
    batch = batch.cpu()
    total = torch.zeros(num_graphs, dtype=torch.float64).index_add(0, batch, value.detach().cpu().double())
    count = torch.bincount(batch, minlength=num_graphs)
    return torch.where(count > 0, total / count.clamp(min=1), empty)


def senders(graph: Batch) -> Tensor:
    """Which nodes have out-edges, (N,) bool on the CPU: the others keep all in any case."""
    return torch.bincount(graph.edge_index[0].cpu(), minlength=graph.num_nodes) > 0


def sharing_measures(graph: Batch, sharing: Sharing) -> dict[str, Tensor]:
    r"""Spread of the weights :math:`w` over the nodes of a graph and over the edges of a node, (B,) each.

    - ``kept``: the share kept :math:`w_{jj}`, mean over nodes;
    - ``kept_std_nodes``: its (population) standard deviation over nodes;
    - ``uneven``: the total variation distance of the shares given by a node from an even split over its :math:`d_j`
      out-edges,
      :math:`\frac{1}{2} \sum_i |w_{ji} - (1 - w_{jj}) / d_j|`, mean over nodes.

    Only nodes with out-edges count; a graph without any has 1, 0 and 0.
    """
    sender, batch, num_graphs = graph.edge_index[0].cpu(), graph.batch.cpu(), graph.num_graphs
    given, kept = (part.detach().cpu().double() for part in (sharing.given, sharing.kept))
    degree = torch.bincount(sender, minlength=graph.num_nodes)
    shares = degree > 0
    of = batch[shares]
    even = (1 - kept) / degree.clamp(min=1)
    distance = torch.zeros_like(kept).index_add(0, sender, (given - even[sender]).abs()) / 2
    mean = graph_mean(kept[shares], of, num_graphs, empty=1.0)
    return {
        'kept': mean,
        'kept_std_nodes': graph_mean((kept[shares] - mean[of]).square(), of, num_graphs).sqrt(),
        'uneven': graph_mean(distance[shares], of, num_graphs),
    }


class KeptByNode:
    """The share kept by each node at the steps of an evaluation, for ``kept_std_states``.

    A node is identified by its ``node_id``, or else by its position in the graph, across all episodes of a task.
    """

    def __init__(self, num_tasks: int | None) -> None:
        self.num_tasks = num_tasks or 1  # graph b plays task b % num_tasks
        self.node: list[Tensor] = []
        self.kept: list[Tensor] = []

    def step(self, graph: Batch, sharing: Sharing, pending: Tensor) -> None:
        """Adds one step of the graphs whose episodes count, (B,) bool; only nodes with out-edges count."""
        batch = graph.batch.cpu()
        node = graph.get('node_id')
        node = torch.arange(len(batch)) - graph.ptr.cpu()[batch] if node is None else node.cpu()
        counts = senders(graph) & pending[batch]
        task = batch % self.num_tasks
        self.node.append((node * self.num_tasks + task)[counts])
        self.kept.append(sharing.kept.detach().cpu()[counts])

    def std(self) -> float:
        """The (population) standard deviation of each node's share, mean over nodes; 0 if no node had an out-edge."""
        kept = torch.cat(self.kept).double()
        if len(kept) == 0:
            return 0.0
        _, node = torch.unique(torch.cat(self.node), return_inverse=True)
        count = int(node.max()) + 1
        mean = graph_mean(kept, node, count)
        return float(graph_mean((kept - mean[node]).square(), node, count).sqrt().mean())


class SwitchTally:
    """Fraction of greedy actions that change under the weights of other modes, at the visited states.

    A comparison costs one forward pass per mode. So it is made at each of the first ``SWITCH_EVERY`` steps of an
    episode, and after that only at every ``SWITCH_EVERY``-th step, which then also counts for the skipped steps. All
    nodes count.
    """

    def __init__(self, algorithm: Any, num_graphs: int) -> None:
        modes = getattr(algorithm, 'sharing_modes', ())
        self.algorithm = algorithm
        self.sums = {m: torch.zeros(num_graphs, dtype=torch.float64) for m in modes if m != algorithm.sharing_mode}
        self.weight = torch.zeros(num_graphs, dtype=torch.float64)
        self.steps = 0

    def step(self, graph: Batch, decision: Decision, pending: Tensor) -> None:
        """Takes in one step of the graphs whose episodes count, (B,) bool."""
        early = self.steps < SWITCH_EVERY
        due = self.steps % SWITCH_EVERY == 0
        self.steps += 1
        if not self.sums or not (early or due):
            return
        algorithm, action = self.algorithm, decision.action
        graph = batch_to(graph, action.device)
        if algorithm.config.eval_temperature > 0:
            action = algorithm.greedy_action(graph, decision.sharing)
        weight = pending.double() * (1 if early else SWITCH_EVERY)
        self.weight += weight
        for mode, total in self.sums.items():
            other = algorithm.greedy_action(graph, algorithm.sharing_under(graph, mode))
            total += weight * graph_mean(other != action, graph.batch, len(weight))

    def stats(self) -> dict[str, Stat]:
        """The fraction of actions that differ, over episodes."""
        return {SWITCHED + mode: Stat.of(total / self.weight) for mode, total in self.sums.items()}


def check_same_sizes(trained: GraphEnvSpec, played: GraphEnvSpec) -> None:
    """Raises a ``ValueError`` unless a network built for one environment can act in another.

    Numbers of nodes, edges and episodes may differ; features of nodes and edges, and actions, may not.
    """
    names = ('num_features', 'edge_dim', 'num_actions')
    differ = [
        f"'{name}' expected {getattr(trained, name)}, got {getattr(played, name)}"
        for name in names
        if getattr(trained, name) != getattr(played, name)
    ]
    if differ:
        raise ValueError(
            f'the policy cannot act in this environment: {"; ".join(differ)}. Leave out the options that change what '
            f'agents observe or do, or train with them.'
        )


@contextmanager
def playing_in(algorithm: Algorithm, trained: GraphEnvSpec, played: GraphEnvSpec) -> Iterator[None]:
    """Within this context, an algorithm trained in one environment acts in another, with that one's scales of
    observations and symmetries.

    Raises:
        ValueError: If sizes differ, see :func:`check_same_sizes`.
    """
    check_same_sizes(trained, played)
    algorithm.act_in(played)
    try:
        yield
    finally:
        algorithm.act_in(trained)


@torch.no_grad()
def act_once(algorithm: Algorithm, env: GraphEnv, seed: int) -> Decision:
    """Resets an environment and acts in it, without exploration: raises what a first step would raise."""
    algorithm.reset_eval_state()
    with play_seeded(algorithm, seed):
        return algorithm.act(env.reset(seed), explore=False)


@contextmanager
def play_seeded(algorithm: Algorithm, seed: int) -> Iterator[None]:
    """Within this context, the algorithm's draws without exploration depend on the seed alone; its own generator is not
    used."""
    rng: torch.Generator | None = getattr(algorithm, 'play_rng', None)
    if rng is None:
        yield
        return
    before = rng.get_state()
    rng.manual_seed(seed_stream(seed % 2**32, 'play'))
    try:
        yield
    finally:
        rng.set_state(before)


def check_weights(algorithm: Algorithm) -> None:
    """Raises a ``ValueError`` that names the first weight of the algorithm's networks that is NaN or infinite."""
    modules = algorithm.modules() if hasattr(algorithm, 'modules') else {}
    named = modules.items() if isinstance(modules, dict) else ()
    bad = first_nonfinite({f'{m}.{n}': weight for m, module in named for n, weight in module.state_dict().items()})
    if bad is not None:
        raise ValueError(
            f"'{bad}' of the policy holds NaN or infinite numbers, so its actions are meaningless. Go back to an "
            f'earlier checkpoint, or train again with a lower learning rate.'
        )


def metric_names(env: GraphEnv, seed: int = 0) -> list[str] | None:
    """The metrics of an episode without those of sharing weights, found by playing one with random actions; ``None`` if
    it does not end within 10,000 steps."""
    tally, graph = EpisodeTally(env.spec.num_envs), env.reset(seed)
    rng = torch.Generator().manual_seed(seed)
    for _ in range(LONG):
        step = check_step(env.step(random_action(graph, env.spec, rng)), env)
        tally.step(graph, step.reward, step.info, None)
        if bool(step.ended.any()):
            return list(tally.finish(step.ended.cpu(), step.outcome))
        graph = step.graph
    return None


@torch.no_grad()
def evaluate(
    algorithm: Algorithm,
    env: GraphEnv,
    seed: int,
    max_steps: int = 100_000,
    switches: bool = False,
    show: str | None = None,
    before_step: Callable[[], None] | None = None,
) -> dict[str, Stat]:
    """Plays one whole episode in each graph of ``env``, without exploration.

    Only the first episode of each graph counts, so long episodes are not underrepresented.

    Args:
        algorithm: Acts without exploration; it is not updated and its generators are not used.
        env: One graph per episode.
        seed: Seeds the environment and the algorithm's random draws.
        max_steps: Raises if an episode has not ended after this many steps.
        switches: Whether to compare actions with those under other weights, :class:`SwitchTally`, if the algorithm has
            ``sharing_modes``.
        show: Label of a progress bar, shown if this takes more than a second; ``None``: no bar.
        before_step: Called before each step; what it raises ends the evaluation.

    Returns:
        Mean, standard deviation and count of every metric of :class:`EpisodeTally`. If the algorithm shares, also
        ``kept_std_states`` of :class:`KeptByNode`, one number for all episodes, so its standard deviation is given
        as 0; and with ``switches`` a ``switched_<mode>`` for every other mode.
    """
    check_weights(algorithm)
    num_graphs = env.spec.num_envs
    graph = env.reset(seed)
    algorithm.reset_eval_state()
    tally, by_node = EpisodeTally(num_graphs), KeptByNode(env.spec.num_tasks)
    switched = SwitchTally(algorithm, num_graphs) if switches else None
    pending = torch.ones(num_graphs, dtype=torch.bool)
    done: dict[str, list[Tensor]] = {}
    bar = Progress(total=env.spec.horizon, desc=show, unit=' steps', leave=False, delay=1, disable=show is None)
    with play_seeded(algorithm, seed), bar:
        for played in range(max_steps):
            if before_step is not None:
                before_step()
            if played == LONG and show is not None:
                Progress.write(
                    f'ltos: {int(pending.sum())} of {num_graphs} episodes have not ended after {LONG:,} steps. Does '
                    f"the environment set 'terminated' or 'truncated'? This gives up after {max_steps:,} steps.",
                    file=sys.stderr,
                )
            bar.update()
            decision = algorithm.act(graph, explore=False)
            if switched is not None:
                switched.step(graph, decision, pending)
            if decision.sharing is not None:
                by_node.step(graph, decision.sharing, pending)
            step = check_step(env.step(decision.action), env)
            algorithm.on_eval_step(step)
            tally.step(graph, step.reward, step.info, decision.sharing)
            ended = step.ended.cpu() & pending
            if bool(ended.any()):
                for name, values in tally.finish(ended, step.outcome).items():
                    done.setdefault(name, []).append(values)
                pending &= ~ended
                if not bool(pending.any()):
                    break
            graph = step.graph
    if bool(pending.any()):
        raise ValueError(
            f'{int(pending.sum())} of {len(pending)} evaluation episodes did not end within {max_steps} steps. '
            f'Give the environment a horizon.'
        )
    stats = {name: Stat.of(torch.cat(values)) for name, values in done.items() if name not in tally.per_node}
    if by_node.kept:
        stats['kept_std_states'] = Stat(by_node.std(), 0.0, num_graphs)
    return stats | (switched.stats() if switched is not None else {})


def evaluate_modes(
    algorithm: Algorithm,
    make_env: Callable[[int], GraphEnv],
    episodes: int,
    seed: int,
    swap_episodes: int = SWAP_EPISODES,
    show: str | None = None,
) -> dict[str, dict[str, Stat]]:
    """:func:`evaluate` of the policy, and of its network under the weights of each other sharing mode.

    The same network under phi, constant and uniform weights shows whether the weights matter and whether phi found good
    ones. The policy, named ``'policy'``, plays all episodes, and its actions are compared with those of the other modes
    (``switches``). Each other mode plays at most ``swap_episodes`` episodes, the same ones for all modes. If the policy
    plays more, it plays these episodes a second time under the name of its mode (``'phi'``), so that all modes are
    compared on the same episodes.

    Args:
        algorithm: Its first mode is the policy; an algorithm without modes has one.
        make_env: Makes the environment with that many graphs.
        episodes: Episodes of the policy.
        seed: As in :func:`evaluate`.
        swap_episodes: Most episodes of each other mode; 0 skips them and the comparison of actions.
        show: As in :func:`evaluate`.
    """
    learner: Any = algorithm
    modes = getattr(learner, 'sharing_modes', None)
    if modes is None:
        with closing(make_env(episodes)) as env:
            return {'policy': evaluate(algorithm, env, seed, show=show)}
    before = learner.sharing_mode
    try:
        learner.sharing_mode = modes[0]
        with closing(make_env(episodes)) as env:
            results = {'policy': evaluate(algorithm, env, seed, switches=swap_episodes > 0, show=show)}
        if swap_episodes == 0:
            return results
        with closing(make_env(min(episodes, swap_episodes))) as env:
            for mode in modes if episodes > swap_episodes else modes[1:]:
                learner.sharing_mode = mode
                results[mode] = evaluate(algorithm, env, seed, show=show and f'{show}, {mode} weights')
        return results
    finally:
        learner.sharing_mode = before
