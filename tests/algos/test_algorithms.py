"""The laws that every value method keeps, and those between the methods."""

from __future__ import annotations

import dataclasses
import io
import random
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from algos_zoo import (
    LTOS,
    SEARCH,
    SHARING,
    VARIANTS,
    Loop,
    OneShot,
    Payday,
    chance,
    crowd,
    differing,
    flat,
    isolated,
    jungle,
    make,
    sample,
    trained,
    weights,
    without_edges,
)
from torch import nn

from ltos_pyg.algos import DQN, Algorithm, DQNConfig, NonFiniteLossError
from ltos_pyg.algos.base import SoftUpdate
from ltos_pyg.algos.losses import td_loss
from ltos_pyg.algos.ranks import Ranks, training_with
from ltos_pyg.data import Snapshot
from ltos_pyg.envs import JungleEnv
from ltos_pyg.graph_env import VectorGraphEnv, fully_connected
from ltos_pyg.nn import check_sharing, constant_sharing, keep_all, share_value

every_variant = pytest.mark.parametrize('variant', VARIANTS)


# --- one interface ---------------------------------------------------------------------------------------------------


@every_variant
def test_every_algorithm_acts_observes_and_updates(variant):
    env = jungle()
    algo = make(variant, env)
    assert isinstance(algo, Algorithm)
    loop = Loop(algo, env)
    for explore in (False, True):
        action, sharing = algo.act(loop.graph, explore)
        assert action.dtype == torch.int64
        assert action.shape == (loop.graph.num_nodes,)
        assert (sharing is None) == (variant not in SHARING)
        if sharing is not None:
            check_sharing(sharing, loop.graph.edge_index, loop.graph.num_nodes)
    before = weights(algo.network)
    loop.until(9)
    assert algo.env_steps == len(algo.replay)
    assert algo.updates == int((algo.env_steps - 8) / 3) == len(loop.metrics)
    assert algo.due_updates == 0
    assert all(np.isfinite(value) for row in loop.metrics for value in row.values())
    assert len(differing(before, weights(algo.network))) == len(before)  # every tensor of the network learns
    assert algo.sharing_modes[0] == algo.sharing_mode if variant in LTOS else not hasattr(algo, 'sharing_modes')


@every_variant
def test_nothing_is_learned_before_there_is_anything_to_learn_from(variant):
    env = jungle()
    algo = make(variant, env, learning_starts=0, n_step=3, train_freq=4.0)
    Loop(algo, env).until(3)
    assert algo.env_steps == 12  # three pushes make one frame with a whole future; the updates that waited follow
    assert algo.updates == 3


@cache
def reference(variant: str) -> dict[str, Any]:
    """All that there is after 24 updates in one go."""
    return flat(trained(variant, 24).state_dict())


@every_variant
def test_the_same_seed_gives_the_same_weights_and_another_one_does_not(variant):
    first = reference(variant)
    assert differing(first, flat(trained(variant, 24).state_dict())) == []
    other = flat(trained(variant, 1, seed=1).state_dict())
    assert {name for name in first if name.startswith('.modules.network')} <= set(differing(first, other))


@every_variant
def test_a_saved_state_continues_to_the_same_weights(variant):
    env = jungle()
    loop = Loop(make(variant, env), env).until(10)
    file = io.BytesIO()
    torch.save({'algo': loop.algo.state_dict(), 'env': env.state_dict()}, file)

    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    again = Loop(make(variant, env, seed=3), jungle(), seed=9)  # whatever is not loaded is different
    again.algo.load_state_dict(state['algo'])
    again.graph = again.env.load_state_dict(state['env'])
    assert differing(reference(variant), flat(again.until(24).algo.state_dict())) == []


@every_variant
def test_a_policy_is_loaded_without_its_memory(variant):
    algo, env = trained(variant), jungle()
    other = make(variant, env, seed=3)
    other.load_policy(algo.state_dict())
    graph = env.reset(4)
    assert differing(flat(algo.act(graph)), flat(other.act(graph))) == []
    assert (other.env_steps, other.updates, len(other.replay)) == (algo.env_steps, algo.updates, 0)


@every_variant
def test_acting_without_exploration_is_a_function_of_graph_and_weights(variant):
    algo = trained(variant)
    graph = jungle().reset(4)
    before = flat(algo.state_dict())
    assert differing(flat(algo.act(graph)), flat(algo.act(graph))) == []
    assert differing(before, flat(algo.state_dict())) == []


@every_variant
def test_exploration_draws_from_generators_of_its_own(variant):
    algo = trained(variant)
    before = chance(algo)
    algo.act(jungle().reset(4), explore=True)
    expected = {'.explore'} | ({'.shares'} if variant in LTOS else set())  # fixed weights are no exploration
    assert set(differing(before, chance(algo))) == expected


