"""Verification from files: what is matched, scored, written, and what is refused and how."""

import json

import numpy as np
import pytest
import torch
import xarray as xr

from apps.climate_downscaling import plots, verify
from apps.climate_downscaling.data import open_field
from apps.climate_downscaling.diagnostics import Diagnostics, block_length, interval
from apps.climate_downscaling.evaluation import scores
from apps.climate_downscaling.verify import read_steps
from core.errors import AleatorError
from core.evaluation import coverage
from core.report import read_results

UNITS = {"tas": ("K", "air_temperature"), "pr": ("mm day-1", "lwe_precipitation_rate")}
STEPS, NY, NX, M = 40, 12, 16, 5


def fields(seed=0, members=M, steps=STEPS, variable="tas"):
    """(1 + members, steps, NY, NX) exchangeable fields, correlated in time."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((1 + members, steps, NY, NX))
    values += rng.standard_normal((1, steps, 1, 1)).cumsum(1)
    return (np.maximum(4 * values, 0) if variable == "pr" else values + 280).astype("f4")


def dates(steps=STEPS, start="2001-01-01", calendar="standard"):
    return xr.date_range(start, periods=steps, freq="D", calendar=calendar, use_cftime=True)


def write(path, values, *, times=None, flip=False, step=0.5):
    """One NetCDF of variables (time, lat, lon) or (member, time, lat, lon)."""
    if not isinstance(values, dict):
        values = {"tas": values}
    dims = ("time", "lat", "lon")
    arrays = {}
    for name, array in values.items():
        units, standard = UNITS.get(name, ("1", ""))
        attributes = {"units": units, "standard_name": standard}
        arrays[name] = (("member", *dims)[4 - array.ndim :], array, attributes)
    ny, nx = array.shape[-2:]
    dataset = xr.Dataset(
        arrays,
        {
            "time": dates() if times is None else times,
            "lat": ("lat", 50 - step * np.arange(ny), {"units": "degrees_north"}),
            "lon": ("lon", 5 + step * np.arange(nx), {"units": "degrees_east"}),
        },
    )
    if flip:
        dataset = dataset.isel(lat=slice(None, None, -1))
    dataset.to_netcdf(path)
    return path


@pytest.fixture
def pair(tmp_path):
    """Prediction and truth, exchangeable."""
    values = fields()
    return (
        write(tmp_path / "pred.nc", values[1:]),
        write(tmp_path / "truth.nc", values[0]),
        values,
    )


def found(folder):
    return read_results(folder / "results.json")[0]


def test_a_folder_has_results_report_and_figures(pair, tmp_path, capsys):
    prediction, truth, values = pair
    verify.verify(prediction, truth, tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "results.json",
        "report.md",
        "verification_tas.png",
        "extremes_tas.png",
    }
    results, (table, _) = read_results(tmp_path / "out" / "results.json")
    wanted = scores(torch.from_numpy(values[1:]), torch.from_numpy(values[0]))
    record = results["variables"]["tas"]
    assert record["scores"] == pytest.approx(wanted, rel=1e-9)
    assert record["units"] == "K"
    assert results["times"] == {
        "count": STEPS,
        "first": "2001-01-01 00:00",
        "last": "2001-02-09 00:00",
    }
    assert results["members"] == M
    low, high = record["intervals_95"]["crps"]
    assert low < wanted["crps"] < high
    low, high = record["intervals_95"]["rmse"]
    assert low < wanted["rmse"] < high
    assert np.sum(record["truth_rank_frequency"]) == pytest.approx(1)
    said, noted = capsys.readouterr()
    assert f"{wanted['crps']:.4f}" in said
    assert "pred.nc" in said
    assert f"{STEPS} common times" in noted
    text = (tmp_path / "out" / "report.md").read_text()
    assert f"{wanted['crps']:.4f}" in text
    assert "![verification_tas](verification_tas.png)" in text
    assert table.rows[0]["method"] == "pred.nc"
    assert not list(tmp_path.glob(".*partial"))


def test_pieces_make_no_difference(pair, tmp_path, monkeypatch):
    prediction, truth, _ = pair
    verify.verify(prediction, truth, tmp_path / "whole")
    monkeypatch.setattr(verify, "STEPS", 7)
    verify.verify(prediction, truth, tmp_path / "parts")
    whole, parts = (found(tmp_path / name)["variables"]["tas"] for name in ("whole", "parts"))
    assert parts["scores"] == pytest.approx(whole["scores"], rel=1e-9)
    assert parts["intervals_95"]["crps"] == pytest.approx(whole["intervals_95"]["crps"])
    assert parts["truth_rank_frequency"] == pytest.approx(whole["truth_rank_frequency"])
    for name, power in whole["spectra"].items():
        assert parts["spectra"][name] == pytest.approx(power)


def test_long_files_are_read_a_piece_at_a_time(pair, tmp_path, monkeypatch):
    prediction, truth, _ = pair
    monkeypatch.setattr(verify, "VALUES", 3 * M * NY * NX)
    sizes = []
    read = verify.read_steps
    monkeypatch.setattr(
        verify, "read_steps", lambda field, steps: sizes.append(len(steps)) or read(field, steps)
    )
    verify.verify(prediction, truth, tmp_path / "out")
    assert max(sizes) == 3
    assert sum(sizes) == 2 * STEPS


def test_files_are_matched_by_time_and_place(tmp_path, capsys):
    values = fields()
    # the truth runs the other way, is later, is larger, and has a longer domain
    wide = np.concatenate([values[0], values[0, :, :3]], 1)
    later = np.concatenate([wide[8:], wide[:20]])
    truth = write(tmp_path / "t.nc", later, times=dates(STEPS + 12, "2001-01-09"), flip=True)
    prediction = write(tmp_path / "p.nc", values[1:])
    verify.verify(prediction, truth, tmp_path / "out")
    wanted = scores(torch.from_numpy(values[1:, 8:]), torch.from_numpy(values[0, 8:]))
    assert found(tmp_path / "out")["variables"]["tas"]["scores"] == pytest.approx(wanted)
    noted = capsys.readouterr().err
    assert "32 common times, of 40 in the prediction and 52 in the truth" in noted
    verify.verify(prediction, truth, tmp_path / "few", time_range="2001-01-10:2001-01-14")
    assert found(tmp_path / "few")["times"]["count"] == 5


def test_a_prediction_larger_than_the_truth_is_cut(tmp_path):
    values = fields()
    prediction = write(tmp_path / "p.nc", values[1:])
    truth = write(tmp_path / "t.nc", values[0, :, :8, :10])
    verify.verify(prediction, truth, tmp_path / "out")
    wanted = scores(
        torch.from_numpy(values[1:, :, :8, :10]), torch.from_numpy(values[0, :, :8, :10])
    )
    assert found(tmp_path / "out")["variables"]["tas"]["scores"] == pytest.approx(wanted)


def test_times_with_gaps_are_read_in_order(tmp_path):
    values = fields()
    path = write(tmp_path / "p.nc", values[1:])
    field = open_field(path, ensemble=True)
    steps = np.array([0, 1, 2, 9, 5, 6, 30])
    np.testing.assert_array_equal(read_steps(field, steps)[:, :, 0], values[1:, steps])
    gappy = write(tmp_path / "t.nc", values[0][::3], times=dates()[::3])
    verify.verify(path, gappy, tmp_path / "out")
    wanted = scores(torch.from_numpy(values[1:, ::3]), torch.from_numpy(values[0, ::3]))
    assert found(tmp_path / "out")["variables"]["tas"]["scores"] == pytest.approx(wanted)


def test_a_file_without_members_is_one_member(tmp_path, capsys):
    values = fields()
    prediction = write(tmp_path / "p.nc", values[1])
    truth = write(tmp_path / "t.nc", values[0])
    verify.verify(prediction, truth, tmp_path / "out")
    results = found(tmp_path / "out")
    record = results["variables"]["tas"]["scores"]
    assert results["members"] == 1
    assert record["crps"] == pytest.approx(record["mae"])
    assert record["spread_skill"] is None
    assert (tmp_path / "out" / "verification_tas.png").exists()
    assert "–" in capsys.readouterr().out


def test_several_variables_and_masked_cells(tmp_path):
    tas, pr = fields(), fields(1, variable="pr")
    sea = np.zeros((NY, NX), bool)
    sea[:, 12:] = True
    truth = {"tas": np.where(sea, np.nan, tas[0]), "pr": np.where(sea, np.nan, pr[0])}
    write(tmp_path / "t.nc", truth)
    write(tmp_path / "p.nc", {"tas": tas[1:], "pr": pr[1:]})
    verify.verify(tmp_path / "p.nc", tmp_path / "t.nc", tmp_path / "out")
    results = found(tmp_path / "out")["variables"]
    for name, values in (("tas", tas), ("pr", pr)):
        land = scores(
            torch.from_numpy(values[1:, ..., :12]),
            torch.from_numpy(values[0, ..., :12]),
            amount=name == "pr",
        )
        for key in set(land) - {"lsd"}:
            assert results[name]["scores"][key] == pytest.approx(land[key], rel=1e-6), (name, key)
        assert (tmp_path / "out" / f"verification_{name}.png").exists()
    assert "wet_days" in results["pr"]["scores"]
    assert "wet_days" not in results["tas"]["scores"]


def test_few_times_have_scores_but_no_interval(tmp_path):
    values = fields(steps=2)
    write(tmp_path / "p.nc", values[1:], times=dates(2))
    write(tmp_path / "t.nc", values[0], times=dates(2))
    verify.verify(tmp_path / "p.nc", tmp_path / "t.nc", tmp_path / "out")
    record = found(tmp_path / "out")["variables"]["tas"]
    assert record["intervals_95"] == {}
    assert record["scores"]["crps"] > 0


def assert_refused(tmp_path, *words, truth, prediction=None):
    values = fields()
    if prediction is None and not (prediction := tmp_path / "p.nc").exists():
        write(prediction, values[1:])
    with pytest.raises(AleatorError) as caught:
        verify.verify(prediction, truth, tmp_path / "out")
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    assert not list(tmp_path.glob(".out*"))
    return message


def test_calendars_must_agree(tmp_path):
    values = fields()
    odd = write(tmp_path / "c.nc", values[0], times=dates(calendar="360_day"))
    assert_refused(tmp_path, "calendars differ", "360_day", "standard", truth=odd)
    other = write(tmp_path / "d.nc", values[1:], times=dates(calendar="noleap"))
    assert_refused(tmp_path, "noleap", "360_day", prediction=other, truth=odd)
    even = write(tmp_path / "e.nc", values[1:], times=dates(calendar="360_day"))
    verify.verify(even, odd, tmp_path / "out")
    assert found(tmp_path / "out")["times"]["count"] == STEPS


def test_calendars_of_the_same_days_agree(tmp_path):
    values = fields()
    prediction = write(tmp_path / "p.nc", values[1:], times=dates(calendar="proleptic_gregorian"))
    verify.verify(prediction, write(tmp_path / "t.nc", values[0]), tmp_path / "out")
    assert found(tmp_path / "out")["times"]["count"] == STEPS


def test_some_times_must_be_common(tmp_path):
    later = write(tmp_path / "l.nc", fields()[0], times=dates(start="2003-01-01"))
    assert_refused(tmp_path, "no common times", "2001-01-01", "2003-01-01", truth=later)
    noon = write(tmp_path / "n.nc", fields()[0], times=dates(start="2001-01-01T12:00:00"))
    assert_refused(tmp_path, "no common times", "12:00", "hour of the day", truth=noon)


def test_grids_and_variables_must_agree(tmp_path):
    values = fields()
    blocks = values[0].reshape(STEPS, NY // 2, 2, -1, 2).mean((2, 4))
    coarse = write(tmp_path / "c.nc", blocks, step=1.0)
    assert_refused(tmp_path, "different grids", "12 x 16", "6 x 8", truth=coarse)
    wet = write(tmp_path / "w.nc", {"pr": values[0]})
    assert_refused(tmp_path, "no variable tas", "pr", truth=wet)
    assert_refused(tmp_path, "no such file", truth=tmp_path / "nothing.nc")
    empty = write(tmp_path / "e.nc", np.full_like(values[0], np.nan))
    assert_refused(tmp_path, "tas", "missing", truth=empty)


def test_an_existing_output_is_kept_unless_told(pair, tmp_path):
    prediction, truth, values = pair
    verify.verify(prediction, truth, tmp_path / "out")
    before = (tmp_path / "out" / "results.json").read_text()
    with pytest.raises(AleatorError, match="exists"):
        verify.verify(prediction, truth, tmp_path / "out")
    assert (tmp_path / "out" / "results.json").read_text() == before
    (tmp_path / "out" / "verification_old.png").write_text("of an older report")
    shifted = write(tmp_path / "q.nc", values[1:] + 1)
    verify.verify(shifted, truth, tmp_path / "out", overwrite=True)
    after = json.loads((tmp_path / "out" / "results.json").read_text())
    bias = after["variables"]["tas"]["scores"]["bias"]
    assert bias == pytest.approx(1, abs=0.2)
    assert not (tmp_path / "out" / "verification_old.png").exists()


def test_overwriting_deletes_reports_only(pair, tmp_path):
    prediction, truth, _ = pair
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    with pytest.raises(AleatorError, match="not a report"):
        verify.verify(prediction, truth, home, overwrite=True)
    with pytest.raises(AleatorError, match="not a report"):
        verify.verify(prediction, truth, home / "thesis.tex", overwrite=True)
    assert (home / "thesis.tex").read_text() == "years of work"


def test_a_failure_leaves_the_old_report(pair, tmp_path, monkeypatch):
    prediction, truth, _ = pair
    verify.verify(prediction, truth, tmp_path / "out")
    before = sorted(p.name for p in tmp_path.rglob("*"))

    def fail(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(plots, "draw_verification", fail)
    with pytest.raises(OSError, match="no space"):
        verify.verify(prediction, truth, tmp_path / "out", overwrite=True)
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def diagnose(values):
    study = Diagnostics()
    values = torch.as_tensor(values)
    study.add(values[1:], values[0], range(values.shape[1]))
    return study.result()


@pytest.mark.exact
def test_coverage_from_ranks_is_that_of_the_core():
    values = np.random.default_rng(0).standard_normal((9, 30, 8, 8))
    levels = (0.05, 0.3, 0.5, 0.9, 0.99)
    found = diagnose(values).covered(levels)
    assert found.shape == (30, 5)
    members, truth = torch.from_numpy(values[1:]), torch.from_numpy(values[0])
    np.testing.assert_allclose(found.mean(0), coverage(members, truth, levels), rtol=1e-12)


def test_spread_tells_the_error_of_a_calibrated_ensemble():
    rng = np.random.default_rng(0)
    size = np.exp(rng.uniform(-1, 1, (400, 16, 16)))  # known to the ensemble, cell by cell
    found = diagnose(size * rng.standard_normal((41, 400, 16, 16)))
    assert len(found.spread) == 10
    assert found.spread[-1] > 4 * found.spread[0]
    np.testing.assert_allclose(found.skill[1:-1], found.spread[1:-1], rtol=0.06)


@pytest.mark.exact
def test_maps_are_means_over_time():
    values = np.random.default_rng(0).standard_normal((4, 20, 6, 6))
    values[0, 3:9, 2, 2] = np.nan
    values[2, :, 5, 5] = np.nan
    found = diagnose(values)
    wanted = np.nanmean(values[1:, :, :5].mean(0) - values[0, :, :5], axis=0)
    np.testing.assert_allclose(found.bias[:5], wanted, rtol=1e-9)
    assert np.isnan(found.bias[5, 5])
    assert np.isnan(found.crps[5, 5])
    assert np.isfinite(np.delete(found.crps.ravel(), 35)).all()


def test_blocks_are_as_long_as_the_memory():
    rng = np.random.default_rng(0)
    white = rng.standard_normal(2000)
    red = np.zeros(2000)
    for t in range(1, 2000):
        red[t] = 0.9 * red[t - 1] + white[t]  # tau = (1 + 0.9) / (1 - 0.9) = 19
    assert block_length(torch.from_numpy(white)) <= 20
    assert 25 <= block_length(torch.from_numpy(red)) <= 60
    assert block_length(torch.ones(9)) == 2
    assert interval(np.ones(3)) is None


@pytest.mark.slow
def test_intervals_hold_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        noise = rng.standard_normal(600)
        red = np.zeros(600)
        for t in range(1, 600):
            red[t] = 0.8 * red[t - 1] + noise[t]
        hold = interval(red[100:], draws=300)
        hits += hold.low < 0 < hold.high
    assert 0.85 < hits / 200 < 0.99
