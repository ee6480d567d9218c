"""Which way imports go: no module can reach itself, and each room imports from the rooms below it only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {  # each may import from those before it
    'base': [
        'ltos_pyg',
        'ltos_pyg.seeding',
        'ltos_pyg.ranges',
        'ltos_pyg.formatting',
        'ltos_pyg.progress',
        'ltos_pyg.launch',
        'ltos_pyg.jit',
    ],
    'nn': ['ltos_pyg.nn'],
    'data': ['ltos_pyg.data', 'ltos_pyg.graph_env'],  # a replay stores what an environment's step returns
    'algos': ['ltos_pyg.algos'],
    'envs': ['ltos_pyg.envs'],
    'registry': ['ltos_pyg.registry'],
    'training': ['ltos_pyg.training'],
    'viz': ['ltos_pyg.viz'],
    'scenarios': ['ltos_pyg.scenarios'],
    'experiments': ['ltos_pyg.experiments'],
    'cli': ['ltos_pyg.cli'],
}
# The one file of a lower room that stands on the scenarios: the Python way to train, as the command line does.
TOP = {'ltos_pyg.training.api': 'experiments'}


def modules() -> dict[str, Path]:
    """Every module of the package by its name."""
    found = {}
    for folder, package in ((ROOT / 'ltos_pyg', 'ltos_pyg'), (ROOT / 'envs', 'ltos_pyg.envs')):
        for path in folder.rglob('*.py'):
            parts = path.relative_to(folder).with_suffix('').parts
            if folder.name == 'ltos_pyg' and parts[0] == 'envs':  # a link of a checkout to the other folder
                continue
            name = '.'.join([package, *(part for part in parts if part != '__init__')])
            found[name] = path
    return found


MODULES = modules()


def imports(name: str) -> set[str]:
    """What a module imports when it is imported: its own lines, not those of functions or for type checkers."""
    tree = ast.parse(MODULES[name].read_text(encoding='utf-8'))
    package = name if MODULES[name].name == '__init__.py' else name.rpartition('.')[0]
    found: set[str] = set()
    pending = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split('.')[: len(package.split('.')) - node.level + 1] if node.level else []
            base = '.'.join([*above, *([node.module] if node.module else [])])
            found |= {f'{base}.{alias.name}' if f'{base}.{alias.name}' in MODULES else base for alias in node.names}
        elif isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.dump(node.test):
            pending += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return {other for other in found if other in MODULES and other != name}


def test_no_module_reaches_itself():
    graph = {name: {other for other in imports(name) if not name.startswith(f'{other}.')} for name in MODULES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, ' -> '.join([*path[path.index(name) :], name])
        if name not in done:
            for other in graph[name]:
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def room_of(name: str) -> str:
    if name in TOP:
        return TOP[name]
    fits = {room: prefix for room, prefixes in ROOMS.items() for prefix in prefixes
            if name == prefix or (prefix != 'ltos_pyg' and name.startswith(f'{prefix}.'))}  # fmt: skip
    return max(fits, key=lambda room: len(fits[room])) if fits else ''


@pytest.mark.parametrize('room', ROOMS)
def test_a_room_imports_from_the_rooms_below_it_only(room):
    order = list(ROOMS)
    for name in MODULES:
        if room_of(name) == room:
            above = {o for o in imports(name) if room_of(o) and order.index(room_of(o)) > order.index(room)}
            assert not above, f'{name} imports {sorted(above)}'
