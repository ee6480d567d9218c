"""Cards of trained policies, and folders that are ready for a model hub."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from ltos_pyg import registry
from ltos_pyg.formatting import markdown
from ltos_pyg.training.atomic import write_text
from ltos_pyg.training.checkpoint import save_file
from ltos_pyg.training.config import ENV_PREFIX, RECORDING, RunConfig, flags_of, shared_names
from ltos_pyg.training.metrics import WITHOUT_INTERVAL
from ltos_pyg.training.pretrained import find_run, is_packaged
from ltos_pyg.training.run import load_algorithm, on_device
from ltos_pyg.training.run_folder import RunFolder, write_json
from ltos_pyg.training.zero_shot import interval, metrics_of, table_cells

PICTURES = {'episode.gif': 'one episode without exploration', 'curve.png': 'the learning curve'}
NOT_RESULTS = {*RECORDING} - {'final_episodes'}  # options that do not change a number of the card
CONSTANT = 0.01  # weights that vary less over states are called constant


def write_card(folder: Path | str, license: str | None = None) -> Path:
    """Writes ``card.md`` in a run folder and returns its path.

    Args:
        folder: The run folder, of a finished run.
        license: The licence of the weights, e.g. ``'mit'``; ``None``: the card says that none is stated.

    Raises:
        ValueError: If there is no finished run, or it is a policy of the package.
    """
    run = RunFolder(find_run(folder))
    if is_packaged(run.path):
        raise ValueError(f"'{folder}' belongs to the package, where nothing is written: give --out a folder.")
    text = card_text(run, run.path.resolve().name, str(folder), license)
    return write_text(run.card_path, text)


def export_policy(folder: Path | str, out: Path | str, license: str | None = None) -> Path:
    """Makes a folder that can be loaded and uploaded; :func:`ltos_pyg.load_policy` takes it in place of a run folder.

    It has the card (``README.md``, as hubs read it), ``config.json``, ``final.json``, the pictures of the run (of one
    that was trained without, its learning curve, which takes the extra ``plot``), and ``policy.pt``: the networks that
    greedy actions depend on, in a file that is loaded without running code. Replay, optimizers and targets are left
    out. The environment's code is not needed to load it, only to play in it.

    Args:
        folder: The run folder, of a finished run.
        out: The folder to make; its name is the name of the policy. An earlier export in it is replaced.
        license: As for :func:`write_card`.

    Raises:
        ValueError: If there is no finished run, or ``out`` holds other files.
    """
    run, target = RunFolder(find_run(folder)), RunFolder(out)
    _check_free(target, run)
    final, config = run.final(), on_device(run.config(), 'cpu')  # also of a run on a GPU that is not here
    with closing(registry.scenario(config.scenario).make_env(config)(1)) as env:
        spec = env.spec
        state = load_algorithm(config, spec, run.path).policy_state()
    target.path.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target.zero_shot_path, ignore_errors=True)  # of an earlier export
    save_file(target.policy_path, final['env_steps'], {'algorithm': state}, config.fingerprint())
    write_json(target.config_path, run.read() | {'command': command_of(config, run.ranks()), 'spec': spec.as_dict()})
    target.write_final(final)
    for path in sorted(run.zero_shot_path.glob('*.json')):
        result = json.loads(path.read_text(encoding='utf-8'))
        target.write_zero_shot(path.stem, result | {'command': None})
    for name in PICTURES:
        (target.path / name).unlink(missing_ok=True)
        if (run.path / name).is_file():
            shutil.copyfile(run.path / name, target.path / name)
    if not any((target.path / name).is_file() for name in PICTURES):
        _draw_curve(run, target.path / 'curve.png')
    name = target.path.resolve().name
    write_text(target.path / 'README.md', card_text(target, name, name, license))
    return target.path


def _draw_curve(run: RunFolder, out: Path) -> None:
    """Draws the learning curve of a run that was trained without pictures, if it can be."""
    from ltos_pyg.viz.curves import plot_curves

    with suppress(ImportError, ValueError):  # the extra 'plot' is not installed, or nothing is logged
        plot_curves([run.path], f'eval/{run.primary_metric()}', out)


def _check_free(target: RunFolder, run: RunFolder) -> None:
    """Raises a ``ValueError`` if the target holds anything but an earlier export."""
    path = target.path
    if not path.exists():
        return
    if not path.is_dir() or (
        not target.policy_path.is_file() and any(file.suffix != '.tmp' for file in path.iterdir())
    ):
        raise ValueError(f"'{path}' must be a new folder, or one that ltos card made (got another). Choose a new one.")
    if path.samefile(run.path):
        raise ValueError(f"'{path}' is the policy to export: expected another folder as target. Choose a new one.")


def card_text(run: RunFolder, name: str, load_as: str, license: str | None = None) -> str:
    """The card of a finished run, in Markdown with the front matter that model hubs read.

    Args:
        run: The run, or exported policy.
        name: The title.
        load_as: What to give to ``load_policy``.
        license: As for :func:`write_card`.
    """
    plain, final, config = run.read(), run.final(), run.config()
    scenario = registry.scenario(config.scenario)
    primary = scenario.primary_metric
    parts = [
        _front_matter(name, config, primary, final, license),
        f'# {name}',
        f'A policy of `{config.algo}` for the agents of `{config.scenario}`, trained with `ltos_pyg`, which implements '
        f'[Learning to Share in Multi-Agent Reinforcement Learning](https://arxiv.org/abs/2112.08702). Agents are '
        f'the nodes of a graph, and neighbours are joined by edges.',
        *(f'![{told}]({picture})' for picture, told in PICTURES.items() if (run.path / picture).is_file()),
        '## Load it',
        f'```python\nimport ltos_pyg\n\npolicy = ltos_pyg.load_policy({load_as!r})\n'
        f'action, sharing = policy(graph)  # a graph, or a batch of graphs, of the environment\n```',
        f'`ltos evaluate {shlex.quote(load_as)}` plays new episodes, `ltos watch {shlex.quote(load_as)}` draws one.',
        '## Numbers',
        f'{_episodes(final, config)}: mean, its 95 % interval over episodes, standard deviation. '
        f'`{primary}` is the metric to compare by; {"lower" if scenario.lower_is_better else "higher"} is better.',
        _numbers(final, primary),
        *_other_weights(final, primary),
        *_zero_shot(run, primary),
        '## Training',
        *_training(plain, final, config, run.ranks()),
        '## Limits',
        '\n'.join(f'- {limit}' for limit in _limits(final, config, run)),
        '## Licence',
        f'The weights: `{license}`.' if license else 'None is stated for the weights: ask the author.',
    ]
    return '\n\n'.join(parts) + '\n'


def command_of(config: RunConfig, ranks: int = 1) -> str:
    """The command that trains a run of this configuration by so many processes, without its folder: all options that
    differ from its preset."""
    base = registry.scenario(config.scenario).config(config.algo, config.preset)
    flags = [f'--preset {config.preset}'] if config.preset != 'default' else []
    flags += [f'--import {module}' for module in config.imports if module not in base.imports]
    shared = shared_names(config)
    for part in ('train', 'algorithm', 'env'):
        ours, theirs = getattr(config, part), getattr(base, part)
        for field in dataclasses.fields(ours):
            value, of_env = getattr(ours, field.name), part == 'env'
            if value != getattr(theirs, field.name) and (of_env or field.name not in ('seed', *NOT_RESULTS)):
                name = f'{ENV_PREFIX}{field.name}' if of_env and field.name in shared else field.name
                flags.append(shlex.join(flags_of(name, value)))
    train = 'ltos train' if ranks == 1 else f'torchrun --nproc-per-node {ranks} -m ltos_pyg train'
    return ' '.join([train, config.scenario, f'--algo {config.algo} --seed {config.train.seed}', *flags])


# --- the parts of a card ---------------------------------------------------------------------------------------------


def _front_matter(
    name: str, config: RunConfig, primary: str, final: Mapping[str, Any], license: str | None
) -> str:  # fmt: skip
    """YAML, whose strings are JSON's: every JSON string is a YAML string."""
    text, scenario, algo = json.dumps, config.scenario, config.algo
    tags = ['reinforcement-learning', 'multi-agent-reinforcement-learning', 'graph-neural-network', scenario, algo]
    stat = final['eval']['policy'].get(primary)
    lines = [
        '---',
        'library_name: ltos_pyg',
        *([f'license: {text(license)}'] if license else []),
        'pipeline_tag: reinforcement-learning',
        'tags:',
        *(f'- {text(tag)}' for tag in tags),
    ]
    if stat is not None:
        lines += [
            'model-index:',
            f'- name: {text(name)}',
            '  results:',
            '  - task:',
            '      type: reinforcement-learning',
            '      name: reinforcement-learning',
            '    dataset:',
            f'      name: {text(scenario)}',
            f'      type: {text(scenario)}',
            '    metrics:',
            f'    - type: {text(primary)}',
            f'      name: {text(primary)}',
            f'      value: {text(interval(stat))}',
            '      verified: false',
        ]
    return '\n'.join([*lines, '---'])


