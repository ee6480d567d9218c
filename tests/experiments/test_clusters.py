"""Runs on a Ray cluster and as jobs of submitit, each with its local executor."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from ltos_pyg.cli import main
from ltos_pyg.experiments.experiment import Experiment, Method, Setting
from ltos_pyg.experiments.reproduce import reproduce
from ltos_pyg.experiments.runner import plan
from ltos_pyg.training.run_folder import RunFolder

STEPS = {'total_steps': 300, 'learning_starts': 100, 'final_episodes': 4, 'eval_episodes': 2, 'eval_every': 150}


def tiny(**options) -> Experiment:
    return Experiment(
        name='tiny', title='Tiny', seeds=1, first_seed=0, methods=(Method(label='DQN', algo='dqn'),),
        settings=(Setting(label='prisoner', scenario='prisoner', options=STEPS | options),),
    )  # fmt: skip


def wait_for_checkpoint(folder: Path) -> None:
    while not RunFolder(folder).holds_run:
        time.sleep(0.1)


@pytest.mark.slow
def test_slurm_task_resumes_after_preemption(tmp_path):
    pytest.importorskip('submitit')
    from ltos_pyg.experiments.clusters import SlurmTask

    one = plan(tiny(total_steps=20_000, checkpoint_every=200).runs(), tmp_path)[0]
    task, results = SlurmTask(), []
    thread = threading.Thread(target=lambda: results.append(task(one.run, one.folder)))
    thread.start()
    wait_for_checkpoint(one.folder)
    requeued = task.checkpoint(one.run, one.folder)
    thread.join()
    assert not RunFolder(one.folder).is_finished
    assert RunFolder(one.folder).holds_run
    step = max(RunFolder(one.folder).store().steps())
    again, arguments = requeued.function, requeued.args
    assert isinstance(again, SlurmTask)
    assert arguments == (one.run, one.folder)
    assert 0 < step < 20_000
    assert again(*arguments) is None
    assert RunFolder(one.folder).final()['env_steps'] == 20_000


def test_why_a_slurm_task_could_not_train_is_said(tmp_path):
    from ltos_pyg.experiments.clusters import SlurmTask

    one = plan(tiny().runs(), tmp_path)[0]
    one.folder.write_text('in the way')
    assert SlurmTask()(one.run, one.folder).startswith('FileExistsError: ')


@pytest.mark.slow
def test_slurm_local_executor(tmp_path):
    pytest.importorskip('submitit')
    from ltos_pyg.experiments.clusters import Slurm

    assert reproduce([tiny()], tmp_path / 'runs', tmp_path / 'out', Slurm('local', tmp_path / 'logs'), quiet=True) == []
    assert (tmp_path / 'out/tiny/table.md').is_file()


def test_a_partition_without_slurm_is_refused_by_name(tmp_path, monkeypatch, capsys):
    pytest.importorskip('submitit')
    monkeypatch.setenv('PATH', str(tmp_path))
    command = ['reproduce', 'fig3a', '--slurm', 'debug', '--runs', str(tmp_path / 'runs')]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "'--slurm debug' must be called on a machine of a SLURM cluster: expected the command 'srun'" in said
    assert 'start processes here by --slurm local' in said
    assert not (tmp_path / 'runs').exists()


def test_jobs_that_slurm_refuses_are_said_in_its_own_words(tmp_path, monkeypatch):
    pytest.importorskip('submitit')
    from ltos_pyg.experiments.clusters import REQUEUES, Slurm

    said = 'sbatch: error: Batch job submission failed: Requested time limit is invalid'
    for name, code in (('srun', 'exit 0'), ('sbatch', f'echo "{said}" >&2; exit 1')):
        (tmp_path / name).write_text(f'#!/bin/sh\n{code}\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    slurm = Slurm('debug', tmp_path / 'logs')
    assert slurm.executor._executor.max_num_timeout == REQUEUES
    assert slurm.executor._executor.parameters['partition'] == 'debug'
    assert 'partition' not in Slurm('default', tmp_path / 'logs').executor._executor.parameters
    with pytest.raises(ValueError, match=rf"refused the jobs of '--slurm debug' \({said}\). Choose .* SBATCH_ACCOUNT"):
        list(slurm.train(plan(tiny().runs(), tmp_path / 'runs')))


@pytest.fixture
def cluster():
    """A local Ray cluster of two workers."""
    ray = pytest.importorskip('ray')
    from ltos_pyg.experiments.clusters import RayCluster

    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield RayCluster('local')
    ray.shutdown()


def parent(process: int) -> int:
    return int(Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()[1])


def trainer_of(folder: Path) -> int:
    """The process that trains the run."""
    return int((folder / 'run.lock').read_text().split()[1])


def worker_of(folder: Path) -> int:
    """The Ray worker whose task the run is: the process between them is the one that runs are forked from."""
    return parent(parent(trainer_of(folder)))


@pytest.mark.slow
def test_a_killed_ray_worker_is_replaced_and_the_run_resumed(cluster, tmp_path):
    one = tiny(total_steps=20_000, checkpoint_every=200)
    folder = plan(one.runs(), tmp_path)[0].folder
    killed = []

    def kill() -> None:
        wait_for_checkpoint(folder)
        trainer, worker = trainer_of(folder), worker_of(folder)
        os.kill(worker, signal.SIGKILL)  # first, or it would report the death of the training
        os.kill(trainer, signal.SIGKILL)
        killed.append(max(RunFolder(folder).store().steps()))

    thread = threading.Thread(target=kill)
    thread.start()
    assert reproduce([one], tmp_path, tmp_path / 'out', cluster, quiet=True) == []
    thread.join()
    assert killed
    assert killed[0] < 20_000
    assert RunFolder(folder).final()['env_steps'] == 20_000
    assert '--resume' in RunFolder(folder).read()['command']


@pytest.mark.slow
def test_the_run_of_a_node_that_goes_away_is_resumed_on_another(tmp_path):
    """Two nodes of one core each. On the one that trains all of Ray is killed, as by ``ray stop --force``."""
    ray = pytest.importorskip('ray')
    from ray.cluster_utils import Cluster

    from ltos_pyg.experiments.clusters import RayCluster

    ray.shutdown()
    nodes = Cluster(initialize_head=True, head_node_args={'num_cpus': 0, 'include_dashboard': False})
    raylets = [nodes.add_node(num_cpus=1).all_processes['raylet'][0].process.pid for _ in range(2)]
    ray.init(address=nodes.address, log_to_driver=False)
    one = tiny(total_steps=40_000, checkpoint_every=1_000)
    folder = plan(one.runs(), tmp_path)[0].folder
    lost = []

    def remove() -> None:
        wait_for_checkpoint(folder)
        worker = worker_of(folder)
        raylet = parent(worker)
        os.kill(raylet, signal.SIGKILL)
        os.kill(worker, signal.SIGKILL)
        lost.append((raylet, max(RunFolder(folder).store().steps())))

    thread = threading.Thread(target=remove)
    thread.start()
    try:
        assert reproduce([one], tmp_path, tmp_path / 'out', RayCluster('auto'), quiet=True) == []
    finally:
        thread.join()
        ray.shutdown()
        nodes.shutdown()
    assert [raylet in raylets for raylet, _ in lost] == [True]
    assert lost[0][1] < 40_000
    assert RunFolder(folder).final()['env_steps'] == 40_000
    assert '--resume' in RunFolder(folder).read()['command']


@pytest.mark.slow
def test_a_run_whose_worker_always_dies_ends_as_failed(cluster, tmp_path, monkeypatch):
    from ltos_pyg.experiments import clusters

    deaths = tmp_path / 'deaths'

    def die(run, folder, mark):
        with deaths.open('a') as file:
            file.write('x')
        os._exit(1)

    monkeypatch.setattr(clusters, 'train_on_worker', die)
    assert cluster.leaves_checkpoints(tmp_path)
    ((_, reason),) = cluster.train(plan(tiny().runs(), tmp_path))
    assert 'WorkerCrashedError' in reason
    assert len(deaths.read_text()) == 1 + clusters.RETRIES


@pytest.mark.slow
def test_results_are_fetched_where_no_folder_is_shared(cluster, tmp_path, monkeypatch):
    from ltos_pyg.experiments import clusters

    elsewhere = tmp_path / 'worker'
    elsewhere.mkdir()
    remote = clusters.train_on_worker

    def far(run, folder, mark):
        import tempfile

        tempfile.tempdir = str(elsewhere)
        return remote(run, folder, '/no/such/mark')

    monkeypatch.setattr(clusters, 'train_on_worker', far)
    assert reproduce([tiny()], tmp_path / 'runs', tmp_path / 'out', cluster, quiet=True) == []
    assert (tmp_path / 'out/tiny/table.md').is_file()
    command = RunFolder(next((tmp_path / 'runs').glob('*/final.json')).parent).read()['command']
    assert str(elsewhere) in command, 'the run was not trained elsewhere'
    assert not list(elsewhere.glob('ltos_run_*'))
    assert not list((tmp_path / 'runs').glob('*/checkpoints'))


def test_without_a_shared_folder_each_call_trains_anew(tmp_path, monkeypatch):
    """The result of an earlier call could be that of another version or of other options of measurement."""
    from ltos_pyg.experiments.clusters import train_on_worker

    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    counts = []
    for episodes in (4, 6):
        run = next(iter(tiny(final_episodes=episodes).runs()))
        reason, files = train_on_worker(run, str(tmp_path / 'unseen'), '/no/such/mark')
        assert reason is None
        counts.append(json.loads(files['final.json'])['eval']['policy']['return']['count'])
    assert counts == [4, 6]
    assert not list(tmp_path.glob('ltos_run_*'))


def test_a_cluster_that_is_not_there_is_named():
    pytest.importorskip('ray')
    import subprocess

    code = 'from ltos_pyg.cli import main; raise SystemExit(main(["reproduce", "fig3a", "--ray", "auto"]))'
    ended = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1
    assert "found no Ray cluster at 'auto'" in ended.stderr
