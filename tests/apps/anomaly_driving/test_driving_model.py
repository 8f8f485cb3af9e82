"""The contract of a model: any size in, logits and features out, the same after a checkpoint."""

import json

import pytest
import torch

from apps.anomaly_driving.model import AnomalyModel, ModelConfig, load, save
from apps.anomaly_driving.segmenter import SegmenterConfig
from core.errors import AleatorError, CheckpointError

CLASSES = ("road", "sky", "car")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = ModelConfig(CLASSES, 255, SegmenterConfig(encoder="tu-resnet10t"))
    return AnomalyModel(config).eval()


@pytest.mark.parametrize("size", [(64, 96), (61, 97), (32, 33)])
def test_any_size(model, size):
    with torch.no_grad():
        found = model(torch.rand(2, 3, *size))
    assert found.logits.shape == (2, 3, *size)
    assert found.d_out.shape == (2, *size)
    assert found.features.shape[0] == 2
    assert found.features.shape[2:] == (-(-size[0] // 4), -(-size[1] // 4))


def test_decoders_that_end_at_another_stride():
    config = ModelConfig(CLASSES, 255, SegmenterConfig("fpn", "tu-resnet10t", 4))
    with torch.no_grad():
        assert AnomalyModel(config).eval()(torch.rand(1, 3, 64, 96)).logits.shape[2:] == (64, 96)


def test_is_the_network_on_standardised_pixels(model):
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        plain = model.segmenter((x - model.mean) / model.std)
        found = model(x)
    torch.testing.assert_close(found.logits, plain[:, :3])
    torch.testing.assert_close(found.d_out, plain[:, 3])


def test_checkpoint_gives_the_same_outputs(model, tmp_path):
    save(model, tmp_path, card={"data": "none"})
    again = load(tmp_path)
    x = torch.rand(1, 3, 40, 56)
    with torch.no_grad():
        torch.testing.assert_close(again(x).logits, model(x).logits)
    assert again.classes == CLASSES
    assert again.void == 255
    assert again.fingerprint
    assert again.card == {"data": "none"}


def test_half_precision_halves_the_file_and_hardly_moves_the_logits(model, tmp_path):
    save(model, tmp_path / "full")
    save(model, tmp_path / "half", half=True)
    sizes = [(tmp_path / kind / "model.safetensors").stat().st_size for kind in ("full", "half")]
    assert sizes[1] < 0.55 * sizes[0]
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        full, half = load(tmp_path / "full")(x).logits, load(tmp_path / "half")(x).logits
    assert (full - half).abs().max() < 0.02 * full.std()


def test_void_must_not_be_a_class():
    with pytest.raises(AleatorError, match="void id 1 is also the id of sky"):
        ModelConfig(CLASSES, 1)


def test_wrong_shape(model):
    with pytest.raises(AleatorError, match="is needed"):
        model(torch.rand(3, 64, 64))


def test_weights_of_another_network(model, tmp_path):
    save(model, tmp_path)
    meta = json.loads((tmp_path / "model.json").read_text())
    meta["config"]["segmenter"]["encoder"] = "tu-resnet18"
    (tmp_path / "model.json").write_text(json.dumps(meta))
    with pytest.raises(CheckpointError):
        load(tmp_path)


@pytest.mark.parametrize("head", [True, False])
def test_logits_of_several_scales_are_averaged_when_it_scores(head):
    segmenter = SegmenterConfig(arch="unet", encoder="resnet18", depth=3, outlier_head=head)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        both = AnomalyModel(ModelConfig(segmenter=segmenter, scales=(1.0, 0.5))).eval()
    alone = AnomalyModel(ModelConfig(segmenter=segmenter)).eval()
    alone.load_state_dict(both.state_dict())
    x = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    resize = torch.nn.functional.interpolate
    with torch.no_grad():
        found, large = both(x), alone(x)
        small = alone(resize(x, (32, 48), mode="bilinear"))
        trained = both.train()(x).logits
        assert torch.equal(trained, alone.train()(x).logits)  # in training there is one
    wanted = (large.logits + resize(small.logits, (64, 96), mode="bilinear")) / 2
    torch.testing.assert_close(found.logits, wanted)
    assert torch.equal(found.features, large.features)
    assert (found.d_out is None) == (not head)
    if head:
        wanted = (large.d_out + resize(small.d_out[:, None], (64, 96), mode="bilinear")[:, 0]) / 2
        torch.testing.assert_close(found.d_out, wanted)


def test_colours_fade_when_it_scores_alone():
    segmenter = SegmenterConfig(depth=3)
    torch.manual_seed(0)
    plain = AnomalyModel(ModelConfig(segmenter=segmenter)).eval()
    half = AnomalyModel(ModelConfig(segmenter=segmenter, colours=0.5)).eval()
    half.load_state_dict(plain.state_dict())
    x = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = plain((x + x.mean(1, keepdim=True)) / 2).logits
        torch.testing.assert_close(half(x).logits, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(plain(x).logits, expected, rtol=1e-2)
        in_training = []
        for model in (plain, half):
            torch.manual_seed(2)  # of dropout
            in_training.append(model.train()(x).logits)
    assert torch.equal(*in_training)


def test_colours_are_kept_and_bad_ones_refused(tmp_path):
    segmenter = SegmenterConfig(depth=3)
    AnomalyModel(ModelConfig(segmenter=segmenter, colours=0.4)).eval().save(tmp_path)
    assert load(tmp_path).config.colours == 0.4
    for colours in (-0.1, 1.1, float("nan")):
        with pytest.raises(AleatorError, match="between 0 and 1"):
            ModelConfig(colours=colours)


def test_scales_are_kept_and_bad_ones_refused(tmp_path):
    segmenter = SegmenterConfig(arch="unet", encoder="resnet18", depth=3)
    AnomalyModel(ModelConfig(segmenter=segmenter, scales=(1.0, 0.5))).eval().save(tmp_path)
    assert load(tmp_path).config.scales == (1.0, 0.5)
    for scales in ((), (0.1,), (1.0, 3.0)):
        with pytest.raises(AleatorError, match="between"):
            ModelConfig(scales=scales)
