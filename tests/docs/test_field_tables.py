"""The tables of options on the site come from the comments beside dataclass fields."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

pytest.importorskip('sphinx')
sys.path.append(str(Path(__file__).parents[2] / 'docs' / '_ext'))
import field_tables


@dataclass(frozen=True, kw_only=True)
class Base:
    rate: float = 0.5  # of `things`, in [0, 1]
    size: int  # cells * cells


@dataclass(frozen=True, kw_only=True)
class Derived(Base):
    rate: float = 0.25
    names: list[str] = field(default_factory=list)


class Pair(NamedTuple):
    first: int  # comes first
    second: int = 2  # comes then


def test_fields_come_with_their_defaults_and_comments():
    assert field_tables.fields_of(Base) == [('rate', '0.5', 'of `things`, in [0, 1]'), ('size', '', 'cells * cells')]
    assert field_tables.fields_of(Pair) == [('first', '', 'comes first'), ('second', '2', 'comes then')]
    assert field_tables.fields_of(int) == []


def test_a_field_without_a_comment_has_that_of_its_base():
    assert field_tables.fields_of(Derived) == [
        ('rate', '0.25', 'of `things`, in [0, 1]'),
        ('size', '', 'cells * cells'),
        ('names', '[]', ''),
    ]


def test_comments_are_plain_text_but_for_code():
    lines = field_tables.table_lines(field_tables.fields_of(Base))
    assert '     - of ``things``, in [0, 1]' in lines
    assert r'     - cells \* cells' in lines
