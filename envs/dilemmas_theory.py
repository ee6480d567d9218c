r"""The exact optimum of sharing in the one-step dilemmas.

With sharing weights w, agent i learns from :math:`\sum_j w_{ji} r_j`. In a one-step game its greedy policy then depends
only on signs:

- an offer of gain g with harm l to each victim v is taken if :math:`w_{ii} g > \sum_v w_{vi} l`, whatever the other
  agents do;
- a hunt is learned if, with the other players at probability 1/2, hunting has a higher value than staying for *each*
  player: :math:`-7.5 w_{ii} + 1.5 \sum_{j \ne i} w_{ji} > 0` over the players j. Otherwise some player stops, and then
      all do. (Exploration starts at 1/2. Once all hunt, hunting is an equilibrium for more weights.)

Weights are matrices here, :math:`(N, N)`: ``weights[j, i]`` is the part of j's reward that i gets. Values are payoffs
per agent and step, unscaled. A :class:`Table` lists the states of ``groups`` (one group of four) and ``double_star``;
an :class:`OfferGraph` is one graph of ``offers``, whose gains and harms are integrated out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .dilemmas_rules import (
    BAD,
    GOOD,
    HUNT_ALL,
    HUNT_ALONE,
    HUNT_STAY,
    TEMPT,
    WORK,
    DilemmasConfig,
    DoubleStar,
    both_ways,
    draw_pairs,
)
from .streams import first_streams

Matrix = NDArray[np.float64]

_MARGIN = 1e-4  # margin of each criterion in the integer programme

# Gain of hunting over staying, with the three others at 1/2: for oneself, and for each of the others.
HUNT_OWN = HUNT_ALL / 8 + HUNT_ALONE * 7 / 8 - HUNT_STAY
HUNT_OTHER = (HUNT_ALL - HUNT_ALONE) / 8


# --- Games -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """A state in which one agent may gain at the cost of other agents."""

    probability: float
    agent: int
    gain: float
    victims: tuple[int, ...]
    harm: float  # to each of them

    @property
    def net(self) -> float:
        """Sum of payoffs over all agents if it is taken."""
        return self.gain - self.harm * len(self.victims)


@dataclass(frozen=True)
class Hunt:
    """A state in which four players may hunt."""

    probability: float
    players: tuple[int, ...]


@dataclass(frozen=True)
class Table:
    """A graph, (N, N) bool, and its states. (Choices of several agents in the same state count separately: payoffs add
    up.)"""

    neighbours: NDArray[np.bool_]
    hunts: tuple[Hunt, ...]
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class OfferGraph:
    """A graph of the game ``offers``, (N, N) bool."""

    neighbours: NDArray[np.bool_]


Game = Table | OfferGraph


def games(config: DilemmasConfig, num_graphs: int = 100, seed: int = 0) -> list[Game]:
    """The graphs of a configuration: one, or ``num_graphs`` random ones if they are redrawn in each episode."""
    if config.graph == 'groups':
        return [_group()]
    if config.graph == 'double_star':
        return [_double_star()]
    random = config.topology in ('tree', 'ba')
    pairs = draw_pairs(config, first_streams(seed, num_graphs if random else 1, 'dilemmas offers'))
    return [OfferGraph(_adjacency(edge, config.agents)) for edge in both_ways(pairs, config.agents)[0].unbind(1)]


def _adjacency(edge: torch.Tensor, num_agents: int) -> NDArray[np.bool_]:
    neighbours = np.zeros((num_agents, num_agents), dtype=np.bool_)
    neighbours[edge[0].numpy(), edge[1].numpy()] = True
    return neighbours


def _group() -> Table:
    others = [tuple(j for j in range(4) if j != i) for i in range(4)]
    choices = [Choice(1 / 3, i, gain, others[i], harm) for gain, harm in (WORK, TEMPT) for i in range(4)]
    return Table(~np.eye(4, dtype=np.bool_), (Hunt(1 / 3, (0, 1, 2, 3)),), tuple(choices))


def _double_star() -> Table:
    edge = both_ways(torch.tensor([DoubleStar.PAIRS]), 6)[0][:, 0]
    neighbours = _adjacency(edge, 6)
    hunts = tuple(Hunt(1 / 6, (hub, *np.flatnonzero(neighbours[hub]).tolist())) for hub in DoubleStar.HUBS)
    choices = [Choice(1 / 30, i, gain, (j,), harm) for gain, harm in (GOOD, BAD) for j, i in edge.T.tolist()]
    return Table(neighbours, hunts, tuple(choices))


# --- Sharing weights -------------------------------------------------------------------------------------------------


def constant_sharing(neighbours: NDArray[np.bool_], kept: float) -> Matrix:
    """Each agent keeps ``kept`` and splits the rest evenly over its neighbours; without any it keeps all."""
    degree = neighbours.sum(1, keepdims=True)
    return np.where(neighbours, (1 - kept) / np.maximum(degree, 1), 0) + np.diag(np.where(degree[:, 0] > 0, kept, 1))


def keep_all(neighbours: NDArray[np.bool_]) -> Matrix:
    """No sharing: each agent keeps all."""
    return np.eye(len(neighbours))


def uniform(neighbours: NDArray[np.bool_]) -> Matrix:
    """Each agent splits its reward evenly over itself and its neighbours."""
    closed = neighbours + np.eye(len(neighbours))
    return closed / closed.sum(1, keepdims=True)


def neighbourhood_sum(neighbours: NDArray[np.bool_]) -> Matrix:
    """Each agent learns from the plain sum over itself and its neighbours. These are not shares: rows sum to more than
    1."""
    return neighbours + np.eye(len(neighbours))


def team_reward(neighbours: NDArray[np.bool_]) -> Matrix:
    """Each agent learns from the plain sum over all agents."""
    return np.ones(neighbours.shape)


# --- What is learned -------------------------------------------------------------------------------------------------


def optimum(config: DilemmasConfig) -> float:
    """The best expected payoff per agent and step."""
    return config.optimum


def equilibrium_value(game: Game, weights: Matrix) -> float:
    """Value of greedy learners under constant sharing weights (N, N), per agent and step."""
    if isinstance(game, OfferGraph):
        return _offers_value(game, weights)
    total = sum(hunt.probability * len(hunt.players) * _hunt_value(hunt, weights) for hunt in game.hunts)
    total += sum(choice.probability * choice.net for choice in game.choices if _criterion(choice, weights) > 0)
    return float(total / len(game.neighbours))


def _criterion(choice: Choice, weights: Matrix) -> float:
    i = choice.agent
    return float(weights[i, i] * choice.gain - weights[list(choice.victims), i].sum() * choice.harm)


def _hunt_value(hunt: Hunt, weights: Matrix) -> float:
    among = weights[np.ix_(hunt.players, hunt.players)]
    own = among.diagonal()
    return HUNT_ALL if bool(np.all(HUNT_OWN * own + HUNT_OTHER * (among.sum(0) - own) > 0)) else HUNT_STAY


def offer_value(ratio: float | Matrix) -> Matrix:
    r""":math:`E[(a - b)\,1(a > \rho b)]` for a, b uniform in [0, 1]: the summed payoff of an offer that is taken if the
    gain exceeds :math:`\rho = w_{ji} / w_{ii}` times the harm to j.

    It is :math:`\rho / 3 - \rho^2 / 6` up to 1, largest there (1/6), and the same at :math:`1 / \rho`.
    """
    ratio = np.asarray(ratio, dtype=np.float64)
    small = np.minimum(ratio, 1 / np.maximum(ratio, 1e-300))
    return small / 3 - small**2 / 6


def _offers_value(game: OfferGraph, weights: Matrix) -> float:
    victim, agent = np.nonzero(game.neighbours)
    own, others = weights[agent, agent], weights[victim, agent]
    ratio = np.where(own > 0, others / np.where(own > 0, own, 1), np.where(others > 0, np.inf, 0))
    per_offer = offer_value(ratio) / game.neighbours.sum(1)[agent]
    return float(per_offer.sum() / 2 / len(game.neighbours))


# --- The best constants ----------------------------------------------------------------------------------------------


def best_kept(many: Sequence[Game]) -> tuple[float, float]:
    """The share kept, the same for all agents, that has the largest mean value over some games, to a precision of
    1/600; and that value. If all shares in an interval are optimal, its middle."""
    shares = np.linspace(0, 1, 601)
    values = [[equilibrium_value(game, constant_sharing(game.neighbours, s)) for s in shares] for game in many]
    mean = np.mean(values, axis=0)
    first = last = int(mean.argmax())
    while last + 1 < len(mean) and mean[first] - mean[last + 1] < 1e-12:
        last += 1
    return float(shares[(first + last) // 2]), float(mean[first])


def best_constant(game: Game) -> tuple[Matrix, float]:
    """The best state-independent sharing weights, and their value.

    On a :class:`Table` exact, by an integer programme with one binary per hunt (whether it is learned) and choice
    (whether the team optimum is learned). On an :class:`OfferGraph` by gradient ascent from several starts, so it is a
    lower bound; the value may be a limit (some weights tend to 0 at fixed ratios).

    Raises:
        ImportError: Without SciPy (extra ``test``).
    """
    weights = _ascent(game) if isinstance(game, OfferGraph) else _integer_programme(game)
    return weights, equilibrium_value(game, weights)


def _optimize() -> Any:
    try:
        import scipy.optimize
    except ImportError as error:
        raise ImportError("best constants need SciPy: install it with pip install 'ltos_pyg[test]'") from error
    return scipy.optimize


def _integer_programme(game: Table) -> Matrix:
    optimize, N = _optimize(), len(game.neighbours)
    sender, receiver = np.nonzero(game.neighbours | np.eye(N, dtype=np.bool_))
    number = {pair: k for k, pair in enumerate(zip(sender.tolist(), receiver.tolist(), strict=True))}
    W, total = len(number), len(number) + len(game.hunts) + len(game.choices)
    rows, least, worth = [], [], np.zeros(total)

    def require(binary: int, i: int, own: float, others: Sequence[int], each: float) -> None:
        """Where the binary is 1: own * w_ii + each * (sum over others j of w_ji) >= margin."""
        row, slack = np.zeros(total), _MARGIN + max(-own, 0) + max(-each, 0) * len(others)
        row[number[i, i]] = own
        row[[number[j, i] for j in others if (j, i) in number]] = each
        row[binary] = -slack
        rows.append(row)
        least.append(_MARGIN - slack)

    for binary, hunt in enumerate(game.hunts, W):
        worth[binary] = hunt.probability * len(hunt.players) * (HUNT_ALL - HUNT_STAY)
        for i in hunt.players:
            require(binary, i, HUNT_OWN, [j for j in hunt.players if j != i], HUNT_OTHER)
    for binary, choice in enumerate(game.choices, W + len(game.hunts)):
        sign = 1 if choice.net > 0 else -1
        worth[binary] = choice.probability * abs(choice.net)
        require(binary, choice.agent, sign * choice.gain, choice.victims, -sign * choice.harm)
    sums = np.zeros((N, total))
    sums[sender, np.arange(W)] = 1
    found = optimize.milp(
        -worth,
        constraints=[optimize.LinearConstraint(sums, 1, 1), optimize.LinearConstraint(np.array(rows), lb=least)],
        integrality=np.arange(total) >= W,
        bounds=optimize.Bounds(0, 1),
        options={'mip_rel_gap': 0},
    )
    weights = np.zeros((N, N))
    weights[sender, receiver] = found.x[:W].clip(0, 1)
    return weights


def _ascent(game: OfferGraph, starts: int = 8) -> Matrix:
    optimize, N = _optimize(), len(game.neighbours)
    closed = game.neighbours | np.eye(N, dtype=np.bool_)
    per_offer = game.neighbours / (2 * N * game.neighbours.sum(0))  # (victim, agent)

    def unpack(logits: Matrix) -> Matrix:
        full = np.full((N, N), -np.inf)
        full[closed] = logits
        top = full.max(1, keepdims=True)
        return full - top - np.log(np.exp(full - top).sum(1, keepdims=True))

    def loss(logits: Matrix) -> tuple[float, Matrix]:
        log_w = unpack(logits)
        log_ratio = np.where(game.neighbours, log_w, 0) - log_w.diagonal()
        small = np.exp(-abs(log_ratio))
        slope = -np.sign(log_ratio) * per_offer * (small - small**2) / 3
        slope -= np.diag(slope.sum(0))
        slope -= np.exp(log_w) * slope.sum(1, keepdims=True)
        return -float((per_offer * (small / 3 - small**2 / 6)).sum()), -slope[closed]

    rng = np.random.default_rng(0)
    begin = [np.log(constant_sharing(game.neighbours, s)[closed]) for s in (0.02, 0.1, 0.3)]
    begin += [rng.normal(size=int(closed.sum())) for _ in range(starts - len(begin))]
    found = [optimize.minimize(loss, logits, jac=True, method='L-BFGS-B') for logits in begin]
    return np.exp(unpack(min(found, key=lambda result: float(result.fun)).x))


# --- Weights that depend on the state --------------------------------------------------------------------------------


def oracle_weights(game: Table, state: Hunt | Choice) -> Matrix:
    """Weights under which the team optimum is learned in one state of a table: keep all if the choice is good for the
    team, else give all away, evenly."""
    good = isinstance(state, Choice) and state.net > 0
    return constant_sharing(game.neighbours, 1.0 if good else 0.0)


def oracle_value(game: Table) -> float:
    """Value of greedy learners under :func:`oracle_weights`, per agent and step."""
    hunts = ((Table(game.neighbours, (hunt,), ()), oracle_weights(game, hunt)) for hunt in game.hunts)
    choices = ((Table(game.neighbours, (), (choice,)), oracle_weights(game, choice)) for choice in game.choices)
    return sum(equilibrium_value(alone, weights) for alone, weights in (*hunts, *choices))


def oracle_offer_weights(
    neighbours: NDArray[np.bool_], has: NDArray[np.bool_], gain: Matrix, harm: Matrix, victim: NDArray[np.int64]
) -> Matrix:
    """Weights under which every offer of one state of ``offers`` is taken if and only if its gain exceeds its harm.
    They exist on every graph, so the oracle reaches the optimum.

    Each agent gives a little to agents with a bad offer against it. It keeps the rest, unless its own offer is bad:
    then it keeps nothing, and the rest goes to its victim (which keeps more than enough of its own reward).

    Args:
        neighbours: The graph (N, N).
        has: Whether each agent has an offer (N,).
        gain, harm: Gain and harm of each agent's offer (N,).
        victim: A neighbour of each agent (N,).
    """
    N = len(neighbours)
    agent, good, bad = np.arange(N), has & (gain > harm), has & (gain < harm)
    little = min(1 / 2, *(1 - harm[good] / gain[good]), 1.0) / (2 * N)
    weights = np.zeros((N, N))
    weights[victim[bad], agent[bad]] = little
    weights[agent, np.where(bad, victim, agent)] += 1 - weights.sum(1)
    return weights


# --- The reference table ---------------------------------------------------------------------------------------------


def references(config: DilemmasConfig, num_graphs: int = 100, seed: int = 0) -> dict[str, float]:
    """Value of each scheme, per agent and step, unscaled; for random graphs, the mean over ``num_graphs``.

    ``optimum``; ``oracle``, state-dependent weights; ``best_constant``, of all weights that do not depend on the state
    (chosen for each graph); ``best_kept``, the value of the best single kept share, and ``kept``, that share;
    ``uniform``; ``keep_all``; and, not on the simplex, ``neighbourhood_sum`` and ``team_reward``.
    """
    many = games(config, num_graphs, seed)
    share, reached = best_kept(many)
    schemes = (uniform, keep_all, neighbourhood_sum, team_reward)
    return {
        'optimum': optimum(config),
        'oracle': float(np.mean([optimum(config) if isinstance(g, OfferGraph) else oracle_value(g) for g in many])),
        'best_constant': float(np.mean([best_constant(game)[1] for game in many])),
        'best_kept': reached,
        'kept': share,
        **{f.__name__: float(np.mean([equilibrium_value(g, f(g.neighbours)) for g in many])) for f in schemes},
    }
