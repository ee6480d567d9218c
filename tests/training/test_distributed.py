"""One run on two processes: the same weights on both, as in one process where their data are equal; one end for all."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks_zoo import FLAGS, LAST, assert_same, both, command, end, numbers, parts, said, start, states, until
from torch import Tensor, nn

import ltos_pyg
from ltos_pyg import cli
from ltos_pyg.algos import ALGORITHMS, DGN, NonFiniteLossError
from ltos_pyg.algos.base import guarded_step
from ltos_pyg.algos.lio import Segment
from ltos_pyg.algos.ranks import RankError, Ranks, current
from ltos_pyg.envs import JungleEnv, PrisonerEnv
from ltos_pyg.registry import scenario
from ltos_pyg.training.callbacks import Callback, CallbackError, EarlyStopping
from ltos_pyg.training.distributed import own_config, own_device, together

SMALL: dict[str, Any] = {
    'n_step': 2, 'batch_size': 4, 'replay_size': 200, 'hidden_channels': 8, 'encoder_channels': (8,), 'num_layers': 1,
    'heads': 2, 'phi_starts': 0.1, 'phi_every': 2, 'phi_channels': 8, 'search_channels': 8, 'candidates': 4,
    'greedy_fraction': 0.0, 'rollout_steps': 4, 'policy_channels': (8,), 'incentive_channels': (8,),
    'max_neighbours': 3,
}  # fmt: skip
TOGETHER = [name for name, (maker, _) in ALGORITHMS.items() if maker.data_parallel]  # type: ignore[attr-defined]


# --- the same weights ------------------------------------------------------------------------------------------------


def learn(algo: str, size: int = 1, seed: int = 0) -> dict[str, Tensor]:
    """The weights after the same gradient steps, whatever the number of ranks; with one seed all have the same data."""
    env: Any = PrisonerEnv(4) if algo == 'joint_dqn' else JungleEnv(4, num_agents=4, num_foods=3, size=7, horizon=7)
    maker, config = ALGORITHMS[algo]
    counted = {'total_steps': 120 * size, 'learning_starts': 16 * size, 'train_freq': 8.0 * size}
    known = {field.name for field in dataclasses.fields(config)}
    options = {name: value for name, value in (SMALL | counted).items() if name in known}
    algorithm: Any = maker(env.spec, config(**options), seed)
    graph = env.reset(seed)
    while algorithm.env_steps < 120 * size:
        decision = algorithm.act(graph, explore=True)
        step = env.step(decision.action)
        algorithm.observe(graph, decision, step)
        graph = step.graph
        for _ in range(current().least(algorithm.due_updates)):
            algorithm.update()
    assert algorithm.updates >= 7
    return {f'{m}.{n}': w for m, module in algorithm.modules().items() for n, w in module.state_dict().items()}


def learn_all(rank: int, folder: Path) -> int:
    torch.save({algo: learn(algo, size=2) for algo in TOGETHER}, folder / f'{rank}.pt')
    return 0


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


@pytest.mark.slow
def test_two_ranks_with_equal_data_learn_what_one_process_learns(tmp_path):
    both(tmp_path, learn_all, tmp_path)
    first, second = (torch.load(tmp_path / f'{rank}.pt') for rank in (0, 1))
    assert set(TOGETHER) == set(ALGORITHMS) - {'coco_q'}
    for algo in TOGETHER:
        assert differing(first[algo], second[algo]) == [], algo
        assert differing(first[algo], learn(algo)) == [], algo
    assert differing(first['ltos'], learn('ltos', seed=1)) != []


def segment(present: Tensor) -> Segment:
    """A segment of LIO in which one agent is present at some of the moments, in one graph."""
    nothing = torch.zeros(0)
    return Segment(nothing, nothing, nothing, present.unsqueeze(0), nothing, torch.zeros(len(present), 1, 1), *3 * [0])  # type: ignore[arg-type]


def step_with(rank: int, closed: Path) -> int:
    """Gradients are averaged, over the ranks that have one, and so is LIO's baseline; one rank's NaN is refused by
    both; one rank's error ends both, its own last."""
    network = nn.ModuleDict({name: nn.Linear(2, 1, bias=False).double() for name in ('a', 'b', 'c')})
    for layer in network.values():
        nn.init.ones_(layer.weight)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    x = torch.tensor([1.0, 2.0]).double()
    loss = (1 + rank) * network['a'](x).sum()  # 1 x and 2 x
    if rank == 1:
        loss = loss + network['b'](x).sum()  # nothing and 1 x
    guarded_step(optimizer, {'network': network}, loss, math.inf, 0)
    assert network['a'].weight.tolist() == [[1 - 1.5, 1 - 3.0]]
    assert network['b'].weight.tolist() == [[1 - 0.5, 1 - 1.0]]
    assert network['c'].weight.grad is None
    before = network['a'].weight.clone()
    by_rank = torch.tensor([[1.0, 3.0], [8.0, 5.0]])  # surplus of two moments, one graph a rank; agent 0 is in both
    present = torch.tensor([True, rank == 0])  # at the second moment it is in rank 0's graph alone
    left = segment(present).minus_graph_mean((by_rank[rank] * present).unsqueeze(0))
    assert left.tolist() == [[1 - 4.5, 3.0]] if rank == 0 else [[8 - 4.5, 0.0]]
    loss = network['a'](x).sum() * (math.nan if rank == 1 else 1.0)
    with pytest.raises(NonFiniteLossError, match=r'^loss is NaN or infinite at gradient step 7; this step was not'):
        guarded_step(optimizer, {'network': network}, loss, 1.0, 6)
    assert torch.equal(network['a'].weight, before)

    with pytest.raises(ValueError if rank == 0 else SystemExit):
        fail_on_rank_0()
    if rank == 0:  # closes its files as it ends; rank 1 waits for that
        time.sleep(0.5)
        closed.touch()
    assert closed.exists()
    return 0


