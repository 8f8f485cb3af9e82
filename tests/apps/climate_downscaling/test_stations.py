"""Observations at points: what is read, on which cells, and that members agree with them."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from apps.climate_downscaling.constraints import Points, draw_given, transformed
from apps.climate_downscaling.downscale import Downscaler, ensemble
from apps.climate_downscaling.field import Variable
from apps.climate_downscaling.grid import Grid
from apps.climate_downscaling.preprocessing import Transforms
from apps.climate_downscaling.stations import Seen, describe_stations, read_stations
from core.diffusion import Diffusion
from core.errors import AleatorError

GRID = Grid(50.0 - 0.25 * np.arange(8), 5.0 + 0.25 * np.arange(12))
TAS, PR = Variable("tas", "K"), Variable("pr", "mm day-1")
TABLE = """time,lat,lon,tas [degC],pr [mm day-1]
2001-01-01 00:00,50.01,5.02,7.5,0
2001-01-01 00:00,49.5,6.0,,3.2
2001-01-01 01:00,50.01,5.02,8.5,
"""


@pytest.fixture
def table(tmp_path):
    def write(text=TABLE, name="stations.csv"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def read(path, variables=(TAS, PR), valid=None, **errors):
    valid = np.ones(GRID.shape, bool) if valid is None else valid
    return read_stations(path, variables, GRID, valid, errors)


def test_a_table_is_read_onto_cells_in_canonical_units(table):
    found = read(table(), tas=0.2)
    first, second = (found.by_time[key] for key in sorted(found.by_time))
    assert first.cells.tolist() == [0, 96, 96 + 2 * 12 + 4]
    np.testing.assert_allclose(first.values, [280.65, 0, 3.2], rtol=1e-6)
    np.testing.assert_allclose(first.errors, [0.2, 1, 1])
    assert second.cells.tolist() == [0]
    assert found.places == 2


def test_netcdf_stations_equal_the_table(table, tmp_path):
    want = read(table(), (TAS,))
    values = np.array([[7.5, np.nan], [8.5, np.nan]], "f4")
    dataset = xr.Dataset(
        {"tas": (("time", "station"), values, {"units": "degC"})},
        {
            "time": pd.to_datetime(["2001-01-01 00:00", "2001-01-01 01:00"]),
            "lat": ("station", [50.01, 49.5]),
            "lon": ("station", [5.02, 6.0]),
        },
    )
    dataset.to_netcdf(tmp_path / "stations.nc")
    assert read(tmp_path / "stations.nc", (TAS,)).fingerprint() == want.fingerprint()


def test_stations_of_one_cell_are_averaged_and_far_ones_left_out(table):
    text = "time,lat,lon,tas [K]\n2001-01-01,50,5,280\n2001-01-01,50.02,5.02,282\n"
    found = read(table(text + "2001-01-01,10,5,300\n"))
    (seen,) = found.by_time.values()
    assert seen.values.tolist() == [281]
    assert "1 stations lie outside" in found.notes[0]


def test_a_cell_without_data_hands_its_station_to_the_next(table):
    valid = np.ones(GRID.shape, bool)
    valid[0, 0] = False
    (seen,) = read(
        table("time,lat,lon,tas [K]\n2001-01-01,50,5.02,280\n"), valid=valid
    ).by_time.values()
    assert seen.cells.tolist() == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time,lat,tas [K]\n2001-01-01,50,280\n", "no column lon; it has time, lat, tas"),
        ("time,lat,lon,tas\n2001-01-01,50,5,280\n", "no units"),
        ("time,lat,lon,psl [Pa]\n2001-01-01,50,5,1e5\n", "none of the model's variables"),
        ("time,lat,lon,tas [K]\n2001-01-01,north,5,280\n", "row 1: lat is 'north'"),
        ("time,lat,lon,tas [K]\n2001-01-01,50,,280\n", "row 1: lon is 'nan'"),
        ("time,lat,lon,tas [K]\n2001-01-01,50,5,7.5\n", "degrees Celsius?"),
        ("time,lat,lon,tas [K]\n2001-01-01,50,5,inf\n", "infinite"),
        ("time,lat,lon,tas [K]\nsoon,50,5,280\n", "holds no dates"),
        ("time,lat,lon,tas [K]\n2001-01-01,10,5,280\n", "within the model's domain"),
        ("time,lat,lon,tas [K]\n2001-01-01,50,5,281\n2001-01-01,50,5,282\n", "two rows"),
        ("time,lat,lon,tas [mm]\n2001-01-01,50,5,280\n", "do not convert"),
        ("", "not a CSV table"),
    ],
)
def test_bad_tables_are_refused(table, text, message):
    with pytest.raises(AleatorError, match=message):
        read(table(text))


def test_bad_errors_are_refused(table):
    for errors, message in (({"uas": 1.0}, "the model's variables"), ({"tas": 0.0}, "positive")):
        with pytest.raises(AleatorError, match=message):
            read(table(), **errors)


def test_amounts_are_seen_in_the_space_of_the_model():
    transforms = Transforms.of(["tas", "pr"])
    seen = Seen(np.array([0, 4, 5]), np.array([281.0, 9.0, 0.0]), np.array([0.5, 1.0, 1.0]))
    values, errors, least = transformed(seen, transforms, 4)
    dry = 0.1**0.5
    np.testing.assert_allclose(values, [281, 3, dry])
    np.testing.assert_allclose(errors, [0.5, 0.5 / 3, 0.5])
    np.testing.assert_allclose(least, [-np.inf, dry, dry])


def test_what_is_below_the_least_has_no_derivative():
    generator = torch.Generator().manual_seed(0)
    x, u = torch.randn(2, 3, 1, 2, 4, generator=generator).double()
    ones = torch.ones(3).double()
    points = Points(
        torch.tensor([0, 3, 7]), ones, 2 * ones, 0.5 * ones, torch.tensor([1.0, 0.0, 9.0])
    )
    found = points.tangent(x, u)
    torch.testing.assert_close(found, torch.func.jvp(points, (x,), (u,))[1])
    assert (found == 0).any()
    assert (found != 0).any()
    assert not points.linear


class Zero(torch.nn.Module):
    """White noise of unit variance: EDM's preconditioning is then the whole denoiser."""

    def forward(self, x, noise, context=None):
        return 0 * x


