"""Pasting: masks are the changed pixels, known parts keep their labels, seams are soft."""

import dataclasses

import pytest
import torch

from apps.anomaly_driving.negatives.blend import feather, poisson, shaded, softened, tone_matched
from apps.anomaly_driving.negatives.config import NegativesConfig, PlacementConfig
from apps.anomaly_driving.negatives.mixer import Mixer, mirrored, place_of, recoloured
from apps.anomaly_driving.negatives.shapes import border_of, feathered, outline
from apps.anomaly_driving.negatives.sources import Bank, Piece, Source
from core.errors import AleatorError

VOID = 11
HARD = PlacementConfig(feather=0.0, tone=0.0, recolour=0.0, known=0.0)


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


class White(Source):
    """White squares."""

    def draw(self, count, generator):
        return [Piece(torch.ones(3, 16, 16)) for _ in range(count)]


def scene(batch=4, height=64, width=96):
    """Grey pictures whose value is their class id / 20."""
    labels = torch.randint(0, 11, (batch, height // 16, width // 16), generator=stream(5))
    labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2)
    images = (labels.float() / 20)[:, None].expand(-1, 3, -1, -1).contiguous()
    return images, labels


def mixer(placement=HARD, source=None, **options):
    config = NegativesConfig(placement=placement, **options)
    return Mixer(source, config, 11, VOID)


@pytest.mark.parametrize("seed", range(5))
def test_masks_are_exactly_the_changed_pixels(seed):
    images, labels = scene()
    mixed = mixer(source=White())(images, labels, stream(seed))
    changed = (mixed.images != images).any(1)
    assert mixed.negative.any()
    assert torch.equal(mixed.negative, changed)
    assert (mixed.labels[mixed.negative] == VOID).all()
    assert torch.equal(mixed.labels[~changed], labels[~changed])


@pytest.mark.parametrize("seed", range(5))
def test_known_parts_come_with_their_labels(seed):
    images, labels = scene()
    mixed = mixer(dataclasses.replace(HARD, known=1.0))(images, labels, stream(seed))
    assert not mixed.negative.any()
    assert mixed.known.any()
    # away from class borders, where interpolation mixes values, the picture says the class
    said = (20 * mixed.images[:, 0]).round().long()
    right = (said == mixed.labels)[mixed.known].float().mean()
    assert right > 0.85
    assert (mixed.labels[mixed.known] != labels[mixed.known]).any()


def test_faded_borders_are_void_and_neither_known_nor_negative():
    images, labels = scene()
    soft = dataclasses.replace(HARD, feather=4.0)
    mixed = mixer(soft, White())(images, labels, stream(3))
    rim = (mixed.images != images).any(1) & ~mixed.negative
    faint = (mixed.images - images).abs().amax(1) < 0.06
    assert rim.any()
    assert ((mixed.labels == VOID) | faint)[rim].all()


def test_nothing_is_pasted_without_a_source():
    images, labels = scene()
    plain = mixer()
    mixed = plain(images, labels, stream())
    assert not plain.pastes
    assert torch.equal(mixed.images, images)
    assert torch.equal(mixed.labels, labels)


def test_same_stream_same_pictures():
    images, labels = scene()
    bank = Bank(torch.rand(8, 3, 16, 16, generator=stream()))
    config = PlacementConfig()
    one, two, other = (mixer(config, bank)(images, labels, stream(s)) for s in (1, 1, 2))
    assert torch.equal(one.images, two.images)
    assert not torch.equal(one.images, other.images)


def test_inputs_are_left_alone():
    images, labels = scene()
    before = images.clone(), labels.clone()
    mixer(PlacementConfig(), White())(images, labels, stream())
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])


def test_cut_outs_keep_their_outline_and_proportions():
    opacity = torch.zeros(20, 40)
    opacity[:, :20] = 1.0
    images, labels = torch.zeros(1, 3, 200, 400), torch.zeros(1, 200, 400, dtype=torch.long)

    class Half(Source):
        def draw(self, count, generator):
            return [Piece(torch.ones(3, 20, 40), opacity) for _ in range(count)]

    once = dataclasses.replace(HARD, most=1, spread=0.0, anywhere=0.0, near=0.3, far=0.3)
    seen = 0
    for seed in range(12):
        negative = mixer(once, Half())(images, labels, stream(seed)).negative[0]
        rows, columns = negative.any(1).sum().item(), negative.any(0).sum().item()
        inside = not (negative[-1].any() or negative[:, 0].any() or negative[:, -1].any())
        if inside:
            seen += 1
            assert abs(rows - columns) <= 2  # the opaque half of 20 x 40 is a square
    assert seen >= 3


def test_objects_are_larger_near_the_camera():
    config = dataclasses.replace(HARD, spread=0.0, anywhere=0.0)
    places = [place_of(config, 360, 480, stream(s)) for s in range(60)]
    low = [p.height for p in places if p.top + p.height > 300]
    high = [p.height for p in places if p.top + p.height < 200]
    assert min(low) > max(high)


def test_outlines_vary_and_fill_their_box():
    shapes = [outline(40, 60, stream(s)) for s in range(30)]
    shares = torch.tensor([shape.float().mean() for shape in shapes])
    assert shares.min() > 0.03
    assert shares.std() > 0.05
    assert all(shape[20, 30] for shape in shapes)


