"""Renewing a part of a table of results, where making all of it again would take hours."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.report import Table, provenance, read_results


def renewed(
    path: Path, fresh: Sequence[Table], key: str | None = None
) -> tuple[list[Table], dict[str, Any]]:
    """The tables of a results.json with some of them, or some of their rows, made anew.

    Args:
        path: the file.
        fresh: what was made; tables go to those of the same title, others to the end.
        key: column that names a row: rows of the same name are replaced, others stay or are added
            at the end. None replaces whole tables.

    Returns:
        the tables, and their provenance: the commands of before and of now, a line each.

    Raises:
        AleatorError: there is no such file.
    """
    results, tables = read_results(path)
    titles = [table.title for table in tables]
    for table in fresh:
        if table.title not in titles:
            tables.append(table)
            continue
        place = titles.index(table.title)
        tables[place] = table if key is None else _with_rows(tables[place], table, key)
    now = provenance()
    lines = [*results["command"].splitlines(), now["command"]]
    return tables, {
        "command": "\n".join(dict.fromkeys(lines)),
        "date": f"{results['date']}, in part {now['date']}",
        "versions": now["versions"],
        "hardware": results["hardware"],
    }


def _with_rows(known: Table, fresh: Table, key: str) -> Table:
    rows = {row[key]: row for row in known.rows} | {row[key]: row for row in fresh.rows}
    # a measure that only some rows have shows as a dash in the others
    columns = {**known.columns, **fresh.columns}
    formats, best = {**known.formats, **fresh.formats}, {**known.best, **fresh.best}
    return dataclasses.replace(
        known, rows=list(rows.values()), columns=columns, formats=formats, best=best
    )
