"""Training from Python: what it returns, hooks, sinks, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, Data
from trainer_zoo import untimed

import ltos_pyg
from ltos_pyg import registry
from ltos_pyg.algos import DQN
from ltos_pyg.cli import main
from ltos_pyg.data import Snapshot
from ltos_pyg.envs import PrisonerEnv
from ltos_pyg.graph_env import SingleGraphEnv, SingleStep, VectorGraphEnv, fully_connected
from ltos_pyg.nn import Sharing
from ltos_pyg.training.callbacks import BestModel, Callback, CallbackError, CustomMetric, EarlyStopping
from ltos_pyg.training.checkpoint import CheckpointStore, save_file
from ltos_pyg.training.policy import check_graph
from ltos_pyg.training.run_folder import RunFolder

OPTIONS: dict[str, Any] = {
    'num_envs': 4,
    'learning_starts': 40,
    'eval_every': 80,
    'eval_episodes': 2,
    'final_episodes': 2,
    'hidden_channels': 8,
    'encoder_channels': (8,),
    'log_every': 40,
}


class Lights(SingleGraphEnv):
    """Two agents; action 1 pays. Its state cannot be saved."""

    num_features, num_actions, max_nodes, horizon = 2, 2, 2, 4

    def start(self) -> Snapshot:
        return Snapshot(x=torch.rand(2, 2, generator=self.generator), edge_index=fully_connected(2))

    def step(self, action: torch.Tensor) -> SingleStep:
        return SingleStep(self.start(), reward=action.float())


def train(env: Any = 'prisoner', algo: Any = 'dqn', steps: int = 160, **more: Any) -> ltos_pyg.Run:
    return ltos_pyg.train(env, algo, total_steps=steps, **{**OPTIONS, **more})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    _, state = CheckpointStore(folder / 'checkpoints').load_latest()
    return state['algorithm']['modules']['network']


def test_importing_the_package_loads_nothing_heavy():
    code = 'import sys, ltos_pyg; print([m for m in ("torch", "numpy", "tyro", "ltos_pyg.algos") if m in sys.modules])'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout == '[]\n'
    assert {'train', 'load_policy', 'register_algorithm', 'register_scenario'} <= set(dir(ltos_pyg))
    with pytest.raises(AttributeError, match="module 'ltos_pyg' has no attribute 'fly'"):
        ltos_pyg.fly  # noqa: B018


def test_python_and_the_command_line_train_the_same_weights(tmp_path):
    run = train(out=tmp_path / 'python')
    flags = ['--total-steps', '160', '--num-envs', '4', '--learning-starts', '40', '--hidden-channels', '8']
    flags += ['--encoder-channels', '8', '--eval-episodes', '2', '--final-episodes', '2']
    assert main(['train', 'prisoner', '--algo', 'dqn', '--no-media', *flags, '--out', str(tmp_path / 'cli')]) == 0
    for name, value in weights(tmp_path / 'cli').items():
        assert torch.equal(value, weights(run.folder)[name]), name


def test_training_leaves_the_number_of_threads_as_it_was(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        train(out=tmp_path / 'run', threads=2)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_run_is_asked_evaluated_and_plotted(tmp_path):
    run = train(algo='ltos', out=tmp_path / 'run')
    assert run.result['env_steps'] == 160
    assert run.metrics[-1]['step'] == 160
    policy = ltos_pyg.load_policy(tmp_path / 'run')
    batch = PrisonerEnv(num_envs=3).reset(0)
    action, sharing = policy(batch)
    assert isinstance(sharing, Sharing)
    assert (action.shape, sharing.kept.shape, sharing.given.shape) == ((6,), (6,), (6,))
    one = batch.to_data_list()[0]
    assert torch.equal(policy(one)[0], action[:2])
    assert torch.equal(policy(Data(x=one.x, edge_index=one.edge_index))[0], action[:2])
    stats = run.evaluate(episodes=3, horizon=1)
    assert (stats['length'].mean, stats['length'].count) == (1.0, 3)
    assert run.evaluate('prisoner', episodes=2)['return'].count == 2
    assert run.plot().read_bytes().startswith(b'\x89PNG')
    with pytest.raises(ValueError, match=r"cannot act in this environment: 'num_features' expected 20, got 24"):
        run.evaluate(episodes=2, length=11)


def test_a_policy_refuses_a_graph_with_other_features(tmp_path):
    policy = train(out=tmp_path / 'run').policy
    edge_index = fully_connected(2)
    with pytest.raises(ValueError, match=r"'x' expected shape \(2, 20\), as in training, got \(2, 5\)"):
        policy(Data(x=torch.zeros(2, 5), edge_index=edge_index))
    with pytest.raises(ValueError, match=r"'edge_index' must name nodes in \[0, 1\] \(got 0\.\.7\)"):
        policy(Data(x=torch.zeros(2, 20), edge_index=torch.tensor([[0], [7]])))
    with pytest.raises(ValueError, match=r"'edge_index' must have each edge once \(got 2 too many\)"):
        policy(Data(x=torch.zeros(2, 20), edge_index=edge_index.repeat(1, 2)))
    with pytest.raises(ValueError, match=r"'x' must be finite \(got 1 NaN or infinite of 40 entries, first at"):
        policy(Data(x=torch.where(torch.arange(40).view(2, 20) == 23, math.inf, 0.0), edge_index=edge_index))
    with pytest.raises(ValueError, match=r"'graph' must be a torch_geometric Data, Snapshot or Batch \(got dict\)"):
        policy({'x': 1})
    with pytest.raises(ValueError, match=r"'x' \(N, F\) and 'edge_index' \(2, E\) as tensors \(got ndarray for 'x'\)"):
        policy(Data(x=np.zeros((2, 20)), edge_index=edge_index))
    with pytest.raises(ValueError, match="'action_mask' is given, but the environment of training has none"):
        policy(Data(x=torch.zeros(2, 20), edge_index=edge_index, action_mask=torch.ones(2, 3, dtype=torch.bool)))
    with pytest.raises(ValueError, match=r"'edge_attr' is given, but the environment of training has none\. Leave it"):
        policy(Data(x=torch.zeros(2, 20), edge_index=edge_index, edge_attr=torch.zeros(2, 3)))
    assert policy(Batch.from_data_list([Data(x=torch.zeros(2, 20), edge_index=edge_index)] * 2))[0].shape == (4,)


@pytest.mark.parametrize('mask', [torch.ones(2, 3), torch.tensor([[True, True, True], [False, False, False]])])
def test_a_mask_of_actions_is_bool_and_leaves_one(mask):
    spec = dataclasses.replace(VectorGraphEnv(Lights, 1).spec, has_action_mask=True, num_actions=3)
    with pytest.raises(ValueError, match=r"'action_mask' must be torch\.bool with at least one legal action"):
        check_graph(Data(x=torch.zeros(2, 2), edge_index=fully_connected(2), action_mask=mask), spec)


def test_things_that_cannot_be_imported_keep_their_names_apart(tmp_path):
    class Wide(Lights):
        feature_scale = (0.5, 0.5)

    first = train(lambda: Lights(), out=tmp_path / 'a')
    second = train(lambda: Wide(), out=tmp_path / 'b')
    assert [RunFolder(run.folder).read()['scenario'] for run in (first, second)] == ['lambda', 'lambda_2']
    assert ltos_pyg.load_policy(first.folder).spec.feature_scale is None


def test_options_of_an_algorithm_have_its_length():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class NoLength:
        lr: float = 0.1

    with pytest.raises(ValueError, match="the options of algorithm 'short' need a field 'total_steps'"):
        ltos_pyg.register_algorithm('short', type('Short', (DQN,), {'__annotations__': {'config': NoLength}}))


def test_an_environment_of_a_script_is_trained_and_its_inexact_resume_is_said(tmp_path, capsys):
    class Local(Lights):
        pass

    run = train(Local, out=tmp_path / 'run', checkpoint_every=80)
    assert RunFolder(run.folder).read()['scenario'] == 'Local'
    said = capsys.readouterr().err
    assert said.count('this environment cannot save its state: a resumed run starts new episodes') == 1
    assert (run.result['exact_resume'], run.result['resumed_with_new_episodes_at']) == (False, [])
    for path in ('final.json', 'checkpoints/step_000000160.pt'):
        (run.folder / path).unlink()
    again = train(Local, out=tmp_path / 'run', checkpoint_every=80, resume=True)
    assert again.result['resumed_with_new_episodes_at'] == [80]
    assert 'resumed at step 80 with new episodes' in capsys.readouterr().err
    assert ltos_pyg.load_policy(run.folder, env=Local).spec.num_features == 2


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'gama': 0.5}, r"unknown option 'gama' of dqn on prisoner\. Did you mean 'gamma'\?"),
        ({'phi_tau': 0.5}, r"unknown option 'phi_tau' of dqn on prisoner\. It is an option of ltos, ltos_edge\.$"),
        ({'env_options': {'gamma': 1}}, r"unknown option 'gamma' of the environment of prisoner\. Choose from: cost"),
        ({'out': ''}, r"'out' must name a folder \(got ''\)"),
        ({'env': PrisonerEnv()}, r"'env' must be a name, a class or a function \(got an object of PrisonerEnv\)"),
        ({'callbacks': [BestModel]}, r"'callbacks' must hold instances of .*Callback \(got BestModel\)"),
        ({'env': 'prisonr'}, r"unknown scenario 'prisonr'\. .* with --import my_module\. Did you mean 'prisoner'\?"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        train(**arguments)
    assert list(tmp_path.iterdir()) == []


# --- hooks -----------------------------------------------------------------------------------------------------------


class Recorder(Callback):
    """Which hooks were called."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_start(self, trainer: Any) -> None:
        self.calls.append('start')

    def on_step(self, trainer: Any) -> None:
        self.calls.append('step')

    def on_episode_end(self, trainer: Any, episodes: dict[str, torch.Tensor]) -> None:
        self.calls.append('episode')
        assert episodes['return'].numel() > 0

    def on_evaluation(self, trainer: Any, metrics: dict[str, float]) -> None:
        self.calls.append('evaluation')
        metrics['eval/mine'] = np.float32(7.0)

    def on_end(self, trainer: Any) -> None:
        self.calls.append('end')


