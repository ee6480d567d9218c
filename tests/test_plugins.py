"""Environments and algorithms from outside the package, each one file, through the command line and Python."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import ltos_pyg
from ltos_pyg import registry
from ltos_pyg.cli import main
from ltos_pyg.cli.train import parse_options
from ltos_pyg.graph_env import VectorGraphEnv
from ltos_pyg.scenarios.custom import scenario_of
from ltos_pyg.training.api import with_options
from ltos_pyg.training.card import command_of
from ltos_pyg.training.checkpoint import CheckpointStore
from ltos_pyg.training.config import flags_of
from ltos_pyg.training.run import _check_contract
from ltos_pyg.training.run_folder import RunFolder

QUICK = [
    *('--total-steps', '160', '--learning-starts', '40', '--num-envs', '4', '--eval-every', '80'),
    *('--eval-episodes', '2', '--final-episodes', '2', '--hidden-channels', '8', '--encoder-channels', '8'),
]

WALK = """
import torch

from ltos_pyg.data import Snapshot
from ltos_pyg.graph_env import SingleGraphEnv, SingleStep, fully_connected


class Walk(SingleGraphEnv):
    num_features, num_actions, max_nodes = 1, 2, 3

    def __init__(self, horizon: int = 6, stride: float = 0.1) -> None:
        self.horizon, self.stride = horizon, stride

    def start(self):
        self.place = torch.rand(3, 1, generator=self.generator)
        return self.look()

    def step(self, action):
        self.place = self.place + self.stride * (2 * action.unsqueeze(1) - 1)
        return SingleStep(self.look(), reward=-self.place.abs().squeeze(1))

    def look(self):
        return Snapshot(x=self.place, edge_index=fully_connected(3))

    def state_dict(self):
        return {'place': self.place}

    def load_state_dict(self, state):
        self.place = state['place']
        return self.look()

    def render(self):
        picture = torch.zeros(8, 60, 3, dtype=torch.uint8)
        picture[:, (10 * self.place.squeeze(1) + 30).long().clamp(0, 59)] = 255
        return picture.numpy()
"""

VDN = '''
"""Value decomposition networks: the sum of the agents' values is the value of the team."""

import torch

from ltos_pyg.algos import DQN, DQNConfig
from ltos_pyg.algos.losses import double_q_value, gather_next_value, td_loss, td_target


class VDN(DQN):
    """Q_tot = sum_i Q_i, learned from the sum of the rewards (https://arxiv.org/abs/1706.05296)."""

    config: DQNConfig

    def loss(self, t):
        with torch.no_grad():
            online, target = (self.q_values(net, t.successor, None) for net in (self.network, self.target))
            value = gather_next_value(double_q_value(online, target, t.successor.get('action_mask')), t.successor_node)
            y = self.team(t, td_target(t.reward, t.discount, value))
        q = self.q_values(self.network, t.graph, None).gather(-1, t.action.unsqueeze(-1)).squeeze(-1)
        loss = td_loss(self.team(t, q), y, self.config.huber)
        return loss, {'loss': loss.detach(), 'q_tot': self.team(t, q).mean().detach()}

    def team(self, t, value):
        return value.new_zeros(t.graph.num_graphs).index_add(0, t.graph.batch, value)
