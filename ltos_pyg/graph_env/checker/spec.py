"""Clauses about the spec."""

from __future__ import annotations

import dataclasses

import torch

from ltos_pyg.graph_env.base import GraphEnv
from ltos_pyg.graph_env.checker.clauses import declare
from ltos_pyg.graph_env.spec import GraphEnvSpec

fail = declare(
    {
        'type': 'Subclass ltos_pyg.graph_env.GraphEnv, or wrap a SingleGraphEnv in VectorGraphEnv.',
        'spec': 'Set it in __init__.',
        'spec types': 'Convert it where the spec is created.',
        'spec changed': 'Networks and memory are sized from it once: declare the largest sizes from the start.',
    }
)


def check_spec(env: GraphEnv) -> GraphEnvSpec:
    if not isinstance(env, GraphEnv):
        fail('type', 'make_env()', 'a GraphEnv', type(env).__name__)
    spec = getattr(env, 'spec', None)
    if not isinstance(spec, GraphEnvSpec):
        fail('spec', 'make_env()', 'a GraphEnvSpec as `env.spec`', type(spec).__name__)
    _check_spec_types(spec)
    return spec


def _check_spec_types(spec: GraphEnvSpec) -> None:
    optional = ('edge_dim', 'horizon')
    for name in ('num_envs', 'num_features', 'num_actions', 'max_nodes', 'max_edges', *optional):
        value = getattr(spec, name)
        if type(value) is not int and not (name in optional and value is None):
            fail('spec types', f'spec.{name}', 'an int', repr(value))
    for name in ('feature_dtype', 'edge_dtype'):
        if not isinstance(getattr(spec, name), torch.dtype):
            fail('spec types', f'spec.{name}', 'a torch.dtype', repr(getattr(spec, name)))
    for name in ('has_action_mask', 'fixed_nodes', 'symmetric'):
        if type(getattr(spec, name)) is not bool:
            fail('spec types', f'spec.{name}', 'a bool', repr(getattr(spec, name)))


def check_spec_unchanged(env: GraphEnv, spec: GraphEnvSpec) -> None:
    if env.spec != spec:
        names = [f.name for f in dataclasses.fields(spec) if getattr(spec, f.name) != getattr(env.spec, f.name)]
        fail('spec changed', 'after the play', 'the spec of the start', f'other {", ".join(names)}')
