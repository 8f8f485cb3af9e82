"""What training hands to the network, and how generated residuals are calibrated."""

import dataclasses

import numpy as np
import pytest
import torch

from apps.climate_downscaling.prepare import open_prepared
from apps.climate_downscaling.residuals import Validation, fit_view, note_persistence
from apps.climate_downscaling.train import settle


class Narrow(torch.nn.Linear):
    """Draws white residuals of a given spread."""

    def __init__(self, spread):
        super().__init__(1, 1)
        self.spread = spread

    def sample(self, shape, context, *, sampler, generator):
        batch, _, ny, nx = context["field"].shape
        noise = torch.randn(*shape, batch, 1, ny, nx, generator=torch.Generator().manual_seed(5))
        return self.spread * noise


@pytest.fixture(scope="module")
def view(climate_files, settings):
    config = settings()
    prepared = open_prepared(str(climate_files / "fine.nc"), config)
    config = settle(config, prepared.train.stop, prepared.fine.grid.shape)
    return fit_view(prepared, config, prepared.train)


@pytest.mark.parametrize(("spread", "factor"), [(0.9, 1 / 0.9), (1.0, 1.0), (2.0, 0.8)])
def test_inflation_makes_spread_equal_error(view, spread, factor):
    noise = torch.randn(view.mean.shape, generator=torch.Generator().manual_seed(0))
    known = dataclasses.replace(view, fine=view.mean + view.scale * noise)
    validation = Validation.of(known, 0, len(known.fine), 128)
    assert validation.inflation(Narrow(spread))[0] == pytest.approx(factor, rel=0.03)


def test_inflation_of_amounts(climate_files, settings, tmp_path, small_climate):
    """In mm day-1, after a transform that is not linear."""
    small_climate(variable="pr").to_netcdf(tmp_path / "pr.nc")
    config = settings("pr")
    prepared = open_prepared(str(tmp_path / "pr.nc"), config)
    view = fit_view(
        prepared, settle(config, prepared.train.stop, prepared.fine.grid.shape), prepared.train
    )
    noise = torch.randn(view.mean.shape, generator=torch.Generator().manual_seed(0))
    fine = view.model.transforms.inverse(view.mean + 1.15 * view.scale * noise)
    validation = Validation.of(dataclasses.replace(view, fine=fine), 0, len(fine), 128)
    network = Narrow(1.0)
    factor = validation.inflation(network)
    assert factor[0] == pytest.approx(1.15, rel=0.08)  # few and heavy-tailed errors
    drawn = validation.draw(network, 8)
    assert validation._spread_skill(drawn, factor)[0] == pytest.approx(1, abs=0.01)
    assert validation._spread_skill(drawn, torch.ones(1))[0] < 0.95


@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_persistence_of_residuals_is_measured(view, rho):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(view.mean.shape, generator=generator)
    r = [noise[0]]
    for fresh in noise[1:]:
        r.append(rho * r[-1] + (1 - rho**2) ** 0.5 * fresh)
    known = dataclasses.replace(view, fine=view.mean + view.scale * torch.stack(r))
    note_persistence(known, np.arange(len(r)) * 3600)
    assert known.model.persistence[0] == pytest.approx(rho, abs=0.03)
    assert known.model.time_step == 3600