@every_variant
def test_global_rng_is_left_alone(variant):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    trained(variant, 4)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert all(map(np.array_equal, before[2], np.random.get_state()))  # noqa: NPY002


# --- graphs of all kinds ---------------------------------------------------------------------------------------------


@every_variant
def test_agents_may_come_and_go_and_masks_are_kept(variant):
    env = crowd()
    loop = Loop(make(variant, env), env).until(40)  # the game refuses illegal actions
    for _ in range(20):
        loop.graph = env.step(loop.algo.act(loop.graph).action).graph
    assert all(np.isfinite(value) for row in loop.metrics for value in row.values())


def overvalue(algo: Any, action: int) -> None:
    """Makes the networks believe that an action is splendid."""
    with torch.no_grad():
        for network in (algo.network, algo.target):
            head = network.head
            for lin in [head.own.lin, head.pair] if hasattr(head, 'own') else [head.lin]:
                lin.bias[action] += 1e4


@every_variant
def test_an_illegal_action_is_worth_nothing_however_good_it_looks(variant):
    algo = trained(variant, 3, crowd)
    t = sample(algo)
    before = algo.loss(t)[0].item()
    overvalue(algo, 3)  # flying is never legal
    assert algo.loss(t)[0].item() == pytest.approx(before)
    overvalue(algo, 1)  # waiting is
    assert algo.loss(t)[0].item() > 100


@every_variant
def test_there_may_be_no_agent_left_to_bootstrap_from(variant):
    algo = trained(variant, 4, lambda: VectorGraphEnv(OneShot, 4), n_step=1)
    t = sample(algo)
    assert t.successor.num_nodes == 0
    if 'edge' in variant:  # its own values learn from own rewards
        q, reward = algo.network.values(*algo.inputs(t.graph), t.sharing)[0], t.reward
    else:
        q, reward = algo.q_values(algo.network, t.graph, t.sharing), t.reward
        if variant in SHARING:
            reward = share_value(t.reward, t.graph.edge_index, t.sharing)
    taken = q.gather(1, t.action.unsqueeze(1)).squeeze(1)
    assert algo.loss(t)[1]['loss'].item() == pytest.approx(td_loss(taken, reward).item())


@every_variant
@pytest.mark.parametrize('agents', [0, 1, 3])
def test_graphs_may_lack_edges_and_even_agents(variant, agents):
    env = isolated(agents)
    loop = Loop(make(variant, env, learning_starts=20), env).until(8)
    assert all(np.isfinite(value) for row in loop.metrics for value in row.values())
    assert all(bool(p.isfinite().all()) for module in loop.algo.modules().values() for p in module.parameters())
    action, sharing = loop.algo.act(loop.graph)
    assert action.shape == (4 * agents,)
    if sharing is not None:
        assert torch.equal(sharing.kept, torch.ones(4 * agents))  # there are no neighbours to share with


@every_variant
def test_new_episodes_may_start_although_the_old_ones_did_not_end(variant):
    env = jungle()
    loop = Loop(make(variant, env), env).until(3)
    loop.graph = env.reset(7)
    decision = loop.algo.act(loop.graph, explore=True)
    step = env.step(decision.action)
    with pytest.raises(ValueError, match=r"'graph' must be what the last step returned"):
        loop.algo.observe(loop.graph, decision, step)
    loop.algo.restart_episodes()
    loop.algo.observe(loop.graph, decision, step)
    loop.graph = step.graph
    loop.until(6)


def test_dqn_ignores_edges_and_the_others_see_them():
    graph = jungle().reset(0)
    alone = without_edges(graph)
    for variant in VARIANTS:
        algo = trained(variant, 2)
        q, q_alone = (
            algo.q_values(algo.network, g, constant_sharing(g.edge_index, g.num_nodes, 1.0)) for g in (graph, alone)
        )
        assert torch.equal(q, q_alone) == (variant == 'dqn'), variant


# --- laws between the methods ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('make_env', [jungle, crowd])
def test_fixed_ltos_that_keeps_all_is_dgn_to_the_bit(make_env):
    dgn, fixed = trained('dgn', 30, make_env), trained('fixed_ltos node', 30, make_env, kept=1)
    assert differing(weights(dgn.network, dgn.target), weights(fixed.network, fixed.target)) == []
    assert set(differing(chance(dgn), chance(fixed))) == {'.pairs', '.shares'}  # streams that DGN lacks
    other = trained('fixed_ltos node', 30, make_env, kept=0.9)
    assert differing(weights(dgn.network), weights(other.network)) != []


