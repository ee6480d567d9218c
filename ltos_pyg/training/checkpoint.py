"""Checkpoints with checksums."""

from __future__ import annotations

import contextlib
import re
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ltos_pyg.plain import check_plain
from ltos_pyg.training.atomic import atomic_write
from ltos_pyg.training.config import RENAMED, WITHOUT_EFFECT

FORMAT = 1  # raised whenever the layout of the file changes

_NAME = re.compile(r'step_(\d+)\.pt')


class CheckpointStore:
    """The checkpoints of one run, ``step_{step:09d}.pt`` in one folder, of which the newest ``keep`` stay.

    A file is what :func:`torch.save` writes: a zip archive with a checksum (CRC-32) of each part. They are verified
    before anything is loaded, which detects truncated files and flipped bits in stored data.

    Args:
        folder: The folder of the files; created on the first save.
        keep: Number of newest files to keep, at least 1.
        fingerprint: The configuration of the state as a plain dict, stored with it.
    """

    def __init__(self, folder: Path | str, keep: int = 2, fingerprint: Mapping[str, Any] | None = None) -> None:
        if keep < 1:
            raise ValueError(f"'keep' must be at least 1 (got {keep}): the newest checkpoint always stays")
        self.folder = Path(folder)
        self.keep = keep
        self.fingerprint = _plain(fingerprint or {})

    def __repr__(self) -> str:
        return f"{type(self).__name__}('{self.folder}', keep={self.keep})"

    def steps(self) -> list[int]:
        """The steps of all checkpoint files, damaged ones included, in rising order."""
        return sorted(_steps_in(self.folder))

    def sound_steps(self) -> list[int]:
        """The steps of the valid checkpoint files, in rising order."""
        return [step for step in self.steps() if _damage(self.path(step)) is None]

    def path(self, step: int) -> Path:
        """The path of the checkpoint of ``step``."""
        return self.folder / f'step_{step:09d}.pt'

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Saves the state of ``step``; older checkpoints are deleted only after the new one is synced to disk.

        Args:
            step: The step that the state belongs to; replaces an earlier save of the same step.
            state: Nested dicts, lists, tuples, tensors, str, int, float, bool and None. Nothing else, so that loading
                it can never run code.

        Raises:
            ValueError: If the state holds anything else, or the folder has a valid checkpoint of a later step.
            OSError: As :func:`atomic_write`; all earlier checkpoints then remain.
        """
        damaged = self._later_and_damaged(step)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            path = save_file(self.path(step), step, state, self.fingerprint)
        except OSError as error:
            raise OSError(
                error.errno, f'{error.strerror} Earlier checkpoints are kept: steps {self.steps()}.'
            ) from error
        for old in [*self.steps()[: -self.keep - len(damaged)], *damaged]:
            self.path(old).unlink()
        for left_over in self.folder.glob('.step_*.pt.*.tmp'):  # of a process that was killed while it wrote
            left_over.unlink()
        return path

    def load_latest(
        self, expect: Mapping[str, Any] | None = None, older: bool = False, ignore: Collection[str] = ()
    ) -> tuple[int, dict[str, Any]] | None:
        """The newest valid checkpoint as ``(step, state)``, on the CPU; ``None`` if nothing was ever saved.

        A damaged file is skipped with a warning that names it.

        Args:
            expect: The fingerprint that the checkpoint must have; ``None`` takes any.
            older: Whether it may be of an earlier version, which lacks some fields.
            ignore: Fields that may differ, e.g. ``'train.seed'``.

        Raises:
            ValueError: If every file is damaged, or the newest valid one is not a checkpoint, or has another format or
                fingerprint. The message lists each field that differs.
        """
        steps = self.steps()
        for step in reversed(steps):
            path = self.path(step)
            try:
                content = _read(path)
            except _Damaged as damage:
                warnings.warn(f"checkpoint '{path}' is damaged ({damage}) and skipped", stacklevel=2)
            else:
                return _state_of(path, content, expect, older, ignore)
        if steps:
            raise ValueError(
                f"no checkpoint in '{self.folder}' can be loaded: expected a sound file, got {len(steps)} damaged "
                f'(steps {steps}). Restore one from a backup, or start a new run in another folder.'
            )
        return None

    def _later_and_damaged(self, step: int) -> list[int]:
        later = [other for other in self.steps() if other > step]
        sound = [other for other in later if _damage(self.path(other)) is None]
        if sound:
            raise ValueError(
                f"'step' must not lie before the checkpoints in '{self.folder}': expected at least {max(sound)}, got "
                f'{step}. Resume that run, or save to another folder.'
            )
        return later


def save_file(path: Path, step: int, state: dict[str, Any], fingerprint: Mapping[str, Any]) -> Path:
    """Saves a state in one file, atomically and as :class:`CheckpointStore` does; its folder must exist.

    Raises:
        ValueError: If the state holds anything that could not be loaded safely.
        OSError: As :func:`atomic_write`.
    """
    check_plain(state, 'state')
    content = {'format': FORMAT, 'fingerprint': _plain(fingerprint), 'step': step, 'state': state}
    return atomic_write(path, lambda file: _save(content, file))


def load_file(
    path: Path, expect: Mapping[str, Any] | None = None, older: bool = False, ignore: Collection[str] = ()
) -> tuple[int, dict[str, Any]]:
    """The state of one file as ``(step, state)``, on the CPU; see :meth:`CheckpointStore.load_latest`.

    Raises:
        ValueError: If the file is damaged, not a checkpoint, or has another format or fingerprint.
    """
    try:
        content = _read(path)
    except _Damaged as damage:
        raise ValueError(
            f"'{path}' is damaged: {damage}. Restore it from where it came, or make it again with ltos card RUN --out."
        ) from damage
    return _state_of(path, content, expect, older, ignore)


def _steps_in(folder: Path) -> Iterator[int]:
    for path in folder.glob('step_*.pt'):
        if match := _NAME.fullmatch(path.name):
            yield int(match[1])


def _save(content: dict[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(content, file)
    except RuntimeError as error:  # torch's writer raises again on close, which hides the cause
        if error.__context__ is None:
            raise
        raise error.__context__ from None


def _damage(path: Path) -> str | None:
    """The fault of a checkpoint file by the checksums of its archive; ``None`` if it is valid."""
    with path.open('rb') as file:
        try:
            with zipfile.ZipFile(file) as archive:
                bad = archive.testzip()
        except Exception as error:  # flipped bits cause many kinds of errors in zipfile
            return f'no whole archive in {path.stat().st_size:,} bytes: {" ".join(str(error).split())}'
    return None if bad is None else f"the checksum of '{bad}' does not match"


def _read(path: Path) -> Any:
    """The content of a checkpoint file; raises :class:`_Damaged` with the fault if it is damaged."""
    damage = _damage(path)
    if damage is not None:
        raise _Damaged(damage)
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # damage in the archive's directory or in pickled data
        raise _Damaged(f'{type(error).__name__}: {" ".join(str(error).split())[:200]}') from error


class _Damaged(Exception):
    pass


def _state_of(
    path: Path, content: Any, expect: Mapping[str, Any] | None, older: bool, ignore: Collection[str]
) -> tuple[int, dict[str, Any]]:
    fields = ('format', 'fingerprint', 'step', 'state')
    if not isinstance(content, dict) or not all(name in content for name in fields):
        got = f'a dict with {sorted(map(str, content))[:5]}' if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"checkpoint '{path}' was not written by a run: expected a dict with {', '.join(fields)}, got {got}. "
            f'Remove it, or restore the right file.'
        )
    if content['format'] != FORMAT:
        raise ValueError(
            f"checkpoint '{path}' has another format: expected format {FORMAT}, got {content['format']}. Load it with "
            f'the version of ltos_pyg that wrote it, or start a new run.'
        )
    if expect is not None:
        expected = _plain(expect)
        found = with_todays_names(content['fingerprint'], expected)
        differ = [said for name, said in _differences(expected, found, older=older)
                  if name not in ignore]  # fmt: skip
        if differ:
            raise ValueError(
                f"checkpoint '{path}' belongs to another config: {'; '.join(differ)}. Resume with the config "
                f'that it was saved with, or start a new run in another folder.'
            )
    return content['step'], content['state']


@contextlib.contextmanager
def state_must_fit() -> Iterator[None]:
    """Context in which a saved state is loaded; raises a ``ValueError`` if it does not fit."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        found = ' '.join(str(error).split())[:200]
        raise ValueError(
            f'the checkpoint does not fit this run: it holds the state of other networks, or of another version '
            f"({type(error).__name__}: {found}). Use the version that wrote it, see 'git_commit' in config.json, or "
            f'start a new run.'
        ) from error


