"""The README's example runs as printed, and says what it should."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_python_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(example.strip().splitlines()) <= 13
    exec(compile(example, "README.md", "exec"), {})
    first, second = capsys.readouterr().out.strip().splitlines()
    assert first.startswith("('member', 'time', 'latitude', 'longitude')")
    error, spread = map(float, re.findall(r"(\d\.\d+) K", second))
    assert 0.1 < error < 0.6
    assert 0.1 < spread < 0.6


def test_pictures_are_there():
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README.read_text(encoding="utf-8")):
        assert (README.parent / picture).stat().st_size > 10_000
