"""`python -m pipelines.families`: which model family knows which verb, asked of the code."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines._door import door, friendly

app = door("Families of generative models, and what each can do.")


@app.command()
@friendly
def main(
    families: Annotated[
        list[str] | None, typer.Argument(help="Only these, e.g. diffusion vae.")
    ] = None,
) -> None:
    """Print the matrix of families and verbs, for vectors and images, as Markdown."""
    from core.contract import matrix, table

    print(table(matrix(families or None)))


if __name__ == "__main__":
    app()
