"""The folder of a run: where its files are, and how options, metrics and results are read and written.

It holds ``config.json`` (options, versions, commit), ``metrics.jsonl``, ``checkpoints/`` and ``best/``, at the end
``final.json``, ``zero_shot/`` if it was evaluated in other settings, ``card.md``, pictures, and while a process trains
in it ``run.lock``. An exported policy has ``config.json`` (with the spec of the environment), ``final.json`` and
``policy.pt``, the networks that act.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltos_pyg import __version__, registry
from ltos_pyg.formatting import finite
from ltos_pyg.training.atomic import write_text
from ltos_pyg.training.config import RENAMED, WITHOUT_EFFECT, RunConfig, TrainConfig
from ltos_pyg.training.lock_file import hold_lock, is_locked
from ltos_pyg.training.logging import read_metrics

if TYPE_CHECKING:
    from ltos_pyg.graph_env import GraphEnvSpec
    from ltos_pyg.scenarios.base import Scenario
    from ltos_pyg.training.checkpoint import CheckpointStore

RENAMED_METRICS = {'selfishness': 'kept'}


class RunFolder:
    """A run folder by its path."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"{type(self).__name__}('{self.path}')"

    @property
    def config_path(self) -> Path:
        """The options of the run."""
        return self.path / 'config.json'

    @property
    def metrics_path(self) -> Path:
        """The logged metrics."""
        return self.path / 'metrics.jsonl'

    @property
    def final_path(self) -> Path:
        """The final evaluation."""
        return self.path / 'final.json'

    @property
    def policy_path(self) -> Path:
        """The networks of an exported policy."""
        return self.path / 'policy.pt'

    @property
    def best_path(self) -> Path:
        """The checkpoint of the best evaluation, if the run has :class:`~ltos_pyg.training.callbacks.BestModel`."""
        return self.path / 'best'

    @property
    def zero_shot_path(self) -> Path:
        """The evaluations in other settings."""
        return self.path / 'zero_shot'

    @property
    def card_path(self) -> Path:
        """The card, as ``ltos card`` writes it."""
        return self.path / 'card.md'

    @property
    def has_config(self) -> bool:
        """Whether a run was started here."""
        return self.config_path.is_file()

    @property
    def is_finished(self) -> bool:
        """Whether a run finished here."""
        return self.final_path.is_file()

    @property
    def holds_run(self) -> bool:
        """Whether the folder has a result or a checkpoint. A failed start leaves neither."""
        return self.has_config and (self.is_finished or bool(self.store().steps()))

    @property
    def lock_path(self) -> Path:
        """The lock file of the process that trains here."""
        return self.path / 'run.lock'

    @property
    def is_locked(self) -> bool:
        """Whether a process trains here now."""
        return is_locked(self.lock_path)

    # --- reading -----------------------------------------------------------------------------------------------------

    def read(self) -> dict[str, Any]:
        """``config.json`` as plain data.

        Raises:
            ValueError: If this is not a run folder, or the file is not as a run writes it.
        """
        if not self.has_config:
            raise ValueError(
                f"'{self.path}' is not a run folder: it has no config.json. Train first: ltos train SCENARIO --out "
                f'{self.path}'
            )
        plain = _read_json(self.config_path)
        missing = [key for key in ('scenario', 'algo', 'seed') if key not in plain]
        if missing:
            raise ValueError(
                f"'{self.config_path}' is not what a run writes: it must have 'scenario', 'algo' and 'seed' (got no "
                f'{missing}). Restore it, or train again.'
            )
        return plain

    def config(self, scenario: Scenario | None = None) -> RunConfig:
        """The configuration of the run; options of earlier versions are translated to their current names.

        Args:
            scenario: Its scenario, if that cannot be found by its name.

        Raises:
            ValueError: As :meth:`read`, or if a scenario, algorithm or option is unknown here.
        """
        plain, path = self.read(), self.config_path
        with _as_a_run_writes(path):
            if scenario is None:
                scenario = _find(plain, path)
            base = scenario.config(plain['algo'])
            return _config(plain, path, type(base.env), type(base.algorithm))

    def acting(self) -> tuple[RunConfig, GraphEnvSpec] | None:
        """What the network of an exported policy is built from: its configuration, and the spec of its environment.
        Neither needs the environment itself, so its module need not be there. ``None`` if no spec is stored.

        Raises:
            ValueError: As :meth:`config`.
        """
        plain, path = self.read(), self.config_path
        if 'spec' not in plain:
            return None
        from ltos_pyg.graph_env import GraphEnvSpec  # loads PyTorch

        with _as_a_run_writes(path):
            try:
                registry.check_algorithm(plain['algo'])
            except ValueError:
                registry.import_modules(plain.get('imports', ()))
            env_options = dataclasses.make_dataclass('EnvOptions', plain['env'], frozen=True)
            algorithm_options = registry.algorithm(plain['algo']).config
            return _config(plain, path, env_options, algorithm_options), GraphEnvSpec.from_dict(plain['spec'])

    def primary_metric(self) -> str:
        """The primary metric of this run."""
        plain = self.read()
        return str(plain.get('primary_metric') or _find(plain, self.config_path).primary_metric)

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of ``metrics.jsonl``, with the current names of metrics.

        Raises:
            ValueError: If there is no such file, or a line of it is damaged.
        """
        if not self.metrics_path.is_file():
            raise ValueError(
                f"'{self.path}' is not a run folder: expected 'config.json' and 'metrics.jsonl' in it, got no "
                f"'metrics.jsonl'. Name the folder that the training wrote."
            )
        return [renamed(row) for row in read_metrics(self.metrics_path)]

    def last_step(self) -> int:
        """The last logged step; 0 if nothing is logged yet, or while the file is being written."""
        try:
            with self.metrics_path.open('rb') as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 20_000))
                rows = file.read().splitlines()
            return int(json.loads(rows[-1])['step'])
        except (OSError, IndexError, KeyError, ValueError):
            return 0

    def final(self) -> dict[str, Any]:
        """The result of the run, ``final.json``, with the current names of metrics; ``null`` is read as NaN.

        Raises:
            ValueError: If the run has not ended, or the file is not as a run writes it.
        """
        if not self.is_finished:
            raise ValueError(
                f"'{self.path}' has no 'final.json': its training has not ended. Continue it with ltos train --resume."
            )
        plain = _read_json(self.final_path)
        if not isinstance(plain.get('eval'), dict):
            raise ValueError(
                f"'{self.final_path}' is not what a run writes: it has no 'eval'. Delete it and add --resume to "
                f'evaluate again.'
            )
        return plain | {'eval': {mode: renamed(_with_nan(stats)) for mode, stats in plain['eval'].items()}}

    def ranks(self) -> int:
        """How many processes train, or trained, the run together."""
        return int(self.read().get('ranks', 1))

    def zero_shot(self, name: str = '*') -> list[dict[str, Any]]:
        """The evaluations in other settings, as :meth:`write_zero_shot` wrote them, or that of one name; ``null`` is
        read as NaN."""
        stored = [_read_json(path) for path in sorted(self.zero_shot_path.glob(f'{name}.json'))]
        return [_each_eval(result, _with_nan) for result in stored]

    def store(self, config: RunConfig | None = None, rank: int = 0) -> CheckpointStore:
        """The checkpoints of the run; of the other ranks of a data-parallel run, their parts of them."""
        from ltos_pyg.training.checkpoint import CheckpointStore  # loads PyTorch, which tables and curves do without

        folder = self.path / 'checkpoints'
        folder = folder / f'rank_{rank}' if rank > 0 else folder
        return CheckpointStore(folder, fingerprint=None if config is None else config.fingerprint())

    # --- writing -----------------------------------------------------------------------------------------------------

    def write_config(self, config: RunConfig, ranks: int = 1, primary_metric: str | None = None) -> None:
        """Writes ``config.json``: the options and versions, the number of ranks, the metric by which runs are
        compared, and what the files contain that options name. A label given earlier is kept, and so is what the files
        contained then."""
        before = self.read() if self.has_config else {}
        label, files = before.get('label'), before.get('files') or digests_of(config)
        plain = config.as_dict() | ({'ranks': ranks} if ranks > 1 else {})
        plain |= {'primary_metric': primary_metric} if primary_metric else {}
        plain |= {'files': files} if files else {}
        write_json(self.config_path, ({'label': label} if label else {}) | plain | provenance())

    def relabel(self, label: str | None) -> None:
        """Changes the label in ``config.json`` and nothing else there; ``None`` keeps it."""
        if label is not None and label != self.read().get('label'):
            write_json(self.config_path, self.read() | {'label': label})

    def write_final(self, result: Mapping[str, Any]) -> None:
        """Writes ``final.json``, NaN and infinite numbers as ``null``."""
        write_json(self.final_path, finite(result))

    def write_zero_shot(self, name: str, result: Mapping[str, Any]) -> Path:
        """Writes an evaluation in other settings, ``zero_shot/NAME.json``, over an earlier one of that name. NaN and
        infinite numbers become ``null`` in the metrics, and stay in the options of the environment."""
        path = self.zero_shot_path / f'{name}.json'
        write_json(path, _each_eval(result, finite))
        return path

    def forget_results(self, zero_shot: bool) -> None:
        """Removes what was measured of a run that goes on: its final result, and with ``zero_shot`` all else."""
        if zero_shot:
            shutil.rmtree(self.zero_shot_path, ignore_errors=True)
        for path in (self.card_path, self.final_path):
            path.unlink(missing_ok=True)

    def copy_results(self, target: Path) -> None:
        """Copies the small files of a finished run: options, results, and the evaluations in ``metrics.jsonl``."""
        for path in (self.config_path, self.final_path, *sorted(self.zero_shot_path.glob('*.json'))):
            (target / path.relative_to(self.path)).parent.mkdir(parents=True, exist_ok=True)
            write_text(target / path.relative_to(self.path), path.read_text(encoding='utf-8'))
        rows = self.metrics_path.read_text(encoding='utf-8').splitlines()
        write_text(target / self.metrics_path.name, ''.join(f'{row}\n' for row in rows if '"eval/' in row))

    def clear(self) -> None:
        """Removes the files of a failed start, none of which :attr:`holds_run` counts.

        Raises:
            ValueError: If the folder has a ``config.json`` that was not written by a run.
        """
        if not self.has_config:
            return
        try:
            ours = 'train' in self.read()
        except ValueError:
            ours = False
        if not ours:
            raise ValueError(
                f"'{self.config_path}' was not written by a run, and is not changed. Choose another folder by --out."
            )
        for path in (self.config_path, self.metrics_path):
            path.unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Within this context, no other process can train in this folder. The lock of a process that died is ignored.

        A folder that is empty afterwards is removed.

        Raises:
            ValueError: If another process trains here; the message names it.
        """
        made = _make_folder(self.path)
        try:
            with hold_lock(self.lock_path, 'trains in it'):
                yield
        finally:
            for folder in made:
                with suppress(OSError):  # it is not empty
                    folder.rmdir()


