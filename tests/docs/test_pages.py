"""The site keeps up with the code: a page per algorithm, and each metric of an environment on its page."""

import re
from pathlib import Path

import pytest
import torch

from ltos_pyg.algos import ALGORITHMS
from ltos_pyg.envs import DilemmasEnv, JungleEnv, PrisonerEnv, TrafficConfig
from ltos_pyg.envs.traffic import make_traffic
from ltos_pyg.training.evaluate import MEASURES, OWN_METRICS

DOCS = Path(__file__).parents[2] / 'docs'
ENVIRONMENTS = {
    'jungle': lambda: JungleEnv(),
    'prisoner': lambda: PrisonerEnv(),
    'dilemmas: groups': lambda: DilemmasEnv(graph='groups', horizon=1),
    'dilemmas: double_star': lambda: DilemmasEnv(graph='double_star', horizon=1),
    'dilemmas: offers': lambda: DilemmasEnv(graph='offers', horizon=1),
    'traffic': lambda: make_traffic(TrafficConfig(net=('1x1',), horizon=1)),
}


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding='utf-8')


def defined(text: str) -> set[str]:
    """The names in the first column of the tables of a page."""
    cells = [line.split('|')[1] for line in text.splitlines() if line.startswith('|')]
    return {name for cell in cells for name in re.findall(r'`([^`]+)`', cell)}


@pytest.mark.parametrize('name', ENVIRONMENTS)
def test_every_metric_of_a_scenario_is_defined_on_its_page(name):
    env = ENVIRONMENTS[name]()
    graph = env.reset(seed=0)
    step = env.step(torch.zeros(graph.num_nodes, dtype=torch.int64))
    env.close()
    metrics = {*step.info, *step.outcome}
    assert metrics
    assert metrics - defined(page(f'{name.split(":")[0]}.md')) == set()


def test_the_measures_of_sharing_are_defined():
    assert {*MEASURES, *OWN_METRICS} - defined(page('metrics.md')) == set()


@pytest.mark.parametrize('name', ALGORITHMS)
def test_every_algorithm_has_a_page_with_the_same_sections(name):
    text = page(f'methods/{name}.md')
    assert f'--algo {name} ' in text  # a command that trains it
    for section in ('Formula', "What is the paper's, what is ours", 'Can I use it?', 'The command', 'Options'):
        assert f'\n## {section}\n' in text, section
    assert f'\n{name}\n' in page('methods/index.md')


def test_the_commands_of_the_pages_name_algorithms_and_scenarios_that_exist():
    # Tutorials are left out: they train plug-ins.
    pages = [path for path in DOCS.rglob('*.md') if not {'_build', 'tutorials'} & set(path.parts)]
    text = ''.join(path.read_text(encoding='utf-8') for path in pages)
    assert set(re.findall(r'--algo ([a-z_]+)\b(?!:)', text)) - set(ALGORITHMS) == set()
    assert set(re.findall(r'ltos train ([a-z]+)\b(?![.:])', text)) == {'jungle', 'prisoner', 'dilemmas', 'traffic'}


def test_the_tables_of_the_results_are_those_of_the_kept_runs():
    """A table under ``ltos reproduce NAME`` has the rows of ``docs/results/tables/NAME/table.md`` that were run."""
    tables = re.findall(r'^`ltos reproduce (sharing-\S+)`.*\n\n((?:\|.*\n)+)', page('results.md'), re.MULTILINE)
    assert len(tables) >= 8
    for name, shown in tables:
        report = page(f'results/tables/{name}/table.md')
        first = report[report.index('\n|') :].strip().split('\n\n')[0]
        kept = [line for line in first.splitlines() if ' not run ' not in line]
        assert shown.splitlines() == kept, f'docs/results.md: copy the rows of {name}'
