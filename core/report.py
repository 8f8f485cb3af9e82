"""From scores to something to read: results.json -> tables, reports and model cards.

An evaluation writes one `results.json`: its tables, and the command, versions, hardware and date
that made them. Markdown and console tables are drawn from it, never from memory.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from core.errors import AleatorError

Row = Mapping[str, Any]
Best = Literal["min", "max"] | float
"""Which value of a column is bold: the least, the greatest, or the nearest to a number."""

MISSING = "–"
_PACKAGES = ("aleator", "torch", "numpy", "scipy", "xarray", "zarr", "dask", "lightning-fabric")


@dataclass(frozen=True)
class Table:
    """Rows of values and how to show them.

    Attributes:
        rows: one mapping a row; a missing key, None or NaN shows as a dash.
        columns: key -> heading, in order.
        formats: key -> format of numbers, e.g. ".3f"; ".3g" if not given.
        best: key -> "min", "max" or a target such as 1.0; the best values are bold.
        title: a line above the table.
    """

    rows: Sequence[Row]
    columns: Mapping[str, str]
    formats: Mapping[str, str] = field(default_factory=dict)
    best: Mapping[str, Best] = field(default_factory=dict)
    title: str = ""

    def markdown(self) -> str:
        """The table as GitHub-flavoured Markdown, columns padded so that it reads as text."""
        heads = [heading.replace("|", r"\|") for heading in self.columns.values()]
        cells = [[f"**{text}**" if bold else text for text, bold in row] for row in self._cells()]
        body = [[text.replace("|", r"\|") for text in row] for row in cells]
        widths = [max(3, *map(len, column)) for column in zip(heads, *body, strict=True)]
        right = [self._is_number(key) for key in self.columns]
        rule = ["-" * (w - r) + ":" * r for w, r in zip(widths, right, strict=True)]
        lines = [
            "| " + " | ".join(_pad(row, widths, right)) + " |" for row in (heads, rule, *body)
        ]
        if self.title:
            lines = [f"**{self.title}**", "", *lines]
        return "\n".join(lines) + "\n"

    def print(self) -> None:
        """The table on stdout: drawn in a terminal, plain where it is piped."""
        from rich import box
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        drawn = RichTable(
            box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, title_justify="left"
        )
        drawn.title = Text(self.title, style="bold") if self.title else None
        for key, heading in self.columns.items():
            justify: Literal["right", "left"] = "right" if self._is_number(key) else "left"
            drawn.add_column(Text(heading), justify=justify, no_wrap=True)
        for row in self._cells():
            drawn.add_row(*[Text(text, style="bold" if bold else "") for text, bold in row])
        # a pipe has no width: wide enough for the longest row rather than cut at 80
        Console(width=None if sys.stdout.isatty() else 10_000).print(drawn)

    def _cells(self) -> list[list[tuple[str, bool]]]:
        shown = {key: [self._show(key, row.get(key)) for row in self.rows] for key in self.columns}
        bold = {key: self._winners(key, texts) for key, texts in shown.items()}
        return [
            [(shown[key][i], shown[key][i] in bold[key]) for key in self.columns]
            for i in range(len(self.rows))
        ]

    def _winners(self, key: str, texts: list[str]) -> set[str]:
        """Texts to embolden: all that read the same as the best one."""
        best = self.best.get(key)
        values = [
            (_number(row.get(key)), text) for row, text in zip(self.rows, texts, strict=True)
        ]
        there = [(value, text) for value, text in values if value is not None]
        if best is None or len(there) < 2:
            return set()
        if best == "max":
            return {max(there)[1]}
        return {min(there, key=lambda v: v[0] if best == "min" else abs(v[0] - float(best)))[1]}

    def _show(self, key: str, value: Any) -> str:
        value = _scalar(value)
        if _number(value) is not None:
            return format(value, self.formats.get(key, "d" if isinstance(value, int) else ".3g"))
        missing = value is None or (isinstance(value, float) and math.isnan(value))
        return MISSING if missing else " ".join(str(value).split())

    def _is_number(self, key: str) -> bool:
        return any(_number(row.get(key)) is not None for row in self.rows)


def table(
    rows: Sequence[Row],
    columns: Mapping[str, str] | Sequence[str],
    formats: Mapping[str, str] | None = None,
    best: Mapping[str, Best] | None = None,
) -> str:
    """A Markdown table in one call; see `Table`."""
    named = columns if isinstance(columns, Mapping) else {key: key for key in columns}
    return Table(rows, named, formats or {}, best or {}).markdown()


def provenance() -> dict[str, Any]:
    """What made a result: command, date, versions and hardware; no host name and no user."""
    return {
        "command": command_line(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "hardware": hardware(),
    }


def command_line() -> str:
    """The command that started this process, as one would type it."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None and spec.name:
        module = spec.name.removesuffix(".__main__")
        return shlex.join(["python", "-m", module, *sys.argv[1:]])
    return shlex.join(["python", os.path.relpath(sys.argv[0] or "-"), *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that matter for numbers."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> str:
    """Processor, cores and accelerator in words."""
    import torch

    words = [_processor(), f"{os.cpu_count()} cores"]
    if torch.cuda.is_available():
        words.append(torch.cuda.get_device_name())
    return ", ".join(words)


def write_results(
    path: Path | str, tables: Iterable[Table], *, made_by: Row | None = None, **more: Any
) -> dict[str, Any]:
    """Write results.json, atomically.

    Args:
        path: the file.
        tables: what was found.
        made_by: provenance, if it is not that of this process.
        more: further JSON values, e.g. per-variable scores; tensors of one value are numbers.

    Returns:
        what was written. Numbers that JSON lacks (NaN, infinity) are null.
    """
    results = {
        "tables": [asdict(table) for table in tables],
        **more,
        **(provenance() if made_by is None else made_by),
    }
    text = json.dumps(_plain(results), indent=1, allow_nan=False, ensure_ascii=False)
    write_text(path, text + "\n")
    return json.loads(text)


def read_results(path: Path | str) -> tuple[dict[str, Any], list[Table]]:
    """Read results.json.

    Returns:
        everything in it, and its tables.

    Raises:
        AleatorError: there is no such file, or it is not a results.json.
    """
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
        return results, [Table(**entry) for entry in results["tables"]]
    except FileNotFoundError:
        raise AleatorError(f"{path} does not exist; run the evaluation that writes it") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise AleatorError(f"{path} is not a results.json of this program ({error})") from None


def report(results: Mapping[str, Any], title: str) -> str:
    """All tables of a results.json as a Markdown page that says how they were made."""
    parts = [f"# {title}\n", *(Table(**entry).markdown() for entry in results["tables"])]
    listed = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts.append(f"```sh\n{results['command']}\n```\n")
    parts.append(f"{results['date']}, on {results['hardware']}; {listed}.\n")
    return "\n".join(parts)


def write_text(path: Path | str, text: str) -> None:
    """Write a text file so that it is there whole or not at all; folders are made."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Give a temporary name beside `path` that becomes `path` when all went well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _scalar(value: Any) -> Any:
    """A number out of a one-element tensor or array."""
    return value.item() if hasattr(value, "item") else value


def _number(value: Any) -> float | None:
    value = _scalar(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return None
    return float(value)


def _plain(value: Any) -> Any:
    """JSON's own types; one-element tensors and arrays become numbers, others lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(entry) for entry in value]
    if hasattr(value, "tolist"):  # NumPy and torch
        return _plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _pad(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> list[str]:
    aligned = zip(cells, widths, right, strict=True)
    return [text.rjust(width) if r else text.ljust(width) for text, width, r in aligned]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