def test_hooks_are_called_in_order_and_change_nothing(tmp_path):
    recorder = Recorder()
    run = train(out=tmp_path / 'run', callbacks=[recorder, CustomMetric('steps', lambda t: t.algorithm.env_steps)])
    assert recorder.calls[:2] == ['start', 'evaluation']
    assert recorder.calls[-1] == 'end'
    assert recorder.calls.count('step') == 160 // 4
    assert recorder.calls.count('evaluation') == 3
    assert 'episode' in recorder.calls
    assert [row['eval/mine'] for row in run.metrics if 'eval/mine' in row] == [7.0] * 3
    assert next(row['train/steps'] for row in run.metrics if 'train/steps' in row) == sum(range(4, 41, 4)) / 10
    alone = train(out=tmp_path / 'alone')
    assert all(torch.equal(value, weights(run.folder)[name]) for name, value in weights(alone.folder).items())


def test_the_last_step_is_evaluated(tmp_path):
    run = train(out=tmp_path / 'run', steps=100, eval_every=60)
    assert [row['step'] for row in run.metrics if 'eval/return' in row] == [0, 60, 100]


def test_a_run_that_no_longer_improves_is_stopped_and_says_so(tmp_path):
    run = train(out=tmp_path / 'run', callbacks=[EarlyStopping(patience=1, metric='length', min_delta=1e9)])
    assert run.result['env_steps'] == 80
    assert run.result['stopped'] == 'no better evaluation since step 0'


