"""README fits its screen, its Python runs, its links lead somewhere, and its table names every algorithm."""

import re
from pathlib import Path

import pytest

from ltos_pyg.algos import ALGORITHMS

ROOT = Path(__file__).parents[2]
README = (ROOT / 'README.md').read_text(encoding='utf-8')
PYTHON = re.findall(r'```python\n(.*?)```', README, re.DOTALL)


def test_it_is_at_most_5_kb():
    assert len(README.encode()) <= 5_000


@pytest.mark.parametrize('number', range(len(PYTHON)))
def test_its_python_runs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(PYTHON[number].strip().splitlines()) <= 12
    quick = PYTHON[number].replace('total_steps=6_000', 'total_steps=1_100')
    exec(compile(quick, f'README.md, block {number}', 'exec'), {})


def test_its_links_lead_to_files():
    links = [link for link in re.findall(r'\]\(([^)#]+)[^)]*\)', README) if '://' not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_algorithm_is_in_its_table():
    rows = [line for line in README.splitlines() if line.startswith('| `')]
    assert [name for name in ALGORITHMS if not any(f'`{name}`' in row for row in rows)] == []


def test_it_asks_for_the_python_that_the_package_needs():
    (needed,) = re.findall(r"python_requires='>=([\d.]+)'", (ROOT / 'setup.py').read_text(encoding='utf-8'))
    for text in (README, (ROOT / 'docs/start.md').read_text(encoding='utf-8')):
        assert re.findall(r'Python ([\d.]+) or newer', text) == [needed]