@pytest.mark.parametrize('edge_features', [True, False])
def test_the_node_critic_under_keep_all_is_dgn(edge_features):
    env = JungleEnv(num_envs=4, num_agents=5, num_foods=4, size=8, edge_features=edge_features)
    dgn, ltos = make('dgn', env), make('ltos gradient', env)
    state = {}
    for name, value in ltos.network.state_dict().items():
        if 'lin_sharing' not in name:
            state[name] = value[:, 2:] if 'lin_edge' in name else value  # columns 0, 1 are for the edge's weight
    dgn.network.load_state_dict({name: value for name, value in state.items() if value.numel() > 0})
    graph = env.reset(0)
    q = dgn.q_values(dgn.network, graph, None)
    under_keep_all = ltos.q_values(ltos.network, graph, keep_all(graph.edge_index, graph.num_nodes))
    torch.testing.assert_close(under_keep_all, q)  # some processors round products of other widths differently
    uniform = constant_sharing(graph.edge_index, graph.num_nodes)
    assert (q - ltos.q_values(ltos.network, graph, uniform)).abs().max() > 1e-3


def test_a_target_network_moves_by_tau():
    slow, fast = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    move, before = SoftUpdate(slow, fast), slow.weight.clone()
    move(0.25)
    torch.testing.assert_close(slow.weight, 0.75 * before + 0.25 * fast.weight)
    move(1.0)
    assert differing(weights(slow), weights(fast)) == []


@every_variant
def test_the_networks_behind_follow_the_one_that_learns(variant):
    env = jungle()
    algo = make(variant, env, tau=0.25, ema_decay=0.9, train_freq=4.0)  # one update a step
    loop, slow, mean = Loop(algo, env), weights(algo.target), weights(algo.averaged)
    for updates in range(1, 13):
        loop.until(updates)
        now, beta = weights(algo.network), min(0.9, (updates - 1) / (updates + 9))
        slow = {name: 0.75 * old + 0.25 * now[name] for name, old in slow.items()}
        mean = {name: beta * old + (1 - beta) * now[name] for name, old in mean.items()}
    torch.testing.assert_close(weights(algo.target), slow)
    torch.testing.assert_close(weights(algo.averaged), mean)


def test_dropout_in_a_network_of_ones_own_is_off_where_no_gradient_is_wanted():
    class Drops(DQN):
        def build_network(self) -> torch.nn.Module:
            network = super().build_network()
            network.head = torch.nn.Sequential(network.head, torch.nn.Dropout(0.5))
            return network

    env = jungle()
    algo = Drops(env.spec, DQNConfig(total_steps=9_000, replay_size=500, hidden_channels=16))
    graph = env.reset(seed=0)
    for network, same in ((algo.averaged, True), (algo.target, True), (algo.network, False)):
        assert torch.equal(*(algo.q_values(network, graph, None) for _ in range(2))) == same


def test_double_q_is_an_option_of_every_method():
    for variant in VARIANTS:
        losses = []
        for double_q in (True, False):
            algo = trained(variant, 2, tau=0.0)
            object.__setattr__(algo.config, 'double_q', double_q)
            losses.append(algo.loss(sample(algo))[0].item())
        assert losses[0] != losses[1], variant


@every_variant
def test_exploration_fades_and_in_a_part_of_the_streams_wholly(variant):
    env = jungle()
    algo = make(variant, env, epsilon_start=0.8, epsilon_end=0.2, epsilon_fraction=0.5, greedy_fraction=0.25)
    graph = env.reset(0)
    for env_steps, first, last in ((0, 0.8, 0.8), (100, 0.5, 0.4), (200, 0.2, 0.0), (900, 0.2, 0.0)):
        algo.env_steps = env_steps
        expected = torch.tensor([first] * 15 + [last] * 5)  # the last graph of four
        torch.testing.assert_close(algo.epsilon(graph), expected)


def test_the_streams_without_exploration_are_counted_over_all_ranks():
    env = jungle(1)
    algo = make('dqn', env, epsilon_end=0.2)  # greedy_fraction is 0.5
    graph, algo.env_steps = env.reset(0), algo.config.total_steps
    chances = []
    for rank in range(4):
        with training_with(Ranks(rank, 4)):
            chances.append(algo.epsilon(graph)[0].item())
    assert chances == pytest.approx([0.2, 0.2, 0.0, 0.0])


class Normalised(DQN):
    """DQN with a network that keeps running means."""

    def build_network(self) -> Any:
        network = super().build_network()
        network.trunk.encoder = nn.Sequential(nn.BatchNorm1d(self.spec.num_features), network.trunk.encoder)
        return network