def test_the_best_by_a_metric_of_which_less_is_better_is_the_least():
    class Evaluated:
        primary_metric, lower_is_better = 'reward', False
        algorithm = SimpleNamespace(env_steps=0)

    best = BestModel('attacks')
    given = [math.nan, 5.0, 1.0, 9.0]
    assert [best.improved(Evaluated, {'eval/attacks': value}) for value in given] == [False, True, True, False]


def test_names_of_the_log_are_not_recorded(tmp_path):
    class Records(Callback):
        def on_step(self, trainer: Any) -> None:
            trainer.record(updates=1.0)

    with pytest.raises(CallbackError, match="'updates' is a name of the log's own"):
        train(out=tmp_path / 'run', callbacks=[Records()])


def test_a_run_that_is_extended_keeps_nothing_that_was_measured_of_the_shorter_one(tmp_path):
    run = train(out=tmp_path / 'run')
    (run.folder / 'zero_shot').mkdir()
    (run.folder / 'card.md').write_text('old')
    train(out=run.folder, steps=240, resume=True)
    assert not (run.folder / 'zero_shot').exists()
    assert not (run.folder / 'card.md').exists()


def test_a_run_that_goes_on_keeps_nothing_that_was_measured_of_it_on_the_way(tmp_path):
    class Stop(Callback):
        def on_step(self, trainer: Any) -> None:
            raise RuntimeError('enough')

    with pytest.raises(CallbackError, match='enough'):
        train(out=tmp_path / 'run', callbacks=[Stop()])
    (tmp_path / 'run/zero_shot').mkdir()
    run = train(out=tmp_path / 'run', resume=True)
    assert not (run.folder / 'zero_shot').exists()


