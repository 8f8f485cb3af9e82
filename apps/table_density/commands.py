"""What the commands do: score rows with a saved density, draw rows from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from apps.table_density.data import check_output, read_table, write_table
from apps.table_density.model import TableDensity
from core.errors import AleatorError
from core.report import Table


def score(
    folder: Path, source: Path, output: Path | None, *, draws: int = 16, seed: int = 0
) -> Table:
    """Log-densities of the rows of a table.

    Args:
        folder: of the model.
        source: the table.
        output: where to write a row each: `log_prob` (nats), `stderr` where it is a bound, and
            `rank`, the share of held-out rows that are less likely.
        draws: points of a cell, where columns are discrete.
        seed: of these.

    Returns:
        a summary.
    """
    if output is not None:
        check_output(output)
    model = TableDensity.load(folder)
    found = model.log_prob(read_table(source), draws=draws, seed=seed)
    rank = model.rank(found.value)
    rows: dict[str, Any] = {"log_prob": found.value.numpy()}
    if found.stderr is not None:
        rows["stderr"] = found.stderr.numpy()
    rows["rank"] = rank.numpy()
    if output is not None:
        write_table(output, pd.DataFrame(rows))
    summary = {
        "rows": len(rank),
        "kind": found.kind.replace("_", " "),
        "mean": found.value.mean().item(),
        "least": found.value.min().item(),
        "unlikely": int((rank < 0.01).sum()),
    }
    headings = {
        "rows": "rows",
        "kind": "log-density",
        "mean": "mean (nats)",
        "least": "least",
        "unlikely": "rows below the 1 % of held-out ones",
    }
    return Table([summary], headings, {"mean": ".3f", "least": ".3f"})


def sample(
    folder: Path,
    count: int,
    output: Path,
    *,
    given: Sequence[str] = (),
    given_table: Path | None = None,
    seed: int = 0,
) -> int:
    """Draw rows and write them.

    Args:
        folder: of the model.
        count: how many, for each context.
        output: .csv, .parquet or .npy.
        given: context as "name=value".
        given_table: table of contexts, instead.
        seed: of the draws.

    Returns:
        number of rows written.
    """
    check_output(output)
    model = TableDensity.load(folder)
    if given and given_table is not None:
        raise AleatorError("--given and --given-table say the same: give one of them")
    context = read_table(given_table) if given_table is not None else parse(model, given)
    drawn = model.sample(count, given=context, seed=seed)
    write_table(output, drawn)
    return len(drawn)


def parse(model: TableDensity, given: Sequence[str]) -> pd.DataFrame | None:
    """One row of context from "name=value" pairs; None if there are none.

    Raises:
        AleatorError: a pair is malformed, of an unknown name, or of text for a number.
    """
    known, values = {g.name: g for g in model.preprocessor.given}, {}
    for pair in given:
        name, separator, text = pair.partition("=")
        if not separator or name not in known:
            raise AleatorError(
                f"--given {pair}: expected name=value, the name one of "
                f"{', '.join(known) or '(none: this density has no context)'}"
            )
        values[name] = text if known[name].levels else _number(name, text)
    if values and (lacking := set(known) - set(values)):
        raise AleatorError(f"--given {min(lacking)}=... is missing")
    return pd.DataFrame([values]) if values else None


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise AleatorError(f"--given {name}={text}: a number is needed") from None
