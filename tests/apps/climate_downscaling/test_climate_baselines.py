"""Baselines against SciPy, scikit-learn, PyTorch, exact cases and the published figures."""

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.ndimage import zoom
from torch.nn.functional import avg_pool2d
from torch.nn.functional import interpolate as torch_interpolate

from apps.climate_downscaling.baselines import (
    Dressed,
    Interpolation,
    MeanCorrected,
    QuantileMapping,
    Ridge,
    baselines,
)
from apps.climate_downscaling.data import sample_path
from apps.climate_downscaling.interpolation import interpolate
from core.errors import AleatorError
from core.evaluation import crps_ensemble, spread_skill


def pair(times=60, h=3, w=4, factor=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = 280 + 3 * torch.randn((times, h, w), generator=generator)
    rough = torch.randn((times, h * factor, w * factor), generator=generator)
    return coarse, interpolate(coarse, factor) + rough


@pytest.fixture(scope="module")
def era5():
    with xr.open_dataset(sample_path()) as dataset:
        fine = torch.from_numpy(dataset["tas"].values)
    return avg_pool2d(fine[:, None].double(), 4)[:, 0].float(), fine


@pytest.mark.exact
@pytest.mark.parametrize(("kind", "order"), [("nearest", 0), ("bilinear", 1), ("bicubic", 3)])
def test_matrices_do_what_scipy_does_to_the_whole_field(kind, order):
    field = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)).double()
    expected = zoom(field.numpy(), (1, 4, 4), order=order, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(interpolate(field, 4, kind).numpy(), expected, atol=1e-12)


@pytest.mark.exact
def test_bilinear_is_that_of_torch_and_nearest_repeats_cells():
    field = torch.randn(1, 2, 4, 6, generator=torch.Generator().manual_seed(1)).double()
    expected = torch_interpolate(field, scale_factor=3, mode="bilinear", align_corners=False)
    torch.testing.assert_close(interpolate(field, 3, "bilinear"), expected)
    repeated = field.repeat_interleave(3, -2).repeat_interleave(3, -1)
    torch.testing.assert_close(interpolate(field, 3, "nearest"), repeated)


@pytest.mark.property
@pytest.mark.parametrize("kind", ["nearest", "bilinear", "bicubic"])
def test_a_global_field_may_start_at_any_longitude(kind):
    field = torch.randn(3, 8, generator=torch.Generator().manual_seed(2)).double()
    rolled = interpolate(field.roll(3, -1), 4, kind, wrap=True)
    torch.testing.assert_close(rolled, interpolate(field, 4, kind, wrap=True).roll(12, -1))


def test_one_cell_is_spread_over_its_block():
    one = torch.tensor([[7.5]])
    assert torch.allclose(interpolate(one, 3), torch.full((3, 3), 7.5))


@pytest.mark.exact
def test_ridge_is_that_of_scikit_learn():
    from sklearn.linear_model import Ridge as Reference
    from sklearn.preprocessing import StandardScaler

    coarse, fine = pair()
    train, test = slice(0, 45), slice(45, None)
    base = interpolate(coarse.double(), 3)
    x = coarse.double().flatten(1).numpy()
    scaler = StandardScaler().fit(x[train])
    a = scaler.transform(x) * ((45 - 1) / 45) ** 0.5  # unbiased standard deviation
    residual = (fine.double() - base).flatten(1).numpy()
    reference = Reference(alpha=10.0).fit(a[train], residual[train]).predict(a[test])
    mine = Ridge(strength=10.0).fit(coarse[train], fine[train]).predict(coarse[test])
    expected = base[test] + torch.from_numpy(reference).reshape(base[test].shape)
    torch.testing.assert_close(mine[0], expected.float(), atol=1e-4, rtol=0)


def test_cross_validation_shrinks_where_there_is_nothing_to_learn_and_not_where_all_is_linear():
    coarse, fine = pair(200)
    assert Ridge().fit(coarse, fine).chosen >= 100
    weights = torch.randn(12, 108, generator=torch.Generator().manual_seed(3)) / 3
    linear = interpolate(coarse, 3) + ((coarse - 280).flatten(1) @ weights).reshape(200, 9, 12)
    assert Ridge().fit(coarse, linear).chosen == 0.01


@pytest.mark.exact
def test_mean_correction_removes_the_mean_error_or_the_ratio_of_means():
    coarse, fine = pair()
    method = MeanCorrected().fit(coarse, fine)
    left = (method.predict(coarse)[0] - fine).double().mean(0)
    assert left.abs().max() < 1e-4
    amounts = MeanCorrected(nonnegative=True).fit(coarse - 275, (fine - 275).clamp_min(0))
    predicted = amounts.predict(coarse - 275)[0]
    ratio = predicted.double().mean(0) / (fine - 275).clamp_min(0).double().mean(0)
    assert (ratio - 1).abs().max() < 1e-5
    assert predicted.min() >= 0


@pytest.mark.exact
def test_quantile_mapping_gives_the_training_distribution_and_keeps_records():
    coarse, fine = pair(150)
    method = QuantileMapping(quantiles=150).fit(coarse, fine)  # one level per training time
    mapped = method.predict(coarse)[0]
    apart = (mapped.sort(0).values - fine.sort(0).values).abs()
    assert apart.mean() < 1e-5
    assert apart.max() < 0.05  # where two base values nearly tie, rounding is magnified
    warmer = method.predict(coarse + 100)[0]
    base = interpolate(coarse.double() + 100, 3)
    moved = fine.amax(0) - interpolate(coarse.double(), 3).amax(0)
    torch.testing.assert_close(warmer.double(), base + moved, atol=1e-3, rtol=0)


def test_quantile_mapping_is_monotone_and_dry_stays_dry():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn((200, 2, 2), generator=generator).clamp_min(0)
    fine = interpolate(coarse, 2, "nearest") * 2
    method = QuantileMapping(nonnegative=True).fit(coarse, fine)
    ramp = torch.linspace(0, 4, 50)[:, None, None].expand(50, 2, 2)
    mapped = method.predict(ramp)[0]
    assert (mapped.diff(dim=0) >= -1e-6).all()
    assert (mapped[0] == 0).all()


@pytest.mark.exact
def test_dressed_members_are_the_mean_plus_training_residuals_and_follow_their_generators():
    coarse, fine = pair()
    method = Dressed(MeanCorrected()).fit(coarse[:40], fine[:40])
    streams = [torch.Generator().manual_seed(i) for i in range(20)]
    members = method.predict(coarse[40:], 5, streams)
    added = members - method.mean.predict(coarse[40:])
    known = method.state["residual"].flatten(1)
    apart = torch.cdist(added.flatten(0, 1).flatten(1), known)
    assert apart.min(1).values.max() < 1e-2
    assert len(apart.argmin(1).unique()) > 30
    alone = method.predict(coarse[47:48], 5, [torch.Generator().manual_seed(7)])
    torch.testing.assert_close(alone[:, 0], members[:, 7])


@pytest.mark.exact
def test_the_nearest_analogue_of_a_training_field_is_itself():
    coarse, fine = pair()
    method = Dressed(Interpolation(), "analogue").fit(coarse, fine)
    torch.testing.assert_close(method.predict(coarse, 1)[0], fine, atol=1e-4, rtol=0)
    with pytest.raises(AleatorError, match="61 analogues"):
        method.predict(coarse, 61)


def test_held_out_residuals_are_as_large_as_errors_on_new_data():
    coarse, fine = pair(100, h=6, w=6, factor=2, seed=4)
    new, truth = pair(200, h=6, w=6, factor=2, seed=5)
    fitted = Dressed(Ridge(strength=1.0)).fit(coarse, fine).state["residual"].std()
    honest = Dressed(Ridge(strength=1.0), held_out=True).fit(coarse, fine)
    error = (honest.mean.predict(new)[0] - truth).std()
    assert fitted < 0.85 * error
    assert abs(honest.state["residual"].std() / error - 1) < 0.15


@pytest.mark.contract
@pytest.mark.parametrize("name", baselines())
def test_every_baseline_gives_finite_members_of_amounts_that_are_not_negative(name):
    generator = torch.Generator().manual_seed(0)
    fine = torch.randn((80, 6, 9), generator=generator).clamp_min(0) * 5
    coarse = avg_pool2d(fine[:, None], 3)[:, 0]
    method = baselines(nonnegative=True)[name].fit(coarse[:60], fine[:60])
    members = method.predict(coarse[60:], 4, generator)
    assert members.shape in {(1, 20, 6, 9), (4, 20, 6, 9)}
    assert members.isfinite().all()
    assert members.min() >= 0
    scaled = baselines(nonnegative=True)[name].fit(coarse[:60] * 10, fine[:60] * 10)
    again = scaled.predict(coarse[60:] * 10, 4, torch.Generator().manual_seed(0))
    assert again.max() > 5 * members.max()  # nothing is tied to a unit


def test_fields_that_do_not_belong_together_are_refused():
    with pytest.raises(AleatorError, match="do not belong together"):
        Interpolation().fit(torch.zeros(3, 2, 2), torch.zeros(3, 4, 6))


# RMSE and fair CRPS in K (of one member: the MAE), and spread/skill, as measured independently on
# this set-up with 16 members. Random residuals differ by the draw.
FIGURES = {
    "nearest": (0.8309, 0.5277, 0.0),
    "bilinear": (0.7486, 0.4929, 0.0),
    "bicubic": (0.6818, 0.4341, 0.0),
    "bicubic + mean residual": (0.6138, 0.3812, 0.0),
    "ridge": (0.3086, 0.2051, 0.0),
    "analogues": (0.4416, 0.2183, 0.490),
    "ridge + dressed residuals": (0.3104, 0.160, 0.510),
    "bicubic + random residuals": (0.6236, 0.2894, 0.583),
}


@pytest.mark.exact
@pytest.mark.parametrize("name", FIGURES)
def test_published_figures_on_era5(era5, name):
    coarse, fine = era5
    method = baselines()[name].fit(coarse[:571], fine[:571])
    members = method.predict(coarse[595:], 16, torch.Generator().manual_seed(0))
    truth = fine[595:]
    rmse = (members.mean(0) - truth).square().mean().sqrt().item()
    found = [rmse, crps_ensemble(members, truth).mean().item()]
    found.append(spread_skill(members, truth).ratio if len(members) > 1 else 0.0)
    drawn = "random" in name or "dressed" in name
    tolerance = 0.012 if drawn else 6e-5
    np.testing.assert_allclose(found[:2], FIGURES[name][:2], atol=tolerance)
    assert abs(found[2] - FIGURES[name][2]) < (0.02 if drawn else 6e-4)
