"""Configs from files and from the command line: JSON, nested overrides, validated dataclasses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from core.errors import AleatorError

T = TypeVar("T")


def parse_settings(kind: type[T], values: Mapping[str, Any]) -> T:
    """Validate a nested mapping into a dataclass.

    Raises:
        AleatorError: naming the option.
    """
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "unexpected_keyword_argument":
            raise AleatorError(f"config: unknown option {name}") from None
        message = first["msg"].removeprefix("Value error, ")
        raise AleatorError(f"config: {name}: {message}" if name else message) from None


def read_settings(file: Path | None, *overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON file's object (or nothing) with nested overrides, later ones first.

    Raises:
        AleatorError: the file cannot be read, or is no JSON object.
    """
    merged = {} if file is None else _read(file)
    for more in overrides:
        merged = merge(merged, more)
    return merged


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the entries of `over`, mappings within mappings likewise."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            value = merge(below, value)
        merged[key] = value
    return merged


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AleatorError(f"{file}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AleatorError(f"{file}: not a JSON file ({error})") from None
    if not isinstance(values, dict):
        raise AleatorError(f"{file}: expected a JSON object with options")
    return values
