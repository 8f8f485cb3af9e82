"""`python -m pipelines.density` as a user meets it: a table in, log-densities and rows out."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from pipelines.density import app

QUICK = ("--set", "fit.steps=250", "--set", "fit.validate_every=50")


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def table(rows=1500, seed=0):
    """Normal a; b a parabola of a, shifted by the colour; k an independent die of four."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=rows)
    colour = np.array(["red", "green"])[rng.integers(0, 2, rows)]
    b = a**2 + 0.3 * rng.normal(size=rows) + 3 * (colour == "red")
    return pd.DataFrame({"a": a, "b": b, "k": rng.integers(0, 4, rows), "colour": colour})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a table, and a model fitted to it given the colour."""
    found = tmp_path_factory.mktemp("density")
    table().to_csv(found / "t.csv", index=False)
    run = invoke("fit", found / "t.csv", "-o", found / "m", "--context", "colour", *QUICK)
    assert run.exit_code == 0, run.output
    (found / "fit.txt").write_text(run.output)
    return found


def test_the_density_comes_close_to_the_entropy(folder):
    """Minus the mean ln p of new rows, in the units of the table: the entropy is known."""
    table(2000, seed=1).to_csv(folder / "new.csv", index=False)
    run = invoke("score", folder / "m", folder / "new.csv", "-o", folder / "scores.csv")
    assert run.exit_code == 0, run.output
    assert "lower bound" in run.stdout
    found = pd.read_csv(folder / "scores.csv")
    normal = 0.5 * math.log(2 * math.pi * math.e)
    entropy = normal + (normal + math.log(0.3)) + math.log(4)
    assert list(found) == ["log_prob", "stderr", "rank"]
    assert -entropy - 0.35 < found["log_prob"].mean() < -entropy + 0.1
    assert abs(found["rank"].mean() - 0.5) < 0.1


def test_fit_says_what_it_did(folder):
    text = (folder / "fit.txt").read_text()
    assert "1500 rows, 3 columns modelled" in text
    assert "column k: 4 distinct values, dequantised" in text
    assert "flow (lower bound)" in text
    card = (folder / "m" / "card.md").read_text()
    assert "k: discrete" in card
    assert json.loads((folder / "m" / "model.json").read_text())["app"] == "table_density"


def test_outliers_rank_last(folder):
    rows = table(50, seed=2)
    rows.loc[0, ["a", "b"]] = [3.0, -4.0]
    rows.to_csv(folder / "odd.csv", index=False)
    assert invoke("score", folder / "m", folder / "odd.csv", "-o", folder / "o.csv").exit_code == 0
    found = pd.read_csv(folder / "o.csv")
    assert found["log_prob"].idxmin() == 0
    assert found["rank"][0] < 0.01


def test_samples_follow_the_context_and_the_seed(folder):
    means = {}
    for colour in ("red", "green"):
        out = folder / f"{colour}.csv"
        run = invoke("sample", folder / "m", "-n", 600, "--given", f"colour={colour}", "-o", out)
        assert run.exit_code == 0, run.output
        drawn = pd.read_csv(out)
        means[colour] = drawn["b"].mean()
        assert set(drawn["k"]) == {0, 1, 2, 3}
        assert set(drawn["colour"]) == {colour}
    assert 2 < means["red"] - means["green"] < 4
    again = folder / "again.csv"
    invoke("sample", folder / "m", "-n", 20, "--given", "colour=green", "-o", again)
    pd.testing.assert_frame_equal(pd.read_csv(again), drawn[:20])
    contexts = folder / "contexts.csv"
    pd.DataFrame({"colour": ["red", "green", "red"]}).to_csv(contexts, index=False)
    both = folder / "both.parquet"
    invoke("sample", folder / "m", "-n", 2, "--given-table", contexts, "-o", both)
    assert pd.read_parquet(both)["colour"].tolist() == ["red"] * 2 + ["green"] * 2 + ["red"] * 2


def test_arrays_and_parquet_are_read_and_scored_alike(folder, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2))
    np.save(tmp_path / "x.npy", x)
    pd.DataFrame(x, columns=["c0", "c1"]).to_parquet(tmp_path / "x.parquet")
    np.savetxt(tmp_path / "x.csv", x, delimiter=",")  # without a header
    quick = ("--set", "fit.steps=20", "--family", "maf")
    assert invoke("fit", tmp_path / "x.npy", "-o", tmp_path / "m", *quick).exit_code == 0
    scores = []
    for kind in ("npy", "parquet", "csv"):
        run = invoke("score", tmp_path / "m", tmp_path / f"x.{kind}", "-o", tmp_path / "s.csv")
        assert "exact" in run.stdout, run.output
        scores.append(pd.read_csv(tmp_path / "s.csv")["log_prob"])
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-5)
    np.testing.assert_allclose(scores[2], scores[0], rtol=1e-5)
    out = tmp_path / "draws.npy"
    assert invoke("sample", tmp_path / "m", "-n", 7, "-o", out).exit_code == 0
    assert np.load(out).shape == (7, 2)


def test_resuming_gives_the_same_model(tmp_path):
    table().drop(columns="colour").to_csv(tmp_path / "t.csv", index=False)
    short = ("--set", "fit.steps=40")
    run = invoke("fit", tmp_path / "t.csv", "-o", tmp_path / "m", *short)
    assert run.exit_code == 0, run.output
    whole = (tmp_path / "m" / "model.json").read_text()
    (tmp_path / "m" / "model.json").unlink()
    run = invoke("fit", tmp_path / "t.csv", "-o", tmp_path / "m", "--resume", *short)
    assert run.exit_code == 0, run.output
    again = (tmp_path / "m" / "model.json").read_text()
    assert json.loads(again)["fingerprint"] == json.loads(whole)["fingerprint"]


def spoiled(tmp_path, **changes):
    frame = table(200).assign(**changes)
    frame.to_csv(tmp_path / "bad.csv", index=False)
    return tmp_path / "bad.csv"


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, (), "'colour' holds text, not numbers: condition on it with --context colour"),
        ({"a": [np.nan] * 3 + [1.0] * 197}, ("--drop", "colour"), "'a': 3 of 200 values are miss"),
        ({"a": [np.inf] + [1.0] * 199}, ("--drop", "colour"), "'a': infinite in row 0"),
        ({"a": 1.0}, ("--drop", "colour"), "'a' is (almost) constant, 1: it has no density"),
        (
            {"a": np.where(np.arange(200) % 2, 0.0, np.random.default_rng(0).normal(size=200))},
            ("--drop", "colour"),
            "% of the rows have the same value 0",
        ),
        ({"colour": [None] + ["red"] * 199}, ("--context", "colour"), "'colour': 1 of 200 values"),
        ({}, ("--drop", "size"), "there is no column 'size'; known: a, b, k, colour"),
        ({}, ("--context", "colour", "--drop", "colour"), "as context and as something else"),
        ({}, ("--drop", "a,b,k,colour"), "no column is left"),
        ({}, ("--drop", "colour", "--jitter", "k=wide"), "expected NAME=WIDTH"),
        ({}, ("--drop", "colour", "--family", "gan"), "unknown family 'gan'"),
        ({}, ("--drop", "colour", "--family", "diffusion"), "not a flow of vectors"),
        ({}, ("--drop", "colour", "--set", "fit.speed=3"), "fit has no option 'speed'"),
        ({}, ("--drop", "colour", "--set", "model.depth=3"), "no option 'depth'"),
    ],
)
def test_what_cannot_be_fitted_is_one_line(tmp_path, change, options, message):
    run = invoke("fit", spoiled(tmp_path, **change), "-o", tmp_path / "m", *options)
    assert run.exit_code == 2, run.output
    assert message in run.stderr
    assert run.stderr.startswith("error: ") or "\nerror: " in run.stderr
    assert not (tmp_path / "m" / "model.json").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "no such file"),
        ("t.xlsx", b"", "not one of .csv"),
        ("t.csv", b"", "not a readable table"),
        ("t.csv", b"a,b\n", "the table is empty"),
        ("t.csv", b"a,b\n1,2\n", "1 rows are too few"),
        ("t.npy", b"junk", "not a readable table"),
        ("t.parquet", b"junk", "not a readable table"),
    ],
)
def test_files_that_are_no_tables_are_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    run = invoke("fit", tmp_path / name, "-o", tmp_path / "m")
    assert (run.exit_code, message in run.stderr) == (2, True), run.output


def test_arrays_of_other_shapes_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 4)))
    assert "(rows, columns)" in invoke("fit", tmp_path / "x.npy", "-o", tmp_path / "m").stderr
    np.save(tmp_path / "x.npy", np.array([["a"]]))
    assert "numbers are needed" in invoke("fit", tmp_path / "x.npy", "-o", tmp_path / "m").stderr


def test_mistakes_with_a_model_are_one_line(folder, tmp_path):
    model, rows = folder / "m", folder / "t.csv"
    fit = ("fit", rows, "-o", model, "--context", "colour")
    assert "holds a model" in invoke(*fit).stderr
    out = ("-o", tmp_path / "out.csv")
    cases = [
        (("score", tmp_path, rows), "not a model folder"),
        (("score", model, rows, "-o", tmp_path / "s.txt"), "must be .csv"),
        (("score", model, rows, "-o", tmp_path / "no" / "s.csv"), "there is no folder"),
        (("score", model, rows, "--draws", 1), "at least two"),
        (("sample", model, *out), "this density is conditional: give colour"),
        (("sample", model, *out, "--given", "colour=mauve"), "'mauve' was not in the training"),
        (("sample", model, *out, "--given", "size=3"), "the name one of colour"),
        (("sample", model, *out, "-n", 0, "--given", "colour=red"), "at least one"),
    ]
    for arguments, message in cases:
        run = invoke(*arguments)
        assert (run.exit_code, message in run.stderr) == (2, True), run.output
    table(5).drop(columns="b").to_csv(tmp_path / "lacking.csv", index=False)
    assert "no column 'b'" in invoke("score", model, tmp_path / "lacking.csv").stderr
    table(5).assign(k=9).to_csv(tmp_path / "strange.csv", index=False)
    assert "no training row has" in invoke("score", model, tmp_path / "strange.csv").stderr


def test_help_teaches():
    assert "dequantised" in invoke("--help").output
    text = invoke("fit", "--help").output
    for word in ("--context", "--drop", "--jitter", "--keep", "--set"):
        assert word in text


def test_clusters_are_found_before_any_training(tmp_path):
    """A mixture of four as the noise: one step, and the log-density is that of the clusters."""
    rng = np.random.default_rng(0)
    which = np.arange(1200) % 4
    x = rng.normal(size=(1200, 2)) * 0.02 + np.array([[0, 0], [1, 0], [0, 1], [1, 1]])[which]
    pd.DataFrame(x, columns=["a", "b"]).to_csv(tmp_path / "t.csv", index=False)
    quick = ("--set", "fit.steps=1", "--set", "model.layers=1", "--set", "fit.ema=0")
    means = []
    for i, mixed in enumerate((("--set", "model.components=4"), ())):
        model, scores = tmp_path / f"m{i}", tmp_path / f"{i}.csv"
        run = invoke("fit", tmp_path / "t.csv", "-o", model, *quick, *mixed)
        assert run.exit_code == 0, run.output
        assert invoke("score", model, tmp_path / "t.csv", "-o", scores).exit_code == 0
        means.append(pd.read_csv(scores)["log_prob"].mean())
    entropy = math.log(2 * math.pi * math.e * 0.02**2) + math.log(4)
    assert abs(means[0] + entropy) < 0.1
    assert means[0] > means[1] + 3
    drawn = invoke("sample", tmp_path / "m0", "-n", 200, "-o", tmp_path / "rows.csv")
    assert drawn.exit_code == 0, drawn.output
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert (np.abs(rows - rows.round()) < 0.15).to_numpy().mean() > 0.99
    run = invoke("fit", tmp_path / "t.csv", "-o", tmp_path / "m2", "--set", "model.components=990")
    assert run.exit_code == 2
    assert "rows are too few for 990 components" in run.stderr
