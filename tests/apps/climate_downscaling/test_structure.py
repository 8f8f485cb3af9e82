"""Correlations by streaming sums, against those of whole fields."""

import numpy as np
import pytest
import torch

from apps.climate_downscaling.dependence import cell_correlation, correlation_length, lag_one
from apps.climate_downscaling.grid import Grid
from apps.climate_downscaling.structure import Moments, Structure, structure_table

DAY = 86400


@pytest.fixture
def grid():
    return Grid(40 + 0.5 * np.arange(10), 5 + 0.5 * np.arange(12))


def fields(kinds, seed=0):
    """(kinds, 80, 2, 10, 12): smooth in space, persistent, two variables that correlate."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(kinds, 80, 2, 10, 12, generator=generator)
    noise = torch.nn.functional.avg_pool2d(noise.flatten(0, 1), 3, 1, 1).reshape(noise.shape)
    noise[:, 1:] += 0.8 * noise[:, :-1]
    noise[:, :, 1] += 0.5 * noise[:, :, 0]
    return noise + torch.tensor([280.0, 0.0])[:, None, None]


def test_streaming_equals_whole(grid):
    values = fields(1 + 3)
    truth, members = values[0], values[1:]
    keys = DAY * np.arange(80)
    found = Structure(["tas", "pr"], grid)
    for start in range(0, 80, 9):
        here = slice(start, start + 9)
        found.add(members[:, here], truth[here], keys[here].tolist())
    result = found.result()
    lat, lon = grid.geographic()
    for v, name in enumerate(("tas", "pr")):
        length = result["correlation_length_km"][name]
        assert length["truth"] == pytest.approx(correlation_length(truth[:, v], lat, lon))
        assert length["members"] == pytest.approx(correlation_length(members[0, :, v], lat, lon))
        # moments of pairs, rather than of the whole series: equal but for its two ends
        lag = result["lag_1"][name]
        assert lag["truth"] == pytest.approx(lag_one(truth[:, v], keys), abs=1e-6)
        mean = np.mean([lag_one(member[:, v], keys) for member in members])
        assert lag["members"] == pytest.approx(mean, abs=1e-6)
    between = result["between"]["tas–pr"]
    assert between["truth"] == pytest.approx(cell_correlation(truth[:, 0], truth[:, 1]))
    table = structure_table(result)
    assert [row["measure"] for row in table.rows].count("correlation in time") == 1


def test_pairs_across_a_gap_do_not_count(grid):
    values = fields(2)
    keys = DAY * np.arange(80)
    keys[40:] += 275 * DAY
    found = Structure(["tas", "pr"], grid)
    for start in range(0, 80, 40):
        here = slice(start, start + 40)
        found.add(values[1:, here], values[0, here], keys[here].tolist())
    lag = found.result()["lag_1"]["tas"]["truth"]
    assert lag == pytest.approx(lag_one(values[0, :, 0], keys), abs=1e-6)


def test_moments_of_nothing_and_of_constants():
    moments = Moments()
    assert np.isnan(moments.correlation())
    moments.add(torch.ones(5, 2, 2), torch.ones(5, 2, 2))
    assert np.isnan(moments.correlation())


def test_a_grid_without_coordinates_has_no_correlation_length():
    grid = Grid(np.arange(10.0), np.arange(12.0), kind="projected", units="1")
    values = fields(2)
    found = Structure(["tas", "pr"], grid)
    found.add(values[1:], values[0], (DAY * np.arange(80)).tolist())
    result = found.result()
    assert np.isnan(result["correlation_length_km"]["tas"]["truth"])
    assert 0.3 < result["lag_1"]["tas"]["truth"] < 0.9
