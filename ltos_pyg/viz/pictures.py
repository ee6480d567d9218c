"""Pictures of an episode: drawn from a scenario's scenes, or by the environment's own ``render()``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch

from ltos_pyg.algos import Algorithm, Decision
from ltos_pyg.graph_env import GraphEnv
from ltos_pyg.training.evaluate import play_seeded
from ltos_pyg.viz.drawing import Frame, Scene, draw_scene, terminal_view

SceneOf = Callable[[Any, Any, Decision, str], Scene]  # from (environment, graph, decision, title)


class Pictures(Protocol):
    """How episodes of a scenario are drawn."""

    def frames(self, algorithm: Algorithm, env: GraphEnv, seed: int, steps: int | None = None) -> Iterator[Frame]:
        """The pictures (H, W, 3) uint8 of one greedy episode, or of its first ``steps`` steps."""

    def views(
        self, algorithm: Algorithm, env: GraphEnv, seed: int, steps: int | None = None, colour: bool = False
    ) -> Iterator[str]:
        """The same as text."""


class ScenePictures:
    """Draws the scene that a function returns for each step."""

    def __init__(self, scene_of: SceneOf) -> None:
        self.scene_of = scene_of

    def frames(self, algorithm: Algorithm, env: GraphEnv, seed: int, steps: int | None = None) -> Iterator[Frame]:
        return (draw_scene(scene) for scene in self.scenes(algorithm, env, seed, steps))

    def views(
        self, algorithm: Algorithm, env: GraphEnv, seed: int, steps: int | None = None, colour: bool = False
    ) -> Iterator[str]:
        return (terminal_view(scene, colour=colour) for scene in self.scenes(algorithm, env, seed, steps))

    def scenes(self, algorithm: Algorithm, env: GraphEnv, seed: int, steps: int | None = None) -> Iterator[Scene]:
        """The scenes of one greedy episode: state, actions and sharing weights at each step."""
        for graph, decision, title in _greedy_steps(algorithm, env, seed, steps):
            yield self.scene_of(env, graph, decision, title)


class RenderPictures:
    """Uses the environment's own ``render()``, which returns an RGB array (H, W, 3), text, or a list that ends with one
    of these.

    It may be a method of the :class:`~ltos_pyg.graph_env.GraphEnv`, of the first :class:`~ltos_pyg.graph_env.
    SingleGraphEnv` of the batch, or of the PettingZoo or Gymnasium environment inside.

    Raises:
        ValueError: If there is no such method, or it returns something else.
    """

    def frames(self, algorithm: Algorithm, env: GraphEnv, seed: int, steps: int | None = None) -> Iterator[Frame]:
        for shown, _ in self._shown(algorithm, env, seed, steps):
            if isinstance(shown, str):
                raise ValueError(f'{_name(env)}.render() returns text: watch it with ltos watch RUN --terminal')
            yield shown

    def views(
        self, algorithm: Algorithm, env: GraphEnv, seed: int, steps: int | None = None, colour: bool = False
    ) -> Iterator[str]:
        for shown, title in self._shown(algorithm, env, seed, steps):
            if not isinstance(shown, str):
                raise ValueError(f'{_name(env)}.render() returns pictures: watch it without --terminal')
            yield f'{title}\n{shown}'

    def _shown(self, algorithm: Algorithm, env: GraphEnv, seed: int, steps: int | None) -> Iterator[tuple[Any, str]]:
        render = renderer(env)
        if render is None:
            raise ValueError(
                f'{_name(env)} cannot be drawn: it has no method render(). Give it one that returns an RGB array '
                f'(H, W, 3) of uint8, or text.'
            )
        for _, _, title in _greedy_steps(algorithm, env, seed, steps):
            yield _checked(render(), env), title


def renderer(env: Any) -> Callable[[], Any] | None:
    """The ``render`` method for the first episode of an environment, if there is one."""
    first = env.envs[0] if getattr(env, 'envs', None) else None
    for place in (env, first, getattr(first, 'env', None)):
        if callable(getattr(place, 'render', None)):
            return place.render  # type: ignore[union-attr]
    return None


def _checked(shown: Any, env: GraphEnv) -> Any:
    if isinstance(shown, list) and shown:
        shown = shown[-1]
    if isinstance(shown, str):
        return shown
    picture = np.asarray(shown)
    if picture.ndim != 3 or picture.shape[2] not in (3, 4) or picture.dtype != np.uint8:
        got = 'None' if shown is None else f'{type(shown).__name__} {picture.dtype} of shape {picture.shape}'
        raise ValueError(
            f'{_name(env)}.render() must return an RGB array (H, W, 3) of uint8, or text (got {got}). PettingZoo and '
            f"Gymnasium environments must be made with render_mode='rgb_array'."
        )
    return picture[:, :, :3].copy()  # it may be a canvas on which the next picture is drawn


def _name(env: Any) -> str:
    first = env.envs[0] if getattr(env, 'envs', None) else env
    return type(getattr(first, 'env', first)).__name__


@torch.no_grad()
def _greedy_steps(
    algorithm: Algorithm, env: GraphEnv, seed: int, steps: int | None
) -> Iterator[tuple[Any, Decision, str]]:
    """The graph, the decision and a title for each step of one greedy episode."""
    graph = env.reset(seed)
    algorithm.reset_eval_state()
    total, played = 0.0, 0
    with play_seeded(algorithm, seed):
        while steps is None or played < steps:
            decision = algorithm.act(graph)
            yield graph, decision, f'step {played}   return {total:.2f} an agent'
            step = env.step(decision.action)
            algorithm.on_eval_step(step)
            total += float(step.reward.sum()) / max(len(step.reward), 1)
            played += 1
            if bool(step.ended.any()):
                return
            graph = step.graph


def shares(decision: Decision) -> dict[str, Any]:
    """The sharing weights of a decision, as :class:`~ltos_pyg.viz.drawing.Scene` takes them."""
    if decision.sharing is None:
        return {'given': None, 'kept': None}
    return {'given': decision.sharing.given, 'kept': decision.sharing.kept}