def fail_on_rank_0() -> None:
    with together(current()):
        if current().first:
            raise ValueError('rank 0 alone')


def test_gradients_and_baselines_are_averaged_and_one_ranks_failure_ends_all(tmp_path):
    both(tmp_path, step_with, tmp_path / 'closed')


def test_each_rank_has_a_seed_of_its_own_and_rank_0_that_of_the_run():
    config = scenario('prisoner').config('dqn')
    seeds = [own_config(config, Ranks(rank, 3)).train.seed for rank in range(3)]
    assert seeds[0] == config.train.seed == 0
    assert len(set(seeds)) == 3
    assert own_config(config, Ranks()) is config
    with pytest.raises(ValueError, match=r"'device' must be 'cpu' or 'cuda' under torchrun, .*\(got 'cuda:1'\)"):
        own_device('cuda:1')


# --- a run -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks, without interruption."""
    folder = tmp_path_factory.mktemp('ranks') / 'whole'
    both(folder.parent, command, '--out', str(folder))
    return folder


def test_ranks_learn_the_same_from_different_episodes(whole):
    first, second = (state['algorithm'] for state in states(whole))
    assert first['env_steps'] == LAST
    assert first['updates'] == (LAST - 80) // 32
    assert_same(first['modules'], second['modules'])
    assert_same(first['optimizers'], second['optimizers'])
    assert not torch.equal(first['rng']['replay'], second['rng']['replay'])
    assert not torch.equal(first['replay']['rings']['node'], second['replay']['rings']['node'])
    assert int(first['modules']['constant']['visits'].sum()) > 0  # the constant share was compared too


def test_one_rank_writes_what_a_run_of_one_process_writes(whole):
    assert sorted(path.name for path in whole.iterdir()) == [
        'checkpoints',
        'config.json',
        'final.json',
        'metrics.jsonl',
    ]
    assert [store.steps() for store in parts(whole)] == [[480, LAST], [480, LAST]]
    rows = numbers(whole)
    assert [row['step'] for row in rows if 'eval/return' in row] == [0, 320, LAST]
    assert [row['step'] for row in rows if 'updates' in row] == list(range(160, LAST + 1, 160))
    assert json.loads((whole / 'config.json').read_text())['ranks'] == 2
    final = json.loads((whole / 'final.json').read_text())
    assert (final['ranks'], final['env_steps']) == (2, LAST)
    assert 'policy' in (whole.parent / 'out0.txt').read_text()
    assert (whole.parent / 'out1.txt').read_text() == ''
    assert said(whole.parent, 1) == ''


def log_means(rank: int) -> int:
    from ltos_pyg.training.trainer import MetricWindow

    window = MetricWindow()
    for value in ((1.0, 2.0), (6.0,))[rank]:
        window.add({'loss': value} | ({'only': 5.0} if rank == 1 else {}))
    window.merge(current().gather(window.sums))
    assert window.means() == {'loss': 3.0, 'only': 5.0}
    return 0


def test_metrics_are_means_over_all_ranks(tmp_path):
    both(tmp_path, log_means)