@pytest.mark.exact
def test_opacity_of_a_hard_edge_is_the_shape():
    shape = outline(30, 30, stream(2))
    margin = border_of(0.0)
    alpha = feathered(shape, 0.0)
    assert torch.equal(alpha[margin:-margin, margin:-margin].bool(), shape)
    soft = feathered(shape, 3.0)
    assert soft.sum() == pytest.approx(shape.sum().item(), rel=1e-4)


@pytest.mark.exact
def test_full_tone_matching_meets_the_mean_of_the_surroundings():
    patch, below = torch.rand(3, 8, 8, generator=stream(1)), torch.full((3, 8, 8), 0.7)
    alpha = torch.ones(8, 8)
    matched = tone_matched(patch, alpha, below, torch.ones(()))
    torch.testing.assert_close(matched.mean((1, 2)), torch.full((3,), 0.7))
    same = tone_matched(patch, alpha, below, torch.zeros(()))
    torch.testing.assert_close(same, patch)


@pytest.mark.exact
def test_feather_mixes_by_opacity():
    below, patch = torch.zeros(3, 2, 2), torch.ones(3, 2, 2)
    alpha = torch.tensor([[0.0, 0.25], [0.5, 1.0]])
    assert torch.equal(feather(below, patch, alpha), alpha.expand(3, -1, -1))


def test_poisson_keeps_gradients_and_takes_the_light():
    ramp = torch.linspace(0.2, 0.6, 40).expand(3, 40, 40).contiguous()
    inside = torch.zeros(40, 40, dtype=torch.bool)
    inside[8:32, 8:32] = True
    found = poisson(ramp, (ramp + 0.3).clamp(0, 1), inside)
    assert torch.equal(found[:, ~inside], ramp[:, ~inside])
    assert (found - ramp).abs().max() < 0.03  # the same gradients, so the shift is gone


@pytest.mark.exact
def test_mirrored_texture_has_no_seam():
    pixels = torch.arange(12.0).reshape(1, 3, 4)
    tiled = mirrored(pixels, 2)
    assert tiled.shape == (1, 6, 8)
    assert torch.equal(tiled[:, :, 3], tiled[:, :, 4])
    assert torch.equal(tiled[:, 2], tiled[:, 3])


def test_recolouring_passes_gradients_and_can_be_off():
    pixels = (0.4 + 0.2 * torch.rand(3, 8, 8, generator=stream())).requires_grad_()
    recoloured(pixels, 0.5, stream()).sum().backward()
    assert pixels.grad.abs().sum() > 0
    assert recoloured(pixels, 0.0, stream()) is pixels


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"most": 0}, "at least one"),
        ({"known": 1.5}, "expected 0 to 1"),
        ({"blend": "glue"}, "unknown blend"),
        ({"far": 0.9}, "far <= near"),
        ({"soften": -1.0}, "must not be negative"),
    ],
)
def test_bad_placements(changes, words):
    with pytest.raises(AleatorError, match=words):
        PlacementConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "gan"}, "unknown negatives 'gan'; known: none, paste"),
        ({"kind": "paste"}, "need a folder"),
        ({"patch": 20}, "multiple of 8"),
        ({"also": ("textures",)}, 'say kind="textures"'),
        ({"kind": "vae", "also": ("flow",)}, "what can be mixed in is textures"),
        ({"kind": "vae", "also": ("textures",), "also_share": 2.0}, "expected 0 to 1"),
        ({"kind": "flow", "placement": PlacementConfig(blend="poisson")}, "no gradient"),
        ({"temperature": 0.0}, "must be positive"),
    ],
)
def test_bad_negatives(changes, words):
    with pytest.raises(AleatorError, match=words):
        NegativesConfig(**changes)


def test_half_of_the_pieces_stay_sharp():
    noise = torch.rand(3, 24, 24, generator=stream())
    drawn = [softened(noise, 2.0, stream(seed)) for seed in range(200)]
    sharp = sum(torch.equal(x, noise) for x in drawn)
    assert 75 < sharp < 125
    blurry = next(x for x in drawn if not torch.equal(x, noise))
    assert blurry.std() < noise.std()
    assert softened(noise, 0.0, stream()) is noise


def test_a_ramp_of_light_has_its_strength_and_keeps_the_mean():
    grey = torch.full((3, 20, 30), 0.5)
    drawn = torch.stack([shaded(grey, 0.4, stream(seed)) for seed in range(100)])
    torch.testing.assert_close(drawn.mean((2, 3)), torch.full((100, 3), 0.5))
    extreme = (drawn - 0.5).abs().amax()
    assert 0.2 < extreme < 0.5 * 0.4 * 2**0.5 + 1e-6
    assert shaded(grey, 0.0, stream()) is grey


def test_known_parts_are_recoloured_too():
    images, labels = scene()
    known = dataclasses.replace(HARD, known=1.0)
    plain = mixer(known)(images, labels, stream(1))
    odd = mixer(dataclasses.replace(known, known_recolour=0.5))(images, labels, stream(1))
    assert torch.equal(plain.images[:, 0], plain.images[:, 1])  # grey stays grey...
    assert not torch.equal(odd.images[:, 0], odd.images[:, 1])
    assert odd.known.any()
    assert not odd.negative.any()
