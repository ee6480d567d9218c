"""Trains the runs of experiments: finds finished runs, resumes interrupted ones, and goes on if one fails."""

from __future__ import annotations

import heapq
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ltos_pyg import registry
from ltos_pyg.experiments.experiment import MEASURING, NOT_TRAINING, Run
from ltos_pyg.experiments.processes import start_run
from ltos_pyg.experiments.speeds import expected_seconds
from ltos_pyg.progress import Progress
from ltos_pyg.training.api import with_options
from ltos_pyg.training.config import RunConfig, flags_of
from ltos_pyg.training.lock_file import hold_lock
from ltos_pyg.training.run_folder import RunFolder, digests_of

T = TypeVar('T')
LOG = 'log.txt'  # what a run printed, in its folder
POLL = 0.5  # seconds between looks at the progress of running runs


@dataclass(frozen=True)
class Planned:
    """A run with its folder, and what is left to do."""

    run: Run
    config: RunConfig
    folder: Path
    seconds: float  # expected time of the whole run on one core
    remeasure: bool = False  # whether it is finished, but its final evaluation has other episodes than asked for

    @property
    def fraction(self) -> float:
        """The part that is trained, in [0, 1]: of an interrupted run, up to the checkpoint that it goes on from."""
        run = RunFolder(self.folder)
        if run.is_finished:
            return 1.0
        step = run.last_step() if run.is_locked else max(run.store().steps(), default=0)
        return min(step / self.config.total_steps, 0.99)

    @property
    def state(self) -> str:
        """``'finished'``, ``'to measure'`` (finished, but to be measured again), ``'interrupted'`` or ``'missing'``."""
        run = RunFolder(self.folder)
        if run.is_finished:
            return 'to measure' if self.remeasure else 'finished'
        return 'interrupted' if run.holds_run else 'missing'

    @property
    def arguments(self) -> list[str]:
        """The arguments of ``ltos`` that train the run, or go on with what its folder holds."""
        arguments = self.run.arguments(self.folder)
        if not RunFolder(self.folder).holds_run:
            return arguments
        name = 'final_episodes'  # a resumed run keeps its options, so its default must be given, too
        asked = [] if name in self.run.options else flags_of(name, self.config.train.final_episodes)
        return [*arguments, *asked, '--resume']


@dataclass(frozen=True)
class Failure:
    """A run that failed, or an experiment without a report or a figure."""

    name: str
    reason: str
    log: Path | None = None  # of a run
    has_table: bool = False  # of an experiment, whether only its figure is missing


class Backend(Protocol):
    """Where runs are trained: on this machine, or on a cluster."""

    def train(self, planned: Sequence[Planned]) -> Iterator[tuple[Planned, str | None]]:
        """Trains the runs in any order; yields each as it ends, with ``None`` or why it failed."""

    def leaves_checkpoints(self, folder: Path) -> bool:
        """Whether runs that are trained in this folder leave their checkpoints there."""


def config_of(run: Run) -> RunConfig:
    """The options of a run.

    Raises:
        ValueError: If a scenario, an algorithm, a preset or an option is unknown or out of range.
    """
    registry.import_modules(run.imports)
    registry.check_scenario(run.scenario)
    registry.check_algorithm(run.algo)
    config = registry.scenario(run.scenario).config(run.algo, run.preset)
    try:
        return with_options(config, {**run.options, 'seed': run.seed, 'media': False}, {})
    except ValueError as error:
        raise ValueError(f"run '{run.name}': {error}") from error


def plan(runs: Iterable[Run], folder: Path) -> list[Planned]:
    """Lists every different run once, and checks them all before any starts.

    Raises:
        ValueError: If an option is wrong, two runs that are trained or measured differently have the same name, or a
            run in the folder was trained with other options.
    """
    planned: dict[str, Planned] = {}
    for run in runs:
        config = config_of(run)
        path = folder / run.name
        if run.name in planned:
            other = planned[run.name].run
            if _what(run) != _what(other):
                raise ValueError(
                    f"two different runs have the same name, '{run.name}', and would share a folder: {_what(run)} and "
                    f'{_what(other)}. A run is named by file names without their folders, and by classes without their '
                    f'modules: rename one of them.'
                )
            _check_measured_alike(run, config, planned[run.name].config)
            continue
        if path.exists() and not path.is_dir():
            raise ValueError(
                f"'{path}' must be the folder of a run (got a file). Move it away, or choose another folder by --runs."
            )
        _check_same(RunFolder(path), config)
        planned[run.name] = Planned(
            run, config, path, expected_seconds(run, config), _measured_otherwise(RunFolder(path), config)
        )
    return list(planned.values())


def _check_measured_alike(run: Run, config: RunConfig, other: RunConfig) -> None:
    """Raises a ``ValueError`` if one run is asked for with two different evaluations: its folder holds one result."""
    for name in MEASURING:
        values = [getattr(one.train, name) for one in (other, config)]
        if values[0] != values[1]:
            raise ValueError(
                f"run '{run.name}' is asked for twice, with {name} = {values[0]} and with {name} = {values[1]}, and "
                f'its folder holds one result. Give both the same {name}, or make them one after the other, with '
                f'another --runs.'
            )


