"""The interface of every algorithm: act, observe, update."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import UninitializedParameter
from torch_geometric.data import Batch

from ltos_pyg.algos import ranks
from ltos_pyg.graph_env import GraphEnvSpec, GraphStep
from ltos_pyg.nn import Sharing
from ltos_pyg.nn.validation import check_edge_index, trust_edges
from ltos_pyg.seeding import generator

Seen = tuple[Tensor, Tensor, Tensor | None]  # network inputs: x (N, F) scaled, edge_index, edge_attr (E, D) scaled
NEWEST = 2  # batches remembered: a graph and its successor

BYTES_PER_PARAMETER = 4 * 6  # float32: weights, target, running average, gradient, and two moments of Adam


class Decision(NamedTuple):
    """What an algorithm does with a batch of graphs."""

    action: Tensor  # (N,) int64
    sharing: Sharing | None = None  # the sharing weights, if the algorithm has any


class NonFiniteLossError(RuntimeError):
    """The loss or a gradient is NaN or infinite; names the first bad tensor. That step was not done."""


class Algorithm(ABC):
    """A learner on batches of graphs. It sees snapshots and rewards, never the environment itself."""

    config: Any
    env_steps: int  # graph steps observed so far, by all ranks together: the clock of every schedule
    updates: int  # gradient steps done so far
    data_parallel = False  # whether several ranks can train it together: all it learns passes through `ranks.average`

    @abstractmethod
    def act(self, graph: Batch, explore: bool = False) -> Decision:
        """Chooses an action for every node of a batch; ``explore``: with the exploration of training."""

    @abstractmethod
    def observe(self, graph: Batch, decision: Decision, step: GraphStep) -> None:
        """Stores the outcome of a decision."""

    @property
    @abstractmethod
    def due_updates(self) -> int:
        """Gradient steps that the data observed so far calls for and that were not done yet."""

    @abstractmethod
    def update(self) -> dict[str, float]:
        """One gradient step; returns its metrics."""

    @abstractmethod
    def restart_episodes(self) -> None:
        """Called when the environment starts new episodes without having ended the old ones."""

    def reset_eval_state(self) -> None:  # noqa: B027 (most methods have no recurrent state)
        """Called when episodes without exploration begin: a recurrent method resets its state."""

    def on_eval_step(self, step: GraphStep) -> None:  # noqa: B027
        """Called after a step without exploration: a recurrent method resets its state of episodes that ended."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to continue exactly."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a saved state, to continue training."""

    def policy_state(self) -> dict[str, Any]:
        """The part of :meth:`state_dict` that greedy actions depend on; :meth:`load_policy` takes it too."""
        return self.state_dict()

    @abstractmethod
    def load_policy(self, state: dict[str, Any]) -> None:
        """Restores the networks of a :meth:`state_dict`, or of a :meth:`policy_state`, to act."""

    def act_in(self, spec: GraphEnvSpec) -> None:  # noqa: B027
        """From now on, acts in an environment of this spec, which has the features and actions of training.

        Its scales of observations and its symmetries are used, as they may depend on sizes, e.g. of a board.
        """


class ObservationScaler(nn.Module):
    """Turns a snapshot's stored columns into network inputs: float32, times the scale that the env declares."""

    feature_scale: Tensor | None
    edge_scale: Tensor | None

    def __init__(self, spec: GraphEnvSpec) -> None:
        super().__init__()
        self.register_buffer('feature_scale', spec.scale('feature'), persistent=False)
        self.register_buffer('edge_scale', spec.scale('edge'), persistent=False)
        self._seen: list[tuple[Batch, Seen]] | None = None  # the newest batches within `each_batch_once`

    def forward(self, graph: Batch) -> Seen:
        """Returns (x, edge_index, edge_attr)."""
        for known, seen in self._seen or ():
            if known is graph:
                return seen
        seen = self.scale(graph)
        if self._seen is not None:
            self._seen = [*self._seen[1 - NEWEST :], (graph, seen)]
        return seen

    def scale(self, graph: Batch) -> Seen:
        """What :meth:`forward` returns, without the cache."""
        x = (graph.x if self.feature_scale is None else graph.x * self.feature_scale).float()
        edge_attr = graph.get('edge_attr')
        if edge_attr is not None:
            edge_attr = (edge_attr if self.edge_scale is None else edge_attr * self.edge_scale).float()
        return x, graph.edge_index, edge_attr

    @contextmanager
    def each_batch_once(self, *graphs: Batch) -> Iterator[None]:
        """Within this context, each batch is scaled once and cached, and its edges are not checked again.

        Args:
            graphs: The batches to be used; their edges are checked here.

        Raises:
            ValueError: If an ``edge_index`` does not fit its batch.
        """
        for graph in graphs:
            check_edge_index(graph.edge_index, graph.num_nodes)
        self._seen = []
        try:
            with trust_edges():
                yield
        finally:
            self._seen = None


