"""The loop: what it logs, evaluates and saves, how it stops, and its options."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from trainer_zoo import TRAIN, Bomb, Lottery, differing, flat, jungle, lottery, make_algo, untimed

from ltos_pyg.algos import NonFiniteLossError
from ltos_pyg.envs import JungleEnv
from ltos_pyg.graph_env import GraphStep, SingleStep, VectorGraphEnv
from ltos_pyg.training.callbacks import Callback, CallbackError, CustomMetric
from ltos_pyg.training.checkpoint import CheckpointStore
from ltos_pyg.training.config import TrainConfig, check_device
from ltos_pyg.training.logging import MetricsLogger, read_metrics
from ltos_pyg.training.trainer import Interrupted, MetricWindow, Trainer


@pytest.fixture
def make_trainer() -> Iterator[Callable[..., Trainer]]:
    with ExitStack() as stack:

        def make(folder: Path, make_env: Any = jungle, algo: str = 'ltos', steps: int = 200, **train: Any) -> Trainer:
            config = TrainConfig(**{**TRAIN, **train})
            env = make_env(config.num_envs)
            store = CheckpointStore(folder / 'checkpoints', keep=9)
            logger = stack.enter_context(MetricsLogger(folder / 'metrics.jsonl', max(store.steps(), default=None)))
            learner = make_algo(algo, env, total_steps=steps)
            eval_env = jungle if make_env is jungle else lottery
            return Trainer(learner, env, eval_env, config, steps, logger, store, 'return')

        yield make


# --- the window of metrics -------------------------------------------------------------------------------------------


def test_a_window_means_what_came_since_it_was_last_asked():
    window = MetricWindow()
    for loss in (1.0, 3.0):
        window.add({'loss': loss})
    window.add({'loss': 5.0, 'q': 2.0})
    assert window.means() == {'loss': 3.0, 'q': 2.0}
    assert window.means() == {}
    window.add({'q': 4.0})
    assert window.latest == {'loss': 5.0, 'q': 4.0}


def test_a_window_weighs_means_by_their_number():
    window = MetricWindow()
    window.add({'return': 0.0})
    window.add({'return': 100.0}, count=3)
    assert window.means() == {'return': 75.0}


def test_the_log_of_training_has_the_mean_over_episodes_however_many_end_at_once(tmp_path, make_trainer):
    class Uneven(Lottery):
        """Some episodes end at once, without a reward; the others together at the horizon."""

        def step(self, action: Tensor) -> SingleStep:
            fails = float(torch.rand(1, generator=self.generator)) < 0.1
            return SingleStep(self.start(), torch.full((2,), 1.0 - fails), terminated=fails)

    returns: list[float] = []

    class Returns(Callback):
        def on_episode_end(self, trainer: Trainer, episodes: dict[str, Tensor]) -> None:
            returns.extend(episodes['return'].tolist())

    trainer = make_trainer(tmp_path, lambda num_envs: VectorGraphEnv(Uneven, num_envs), 'dqn', log_every=200)
    trainer.callbacks = (Returns(),)
    trainer.run()
    (row,) = [row for row in read_metrics(tmp_path / 'metrics.jsonl') if 'train/return' in row]
    assert len({*returns}) > 2
    assert row['train/return'] == pytest.approx(sum(returns) / len(returns))


@pytest.mark.parametrize('name', ['step', 'updates', 'seconds/act'])
def test_names_of_the_log_are_taken(tmp_path, make_trainer, name):
    trainer = make_trainer(tmp_path, algo='dqn')
    update = trainer.algorithm.update
    trainer.algorithm.update = lambda: update() | {name: 1.0}
    with pytest.raises(ValueError, match=f"'{name}' is a name of the log's own: give your metric another one"):
        trainer.run()

    class Names(Callback):
        def on_evaluation(self, trainer: Trainer, metrics: dict[str, float]) -> None:
            metrics[name] = 1.0

    trainer = make_trainer(tmp_path / 'evaluation', algo='dqn')
    trainer.callbacks = (Names(),)
    with pytest.raises(CallbackError, match=f"'{name}' is a name of the log's own"):
        trainer.run()
    again = make_trainer(tmp_path / 'evaluation', algo='dqn')  # what was saved is sound
    again.load(again.store.load_latest()[1])
    again.run()


@pytest.mark.parametrize('name', ['return', 'attacks'])  # of every episode, and of this environment
def test_a_metric_of_a_callback_does_not_mix_with_one_of_episodes(tmp_path, make_trainer, name):
    trainer = make_trainer(tmp_path, algo='dqn')
    trainer.callbacks = (CustomMetric(name, lambda trainer: 100.0),)
    with pytest.raises(CallbackError, match=f"'train/{name}' is a name of the log's own"):
        trainer.run()


def test_a_window_is_saved_and_continues():
    window, again = MetricWindow(), MetricWindow()
    window.add({'loss': 1.0})
    again.load_state_dict(window.state_dict())
    again.add({'loss': 3.0})
    assert again.means() == {'loss': 2.0}
    assert window.means() == {'loss': 1.0}


# --- the loop --------------------------------------------------------------------------------------------------------


def test_the_loop_logs_evaluates_and_saves_when_it_is_asked_to(tmp_path, make_trainer):
    trainer = make_trainer(tmp_path)
    trainer.run()
    rows = read_metrics(tmp_path / 'metrics.jsonl')
    assert [row['step'] for row in rows if 'eval/return' in row] == [0, 80, 160, 200]
    assert [row['step'] for row in rows if 'updates' in row] == [40, 80, 120, 160, 200]
    assert trainer.store.steps() == [60, 120, 180, 200]
    learnt = [row for row in rows if 'loss' in row]
    assert learnt[0]['updates'] == (40 - 16) // 8
    assert {'q', 'phi/kept', 'train/return', 'train/kept', 'seconds/env'} <= learnt[-1].keys()
    assert rows[0]['eval/episodes'] == 3
    assert {'eval/kept', 'eval/kept_std_nodes', 'eval/kept_std_states', 'eval/uneven'} <= rows[0].keys()
    assert not any('keep' in name for row in rows for name in row)  # other weights are for the closing evaluation


@pytest.mark.parametrize('algo', ['dqn', pytest.param('fixed_ltos', marks=pytest.mark.slow), 'ltos'])
@pytest.mark.parametrize('at', [60, 180])
def test_a_run_resumed_from_a_checkpoint_is_the_run_itself(tmp_path, make_trainer, algo, at):
    whole, parts = (make_trainer(tmp_path / name, algo=algo) for name in ('whole', 'parts'))
    whole.run()
    parts.run()
    for step in parts.store.steps():
        if step > at:
            parts.store.path(step).unlink()
    again = make_trainer(tmp_path / 'parts', algo=algo, seed=0)
    again.load(again.store.load_latest()[1])
    assert again.algorithm.env_steps == at
    again.run()
    assert differing(flat(whole.algorithm.state_dict()), flat(again.algorithm.state_dict())) == []
    rows, expected = (read_metrics(tmp_path / name / 'metrics.jsonl') for name in ('parts', 'whole'))
    assert untimed(rows) == untimed(expected)


def test_the_clocks_of_a_resumed_run_continue(tmp_path, make_trainer):
    make_trainer(tmp_path, checkpoint_every=100).run()
    (tmp_path / 'checkpoints' / 'step_000000200.pt').unlink()
    again = make_trainer(tmp_path, checkpoint_every=100)
    state = again.store.load_latest()[1]
    state['seconds'] = dict.fromkeys(state['seconds'], 1000.0)  # the first part took long
    again.load(state)
    again.run()
    assert all(seconds >= 1_000 for seconds in again.seconds.values())
    timed = [row for row in read_metrics(tmp_path / 'metrics.jsonl') if 'seconds/other' in row]
    assert timed[-1]['seconds/other'] >= 1_000


def test_a_game_that_cannot_be_saved_starts_new_episodes(tmp_path, make_trainer):
    make_trainer(tmp_path, lottery).run()
    ends = []
    for _ in range(2):  # what is taken up twice comes out the same
        (tmp_path / 'checkpoints' / 'step_000000200.pt').unlink()
        again = make_trainer(tmp_path, lottery)
        start = again.graph.x
        state = again.store.load_latest()[1]
        assert state['env'] is None
        again.load(state)
        assert not torch.equal(again.graph.x, start)  # the episodes that the run began with are not played again
        again.run()
        assert again.algorithm.env_steps == 200
        ends.append(flat(again.algorithm.state_dict()))
    assert differing(*ends) == []


def test_games_are_closed_after_an_evaluation(tmp_path, make_trainer):
    closed = []

    class Room(Lottery):
        def close(self) -> None:
            closed.append(self)

    trainer = make_trainer(tmp_path, lottery)
    trainer.make_eval_env = lambda num_envs: VectorGraphEnv(Room, num_envs)
    trainer.evaluate()
    assert len(closed) == TRAIN['eval_episodes']


def interrupt(_: Any) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def bombed(at: int, what: Any) -> Any:
    return lambda num_envs: VectorGraphEnv(lambda: Bomb(at, what), num_envs)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_stop_finishes_the_step_saves_and_says_so(tmp_path, make_trainer, number):
    first = iter([lambda _: os.kill(os.getpid(), number)])
    make_env = bombed(13, lambda env: next(first, lambda _: None)(env))
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    trainer = make_trainer(tmp_path, make_env)
    with pytest.raises(Interrupted):
        trainer.run()
    assert trainer.store.steps() == [52]
    assert trainer.store.load_latest()[1]['algorithm']['env_steps'] == 52 == trainer.algorithm.env_steps
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_a_second_request_stops_at_once(tmp_path, make_trainer):
    before = signal.getsignal(signal.SIGINT)
    trainer = make_trainer(tmp_path, bombed(13, interrupt))  # all four games ask
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert trainer.algorithm.env_steps == 48
    assert signal.getsignal(signal.SIGINT) is before


def test_a_request_in_the_last_step_leaves_the_evaluation_to_the_resumed_run(tmp_path, make_trainer):
    asked = []
    make_env = bombed(50, lambda env: asked or (asked.append(env), interrupt(env)))
    trainer = make_trainer(tmp_path, make_env, algo='dqn')
    with pytest.raises(Interrupted):
        trainer.run()
    assert asked
    assert trainer.store.steps()[-1] == 200
    again = make_trainer(tmp_path, lottery, algo='dqn')
    again.load(again.store.load_latest()[1])
    again.run()
    rows = read_metrics(tmp_path / 'metrics.jsonl')
    assert [row['step'] for row in rows if 'eval/return' in row] == [0, 80, 160, 200]


class Asks(JungleEnv):
    """Asks the run to stop in the second step."""

    steps = 0

    def step(self, action: torch.Tensor) -> GraphStep:
        self.steps += 1
        assert self.steps < 3, 'the evaluation goes on'
        if self.steps == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().step(action)


@pytest.mark.parametrize('at', [0, 80, 200])
def test_a_request_during_an_evaluation_drops_it_and_the_resumed_run_is_the_run_itself(tmp_path, make_trainer, at):
    whole, parts = (make_trainer(tmp_path / name, algo='dqn') for name in ('whole', 'parts'))
    whole.run()
    parts.make_eval_env = lambda num_envs: (
        jungle(num_envs)
        if parts.algorithm.env_steps < at
        else Asks(num_envs=num_envs, num_agents=4, num_foods=3, size=7, horizon=7)
    )
    with pytest.raises(Interrupted):
        parts.run()
    assert parts.store.load_latest()[0] == at
    again = make_trainer(tmp_path / 'parts', algo='dqn')
    again.load(again.store.load_latest()[1])
    again.run()
    assert differing(flat(whole.algorithm.state_dict()), flat(again.algorithm.state_dict())) == []
    rows, expected = (read_metrics(tmp_path / name / 'metrics.jsonl') for name in ('parts', 'whole'))
    assert untimed(rows) == untimed(expected)


def test_a_run_may_live_in_a_thread_of_its_own(tmp_path, make_trainer):
    trainer = make_trainer(tmp_path)
    thread = threading.Thread(target=trainer.run)
    thread.start()
    thread.join(60)
    assert trainer.algorithm.env_steps == 200
    assert trainer.store.steps()[-1] == 200


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, make_trainer):
    def win(env: Bomb) -> None:
        env.prize = 1e30

    trainer = make_trainer(tmp_path, bombed(35, win), algo='dgn')
    trainer.algorithm.config.__dict__['huber'] = None
    with pytest.raises(NonFiniteLossError, match='loss is NaN or infinite at gradient step'):
        trainer.run()
    assert trainer.store.steps() == [60, 120]
    weights = flat(trainer.store.load_latest()[1]['algorithm']['modules'])
    assert all(torch.isfinite(value).all() for value in weights.values())


@pytest.mark.parametrize(
    ('algo', 'prize', 'said'),
    [
        ('dqn', 1e4, r'have a mean size of [45]\.?\d*e\+03: expected about 1, .* Scale them in the environment \('),
        ('dqn', 1e-4, r'have a mean size of [45]\.?\d*e-05: expected about 1'),
        ('neurcomm', 1e4, r'.*e\+03, divided by reward_norm: .* Give --reward-norm 5e\+03 \('),
        ('dqn', 1.0, None),
        ('dqn', 0.0, None),
    ],
)
def test_rewards_of_a_scale_far_from_one_are_reported_once(tmp_path, make_trainer, capsys, algo, prize, said):
    class Rich(Lottery):
        pass

    def make() -> Trainer:
        return make_trainer(tmp_path, lambda num_envs: VectorGraphEnv(Rich, num_envs), algo, steps=600, num_envs=60)

    Rich.prize = prize
    trainer = make()
    for stop in (240, 600):  # two rewards a step: neither half has enough of them
        while trainer.algorithm.env_steps < stop:
            trainer.advance()
        trainer.save()
        trainer = make()
        trainer.load(trainer.store.load_latest()[1])
    trainer.advance()
    lines = [line for line in capsys.readouterr().err.splitlines() if 'rewards' in line]
    assert len(lines) == (said is not None)
    assert said is None or re.search(rf'^ltos: the first 1,0\d\d rewards other than 0 {said}', lines[0])


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'num_envs': 0}, r"'num_envs' must be at least 1 \(got 0\)"),
        ({'eval_every': 0}, r"'eval_every' must be at least 1 \(got 0\)"),
        ({'checkpoint_every': -5}, r"'checkpoint_every' must be at least 1 \(got -5\)"),
        ({'seed': -1}, r"'seed' must lie in \[0, 2\*\*32\) \(got -1\)"),
        ({'seed': 2**32}, r"'seed' must lie in \[0, 2\*\*32\) \(got 4294967296\)"),
        ({'seed': 1_000_000}, r"'seed' must differ from those of the evaluations, 1000000 and 1000001 \(got 1000000\)"),
        ({'seed': 8, 'eval_seed': 7}, r"'seed' must differ from those of the evaluations, 7 and 8 \(got 8\)"),
        ({'eval_seed': -1}, r"'eval_seed' must be at least 0 \(got -1\)"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


@pytest.mark.parametrize('name', ['gpu', 'meta', 'cuda:-1', ''])
def test_a_device_must_be_one_that_networks_can_live_on(name):
    with pytest.raises(ValueError, match=rf"'device' must be 'cpu', 'cuda' or 'cuda:N' \(got '{name}'\)"):
        check_device(name)


def test_a_device_must_be_there():
    check_device('cpu')
    count = torch.cuda.device_count()
    with pytest.raises(ValueError, match=rf"'device' is 'cuda:{count}', but PyTorch finds {count} CUDA devices here"):
        check_device(f'cuda:{count}')


def test_a_state_that_cannot_be_saved_is_refused_before_the_first_step(tmp_path, make_trainer):
    trainer = make_trainer(tmp_path)
    trainer.env.state_dict = lambda: {(0, 1): 'position'}
    with pytest.raises(ValueError, match=r"'state\['env'\]' needs str or int as keys \(got \(0, 1\), a tuple\)"):
        trainer.run()
    assert trainer.algorithm.env_steps == 0


def test_a_window_holds_plain_numbers():
    window = MetricWindow()
    window.add({'loss': np.float64(1.5)})
    assert [type(value) for value in window.means().values()] == [float]
