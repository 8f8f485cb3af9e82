"""Scores: cases computed by hand, reference libraries, and statistics known in advance."""

import math

import numpy as np
import pytest
import scoringrules
import torch

from apps.climate_downscaling import evaluation, spectra
from apps.climate_downscaling.evaluation import Tally, scores, table
from apps.climate_downscaling.spectra import log_spectral_distance, radial_power, wavelengths
from core.errors import AleatorError


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.exact
def test_a_case_computed_by_hand():
    # one cell in four times, the members 1 and 3 around the truth 2, then off by 2
    members = torch.tensor([[1.0, 1.0, 3.0, 3.0], [3.0, 3.0, 5.0, 5.0]]).reshape(2, 4, 1, 1)
    truth = torch.full((4, 1, 1), 2.0)
    found = scores(members, truth)
    assert found["bias"] == pytest.approx(1.0)  # 0, 0, 2, 2
    assert found["mae"] == pytest.approx(1.0)
    assert found["rmse"] == pytest.approx(math.sqrt(2))
    # mean |x - y| is 1, 1, 2, 2; the fair spread term |x_1 - x_2| / 2 is 1
    assert found["crps"] == pytest.approx(0.5)
    # variance 2, times 1 + 1/2, over a mean square of 2
    assert found["spread_skill"] == pytest.approx(math.sqrt(1.5))
    # 4 values of 8 are 3 and 2 of 8 are 5: the 99.9 % quantile is 5, the truth's is 2
    assert found["q999"] == pytest.approx(3.0)
    assert math.isnan(found["lsd"])  # one cell has no wavenumber


@pytest.mark.exact
def test_crps_is_that_of_scoringrules():
    members, truth = draw(7, 5, 4, 6), draw(5, 4, 6, seed=1)
    fair = scoringrules.crps_ensemble(
        truth.numpy(), members.movedim(0, -1).numpy(), estimator="fair"
    )
    assert scores(members, truth)["crps"] == pytest.approx(fair.mean(), rel=1e-12)


@pytest.mark.exact
def test_one_member_is_a_deterministic_forecast():
    members, truth = draw(1, 5, 4, 6), draw(5, 4, 6, seed=1)
    found = scores(members, truth)
    assert found["crps"] == pytest.approx(np.abs((members[0] - truth).numpy()).mean(), rel=1e-12)
    assert math.isnan(found["spread_skill"])
    assert math.isnan(found["coverage_90"])


@pytest.mark.exact
def test_amounts_have_wet_days_and_relative_extremes():
    truth = torch.zeros(1, 40, 50)
    truth[:, :10] = 8.0  # a quarter is wet
    members = torch.zeros(2, 1, 40, 50)
    members[0, :, :20] = 10.0  # a half
    members[1, :, :10] = 10.0  # a quarter
    found = scores(members, truth, amount=True)
    assert found["wet_days"] == pytest.approx(0.375 - 0.25)
    assert found["q999"] == pytest.approx(10 / 8 - 1)
    assert "wet_days" not in scores(members, truth)
    assert scores(members, truth)["q999"] == pytest.approx(2.0)


@pytest.mark.exact
@pytest.mark.parametrize("count", [1, 7, 1001, 5000])
def test_the_extreme_quantile_is_numpys(count):
    members, truth = draw(3, count, 1, 1), draw(count, 1, 1, seed=1)
    wanted = np.quantile(members.numpy(), 0.999) - np.quantile(truth.numpy(), 0.999)
    assert scores(members, truth)["q999"] == pytest.approx(wanted, rel=1e-12)


