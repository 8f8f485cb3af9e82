"""Sources of negatives: files, banks that a seed determines, patches of the known."""

import cv2
import numpy as np
import pytest
import torch

from apps.anomaly_driving.frames import Frames
from apps.anomaly_driving.negatives.config import KINDS, NegativesConfig
from apps.anomaly_driving.negatives.generators import (
    generator_config,
    generator_tensors,
    joint_generator,
    make_mixer,
    make_source,
    stored_source,
)
from apps.anomaly_driving.negatives.sources import (
    Bank,
    Blend,
    JointFlow,
    Pictures,
    Textures,
    bounded,
    cut_patches,
    fill_bank,
    read_piece,
)
from apps.anomaly_driving.textures import dead_leaves, noise_field, noise_texture, write_textures
from core.checkpoint import Checkpoint
from core.errors import AleatorError
from core.registry import build
from core.training import FitConfig

SMALL = {
    "vae": {"latent_dim": 4},
    "flow": {"scales": 2, "steps": 1, "width": 8},
    "diffusion": {"sampler": {"name": "2m", "steps": 2}},
    "flow_matching": {"sampler": {"name": "2m", "steps": 2}},
}


def config(kind, **options):
    fit = FitConfig(steps=2, batch_size=4, validate_every=0, warmup=1)
    return NegativesConfig(kind, patch=16, bank=6, model=SMALL[kind], fit=fit, **options)


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def frames():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 48, 64, 3), np.uint8)
    return Frames(images, np.zeros((4, 48, 64), np.uint8), tuple("abcd"), ("x", "y"), 11)


def silent(line):
    return None


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_every_generator_fills_and_comes_back_from_a_checkpoint(kind, frames, tmp_path):
    chosen = config(kind)
    source, model = make_source(chosen, frames, tmp_path, seed=3, say=silent)
    with torch.no_grad():
        pieces = source.draw(5, stream())
    assert all(piece.pixels.shape == (3, 16, 16) for piece in pieces)
    assert all(piece.pixels.min() > -0.2 and piece.pixels.max() < 1.2 for piece in pieces)
    kept = Checkpoint("anomaly_driving", {}, generator_tensors(model))
    with torch.no_grad():
        again = stored_source(kept, chosen, 3).draw(5, stream())
    for one, two in zip(pieces, again, strict=True):
        torch.testing.assert_close(one.pixels, two.pixels)


def test_none_and_paste_have_no_generator(frames, tmp_path):
    assert make_source(NegativesConfig(), frames, tmp_path, seed=0) == (None, None)
    folder = write_textures(tmp_path / "t", count=2, size=16)
    paste = NegativesConfig("paste", folder=str(folder))
    source, model = make_source(paste, frames, tmp_path, seed=0)
    assert isinstance(source, Pictures)
    assert model is None


def test_all_kinds_are_covered():
    assert set(KINDS) == {"none", "paste", "textures", *SMALL}


def test_textures_need_no_generator_and_are_never_the_same(frames, tmp_path):
    source, model = make_source(NegativesConfig("textures"), frames, tmp_path, seed=0)
    assert isinstance(source, Textures)
    assert model is None
    one, two = source.draw(2, stream())
    assert one.pixels.shape == (3, 64, 64)
    assert not torch.equal(one.pixels, two.pixels)
    assert torch.equal(source.draw(2, stream())[1].pixels, two.pixels)
    again = stored_source(Checkpoint("anomaly_driving", {}, {}), NegativesConfig("textures"), 0)
    assert torch.equal(again.draw(2, stream())[1].pixels, two.pixels)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_what_is_mixed_in_has_its_share(share):
    white, black = Bank(torch.ones(1, 3, 8, 8)), Bank(torch.zeros(1, 3, 8, 8))
    drawn = Blend(white, black, share).draw(400, stream())
    found = sum(piece.pixels.max().item() == 0 for piece in drawn) / 400
    assert found == pytest.approx(share, abs=3 * (share * (1 - share) / 400) ** 0.5)


def test_a_flow_that_others_are_mixed_into_still_learns():
    torch.manual_seed(0)
    flow = build(generator_config(config("flow")))
    mixer = make_mixer(config("flow", also=("textures",)), JointFlow(flow, 0.1), 3, 11)
    images = torch.rand(2, 3, 32, 32, generator=stream())
    weighted, nll = mixer.likelihood_loss(images, stream())
    assert weighted.item() == pytest.approx(0.1 * nll.item())
    assert joint_generator(mixer.source) is flow
    assert joint_generator(Blend(Bank(images), Textures(), 0.5)) is None