def test_the_posterior_of_a_gaussian_prior_is_exact():
    model = Diffusion(Zero(), (1, 4, 5), path={"name": "edm"})
    mean, scale = torch.full((1, 1, 4, 5), 280.0), torch.full((1, 1, 4, 5), 2.0)
    seen = Seen(np.array([7]), np.array([284.0]), np.array([1.0]))
    drawn = draw_given(
        *(model, seen, Transforms.of(["tas"]), None, mean, scale),
        members=4000,
        sampler={"name": "2m", "steps": 32},
        generator=torch.Generator().manual_seed(0),
    )
    z = (mean + scale * drawn)[:, 0, 0].flatten(1)
    gain = 4 / (4 + 1)  # prior N(280, 2²), one observation of standard deviation 1
    assert z[:, 7].mean().item() == pytest.approx(280 + gain * 4, abs=0.06)
    assert z[:, 7].std().item() == pytest.approx((4 * (1 - gain)) ** 0.5, rel=0.06)
    assert z[:, 3].mean().item() == pytest.approx(280, abs=0.12)
    assert z[:, 3].std().item() == pytest.approx(2, rel=0.06)


def test_members_agree_with_stations_and_keep_the_coarse_means(small_model, climate_files, table):
    downscaler = Downscaler.load(small_model, "cpu")
    field = downscaler.field(climate_files / "coarse.nc")
    free = ensemble(downscaler.model, field, 0, 2, members=4, seed=1)
    value = float(free[:, 0, 0, 3, 4].mean()) + 0.5
    lat, lon = (c[3, 4] for c in downscaler.model.fine_grid.geographic())
    text = f"time,lat,lon,tas [K]\n{field.times[0]},{lat},{lon},{value}\n"
    stations = downscaler.stations(table(text), {"tas": 0.05})
    assert "1 observations in 1 cells, at 1 of" in describe_stations(stations, field)
    given = ensemble(downscaler.model, field, 0, 2, members=4, seed=1, stations=stations)
    error = np.abs(given[:, 0, 0, 3, 4] - value).mean()
    assert error < 0.6 * np.abs(free[:, 0, 0, 3, 4] - value).mean()
    np.testing.assert_array_equal(given[:, 1], free[:, 1])  # a time without observations
    blocks = [f.reshape(4, 2, 1, 4, 2, 6, 2).mean((4, 6)) for f in (free, given)]
    np.testing.assert_allclose(blocks[0], blocks[1], atol=2e-3)


def test_no_observation_at_any_time_is_refused(small_model, climate_files, table):
    downscaler = Downscaler.load(small_model, "cpu")
    field = downscaler.field(climate_files / "coarse.nc")
    stations = downscaler.stations(table("time,lat,lon,tas [K]\n1990-01-01,50,5,280\n"))
    with pytest.raises(AleatorError, match="no observation at a time of the input"):
        describe_stations(stations, field)
