"""What a mistake on a command line must look like, whatever the command."""


def the_error(result):
    """The one line that a mistake ends with: exit code 2, no traceback."""
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


def assert_one_line(result, *words):
    """A mistake whose one line says these words."""
    line = the_error(result)
    for word in words:
        assert word in line, line
