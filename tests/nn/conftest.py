import sys

import pytest
import torch

from ltos_pyg.nn import kernels

torch.set_num_threads(1)  # the graphs are small: threads would only wait for each other


@pytest.fixture(autouse=True)
def own_chance():
    """PyG draws initial weights from torch's global generator: seeded here, and left as it was found."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(params=['eager', 'kernel'])
def path(request, monkeypatch):
    """The two ways in which DGNConv computes on the CPU."""
    monkeypatch.setattr(kernels, 'MIN_EDGES', 0 if request.param == 'kernel' else sys.maxsize)
    return request.param


@pytest.fixture(
    params=[
        'cpu',
        pytest.param(
            'cuda', marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')]
        ),
    ]
)
def device(request):
    return torch.device(request.param)
