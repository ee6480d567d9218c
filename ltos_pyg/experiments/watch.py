"""Episodes of a trained run, as pictures or in the terminal."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ltos_pyg.algos import Algorithm, Decision
from ltos_pyg.envs import JungleEnv, PrisonerEnv
from ltos_pyg.envs.jungle_rules import DX, DY, FIRST_ATTACK
from ltos_pyg.experiments.drawing import Scene, border, draw_scene, save_gif, save_pngs, terminal_view
from ltos_pyg.experiments.scenarios import load_config, scenario
from ltos_pyg.graph_env import GraphEnv
from ltos_pyg.training.run import load_algorithm


def watch_run(
    folder: Path, out: Path, seed: int = 2_000_000, fps: int = 8, steps: int | None = None, device: str | None = None
) -> Path:
    """Draws one greedy episode of a run, with the sharing weights as edge widths: a GIF, or a folder of PNGs."""
    frames = (draw_scene(scene) for scene in _scenes_of(folder, seed, steps, device))
    if out.suffix == '.gif':
        return save_gif(frames, out, fps)
    save_pngs(frames, out)
    return out


def show_run(
    folder: Path, seed: int = 2_000_000, fps: int = 8, steps: int | None = None, device: str | None = None
) -> None:
    """Shows one greedy episode of a run in the terminal."""
    live = sys.stdout.isatty()
    for scene in _scenes_of(folder, seed, steps, device):
        print(('\x1b[H\x1b[2J' if live else '') + terminal_view(scene, colour=live), flush=True)
        if live:
            time.sleep(1 / fps)


def _scenes_of(folder: Path, seed: int, steps: int | None, device: str | None) -> Iterator[Scene]:
    config = load_config(folder)
    if device:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, device=device))
    make_env = scenario(config.scenario).make_env(config)
    env = make_env(1)
    if not isinstance(env, JungleEnv | PrisonerEnv):
        raise ValueError(f"'{config.scenario}' has no drawing")
    return episode_scenes(load_algorithm(config, make_env, folder), env, seed, steps)


@torch.no_grad()
def episode_scenes(algorithm: Algorithm, env: GraphEnv, seed: int, steps: int | None = None) -> Iterator[Scene]:
    """The scenes of one greedy episode: what the agents see, decide and share at each step."""
    graph = env.reset(seed)
    total, played = 0.0, 0
    while steps is None or played < steps:
        decision = algorithm.act(graph)
        title = f'step {played}   return {total:.2f} an agent'
        draw = _jungle if isinstance(env, JungleEnv) else _prisoner
        yield draw(env, graph, decision, title)
        step = env.step(decision.action)
        total += float(step.reward.mean())
        played += 1
        if bool(step.ended.any()):
            return
        graph = step.graph


def _shares(decision: Decision) -> dict[str, Any]:
    if decision.sharing is None:
        return {'given': None, 'kept': None}
    return {'given': decision.sharing.given, 'kept': decision.sharing.kept}


def _jungle(env: Any, graph: Any, decision: Decision, title: str) -> Scene:
    agents, foods = env.agent_positions[0].cpu(), env.food_positions[0].cpu()
    action = decision.action.cpu()
    aim = agents + torch.tensor([DY, DX]).t()[action]
    hit = (aim.unsqueeze(1) == agents.unsqueeze(0)).all(-1) & (action >= FIRST_ATTACK).unsqueeze(1)
    size = (env.config.size, env.config.size)
    return Scene(
        size=size,
        positions=agents.flip(1),
        edge_index=graph.edge_index,
        items={'wall': border(size), 'food': foods.flip(1)},
        marks=hit.nonzero(),
        title=title,
        **_shares(decision),
    )


def _prisoner(env: Any, graph: Any, decision: Decision, title: str) -> Scene:
    cells = graph.x[:, : env.length].argmax(1).cpu()  # each player sees its own cell first
    goals = [0, env.length // 2, env.length - 1]
    return Scene(
        size=(env.length, 1),
        positions=torch.stack([cells, torch.zeros_like(cells)], 1),
        edge_index=graph.edge_index,
        labels=('A', 'B'),
        kinds=[0, 1],
        items={'goal': [(x, 0) for x in goals]},
        title=title,
        **_shares(decision),
    )
