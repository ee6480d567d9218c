"""Metrics of a run as JSON lines, and optional sinks for the same numbers."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, SupportsFloat

from ltos_pyg.training.atomic import write_bytes

Row = dict[str, Any]


class Sink(Protocol):
    """A destination for the metrics. NaN and infinite values are passed on unchanged."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of one step."""

    def close(self) -> None:
        """Flushes, and closes files and connections."""


class MetricsLogger:
    r"""Appends rows ``{"step": S, name: value, …}`` to a file, each flushed at once.

    NaN and infinite values are written as ``null``, so that every line is valid JSON.

    Args:
        path: The file, ``metrics.jsonl``; its folder is created.
        resume_step: ``None`` starts a new file. A step :math:`S` continues an existing file from the state after
            :math:`S`: rows of later steps, which the resumed run writes again, are dropped, and so is an incomplete
            last line of a killed process (with a warning).
        sinks: More destinations.

    Raises:
        ValueError: If a new run finds rows of another one, or a line before the last is not a valid row.
    """

    def __init__(self, path: Path | str, resume_step: int | None = None, sinks: Sequence[Sink] = ()) -> None:
        self.path = Path(path)
        self.sinks = tuple(sinks)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and self.path.stat().st_size > 0:
            if resume_step is None:
                raise ValueError(
                    f"'{self.path}' already holds metrics: expected no file for a new run, got "
                    f'{self.path.stat().st_size:,} bytes. Resume that run, or choose another folder.'
                )
            _rewind(self.path, resume_step)
        self._file = self.path.open('ab', buffering=0)

    def log(self, step: int, **metrics: SupportsFloat) -> None:
        """Writes one row. Pass names with a slash as ``log(step, **{'eval/return': value})``.

        Args:
            step: The number of environment steps so far.
            metrics: Numbers, or tensors and arrays of one element.

        Raises:
            ValueError: If a value is not a number.
            OSError: If the disk is full; all earlier rows remain, without a partial row.
        """
        values = {name: _number(name, value) for name, value in metrics.items()}
        row: Row = {'step': int(step), **{name: v if math.isfinite(v) else None for name, v in values.items()}}
        self._append(json.dumps(row, allow_nan=False).encode() + b'\n')
        for sink in self.sinks:
            sink.write(int(step), values)

    def _append(self, line: bytes) -> None:
        start = self._file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            self._file.truncate(start)
            raise OSError(
                error.errno, f"cannot log to '{self.path}': {error.strerror}. Free some space, then resume the run."
            ) from error

    def close(self) -> None:
        """Closes the file and the sinks; may be called twice."""
        if not self._file.closed:
            self._file.close()
            for sink in self.sinks:
                sink.close()

    def __enter__(self) -> MetricsLogger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}('{self.path}', sinks={len(self.sinks)})"


def read_metrics(path: Path | str) -> list[Row]:
    """The rows of a metrics file. An incomplete last line (of a running or killed process) is skipped.

    Raises:
        ValueError: If any other line is not a JSON object with an integer ``step``: names the line.
    """
    return _read(Path(path))[0]


def _read(path: Path) -> tuple[list[Row], bytes]:
    """The rows, and the bytes of an unfinished last line."""
    *lines, tail = path.read_bytes().split(b'\n')
    rows = [_parse(line, path, number) for number, line in enumerate(lines, start=1)]
    if tail:
        try:
            rows.append(_parse(tail, path, len(lines) + 1))  # complete: only its newline is missing
        except ValueError:
            return rows, tail
    return rows, b''


def _parse(line: bytes, path: Path, number: int) -> Row:
    try:
        row = json.loads(line, parse_constant=_refuse)
    except ValueError as error:
        raise ValueError(
            f"'{path}' line {number} is not valid JSON ({error}): got {line[:60]!r}. Remove that line and try again."
        ) from error
    if not isinstance(row, dict) or type(row.get('step')) is not int:
        raise ValueError(
            f"'{path}' line {number} must be a JSON object with an integer 'step' (got {line[:60]!r}). Is this a "
            f'metrics file? If so, remove that line and try again.'
        )
    return row


def _refuse(name: str) -> float:
    raise ValueError(f'{name} is not JSON')


def _number(name: str, value: SupportsFloat) -> float:
    if type(value) is int:  # counts stay integers
        return value
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"metric '{name}' must be one number (got {type(value).__name__}). Take a mean or .item() first."
        ) from error


def _rewind(path: Path, step: int) -> None:
    """Truncates the file to its content after ``step``."""
    rows, tail = _read(path)
    if tail:
        warnings.warn(f"dropped an unfinished last line of '{path}' ({len(tail)} bytes)", stacklevel=3)
    kept = [json.dumps(row, allow_nan=False).encode() + b'\n' for row in rows if row['step'] <= step]
    content = b''.join(kept)
    if content != path.read_bytes():
        write_bytes(path, content)


class TensorBoardSink:
    """Writes scalars for TensorBoard (extra ``tensorboard``).

    Args:
        folder: Where the event files go.
        resume_step: The step from which a resumed run continues: TensorBoard then hides later events.
    """

    def __init__(self, folder: Path | str, resume_step: int | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "the TensorBoard log needs the package 'tensorboard': install it with "
                "pip install 'ltos_pyg[tensorboard]', or switch this log off"
            ) from error
        purge = None if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(str(folder), purge_step=purge)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds one scalar per metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, global_step=step)

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.close()


class WandbSink:
    """Sends the metrics to Weights & Biases (extra ``wandb``; needs an account, or ``mode='offline'``).

    Args:
        folder: Where wandb keeps its local files.
        project: The project to log to.
        name: The name of the run. Its id is the name and a hash of the folder, so that a resumed run continues the same
            W&B run, and one of the same name elsewhere does not.
        config: The run's config as a plain dict.
        mode: ``'online'``, ``'offline'`` or ``'disabled'``.
    """

    def __init__(
        self,
        folder: Path | str,
        project: str = 'ltos_pyg',
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        mode: str = 'online',
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError(
                "the wandb log needs the package 'wandb': install it with pip install 'ltos_pyg[wandb]', or switch "
                'this log off'
            ) from error
        place = hashlib.blake2b(str(Path(folder).resolve()).encode(), digest_size=4).hexdigest()
        self._run = wandb.init(
            dir=str(folder), project=project, name=name, id=f'{name or "run"}-{place}', resume='allow',
            config=dict(config or {}), mode=mode,
        )  # fmt: skip

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics at the step."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Blocks until everything is sent."""
        self._run.finish()
