"""``ltos train``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ltos_pyg import registry
from ltos_pyg.formatting import as_whole
from ltos_pyg.launch import launched_rank
from ltos_pyg.training.config import ENV_PREFIX, RunConfig, flags_of, shared_names

ALGO, PRESET = 'ltos', 'default'


@dataclass
class Head:
    """The options that determine which other options exist."""

    scenario: str | None = None
    algo: str | None = None
    preset: str | None = None
    out: str | None = None
    config: str | None = None
    seed: int | None = None
    resume: bool = False
    help: bool = False
    imports: tuple[str, ...] = ()


def main(args: Sequence[str]) -> int:
    """Trains, and prints the result."""
    head = read_head(args)
    registry.import_modules(head.imports)
    options = read_config(head) if head.config else {}
    if head.scenario is None:
        print(usage())
        return 0 if head.help else 2
    registry.check_scenario(head.scenario)  # before PyTorch is loaded, which takes seconds
    registry.check_algorithm(head.algo or ALGO)
    if head.out == '':
        raise ValueError("'--out' must name a folder (got ''). Leave it out for runs/SCENARIO-ALGO-seedN.")
    if not head.help and launched_rank() == 0:
        algo = head.algo or (None if head.resume else ALGO)  # a run that is resumed has its own
        named = ', '.join(filter(None, (head.scenario, algo)))
        print(f'ltos: {named}: loading PyTorch …', file=sys.stderr, flush=True)
    return _train(head, args, options)


def read_config(head: Head) -> dict[str, Any]:
    """The options of a configuration file, as ``ltos sweep`` writes it: ``scenario``, ``algo``, ``preset``, ``imports``
    and a table ``[options]``. What the command line names itself stays; the modules are imported.

    Raises:
        ValueError: If the file cannot be read, or has other keys.
    """
    from ltos_pyg.experiments.experiment import read_toml, with_none

    path = Path(head.config or '')
    plain = read_toml(path)
    allowed = ('scenario', 'algo', 'preset', 'options', 'imports')
    unknown = [key for key in plain if key not in allowed]
    options, imports = plain.get('options', {}), plain.get('imports', [])
    if unknown or not isinstance(options, dict) or not isinstance(imports, list):
        raise ValueError(
            f"'{path}': expected the keys {', '.join(allowed)}, options a table and imports a list (got "
            f'{unknown or plain})'
        )
    named = {name: plain[name] for name in allowed[:3] if name in plain}
    for name, value in [*named.items(), *(('imports', value) for value in imports)]:
        if not isinstance(value, str):
            raise ValueError(f"'{path}': '{name}' must be {'names' if name == 'imports' else 'a name'} (got {value!r})")
    for name in named:
        if getattr(head, name) is None:
            setattr(head, name, plain[name])
    head.imports = tuple(dict.fromkeys([*head.imports, *imports]))
    registry.import_modules(head.imports)
    return with_none(options)


def read_head(args: Sequence[str]) -> Head:
    """The scenario, which comes first or after these options, and the options that determine the others."""
    head, rest = Head(), list(args)
    first = True
    while rest:
        flag, equals, value = rest.pop(0).partition('=')
        if flag in ('--algo', '--preset', '--out', '--config', '--import', '--label', '--seed'):
            value = value if equals else rest.pop(0) if rest else ''
            if flag == '--import':
                head.imports += (value,)
            elif flag == '--seed':
                value = as_whole(value)
                head.seed = int(value) if value.isdecimal() else None  # the parser says what is wrong with another one
            elif flag != '--label':
                setattr(head, flag[2:], value)
        elif flag in ('--resume', '--help', '-h'):
            setattr(head, 'resume' if flag == '--resume' else 'help', True)
        elif first and not flag.startswith('-'):
            head.scenario, first = flag, False
        else:
            first = False
    return head


def usage() -> str:
    """Usage, with the known scenarios and algorithms."""
    return (
        'usage: ltos train SCENARIO [--algo ALGO] [options]\n\n'
        'SCENARIO: one of those below, or your own environment as package.module:Name\n'
        '--algo: one of those below, or your own as package.module:Name (default: ltos)\n'
        '--preset: the set of defaults to start from (default: default; paper: close to the papers)\n'
        '--seed: seed of all random numbers; --total-steps: env steps of training; --num-envs: parallel episodes\n'
        '--out: the run folder (default: runs/SCENARIO-ALGO-seedN); --resume: continue the run in it\n'
        '--device: cpu or cuda\n'
        '--label: name of the run in tables and plots (default: the algorithm and its preset)\n'
        '--config: a TOML file of options, as ltos sweep writes it\n'
        '--import: a module that registers scenarios or algorithms\n'
        f'scenarios:  {", ".join(registry.scenario_names())}\n'
        f'algorithms: {", ".join(registry.algorithm_names())}\n'
        'all options, with their defaults: ltos train SCENARIO --algo ALGO --help'
    )


def _train(head: Head, args: Sequence[str], options: dict[str, Any]) -> int:
    from ltos_pyg.training.run import train_run
    from ltos_pyg.training.run_folder import RunFolder, default_folder

    assert head.scenario is not None
    scenario = registry.scenario(head.scenario)
    base = _with_file(scenario.config(head.algo or ALGO, head.preset or PRESET), head, options)
    folder = Path(head.out) if head.out else default_folder(base, head.seed)
    if head.resume and RunFolder(folder).has_config:  # options of the first call are the defaults
        base = _with_file(RunFolder(folder).config(), head, options)
        _check_same(head, base, folder)
    parsed, config = parse_options(base, args)
    config = dataclasses.replace(
        config, label=parsed.label, imports=tuple(dict.fromkeys([*config.imports, *head.imports]))
    )
    first = launched_rank() == 0
    if first:
        print(
            f'ltos: {folder}: building the environment; the first run here compiles kernels, which takes up to a '
            f'minute',
            file=sys.stderr,
            flush=True,
        )
    result = train_run(config, scenario, folder, head.resume)
    if not first:
        return 0
    _print_result(folder, result)
    if config.train.media:
        from ltos_pyg.viz.watch import save_media

        save_media(folder, f'eval/{scenario.primary_metric}')
    return 0


def _with_file(config: Any, head: Head, options: dict[str, Any]) -> Any:
    """The configuration with the options of a file, which the command line may still change."""
    from ltos_pyg.training.api import with_options

    try:
        return with_options(config, options, {}, more_to_come=True)
    except ValueError as error:
        raise ValueError(f"'{head.config}': {error}") from error


def _check_same(head: Head, base: Any, folder: Path) -> None:
    """Raises a ``ValueError`` if the run to resume has another scenario, algorithm or preset."""
    if base.scenario != head.scenario:
        raise ValueError(f"'{folder}' holds a run on {base.scenario} (got '{head.scenario}'). Name that one.")
    for name, asked, found in (('algo', head.algo, base.algo), ('preset', head.preset, base.preset)):
        if asked is not None and asked != found:
            raise ValueError(
                f"'{folder}' holds a run with --{name} {found} (got --{name} {asked}). Leave --{name} out to resume "
                f'it, or choose another folder by --out.'
            )


def parse_options(config: Any, args: Sequence[str]) -> tuple[Any, Any]:
    """Parses all options as flat flags, with defaults from a preset or a run; returns the parsed options and the
    configuration."""
    import tyro

    from ltos_pyg.cli.options import ImportArg, whole_numbers

    def told(help: str) -> Any:
        return tyro.conf.arg(help=help, help_behavior_hint='' if '(default: ' in help else None)

    parts = ('train', 'algorithm', 'env')
    shared = shared_names(config)
    fields: list[Any] = [
        (
            'scenario',
            Annotated[str, tyro.conf.Positional, told('a scenario, or your own environment as package.module:Name')],
            config.scenario,
        ),
        ('algo', Annotated[str, told('the algorithm, or package.module:Name')], config.algo),
        ('preset', Annotated[str, told('the options to start from')], config.preset),
        ('label', Annotated[str | None, told('name in tables and plots (default: algorithm and preset)')], None),
        ('out', Annotated[str | None, told('the run folder (default: runs/SCENARIO-ALGO-seedN)')], None),
        ('config', Annotated[str | None, told('a TOML file of options, as ltos sweep writes it')], None),
        ('resume', Annotated[bool, tyro.conf.FlagCreatePairsOff, told('continue the run in its folder')], False),
        ('imports', ImportArg, dataclasses.field(default=())),
    ]
    for part in parts:
        value = getattr(config, part)
        kind: Any = Annotated[type(value), tyro.conf.arg(name='')] if shared and part != 'env' else type(value)
        fields.append((part, kind, dataclasses.field(default=value)))
    options: Any = dataclasses.make_dataclass('TrainOptions', fields, frozen=True)
    whole = env_prefixed(args, config)
    for part in parts:
        whole = whole_numbers(whole, getattr(config, part), ENV_PREFIX if shared and part == 'env' else '')
    parsed: Any = tyro.cli(
        options,
        args=whole,
        prog='ltos train',
        description=f'Options of {config.algo} on {config.scenario}, with the defaults of preset {config.preset!r}.',
        config=() if shared else (tyro.conf.OmitArgPrefixes,),
    )
    return parsed, dataclasses.replace(config, train=parsed.train, algorithm=parsed.algorithm, env=parsed.env)


def env_prefixed(args: Sequence[str], config: RunConfig) -> list[str]:
    """The arguments, with every flag of an environment option written as ``--env.NAME``, if some environment options
    share their name with other options. So a user must write ``--env.`` only before a shared name."""
    shared = shared_names(config)
    if not shared:
        return list(args)
    prefixed: dict[str, str] = {}
    for name in {field.name for field in dataclasses.fields(config.env)} - shared:
        for on in (True, False):
            prefixed |= dict(zip(flags_of(name, on), flags_of(f'{ENV_PREFIX}{name}', on), strict=True))
    parts = [arg.partition('=') for arg in args]
    return [prefixed.get(flag.replace('_', '-'), flag) + equals + value for flag, equals, value in parts]


def _print_result(folder: Path, result: dict[str, Any]) -> None:
    from ltos_pyg.experiments.tables import format_stats

    print(f'\n{folder}: {result["env_steps"]:,} env steps, {result["updates"]:,} gradient steps')
    if 'stopped' in result:
        print(f'stopped early: {result["stopped"]}')
    print(format_stats(result['eval']))