# --- stopped, resumed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('lost', [0, 1])  # rank 0 saves last: killed in between, its part is missing
def test_a_resumed_run_ends_in_the_same_bits_on_every_rank(whole, tmp_path, lost):
    folder = tmp_path / 'run'
    shutil.copytree(whole, folder)
    (folder / 'final.json').unlink()
    parts(folder)[lost].path(LAST).unlink()
    both(tmp_path, command, '--out', str(folder), '--resume')
    for state, expected in zip(states(folder), states(whole), strict=True):
        assert_same(state, expected)
    assert numbers(folder) == numbers(whole)


def test_a_finished_run_is_left_as_it_is_and_a_longer_one_goes_on(whole, tmp_path):
    folder = tmp_path / 'run'
    shutil.copytree(whole, folder)
    both(tmp_path, command, '--out', str(folder), '--resume')
    assert numbers(folder) == numbers(whole)
    both(tmp_path, command, '--out', str(folder), '--resume', '--total-steps', '800')
    assert [store.steps()[-1] for store in parts(folder)] == [800, 800]
    assert 'continues from step 640 to 800' in said(tmp_path, 0)
    assert said(tmp_path, 1) == ''


def test_another_number_of_processes_is_refused(whole, tmp_path, capsys):
    folder = tmp_path / 'run'
    shutil.copytree(whole, folder)
    assert cli.main([*FLAGS, '--out', str(folder), '--resume']) == 1
    message = (
        'ltos: the run was trained by 2 processes, each with a replay and episodes of its own, and resumes with as '
        'many only (got 1): torchrun --nproc-per-node 2 -m ltos_pyg train … --resume'
    )
    assert capsys.readouterr().err.splitlines()[-1] == message
    plain = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({name: value for name, value in plain.items() if name != 'ranks'}))
    assert end(start(tmp_path, command, '--out', str(folder), '--resume')) == [1, 1]
    assert said(tmp_path, 0).splitlines()[-1].endswith('resumes with as many only (got 2): without torchrun')
    assert said(tmp_path, 1) == ''  # it is said once


def test_what_one_rank_cannot_load_ends_all(whole, tmp_path):
    folder = tmp_path / 'run'
    shutil.copytree(whole, folder)
    for step in parts(folder)[1].steps():
        parts(folder)[1].path(step).write_bytes(b'no checkpoint')
    assert end(start(tmp_path, command, '--out', str(folder), '--resume')) == [1, 1]
    assert 'has valid parts of all 2 processes (steps {0: [480, 640], 1: []})' in said(tmp_path, 0)


LONG = ('--total-steps', '2000000', '--checkpoint-every', '400', '--eval-every', '1000000')


@pytest.mark.parametrize(('rank', 'number'), [(1, signal.SIGTERM), (0, signal.SIGINT)])
def test_a_signal_to_any_rank_stops_and_saves_all_at_the_same_step(tmp_path, rank, number):
    folder = tmp_path / 'run'
    ranks = start(tmp_path, command, '--out', str(folder), *LONG)
    until(lambda: len(parts(folder)[0].steps()) > 0, ranks)
    os.kill(ranks[rank].pid, number)
    assert end(ranks) == [cli.INTERRUPTED] * 2
    first, second = (store.load_latest() for store in parts(folder))
    assert first is not None
    assert second is not None
    assert first[0] == second[0]
    assert_same(first[1]['algorithm']['modules'], second[1]['algorithm']['modules'])
    assert said(tmp_path, 0).endswith('Stopped. The run was saved; continue it with --resume.')
    assert said(tmp_path, 1) == ''


def test_a_rank_that_is_killed_ends_the_others_and_the_run_resumes(tmp_path):
    folder = tmp_path / 'run'
    ranks = start(tmp_path, command, '--out', str(folder), *LONG)
    until(lambda: len(parts(folder)[0].steps()) > 0, ranks)
    ranks[1].kill()
    assert end(ranks) == [1, -signal.SIGKILL]
    assert 'ltos: another process of this run ended, or did not answer in time (' in said(tmp_path, 0)
    assert 'start all processes again with --resume' in said(tmp_path, 0)
    step = min(store.steps()[-1] for store in parts(folder))
    ranks = start(tmp_path, command, '--out', str(folder), *LONG, '--resume')
    until(lambda: parts(folder)[0].steps()[-1] > step + 400, ranks)
    os.kill(ranks[0].pid, signal.SIGTERM)
    assert end(ranks) == [cli.INTERRUPTED] * 2


# --- what learns otherwise -------------------------------------------------------------------------------------------


