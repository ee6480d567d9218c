"""Runs on a cluster: Ray, and SLURM through submitit. A run whose machine is lost is resumed on another."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ltos_pyg.experiments.experiment import Run
from ltos_pyg.experiments.runner import LOG, POLL, Planned, train_here
from ltos_pyg.training.atomic import atomic_write

RETRIES = 5  # of a Ray task whose worker died, or was killed as memory ran out
REQUEUES = 100  # of a SLURM job whose time was up
RESULTS = ('config.json', 'metrics.jsonl', 'final.json', LOG)  # what is fetched back where no folder is shared


class RayCluster:
    """Trains each run as a task of a Ray cluster, on one core. Ray restarts tasks of workers that died.

    If the machines share the folder of the runs, a restarted task resumes its run. If they do not, a restarted task
    trains its run from the start, and the results, without checkpoints, are copied back to this machine.

    Args:
        address: Address of the cluster: ``'auto'``, the cluster that runs already; ``'local'``, a new cluster on this
            machine's cores; or any address that :func:`ray.init` takes.

    Raises:
        ImportError: Without Ray (extra ``ray``).
        ValueError: If there is no such cluster.
    """

    def __init__(self, address: str) -> None:
        os.environ.setdefault('RAY_task_oom_retries', str(RETRIES))  # default: without end; read when Ray is imported
        try:
            import ray
        except ImportError as error:
            raise ImportError("'--ray' needs Ray: install it with pip install 'ltos_pyg[ray]'") from error
        self.ray = ray
        if not ray.is_initialized():
            try:
                ray.init(address=address, log_to_driver=False, configure_logging=False)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise ValueError(
                    f"found no Ray cluster at '{address}' ({error}). Start one with 'ray start --head', or use --ray "
                    f'local.'
                ) from error

    def leaves_checkpoints(self, folder: Path) -> bool:
        """Whether every machine of the cluster sees the folder."""
        ray = self.ray
        at = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        nodes = [node['NodeID'] for node in ray.nodes() if node['Alive'] and node['Resources'].get('CPU')]
        sees = ray.remote(num_cpus=0)(os.path.exists)
        with tempfile.NamedTemporaryFile(dir=folder.resolve(), prefix='.shared-') as mark:
            places = [at(node, soft=False) for node in nodes]
            return all(ray.get([sees.options(scheduling_strategy=one).remote(mark.name) for one in places]))

    def train(self, planned: Sequence[Planned]) -> Iterator[tuple[Planned, str | None]]:
        ray = self.ray
        remote = ray.remote(num_cpus=1, max_retries=RETRIES)(train_on_worker)
        with tempfile.NamedTemporaryFile(dir=planned[0].folder.parent, prefix='.shared-') as mark:
            waiting = {remote.remote(one.run, str(one.folder.resolve()), mark.name): one for one in planned}
            try:
                while waiting:
                    ended, _ = ray.wait(list(waiting), num_returns=1, timeout=POLL)
                    for task in ended:
                        one = waiting.pop(task)
                        yield one, self._result(task, one)
            finally:
                for task in waiting:
                    ray.cancel(task, force=True)

    @contextmanager
    def tasks(self, function: Callable[..., Any], arguments: Sequence[Any]) -> Iterator[Callable[[], list[str | None]]]:
        """Runs ``function(argument)`` for all arguments at the same time. Yields a function that returns the state of
        each task: ``None`` while it runs, ``''`` if it succeeded, else what went wrong."""
        ray = self.ray
        remote = ray.remote(num_cpus=1, max_retries=0)(function)
        tasks = [remote.remote(argument) for argument in arguments]

        def state(task: Any) -> str | None:
            if not ray.wait([task], timeout=0)[0]:
                return None
            try:
                ray.get(task)
            except ray.exceptions.RayError as error:
                return f'{type(error).__name__}: {str(error).splitlines()[-1]}'
            return ''

        try:
            yield lambda: [state(task) for task in tasks]
        finally:
            for task in tasks:
                ray.cancel(task, force=True)

    def _result(self, task: Any, one: Planned) -> str | None:
        """Why a task failed, or ``None``; writes the files that it sent."""
        try:
            reason, files = self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            return f'{type(error).__name__}: {str(error).splitlines()[0]}. Call the same command again to resume it.'
        for name, content in files.items():
            one.folder.mkdir(parents=True, exist_ok=True)
            atomic_write(one.folder / name, functools.partial(_put, content))
        return None if reason is None else str(reason)


def train_on_worker(run: Run, folder: str, mark: str) -> tuple[str | None, Mapping[str, bytes]]:
    """Trains a run on a worker: in ``folder`` if the worker sees the driver's ``mark`` there, else anew in a temporary
    folder. Returns why it failed, and in the second case the files of the result."""
    if Path(mark).exists():
        return train_here(run, Path(folder)), {}
    with tempfile.TemporaryDirectory(prefix='ltos_run_') as temporary:
        own = Path(temporary) / run.name
        reason = train_here(run, own)
        return reason, {name: (own / name).read_bytes() for name in RESULTS if (own / name).is_file()}


class Slurm:
    """Trains the runs as an array of SLURM jobs, through submitit. A preempted job is requeued, and resumes its run.

    Args:
        partition: The partition; ``'default'``: that of the cluster; ``'local'`` starts processes on this machine
            instead.
        logs: Folder for submitit's files, on a shared file system.
        jobs: Most jobs at once.
        hours: Time limit of a job; a run that takes longer is requeued and resumed, up to ``REQUEUES`` times.

    Raises:
        ImportError: Without submitit (extra ``slurm``).
        ValueError: If this machine belongs to no SLURM cluster.
    """

    def __init__(self, partition: str, logs: Path, jobs: int = 1, hours: float = 24.0) -> None:
        try:
            import submitit
        except ImportError as error:
            raise ImportError("'--slurm' needs submitit: install it with pip install 'ltos_pyg[slurm]'") from error
        local = partition == 'local'
        if not local and shutil.which('srun') is None:
            raise ValueError(
                f"'--slurm {partition}' must be called on a machine of a SLURM cluster: expected the command 'srun' on "
                f"the PATH (got none). Call it on the cluster's login node, or start processes here by --slurm local."
            )
        self.executor = submitit.AutoExecutor(
            folder=logs, cluster='local' if local else 'slurm', slurm_max_num_timeout=REQUEUES
        )
        self.executor.update_parameters(timeout_min=int(60 * hours), cpus_per_task=1, mem_gb=4, name='ltos')
        if not local:
            self.executor.update_parameters(slurm_array_parallelism=jobs)
        if partition not in ('local', 'default'):
            self.executor.update_parameters(slurm_partition=partition)
        self.partition = partition
        self.at_once = jobs if local else None  # SLURM limits its array itself

    def train(self, planned: Sequence[Planned]) -> Iterator[tuple[Planned, str | None]]:
        todo = list(planned)
        running: dict[Any, Planned] = {}
        try:
            while todo or running:
                free = len(todo) if self.at_once is None else self.at_once - len(running)
                batch, todo = todo[:free], todo[free:]
                running |= dict(zip(self._submit(batch), batch, strict=True))
                for job in [job for job in running if job.done()]:
                    yield running.pop(job), _reason(job)
                time.sleep(POLL)
        finally:
            for job in running:
                job.cancel()

    def _submit(self, planned: Sequence[Planned]) -> list[Any]:
        if not planned:
            return []
        from submitit.core.utils import FailedJobError

        try:
            with self.executor.batch():
                return [self.executor.submit(SlurmTask(), one.run, one.folder.resolve()) for one in planned]
        except FailedJobError as error:
            raise ValueError(
                f"SLURM refused the jobs of '--slurm {self.partition}' ({str(error).strip()}). Choose another "
                f'partition, or set what it asks for in the environment, such as SBATCH_ACCOUNT, SBATCH_QOS or '
                f'SBATCH_TIMELIMIT.'
            ) from error

    def leaves_checkpoints(self, folder: Path) -> bool:
        return True


def _reason(job: Any) -> str | None:
    """Why a job failed, or ``None``."""
    try:
        reason: str | None = job.result()
    except Exception as error:  # submitit raises what the job raised, or its own errors
        reason = f'{type(error).__name__}: {str(error).strip().splitlines()[-1]}'
    return reason


def _put(content: bytes, file: BinaryIO) -> None:
    file.write(content)


class SlurmTask:
    """One run as a job; on preemption, submitit calls :meth:`checkpoint` and requeues what that returns."""

    def __call__(self, run: Run, folder: Path) -> str | None:
        self.stop = threading.Event()
        reasons: list[str | None] = []

        def train() -> None:
            try:
                reasons.append(train_here(run, folder, self.stop))
            except Exception as error:  # of the thread, which would only print it
                reasons.append(f'{type(error).__name__}: {error}')

        self.thread = threading.Thread(target=train)
        self.thread.start()
        self.thread.join()
        return reasons[0]

    def checkpoint(self, run: Run, folder: Path) -> Any:
        """Stops the run, which saves, and asks for a new job that resumes it."""
        import submitit

        self.stop.set()
        self.thread.join()
        return submitit.helpers.DelayedSubmission(SlurmTask(), run, folder)
