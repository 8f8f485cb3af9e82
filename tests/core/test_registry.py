"""Configs to models: one word for the family, errors that list what there is."""

import pytest
import torch

from core import build
from core.diffusion import Diffusion
from core.errors import AleatorError
from core.flow_matching import FlowMatching
from core.random import keyed_generator

CONFIG = {
    "family": "diffusion",
    "event_shape": [1, 8, 8],
    "net": {"name": "unet", "channels": 8, "multipliers": [1, 2]},
    "path": {"name": "edm", "sigma_max": 20.0},
    "sampler": {"name": "2m", "steps": 3},
}


@pytest.mark.contract
@pytest.mark.parametrize(
    ("word", "family"), [("diffusion", Diffusion), ("flow_matching", FlowMatching)]
)
def test_the_family_is_one_word(word, family):
    model = build({**CONFIG, "family": word})
    assert type(model) is family
    assert model.path.sigma_max == 20
    assert model.sample((2,), generator=keyed_generator(0)).shape == (2, 1, 8, 8)
    assert model.loss(torch.randn(3, 1, 8, 8), generator=keyed_generator(1)).value.shape == (3,)


def test_learned_variance_doubles_the_channels():
    model = build({**CONFIG, "learned_variance": True})
    posterior = model.denoise(torch.randn(2, 1, 8, 8), 0.5)
    assert posterior.mean.shape == posterior.variance_fraction.shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "difusion"}, "unknown family 'difusion'; known: .*diffusion, .*flow_matching"),
        ({"family": None}, "unknown family None"),
        ({"net": {"name": "vit"}}, "unknown net 'vit'; known: .*mlp.*unet"),
        ({"net": {"chanels": 3}}, "net UNet has no option 'chanels'"),
        ({"weight": 1}, "family Diffusion has no option 'weight'; it has .*weighting"),
        ({"path": "linear"}, "unknown path"),
        ({"sampler": "dpm"}, "unknown sampler"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(AleatorError, match=message):
        build({**CONFIG, **change})


def test_event_shape_is_needed():
    with pytest.raises(AleatorError, match="event_shape is missing"):
        build({"family": "diffusion"})