def test_a_method_that_learns_without_gradients_is_refused_by_name(tmp_path):
    flags = ('train', 'prisoner', '--algo', 'coco_q', '--no-media', '--out', str(tmp_path / 'run'))
    assert end(start(tmp_path, run_command, *flags)) == [1, 1]
    assert said(tmp_path, 0).splitlines()[-1] == (
        "ltos: 'coco_q' cannot be trained by 2 processes together: not all that it learns is the mean of gradients. "
        'Train it in one process, without torchrun.'
    )
    assert said(tmp_path, 1) == ''
    assert not (tmp_path / 'run').exists()


def run_command(rank: int, *args: str) -> int:
    return cli.main(list(args))


class Drifting(DGN):
    """Its ranks change a weight each in its own way."""

    def update(self) -> dict[str, float]:
        metrics = super().update()
        with torch.no_grad():
            self.network.head.lin.bias[0] = float(torch.randint(1000, (1,), generator=self.replay_rng))
        return metrics


def train(folder: Path, algo: Any = 'dgn', **options: Any) -> Any:
    small = {name: SMALL[name] for name in ('batch_size', 'replay_size', 'hidden_channels', 'encoder_channels')}
    often = {'num_envs': 4, 'learning_starts': 16, 'eval_every': 40, 'eval_episodes': 1, 'final_episodes': 1}
    given = {'total_steps': 400, 'checkpoint_every': 80} | small | often | options
    return ltos_pyg.train('prisoner', algo, out=folder, **given)


def train_drifting(rank: int, folder: Path) -> int:
    with pytest.raises(ValueError, match=r'networks of the 2 processes differ at step 80: Drifting changes weights'):
        train(folder, Drifting)
    return 0


def test_weights_that_drift_apart_are_found_at_the_next_save(tmp_path):
    assert end(start(tmp_path, train_drifting, tmp_path / 'run')) == [0, 1]


class Bad(Callback):
    def on_step(self, trainer: Any) -> None:
        if trainer.algorithm.env_steps >= 200:
            raise KeyError('bad')


def train_with_callbacks(rank: int, folder: Path) -> int:
    run = train(folder / 'stopped', callbacks=[EarlyStopping(patience=2, min_delta=9.0)])
    assert run.result['env_steps'] == 80
    assert run.result['stopped'].startswith('no better evaluation since step')
    with pytest.raises(CallbackError, match=r'Bad.on_step raised KeyError'):
        train(folder / 'bad', callbacks=[Bad()])
    return 0


def test_hooks_are_rank_0s_and_end_all_ranks_at_the_same_step(tmp_path):
    assert end(start(tmp_path, train_with_callbacks, tmp_path)) == [0, 1]
    assert [store.steps()[-1] for store in parts(tmp_path / 'stopped')] == [80, 80]
    assert [store.steps()[-1] for store in parts(tmp_path / 'bad')] == [200, 200]


def fail(rank: int, who: list[int]) -> int:
    with pytest.raises(ValueError, match=f'^rank {rank} failed$') if rank == min(who, default=-1) else nullcontext():
        with together(current()):
            if rank in who:
                raise ValueError(f'rank {rank} failed')
        return 0
    return 7


def test_the_lowest_rank_that_failed_says_why_and_no_rank_goes_on(tmp_path):
    assert end(start(tmp_path, fail, [1, 2], size=3)) == [1, 7, 1]
    assert end(start(tmp_path, fail, [], size=3)) == [0, 0, 0]


def lose(rank: int) -> int:
    if rank == 1:
        os._exit(9)
    with pytest.raises(RankError, match=r'another process of this run ended'):
        current().any(True)
    return 0


def test_a_lost_rank_is_an_error_of_its_own(tmp_path):
    assert end(start(tmp_path, lose)) == [0, 9]


# --- torchrun --------------------------------------------------------------------------------------------------------


def torchrun(*args: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
    environment = os.environ | {'GLOO_SOCKET_IFNAME': 'lo', 'OMP_NUM_THREADS': '1'}
    return subprocess.run(
        [*launcher, '-m', 'ltos_pyg', *args], capture_output=True, text=True, env=environment, timeout=300
    )


@pytest.mark.slow
def test_torchrun_starts_it(whole, tmp_path):
    """``--standalone`` takes a free port."""
    done = torchrun(*FLAGS, '--out', str(tmp_path / 'run'))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('env steps') == 1
    for state, expected in zip(states(tmp_path / 'run'), states(whole), strict=True):
        assert_same(state, expected)


@pytest.mark.slow
def test_two_ranks_learn_to_cooperate(tmp_path):
    both(tmp_path, run_command, 'train', 'prisoner', '--algo', 'ltos', '--no-media', '--out', str(tmp_path / 'run'))
    final = json.loads((tmp_path / 'run' / 'final.json').read_text())
    assert 0.95 <= final['eval']['policy']['return']['mean'] <= 0.97 + 1e-6