def _episodes(final: Mapping[str, Any], config: RunConfig) -> str:
    """Which episodes the numbers are of."""
    temperature = getattr(config.algorithm, 'eval_temperature', 0.0)
    drawn = f', actions drawn at temperature {temperature:g}' if temperature else ''
    if all(stat['count'] == 1 for stat in final['eval']['policy'].values()):
        same = 'Where nothing is random, as on traffic, it has the demand of training'
        return f'One episode without exploration{drawn}. {same}'
    return f'Episodes without exploration on seeds never used in training{drawn}'


def _numbers(final: Mapping[str, Any], primary: str) -> str:
    rows = []
    for name, stat in sorted(final['eval']['policy'].items(), key=lambda entry: entry[0] != primary):
        if name == WITHOUT_INTERVAL:
            rows.append([f'`{name}`', interval(stat, False), '', str(stat['count'])])
        else:
            rows.append([f'`{name}`', interval(stat), f'{stat["std"]:.3g}', str(stat['count'])])
    return markdown(['metric', 'mean ± 95 %', 'std', 'episodes'], rows)


def _other_weights(final: Mapping[str, Any], primary: str) -> Iterator[str]:
    """What other sharing weights in the same networks give, if that was measured."""
    modes = {mode: stats[primary] for mode, stats in final['eval'].items() if primary in stats}
    if len(modes) > 1:
        yield (
            'The same networks under other sharing weights (`policy`: its own; `keep`: each agent keeps all of its '
            'reward):'
        )
        rows = [[f'`{mode}`', interval(stat), str(stat['count'])] for mode, stat in modes.items()]
        yield markdown(['weights', f'{primary} ± 95 %', 'episodes'], rows)


