"""What importing and first using the layers costs, in processes of their own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ltos_pyg

PACKAGE = Path(ltos_pyg.__file__).parent
USE = """
import torch
from ltos_pyg.nn import DGNConv, kernels
graph = torch.arange(64).repeat_interleave(20)
edge_index = torch.stack([(graph + torch.arange(1280) % 20 + 1) % 64, graph])
assert edge_index.size(1) >= kernels.MIN_EDGES
torch.manual_seed(0)
conv, x = DGNConv(5, 8, 2), torch.randn(64, 5)
kernel = conv(x, edge_index)
kernels.MIN_EDGES = 10**9
assert torch.allclose(kernel, conv(x, edge_index), atol=1e-5)
"""


def run(code, **kwargs):
    command = [sys.executable, '-W', 'ignore', '-c', code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **kwargs)
    assert done.returncode == 0, done.stderr
    return done


def test_nn_needs_neither_gymnasium_nor_numba_nor_matplotlib():
    run(
        'import sys\n'
        "blocked = 'gymnasium', 'numba', 'matplotlib', 'tyro', 'tensorboard', 'pettingzoo'\n"
        'sys.modules.update(dict.fromkeys(blocked))\n'  # None: an import fails (PyG tries numba, and goes on without)
        'import torch, ltos_pyg.nn\n'
        'assert not [m for m in sys.modules if m.split(".")[0] in blocked and sys.modules[m]]\n'
        'assert not [m for m in sys.modules if m.startswith("ltos_pyg.") and not m.startswith("ltos_pyg.nn")]\n'
        'ltos_pyg.nn.DGN(5, 3)(torch.randn(4, 5), torch.tensor([[0], [1]])).sum().backward()\n'
    )


def test_layers_and_adapters_load_no_extras_that_pyg_does_not_load_itself():
    run(
        'import sys, torch_geometric.nn\n'
        'before = set(sys.modules)\n'
        'import ltos_pyg.nn, ltos_pyg.graph_env, ltos_pyg.testing\n'
        'new = {name.split(".")[0] for name in set(sys.modules) - before}\n'
        'extras = {"gymnasium", "numba", "matplotlib", "tyro", "tensorboard", "pettingzoo", "mpe2", "magent2"}\n'
        'assert not new & extras, new & extras\n'
    )


def test_without_numba_large_graphs_run_in_plain_pytorch_and_say_so():
    code = 'import sys\nsys.modules["numba"] = None\nimport warnings\nwarnings.simplefilter("always")\n' + USE
    assert 'Numba is missing: DGNConv runs in plain PyTorch' in run(code).stderr


@pytest.fixture
def package_copy(tmp_path):
    """The package at a place of its own, without anything compiled."""
    shutil.copytree(PACKAGE, tmp_path / 'ltos_pyg', ignore=shutil.ignore_patterns('__pycache__'))
    return tmp_path


def environment(root, **more):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(('NUMBA_', 'XDG_', 'PYTHON'))}
    return {**clean, 'PYTHONPATH': str(root), 'PYTHONDONTWRITEBYTECODE': '1', **more}


def compiled_files(folder):
    return sorted(path.name for path in Path(folder).rglob('kernels_numba.attention_*.nbc'))


@pytest.mark.slow
def test_two_processes_may_compile_at_once(package_copy):
    env = environment(package_copy)
    both = [subprocess.Popen([sys.executable, '-W', 'ignore', '-c', USE], env=env, cwd=package_copy) for _ in range(2)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    files = compiled_files(package_copy)
    assert len(files) == 1  # only the forward pass was used
    run(USE, env=env, cwd=package_copy)
    assert compiled_files(package_copy) == files  # taken from there, not compiled again


@pytest.mark.slow
def test_a_package_that_cannot_be_written_to(package_copy):
    """The user's own cache is taken then; and where that cannot be written either, each process compiles."""
    (package_copy / 'ltos_pyg' / 'nn' / '__pycache__').write_text('no folder')  # so that root cannot write there either
    home = package_copy / 'home'
    home.mkdir()
    run(USE, env=environment(package_copy, HOME=str(home)), cwd=package_copy)
    assert len(compiled_files(home)) == 1
    (package_copy / 'not_a_folder').write_text('no folder')
    run(USE, env=environment(package_copy, HOME=str(package_copy / 'not_a_folder')), cwd=package_copy)
