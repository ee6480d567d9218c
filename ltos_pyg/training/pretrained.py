"""Trained policies that come with the package, by name: ``load_policy('jungle-ltos')``, ``pretrained:jungle-ltos``."""

from __future__ import annotations

import difflib
from pathlib import Path

FOLDER = Path(__file__).parents[1] / 'pretrained'
PREFIX = 'pretrained:'


def pretrained_names() -> list[str]:
    """Names of the policies that come with the package."""
    return sorted(path.parent.name for path in FOLDER.glob('*/policy.pt'))


def is_packaged(folder: Path) -> bool:
    """Whether a folder belongs to the package, where nothing is written."""
    return FOLDER.resolve() in folder.resolve().parents


def find_run(name: Path | str) -> Path:
    """The folder of a run or an exported policy: a folder that exists, or else a policy of the package by its name.

    ``pretrained:NAME`` is always the one of the package. Another path is returned as it is.

    Raises:
        ValueError: If it is one word and neither a folder nor a name; lists the names.
    """
    text = str(name)
    by_name = text.startswith(PREFIX)
    if not by_name and (Path(name).exists() or len(Path(name).parts) != 1):
        return Path(name)
    word, known = text.removeprefix(PREFIX), pretrained_names()
    if word in known:
        return FOLDER / word
    near = difflib.get_close_matches(word, known, 1)
    told = (
        f"no pretrained policy is called '{word}'"
        if by_name
        else f"'{text}' is not a run folder: it has no config.json. Train first: ltos train SCENARIO --out {text}"
    )
    raise ValueError(
        f'{told}. Pretrained policies: {", ".join(known)}' + (f". Did you mean '{near[0]}'?" if near else '')
    )
