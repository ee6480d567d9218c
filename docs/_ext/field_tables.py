"""Tables of the fields of dataclasses and named tuples: name, default, and the comment beside it in the source.

autodoc shows no comments, and in this project they describe each option. Every documented dataclass or named
tuple gets such a table; ``.. option-table:: package.Class`` adds one to a page.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import io
import re
import textwrap
import tokenize
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

Field = tuple[str, str, str]  # name, default ('' if there is none), comment


def field_comments(cls: type) -> dict[str, str]:
    """The comment at the end of each annotated field's line, of one class without its bases."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # defined at run time: there is no source
        return {}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string.lstrip('# ') for token in tokens if token.type == tokenize.COMMENT}
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        line.target.id: comments.get(line.end_lineno or 0, '')
        for line in body.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    }


def fields_of(cls: type) -> list[Field]:
    """The fields of a dataclass or named tuple in order; none for any other class."""
    comments: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        comments |= {name: text for name, text in field_comments(base).items() if text or name not in comments}
    if dataclasses.is_dataclass(cls):
        return [(f.name, _default_of(f), comments.get(f.name, '')) for f in dataclasses.fields(cls)]
    names = getattr(cls, '_fields', ()) if issubclass(cls, tuple) else ()
    defaults = getattr(cls, '_field_defaults', {})
    return [(name, repr(defaults[name]) if name in defaults else '', comments.get(name, '')) for name in names]


def _default_of(field: Any) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return '' if field.default is dataclasses.MISSING else repr(field.default)


def table_lines(fields: list[Field]) -> list[str]:
    """A reStructuredText table."""
    lines = ['.. list-table::', '   :header-rows: 1', '   :widths: 22 18 60', '']
    for name, default, comment in [('name', 'default', 'meaning'), *((f'``{n}``', d, c) for n, d, c in fields)]:
        shown = f'``{default}``' if default and default != 'default' else default
        lines += [f'   * - {name}', f'     - {shown}'.rstrip(), f'     - {_escaped(comment)}'.rstrip()]
    return [*lines, '']


def _escaped(comment: str) -> str:
    """Plain text, in which only code in backticks is marked up."""
    parts = re.split(r'(`+[^`]+`+)', comment)
    return ''.join(f'``{p.strip("`")}``' if k % 2 else re.sub(r'([*_|\\])', r'\\\1', p) for k, p in enumerate(parts))


class OptionTable(SphinxDirective):
    """``.. option-table:: ltos_pyg.envs.JungleConfig``"""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module, _, name = self.arguments[0].rpartition('.')
        fields = fields_of(getattr(importlib.import_module(module), name))
        if not fields:
            raise self.error(f"'{self.arguments[0]}' has no fields: name a dataclass or a named tuple")
        node = nodes.container()
        self.state.nested_parse(StringList(table_lines(fields), source=self.arguments[0]), self.content_offset, node)
        return node.children


def add_table(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Appends the table to the docstring of a dataclass or named tuple whose fields have comments."""
    fields = fields_of(obj) if what == 'class' and inspect.isclass(obj) else []
    if any(comment for _, _, comment in fields):
        lines += ['', *table_lines(fields)]


def skip_fields(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Skips "Alias for field number 0" of named tuples, which the table replaces."""
    return True if (getattr(obj, '__doc__', None) or '').startswith('Alias for field number') else None


def setup(app: Any) -> dict[str, Any]:
    app.add_directive('option-table', OptionTable)
    app.connect('autodoc-process-docstring', add_table)
    app.connect('autodoc-skip-member', skip_fields)
    return {'parallel_read_safe': True}
