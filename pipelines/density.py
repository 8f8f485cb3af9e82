"""`python -m pipelines.density`: fit the density of a table, score rows, draw rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines._door import door, friendly, overrides, say

app = door(
    "Density estimation on a table of numbers (CSV, Parquet, NumPy) with normalizing flows.\n\n"
    "`fit TABLE.csv -o MODEL`, then `score MODEL ROWS.csv -o scores.csv` (how likely is every "
    "row? which ones are outliers?) and `sample MODEL -n 1000 -o rows.csv`. Columns that repeat "
    "their values are dequantised, or refused with the reason; `--context` conditions on others."
)

Names = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="Repeatable, or comma-separated.")
]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="Folder that fit wrote.")]
Seed = Annotated[int, typer.Option(help="Same seed, same numbers.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="fit.steps=500, model.layers=8, ...; repeatable."),
]


@app.command()
@friendly
def fit(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="One row an example.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the model.")],
    columns: Names = None,
    context: Names = None,
    drop: Names = None,
    keep: Names = None,
    jitter: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=WIDTH", help="Add uniform noise to a column; repeatable."),
    ] = None,
    family: Annotated[str, typer.Option(help="nsf, maf or real_nvp.")] = "nsf",
    settings: Settings = None,
    compile_kernels: Annotated[
        bool, typer.Option("--compile", help="Fuse the splines: 3 times faster after a minute.")
    ] = False,
    seed: Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a stopped fit.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model.")] = False,
) -> None:
    """Fit a density to 80 % of the rows, stop by 10 %, and judge it on the last 10 %.

    --columns: model these only. --context: condition on these (text becomes categories). --drop:
    leave these out. --keep: take as continuous, whatever they look like.
    """
    from apps.table_density.fit import Request, run
    from core.report import Table

    chosen = overrides(settings or [])
    if unknown := set(chosen) - {"fit", "model"}:
        raise typer.BadParameter(f"{min(unknown)}: --set takes fit.OPTION and model.OPTION")
    request = Request(
        source=table,
        output=output,
        columns=_split(columns),
        context=_split(context),
        drop=_split(drop),
        keep=_split(keep),
        jitter=_widths(jitter or []),
        family=family,
        options=chosen.get("model", {}),
        training=chosen.get("fit", {}),
        compiled=compile_kernels,
        seed=seed,
        resume=resume,
        device=device,
        overwrite=overwrite,
    )
    rows = run(request, say=say).card["scores"]
    Table(rows, {key: key for key in rows[0]}, dict.fromkeys(rows[0], ".3f")).print()


@app.command()
@friendly
def score(
    model: Model,
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="Rows to score.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="log_prob and rank of every row.")
    ] = None,
    draws: Annotated[int, typer.Option(help="Points of a cell of discrete columns.")] = 16,
    seed: Seed = 0,
) -> None:
    """Log-density of every row, in nats and in the units of the table, and its rank."""
    from apps.table_density.commands import score as run

    run(model, table, output, draws=draws, seed=seed).print()


@app.command()
@friendly
def sample(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help=".csv, .parquet or .npy")],
    count: Annotated[int, typer.Option("-n", "--rows", help="Rows, for each context.")] = 1000,
    given: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Context; repeatable.")
    ] = None,
    given_table: Annotated[
        Path | None, typer.Option(help="Table of contexts, one a row, instead.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Draw rows like those of the table."""
    from apps.table_density.commands import sample as run

    written = run(model, count, output, given=given or [], given_table=given_table, seed=seed)
    say(f"{written} rows written to {output}")


def _split(names: list[str] | None) -> list[str]:
    return [name for entry in names or [] for name in entry.split(",") if name]


def _widths(pairs: list[str]) -> dict[str, float]:
    from core.errors import AleatorError

    found = {}
    for pair in pairs:
        name, _, text = pair.rpartition("=")
        try:
            width = float(text)
        except ValueError:
            width = 0.0
        if not name or not width > 0:
            raise AleatorError(f"--jitter {pair}: expected NAME=WIDTH with a positive width")
        found[name] = width
    return found


if __name__ == "__main__":
    app()
