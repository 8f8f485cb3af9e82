"""Results that are made piece by piece: what a file of results holds already stays in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from core.report import Table, provenance, read_results


def added(
    path: Path, new: Sequence[Table], join: Callable[[Table, Table], Table] | None = None
) -> tuple[list[Table], dict[str, Any]]:
    """Tables of a file, those just made among them, and the commands that made them all.

    Args:
        path: of results.json; it need not be there.
        new: what was just made.
        join: (old, new) of one title -> what stands there; the new one takes the place if None.

    Returns:
        tables in the order of the file, new ones last, and provenance: of this process, with the
        commands of the earlier ones before its own.
    """
    made_by = provenance()
    if not path.exists():
        return list(new), made_by
    old, tables = read_results(path)
    found = {table.title: table for table in tables}
    for table in new:
        before = found.get(table.title)
        found[table.title] = join(before, table) if join and before else table
    commands = dict.fromkeys([*old["command"].split("\n"), made_by["command"]])
    return list(found.values()), made_by | {"command": "\n".join(commands)}
