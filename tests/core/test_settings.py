"""Configs: files, overrides in their order, errors that name the option."""

from dataclasses import dataclass, field

import pytest
from pydantic import ConfigDict

from core.errors import AleatorError
from core.settings import merge, parse_settings, read_settings


@dataclass(frozen=True)
class Inner:
    """A part."""

    size: int = 1

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Outer:
    """A whole."""

    name: str = "x"
    inner: Inner = field(default_factory=Inner)

    __pydantic_config__ = ConfigDict(extra="forbid")


def test_overrides_go_over_the_file_and_over_one_another(tmp_path):
    file = tmp_path / "c.json"
    file.write_text('{"name": "file", "inner": {"size": 2}}')
    values = read_settings(file, {"inner": {"size": 3}}, {"name": "last"})
    assert parse_settings(Outer, values) == Outer("last", Inner(3))
    assert parse_settings(Outer, read_settings(None)) == Outer()


def test_merging_leaves_its_inputs_alone():
    base, over = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}
    assert merge(base, over) == {"a": {"b": 3, "c": 2}}
    assert base == {"a": {"b": 1, "c": 2}}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"inner": {"wings": 1}}, "unknown option inner.wings"),
        ({"inner": {"size": "large"}}, "inner.size"),
        ({"name": 3}, "name"),
    ],
)
def test_bad_options_are_named(values, words):
    with pytest.raises(AleatorError, match=words):
        parse_settings(Outer, values)


@pytest.mark.parametrize(
    ("content", "words"), [("{", "not a JSON file"), ("[1]", "a JSON object"), (None, "no such")]
)
def test_bad_files_are_named(tmp_path, content, words):
    file = tmp_path / "c.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(AleatorError, match=words):
        read_settings(file)
