from __future__ import annotations

import runpy
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / 'examples' / '04_your_own_environment.py'


def test_the_example_runs_and_shows_what_it_says(capsys):
    runpy.run_path(str(EXAMPLE))['main'](['--steps', '30'])
    checked, *steps = capsys.readouterr().out.splitlines()
    assert checked == 'Fireflies keeps the contract.'
    assert len(steps) == 30
    assert len({line.split('fireflies ')[1].split(']')[0] for line in steps}) > 10  # they come and go
    assert sum('True' in line for line in steps) >= 1  # and nights end
