"""Public names of a package, imported on first use, so that importing the package costs little."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def on_demand(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A `__getattr__` of a package (PEP 562).

    Args:
        package: its name.
        homes: public name -> the module that defines it.

    Returns:
        a function that imports a name's module and gives the name; AttributeError for others.
    """

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return __getattr__