def test_dead_leaves_have_plain_surfaces_and_sharp_edges():
    leaves = [dead_leaves(48, stream(seed)) for seed in range(24)]
    steps = torch.stack([(x[:, :, 1:] - x[:, :, :-1]).abs().amax(0) for x in leaves])
    plain = (steps == 0).float().mean((1, 2))
    assert plain.max() > 0.8  # without noise over them, neighbours are of one colour...
    assert (plain > 0.5).sum() >= 6
    assert steps.amax((1, 2)).max() > 0.5  # ...or of quite another
    assert all(0 <= x.min() and x.max() <= 1 for x in leaves)
    assert torch.equal(leaves[3], dead_leaves(48, stream(3)))


@pytest.mark.parametrize("slope", [0.0, 1.0, 2.0])
def test_noise_has_the_spectrum_that_was_asked_for(slope):
    field = noise_field(64, 64, slope, stream())
    power = torch.fft.fft2(field).abs().square().mean(0)
    k = (torch.fft.fftfreq(64) * 64).round()
    radius = torch.hypot(k[:, None], k[None])
    near, far = ((radius - r).abs() < 0.5 for r in (4, 16))
    measured = (power[near].mean() / power[far].mean()).log() / torch.log(torch.tensor(16.0))
    assert measured.item() == pytest.approx(slope, abs=0.1)  # power is |k|^-2a


def test_a_model_without_generator_says_so():
    with pytest.raises(AleatorError, match="no generator"):
        stored_source(Checkpoint("anomaly_driving", {}, {}), config("flow"), 0)


def test_options_of_another_family(frames, tmp_path):
    odd = NegativesConfig("flow", patch=16, model={"family": "vae"})
    with pytest.raises(AleatorError, match="has no option"):
        make_source(odd, frames, tmp_path, seed=0, say=silent)


def test_banks_do_not_depend_on_their_size():
    torch.manual_seed(0)
    model = build(generator_config(config("diffusion"))).eval()
    small, large = fill_bank(model, 3, seed=5), fill_bank(model, 7, seed=5)
    torch.testing.assert_close(small.patches, large.patches[:3])


def test_temperature_of_a_flow_spreads_its_samples():
    torch.manual_seed(0)
    flow = build(generator_config(config("flow"))).eval()
    cold, hot = (JointFlow(flow, 0.1, t).draw(16, stream()) for t in (0.3, 1.0))
    spread = [torch.stack([p.pixels for p in pieces]).std() for pieces in (cold, hot)]
    assert spread[0] < spread[1]


def test_samples_are_bounded_smoothly():
    x = torch.tensor([0.0, 0.5, 50.0, float("nan"), -float("inf")])
    y = bounded(x)
    assert y.isfinite().all()
    assert y.abs().max() <= 1.2
    assert y[1].item() == pytest.approx(0.5, abs=0.03)


def test_patches_are_cut_from_the_pictures():
    images = torch.zeros(2, 3, 40, 60)
    images[1] = 1.0
    patches = cut_patches(images, 20, 16, stream())
    assert patches.shape == (20, 3, 16, 16)
    means = patches.mean((1, 2, 3))
    assert set(means.tolist()) == {0.0, 1.0}  # each comes from one picture


def test_bank_hands_out_its_patches():
    patches = torch.rand(3, 3, 8, 8, generator=stream())
    drawn = Bank(patches).draw(10, stream())
    assert all(any(torch.equal(p.pixels, own) for own in patches) for p in drawn)


def test_cut_outs_are_trimmed_to_what_is_visible(tmp_path):
    rgba = np.zeros((40, 40, 4), np.uint8)
    rgba[10:20, 5:35] = (0, 0, 255, 255)  # blue, green, red, opacity
    cv2.imwrite(str(tmp_path / "a.png"), rgba)
    piece = read_piece(tmp_path / "a.png")
    assert piece.pixels.shape == (3, 10, 30)
    assert piece.pixels[0].min() == 1.0
    assert piece.opacity.min() == 1.0


def test_a_cut_out_of_nothing(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((9, 9, 4), np.uint8))
    with pytest.raises(AleatorError, match=r"a\.png: nothing in it is opaque"):
        Pictures(tmp_path)


def test_an_empty_folder_of_cut_outs(tmp_path):
    with pytest.raises(AleatorError, match="no images"):
        Pictures(tmp_path)


def test_textures_are_periodic_and_a_function_of_the_stream():
    one, two, other = (noise_texture(32, stream(s)) for s in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    step = (one[:, :, 1:] - one[:, :, :-1]).abs().mean()
    wrap = (one[:, :, 0] - one[:, :, -1]).abs().mean()
    assert wrap < 2 * step


def test_textures_are_written_once(tmp_path):
    folder = write_textures(tmp_path, count=2, size=16)
    before = (folder / "texture_001.png").stat().st_mtime_ns
    write_textures(tmp_path, count=2, size=16)
    assert (folder / "texture_001.png").stat().st_mtime_ns == before
