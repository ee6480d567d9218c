"""Options of LToS, and those shared with fixed LToS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ltos_pyg.algos.dgn import MessageQConfig
from ltos_pyg.ranges import LARGEST_WIDTH, check_range

OF_THE_SEARCH = ('search_channels', 'candidates', 'sharpness', 'aim_steps', 'aim_size', 'hops')


@dataclass(frozen=True, kw_only=True)
class SharingQConfig(MessageQConfig):
    """Options of every method that learns from shared rewards."""

    pair_channels: int = 64  # hidden size of the head for pair values (edge critic only)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 'pair_channels', least=1)
        check_range(self, 'pair_channels', most=LARGEST_WIDTH)


@dataclass(frozen=True, kw_only=True)
class LToSConfig(SharingQConfig):
    """Options of LToS and LToS-edge."""

    objective: Literal['search', 'gradient'] = 'search'  # how phi (the high level) is trained; 'gradient': the paper's
    initial_kept: float | None = None  # objective 'gradient': share kept at the start of training; None: uniform
    phi_lr: float = 1e-2  # learning rate of phi (Adam)
    phi_starts: float = 0.35  # fraction of training before phi's first step, so that the low level converges first
    phi_every: int = 4  # gradient steps of the low level per gradient step of phi
    phi_graphs: int = 8  # graphs of the low level's batch used in a step of phi
    phi_tau: float = 0.05  # soft update of the target phi', per step of phi
    phi_channels: int = 64  # width of the high level
    search_channels: int = 64  # width of the search's critics
    candidates: int = 12  # joint weights that a search step compares: half around a kept share of 0.4, half around phi
    sharpness: float = 2.0  # inverse temperature (beta) with which the search weighs the candidates
    aim_steps: int = 3  # gradient steps from phi's weights to those that would make single agents act better; 0: none
    aim_size: float = 0.25  # largest change of a logit in one aim step
    hops: int = 2  # candidates are scored by the returns of nodes within this many hops
    noise_joint: float = 4.0  # exploration: half-width of the uniform noise on logits that all agents of a graph share
    noise_own: float = 0.5  # largest standard deviation of the noise on each agent's self logit
    noise_received: float = 1.0  # largest standard deviation of the noise on the logits of the edges into an agent
    noise_local: float = 0.25  # scale of the small noise around phi; wide exploration has scale 1
    hold_steps: int | None = None  # env steps for which drawn noise on the weights is held; None: n_step
    wide_start: float = 1.0  # chance of wide exploration of weights (else small noise around phi), at the start
    wide_end: float = 0.1  # chance of wide exploration of weights, at the end
    wide_fraction: float = 0.5  # fraction of training over which that chance falls

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective not in ('search', 'gradient'):
            raise ValueError(f"'objective' must be 'search' or 'gradient' (got {self.objective!r})")
        check_range(self, 'phi_starts', 'phi_tau', 'wide_start', 'wide_end', 'wide_fraction', least=0, most=1)
        check_range(self, 'phi_every', 'phi_graphs', 'phi_channels', 'search_channels', 'hops', least=1)
        check_range(self, 'phi_channels', 'search_channels', most=LARGEST_WIDTH)
        if self.phi_channels % 4 != 0:
            raise ValueError(f"'phi_channels' must be a multiple of 4, the heads of phi (got {self.phi_channels})")
        check_range(self, 'hold_steps', least=1, none=', or None for n_step')
        if self.candidates < 2:
            raise ValueError(f"'candidates' must be at least 2, or there is nothing to compare (got {self.candidates})")
        check_range(self, 'phi_lr', above=0)
        check_range(self, 'sharpness', 'noise_joint', 'noise_own', 'noise_received', 'noise_local', least=0)
        check_range(self, 'aim_steps', 'aim_size', least=0)
        if self.initial_kept is not None and not 0 < self.initial_kept < 1:
            raise ValueError(f"'initial_kept' must lie strictly between 0 and 1, or be None (got {self.initial_kept})")
        searches = {name: getattr(self, name) for name in OF_THE_SEARCH}
        changed = [name for name, value in searches.items() if value != getattr(LToSConfig, name)]
        if changed and self.objective != 'search':
            raise ValueError(
                f"'{changed[0]}' is an option of --objective search (got {searches[changed[0]]} with "
                f"'{self.objective}', which does not use it). Leave it out, or choose that objective."
            )
        if self.initial_kept is not None and self.objective == 'search':
            raise ValueError(
                f"'initial_kept' is an option of --objective gradient (got {self.initial_kept} with 'search', which "
                f'starts from a kept share of 0.4). Leave it out, or choose that objective.'
            )