def _what(run: Run) -> tuple[str, str, str, dict[str, object]]:
    """All that training depends on, but for the seed."""
    return run.scenario, run.algo, run.preset, run.training_options


def _check_same(run: RunFolder, config: RunConfig) -> None:
    """Raises a ``ValueError`` if the folder has a run that was trained with other options, or cannot go on with these:
    of a run that is not finished the evaluations must be the same, too."""
    if not run.holds_run:
        return
    stored = run.config()
    wanted, found = (json.loads(json.dumps(one.fingerprint())) for one in (config, stored))
    may_differ = {*NOT_TRAINING} - {'eval_seed'} if run.is_finished else ()
    digests = digests_of(config), digests_of(stored) | run.read().get('files', {})
    differ = [
        f'{part} is {getattr(stored, part)!r}, not {getattr(config, part)!r}'
        for part in ('scenario', 'algo', 'preset')
        if getattr(stored, part) != getattr(config, part)
    ]
    for part in ('env', 'algorithm', 'train'):
        for name, value in wanted[part].items():
            before = found[part].get(name)
            same = value == before
            if name in may_differ or (_alike(value, before, digests) and (run.is_finished or same)):
                continue  # a checkpoint can only be continued from with the same paths
            differ.append(f'{part}.{name} is {before!r}, ' + ('with other content' if same else f'not {value!r}'))
    if differ:
        raise ValueError(
            f"'{run.path}' was trained with other options, perhaps by another version: {'; '.join(differ)}. Move it "
            f'away to train it again, or choose another folder by --runs.'
        )


def _alike(new: Any, old: Any, digests: tuple[Mapping[str, str], Mapping[str, str]]) -> bool:
    """Whether two values of an option are equal: of files the names count, and the contents, where both are known."""
    if isinstance(new, list) and isinstance(old, list) and len(new) == len(old):
        return all(_alike(*pair, digests) for pair in zip(new, old, strict=True))
    if isinstance(new, str) and isinstance(old, str) and new in digests[0]:
        return Path(new).name == Path(old).name and digests[1].get(old, digests[0][new]) == digests[0][new]
    return bool(new == old)


def _measured_otherwise(run: RunFolder, config: RunConfig) -> bool:
    """Whether a finished run must be evaluated again: it was asked for another number of episodes than now, and has the
    checkpoint that it takes.

    Raises:
        ValueError: If its evaluations during training differ, too: its checkpoint can then not be continued from.
    """
    wanted = config.train.final_episodes
    if not run.is_finished or not run.store().steps():
        return False
    stored = run.config().train
    if stored.final_episodes == wanted:
        return False
    for name in ('eval_every', 'eval_episodes'):
        if getattr(stored, name) != getattr(config.train, name):
            raise ValueError(
                f"'{run.path}' has final_episodes={stored.final_episodes}, and to measure it again with {wanted} it "
                f'must keep its other evaluations: {name} is {getattr(stored, name)}, not '
                f'{getattr(config.train, name)}. Give the same, or choose another folder by --runs.'
            )
    return True


def train_missing(planned: Sequence[Planned], backend: Backend, quiet: bool = False) -> list[Failure]:
    """Trains what is not finished; returns the runs that failed. One bar shows all, in seconds of expected work."""
    todo = [one for one in planned if one.state != 'finished']
    if not todo:
        return []
    failures = []
    with Display(planned, todo, quiet) as display:
        for one, reason in backend.train(todo):
            display.finished += 1
            if reason is not None:
                failures.append(Failure(one.run.name, reason, one.folder / LOG))
                Progress.write(f'ltos: {one.run.name} failed: {reason}', file=sys.stderr)
    return failures


class Display:
    """One progress bar for all runs, updated by a thread that reads the run folders."""

    def __init__(self, planned: Sequence[Planned], todo: Sequence[Planned], quiet: bool) -> None:
        self.todo, self.finished = {one.folder: one for one in todo}, len(planned) - len(todo)
        self.total = len(planned)
        whole, trained = sum(one.seconds for one in todo), sum(one.seconds * one.fraction for one in todo)
        self.bar = Progress(
            total=round(whole), initial=round(trained),
            disable=quiet, smoothing=0.05, unit='s',
            bar_format='{desc}: {percentage:3.0f}% |{bar}| {elapsed} < {remaining}{postfix}',
        )  # fmt: skip

    def __enter__(self) -> Display:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.bar.close()

    def _watch(self) -> None:
        while not self._stop.wait(POLL):
            self.show()

    def show(self) -> None:
        """Draws the bar anew."""
        fractions = {folder: one.fraction for folder, one in self.todo.items()}
        running = [folder.name for folder, part in fractions.items() if 0 < part < 1]
        self.bar.set_description_str(f'{self.finished}/{self.total} runs', refresh=False)
        self.bar.set_postfix_str(', '.join(running[:2]) + (' …' if len(running) > 2 else ''), refresh=False)
        self.bar.n = round(sum(one.seconds * fractions[folder] for folder, one in self.todo.items()))
        self.bar.refresh()


