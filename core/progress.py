"""Progress of a long job on stderr, in the unit that the user thinks in.

A terminal gets a bar with rate and time left; a log file gets a plain line now and then.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from time import monotonic

Advance = Callable[[int], None]


@contextlib.contextmanager
def progress_bar(
    total: int, unit: str | None, *, done: int = 0, seconds_per_line: float = 30.0
) -> Iterator[Advance]:
    """Show how far a job is.

    Args:
        total: items of the whole job.
        unit: their name in the plural, e.g. "hours"; nothing is shown if None.
        done: items that an earlier run has done; they do not count in the rate.
        seconds_per_line: how often a line is printed where stderr is not a terminal.

    Yields:
        a function to call with the number of items just done.
    """
    if unit is None:
        yield lambda count: None
    elif sys.stderr.isatty():
        with _bar(total, unit, done) as advance:
            yield advance
    else:
        with _lines(total, unit, done, seconds_per_line) as advance:
            yield advance


@contextlib.contextmanager
def _bar(total: int, unit: str, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    left = TextColumn("{task.fields[left]}")
    columns = (BarColumn(), TextColumn("{task.completed}/{task.total}"), left, TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total, completed=done, left=unit)
        began, count = monotonic(), 0

        def advance(items: int) -> None:
            nonlocal count
            count += items
            said = _rate(count, total - done - count, monotonic() - began, unit)
            bar.update(task, advance=items, left=said)

        yield advance


@contextlib.contextmanager
def _lines(total: int, unit: str, done: int, seconds_per_line: float) -> Iterator[Advance]:
    began = last = monotonic()
    count = 0

    def advance(items: int) -> None:
        nonlocal count, last
        count += items
        now = monotonic()
        if now - last >= seconds_per_line or done + count >= total:
            last = now
            said = _rate(count, total - done - count, now - began, unit)
            print(f"{done + count}/{total} {said}", file=sys.stderr, flush=True)

    yield advance


def _rate(count: int, left: int, seconds: float, unit: str) -> str:
    """E.g. "hours, 12.5/s, 0:04:10 left"."""
    rate = count / seconds if seconds > 0 else 0.0
    if not rate:
        return unit
    minutes, second = divmod(round(left / rate), 60)
    hour, minute = divmod(minutes, 60)
    speed = f"{rate:.3g}/s" if rate >= 1 else f"{60 * rate:.3g}/min"
    return f"{unit}, {speed}, {hour}:{minute:02d}:{second:02d} left"
