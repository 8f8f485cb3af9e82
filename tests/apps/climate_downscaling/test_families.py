"""The residual's family is one word: each of them trains, samples, and is loaded again."""

import numpy as np
import pytest

from apps.climate_downscaling.data import open_field
from apps.climate_downscaling.downscale import Downscaler, ensemble
from apps.climate_downscaling.families import (
    FAMILIES,
    Condition,
    family_config,
    overridden,
    sampler_of,
)
from apps.climate_downscaling.train import settle, train
from core.errors import AleatorError
from core.registry import build

CONDITION = Condition(2, (8, 12), field_channels=3, vector_dim=4, periodic_x=False)


@pytest.fixture(scope="module")
def fine(tmp_path_factory, small_climate):
    path = tmp_path_factory.mktemp("families") / "fine.nc"
    small_climate(60).to_netcdf(path)
    return path


@pytest.mark.parametrize("family", ["flow_matching", "glow", "vae"])
def test_one_word_swaps_the_family(fine, tmp_path, settings, family):
    config = settings(residual__family=family, fit__steps=12, fit__validate_every=6)
    train(str(fine), tmp_path / "model", config, say=lambda line: None)
    model = Downscaler.load(tmp_path / "model", "cpu").model
    assert type(model.trained).__name__.lower() == family.replace("_", "")
    coarse = open_field(fine, ["tas"]).coarsen(2)
    drawn = ensemble(model, coarse, 0, 2, members=4)
    assert drawn.shape == (4, 2, 1, 8, 12)
    assert 0.02 < drawn.std(0).mean() < 2
    np.testing.assert_allclose(
        ensemble(model, coarse, 1, 2, members=4)[:, 0], drawn[:, 1], rtol=1e-6
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_the_condition(family):
    options = {"net": {"channels": 8, "multipliers": [1]}, "width": 8} if family == "glow" else {}
    config = family_config(family, CONDITION, options)
    assert config["event_shape"] == [2, 8, 12]
    model = build(config)
    assert (sampler_of(model, {"name": "2m"}) is None) == (
        family in ("glow", "residual_flow", "vae")
    )
    if family == "glow":
        assert "net" not in config
        assert config["width"] == 8


def test_unknown_families_are_named():
    with pytest.raises(AleatorError, match="known: diffusion, flow_matching"):
        family_config("nsf", CONDITION, {})


def test_patches_of_a_family_of_one_size_are_refused_before_training(settings):
    config = settings(residual__family="vae", residual__crop=16)
    with pytest.raises(AleatorError, match="not for vae"):
        settle(config, 100, (40, 56))


@pytest.mark.parametrize(
    ("family", "own", "over", "few"),
    [
        ("diffusion", {"name": "2m", "steps": 12}, {"steps": 4}, True),
        ("diffusion", {"name": "2m", "steps": 12}, {"steps": 5}, False),
        ("diffusion", {"name": "2m", "steps": 4}, {}, False),
        ("diffusion", {"name": "2m", "steps": 12}, {"steps": 4, "name": "2m"}, False),
        ("diffusion", {"name": "2m", "grid": "asinh"}, {"steps": 4}, False),
        ("diffusion", {"name": "ddpm"}, {"steps": 4}, False),
        ("flow_matching", {"name": "2m", "steps": 12}, {"steps": 4}, False),
    ],
)
def test_very_few_steps_are_taken_by_another_sampler(family, own, over, few):
    """Only the default, only where the user names no other, only on a path that begins near."""
    network = build(family_config(family, CONDITION, {"net": {"channels": 8, "multipliers": [1]}}))
    found = overridden(network, own, over)
    expected = {"name": "angle", "grid": "karras", "log_snr_max": 4.0} if few else {}
    assert found == {**own, **over, **expected}
