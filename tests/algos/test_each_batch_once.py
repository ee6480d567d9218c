"""Within `act` and `update` a batch is scaled once and its edges are checked once, however many layers see it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from algos_zoo import make
from torch.utils._python_dispatch import TorchDispatchMode

from ltos_pyg.algos.base import ObservationScaler
from ltos_pyg.envs import JungleEnv
from ltos_pyg.nn import check_sharing, constant_sharing
from ltos_pyg.nn.validation import check_edge_index, trust_edges


class EdgeChecks(TorchDispatchMode):
    """Counts looks at the numbers of integer tensors."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.aminmax.default and args[0].dtype == torch.int64
        return func(*args, **(kwargs or {}))


@pytest.fixture
def scalings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The batches that were scaled."""
    seen: list[Any] = []
    scale = ObservationScaler.scale
    monkeypatch.setattr(ObservationScaler, 'scale', lambda self, graph: seen.append(graph) or scale(self, graph))
    return seen


def ready(variant: str, **options: Any) -> tuple[Any, Any]:
    """A method that can update, and the graph that it would act on."""
    env = JungleEnv(num_envs=4, num_agents=5, num_foods=4, size=8, horizon=12)
    algo = make(variant, env, **options)
    graph = env.reset(0)
    for _ in range(6):
        decision = algo.act(graph, explore=True)
        step = env.step(decision.action)
        algo.observe(graph, decision, step)
        graph = step.graph
    return algo, graph


@pytest.mark.parametrize(
    'variant', ['dgn', 'fixed_ltos edge', 'ltos search', 'ltos gradient', 'ltos_edge search', 'dqn']
)
def test_a_batch_is_scaled_once_and_its_edges_are_checked_once(variant: str, scalings: list[Any]) -> None:
    algo, graph = ready(variant, **({'phi_every': 1} if variant.startswith('ltos') else {}))
    scalings.clear()
    with EdgeChecks() as checks:
        algo.act(graph, explore=True)
    assert (len(scalings), checks.count) == (1, 1)
    scalings.clear()
    with EdgeChecks() as checks:
        algo.update()
    assert (len(scalings), checks.count) == (2, 2)  # the graphs and their successors


def test_an_update_computes_the_same_as_when_every_layer_looks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    once, _ = ready('ltos search')
    again, _ = ready('ltos search')
    again.update()
    monkeypatch.setattr(ObservationScaler, 'forward', ObservationScaler.scale)
    once.update()
    for name, module in once.modules().items():
        for a, b in zip(module.state_dict().values(), again.modules()[name].state_dict().values(), strict=True):
            assert torch.equal(a, b), name


def test_bad_edges_are_refused_at_the_top_of_act() -> None:
    algo, graph = ready('ltos search')
    graph.edge_index = graph.edge_index + 1
    with pytest.raises(ValueError, match=r"'edge_index' must lie in \[0, 19\]"):
        algo.act(graph, explore=True)


def test_edges_are_trusted_within_the_block_only() -> None:
    bad = torch.tensor([[0, 9], [1, 2]])
    with trust_edges():
        check_edge_index(bad, 3)
        with pytest.raises(ValueError, match='shape'):
            check_edge_index(bad.t()[:1], 3)
    with pytest.raises(ValueError, match=r"'edge_index' must lie in \[0, 2\]"):
        check_edge_index(bad, 3)
    with pytest.raises(RuntimeError, match='stop'), trust_edges():
        raise RuntimeError('stop')
    with pytest.raises(ValueError, match='edge_index'):
        constant_sharing(bad, 3)
    check_sharing(constant_sharing(bad[:, :1], 3), bad[:, :1], 3)


def test_another_batch_is_never_taken_for_one_that_was_seen() -> None:
    algo, graph = ready('dgn')
    others = [graph.clone() for _ in range(4)]
    for i, other in enumerate(others):
        other.x = torch.full_like(graph.x, i)
    with algo.inputs.each_batch_once(*others):
        for _ in range(2):
            for i, other in enumerate(others):
                assert torch.equal(algo.inputs(other)[0], algo.inputs.scale(others[i])[0])
    others[0].x = graph.x
    assert torch.equal(algo.inputs(others[0])[0], algo.inputs.scale(graph)[0])
