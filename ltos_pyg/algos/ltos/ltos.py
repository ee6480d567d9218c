"""LToS: a high level learns sharing weights, a low level learns actions on the shaped rewards."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from ltos_pyg.algos.base import Decision, SoftUpdate
from ltos_pyg.algos.exploration import linear_schedule
from ltos_pyg.algos.losses import mean
from ltos_pyg.algos.ltos.config import LToSConfig
from ltos_pyg.algos.ltos.critics import Seen
from ltos_pyg.algos.ltos.fixed import random_sharing
from ltos_pyg.algos.ltos.objective import HighLevelBatch, MakeObjective, Objective, ShapedGradient
from ltos_pyg.algos.ltos.search import JointSearch
from ltos_pyg.algos.ltos.sharing_q import SharingQ
from ltos_pyg.algos.ltos.subgraphs import first_graphs
from ltos_pyg.algos.ltos.weights import HeldNoise, JointNoise, Logits, constant_logits
from ltos_pyg.data import Transition
from ltos_pyg.graph_env import GraphEnvSpec, GraphStep
from ltos_pyg.nn import Sharing, SharingPolicy, constant_sharing, keep_all
from ltos_pyg.nn.conv.by_name import Conv, check_conv
from ltos_pyg.nn.functional import softmax_by_sender
from ltos_pyg.seeding import generator

OBJECTIVES: dict[str, MakeObjective] = {'search': JointSearch, 'gradient': ShapedGradient}


class LToS(SharingQ):
    r"""Learning to share, after `"Learning to Share in Multi-Agent Reinforcement Learning"
    <https://arxiv.org/abs/2112.08702>`_.

    The high level :math:`\phi` (:class:`~ltos_pyg.nn.SharingPolicy`) maps observations to a point on each sender's
    simplex, the weights :math:`w = \phi(o)`; the low level maximises the shaped reward
    :math:`r^w_i = w_{ii} r_i + \sum_j w_{ji} r_j` with the critic :math:`Q_i(o, a; w)`
    (:class:`~ltos_pyg.algos.ltos.NodeCritic`, the paper's). An update is

    1. the low level: one step of Q on :math:`r^w`, with the weights that were used when the data was collected, and at
       the successor those of the target high level, :math:`w' = \phi'(o')`;
    2. one step of the objective's own critics, if it has any;
    3. the high level: once the fraction ``phi_starts`` of training is over, one step of :math:`\phi` per ``phi_every``
       steps of Q. ``objective='search'`` (ours) is :class:`~ltos_pyg.algos.ltos.JointSearch`; ``'gradient'`` (the
       paper's) maximises :math:`\sum_i \max_a Q_i(o, a; \phi(o))` over :math:`\phi` with Q frozen.

    The logits of the weights are those of a constant share, the *first share* (with the search, each agent keeps 0.4),
    plus the output of :math:`\phi`, which is zero at the start. With the search, :math:`\phi` is pulled towards the
    best constant share found so far where the search's two critics disagree.

    **Exploration of weights.** With a chance that falls from ``wide_start`` to ``wide_end``, the weights of a graph
    are the first share with wide noise; otherwise they are those of :math:`\phi` with small noise. See
    :class:`~ltos_pyg.algos.ltos.JointNoise`. So Q is trained under many weights.

    :attr:`sharing_mode` selects the weights of :meth:`act` without exploration: ``'phi'``, ``'constant'`` (the best
    one found), ``'uniform'``, ``'keep'`` (every agent keeps all) or ``'random'`` (uniform on the simplex, redrawn at
    each step).

    Args:
        spec: What the environment promises.
        config: The options.
        seed: Seeds the weights of the networks, the replay's draws and the exploration, each a stream of its own.
        device: Where the networks live; the replay stays in main memory.
        policy: The high level :math:`\phi`, instead of :class:`~ltos_pyg.nn.SharingPolicy`: a module with
            ``logits(x, edge_index, edge_attr)``, which returns edge logits (E,) and self logits (N,). They are added to
            the logits of the first share, so a policy whose last layers are zero starts from it. Dropout and batch
            normalisation are refused.
        conv: The low level's message-passing layer, instead of the configuration's: see :class:`~ltos_pyg.nn.DGNTrunk`.
        objective: What :math:`\phi` is trained for, instead of the configuration's: a class with the methods of
            :class:`~ltos_pyg.algos.ltos.Objective`, or a function that makes one.
    """

    config: LToSConfig
    critic = 'node'
    training_only = {
        **SharingQ.training_only, 'phi': 'target_phi', 'search_critics': None, 'search_targets': None
    }  # fmt: skip
    sharing_modes = ('phi', 'constant', 'uniform', 'keep', 'random')

    def __init__(
        self,
        spec: GraphEnvSpec,
        config: LToSConfig,
        seed: int = 0,
        device: str | torch.device = 'cpu',
        policy: nn.Module | None = None,
        conv: Conv | None = None,
        objective: MakeObjective | None = None,
    ) -> None:
        self.sharing_mode = 'phi'
        self.shares_rng = generator(seed, 'shares', torch.device(device))
        self.policy, self.conv = policy, conv
        self.make_objective = objective or OBJECTIVES[config.objective]
        super().__init__(spec, config, seed, device)
        noise = JointNoise(config.noise_joint, config.noise_own, config.noise_received)
        self.held = HeldNoise(noise, config.hold_steps or config.n_step)

    def build_more(self) -> None:
        c, spec = self.config, self.spec
        policy = self.policy or SharingPolicy(
            spec.num_features, c.phi_channels, encoder_channels=(c.phi_channels,), edge_dim=spec.edge_dim
        )
        if not callable(getattr(policy, 'logits', None)):
            raise ValueError(
                f"'policy' must have a method 'logits(x, edge_index, edge_attr)' that returns logits of edges (E,) and "
                f'of nodes (N,) (got {type(policy).__name__})'
            )
        check_conv(policy, type(policy).__name__, 'policy')
        self.phi: Any = policy.to(self.device)
        self.target_phi = copy.deepcopy(self.phi).requires_grad_(False)
        self.move_phi = SoftUpdate(self.target_phi, self.phi)
        self.phi_optimizer = torch.optim.Adam(self.phi.parameters(), lr=c.phi_lr, fused=True)
        self.objective = self.make_objective(spec, c, self.device, self.shares_rng)
        if not isinstance(self.objective, Objective):
            raise ValueError(
                f"'objective' must make an object with the methods of ltos_pyg.algos.ltos.Objective (got "
                f'{type(self.objective).__name__}). Derive from ShapedGradient to write a loss alone.'
            )
        for name, module in self.objective.modules().items():
            check_conv(module, name, 'objective')
        if len(self.objective.optimizers()) > 1:
            raise ValueError(
                f"'objective' must have one optimizer at most (got {', '.join(self.objective.optimizers())}). Put all "
                'parameters into one, in parameter groups if their rates differ.'
            )

    # learning: the algorithm -------------------------------------------------------------------------------------

    def learn(self, t: Transition) -> dict[str, Tensor]:
        metrics = super().learn(t)  # the low level: one step of Q on the shaped reward
        metrics |= self.learn_objective()
        if self.updates % self.config.phi_every == 0 and self.progress >= self.config.phi_starts:
            metrics |= self.learn_sharing()
        return metrics

    def learn_objective(self) -> dict[str, Tensor]:
        """One step of the objective's critics, if any, on the low level's batch."""
        with self.autocast():
            loss = self.objective.critic_loss(self.batch)
        if loss is None:
            return {}
        for optimizer in self.objective.optimizers().values():
            self.step_optimizer(optimizer, loss)
        self.objective.update_targets()
        return {'phi/critic_loss': loss.detach()}

    def learn_sharing(self) -> dict[str, Tensor]:
        """The high level: one step of phi on graphs of the low level's batch, with the low level frozen."""
        graph = self.batch.t.graph
        num_graphs = min(graph.num_graphs, self.config.phi_graphs)
        seen = first_graphs(self.batch.seen, graph.ptr, num_graphs)
        nodes = seen[0].size(0)
        mask = graph.action_mask[:nodes] if 'action_mask' in graph else None
        logits = self.logits(self.phi, seen)
        self.network.requires_grad_(False)
        try:
            with self.autocast():
                batch = HighLevelBatch(seen, graph.batch[:nodes], num_graphs, mask, logits)
                loss, metrics = self.objective.step_loss(batch, self.network)
            self.step_optimizer(self.phi_optimizer, loss)
        finally:
            self.network.requires_grad_(True)
        self.move_phi(self.config.phi_tau)
        kept = softmax_by_sender(*logits, seen[1]).kept.detach()
        return metrics | {'phi/loss': loss.detach(), 'phi/kept': mean(kept), 'phi/kept_std': std(kept)}

    # the weights -------------------------------------------------------------------------------------------------

    @property
    def constant_kept(self) -> float | None:
        """The best constant value of the share kept that was found so far, ``None`` for uniform sharing. With the
        paper's objective it is the first share."""
        return self.objective.constant_kept

    def logits(self, phi: Any, seen: Seen) -> Logits:
        """The weights before the softmax: those of the first share, plus what phi adds."""
        x, edge_index, edge_attr = seen
        with self.autocast():
            edge, own = phi.logits(x, edge_index, edge_attr)
        if edge.shape != edge_index.shape[1:] or own.shape != x.shape[:1]:
            raise ValueError(
                f"'policy.logits' must return one logit per edge (E,) and per node (N,): expected "
                f'{tuple(edge_index.shape[1:])} and {tuple(x.shape[:1])}, got {tuple(edge.shape)} and '
                f'{tuple(own.shape)}. Drop a last dimension of 1 with .squeeze(-1).'
            )
        first = constant_logits(edge_index, x.size(0), self.objective.first_kept)
        return Logits(first.edge + edge, first.own + own)

    def sharing(self, phi: Any, graph: Batch) -> Sharing:
        """The weights of a high level."""
        return softmax_by_sender(*self.logits(phi, self.inputs(graph)), graph.edge_index)

    def sharing_under(self, graph: Batch, mode: str) -> Sharing:
        """The weights of a mode, see the class."""
        edge_index, N = graph.edge_index, graph.num_nodes
        if mode == 'keep':
            return keep_all(edge_index, N)
        if mode == 'uniform':
            return constant_sharing(edge_index, N)
        if mode == 'constant':
            return constant_sharing(edge_index, N, self.constant_kept)
        if mode == 'random':
            return random_sharing(edge_index, N, self.play_rng)
        if mode != 'phi':
            raise ValueError(f"'sharing_mode' must be one of {', '.join(self.sharing_modes)} (got {mode!r})")
        if self.symmetries is None or not self.config.average_views:
            return self.sharing(self.target_phi, graph)
        views = [self.sharing(self.target_phi, batch) for _, batch in self.symmetries.stacked_views(graph)]
        given, kept = (torch.cat(parts) for parts in zip(*views, strict=True))
        count = self.symmetries.count
        return Sharing(given.view(count, edge_index.size(1)).mean(0), kept.view(count, N).mean(0))

    def choose_sharing(self, graph: Batch, explore: bool) -> Sharing:
        if not explore:
            return self.sharing_under(graph, self.sharing_mode)
        c, edge_index = self.config, graph.edge_index
        wide_now = linear_schedule(c.wide_start, c.wide_end, c.wide_fraction, self.progress)
        noise, wide = self.held.current(graph.batch, graph.num_graphs, wide_now, self.shares_rng, graph.get('node_id'))
        near = noise.on(self.logits(self.phi, self.inputs(graph)), edge_index, c.noise_local)
        far = noise.on(constant_logits(edge_index, graph.num_nodes, self.objective.first_kept), edge_index)
        node = wide[graph.batch]
        edge = torch.where(node[edge_index[0]], far.edge, near.edge)
        return softmax_by_sender(edge, torch.where(node, far.own, near.own), edge_index)

    def observe(self, graph: Batch, decision: Decision, step: GraphStep) -> None:
        super().observe(graph, decision, step)
        self.held.step(step.ended)

    def restart_episodes(self) -> None:
        super().restart_episodes()
        self.held.restart()

    def next_sharing(self, t: Transition) -> Sharing:
        return self.sharing(self.target_phi, t.successor)

    # saving ------------------------------------------------------------------------------------------------------

    def modules(self) -> dict[str, nn.Module]:
        return super().modules() | {'phi': self.phi, 'target_phi': self.target_phi} | self.objective.modules()

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return super().optimizers() | {'phi_optimizer': self.phi_optimizer} | self.objective.optimizers()

    def generators(self) -> dict[str, torch.Generator]:
        return super().generators() | {'shares': self.shares_rng}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {'held': self.held.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.held.load_state_dict(state['held'])


class LToSEdge(LToS):
    r"""LToS with one value per pair, :math:`Q_i = w_{ii} U_{ii} + \sum_{j \to i} w_{ji} U_{ji}`: ours, not the paper's.

    See :class:`~ltos_pyg.algos.ltos.EdgeCritic` for what the pair values learn, :class:`LToS` for all else.
    """

    critic = 'edge'


def std(value: Tensor) -> Tensor:
    """Population standard deviation, 0 over nothing."""
    return (value - mean(value)).square().sum().div(max(value.numel(), 1)).sqrt()
