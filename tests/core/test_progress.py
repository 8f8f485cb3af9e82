"""Progress goes to stderr: lines in a log file, a bar on a terminal."""

from core.progress import progress_bar


def test_progress_in_a_log_file_is_plain_lines(capsys, monkeypatch):
    clock = iter([0.0, 10.0, 40.0, 45.0])
    monkeypatch.setattr("core.progress.monotonic", lambda: next(clock))
    with progress_bar(100, "hours", done=20) as advance:
        advance(20)
        advance(20)
        advance(40)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == ("60/100 hours, 1/s, 0:00:40 left\n100/100 hours, 1.78/s, 0:00:00 left\n")


def test_progress_on_a_terminal_is_a_bar_on_stderr(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    with progress_bar(50, "days", done=10) as advance:
        advance(40)
    out, err = capsys.readouterr()
    assert out == ""
    assert "50/50" in err
    assert "days" in err
    assert "left" in err


def test_silent_without_a_unit(capsys):
    with progress_bar(3, None) as advance:
        advance(3)
    assert capsys.readouterr() == ("", "")