@contextmanager
def new_weights(seed: int) -> Iterator[None]:
    """Context in which networks are built: their initial weights are drawn from the seed's stream ``'weights'``.

    Raises:
        ValueError: Before a network takes more memory than the machine has free.
    """
    free, count = psutil.virtual_memory().available, 0

    def note(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal count
        count += 0 if parameter is None or isinstance(parameter, UninitializedParameter) else parameter.numel()
        if BYTES_PER_PARAMETER * count > free:
            raise ValueError(
                f'the networks are too large: training the first {count:,} parameters alone takes '
                f'{BYTES_PER_PARAMETER * count / 2**30:,.1f} GiB; the machine has {free / 2**30:,.1f} GiB free. Lower '
                f"'hidden_channels', 'encoder_channels' and the like."
            )

    hook = register_module_parameter_registration_hook(note)
    try:
        with torch.random.fork_rng(devices=[]):  # PyTorch draws initial weights from its global generator only
            torch.default_generator.manual_seed(generator(seed, 'weights').initial_seed())  # that of the CPU alone
            yield
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise ValueError(
            f'the networks are too large: {str(error).split(": ", 1)[-1]}, and the machine has {free / 2**30:,.1f} GiB '
            f"free. Lower 'hidden_channels', 'encoder_channels' and the like."
        ) from error
    finally:
        hook.remove()


def repeat_sharing(sharing: Sharing | None, times: int) -> Sharing | None:
    """The sharing weights for ``times`` copies of a batch, one after another."""
    return None if sharing is None else Sharing(sharing.given.repeat(times), sharing.kept.repeat(times))


class SoftUpdate:
    r"""Moves a target network towards another one: :math:`\theta' \leftarrow \theta' + \tau (\theta - \theta')`.

    Buffers, such as running means, are copied. Parameters and buffers are listed once: going through the modules again
    takes longer than moving small networks.
    """

    def __init__(self, target: nn.Module, online: nn.Module) -> None:
        self.target: list[Tensor] = list(target.parameters())
        self.online: list[Tensor] = list(online.parameters())
        self.buffers = list(zip(target.buffers(), online.buffers(), strict=True))

    def __call__(self, tau: float) -> None:
        with torch.no_grad():
            torch._foreach_lerp_(self.target, self.online, tau)
            for target, online in self.buffers:
                target.copy_(online)


def first_nonfinite(named: dict[str, Tensor | None]) -> str | None:
    """Name of the first tensor with a NaN or infinite entry, or ``None``."""
    for name, tensor in named.items():
        if tensor is not None and not bool(tensor.isfinite().all()):
            return name
    return None


def guarded_step(
    optimizer: torch.optim.Optimizer,
    modules: dict[str, nn.Module],
    loss: Tensor,
    max_grad_norm: float,
    updates: int,
    lr_fraction: float = 1.0,
) -> None:
    """Computes the gradients, clips them, and makes one optimizer step. If the loss or a gradient is not finite, the
    weights are left as they are.

    The learning rates of the step are the initial ones of the optimizer times ``lr_fraction``. Where several ranks
    train together, loss and gradients are averaged over the ranks before they are clipped and checked. So either all
    ranks make the same step, or none does.

    Raises:
        NonFiniteLossError: Names the first tensor that is not finite: a weight, the loss, or a gradient.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group['params']]
    loss = ranks.current().average_gradients(parameters, loss)
    norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm, foreach=True)
    lrs = [group.setdefault('initial_lr', group['lr']) for group in optimizer.param_groups]
    if not bool(torch.isfinite(norm + loss)):
        weights = {f'{m}.{n}': p for m, module in modules.items() for n, p in module.named_parameters()}
        grads = {f'gradient of {name}': p.grad for name, p in weights.items()}
        bad = first_nonfinite({**weights, 'loss': loss, **grads}) or 'norm of the gradients'
        raise NonFiniteLossError(
            f'{bad} is NaN or infinite at gradient step {updates + 1}; this step was not made. Lower the '
            f'learning rate (lr={lrs[0]:g}), or look for extreme rewards.'
        )
    for group, lr in zip(optimizer.param_groups, lrs, strict=True):
        group['lr'] = lr_fraction * lr
    optimizer.step()
