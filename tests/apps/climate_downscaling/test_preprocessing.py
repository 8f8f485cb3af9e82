"""Transforms invert, dry stays dry, and latent values follow the law that they claim."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from apps.climate_downscaling.preprocessing import CensoredPower, Transforms
from core.errors import AleatorError


@pytest.mark.property
@given(st.floats(0.2, 1.0), st.floats(0.01, 1.0))
def test_wet_amounts_come_back_and_dry_ones_become_zero(power, threshold):
    transform = CensoredPower(power, threshold)
    y = torch.linspace(0, 40, 400, dtype=torch.float64)
    back = transform.inverse(transform.forward(y, torch.Generator().manual_seed(0)))
    wet = y >= threshold
    torch.testing.assert_close(back[wet], y[wet], rtol=1e-9, atol=1e-9)
    assert (back[~wet] == 0).all()


@pytest.mark.exact
def test_latent_values_are_a_half_normal_below_the_threshold():
    transform = CensoredPower(0.5, 0.1, 0.15)
    z = transform.forward(torch.zeros(20_000), torch.Generator().manual_seed(0))
    latent = (math.sqrt(0.1) - z.double()) / 0.15
    assert stats.kstest(latent.numpy(), stats.halfnorm.cdf).pvalue > 1e-3


def test_each_variable_has_its_own():
    transforms = Transforms.of(["tas", "pr", "sfcWind"])
    assert transforms.nonnegative == (False, True, True)
    fields = torch.tensor([280.0, 4.0, 3.0])[:, None, None].expand(3, 2, 2)
    z = transforms.forward(fields[None])[0]
    assert z[:, 0, 0].tolist() == [280.0, 2.0, 3.0]
    assert transforms.inverse(-z)[:, 0, 0].tolist() == [-280.0, 0.0, 0.0]
    assert transforms.dry(fields[None]).shape == (1, 1, 2, 2)
    assert transforms.dry(torch.zeros(5, 3, 2, 2)).all()


def test_bad_options_are_named():
    with pytest.raises(AleatorError, match=r"transforms: pr is not among"):
        Transforms.of(["tas"], {"pr": {}})
    with pytest.raises(AleatorError, match=r"transforms\.pr: .*sharpness"):
        Transforms.of(["pr"], {"pr": {"sharpness": 2.0}})
    with pytest.raises(AleatorError, match=r"power=2\.0"):
        Transforms.of(["pr"], {"pr": {"power": 2.0}})