def test_a_finished_run_without_checkpoints_is_not_trained_anew(tmp_path):
    run = train(out=tmp_path / 'run')
    shutil.rmtree(run.folder / 'checkpoints')
    before = (run.folder / 'metrics.jsonl').read_text()
    with pytest.raises(ValueError, match='is finished and has no checkpoint from which more steps could be trained'):
        train(out=run.folder, steps=240, resume=True)
    assert (run.folder / 'metrics.jsonl').read_text() == before
    assert (run.folder / 'final.json').is_file()


def test_the_best_model_is_kept_apart(tmp_path):
    class Set(Callback):
        def on_evaluation(self, trainer: Any, metrics: dict[str, float]) -> None:
            metrics['eval/luck'] = {0: 1.0, 80: 5.0, 160: 3.0}[trainer.algorithm.env_steps]

    best = BestModel('luck')
    run = train(out=tmp_path / 'run', callbacks=[Set(), best])
    assert (best.best, best.best_step) == (5.0, 80)
    assert ltos_pyg.load_policy(run.folder, best=True).algorithm.env_steps == 80
    assert ltos_pyg.load_policy(run.folder).algorithm.env_steps == 160
    with pytest.raises(ValueError, match=r'has no best model: train with callbacks=\[BestModel\(\)\]'):
        ltos_pyg.load_policy(train(out=tmp_path / 'none').folder, best=True)


def test_a_callback_that_raises_leaves_a_run_that_continues_to_the_same_end(tmp_path):
    class Fails(Callback):
        def on_step(self, trainer: Any) -> None:
            if trainer.algorithm.env_steps == 100:
                raise KeyError('oops')

    with pytest.raises(CallbackError, match=r"Fails.on_step raised KeyError: 'oops'. The run was saved at step 100"):
        train(out=tmp_path / 'run', callbacks=[Fails()])
    assert CheckpointStore(tmp_path / 'run' / 'checkpoints').steps()[-1] == 100
    run, whole = train(out=tmp_path / 'run', resume=True), train(out=tmp_path / 'whole')
    assert all(torch.equal(value, weights(run.folder)[name]) for name, value in weights(whole.folder).items())


@pytest.mark.parametrize('late', [False, True])
def test_a_callback_whose_state_cannot_be_saved_is_named_and_all_else_is_saved(tmp_path, late):
    class Best(Callback):
        def __init__(self, kind: Any) -> None:
            self.kind, self.best = kind, None if late else kind(0)

        def on_step(self, trainer: Any) -> None:
            self.best = self.kind(trainer.algorithm.env_steps)

        def state_dict(self) -> dict[str, Any]:
            return {'best': self.best}

    with pytest.raises(CallbackError, match=r'the state of Best cannot be saved: .*got float64.*: fix the callback'):
        train(out=tmp_path / 'run', callbacks=[Best(np.float64)])
    assert CheckpointStore(tmp_path / 'run' / 'checkpoints').steps() == ([80] if late else [0])  # 80: an evaluation
    run = train(out=tmp_path / 'run', resume=True, callbacks=[Best(float)])
    whole = train(out=tmp_path / 'whole')
    assert all(torch.equal(value, weights(run.folder)[name]) for name, value in weights(whole.folder).items())


def test_a_callback_and_an_environment_that_do_not_take_their_state_are_named(tmp_path, monkeypatch):
    class Counts(Callback):
        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.count = state['count']

    train(out=tmp_path / 'run', callbacks=[Counts()])
    with pytest.raises(CallbackError, match=r"Counts does not take its state .* raised KeyError: 'count'"):
        train(out=tmp_path / 'run', resume=True, steps=200, callbacks=[Counts()])

    def refuses(env: Any, state: Any) -> None:
        raise KeyError('board')

    monkeypatch.setattr(PrisonerEnv, 'load_state_dict', refuses)
    with pytest.raises(ValueError, match=r"the environment does not take its state .* raised KeyError: 'board'"):
        train(out=tmp_path / 'run', resume=True, steps=200)


