"""The site keeps up with the code: a page per algorithm, and each metric of an environment on its page."""

import json
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ltos_pyg import registry
from ltos_pyg.algos import ALGORITHMS
from ltos_pyg.cli.options import parse
from ltos_pyg.cli.reproduce import Options as Reproduce
from ltos_pyg.cli.train import parse_options, read_head
from ltos_pyg.envs import DilemmasEnv, JungleEnv, PrisonerEnv, TrafficConfig
from ltos_pyg.envs.traffic import make_traffic
from ltos_pyg.experiments.catalogue import EXPERIMENTS, TABLE3
from ltos_pyg.experiments.statistics import iqm
from ltos_pyg.training.metrics import MEASURES, OWN_METRICS

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


def commands(name: str) -> list[list[str]]:
    """The arguments of ``ltos`` on the page of a method."""
    block = re.findall(r'## The command\n\n```bash\n(.*?)```', page(f'methods/{name}.md'), re.DOTALL)[0]
    return [shlex.split(line, comments=True)[1:] for line in block.splitlines()]


@pytest.mark.parametrize('name', ALGORITHMS)
def test_the_commands_of_a_method_make_its_rows_and_one_of_them_is_that_of_a_kept_run(name):
    kept = []
    for command, *args in commands(name):
        if command == 'reproduce':
            options = parse(Reproduce, args, 'ltos reproduce')
            for known in options.names:  # raises if it has no method of that name
                methods = EXPERIMENTS[known].limited(None, options.only, None).methods
                assert name in [method.algo for method in methods]
        else:
            head = read_head(args)
            parse_options(registry.scenario(head.scenario).config(head.algo, head.preset or 'default'), args)
            run = DOCS / 'results/runs' / Path(head.out or 'none').name
            if run.is_dir():
                told = json.loads((run / 'config.json').read_text(encoding='utf-8'))['command']
                kept.append(told.split() == ['ltos', command, *args])
    assert kept == [True]


def test_the_tables_of_the_results_are_those_of_the_kept_runs():
    """A table under ``ltos reproduce NAME`` has the rows of ``docs/results/tables/NAME/table.md`` that were run."""
    tables = re.findall(r'^`ltos reproduce (sharing-\S+)`.*\n\n((?:\|.*\n)+)', page('results.md'), re.MULTILINE)
    assert len(tables) >= 8
    for name, shown in tables:
        report = page(f'results/tables/{name}/table.md')
        first = report[report.index('\n|') :].strip().split('\n\n')[0]
        kept = [line for line in first.splitlines() if ' not run ' not in line]
        assert shown.splitlines() == kept, f'docs/results.md: copy the rows of {name}'


def ends(pattern: str) -> dict[str, dict]:
    """The final evaluations of the kept runs, by name."""
    return {
        path.parent.name: json.loads(path.read_text(encoding='utf-8'))['eval']
        for path in sorted((DOCS / 'results/runs').glob(f'{pattern}/final.json'))
    }


def test_how_often_a_constant_beats_the_learned_weights_of_its_run_is_as_the_results_say():
    learned = {
        name: end
        for pattern in ('*-ltos-seed*', '*-ltos_edge-seed*')
        for name, end in ends(pattern).items()
        if 'constant' in end
        and not name.startswith('traffic')  # there an evaluation is one episode, the same each time
    }
    better = {}
    for name, end in learned.items():
        phi, constant = end.get('phi', end['policy'])['return'], end['constant']['return']
        error = sum(stat['std'] ** 2 / stat['count'] for stat in (phi, constant)) ** 0.5
        if constant['mean'] - phi['mean'] > 1.5 * error:
            better[name] = round((constant['mean'] - phi['mean']) / error, 1)
    assert better == {}
    said = f'in none of {len(learned)} learned runs (games'
    assert said in page('results.md')


