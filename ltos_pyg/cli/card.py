"""``ltos card``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ltos_pyg.cli.options import ImportArg, PolicyArg, parse, run_folder_of, say_loading


@dataclass
class Options:
    """Write the card of a finished run, RUN/card.md: numbers, budget, command, limits."""

    folder: PolicyArg
    out: Path | None = None
    """export the policy to this folder instead, ready for a model hub: the card, config.json, and the networks that
    act (policy.pt). load_policy, ltos evaluate, ltos watch and ltos card accept it in place of a run folder"""
    license: str | None = None
    """licence of the weights, e.g. mit"""
    imports: ImportArg = ()


def main(args: Sequence[str]) -> int:
    """Writes the card, or the folder."""
    options = parse(Options, args, 'ltos card')
    run_folder_of(options.folder)  # before PyTorch is loaded, which takes seconds
    say_loading()
    from ltos_pyg import registry
    from ltos_pyg.training.card import export_policy, write_card

    registry.import_modules(options.imports)
    if options.out is None:
        print(f'wrote {write_card(options.folder, options.license)}')
    else:
        print(f'wrote {export_policy(options.folder, options.out, options.license)}')
    return 0