@pytest.mark.exact
def test_weights_are_those_of_numpys_average():
    members, truth = draw(5, 6, 4, 8), draw(6, 4, 8, seed=1)
    weights = torch.rand(4, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    error = (members.mean(0) - truth).numpy()
    shares = np.broadcast_to(weights.numpy(), error.shape)
    found = scores(members, truth, weights=weights)
    assert found["rmse"] == pytest.approx(np.average(error**2, weights=shares) ** 0.5, rel=1e-12)
    assert found["bias"] == pytest.approx(np.average(error, weights=shares), rel=1e-12)
    cell = torch.zeros(4, 8)
    cell[1, 2] = 3.0  # all weight on one cell: the scores of that cell
    alone = scores(members[..., 1:2, 2:3], truth[..., 1:2, 2:3])
    one = scores(members, truth, weights=cell)
    for name in ("rmse", "mae", "bias", "crps", "spread_skill", "coverage_90"):
        assert one[name] == pytest.approx(alone[name], rel=1e-12)


@pytest.mark.exact
def test_a_doubled_field_is_six_decibels_away():
    fields = draw(6, 12, 20)
    assert log_spectral_distance(2 * fields, fields) == pytest.approx(20 * math.log10(2))
    assert log_spectral_distance(fields + 280, fields) == pytest.approx(0, abs=1e-9)
    members = torch.stack([2 * fields, fields])  # member 0 is the one that is judged
    assert scores(members, fields)["lsd"] == pytest.approx(20 * math.log10(2))


@pytest.mark.exact
@pytest.mark.parametrize("shape", [(32, 32), (32, 48), (40, 24)])
@pytest.mark.parametrize("direction", ["rows", "columns"])
def test_a_wave_is_at_its_wavenumber(shape, direction):
    n, k = min(shape), 5
    y, x = torch.meshgrid(*(torch.arange(s, dtype=torch.float64) for s in shape), indexing="ij")
    along = y if direction == "rows" else x
    power = radial_power(torch.cos(2 * math.pi * k * along / n))
    assert len(power) == n // 2 - 1
    assert int(power.argmax()) == k - 1
    # a Hann window leaks into the two neighbours and next to nowhere else
    assert power[k + 1 :].max() < 1e-3 * power[k - 1]
    assert wavelengths(*shape)[k - 1] == pytest.approx(n / k)


def test_white_noise_has_a_flat_spectrum():
    power = radial_power(draw(400, 32, 48)).mean(0)
    # per mode, the window leaves sum(h²): 3/8 of the cells a side, up to its zero ends
    window = np.hanning(32)[:, None] ** 2 * np.hanning(48) ** 2
    np.testing.assert_allclose(power[1:], window.sum(), rtol=0.06)


@pytest.mark.exact
def test_a_large_field_is_not_made_noise_by_its_mean():
    fields = draw(4, 16, 16)
    warm = (fields + 1e6).float()
    assert log_spectral_distance(warm, fields) < 0.5


@pytest.mark.exact
def test_masked_cells_change_nothing():
    members, truth = draw(4, 6, 8, 12), draw(6, 8, 12, seed=1)
    sea = torch.zeros(8, 12, dtype=torch.bool)
    sea[:, 8:] = True
    known = scores(members[..., :8], truth[..., :8], factor=4, amount=True)
    masked = scores(members, truth.masked_fill(sea, torch.nan), factor=4, amount=True)
    holes = scores(members.masked_fill(sea, torch.nan), truth, factor=4, amount=True)
    for name in set(known) - {"lsd"}:  # the window is that of the whole domain
        assert masked[name] == pytest.approx(known[name], rel=1e-12), name
        assert holes[name] == pytest.approx(known[name], rel=1e-12), name
    wild = members.masked_fill(sea, 1e6)  # what a model says over the sea does not matter
    again = scores(wild, truth.masked_fill(sea, torch.nan), factor=4, amount=True)
    assert again == pytest.approx(masked)
    doubled = torch.stack([2 * truth]).masked_fill(sea, torch.nan)
    assert scores(doubled, truth)["lsd"] == pytest.approx(20 * math.log10(2))


def test_missing_times_are_left_out():
    members, truth = draw(3, 5, 8, 8), draw(5, 8, 8, seed=1)
    gap = truth.clone()
    gap[2] = torch.nan
    keep = [0, 1, 3, 4]
    assert scores(members, gap, factor=2) == pytest.approx(
        scores(members[:, keep], truth[keep], factor=2)
    )


@pytest.mark.exact
def test_the_coarse_error_is_that_of_block_means():
    truth = draw(5, 8, 12) + 280
    shift = torch.tensor([0.5, -0.5]).double().reshape(2, 1, 1, 1)
    blocks = truth.numpy().reshape(5, 2, 4, 3, 4).mean((2, 4))
    found = scores(truth + shift, truth, factor=4)["coarse_error"]
    assert found == pytest.approx(0.5 / blocks.std(ddof=1), rel=1e-9)
    pattern = torch.tensor([1.0, -1.0]).repeat(6)  # has no block mean
    assert scores((truth + pattern)[None], truth, factor=4)["coarse_error"] < 1e-12


@pytest.mark.parametrize("amount", [False, True])
def test_pieces_make_no_difference(amount, monkeypatch):
    members, truth = draw(4, 23, 8, 12).float() * 5, draw(23, 8, 12, seed=1).float() * 5
    truth[:, 0, 0] = torch.nan
    truth[7] = torch.nan
    whole = scores(members, truth, amount=amount, factor=4)
    monkeypatch.setattr(evaluation, "_PIECE", 4 * 8 * 12 * 3)  # three times at once
    parts = scores(members, truth, amount=amount, factor=4)
    assert parts == pytest.approx(whole, rel=1e-9)


def test_an_exchangeable_ensemble_is_calibrated():
    draws = draw(9, 200, 12, 16)
    found = scores(draws[1:], draws[0], factor=4)
    assert found["spread_skill"] == pytest.approx(1, abs=0.02)
    assert found["coverage_90"] == pytest.approx(0.9, abs=0.01)
    assert found["bias"] == pytest.approx(0, abs=0.02)
    assert found["lsd"] < 0.6  # dB of 200 draws of a few modes
    assert found["q999"] == pytest.approx(0, abs=0.15)
    # the fair CRPS estimates that of the distribution: 1/sqrt(pi) for a standard normal
    assert found["crps"] == pytest.approx(1 / math.sqrt(math.pi), rel=0.01)
    narrow = scores(0.5 * draws[1:], draws[0])
    assert narrow["coverage_90"] < 0.8
    assert narrow["spread_skill"] < 0.6


def test_the_series_averages_to_the_score():
    members, truth = draw(3, 30, 4, 4), draw(30, 4, 4, seed=1)
    tally = Tally(members.numel())
    for start in range(0, 30, 7):
        tally.add(members[:, start : start + 7], truth[start : start + 7])
    found = tally.scores()
    assert tally.series("crps").shape == (30,)
    assert tally.series("crps").mean().item() == pytest.approx(found["crps"])
    assert tally.series("square").mean().item() ** 0.5 == pytest.approx(found["rmse"])


@pytest.mark.parametrize(
    ("members", "truth", "said"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(3, 4, 5), "(2, 3, 4, 4)"),
        (torch.zeros(3, 4, 4), torch.zeros(4, 4), "do not match"),
        (torch.zeros(0, 3, 4, 4), torch.zeros(3, 4, 4), "(0, 3, 4, 4)"),
        (torch.zeros(2, 3, 4, 4), torch.full((3, 4, 4), torch.nan), "every cell is missing"),
        (torch.zeros(2, 0, 4, 4), torch.zeros(0, 4, 4), "nothing to score"),
    ],
)
def test_what_cannot_be_scored_is_refused(members, truth, said):
    with pytest.raises(AleatorError) as caught:
        scores(members, truth)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_blocks_that_do_not_fit_are_refused():
    with pytest.raises(AleatorError, match="whole blocks of 3"):
        scores(torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8), factor=3)


