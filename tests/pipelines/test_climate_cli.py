"""`python -m pipelines.climate` as a user meets it: outputs, resuming, one line a mistake."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from apps.climate_downscaling.data import sample_path
from pipelines.climate import app

SAMPLE_DAY = "2019-03-28:2019-03-28"


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def coarse(tmp_path_factory):
    """Three hours of the bundled sample, coarsened, as a file a user might have."""
    from apps.climate_downscaling.downscale import Downscaler, open_input

    folder = tmp_path_factory.mktemp("cli")
    downscaler = Downscaler.load(None, "cpu")
    field, _ = open_input(downscaler, None, "2019-03-28T00:2019-03-28T02")
    grid = field.grid
    xr.Dataset(
        {"tas": (("time", "lat", "lon"), field.read()[:, 0], {"units": "K"})},
        {
            "time": field.times,
            "lat": ("lat", grid.y, {"units": "degrees_north"}),
            "lon": ("lon", grid.x, {"units": "degrees_east"}),
        },
    ).to_netcdf(folder / "coarse.nc")
    return folder / "coarse.nc"


def test_help_teaches(coarse):
    text = invoke("downscale", "--help").output
    for word in ("--members", "--seed", "--scheduler", "--time-range", "--conserve", "--regrid"):
        assert word in text


def test_the_sample_is_downscaled_drawn_and_scored(tmp_path):
    out = tmp_path / "out.nc"
    found = invoke("downscale", "-o", out, "--members", 4, "--time-range", SAMPLE_DAY)
    assert found.exit_code == 0, found.output
    assert "this model" in found.stdout
    assert "ridge + dressed residuals" in found.stdout
    with xr.open_dataset(out) as fine:
        assert dict(fine.sizes)["member"] == 4
        assert fine["tas"].shape == (4, 24, 32, 48)
        assert "ood_score" in fine
    assert (tmp_path / "out.png").stat().st_size > 20_000
    assert {p.name for p in tmp_path.iterdir()} == {"out.nc", "out.png"}


def test_a_users_file_in_other_terms_gives_the_same_numbers(coarse, tmp_path):
    plain = xr.open_dataset(coarse)
    turned = plain.rename(tas="t2m").isel(lat=slice(None, None, -1)).load()
    turned = turned.assign_coords(lon=turned["lon"] % 360).sortby("lon")
    turned["t2m"] = turned["t2m"] - 273.15
    turned["t2m"].attrs = {"units": "degC", "standard_name": "air_temperature"}
    turned["lon"].attrs, turned["lat"].attrs = plain["lon"].attrs, plain["lat"].attrs
    turned.to_netcdf(tmp_path / "turned.nc")
    options = ("--members", 2, "--no-figure")
    assert invoke("downscale", coarse, "-o", tmp_path / "a.nc", *options).exit_code == 0
    found = invoke("downscale", tmp_path / "turned.nc", "-o", tmp_path / "b.zarr", *options)
    assert found.exit_code == 0, found.output
    a, b = xr.open_dataset(tmp_path / "a.nc"), xr.open_zarr(tmp_path / "b.zarr")
    assert b["t2m"].attrs["units"] in ("degC", "degree_Celsius", "Celsius")
    back = b["t2m"].isel(lat=slice(None, None, -1)).values + 273.15
    back = back[..., np.argsort(((b["lon"].values + 180) % 360) - 180)]
    np.testing.assert_allclose(back, a["tas"].values, atol=1e-3)


def broken(folder, coarse, change):
    """A copy of the coarse file with something wrong."""
    data = xr.open_dataset(coarse).load()
    data = change(data)
    path = folder / "broken.nc"
    data.to_netcdf(path)
    return path


def with_units(units):
    return lambda d: d.assign(tas=d["tas"].assign_attrs(units=units))


def shifted(degrees):
    return lambda d: d.assign_coords(lat=("lat", d["lat"].values + degrees, d["lat"].attrs))


def irregular(d):
    lat = d["lat"].values.copy()
    lat[3] += 0.3
    return d.assign_coords(lat=("lat", lat, d["lat"].attrs))


MISTAKES = {
    "variable absent": (lambda d: d.rename(tas="humid"), "humid"),
    "units": (with_units("kg"), "kg"),
    "no time": (lambda d: d.isel(time=0, drop=True), "time"),
    "another place": (shifted(0.4), "does not match the model's"),
    "finer": (lambda d: d.interp(lat=np.arange(57.625, 53.6, -0.5)), "finer"),
    "coarser": (lambda d: d.isel(lat=slice(None, None, 2)), "coarser"),
    "irregular": (irregular, "irregular"),
    "missing": (lambda d: d.where(d["lat"] < 57), "missing"),
    "twice the same time": (lambda d: d.isel(time=[0, 1, 1]), "twice|duplicate"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_the_file_are_one_line(name, coarse, tmp_path):
    change, word = MISTAKES[name]
    path = broken(tmp_path, coarse, change)
    found = invoke("downscale", path, "-o", tmp_path / "out.nc", "--members", 1)
    assert_refused(found, word)
    assert not (tmp_path / "out.nc").exists()


def assert_refused(found, word):
    import re

    assert found.exit_code == 2, found.output
    lines = found.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert sum(line.startswith("error") for line in lines) == 1
    assert "Traceback" not in found.output
    assert re.search(word, lines[-1]), lines[-1]


def test_mistakes_on_the_command_line_are_one_line(coarse, tmp_path):
    out = tmp_path / "out.nc"
    assert_refused(invoke("downscale", tmp_path / "none.nc", "-o", out), "no such file")
    (tmp_path / "text.nc").write_text("hello")
    assert_refused(
        invoke("downscale", tmp_path / "text.nc", "-o", out), "not a NetCDF, Zarr or GRIB"
    )
    assert_refused(invoke("downscale", coarse, "-o", out, "--members", 0), "members 0")
    assert_refused(invoke("downscale", coarse, "-o", tmp_path / "out.txt"), r"\.nc or \.zarr")
    assert_refused(
        invoke("downscale", coarse, "-o", tmp_path / "none" / "out.nc"), "no such folder"
    )
    assert_refused(
        invoke("downscale", coarse, "-o", out, "--model", tmp_path), "not a model folder"
    )
    assert_refused(invoke("downscale", coarse, "-o", out, "--device", "abacus"), "known: auto")
    assert_refused(
        invoke("downscale", coarse, "-o", out, "--time-range", "tomorrow"), "expected A:B"
    )
    assert_refused(
        invoke("downscale", coarse, "-o", out, "--time-range", "1999-01:1999-02"), "no time step"
    )
    assert_refused(invoke("downscale", coarse, "-o", out, "--regrid", "cubic"), "known are bil")
    assert_refused(
        invoke("train", coarse, "-o", tmp_path / "m", "--variables", "tas", "--factor", 4,
               "--region", "50:40,0:5"), "southern to the northern",
    )  # fmt: skip
    assert_refused(invoke("prepare", coarse, "-o", tmp_path / "p", "--variables", "tas"), "factor")
    assert_refused(
        invoke("train", "teleport://x/y.zarr", "-o", tmp_path / "m", "--variables", "tas",
               "--factor", 4), "Protocol not known",
    )  # fmt: skip
    out.write_text("precious")
    assert_refused(invoke("downscale", coarse, "-o", out), "exists")
    assert out.read_text() == "precious"
    assert_refused(invoke("train", coarse, "-o", tmp_path / "m"), "--variables is missing")
    assert_refused(
        invoke("train", coarse, "-o", tmp_path / "m", "--variables", "tas", "--factor", 4,
               "--set", "fit.speed=3"), r"unknown option fit\.speed",
    )  # fmt: skip
    assert_refused(invoke("info", tmp_path / "none"), "no such file")


def test_a_level_is_fitted_again_only_where_there_is_one(coarse, tmp_path):
    from apps.climate_downscaling.downscale import bundled_model

    again = ("train", coarse, "-o", tmp_path / "m", "--relevel", bundled_model())
    assert_refused(invoke(*again), "learnt from block means, which do not drift")
    assert_refused(invoke(*again, "--factor", 4), "--factor: with --relevel it is the model's")
    assert_refused(invoke(*again, "--resume"), "--resume: with --relevel it is the model's")
    assert_refused(invoke(*again[:-1], tmp_path), "not a model folder")
    assert not (tmp_path / "m").exists()


def test_input_on_another_grid_is_remapped_if_asked(coarse, tmp_path):
    with xr.open_dataset(coarse) as data:
        moved = data.interp(lat=np.arange(57.4, 50.7, -0.7), lon=np.arange(-9.4, 1.3, 0.7))
        for name in ("tas", "lat", "lon"):
            moved[name].attrs = data[name].attrs
        moved.load().to_netcdf(tmp_path / "moved.nc")
    options = ("-o", tmp_path / "out.nc", "--members", 1, "--no-figure")
    assert_refused(invoke("downscale", tmp_path / "moved.nc", *options), "--regrid")
    found = invoke("downscale", tmp_path / "moved.nc", *options, "--regrid", "nearest")
    assert found.exit_code == 0, found.output
    assert "remapped (nearest)" in found.stderr
    with xr.open_dataset(tmp_path / "out.nc") as fine:
        assert fine["tas"].shape == (1, 3, 32, 48)
        assert fine["tas"].notnull().all()


def test_truncated_files_and_models_are_refused(coarse, tmp_path):
    cut = tmp_path / "cut.nc"
    cut.write_bytes(coarse.read_bytes()[:3000])
    assert_refused(invoke("downscale", cut, "-o", tmp_path / "out.nc"), "damaged|cut short")
    from apps.climate_downscaling.downscale import bundled_model

    model = tmp_path / "model"
    shutil.copytree(bundled_model(), model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert_refused(
        invoke("downscale", coarse, "-o", tmp_path / "out.nc", "--model", model), "cut short"
    )


def test_unsorted_times_are_sorted_with_a_note(coarse, tmp_path):
    path = broken(tmp_path, coarse, lambda d: d.isel(time=[2, 0, 1]))
    found = invoke("downscale", path, "-o", tmp_path / "out.nc", "--members", 1, "--no-figure")
    assert found.exit_code == 0, found.output
    assert "sorted" in found.stderr
    times = xr.open_dataset(tmp_path / "out.nc")["time"].values
    assert (np.diff(times) > np.timedelta64(0)).all()


def command(*arguments):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "pipelines.climate", *map(str, arguments)]
    return subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_killed_run_leaves_nothing_finished_and_resumes_to_the_same_numbers(tmp_path):
    options = ("--members", 3, "--no-figure", "--time-range", "2019-03-27:2019-03-28")
    killed, whole = tmp_path / "killed.nc", tmp_path / "whole.nc"
    run = command("downscale", "-o", killed, "--chunk", 1, *options)
    done = tmp_path / "killed.nc.partial" / "done"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (done.is_dir() and len(os.listdir(done)) > 5):
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert not killed.exists()
    assert 5 < len(os.listdir(done)) < 48
    assert invoke("downscale", "-o", killed, "--chunk", 1, *options).exit_code == 0
    assert invoke("downscale", "-o", whole, "--chunk", 48, *options).exit_code == 0
    one, two = (xr.open_dataset(path)["tas"].values for path in (killed, whole))
    # Noise is the same to the bit; sums in the CPU's kernels may differ by one in the last place.
    np.testing.assert_allclose(one, two, rtol=3e-7, atol=0)
    assert not (tmp_path / "killed.nc.partial").exists()


@pytest.mark.slow
def test_workers_and_chunks_do_not_change_numbers(tmp_path):
    options = ("--members", 3, "--no-figure", "--time-range", "2019-03-25:2019-03-28")
    found = {}
    for name, extra in {
        "one": ("--chunk", 64),
        "seven": ("--chunk", 7),
        "dask-1": ("--chunk", 1, "--workers", 1),
        "dask-2": ("--chunk", 7, "--workers", 2),
    }.items():
        run = command("downscale", "-o", tmp_path / f"{name}.zarr", *options, *extra)
        _, said = run.communicate(timeout=300)
        assert run.returncode == 0, said
        found[name] = xr.open_zarr(tmp_path / f"{name}.zarr")["tas"].values
    for values in found.values():
        np.testing.assert_allclose(values, found["one"], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_killed_training_follows_the_curve_of_one_that_was_not(tmp_path):
    source = sample_path()
    options = ("--variables", "tas", "--factor", 4, "--set", "split.validation_fraction=0")
    for setting in ("steps=60", "log_every=1", "save_every=10"):
        options += ("--set", f"fit.{setting}")
    options += ("--set", "residual.model.net.channels=8")
    run = command("train", source, "-o", tmp_path / "killed", *options)
    curve = tmp_path / "killed" / "training" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (curve.exists() and _last_step(curve) >= 35):
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert 35 <= _last_step(curve) < 60
    assert not (tmp_path / "killed" / "model.json").exists()
    for name, extra in (("killed", ("--resume",)), ("whole", ())):
        run = command("train", source, "-o", tmp_path / name, *options, *extra)
        _, said = run.communicate(timeout=600)
        assert run.returncode == 0, said
    one, two = ((tmp_path / n / "metrics.jsonl").read_text() for n in ("killed", "whole"))
    assert one == two
    assert len(one.splitlines()) >= 60


def _last_step(curve):
    lines = curve.read_text().splitlines()[:-1]
    return json.loads(lines[-1])["step"] if lines else 0
