"""The shared front-end behaviour: one line, the right exit code, and readable overrides."""

import errno

import pytest
import typer

from core.errors import AleatorError
from pipelines._door import friendly, overrides


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (AleatorError("a.nc: no variable\n  tas"), 2, "error: a.nc: no variable tas\n"),
        (OSError(errno.ENOSPC, "full", "out.nc"), 2, "error: no space left on device"),
        (PermissionError(errno.EACCES, "denied", "out.nc"), 2, "error: out.nc: not writable"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
    ],
)
def test_mistakes_end_in_one_line(error, code, text, capsys):
    @friendly
    def command() -> None:
        raise error

    with pytest.raises(typer.Exit) as stop:
        command()
    assert stop.value.exit_code == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(text)
    assert printed.err.count("\n") == 1


def test_bugs_keep_their_traceback():
    @friendly
    def command() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        command()


def test_overrides_nest_and_read_json():
    assert overrides(
        ["fit.steps=20", "fit.patience=null", "residual.family=flow", "x=[1, 2]"]
    ) == {
        "fit": {"steps": 20, "patience": None},
        "residual": {"family": "flow"},
        "x": [1, 2],
    }


@pytest.mark.parametrize("bad", ["steps", "=3", ""])
def test_malformed_overrides_are_named(bad):
    with pytest.raises(AleatorError, match="expected name"):
        overrides([bad])