class RaisesOnce(Callback):
    """Adds a metric, and raises at the first call of a hook in a step."""

    def __init__(self, hook: str, step: int) -> None:
        self.raised = False
        setattr(self, hook, lambda trainer, *args: self.fail(trainer, step, *args))

    def fail(self, trainer: Any, step: int, metrics: Any = None) -> None:
        if trainer.algorithm.env_steps == step and not self.raised:
            self.raised = True
            raise KeyError('oops')
        if metrics is not None:
            metrics['eval/late'] = np.float32(2.0)
        trainer.record(mine=trainer.algorithm.env_steps)


@pytest.mark.parametrize(
    ('hook', 'step'),
    [
        ('on_start', 0), ('on_evaluation', 0), ('on_step', 40), ('on_episode_end', 80), ('on_step', 80),
        ('on_evaluation', 80), ('on_step', 160), ('on_evaluation', 160), ('on_end', 160),
    ],
)  # fmt: skip
def test_a_callback_that_raises_once_leaves_no_gap_in_the_metrics(tmp_path, hook, step):
    def callbacks() -> list[Callback]:
        counted = [CustomMetric(name, lambda t: t.algorithm.env_steps) for name in ('before', 'after')]
        patient = EarlyStopping(patience=3, min_delta=1e9)
        return [recorder, counted[0], patient, fails, counted[1]]

    recorder, fails = Recorder(), RaisesOnce(hook, step)
    with pytest.raises(CallbackError, match=f'RaisesOnce.{hook} raised KeyError'):
        train(out=tmp_path / 'run', callbacks=callbacks())
    run = train(out=tmp_path / 'run', callbacks=callbacks(), resume=True)
    calls, recorder = recorder.calls, Recorder()
    whole = train(out=tmp_path / 'whole', callbacks=callbacks())
    assert untimed(run.metrics) == untimed(whole.metrics)
    assert [call for call in calls if call != 'start'] == recorder.calls[1:]
    assert run.result['eval'] == whole.result['eval']


def test_states_of_callbacks_go_to_those_of_their_class(tmp_path, capsys):
    best, patient = BestModel('length'), EarlyStopping(patience=5, metric='length')
    train(out=tmp_path / 'run', steps=80, callbacks=[best, patient])
    again = [EarlyStopping(patience=5, metric='length'), CustomMetric('one', lambda _: 1.0), BestModel('length')]
    train(out=tmp_path / 'run', callbacks=again, resume=True)
    assert (again[0].waited, again[0].best_step, again[2].best_step) == (patient.waited + 1, 0, 0)
    assert 'the checkpoint has the state' not in capsys.readouterr().err
    two = [BestModel('length'), BestModel('return')]
    train(out=tmp_path / 'run', steps=240, callbacks=two, resume=True)
    said = capsys.readouterr().err
    assert 'the checkpoint has the state of 1 BestModel, and the resumed run has 2' in said
    assert 'the checkpoint has the state of 1 EarlyStopping, and the resumed run has 0' in said
    assert 'CustomMetric' not in said


def test_metrics_go_to_any_sink(tmp_path):
    class Rows:
        def __init__(self) -> None:
            self.rows: list[Any] = []
            self.closed = False

        def write(self, step: int, metrics: Any) -> None:
            self.rows.append((step, dict(metrics)))

        def close(self) -> None:
            self.closed = True

    rows, made = Rows(), []
    run = train(out=tmp_path / 'run', sinks=[rows, lambda folder, step: made.append((folder, step)) or Rows()])
    assert [step for step, _ in rows.rows] == [row['step'] for row in run.metrics]
    assert rows.closed
    assert made == [(tmp_path / 'run', None)]


def test_a_run_continues_for_longer_and_not_for_shorter(tmp_path, capsys):
    run = train(out=tmp_path / 'run', steps=100)
    longer = train(out=tmp_path / 'run', resume=True)
    assert longer.result['env_steps'] == 160
    assert 'continues from step 100 to 160 instead of 100; the schedules' in capsys.readouterr().err
    assert json.loads((run.folder / 'config.json').read_text())['algorithm']['total_steps'] == 160
    with pytest.raises(ValueError, match=r"'--total-steps' of a resumed run must be at least 160, .* \(got 100\)"):
        train(out=tmp_path / 'run', steps=100, resume=True)
    with pytest.raises(ValueError, match=r"holds a run with algo='dqn' \(got 'dgn'\)"):
        train(out=tmp_path / 'run', algo='dgn', resume=True)
    with pytest.raises(ValueError, match=r"runn' holds no run to resume: expected a config.json in it"):
        train(out=tmp_path / 'runn', resume=True)