def test_running_means_in_a_network_of_ones_own_reach_the_networks_that_act_and_make_targets():
    env = jungle()
    algo = Normalised(env.spec, dataclasses.replace(make('dqn', env).config), 0)
    Loop(algo, env).until(3)
    algo.update()
    online, target, averaged = (m.trunk.encoder[0].running_mean for m in (algo.network, algo.target, algo.averaged))
    assert online.abs().max() > 0
    assert torch.equal(online, target)
    assert torch.equal(online, averaged)


# --- when numbers go wrong -------------------------------------------------------------------------------------------


def poisoned(variant: str, name: str) -> Any:
    """A trained algorithm with one NaN in the named weight."""
    algo = trained(variant, 2)
    module, path = name.split('.', 1)
    with torch.no_grad():
        algo.modules()[module].get_parameter(path).view(-1)[0] = torch.nan
    return algo


@pytest.mark.parametrize(
    ('variant', 'name'),
    [
        *((variant, 'network.trunk.encoder.lins.1.bias') for variant in VARIANTS),
        *((variant, 'phi.head.self_logit.bias') for variant in LTOS),
        *((variant, 'search_critics.0.out.lins.1.weight') for variant in SEARCH),
    ],
)
def test_a_weight_that_is_not_a_number_is_named_and_nothing_of_its_network_moves(variant, name):
    algo = poisoned(variant, name)
    module = name.split('.')[0]
    before = weights(algo.modules()[module])
    with pytest.raises(NonFiniteLossError, match=rf'^{name} is NaN or infinite at gradient step 3; .*\(lr=0.01\)'):
        algo.update()
    after = weights(algo.modules()[module])
    assert [k for k in differing(before, after) if not before[k].isnan().any()] == []
    assert algo.updates == 2


@pytest.mark.parametrize(
    ('pay', 'sight', 'name'),
    [(1e30, 1.0, 'loss'), (1e17, 1e4, 'norm of the gradients')],  # of gradients that are finite, each
)
@every_variant
def test_a_reward_beyond_all_measure_stops_the_run_before_any_weight_moves(variant, pay, sight, name):
    jackpot = type('Jackpot', (Payday,), {'pay': pay, 'sight': sight})
    env = VectorGraphEnv(jackpot, 4)
    loop = Loop(make(variant, env, huber=None), env)
    before = weights(loop.algo.network)
    with pytest.raises(NonFiniteLossError, match=f'^{name} is NaN or infinite at gradient step 1; .* extreme rewards'):
        loop.until(1)
    assert differing(before, weights(loop.algo.network)) == []


def test_a_reward_that_is_not_a_number_is_refused_at_the_border():
    class Broken(Payday):
        pay = torch.nan

    env = VectorGraphEnv(Broken, 4)
    with pytest.raises(ValueError, match='reward'):
        Loop(make('dgn', env), env).until(1)


# --- precision -------------------------------------------------------------------------------------------------------


@every_variant
def test_bf16_stays_close_to_float32(variant):
    options = {'epsilon_end': 1.0, 'lr': 1e-3, 'phi_lr': 1e-3} if variant in LTOS else {'epsilon_end': 1.0, 'lr': 1e-3}
    exact, rough = (trained(variant, 10, precision=precision, **options) for precision in ('float32', 'bf16'))
    graph = jungle().reset(0)
    sharing = constant_sharing(graph.edge_index, graph.num_nodes)
    q, q_rough = (algo.q_values(algo.network, graph, sharing) for algo in (exact, rough))
    assert q_rough.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in rough.network.parameters())
    torch.testing.assert_close(q_rough, q, atol=0.05, rtol=0.05)
    assert not torch.equal(q_rough, q)