def _zero_shot(run: RunFolder, primary: str) -> Iterator[str]:
    """Tables of the evaluations in other settings, if there are any."""
    for number, result in enumerate(run.zero_shot()):
        if number == 0:
            yield '## In other settings'
            yield 'Without further training:'
        drawn = {'temperature': result['temperature']} if 'temperature' in result else {}
        differ = ', '.join(f'{name}={value}' for name, value in (result['env'] | drawn).items())
        count = result['episodes']
        each = {None: 'One episode of each task', 1: 'One episode each'}.get(count, f'{count} episodes each')
        yield each + (f', with {differ}:' if differ else ':')
        yield markdown(*table_cells(result, metrics_of(result, primary)))


def _training(plain: Mapping[str, Any], final: Mapping[str, Any], config: RunConfig, ranks: int) -> Iterator[str]:
    """The budget, the seed, the command, the versions and the options of the environment."""
    versions = ', '.join(f'{name} {version}' for name, version in plain.get('versions', {}).items())
    hours = sum(final.get('seconds', {}).values()) / 3600
    rows = [
        *([['processes', f'{ranks}: each has the batch and the replay that the options say']] if ranks > 1 else []),
        ['environment steps', f'{final["env_steps"]:,}'],
        ['gradient steps', f'{final["updates"]:,}'],
        *([['hours', f'{hours:.2f}, on {config.train.device}']] if hours else []),
        ['seed of training', str(config.train.seed)],
        ['seed of the episodes above', str(final.get('eval_seed', ''))],
        ['versions', versions],
        ['commit', str(plain.get('git_commit') or 'an installed package')],
    ]
    yield markdown(['what', 'value'], rows)
    yield f'```bash\n{command_of(config, ranks)}\n```'
    options = ', '.join(f'`{field.name}={getattr(config.env, field.name)}`' for field in dataclasses.fields(config.env))
    yield f'Environment `{config.scenario}`: {options or "no options"}. All options are in `config.json`.'


def _limits(final: Mapping[str, Any], config: RunConfig, run: RunFolder) -> Iterator[str]:
    stats = final['eval']['policy']
    if all(stat['count'] == 1 for stat in stats.values()):
        yield 'This is one training run, evaluated on one episode: there is no interval.'
    else:
        yield 'This is one training run. The intervals are over episodes; another training seed may do better or worse.'
    stat = stats.get(registry.scenario(config.scenario).primary_metric)
    if stat is not None and stat['std'] == 0 and stat['count'] > 1:
        yield f'All {stat["count"]} episodes gave the same value.'
    if not run.zero_shot():
        yield 'It was evaluated in the environment of its training only.'
    yield 'The environment is a simulation. Nothing is known about its use outside of it.'
    varies = stats.get('kept_std_states')
    if varies is not None and varies['mean'] < CONSTANT:
        yield (
            f'Its sharing weights are nearly constant: the standard deviation over states of the share that an agent '
            f'keeps is {varies["mean"]:.3f}.'
        )
    switched = stats.get('switched_uniform')
    if switched is not None:
        yield f'Under uniform sharing weights, {switched["mean"]:.1%} of its greedy actions would differ.'
    if final.get('stopped'):
        yield f'Training stopped early: {final["stopped"]}.'
