"""Tables, results.json, reports and model cards: the exact text that users read."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from core.cards import model_card, write_card
from core.errors import AleatorError
from core.report import (
    Table,
    hardware,
    provenance,
    read_results,
    report,
    table,
    versions,
    write_results,
    write_text,
)

ROWS = [
    {"model": "ridge", "crps": 0.16, "ratio": 0.51, "n": 16},
    {"model": "ours", "crps": torch.tensor(0.1304), "ratio": 0.93, "n": 16},
    {"model": "a|b", "crps": np.float32(0.13041), "ratio": 1.4, "n": None},
    {"model": "none", "crps": float("nan"), "n": 1},
]
COLUMNS = {"model": "Model", "crps": "CRPS, K", "ratio": "spread / skill", "n": "members"}
SCORES = Table(
    ROWS, COLUMNS, {"crps": ".3f", "ratio": ".2f"}, {"crps": "min", "ratio": 1.0}, "ERA5, test"
)
MARKDOWN = """\
**ERA5, test**

| Model |   CRPS, K | spread / skill | members |
| ----- | --------: | -------------: | ------: |
| ridge |     0.160 |           0.51 |      16 |
| ours  | **0.130** |       **0.93** |      16 |
| a\\|b  | **0.130** |           1.40 |       – |
| none  |         – |              – |       1 |
"""
MADE_BY = {
    "command": "python -m pipelines.climate evaluate a.nc b.nc -o report",
    "date": "2026-01-02T03:04:05+00:00",
    "versions": {"python": "3.12.1", "torch": "2.13.0"},
    "hardware": "a processor, 2 cores",
}


def test_markdown_aligns_and_emboldens_all_that_read_as_best():
    assert SCORES.markdown() == MARKDOWN


def test_table_in_one_call():
    found = table([{"a": 1, "b": 2.0}, {"a": 3, "b": 0.5}], ["a", "b"], best={"a": "max"})
    assert found == "|     a |   b |\n| ----: | --: |\n|     1 |   2 |\n| **3** | 0.5 |\n"


def test_one_row_is_not_best_of_anything():
    assert "**" not in table([{"a": 1.0}, {"a": None}], ["a"], best={"a": "min"})


def test_a_table_without_rows_keeps_its_heading():
    assert table([], ["model"]) == "| model |\n| ----- |\n"


def test_console_table_is_plain_in_a_pipe(capsys):
    SCORES.print()
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "ERA5, test",
        "Model   CRPS, K   spread / skill   members",
        "──────────────────────────────────────────",
        "ridge     0.160             0.51        16",
        "ours      0.130             0.93        16",
        "a|b       0.130             1.40         –",
        "none          –                –         1",
    ]


def test_a_wide_table_is_not_cut_in_a_pipe(capsys):
    Table([{"a": "x" * 150, "b": 1.5}], {"a": "a", "b": "b"}).print()
    assert "x" * 150 + "   1.5" in capsys.readouterr().out


def test_results_survive_the_round_trip_to_the_same_text(tmp_path):
    path = tmp_path / "deep" / "results.json"
    written = write_results(path, [SCORES], made_by=MADE_BY, ranks=torch.tensor([1, 2]))
    results, tables = read_results(path)
    assert results == written == json.loads(path.read_text())
    assert results["ranks"] == [1, 2]
    assert results["tables"][0]["rows"][3]["crps"] is None
    assert [table.markdown() for table in tables] == [MARKDOWN]
    assert os.listdir(path.parent) == ["results.json"]
    assert report(results, "Evaluation") == (
        f"# Evaluation\n\n{MARKDOWN}\n"
        "```sh\npython -m pipelines.climate evaluate a.nc b.nc -o report\n```\n\n"
        "2026-01-02T03:04:05+00:00, on a processor, 2 cores; python 3.12.1, torch 2.13.0.\n"
    )


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_text(path, "old")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("core.report.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_results(path, [SCORES], made_by=MADE_BY)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["results.json"]


def test_what_is_not_results_is_said(tmp_path):
    with pytest.raises(AleatorError, match="does not exist"):
        read_results(tmp_path / "results.json")
    (tmp_path / "results.json").write_text("[1]")
    with pytest.raises(AleatorError, match=r"not a results\.json"):
        read_results(tmp_path / "results.json")


def test_provenance_says_the_command_as_typed(tmp_path):
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool" / "__init__.py").touch()
    code = "from core.report import command_line; print(command_line())"
    (tmp_path / "tool" / "run.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])}
    for start, said in (
        (["-m", "tool.run", "a b", "--n=2"], "python -m tool.run 'a b' --n=2"),
        (["tool/run.py", "x"], "python tool/run.py x"),
    ):
        ran = subprocess.run(
            [sys.executable, *start],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            check=True,
        )
        assert ran.stdout.strip() == said


def test_provenance_names_versions_and_hardware_but_nobody():
    import platform

    made_by = provenance()
    assert made_by["versions"]["torch"] == torch.__version__
    assert made_by["versions"] == versions()
    assert f"{os.cpu_count()} cores" in made_by["hardware"] == hardware()
    assert platform.node() not in made_by["hardware"]


CARD = {
    "title": "ERA5 over Great Britain",
    "summary": "Temperature from 1° to 0.25°.",
    "data": "ERA5, 744 hours",
    "split": {"train": "571 hours", "test": "149 hours"},
    "seed": 123456,
    "hardware": "2 cores",
    "minutes": 12.34,
    "parameters": 1234567,
    "grid_cells": [32, 48],
    "scores": [{"score": "CRPS", "ours": 0.1304, "ridge": 0.16}],
    "limits": "One month only.",
    "command": "python -m pipelines.climate train data.nc -o model",
}
CARD_TEXT = """\
# ERA5 over Great Britain

Temperature from 1° to 0.25°.

|                  |                                   |
| ---------------- | --------------------------------- |
| Data             | ERA5, 744 hours                   |
| Split            | train: 571 hours; test: 149 hours |
| Seed             | 123456                            |
| Parameters       | 1,234,567                         |
| Minutes to train | 12.3                              |
| Hardware         | 2 cores                           |
| Grid cells       | 32, 48                            |

## Scores

| score | ours | ridge |
| ----- | ---: | ----: |
| CRPS  | 0.13 |  0.16 |

## Limits

One month only.

## Made by

```sh
python -m pipelines.climate train data.nc -o model
```
"""


def test_model_card_text(tmp_path):
    assert model_card(CARD) == CARD_TEXT
    write_card(tmp_path / "card.md", CARD)
    assert (tmp_path / "card.md").read_text() == CARD_TEXT


def test_card_scores_may_be_a_whole_table():
    scores = json.loads(
        json.dumps(
            {
                **CARD,
                "scores": {
                    "rows": [{"crps": 0.5}],
                    "columns": {"crps": "CRPS"},
                    "formats": {"crps": ".3f"},
                },
            }
        )
    )
    assert "|  CRPS |\n| ----: |\n| 0.500 |\n" in model_card(scores)


def test_a_card_that_hides_how_it_was_made_is_refused():
    with pytest.raises(AleatorError, match="lacks split, command"):
        model_card({**CARD, "split": None, "command": ""})