def test_features_of_any_dtype_are_taken():
    class Doubles(Payday):
        feature_dtype, feature_scale = torch.float64, (0.5,)

        def start(self) -> Snapshot:
            return Snapshot(x=torch.ones(2, 1, dtype=torch.float64), edge_index=fully_connected(2))

    env = VectorGraphEnv(Doubles, 4)
    Loop(make('dgn', env), env).until(1)


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('variant', 'options', 'message'),
    [
        ('dqn', {'gamma': 2.0}, r"'gamma' must lie in \[0, 1\] \(got 2.0\)"),
        ('dqn', {'gamma': float('nan')}, r"'gamma' must lie in \[0, 1\] \(got nan\)"),
        ('dqn', {'tau': -0.1}, r"'tau' must lie in \[0, 1\] \(got -0.1\)"),
        ('dqn', {'epsilon_fraction': 1.5}, r"'epsilon_fraction' must lie in \[0, 1\] \(got 1.5\)"),
        ('dqn', {'lr': 0.0}, r"'lr' must be above 0 \(got 0.0\)"),
        ('dqn', {'lr': float('nan')}, r"'lr' must be above 0 \(got nan\)"),
        ('dqn', {'train_freq': -1.0}, r"'train_freq' must be above 0 \(got -1.0\)"),
        ('dqn', {'n_step': 0}, r"'n_step' must be at least 1 \(got 0\)"),
        ('dqn', {'batch_size': 0}, r"'batch_size' must be at least 1 \(got 0\)"),
        ('dqn', {'learning_starts': -1}, r"'learning_starts' must be at least 0 \(got -1\)"),
        ('dqn', {'encoder_channels': (16, 0)}, r"'encoder_channels' must be at least 1 each \(got \(16, 0\)\)"),
        ('dqn', {'huber': 0.0}, r"'huber' must be above 0, or be None for the mean square \(got 0.0\)"),
        ('dqn', {'precision': 'float16'}, r"'precision' must be 'float32' or 'bf16' \(got 'float16'\)"),
        (
            'dqn',
            {'replay_size': 6},
            r"'replay_size' must be at least 12, three graphs for each of 'num_envs' 4 \(got 6\)",
        ),
        ('dgn', {'heads': 0}, r"'heads' must be at least 1 \(got 0\)"),
        ('dgn', {'heads': 3}, r"'heads' must divide 'hidden_channels' \(got 3 heads, 16 channels\)"),
        ('dgn', {'reward': 'shared'}, r"'reward' must be one of own, neighbourhood, team \(got 'shared'\)"),
        ('fixed_ltos', {'pair_channels': 0}, r"'pair_channels' must be at least 1 \(got 0\)"),
        ('fixed_ltos', {'critic': 'tree'}, r"'critic' must be 'node' or 'edge' \(got 'tree'\)"),
        ('fixed_ltos', {'kept': 1.5}, r"'kept' must lie in \[0, 1\], or be 'uniform' or 'random' \(got 1.5\)"),
        ('fixed_ltos', {'kept': float('nan')}, r"'kept' must lie in \[0, 1\], .* \(got nan\)"),
        ('fixed_ltos', {'kept': 'all'}, r"'kept' must lie in \[0, 1\], or be 'uniform' or 'random' \(got 'all'\)"),
        ('ltos', {'objective': 'gain'}, r"'objective' must be 'search' or 'gradient' \(got 'gain'\)"),
        ('ltos gradient', {'hops': 3}, r"'hops' is an option of --objective search \(got 3 with"),
        ('ltos', {'pair_channels': 8}, r"'pair_channels' is an option of the edge critic \(got 8 with the node critic"),
        ('ltos', {'phi_lr': 0.0}, r"'phi_lr' must be above 0 \(got 0.0\)"),
        ('ltos', {'phi_every': 0}, r"'phi_every' must be at least 1 \(got 0\)"),
        ('ltos', {'phi_starts': 2.0}, r"'phi_starts' must lie in \[0, 1\] \(got 2.0\)"),
        ('ltos', {'phi_tau': -1.0}, r"'phi_tau' must lie in \[0, 1\] \(got -1.0\)"),
        ('ltos', {'candidates': 1}, r"'candidates' must be at least 2, or there is nothing to compare \(got 1\)"),
        ('ltos', {'sharpness': -1.0}, r"'sharpness' must be at least 0 \(got -1.0\)"),
        ('ltos', {'hops': 0}, r"'hops' must be at least 1 \(got 0\)"),
        ('ltos', {'hold_steps': 0}, r"'hold_steps' must be at least 1, or None for n_step \(got 0\)"),
        ('ltos', {'wide_end': 1.5}, r"'wide_end' must lie in \[0, 1\] \(got 1.5\)"),
        ('ltos', {'noise_own': float('nan')}, r"'noise_own' must be at least 0 \(got nan\)"),
        ('ltos_edge', {'initial_kept': 1.0}, r"'initial_kept' must lie strictly between 0 and 1, .* \(got 1.0\)"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_by_name(variant, options, message):
    with pytest.raises(ValueError, match=message):
        make(variant, jungle(), **options)


def test_an_option_that_does_not_exist_is_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'gama'"):
        make('dgn', jungle(), gama=0.9)


def test_the_learning_rate_falls_to_its_end_with_training():
    algo = trained('dgn', 2, lr=1e-2, lr_final_fraction=0.1, total_steps=40)
    assert algo.optimizer.param_groups[0]['lr'] == pytest.approx(1e-2 * (1 - 0.9 * algo.progress))
