"""The games under their Gymnasium names: ``gymnasium.make('ltos_pyg/Jungle-v0', num_agents=10)``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltos_pyg.graph_env.adapters.gymnasium import GymnasiumEnv

GAMES = {
    'ltos_pyg/Dilemmas-v0': 'make_dilemmas',
    'ltos_pyg/Jungle-v0': 'make_jungle',
    'ltos_pyg/Prisoner-v0': 'make_prisoner',
}


def register_envs() -> None:
    """Registers the games with Gymnasium. Importing ``ltos_pyg.envs`` calls it; a second call has no effect.

    ``gymnasium.make('ltos_pyg.envs:ltos_pyg/Jungle-v0')`` lets Gymnasium do the import.
    """
    from gymnasium.envs.registration import register, registry

    for name, maker in GAMES.items():
        if name not in registry:
            register(name, entry_point=f'{__name__}:{maker}')


def make_dilemmas(**options: Any) -> GymnasiumEnv:
    """One :class:`~ltos_pyg.envs.DilemmasEnv` episode at a time; takes its options."""
    from ltos_pyg.graph_env.adapters.gymnasium import GymnasiumEnv

    from .dilemmas import DilemmasEnv

    return GymnasiumEnv(DilemmasEnv(**options))


def make_jungle(**options: Any) -> GymnasiumEnv:
    """One :class:`~ltos_pyg.envs.JungleEnv` episode at a time; takes its options."""
    from ltos_pyg.graph_env.adapters.gymnasium import GymnasiumEnv

    from .jungle import JungleEnv

    return GymnasiumEnv(JungleEnv(**options))


def make_prisoner(**options: Any) -> GymnasiumEnv:
    """One :class:`~ltos_pyg.envs.PrisonerEnv` episode at a time; takes its options."""
    from ltos_pyg.graph_env.adapters.gymnasium import GymnasiumEnv

    from .prisoner import PrisonerEnv

    return GymnasiumEnv(PrisonerEnv(**options))