METHODS = {
    'LToS': 'ltos', 'LToS-edge (ours)': 'ltos_edge', 'fixed LToS': 'fixed_ltos', 'QMIX': 'qmix', 'IP': 'ip',
    'DQN': 'dqn', 'DGN': 'dgn', 'NeurComm': 'neurcomm', 'ConseNet': 'consenet', 'LIO': 'lio',
}  # fmt: skip
WITH_CONTROL = METHODS | {'fixed LToS, edge critic': 'fixed_ltos-critic=edge-kept=uniform'}


def test_the_numbers_of_the_papers_claims_are_those_of_the_sections_below():
    text = page('results.md').partition("## The paper's claims, one by one")[2]
    claims, _, rest = text.partition('## How to read the tables')
    found = [row.rpartition(' | ')[2] for row in claims.splitlines() if row.startswith('| ')][1:]
    numbers = {number for row in found for number in re.findall(r'\d\.\d+', row)}
    assert len(found) == 8
    assert len(numbers) > 10
    assert {number for number in numbers if not re.search(rf'(?<![\d.]){re.escape(number)}(?!\d)', rest)} == set()


def test_the_table_of_all_methods_on_the_jungle_is_that_of_the_kept_runs():
    text = page('results.md').partition('### All methods')[2].partition('\n- ')[0]
    rows = [
        [cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines() if line.startswith('| ')
    ]
    shown = {row[0]: row[1:] for row in rows[1:]}
    assert set(shown) == {*METHODS, 'fixed LToS (uniform)'} - {'fixed LToS'}
    for label, (seeds, *numbers, each) in shown.items():
        runs = ends(f'jungle-{METHODS[label.removesuffix(" (uniform)")]}-seed1[0-9]').values()
        assert int(seeds.split()[0]) == len(runs), label
        assert each.split() == [f'{end["policy"]["reward"]["mean"]:.3f}' for end in runs], label
        assert numbers[0] == f'{iqm(np.array([end["policy"]["reward"]["mean"] for end in runs])):.3f}'
        for name, number in zip(('attacks', 'food'), numbers[2:], strict=True):
            mean = sum(end['policy'][name]['mean'] for end in runs) / len(runs)
            assert float(number) == pytest.approx(mean, abs=0.51 * 10 ** -len(number.partition('.')[2])), (label, name)


def test_the_table_of_figures_5_and_6_is_that_of_the_kept_runs():
    lines = page('results.md').partition('### Figures 5 and 6')[2].partition('\n\n###')[0].splitlines()
    header, _, *rows = [[c.strip() for c in line.strip('|').split('|')] for line in lines if line.startswith('|')]
    assert len(rows) >= 4
    for row in rows:
        name, _, number = row[0].partition(',')[0].partition(' = ')
        n = int(number)
        options = {'k': f'-neighbours={n}', 'N': '' if n == 20 else f'-num_agents={n}-num_foods={3 * n // 5}'}[name]
        shown = {label: cell.split() for label, cell in zip(header, row, strict=True) if label in WITH_CONTROL}
        assert any(shown.values())
        for label, numbers in shown.items():
            runs = ends(f'jungle{options}-{WITH_CONTROL[label]}-seed1[0-9]').values()
            assert numbers == [f'{end["policy"]["reward"]["mean"]:.3f}' for end in runs], (row[0], label)


def test_runs_with_both_replays_are_the_same_while_nothing_is_forgotten():
    differ, pairs = [], 0
    for long in sorted((DOCS / 'results/runs').glob('jungle-*replay_size=120000-*')):
        rows = []
        for run in (long, long.with_name(long.name.replace('replay_size=120000-', ''))):
            text = (run / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()
            rows.append([row for row in map(json.loads, text) if row['step'] <= 40_000])
        pairs += 1
        if rows[0] != rows[1]:
            differ.append(long.name)
    assert pairs >= 12
    assert differ == ['jungle-neighbours=8-replay_size=120000-ltos-seed11']


def test_the_table_of_zero_shot_offers_is_that_of_the_kept_runs():
    text = page('results.md').partition('`ltos reproduce zero-shot-offers`')[2].partition('\n\n**')[0]
    shown = [line.split(' | ')[2:] for line in text.splitlines() if line.startswith(('| LToS', '| trained control'))]
    report = page('results/tables/zero-shot-offers/table.md')
    kept = [line.split(' | ')[3:] for line in report.splitlines() if line.startswith('| ')][2:6]
    assert len(shown) == 4
    assert shown == kept


PLAYED_WITH = {
    'as trained': None, '10 agents': {'num_agents': 10}, '50 agents': {'num_agents': 50},
    '100 agents': {'num_agents': 100}, 'a board of 20 x 20': {'size': 20}, 'a board of 40 x 40': {'size': 40},
    '6 foods': {'num_foods': 6}, '24 foods': {'num_foods': 24}, '1 neighbour': {'neighbours': 1},
    '5 neighbours': {'neighbours': 5}, '8 neighbours': {'neighbours': 8},
    'neighbours within 9 cells': {'graph': 'radius'},
}  # fmt: skip


def played_with(options: dict[str, Any] | None, run: Path) -> list[float]:
    """The reward of a kept run in a setting, or as trained; empty if it was not played there."""
    if options is None:
        return [json.loads((run / 'final.json').read_text())['eval']['policy']['reward']['mean']]
    results = [json.loads(path.read_text()) for path in sorted((run / 'zero_shot').glob('*.json'))]
    settings = [setting for result in results for setting in result['settings']]
    return [setting['eval']['reward']['mean'] for setting in settings if setting['options'] == options]


def test_the_table_of_zero_shot_jungle_is_that_of_the_kept_runs():
    lines = page('results.md').partition('`ltos reproduce zero-shot-jungle`')[2].partition('\n- ')[0].splitlines()
    header, _, *rows = [[c.strip() for c in line.strip('|').split('|')] for line in lines if line.startswith('|')]
    assert [row[0] for row in rows] == list(PLAYED_WITH)
    for label, *cells in rows:
        for method, cell in zip(header[1:], cells, strict=True):
            runs = [DOCS / f'results/runs/jungle-{WITH_CONTROL[method]}-seed{seed}' for seed in (10, 11)]
            values = [value for run in runs for value in played_with(PLAYED_WITH[label], run)]
            assert cell == ' '.join(f'{value:.3f}' for value in values), (label, method)


@pytest.mark.slow
def test_the_controls_of_zero_shot_offers_are_those_of_the_example():
    example = runpy.run_path(str(DOCS.parent / 'examples/05_dilemmas_reference.py'))
    columns = zip(*(found for _, *found in example['controls'](50)), strict=True)
    shown = [line.strip('|').split(' | ')[1:] for line in page('results.md').splitlines() if '| control: ' in line]
    assert [[cell.strip() for cell in row] for row in shown] == [[f'{v:.3f}' for v in column] for column in columns]


@pytest.mark.parametrize(('row', 'folder'), [('| mean square |', 'runs'), ('| Huber ', 'before_mean_square')])
def test_the_table_of_the_critics_losses_is_that_of_the_kept_runs(row, folder):
    (line,) = [line for line in page('results.md').splitlines() if line.startswith(row)]
    early, attacks, late = (cell.split() for cell in line.strip('|').split('|')[1:])
    for seed in range(10, 15):
        run = DOCS / 'results' / folder / f'jungle-ltos-seed{seed}'
        rows = [json.loads(text) for text in (run / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()]
        (at,) = [found for found in rows if 'eval/reward' in found and 60_000 <= found['step'] < 62_000]
        end = json.loads((run / 'final.json').read_text(encoding='utf-8'))['eval']['policy']['reward']['mean']
        found = (f'{at["eval/reward"]:.3f}', f'{at["eval/attacks"]:.2f}', f'{end:.3f}')
        assert found == (early[seed - 10], attacks[seed - 10], late[seed - 10])


def test_the_second_halves_of_learned_and_frozen_runs_on_the_jungle_are_those_of_the_kept_runs():
    def means(row: str) -> list[float]:
        found = []
        for seed in range(10, 15):
            log = DOCS / 'results/runs' / f'jungle-ltos{row}-seed{seed}/metrics.jsonl'
            rows = [json.loads(line) for line in log.read_text(encoding='utf-8').splitlines()]
            late = [row['eval/reward'] for row in rows if row['step'] >= 60_000]
            found.append(sum(late) / len(late))
        return found

    learned, frozen = means(''), means('-phi_starts=1.0')
    said = ' against '.join(' '.join(f'{mean:.2f}' for mean in row) for row in (learned, frozen))
    assert f'each learned run is above that of each frozen one ({said})' in page('results.md')
    assert min(learned) > max(frozen)


def test_no_learned_run_with_the_edge_critic_collapses_on_the_jungle_as_the_results_say():
    assert 'no evaluation of a learned run after 60,000 steps is below 0.86' in page('results.md')
    logs = sorted((DOCS / 'results/runs').glob('jungle-ltos_edge-seed1[0-9]/metrics.jsonl'))
    assert len(logs) == 5
    for log in logs:
        rows = [json.loads(line) for line in log.read_text(encoding='utf-8').splitlines()]
        late = [row['eval/reward'] for row in rows if 'eval/reward' in row and row['step'] > 60_000]
        assert min(late) > 0.855, log.parent.name


def test_the_table_of_all_methods_on_traffic_is_that_of_the_kept_runs():
    text = page('results.md').partition("### The authors' networks")[2].partition('\n- ')[0]
    rows = [
        [cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines() if line.startswith('| ')
    ]
    shown = {row[0]: row[1:] for row in rows[1:]}
    assert set(shown) == set(METHODS)
    for label, (*grid, paper_grid, duration, delay, paper_city) in shown.items():
        for net, setting, numbers, paper in (
            ('roadnet_6_6', '6x6', grid, paper_grid),
            ('roadnet_1_33', 'Shenzhen', (duration, delay), paper_city),
        ):
            runs = [end['policy'] for end in ends(f'traffic-flow=*-net={net}-{METHODS[label]}-seed1[0-9]').values()]
            assert numbers[0].split() == [f'{run["duration"]["mean"]:.1f}' for run in runs]
            assert numbers[1].split() == [f'{run["red_lights_delay"]["mean"]:.3f}' for run in runs]
            assert paper == ('' if label not in TABLE3 else f'{TABLE3[label][setting]:.2f}')


def test_the_numbers_of_the_offers_are_those_of_the_kept_runs():
    text = page('results.md').partition('| node, edge critic | learned |')[2].partition('\n\n')[0]
    for label, topology, best in (
        ('star', 'star', 0.05),
        ('preferential attachment', 'ba', 0.18),
        ('random trees', 'tree', 0.25),
    ):
        line = next(line for line in text.splitlines() if line.startswith(f'| {label} |'))
        cells = [cell.strip().split(', ') for cell in line.split('|')[2:-1]]
        start = f'dilemmas-graph=offers-topology={topology}'
        fixed = [f'{start}-fixed_ltos-critic={{}}-kept={kept}-seed*' for kept in (best, 'uniform', 'random', 1.0)]
        frozen = [f'{start}-{algo}-phi_starts=1.0-seed*' for algo in ('ltos', 'ltos_edge')]
        patterns = [[f'{start}-{algo}-seed*' for algo in ('ltos', 'ltos_edge')]]
        patterns += [[one.format(critic) for critic in ('node', 'edge')] for one in fixed]
        patterns.insert(4, frozen)
        for column, pair in zip(cells, patterns, strict=True):
            for number, pattern in zip(column, pair, strict=True):
                values = [end['policy']['optimality']['mean'] for end in ends(pattern).values()]
                assert float(number) == pytest.approx(iqm(np.array(values)), abs=0.0051), pattern
