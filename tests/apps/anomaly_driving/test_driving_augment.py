"""Crops keep labels on their pixels; light is a function of the stream and passes gradients."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from apps.anomaly_driving.augment import (
    AugmentConfig,
    blurred,
    crops,
    dressed,
    faded,
    grains,
    relight,
    turned,
)
from apps.anomaly_driving.frames import Frames
from core.errors import AleatorError

SMALL = AugmentConfig(height=48, width=64)


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def frames():
    """Pictures of constant blocks whose grey value is 20 times the class."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 11, (3, 5, 6), np.uint8).repeat(16, 1).repeat(16, 2)
    images = np.repeat((20 * labels)[..., None], 3, 3)
    return Frames(images, labels, ("a", "b", "c"), tuple("abcdefghijk"), 11)


@pytest.mark.parametrize("seed", range(6))
def test_labels_stay_on_their_pixels(frames, seed):
    images, labels = crops(frames, torch.tensor([0, 1, 2]), SMALL, stream(seed))
    assert images.shape == (3, 3, 48, 64)
    said = (images[:, 0] * 255 / 20).round().long()
    known = labels != 11
    assert (said == labels)[known].float().mean() > 0.8  # but for block borders


def test_void_beyond_the_frame(frames):
    wide = dataclasses.replace(SMALL, scale=(0.2, 0.2), aspect=0.0, flip=0.0)
    _, labels = crops(frames, torch.tensor([0]), wide, stream())
    assert labels.shape == (1, 48, 64)
    assert (labels[0, 16:] == 11).all()  # 80 rows shrink to 16
    assert (labels[0, :16, :19] != 11).all()


def test_crops_are_a_function_of_the_stream(frames):
    index = torch.tensor([0, 1])
    one, two, other = (crops(frames, index, SMALL, stream(s))[0] for s in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_light_is_a_function_of_the_stream_and_stays_in_range():
    x = torch.rand(2, 3, 16, 16, generator=stream())
    one, two = (relight(x, AugmentConfig(), stream(4)) for _ in range(2))
    assert torch.equal(one, two)
    assert 0 <= one.min()
    assert one.max() <= 1
    assert not torch.equal(one, x)


def test_no_light_no_blur_no_noise_changes_nothing():
    x = torch.rand(2, 3, 16, 16, generator=stream())
    off = AugmentConfig(light=0.0, blur=0.0, noise=0.0)
    assert torch.equal(relight(x, off, stream()), x)


def test_light_passes_gradients():
    x = (0.3 + 0.4 * torch.rand(2, 3, 16, 16, generator=stream())).requires_grad_()
    relight(x, AugmentConfig(), stream(1)).square().sum().backward()
    assert (x.grad != 0).float().mean() > 0.5


@pytest.mark.exact
def test_blur_is_scipys_gaussian():
    x = torch.rand(1, 2, 20, 24, generator=stream(), dtype=torch.float64)
    for channel in range(2):
        expected = gaussian_filter(x[0, channel].numpy(), 1.2, mode="mirror", radius=3)
        np.testing.assert_allclose(blurred(x, 1.2)[0, channel].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("changes", [{"height": 16}, {"scale": (0.0, 1.0)}, {"scale": (2.0, 1.0)}])
def test_bad_options(changes):
    with pytest.raises(AleatorError):
        AugmentConfig(**changes)


def test_fading_leaves_the_grey_and_a_share_of_the_colours():
    x = torch.rand((2, 3, 4, 4), generator=stream())
    grey = x.mean(1, keepdim=True)
    some = faded(x, torch.tensor([0.25, 0.0]).reshape(2, 1, 1, 1))
    torch.testing.assert_close(some.mean(1, keepdim=True), grey)
    torch.testing.assert_close(some[0] - grey[0], 0.25 * (x[0] - grey[0]))
    torch.testing.assert_close(some[1], grey[1].expand(3, 4, 4))


def test_as_many_pictures_fade_as_were_asked_for():
    x = torch.rand((400, 3, 2, 2), generator=stream())
    only = {"light": 0.0, "blur": 0.0, "noise": 0.0}
    out = relight(x, AugmentConfig(**only, fade=0.3), stream(5))
    left = out.std(1).mean((1, 2)) / x.std(1).mean((1, 2))
    changed = left < 0.9999
    assert abs(changed.float().mean() - 0.3) < 0.06
    assert abs(left[changed].mean() - 0.5) < 0.1  # uniform on (0, 1)


def test_hue_turns_about_grey():
    x = torch.rand(2, 3, 8, 8, generator=stream())
    torch.testing.assert_close(turned(x, torch.zeros(2)), x)
    third = turned(x, torch.full((2,), 2 * torch.pi / 3))
    torch.testing.assert_close(third, x[:, [2, 0, 1]])  # a third of a turn swaps the channels
    some = turned(x, torch.tensor([0.3, -0.7]))
    torch.testing.assert_close(some.mean(1), x.mean(1))


def test_grain_is_a_grey_texture_of_unit_deviation():
    x = torch.zeros(3, 3, 100, 140)
    grain = grains(x, stream())
    assert grain.shape == (3, 1, 100, 140)
    assert (grain.std((1, 2, 3)) - 1).abs().max() < 0.15
    assert not torch.equal(grain[0], grain[1])


def test_every_class_is_dressed_alike_and_void_stays():
    labels = torch.zeros(12, 40, 60, dtype=torch.long)
    labels[:, :, 20:] = 1
    labels[:, :, 40:] = 11
    images = torch.full((12, 3, 40, 60), 0.3)
    worn = dressed(images, labels, 2, 0.5, stream())
    inner = [worn[:, :, 8:32, c : c + 8] for c in (6, 26, 46)]
    for band in inner:  # away from where classes meet, one colour a class
        assert band.flatten(2).std(-1).max() < 1e-5
    changed = (inner[0][..., 0, 0] - 0.3).abs().amax(1) > 1e-4
    assert 2 <= changed.sum() <= 10  # half of the pictures
    assert ((inner[0] - inner[1]).abs().amax((1, 2, 3)) > 1e-4).sum() == changed.sum()
    torch.testing.assert_close(inner[2], images[:, :, 8:32, 46:54])
    assert dressed(images, labels, 2, 0.0, stream()) is images


@pytest.mark.parametrize("name", ["light", "noise", "hue", "grain", "dress"])
def test_strengths_are_not_negative(name):
    with pytest.raises(AleatorError, match=f"augment.{name}=-1"):
        AugmentConfig(**{name: -1})


@pytest.mark.parametrize("name", ["flip", "blur", "fade"])
@pytest.mark.parametrize("value", [-0.1, 3.0, float("nan")])
def test_probabilities_are_between_0_and_1(name, value):
    with pytest.raises(AleatorError, match=rf"augment.{name}=.*a probability between 0 and 1"):
        AugmentConfig(**{name: value})