'''

REGISTERS = """
from walk_env import Walk
from vdn_algo import VDN

from ltos_pyg import register_algorithm, register_scenario

register_algorithm('vdn')(VDN)
presets = {('vdn', 'long'): {'n_step': 5}}
register_scenario('walk', Walk, train={'num_envs': 3}, algorithm={'gamma': 0.5}, presets=presets)
"""

Write = Callable[..., None]


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes modules that can be imported; afterwards they, and what they registered, are gone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for table in ('_algorithms', '_scenarios'):
        monkeypatch.setattr(registry, table, {})
    registry._load_plugins.cache_clear()
    before = set(sys.modules)

    def write(**texts: str) -> None:
        for name, text in texts.items():
            (tmp_path / f'{name}.py').write_text(text)

    write(walk_env=WALK, vdn_algo=VDN)
    yield write
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], '__file__', None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]
    registry._load_plugins.cache_clear()


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    _, state = CheckpointStore(Path(folder) / 'checkpoints').load_latest()
    return state['algorithm']['modules']['network']


# --- an environment --------------------------------------------------------------------------------------------------


def test_an_environment_of_one_file_has_every_service_of_ours(modules, capsys, tmp_path):
    train = ['train', 'walk_env:Walk', *QUICK, '--stride', '0.2', '--checkpoint-every', '80', '--out']
    assert main([*train, 'whole']) == 0
    left = {path.name for path in (tmp_path / 'whole').iterdir()}
    assert left == {'config.json', 'metrics.jsonl', 'checkpoints', 'final.json', 'curve.png', 'episode.gif'}
    config = json.loads((tmp_path / 'whole' / 'config.json').read_text())
    assert (config['scenario'], config['env'], config['imports']) == (
        'walk_env:Walk', {'horizon': 6, 'stride': 0.2}, ['walk_env']
    )  # fmt: skip
    assert config['primary_metric'] == 'return'  # so that tables need not find the environment
    assert main(['evaluate', 'whole', '--episodes', '2', '--env', 'horizon=4', '--json']) == 0
    printed = capsys.readouterr().out
    assert '"mean": 4.0' in printed
    assert main(['plot', 'whole', '--out', 'both.png']) == 0
    assert main(['watch', 'whole', '--out', 'frames', '--steps', '2']) == 0
    assert len(list((tmp_path / 'frames').glob('*.png'))) == 2

    assert main([*train, 'resumed']) == 0
    for path in ('final.json', 'checkpoints/step_000000160.pt'):
        (tmp_path / 'resumed' / path).unlink()
    assert main([*train, 'resumed', '--resume', '--no-media']) == 0
    assert all(torch.equal(value, weights('whole')[name]) for name, value in weights('resumed').items())


def test_a_run_is_named_after_its_class(modules, tmp_path):
    assert main(['train', 'walk_env:Walk', '--algo', 'vdn_algo:VDN', '--no-media', *QUICK]) == 0
    assert RunFolder('runs/Walk-VDN-seed0').is_finished


def test_an_exported_policy_acts_where_its_environment_is_not_installed(modules, capsys, tmp_path):
    assert main(['train', 'walk_env:Walk', '--no-media', *QUICK, '--out', 'run']) == 0
    assert main(['card', 'run', '--out', 'exported']) == 0
    graph = VectorGraphEnv(sys.modules['walk_env'].Walk, num_envs=3).reset(0)
    action, sharing = ltos_pyg.load_policy('run')(graph)
    (tmp_path / 'walk_env.py').unlink()
    del sys.modules['walk_env']
    importlib.invalidate_caches()
    same, shares = ltos_pyg.load_policy('exported')(graph)
    assert torch.equal(action, same)
    assert torch.equal(sharing.given, shares.given)
    assert main(['evaluate', 'exported', '--episodes', '2']) == 1  # to play, the game is needed
    assert "module 'walk_env' cannot be imported" in capsys.readouterr().err


def test_an_environment_that_breaks_the_contract_is_refused_before_training(modules, capsys, tmp_path):
    modules(bad_env=WALK.replace('self.place + self.stride', 'self.place + torch.rand(1) * self.stride'))
    assert main(['train', 'bad_env:Walk', *QUICK, '--out', 'bad']) == 1
    said = capsys.readouterr().err
    assert "environment 'bad_env:Walk' breaks the contract: [" in said
    assert not (tmp_path / 'bad').exists()


@pytest.mark.parametrize(
    ('horizon', 'said'),
    [(6, []), (70, ['no episode ended within 60 steps, so no restart was checked: call check_env with more steps'])],
)
def test_what_looks_wrong_in_an_environment_is_said_before_training(modules, capsys, horizon, said):
    one = registry.scenario('walk_env:Walk')
    config = one.config('dqn')
    config = dataclasses.replace(config, env=dataclasses.replace(config.env, horizon=horizon))
    _check_contract(one, one.make_env(config))
    first, *others = capsys.readouterr().err.splitlines()
    assert first == "ltos: checking the environment 'walk_env:Walk'"
    assert others == [f"ltos: environment 'walk_env:Walk': {text}" for text in said]


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('walk_env:Wlak', "module 'walk_env' has no 'Wlak'. Did you mean 'Walk'?"),
        ('nowhere_env:Walk', "module 'nowhere_env' cannot be imported (ModuleNotFoundError"),
        ('walk_env:', 'must be given as package.module:Name'),
        ('walk_env:torch', "'walk_env:torch' must be a class or a function that makes an environment (got module)"),
        ('walk_env:fully_connected', "needs a default for its parameter 'num_nodes'"),
        ('vdn_algo:dict', "module 'vdn_algo' has no 'dict'"),
    ],
)
def test_a_name_that_leads_nowhere_says_why(modules, capsys, name, message):
    assert main(['train', name, *QUICK]) == 1
    assert message in capsys.readouterr().err


def test_an_environment_without_render_says_so(modules, capsys, tmp_path):
    modules(blind_env=WALK.replace('def render', 'def draw'))
    assert main(['train', 'blind_env:Walk', '--algo', 'dqn', *QUICK, '--out', 'blind']) == 0
    assert 'no GIF: Walk cannot be drawn: it has no method render()' in capsys.readouterr().err
    assert main(['watch', 'blind']) == 1
    assert 'it has no method render()' in capsys.readouterr().err


def test_a_canvas_may_be_drawn_on_again_and_again(modules, tmp_path):
    canvas = """picture = self.canvas
        picture[:] = 0
        picture[:, (10 * self.place.squeeze(1) + 30).long().clamp(0, 59)] = 255
        return picture"""
    start = WALK.index('picture = torch.zeros')
    code = (WALK[:start] + canvas + '\n').replace('import torch\n', 'import numpy as np\nimport torch\n', 1)
    code = code.replace(
        'self.stride = horizon, stride',
        'self.stride = horizon, stride\n        self.canvas = np.zeros((8, 60, 3), np.uint8)',
    )
    modules(canvas_env=code)
    frames = []
    for name in ('walk_env', 'canvas_env'):
        assert main(['train', f'{name}:Walk', '--algo', 'dqn', *QUICK, '--stride', '1', '--out', name]) == 0
        with Image.open(tmp_path / name / 'episode.gif') as gif:
            frames.append([np.asarray(frame.convert('RGB')) for frame in ImageSequence.Iterator(gif)])
    assert len(frames[0]) > 3
    assert all(np.array_equal(*pair) for pair in zip(*frames, strict=True))


def test_a_drawing_that_fails_does_not_fail_the_finished_run(modules, capsys, tmp_path):
    code = (
        WALK.replace('def render', 'def draw')
        + """
    def render(self):
        raise RuntimeError('no display')
"""
    )
    modules(broken_env=code)
    assert main(['train', 'broken_env:Walk', '--algo', 'dqn', *QUICK, '--out', 'broken']) == 0
    assert 'no GIF: RuntimeError: no display' in capsys.readouterr().err
    assert (tmp_path / 'broken' / 'final.json').is_file()


# --- an algorithm ----------------------------------------------------------------------------------------------------


def test_an_algorithm_of_one_file_trains_resumes_and_plots(modules, capsys, tmp_path):
    assert len(VDN.splitlines()) < 60
    train = ['train', 'prisoner', '--algo', 'vdn_algo:VDN', *QUICK, '--no-media', '--checkpoint-every', '80', '--out']
    assert main([*train, 'vdn']) == 0
    rows = [json.loads(line) for line in (tmp_path / 'vdn' / 'metrics.jsonl').read_text().splitlines()]
    assert rows[-1]['step'] == 160
    whole = weights('vdn')
    for path in ('final.json', 'checkpoints/step_000000160.pt'):
        (tmp_path / 'vdn' / path).unlink()
    assert main([*train, 'vdn', '--resume']) == 0
    assert all(torch.equal(value, whole[name]) for name, value in weights('vdn').items())
    assert main(['plot', 'vdn', '--out', 'curve.svg']) == 0
    assert 'vdn_algo:VDN' in capsys.readouterr().out


CONV = """
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.dense import Linear


class MaxConv(MessagePassing):
    def __init__(self, in_channels, out_channels, edge_dim):
        super().__init__(aggr='max')
        self.lin = Linear(in_channels + edge_dim, out_channels)

    def reset_parameters(self):
        self.lin.reset_parameters()

    def forward(self, x, edge_index, edge_attr):
        return self.propagate(edge_index, x=x, edge_attr=edge_attr)

    def message(self, x_j, edge_attr):
        return self.lin(torch.cat([x_j, edge_attr], -1))
"""


def test_a_layer_of_one_file_trains_and_resumes(modules, capsys):
    modules(max_conv='import torch\n' + CONV)
    quick = [*QUICK, '--horizon', '10']
    command = ['train', 'jungle', '--algo', 'ltos', '--conv', 'max_conv:MaxConv', *quick, '--out', 'run', '--no-media']
    assert main(command) == 0, capsys.readouterr().err
    assert main([*command, '--resume', '--total-steps', '200']) == 0, capsys.readouterr().err
    assert any('trunk.convs.0.conv.lin' in name for name in weights('run'))
    options = {name[2:].replace('-', '_'): int(value) for name, value in zip(quick[::2], quick[1::2], strict=True)}
    options['encoder_channels'] = (options['encoder_channels'],)
    run = ltos_pyg.train('jungle', 'ltos', out='python', **{**options, 'conv': 'max_conv:MaxConv', 'total_steps': 200})
    assert weights(run.folder).keys() == weights('run').keys()


def test_an_algorithm_without_options_says_what_is_missing(modules, capsys):
    modules(bare_algo='class Bare:\n    pass\n')
    assert main(['train', 'prisoner', '--algo', 'bare_algo:Bare']) == 1
    assert "algorithm 'bare_algo:Bare' needs its options: expected a dataclass" in capsys.readouterr().err


# --- registering -----------------------------------------------------------------------------------------------------


def test_an_option_that_shares_its_name_with_another_has_a_flag_of_its_own(modules):
    modules(walk_env=WALK.replace('stride: float = 0.1', 'gamma: float = 0.1, loud: bool = True, threads: int = 0'))
    start = registry.scenario('walk_env:Walk').config('dqn')
    options = {'gamma': 0.5, 'env.gamma': 0.3, 'env.threads': 7, 'horizon': 5, 'loud': False, 'seed': 3}
    config = with_options(start, options, {})
    assert (config.algorithm.gamma, config.env.gamma, config.env.threads, config.train.seed) == (0.5, 0.3, 7, 3)
    flags = [flag for name, value in options.items() for flag in flags_of(name, value)]
    assert flags[2:4] == ['--env.gamma', '0.3']
    assert parse_options(start, ['walk_env:Walk', '--algo', 'dqn', *flags])[1] == config
    assert parse_options(start, ['walk_env:Walk', '--env.no-loud', '--env.horizon=1e1'])[1].env.horizon == 10
    assert parse_options(start, shlex.split(command_of(config))[2:])[1] == config
    with pytest.raises(ValueError, match="unknown option 'gama' of the environment of walk_env:Walk"):
        with_options(start, {'env.gama': 1}, {})


def test_an_imported_module_registers_both_and_its_runs_remember_it(modules, capsys):
    modules(my_plugin=REGISTERS)
    train = [
        'train',
        'walk',
        '--algo',
        'vdn',
        '--preset',
        'long',
        '--import',
        'my_plugin',
        '--no-media',
        '--out',
        'run',
    ]
    assert main([*train, *QUICK]) == 0
    config = RunFolder('run').config()
    assert (config.algorithm.n_step, config.algorithm.gamma, config.imports) == (
        5,
        0.5,
        ('my_plugin',),
    )
    capsys.readouterr()
    registry._algorithms.clear(), registry._scenarios.clear()
    for name in ('my_plugin', 'walk_env', 'vdn_algo'):
        del sys.modules[name]
    assert main(['evaluate', 'run', '--episodes', '2']) == 0
    assert main(['train', '--import', 'my_plugin']) == 2
    assert 'traffic, walk' in capsys.readouterr().out


def test_a_name_is_registered_once(modules):
    import vdn_algo

    ltos_pyg.register_algorithm('vdn', vdn_algo.VDN)
    ltos_pyg.register_algorithm('vdn', vdn_algo.VDN)  # its module may be imported again
    with pytest.raises(
        ValueError, match=r"algorithm 'vdn' is registered already, by vdn_algo.VDN: expected a new name"
    ):
        ltos_pyg.register_algorithm('vdn', type('Other', (vdn_algo.VDN,), {}))
    with pytest.raises(ValueError, match=r"algorithm 'ltos' is registered already, by ltos_pyg: expected a new name"):
        ltos_pyg.register_algorithm('ltos', vdn_algo.VDN)
    with pytest.raises(ValueError, match=r"scenario 'jungle' is registered already, by ltos_pyg"):
        ltos_pyg.register_scenario('jungle', vdn_algo.VDN)
    with pytest.raises(ValueError, match=r"'name' of algorithm must be one word without ':' or '/' \(got 'a b'\)"):
        ltos_pyg.register_algorithm('a b', vdn_algo.VDN)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'algorithm': {'gama': 0.5}}, r"scenario 'walk' has unknown options: gama\. Did you mean 'gamma'\?"),
        ({'train': {'num_env': 4}}, r"scenario 'walk' has unknown options: num_env\. Did you mean 'num_envs'\?"),
        (
            {'presets': {('dqn', 'default'): {'phi_lr': 0.1}}},
            r"preset 'default' of dqn on walk has unknown options: phi_lr",
        ),
        (
            {'presets': {('dqn', 'default'): {'env': {'strde': 0.1}}}},
            r"preset 'default' of dqn on walk has unknown options: strde\. Did you mean 'stride'\?",
        ),
    ],
)
def test_an_unknown_option_of_a_preset_is_named(modules, settings, message):
    from walk_env import Walk

    ltos_pyg.register_scenario('walk', Walk, **settings)
    with pytest.raises(ValueError, match=message):
        registry.scenario('walk').config('dqn')


def test_an_entry_point_that_fails_is_named_and_the_others_continue(modules, tmp_path):
    modules(my_plugin=REGISTERS, broken_plugin='raise RuntimeError("no licence")')
    package = tmp_path / 'some_package-1.0.dist-info'
    package.mkdir()
    (package / 'METADATA').write_text('Metadata-Version: 2.1\nName: some-package\nVersion: 1.0\n')
    (package / 'entry_points.txt').write_text('[ltos_pyg.plugins]\nbroken = broken_plugin\nmine = my_plugin\n')
    with pytest.warns(
        UserWarning, match=r"plug-in 'broken = broken_plugin' is left out: .* \(RuntimeError: no licence\)"
    ):
        assert 'vdn' in registry.algorithm_names()
    assert registry.scenario('walk').config('vdn').algorithm.gamma == 0.5


def test_the_names_of_ours_are_those_of_the_table():
    from ltos_pyg.algos import ALGORITHMS

    assert tuple(ALGORITHMS) == registry.ALGORITHMS
    assert [registry.scenario(name).name for name in registry.SCENARIOS] == list(registry.SCENARIOS)


# --- environments of other kinds -------------------------------------------------------------------------------------

PARALLEL = '''
import numpy as np
from gymnasium.spaces import Box, Discrete
from pettingzoo import ParallelEnv


