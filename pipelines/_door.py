"""What every front end shares: one-line errors, exit codes, dotted overrides, a log on stderr.

A user's mistake ends with one line on stderr and exit code 2; a full disk likewise; Ctrl-C with
130. A bug of ours keeps its traceback. Nothing heavy is imported here: `--help` must be instant.
"""

from __future__ import annotations

import errno
import functools
import sys
from collections.abc import Callable, Iterable
from typing import Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer

P = ParamSpec("P")
R = TypeVar("R")

Workers = Annotated[
    int | None, typer.Option(help="Worker processes on this machine; 1 runs in this process.")
]
Scheduler = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="A running Dask scheduler, tcp://...")
]


def door(help: str) -> typer.Typer:
    """A typer application with the house's settings."""
    return typer.Typer(
        help=help,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def adopt(app: typer.Typer, *others: typer.Typer) -> None:
    """Let an application have the commands of others, which remain what they are."""
    for other in others:
        app.registered_commands.extend(other.registered_commands)


def fail(message: object, code: int = 2) -> NoReturn:
    """One line on stderr, then exit."""
    line = " ".join(str(message).split())
    print(f"error: {line}", file=sys.stderr)
    raise typer.Exit(code)


def say(message: object) -> None:
    """A line of the log, on stderr: stdout is for results."""
    print(message, file=sys.stderr, flush=True)


def friendly(command: Callable[P, R]) -> Callable[P, R]:
    """Turn users' mistakes into one line and exit code 2."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        from core.errors import AleatorError

        try:
            return command(*args, **kwargs)
        except AleatorError as error:
            fail(error)
        except KeyboardInterrupt:
            fail("interrupted; the same command resumes where it stopped", 130)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                fail(f"no space left on device while writing {error.filename or 'the output'}")
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                fail(f"{error.filename}: not writable or not readable ({error.strerror})")
            raise

    return wrapped


def overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """Parse `a.b=c` pairs into a nested mapping; values are read as JSON where they can be.

    Args:
        pairs: e.g. ("fit.steps=2000", "residual.family=flow_matching").

    Returns:
        e.g. {"fit": {"steps": 2000}, "residual": {"family": "flow_matching"}}.
    """
    import json

    from core.errors import AleatorError

    nested: dict[str, Any] = {}
    for pair in pairs:
        path, separator, text = pair.partition("=")
        if not separator or not path:
            raise AleatorError(f"--set {pair}: expected name.of.option=value")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        *parents, leaf = path.split(".")
        level = nested
        for parent in parents:
            level = level.setdefault(parent, {})
            if not isinstance(level, dict):
                raise AleatorError(f"--set {pair}: {parent} already has a value")
        level[leaf] = value
    return nested


def numbers(pairs: Iterable[str], option: str) -> tuple[tuple[str, float], ...]:
    """Parse `name=number` pairs.

    Args:
        pairs: e.g. ("tas=0.5", "pr=1").
        option: where they were given, for messages.
    """
    from core.errors import AleatorError

    found = []
    for pair in pairs:
        name, separator, text = pair.partition("=")
        try:
            found.append((name.strip(), float(text)))
        except ValueError:
            separator = ""
        if not separator or not name.strip():
            raise AleatorError(f"{option} {pair}: expected name=number, e.g. tas=0.5")
    return tuple(found)