def test_a_run_shorter_than_the_preset_waits_for_before_learning_continues_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = ['--num-envs', '4', '--eval-episodes', '2', '--final-episodes', '2', '--no-media', '--seed', '5']
    assert main(['train', 'prisoner', '--algo', 'dqn', '--total-steps', '100', '--learning-starts', '40', *quick]) == 0
    assert registry.scenario('prisoner').config('dqn').algorithm.learning_starts > 200
    again = ['train', 'prisoner', '--algo', 'dqn', '--seed=5', '--resume', '--total-steps']
    assert main([*again, '200']) == 0
    assert json.loads(Path('runs/prisoner-dqn-seed5/final.json').read_text())['env_steps'] == 200
    longer = ltos_pyg.train('prisoner', 'dqn', total_steps=240, seed=5, resume=True)
    assert longer.result['env_steps'] == 240


def test_a_resumed_run_keeps_its_seed(tmp_path, monkeypatch):
    run = train(out=tmp_path / 'run', steps=100, seed=3)
    longer = train(out=tmp_path / 'run', resume=True)
    assert (longer.result['env_steps'], longer.config.train.seed) == (160, 3)
    with pytest.raises(ValueError, match="'seed' expected 0, got 3"):
        train(out=run.folder, seed=0, resume=True)
    monkeypatch.chdir(tmp_path)
    assert str(train().folder) == str(train(resume=True).folder) == 'runs/prisoner-dqn-seed0'


def test_pictures_are_left_only_if_asked_for(tmp_path, capsys):
    assert not (train(out=tmp_path / 'a').folder / 'curve.png').exists()
    run = train(out=tmp_path / 'b', callbacks=None, media=True)
    assert {'curve.png', 'episode.gif'} <= {path.name for path in run.folder.iterdir()}


def test_options_of_message_passing_are_of_methods_with_messages(tmp_path):
    with pytest.raises(ValueError, match="unknown option 'heads' of dqn on prisoner"):
        train(heads=2, out=tmp_path / 'a')
    run = train(out=tmp_path / 'b', checkpoint_every=80)  # and a run of an earlier version, which had them, goes on
    path = run.folder / 'config.json'
    plain = json.loads(path.read_text())
    plain['algorithm'] |= {'num_layers': 1, 'heads': 2, 'conv': 'DGNConv'}
    path.write_text(json.dumps(plain))
    store = CheckpointStore(run.folder / 'checkpoints')
    step, state = store.load_latest()
    fingerprint = run.config.fingerprint()
    fingerprint['algorithm'] |= {'num_layers': 1, 'heads': 2, 'conv': 'DGNConv'}
    save_file(store.path(step), step, state, fingerprint)
    assert ltos_pyg.load_policy(run.folder).spec.num_actions == 2
    longer = train(steps=240, out=run.folder, resume=True, checkpoint_every=80)
    assert longer.result['env_steps'] == 240


def test_callbacks_may_come_from_a_generator(tmp_path):
    seen = []
    train(out=tmp_path / 'run', callbacks=(CustomMetric('n', lambda t: seen.append(1) or 0.0) for _ in range(2)))
    assert len(seen) > 0


def test_what_a_callback_adds_must_be_a_number_and_the_run_can_be_resumed(tmp_path):
    class Notes(Callback):
        def on_evaluation(self, trainer: Any, metrics: dict[str, Any]) -> None:
            metrics['eval/note'] = 'hello'

    with pytest.raises(CallbackError, match=r"Notes.on_evaluation .*metrics\['eval/note'\] must be a number"):
        train(out=tmp_path / 'run', callbacks=[Notes()])
    assert train(out=tmp_path / 'run', resume=True).result['env_steps'] == 160


def test_a_sink_may_be_a_class_that_is_made_for_the_folder(tmp_path):
    class File:
        def __init__(self, folder: Path, step: int | None) -> None:
            self.file = (folder / 'steps.txt').open('a')

        def write(self, step: int, metrics: Any) -> None:
            self.file.write(f'{step}\n')

        def close(self) -> None:
            self.file.close()

    run = train(out=tmp_path / 'run', sinks=[File])
    assert (run.folder / 'steps.txt').read_text().split() == [str(row['step']) for row in run.metrics]
