"""What holds for every method with networks of each agent's own, and for intention propagation."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from algos_zoo import Crowd, differing, flat, isolated
from networked_zoo import NETWORKED, Loop, Path3, make, path3
from torch_geometric.data import Batch

from ltos_pyg.algos import QMIX, NonFiniteLossError, QMIXConfig
from ltos_pyg.cli import main
from ltos_pyg.data import Snapshot
from ltos_pyg.envs import JungleEnv
from ltos_pyg.graph_env import SingleStep, VectorGraphEnv, fully_connected
from ltos_pyg.registry import SCENARIOS
from ltos_pyg.registry import scenario as scenario_named
from ltos_pyg.training.evaluate import evaluate, playing_in

every = pytest.mark.parametrize('variant', NETWORKED)
OWN = [v for v in NETWORKED if v != 'ip']
own_networks = pytest.mark.parametrize('variant', OWN)


def crowd(num_envs: int = 3) -> Any:
    return VectorGraphEnv(Crowd, num_envs)


@every
@pytest.mark.parametrize('make_env', [path3, crowd])
def test_the_same_seed_gives_the_same_weights_and_another_one_does_not(variant, make_env):
    states = [flat(Loop(make(variant, make_env(), seed), make_env()).until(6).algo.state_dict()) for seed in (0, 0, 1)]
    assert differing(states[0], states[1]) == []
    assert differing(states[0], states[2]) != []
    assert all(value.isfinite().all() for name, value in states[0].items() if name.startswith('.modules'))


@every
@pytest.mark.parametrize('extra_steps', [0, 2])
def test_a_saved_state_continues_to_the_same_weights(variant, extra_steps):
    """Saved between segments and in the middle of one; for LIO also between the two segments of a round."""
    for before in (4, 5):
        env = path3()
        loop = Loop(make(variant, env), env).until(before)
        for _ in range(extra_steps):
            loop.step()
        file = io.BytesIO()
        torch.save({'algo': loop.algo.state_dict(), 'env': env.state_dict()}, file)
        expected = flat(loop.until(8).algo.state_dict())

        state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        again = Loop(make(variant, env, seed=3), path3(), seed=9)  # whatever is not loaded is different
        again.algo.load_state_dict(state['algo'])
        again.graph = again.env.load_state_dict(state['env'])
        assert differing(expected, flat(again.until(8).algo.state_dict())) == []


@every
def test_every_weight_learns(variant):
    env = path3()
    algo = make(variant, env)
    before = flat(algo.network.state_dict())
    Loop(algo, env).until(12)
    assert set(differing(before, flat(algo.network.state_dict()))) == set(before)


@every
def test_a_policy_is_loaded_without_its_memory(variant):
    env = path3()
    algo, other = Loop(make(variant, env), env).until(5).algo, make(variant, env, seed=3)
    other.load_policy(algo.state_dict())
    stats = [evaluate(a, path3(7), seed=4) for a in (algo, other)]
    assert stats[0] == stats[1]
    assert evaluate(make(variant, env, seed=5), path3(7), seed=4) != stats[0]


@every
def test_an_evaluation_remembers_nothing_of_the_last_and_changes_nothing(variant):
    env = path3()
    algo = Loop(make(variant, env), env).until(3).algo
    before = flat(algo.state_dict())
    assert evaluate(algo, path3(6), seed=4) == evaluate(algo, path3(6), seed=4)
    assert differing(before, flat(algo.state_dict())) == []


@pytest.mark.parametrize('variant', ['neurcomm', 'consenet'])
def test_an_episode_that_ends_is_forgotten_in_play(variant):
    env = path3(1)
    algo = Loop(make(variant, env), env).until(3).algo
    graph = env.reset(0)
    first = algo.network(algo.view(graph)[0], algo.network.initial(1))[0]
    for _ in range(Path3.horizon):
        algo.act(graph)
        step = env.step(torch.zeros(3, dtype=torch.int64))
        algo.on_eval_step(step)
    assert step.truncated.all()
    assert all((part == 0).all() for part in algo.play_memory)
    algo.act(graph)
    memory = algo.play_memory
    algo.reset_eval_state()
    algo.act(graph)
    assert all(map(torch.equal, memory, algo.play_memory))
    assert torch.isfinite(first).all()


@every
def test_agents_may_come_and_go_and_masks_are_kept(variant):
    env = crowd()
    loop = Loop(make(variant, env), env).until(12)  # the game refuses illegal actions
    assert all(np.isfinite(value) for row in loop.metrics for value in row.values())
    evaluate(loop.algo, crowd(5), seed=1)


@pytest.mark.parametrize('variant', NETWORKED)
def test_graphs_may_lack_agents(variant):
    env = isolated(0)
    loop = Loop(make(variant, env), env).until(3)
    assert all(np.isfinite(value) for row in loop.metrics for value in row.values())


@own_networks
def test_an_agent_that_was_absent_starts_with_an_empty_memory(variant):
    env = crowd()
    algo = make(variant, env)
    loop = Loop(algo, env)
    for _ in range(3):
        absent = ~algo.layout(loop.graph).present()
        loop.step()
        assert all((part[absent] == 0).all() for part in algo.memory)
    assert absent.any()


@own_networks
def test_an_agent_without_a_network_is_refused(variant):
    env = crowd()
    algo = make(variant, env, max_agents=2)
    with pytest.raises(ValueError, match=r"'node_id' must lie in \[0, 2\), .* \(got 0\.\.3\)\. Number the agents so"):
        Loop(algo, env).until(2)


@own_networks
def test_jungle_is_played(variant):
    env = JungleEnv(num_envs=2, num_agents=5, num_foods=4, size=8, horizon=12)
    loop = Loop(make(variant, env, max_neighbours=2), env).until(4)
    assert all(np.isfinite(value) for row in loop.metrics for value in row.values())
    if variant == 'consenet':  # its critic sees all agents, so none receives messages
        assert all('dropped_edges' not in row for row in loop.metrics)
    else:
        assert max(row['dropped_edges'] for row in loop.metrics) > 0  # five agents, two slots


@pytest.mark.parametrize('variant', [*OWN, 'qmix'])
def test_where_it_plays_decides_how_agents_are_told_apart(variant):
    graph = Batch.from_data_list(
        [Snapshot(x=torch.rand(2, 2), edge_index=fully_connected(2), node_id=torch.tensor([1, 3]))]
    )
    env = crowd()
    fixed = dataclasses.replace(env.spec, fixed_nodes=True)
    make_it = make if variant in OWN else lambda _, env: QMIX(env.spec, QMIXConfig())
    algo = make_it(variant, SimpleNamespace(spec=fixed))
    who = lambda: (algo.layout(graph).place if variant in OWN else algo.slot(graph)).tolist()
    assert who() == [0, 1]
    with playing_in(algo, fixed, env.spec):
        assert who() == [1, 3]
    assert who() == [0, 1]


@own_networks
def test_new_episodes_may_start_although_the_old_ones_did_not_end(variant):
    env = path3()
    loop = Loop(make(variant, env), env).until(3)
    loop.step()
    loop.graph = env.reset(7)
    loop.algo.restart_episodes()
    assert len(loop.algo.rollout) == 0
    loop.until(6)


@own_networks
def test_what_was_not_decided_by_exploring_is_not_learned_from(variant):
    env = path3()
    algo, graph = make(variant, env), env.reset(0)
    decision = algo.act(graph)
    with pytest.raises(ValueError, match=r"'decision' must come from act\(graph, explore=True\)"):
        algo.observe(graph, decision, env.step(decision.action))


class Jackpot(Path3):
    pay = 1e30

    def step(self, action: Any) -> SingleStep:
        return SingleStep(self.start(), torch.full((3,), self.pay))


class Broken(Jackpot):
    pay = torch.nan


@every
def test_a_reward_beyond_all_measure_stops_the_run_before_any_weight_moves(variant):
    env = VectorGraphEnv(Jackpot, 2)
    algo = make(variant, env)
    before = flat(algo.network.state_dict())
    with pytest.raises(NonFiniteLossError, match=r'is NaN or infinite at gradient step \d.*extreme rewards'):
        Loop(algo, env).until(3)
    assert differing(before, flat(algo.network.state_dict())) == []


@every
def test_a_reward_that_is_not_a_number_is_refused_at_the_border(variant):
    env = VectorGraphEnv(Broken, 2)
    with pytest.raises(ValueError, match='reward'):
        Loop(make(variant, env), env).until(1)


class Blind(Path3):
    """One of its graphs has a feature that is NaN; the first is that of the reset, the sixth ends an episode."""

    seen = 0

    def start(self) -> Snapshot:
        graph, self.seen = super().start(), self.seen + 1
        graph.x[1, 0] = torch.nan if self.seen == self.blind_at else 0.0
        return graph


@every
@pytest.mark.parametrize(('at', 'name'), [(1, 'graph'), (2, 'step.graph'), (6, 'step.successor'), (7, 'step.graph')])
def test_an_observation_that_is_not_a_number_is_named(variant, at, name):
    env = VectorGraphEnv(type('BlindAt', (Blind,), {'blind_at': at}), 1)
    with pytest.raises(ValueError, match=rf"'{name}\.x' must be finite \(got 1 NaN or infinite of 6 entries, first at"):
        Loop(make(variant, env), env).until(9)


@own_networks
def test_permuting_the_agents_and_their_parameters_permutes_the_policy(variant):
    """Networks belong to numbers: permuting the nodes alone is another game, permuting both is the same one."""
    env = crowd()
    algo, other = make(variant, env), make(variant, env)
    permutation = torch.tensor([2, 0, 3, 1])  # the new number of each agent
    for mine, its in zip(algo.network.parameters(), other.network.parameters(), strict=True):
        its.data = mine.data[permutation.argsort()].clone()
    x, mask = torch.randn(4, 2), torch.ones(4, 4, dtype=torch.bool)
    alone = torch.zeros(2, 0, dtype=torch.int64)  # slots are in the order of numbers; here only whose network counts
    graphs = [
        Batch.from_data_list([Snapshot(x=x, edge_index=alone, node_id=ids, action_mask=mask)])
        for ids in (torch.arange(4), permutation)
    ]
    logits = []
    for a, graph in zip((algo, other), graphs, strict=True):
        view, layout, _ = a.view(graph)
        logits.append(layout.from_dense(a.policy(view, a.network.initial(1), False)[0]))
    torch.testing.assert_close(logits[0], logits[1])
    view, layout, _ = algo.view(graphs[1])
    assert not torch.allclose(logits[0], layout.from_dense(algo.policy(view, algo.network.initial(1), False)[0]))


@every
def test_a_batch_is_its_graphs_side_by_side(variant):
    """One of them without any edge, and in the crowd with absent agents."""
    for make_env in (path3, crowd):
        env = make_env(3)
        algo, batch = make(variant, env), env.reset(3)
        with torch.no_grad():
            if variant == 'ip':
                together = algo.log_policy(algo.network, batch)
                alone = [algo.log_policy(algo.network, g) for g in singles(batch)]
            else:
                together = policy_of(algo, batch)
                alone = [policy_of(algo, g) for g in singles(batch)]
        torch.testing.assert_close(together, torch.cat(alone))


def singles(batch: Any) -> list[Any]:
    return [Batch.from_data_list([g]) for g in batch.to_data_list()]


def policy_of(algo: Any, graph: Any) -> Any:
    view, layout, _ = algo.view(graph)
    _, memory = algo.policy(view, algo.network.initial(graph.num_graphs), False)
    return layout.from_dense(algo.policy(view, memory, False)[0])  # the second step receives what was sent at the first


@pytest.mark.parametrize(
    ('variant', 'options', 'message'),
    [
        ('neurcomm', {'gamma': 2.0}, r"'gamma' must lie in \[0, 1\] \(got 2.0\)"),
        ('neurcomm', {'rollout_steps': 0}, r"'rollout_steps' must be at least 1 \(got 0\)"),
        ('neurcomm', {'max_neighbours': -1}, r"'max_neighbours' must be at least 0, or None \(got -1\)"),
        ('neurcomm', {'max_agents': 0}, r"'max_agents' must be at least 1, or None \(got 0\)"),
        ('neurcomm', {'reward_norm': 0.0}, r"'reward_norm' must be above 0 \(got 0.0\)"),
        ('neurcomm', {'alpha': 1.5}, r"'alpha' must lie in \[0, 1\], or be None .* \(got 1.5\)"),
        ('neurcomm', {'entropy': -1.0}, r"'entropy' must be at least 0 \(got -1.0\)"),
        ('neurcomm', {'lr': 0.0}, r"'lr' must be above 0 \(got 0.0\)"),
        ('neurcomm', {'lr_final_fraction': 2.0}, r"'lr_final_fraction' must lie in \[0, 1\] \(got 2.0\)"),
        ('neurcomm', {'hidden_channels': 0}, r"'hidden_channels' must be at least 1 \(got 0\)"),
        ('neurcomm', {'eval_temperature': -1.0}, r"'eval_temperature' must be at least 0 \(got -1.0\)"),
        ('consenet', {'critic': 'best'}, r"'critic' must be one of \('joint', 'recurrent'\) \(got 'best'\)"),
        ('consenet', {'consensus': 'mean'}, r"'consensus' must be one of \('metropolis', 'uniform'\) \(got 'mean'\)"),
        ('consenet', {'critic_lr': 0.0}, r"'critic_lr' must be above 0 \(got 0.0\)"),
        ('lio', {'reward_max': -1.0}, r"'reward_max' must be at least 0 \(got -1.0\)"),
        ('lio', {'lr_actor': 0.0}, r"'lr_actor' must be above 0 \(got 0.0\)"),
        ('lio', {'epsilon_end': 1.5}, r"'epsilon_end' must lie in \[0, 1\] \(got 1.5\)"),
        ('lio', {'policy_channels': (0,)}, r"'policy_channels' must be at least 1 each"),
        ('ip', {'aggr': 'max'}, r"'aggr' must be one of \('add', 'mean'\) \(got 'max'\)"),
        ('ip', {'rounds': 0}, r"'rounds' must be at least 1 \(got 0\)"),
        ('ip', {'beta': -0.1}, r"'beta' must be at least 0 \(got -0.1\)"),
        ('ip', {'gumbel': 0.0}, r"'gumbel' must be above 0 \(got 0.0\)"),
        ('ip', {'tau': 2.0}, r"'tau' must lie in \[0, 1\] \(got 2.0\)"),
        ('ip', {'learning_starts': 20_000}, r"'learning_starts' must lie below 'total_steps'.*got 20000 of 10000"),
        ('ip', {'encoder_channels': (0,)}, r"'encoder_channels' must be at least 1 each"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_by_name(variant, options, message):
    with pytest.raises(ValueError, match=message):
        make(variant, path3(), **options)


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make('neurcomm', path3()).config.lr = 1.0


# --- as a run ---------------------------------------------------------------------------------------------------------

QUICK = ['--no-media', '--eval-episodes', '4', '--final-episodes', '4']


@pytest.mark.parametrize('algo', ['neurcomm', 'consenet', 'lio', 'ip'])
def test_it_is_trained_evaluated_and_refused_twice_from_the_command_line(tmp_path: Path, algo, capsys):
    folder = tmp_path / 'run'
    args = ['train', 'prisoner', '--algo', algo, '--total-steps', '640', '--out', str(folder), *QUICK]
    assert main(args) == 0
    result = json.loads((folder / 'final.json').read_text())
    assert result['env_steps'] == 640
    assert result['updates'] > 0
    assert main(args) == 1  # there is a run already
    assert main([*args, '--resume']) == 0
    capsys.readouterr()
    assert main(['evaluate', str(folder), '--episodes', '3', '--json']) == 0
    assert json.loads(capsys.readouterr().out)['policy']['return']['count'] == 3


@pytest.mark.parametrize('algo', ['neurcomm', 'consenet', 'lio', 'ip'])
@pytest.mark.parametrize('scenario', SCENARIOS)
def test_no_option_has_the_name_of_another(scenario, algo, capsys):
    with pytest.raises(SystemExit) as stop:
        main(['train', scenario, '--algo', algo, '--help'])
    assert stop.value.code == 0
    assert '--gamma' in capsys.readouterr().out


def test_the_reference_preset_of_consenet_is_known():
    for name in ('prisoner', 'jungle', 'traffic'):
        config = scenario_named(name).config('consenet', 'reference').algorithm
        assert (config.critic, config.consensus, config.alpha) == ('recurrent', 'uniform', 0.9)
        own = scenario_named(name).config('consenet').algorithm
        assert own.critic == ('joint' if name == 'prisoner' else 'recurrent')  # 'joint' does not learn elsewhere
        assert own.alpha == (0.9 if name == 'jungle' else 0)


@pytest.mark.parametrize('scenario', ['jungle', 'traffic'])
def test_on_policy_methods_play_few_graphs_and_lios_rounds_move_through_the_episode(scenario):
    lio, dgn = (scenario_named(scenario).config(algo) for algo in ('lio', 'dgn'))
    assert lio.train.num_envs < dgn.train.num_envs
    segments, rest = divmod(lio.env.horizon, lio.algorithm.rollout_steps)
    assert segments % 2 == 1
    assert rest == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ('algo', 'options', 'low', 'high'),
    [
        ('neurcomm', [], 0.95, 0.97),
        ('consenet', [], 0.95, 0.97),
        ('lio', [], 0.95, 0.97),
        ('lio', ['--lr-reward', '1e-12'], 0.46, 0.52),  # incentives that never learn
        ('qmix', [], 0.95, 0.97),
        ('joint_dqn', [], 0.95, 0.97),
        ('coco_q', [], 0.95, 0.97),
        ('fixed_ltos', [], 0.95, 0.97),
        ('fixed_ltos', ['--kept', '0.7'], 0.46, 0.52),  # above one half, a way out pays more than cooperation
    ],
)
def test_the_prisoners_do_as_the_paper_says(tmp_path: Path, algo, options, low, high):
    folder = tmp_path / 'run'
    assert main(['train', 'prisoner', '--algo', algo, '--no-media', '--out', str(folder), *options]) == 0
    result = json.loads((folder / 'final.json').read_text())['eval']['policy']['return']
    assert low <= result['mean'] <= high + 1e-6