def _plain(value: Any) -> Any:
    """The value with dict keys as str, sequences as lists and other types (paths, dtypes) as str."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if type(value) in (str, int, float, bool, type(None)) else str(value)


def with_todays_names(found: Any, expected: Any) -> Any:
    """A stored configuration, with the names of today for options of earlier versions."""
    if not isinstance(found, dict) or not isinstance(expected, dict):
        return found
    return {part: _renamed(options, expected.get(part), part) for part, options in found.items()}


def _renamed(options: Any, known: Any, part: str) -> Any:
    if not isinstance(options, dict) or not isinstance(known, dict):
        return options
    names, gone = RENAMED.get(part, {}), WITHOUT_EFFECT.get(part, ())
    kept = {name: value for name, value in options.items() if name in known or name not in gone}
    return {name if name in known else names.get(name, name): value for name, value in kept.items()}


def _differences(expected: Any, got: Any, where: str = '', older: bool = False) -> Iterator[tuple[str, str]]:
    if isinstance(expected, dict) and isinstance(got, dict):
        for key in sorted(got.keys() if older else expected.keys() | got.keys()):
            name = f'{where}.{key}' if where else key
            yield from _differences(expected.get(key, '(absent)'), got.get(key, '(absent)'), name, older)
    elif expected != got and not (expected != expected and got != got):  # NaN is equal to NaN here
        yield where, f"'{where}' expected {expected!r}, got {got!r}"