class Push(ParallelEnv):
    """Two agents, four steps."""

    metadata = {'name': 'push', 'render_modes': ['rgb_array']}
    possible_agents = ['a', 'b']

    def __init__(self, goal: float = 1.0, render_mode=None):
        self.goal, self.render_mode = goal, render_mode

    def observation_space(self, agent):
        return Box(-9, 9, (1,), np.float32)

    def action_space(self, agent):
        return Discrete(2)

    def reset(self, seed=None, options=None):
        self.agents, self.clock = list(self.possible_agents), 0
        self.place = dict.fromkeys(self.agents, 0.0)
        return self.look(), {agent: {} for agent in self.agents}

    def step(self, actions):
        self.clock += 1
        for agent, action in actions.items():
            self.place[agent] += 2 * action - 1
        over = self.clock == 4
        reward = {agent: -abs(self.goal - place) for agent, place in self.place.items()}
        done = dict.fromkeys(self.agents, False)
        out = self.look(), reward, done, dict.fromkeys(self.agents, over), {agent: {} for agent in self.agents}
        self.agents = [] if over else self.agents
        return out

    def look(self):
        return {agent: np.array([place], np.float32) for agent, place in self.place.items()}

    def render(self):
        if self.render_mode is None:
            return None
        return np.full((6, 6, 3), 40 * self.clock, np.uint8)