def _make_folder(path: Path) -> list[Path]:
    """Creates a folder; returns the folders that it created, the innermost first."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return missing


def renamed(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics by their current names: runs of earlier versions call ``kept`` ``selfishness``."""
    plain = dict(metrics)
    for old, new in RENAMED_METRICS.items():
        plain = {name.replace(old, new): value for name, value in plain.items()}
    return plain


def _with_nan(stats: Mapping[str, Any]) -> dict[str, Any]:
    """The statistics of metrics, with NaN for the numbers that JSON has as ``null``."""
    return {
        metric: {name: math.nan if value is None else value for name, value in stat.items()}
        for metric, stat in stats.items()
    }


def _each_eval(result: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """An evaluation in other settings, with the metrics of each setting changed."""
    settings = [setting | {'eval': change(setting['eval'])} for setting in result['settings']]
    return {**result, 'settings': settings}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        plain = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(
            f"'{path}' is not what a run writes: it is not valid JSON ({error}). Restore it, or train again."
        ) from error
    if not isinstance(plain, dict):
        raise ValueError(f"'{path}' is not what a run writes: expected a JSON object (got {type(plain).__name__})")
    return plain


def _find(plain: Mapping[str, Any], path: Path) -> Scenario:
    """The scenario named in a configuration."""
    try:
        registry.check_scenario(plain['scenario'])
        registry.check_algorithm(plain['algo'])
    except ValueError:
        registry.import_modules(plain.get('imports', ()))
    try:
        return registry.scenario(plain['scenario'])
    except ValueError as error:
        reason = str(error) if str(error).endswith(('.', '?')) else f'{error}.'
        raise ValueError(
            f"'{path}': {reason} If a script or a notebook defines it, run that first, or give the environment: "
            f"ltos_pyg.load_policy('{path.parent}', env=MyEnv)"
        ) from error


def default_folder(config: RunConfig, seed: int | None = None) -> Path:
    """The default folder of a run, or of one with another seed."""
    preset = '' if config.preset == 'default' else f'-{config.preset}'
    scenario, algo = (name.rpartition(':')[2] for name in (config.scenario, config.algo))
    return Path('runs') / f'{scenario}-{algo}{preset}-seed{config.train.seed if seed is None else seed}'


@contextmanager
def _as_a_run_writes(path: Path) -> Iterator[None]:
    """Says so if the content of a ``config.json`` is not as a run writes it."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"'{path}' is not what a run writes ({type(error).__name__}: {error}). Restore it, or train again."
        ) from error


def _config(plain: dict[str, Any], path: Path, env_options: type, algorithm_options: type) -> RunConfig:
    return RunConfig(
        scenario=plain['scenario'],
        algo=plain['algo'],
        preset=plain['preset'],
        env=_from_plain(env_options, 'env', plain, path),
        algorithm=_from_plain(algorithm_options, 'algorithm', plain, path),
        train=_from_plain(TrainConfig, 'train', plain, path),
        imports=tuple(plain.get('imports', ())),
    )


def _from_plain(cls: type, part: str, config: dict[str, Any], path: Path) -> Any:
    known = {f.name for f in dataclasses.fields(cls)}
    plain = {RENAMED[part].get(name, name) if name not in known else name: v for name, v in config[part].items()}
    unknown = sorted(set(plain) - known - set(WITHOUT_EFFECT[part]))
    if unknown:
        raise ValueError(
            f"'{path}' has options that this version of ltos_pyg does not know: {', '.join(unknown)}. "
            f'Use the version named there.'
        )
    return _filled(cls, {key: value for key, value in plain.items() if key in known})


def _filled(cls: type, plain: Mapping[str, Any]) -> Any:
    """A dataclass of options from plain data; options that are dataclasses or lists are again what they were."""
    try:
        hints = typing.get_type_hints(cls)
    except (NameError, TypeError):  # annotations that cannot be read outside their module
        hints = {}
    return cls(**{name: _as_hinted(hints.get(name), value) for name, value in plain.items()})


def _as_hinted(hint: Any, value: Any) -> Any:
    kinds = (hint, *typing.get_args(hint))
    if isinstance(value, dict):
        inner = next((kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind)), None)
        return value if inner is None else _filled(inner, value)
    as_list = any(list in (kind, typing.get_origin(kind)) for kind in kinds)
    return tuple(value) if isinstance(value, list) and not as_list else value


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file atomically: it is complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2) + '\n'
    write_text(path, text)


def digests_of(config: RunConfig) -> dict[str, str]:
    """The SHA-256 of each file that an option names, by its path as it is written there."""
    fingerprint = config.fingerprint()
    values = [value for part in ('env', 'algorithm') for value in fingerprint[part].values()]
    paths = [path for value in values for path in (value if isinstance(value, list | tuple) else [value])]
    files = {path: Path(path) for path in paths if isinstance(path, str) and os.path.isfile(path)}
    return {path: _digest(file, file.stat().st_mtime_ns) for path, file in files.items()}


@functools.lru_cache
def _digest(file: Path, changed: int) -> str:
    """The SHA-256 of a file; ``changed`` says when it last was."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def provenance() -> dict[str, Any]:
    """Provenance of a result: versions, commit, command."""
    import numpy
    import torch
    import torch_geometric

    by_command = Path(sys.argv[0]).stem in ('ltos', '__main__')
    return {
        'versions': {
            'ltos_pyg': __version__,
            'python': platform.python_version(),
            'torch': torch.__version__,
            'torch_geometric': torch_geometric.__version__,
            'numpy': numpy.__version__,
        },
        'git_commit': _git_commit(),
        'command': shlex.join([*(['ltos'] if by_command else ['python', sys.argv[0]]), *sys.argv[1:]]),
    }


def _git_commit() -> str | None:
    """The commit of the checkout that this code runs from; ``None`` for an installed package."""
    try:
        _git('ls-files', '--error-unmatch', Path(__file__).name)  # a package installed in a checkout is not tracked
        return _git('describe', '--always', '--dirty', '--abbrev=40', '--exclude=*')
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*args: str) -> str:
    command = ['git', '-C', str(Path(__file__).parent), *args]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
