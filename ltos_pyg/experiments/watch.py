"""Episodes of a trained run, as pictures or in the terminal."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ltos_pyg.algos import Algorithm, Decision
from ltos_pyg.envs import DilemmasEnv, JungleEnv
from ltos_pyg.envs.jungle_rules import DX, DY, FIRST_ATTACK
from ltos_pyg.envs.traffic import TrafficEnv
from ltos_pyg.experiments.drawing import Frame, Scene, border, draw_scene, save_gif, save_pngs, terminal_view
from ltos_pyg.experiments.scenarios import load_run
from ltos_pyg.experiments.traffic import Moment, traffic_moments
from ltos_pyg.experiments.traffic_drawing import TrafficPainter, traffic_text
from ltos_pyg.graph_env import GraphEnv

TRAFFIC_STRIDE = 3  # decisions per picture: half a minute


def watch_run(
    folder: Path, out: Path, seed: int = 2_000_000, fps: int = 8, steps: int | None = None, device: str | None = None
) -> Path:
    """Draws one greedy episode of a run: a GIF, or a folder of PNGs.

    On traffic, every third decision is drawn; ``steps`` are then the first so many decisions, all of them drawn.
    """
    algorithm, env = load_run(folder, device)
    if isinstance(env, TrafficEnv):
        frames = traffic_frames(algorithm, env, seed, steps)
    else:
        frames = (draw_scene(scene) for scene in episode_scenes(algorithm, env, seed, steps))
    if out.suffix == '.gif':
        return save_gif(frames, out, fps)
    save_pngs(frames, out)
    return out


def show_run(
    folder: Path, seed: int = 2_000_000, fps: int = 8, steps: int | None = None, device: str | None = None
) -> None:
    """Shows one greedy episode of a run in the terminal."""
    live = sys.stdout.isatty()
    algorithm, env = load_run(folder, device)
    if isinstance(env, TrafficEnv):
        views = traffic_views(algorithm, env, seed, steps, live)
    else:
        views = (terminal_view(scene, colour=live) for scene in episode_scenes(algorithm, env, seed, steps))
    for view in views:
        print(('\x1b[H\x1b[2J' if live else '') + view, flush=True)
        if live:
            time.sleep(1 / fps)


def traffic_frames(algorithm: Algorithm, env: TrafficEnv, seed: int = 0, steps: int | None = None) -> Iterator[Frame]:
    """Pictures of a greedy episode of traffic."""
    painter = TrafficPainter(env.engines[0].network, env.choices[0], env.yellow)
    for k, moment in enumerate(islice(traffic_moments(algorithm, env, seed), steps)):
        if steps is not None or k % TRAFFIC_STRIDE == 0:
            yield painter.draw(moment, _traffic_title(moment))


def traffic_views(
    algorithm: Algorithm, env: TrafficEnv, seed: int = 0, steps: int | None = None, colour: bool = False
) -> Iterator[str]:
    """A greedy episode of traffic as text."""
    network = env.engines[0].network
    for moment in islice(traffic_moments(algorithm, env, seed), steps):
        yield traffic_text(network, moment, _traffic_title(moment), colour)


def _traffic_title(moment: Moment) -> str:
    minutes, seconds = divmod(moment.time, 60)
    return f'{minutes:02d}:{seconds:02d}   {moment.vehicles.sum()} vehicles on the roads, {moment.waiting.sum()} wait'


@torch.no_grad()
def episode_scenes(algorithm: Algorithm, env: GraphEnv, seed: int, steps: int | None = None) -> Iterator[Scene]:
    """The scenes of one greedy episode: what the agents see, decide and share at each step."""
    graph = env.reset(seed)
    total, played = 0.0, 0
    while steps is None or played < steps:
        decision = algorithm.act(graph)
        title = f'step {played}   return {total:.2f} an agent'
        yield _painter(env)(env, graph, decision, title)
        step = env.step(decision.action)
        total += float(step.reward.mean())
        played += 1
        if bool(step.ended.any()):
            return
        graph = step.graph


def _painter(env: GraphEnv) -> Any:
    if isinstance(env, JungleEnv):
        return _jungle
    return _dilemmas if isinstance(env, DilemmasEnv) else _prisoner


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
        kinds=env.high[0].long(),  # agents with the high gain have a rim of another colour
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


def _dilemmas(env: DilemmasEnv, graph: Any, decision: Decision, title: str) -> Scene:
    """Groups side by side, the double star, or a circle. Rims: black for action 0 and for agents without a decision;
    green for action 1 where it is good for the team, pink where it is not."""
    x, action = graph.x.cpu(), decision.action.cpu()
    if env.config.graph == 'groups':
        size, positions = _in_groups(env.state['members'][0].cpu())
        decides, good = torch.ones(len(x), dtype=torch.bool), x[:, 2] == 0
        names = [('hunt', 'work', 'tempt')[kind] for kind in env.state['kind'][0].tolist()]
        title = f'{title}   {", ".join(names)}'
    elif env.config.graph == 'double_star':
        size, positions = (7, 3), torch.tensor([[2, 1], [0, 0], [0, 2], [4, 1], [6, 0], [6, 2]])
        decides, good = (x[:, 0] + x[:, 2]) > 0, (x[:, 0] + x[:, 3]) > 0
        title = f'{title}   {("hunt", "good offer", "bad offer")[int(env.state["kind"][0])]}'
    else:
        size, positions = _on_a_circle(len(x), env.config.topology == 'star')
        decides, good = x[:, 0] > 0, x[:, 1] > x[:, 2]
    rim = torch.where(good, 2, 1) * (decides & (action == 1))
    return Scene(
        size=size,
        positions=positions,
        edge_index=graph.edge_index,
        kinds=rim,
        marks=env.harms(decision.action).t(),
        mark_name='harm',
        title=title,
        **_shares(decision),
    )


def _in_groups(members: torch.Tensor) -> tuple[tuple[int, int], torch.Tensor]:
    """Size of the grid, and positions: a square of four per group, (G, 4), in rows."""
    columns = math.ceil(math.sqrt(len(members)))
    group = torch.arange(len(members)).unsqueeze(1)
    corner = torch.tensor([[0, 0], [2, 0], [0, 2], [2, 2]])
    place = 4 * torch.stack([group % columns, group // columns], 2) + corner
    positions = torch.empty(members.numel(), 2, dtype=torch.int64)
    positions[members.flatten()] = place.flatten(0, 1)
    return (4 * columns - 1, 4 * math.ceil(len(members) / columns) - 1), positions


def _on_a_circle(num_agents: int, hub: bool) -> tuple[tuple[int, int], torch.Tensor]:
    """Size of the grid, and positions on a circle; the hub of a star in the middle."""
    around = max(num_agents - hub, 1)
    radius = max(2, math.ceil(1.6 * around / (2 * math.pi)))
    angle = 2 * math.pi * (torch.arange(num_agents) - int(hub)) / around
    circle = torch.stack([angle.sin(), -angle.cos()], 1)
    if hub:
        circle[0] = 0
    return (2 * radius + 1, 2 * radius + 1), radius * (1 + circle)
