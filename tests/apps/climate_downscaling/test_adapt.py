"""`adapt` end to end: another grid in, the reference's climate out, changes kept."""

import numpy as np
import pytest
import xarray as xr

from apps.climate_downscaling.adapt import Request, adapt, checked_method
from core.errors import AleatorError

YEARS = 6


def series(start, warm, wet, size, seed):
    """Daily tas and pr of a small domain, with units of a model's file."""
    rng = np.random.default_rng(seed)
    times = np.datetime64(f"{start}-01-01", "ns") + np.arange(YEARS * 365) * np.timedelta64(1, "D")
    lat, lon = np.linspace(40, 44, size), np.linspace(0, 6, size)
    shape = (len(times), size, size)
    tas = 280 + warm + 3 * rng.standard_normal((len(times), 1, 1)) + rng.standard_normal(shape)
    pr = wet * rng.exponential(3.0, shape) * (rng.random(shape) < 0.5) / 86400
    return xr.Dataset(
        {
            "tas": (("time", "lat", "lon"), tas.astype(np.float32), {"units": "K"}),
            "pr": (("time", "lat", "lon"), pr.astype(np.float32), {"units": "kg m-2 s-1"}),
        },
        {
            "time": times,
            "lat": ("lat", lat, {"units": "degrees_north"}),
            "lon": ("lon", lon, {"units": "degrees_east"}),
        },
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapt")
    series(1990, 0.0, 1.0, 3, 0).to_netcdf(folder / "reanalysis.nc")
    series(1991, 2.0, 1.5, 5, 1).to_netcdf(folder / "historical.nc")
    series(2090, 5.0, 1.8, 5, 2).to_netcdf(folder / "future.nc")
    return folder


def request(files, output, source="future.nc", **options):
    return Request(
        (str(files / source),),
        (str(files / "historical.nc"),),
        (str(files / "reanalysis.nc"),),
        output,
        **options,
    )


def silent(line):
    pass


def test_the_change_is_kept_and_the_bias_is_not(files, tmp_path):
    said = []
    found = adapt(request(files, tmp_path / "out.nc"), say=said.append)
    assert any("1991-01-01 to 1995-12" in str(line) for line in said)  # the years of both
    out = xr.open_dataset(tmp_path / "out.nc")
    assert out["tas"].dims == ("time", "lat", "lon")
    assert out["tas"].shape == (YEARS * 365, 3, 3)
    assert out["pr"].attrs["units"] == "kg m-2 s-1"
    assert out.attrs["aleator_adapted"] == "qdm"
    assert float(out["tas"].mean()) == pytest.approx(280 + 3, abs=0.3)
    assert float(out["pr"].mean() * 86400) == pytest.approx(1.5 * 1.2, rel=0.08)
    facts = {(row["variable"], row["series"]): row for row in found.rows}
    assert facts["tas", "adjusted"]["mean"] == pytest.approx(float(out["tas"].mean()), abs=1e-3)
    assert facts["pr", "reference"]["wet"] == pytest.approx(0.5 * np.exp(-1 / 3), abs=0.03)


def test_history_itself_becomes_the_reference(files, tmp_path):
    adapt(request(files, tmp_path / "out.nc", "historical.nc", method="qm"), say=silent)
    out, wanted = (xr.open_dataset(p) for p in (tmp_path / "out.nc", files / "reanalysis.nc"))
    for level in (0.1, 0.5, 0.9):
        ours, theirs = (d["tas"].quantile(level).item() for d in (out, wanted))
        assert ours == pytest.approx(theirs, abs=0.3)
    assert float((out["pr"] > 1 / 86400).mean()) == pytest.approx(
        float((wanted["pr"] > 1 / 86400).mean()), abs=0.03
    )


def test_the_same_command_gives_the_same_numbers(files, tmp_path):
    one, two = tmp_path / "one.nc", tmp_path / "two.nc"
    for path in (one, two):
        adapt(request(files, path, variables=("pr",)), say=silent)
    first, second = xr.open_dataset(one), xr.open_dataset(two)
    np.testing.assert_array_equal(first["pr"], second["pr"])
    assert set(first.data_vars) == {"pr"} | {n for n in first.data_vars if n.endswith("_bnds")}


def test_mistakes_are_refused_before_anything_is_written(files, tmp_path):
    (tmp_path / "there.nc").touch()
    with pytest.raises(AleatorError, match="exists"):
        adapt(request(files, tmp_path / "there.nc"), say=silent)
    with pytest.raises(AleatorError, match=r"must end in \.nc"):
        adapt(request(files, tmp_path / "out.zarr"), say=silent)
    swapped = Request(
        (str(files / "future.nc"),),
        (str(files / "future.nc"),),
        (str(files / "reanalysis.nc"),),
        tmp_path / "out.nc",
    )
    with pytest.raises(AleatorError, match="no year in common"):
        adapt(swapped, say=silent)
    with pytest.raises(AleatorError, match="no variable"):
        adapt(request(files, tmp_path / "out.nc", variables=("tas", "psl")), say=silent)
    with pytest.raises(AleatorError, match="--method eqm"):
        checked_method("eqm")
    assert not (tmp_path / "out.nc").exists()