'''


def test_a_pettingzoo_environment_is_trained_and_draws_itself(modules, capsys, tmp_path):
    pytest.importorskip('pettingzoo')
    modules(push_env=PARALLEL)
    args = ['train', 'push_env:Push', '--algo', 'dqn', '--goal', '2', *QUICK, '--out', 'push']
    assert main(args) == 0
    assert RunFolder('push').read()['env'] == {'goal': 2.0}
    assert RunFolder('push').final()['exact_resume'] is False
    assert main(['watch', 'push', '--out', 'frames']) == 0
    assert len(list((tmp_path / 'frames').glob('*.png'))) == 4


def test_a_batched_environment_takes_its_options_as_one_dataclass_or_one_by_one(modules):
    from ltos_pyg.envs import JungleConfig, JungleEnv

    scenario = registry.scenario('ltos_pyg.envs:JungleEnv')
    assert scenario.env_config is JungleConfig
    env = scenario.make(JungleConfig(num_agents=5, size=8, num_foods=2), 3, 'cpu')
    assert (env.spec.num_envs, env.spec.max_nodes) == (3, 5)
    assert JungleEnv(3, JungleConfig(num_agents=5), size=8, num_foods=2).config == env.config
    assert registry.name_of(JungleEnv, 'scenario') == 'jungle'
    with pytest.raises(ValueError, match=r"JungleConfig has no option 'num_agent'\. Did you mean 'num_agents'\?"):
        JungleEnv(num_agent=5)
    with pytest.raises(ValueError, match=r"'config' must be a JungleConfig \(got dict\)"):
        JungleEnv(1, {'num_agents': 5})


def test_an_error_in_a_users_environment_names_its_line(modules, capsys):
    broken = WALK.replace('    def look(self):', "    def look(self):\n        int('two')")
    line = broken.splitlines().index("        int('two')") + 1
    modules(walk_env=broken)
    assert main(['train', 'walk_env:Walk', *QUICK, '--out', 'x']) == 1
    *_, message, place = capsys.readouterr().err.splitlines()
    assert message == "ltos: invalid literal for int() with base 10: 'two'"
    assert re.fullmatch(rf'  raised in .*walk_env\.py, line {line}, in look', place)
    assert main(['train', 'walk_env:Run', *QUICK, '--out', 'x']) == 1  # no code of the user's took part
    assert 'raised in' not in capsys.readouterr().err


def test_a_whole_scenario_is_registered_once_but_its_module_may_be_loaded_again(modules):
    from walk_env import Walk

    made = dataclasses.replace(scenario_of(Walk, 'strolls'), source=None)
    again = dataclasses.replace(made, primary_metric='reward')
    assert ltos_pyg.register_scenario(made).module == __name__
    ltos_pyg.register_scenario(again)
    assert ltos_pyg.registry.scenario('strolls').primary_metric == 'reward'
    with pytest.raises(ValueError, match=rf"scenario 'strolls' is registered already, by {__name__}.strolls"):
        ltos_pyg.register_scenario('strolls', Walk)
