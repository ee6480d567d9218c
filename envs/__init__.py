"""Games on graphs. Installed as ``ltos_pyg.envs``; in a checkout ``envs`` is the same package by its folder's name."""

if __name__ == 'envs':  # imported by its folder name from a checkout: alias the installed package
    import sys

    try:
        import ltos_pyg.envs  # noqa: F401  imported for its entry in sys.modules
    except ModuleNotFoundError as error:
        raise ImportError("'envs' is installed as 'ltos_pyg.envs': run 'pip install -e .' in this checkout") from error
    for name in [n for n in sys.modules if n == 'ltos_pyg.envs' or n.startswith('ltos_pyg.envs.')]:
        sys.modules[name.removeprefix('ltos_pyg.')] = sys.modules[name]
else:
    from .dilemmas import DilemmasConfig, DilemmasEnv
    from .jungle import JungleEnv
    from .jungle_rules import JungleConfig
    from .prisoner import PrisonerConfig, PrisonerEnv
    from .registration import register_envs
    from .scripted import GreedyAttacker, PeacefulEater, RandomPolicy
    from .traffic import TrafficConfig, TrafficEnv

    register_envs()

    __all__ = [
        'DilemmasConfig',
        'DilemmasEnv',
        'GreedyAttacker',
        'JungleConfig',
        'JungleEnv',
        'PeacefulEater',
        'PrisonerConfig',
        'PrisonerEnv',
        'RandomPolicy',
        'TrafficConfig',
        'TrafficEnv',
        'register_envs',
    ]