def test_the_table_shows_what_there_is():
    members, truth = draw(4, 6, 8, 8), draw(6, 8, 8, seed=1)
    rows = [
        {"method": "wide", **scores(members, truth, amount=True, factor=2)},
        {"method": "alone", **scores(members[:1], truth, amount=True, factor=2)},
    ]
    shown = table(rows, amount=True, units="mm day-1", title="pr").markdown()
    assert "pr; errors in mm day-1" in shown
    assert "wet days" in shown
    assert "coarse/sd" in shown
    assert "–" in shown.split("alone")[1]  # no spread of one member
    plain = table(rows[:1], amount=False, units="K")
    assert plain.title == "errors in K"
    assert "crps_interval" not in plain.columns
    close = [{"method": n, "spread_skill": s} for n, s in [("a", 0.5), ("b", 1.1), ("c", 1.4)]]
    assert "**1.10**" in table(close, amount=False, units="K").markdown()


def test_spectra_of_tiny_grids_are_empty():
    assert radial_power(torch.zeros(2, 3, 3)).shape == (2, 0)
    assert math.isnan(spectra.log_spectral_distance(torch.ones(2, 3, 3), torch.ones(2, 3, 3)))
    assert len(wavelengths(3, 3)) == 0


@pytest.mark.parametrize(
    ("size", "shown"), [(0.1352, "0.1352"), (52.7, "52.70"), (3e-4, "0.0003000")]
)
def test_the_table_has_the_digits_that_matter(size, shown):
    text = table([{"method": "a", "crps": size, "rmse": size}], amount=False, units="K").markdown()
    assert f" {shown} " in text