@contextmanager
def one_driver(folder: Path) -> Iterator[None]:
    """Within this context, no other driver trains runs in this folder.

    Raises:
        ValueError: If another one does; the message names it.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(hold_lock(folder / 'driver.lock', 'trains runs there'))
        except OSError as error:
            why = error.strerror or error
            raise ValueError(f"'{folder}' cannot be used: {why}. Make room there, or choose another folder.") from error
        yield


def check_folder(option: str, folder: Path) -> None:
    """Raises a ``ValueError`` if there is a file where a folder is to be, or to be made."""
    file = next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None)
    if file is not None:
        raise ValueError(f"'--{option}' must be a folder (got '{folder}', and '{file}' is a file). Choose another one.")


def train_here(run: Run, folder: Path, stop: threading.Event | None = None) -> str | None:
    """Trains one run in a process of its own, on one thread; returns why it failed, or ``None``.

    An interrupted run is resumed, and so is a finished one that is to be measured over other episodes. A run that
    another process trains already, such as one that still saves after its driver was killed, is waited for.

    Args:
        run: The run.
        folder: Its folder.
        stop: Once it is set, the process is stopped, and saves.
    """
    here, stop = RunFolder(folder), stop or threading.Event()
    planned = Planned(run, config_of(run), folder, 0.0)

    def done() -> bool:
        return here.is_finished and not _measured_otherwise(here, planned.config)

    while here.is_locked and not done() and not stop.wait(POLL):
        pass
    if stop.is_set() or done():
        return None
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / LOG
    start = log.stat().st_size if log.is_file() else 0
    process = start_run(planned.arguments, log)
    join_or_stop(process, stop)
    if process.exitcode == 0 and here.is_finished:
        return None
    return why_failed(process.exitcode, log, start)


def join_or_stop(process: BaseProcess, stop: threading.Event) -> None:
    """Waits until a process ends; stops it once ``stop`` is set."""
    try:
        while process.is_alive() and not stop.is_set():
            process.join(POLL)
    finally:  # also if a cluster cancels this
        if process.is_alive():
            process.terminate()
            process.join()


def why_failed(code: int | None, log: Path, start: int = 0) -> str:
    """Why a process ended early: the signal that killed it, or its last message in its log from byte ``start`` on."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in list(signal.Signals) else f'signal {-code}'
        return f'killed by {name}' + (', usually because memory ran out' if name == 'SIGKILL' else '')
    return last_line(log, start) or f'exit code {code}'


def last_line(log: Path, start: int = 0) -> str:
    """The last message in the log of a run from byte ``start`` on, with the place where it was raised, if that follows
    it."""
    text = log.read_bytes()[start:].decode(errors='replace') if log.is_file() else ''
    lines = [line.strip() for line in text.replace('\r', '\n').splitlines() if line.strip()]
    start = -2 if lines and lines[-1].startswith('raised in ') else -1
    return ' '.join(lines[start:])[-300:]


def longest_first(planned: Sequence[Planned]) -> list[Planned]:
    """The runs in the same order of seeds, those of a seed with the most work left first.

    So no long run starts last, and then trains alone on a machine of several cores.
    """
    seeds = groupby(planned, key=lambda one: one.run.seed)
    return [one for _, runs in seeds for one in sorted(runs, key=lambda one: one.seconds * (one.fraction - 1))]


def wall_seconds(planned: Sequence[Planned], jobs: int) -> float:
    """Expected time until all runs are finished, ``jobs`` at once."""
    free = [0.0] * min(jobs, max(len(planned), 1))  # when each core is free, the first one first
    for one in longest_first(planned):
        heapq.heapreplace(free, free[0] + one.seconds * (1 - one.fraction))
    return max(free)


class ThisMachine:
    """Trains ``jobs`` runs at once, each in a process with one thread. Stopped, it stops them, and they save."""

    def __init__(self, jobs: int = 1) -> None:
        if jobs < 1:
            raise ValueError(f"'--jobs' must be at least 1 (got {jobs})")
        self.jobs = jobs

    def leaves_checkpoints(self, folder: Path) -> bool:
        return True

    def train(self, planned: Sequence[Planned]) -> Iterator[tuple[Planned, str | None]]:
        return at_once(lambda one, stop: train_here(one.run, one.folder, stop), longest_first(planned), self.jobs)


def at_once(
    do: Callable[[T, threading.Event], str | None], tasks: Iterable[T], jobs: int
) -> Iterator[tuple[T, str | None]]:
    """Calls ``do(task, stop)`` for each task in a thread, ``jobs`` at once, in their order; yields each task as it
    ends, with ``None`` or why it failed. If the caller ends early, ``stop`` is set, and what runs is waited for."""
    stop, pool = threading.Event(), ThreadPoolExecutor(jobs)
    waiting = {pool.submit(do, task, stop): task for task in tasks}
    try:
        for future in as_completed(waiting):
            try:
                yield waiting[future], future.result()
            except OSError as error:  # such as of a full disk: the others may succeed
                yield waiting[future], str(error)
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
