"""Renewing a part of a file of results, where making all of it again would take hours."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from core.report import Table, provenance, read_results

Join = Callable[[Table, Table], Table]


def renewed(
    path: Path, fresh: Sequence[Table], join: Join | None = None
) -> tuple[list[Table], dict[str, Any]]:
    """The tables of a results.json with some of them, or some of their rows, made anew.

    Args:
        path: the file; it need not be there.
        fresh: what was made; tables go to those of the same title, others to the end.
        join: (old, new) of one title -> what stands there; the new one if None.

    Returns:
        the tables, and their provenance: the commands of before and of now, a line each.
    """
    now = provenance()
    if not path.exists():
        return list(fresh), now
    results, tables = read_results(path)
    found = {table.title: table for table in tables}
    for table in fresh:
        before = found.get(table.title)
        found[table.title] = join(before, table) if join and before else table
    lines = [*results["command"].splitlines(), now["command"]]
    first = results.get("date", "").partition(", in part ")[0]
    return list(found.values()), now | {
        "command": "\n".join(dict.fromkeys(lines)),
        "date": f"{first}, in part {now['date']}" if first else now["date"],
    }


def rows_by(key: str) -> Join:
    """Rows of the same name in column `key` are replaced, others stay or are added at the end."""

    def join(known: Table, fresh: Table) -> Table:
        rows = {row[key]: row for row in known.rows} | {row[key]: row for row in fresh.rows}
        # a measure that only some rows have shows as a dash in the others
        columns = {**known.columns, **fresh.columns}
        formats, best = {**known.formats, **fresh.formats}, {**known.best, **fresh.best}
        return dataclasses.replace(
            known, rows=list(rows.values()), columns=columns, formats=formats, best=best
        )

    return join
