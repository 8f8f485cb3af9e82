"""Training: gradients reach a joint flow, resumed runs are uninterrupted ones, bad data stop."""

import copy
import dataclasses
import json

import cv2
import numpy as np
import pytest
import torch

import apps.anomaly_driving.train as train_module
from apps.anomaly_driving.augment import AugmentConfig
from apps.anomaly_driving.config import Config, read_config
from apps.anomaly_driving.exposure import Exposure
from apps.anomaly_driving.frames import read_frames
from apps.anomaly_driving.losses import LossConfig
from apps.anomaly_driving.model import AnomalyModel, ModelConfig, load
from apps.anomaly_driving.negatives.config import NegativesConfig, PlacementConfig
from apps.anomaly_driving.negatives.generators import generator_config, kept_generator
from apps.anomaly_driving.negatives.mixer import Mixer
from apps.anomaly_driving.negatives.sources import Bank, JointFlow
from apps.anomaly_driving.seam import seam_auroc
from apps.anomaly_driving.segmenter import SegmenterConfig
from apps.anomaly_driving.train import class_weights, make_batches, train
from core.checkpoint import load_checkpoint
from core.errors import AleatorError, CheckpointError
from core.registry import build
from core.training import FitConfig

CLASSES = ("road", "sky", "car")
NETWORK = SegmenterConfig(encoder="tu-resnet10t")
SMALL = AugmentConfig(height=48, width=64)
PLAIN = dataclasses.replace(SMALL, light=0.0, blur=0.0, noise=0.0)


def silent(line):
    return None


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Sky over road, with a car; and the same again for validation."""
    root = tmp_path_factory.mktemp("frames")
    rng = np.random.default_rng(0)
    for part, count in (("train", 5), ("val", 2)):
        for kind in ("images", "labels"):
            (root / part / kind).mkdir(parents=True)
        for number in range(count):
            labels = np.zeros((64, 96), np.uint8)
            labels[:30] = 1
            left = int(rng.integers(0, 70))
            labels[34:50, left : left + 20] = 2
            colours = np.array([[90, 90, 90], [230, 180, 120], [30, 40, 200]], np.uint8)
            image = colours[labels] + rng.integers(0, 20, (64, 96, 3), np.uint8)
            cv2.imwrite(str(root / part / f"images/{number}.png"), image)
            cv2.imwrite(str(root / part / f"labels/{number}.png"), labels)
    return root


def config(kind="none", steps=4, **negatives):
    fit = FitConfig(steps=2, batch_size=4, validate_every=0, warmup=1)
    made = NegativesConfig(
        kind, patch=16, bank=4, model=negatives.pop("model", {}), fit=fit, **negatives
    )
    return Config(
        CLASSES,
        255,
        segmenter=NETWORK,
        augment=SMALL,
        negatives=made,
        fit=FitConfig(steps=steps, batch_size=2, warmup=1, validate_every=0, save_every=2),
    )


FLOW = {"scales": 2, "steps": 1, "width": 8}


def exposure(source, weight=0.0, **losses):
    torch.manual_seed(0)
    model = AnomalyModel(ModelConfig(CLASSES, 255, NETWORK))
    negatives = NegativesConfig(joint_weight=weight, placement=PlacementConfig(known=0.0))
    mixer = Mixer(source, negatives, 3, 255)
    return Exposure(model, mixer, LossConfig(**losses), SMALL)


def small_flow():
    torch.manual_seed(0)
    made = build(generator_config(NegativesConfig("flow", patch=16, model=FLOW)))
    with torch.no_grad():
        made.loss(torch.rand(8, 3, 16, 16) - 0.5)
    return made


def batch(data):
    frames = read_frames(data, CLASSES, 255)
    return make_batches(frames, SMALL, 4)(0, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("term", ["uniform", "d_out", "energy"])
def test_the_segmenters_loss_on_negatives_reaches_the_flow(data, term):
    only = {"uniform": 0.0, "d_out": 0.0, "energy": 0.0, term: 1.0}
    flow = small_flow()
    joint = exposure(JointFlow(flow, 0.0), **only)
    images, labels = batch(data)
    joint.loss(images, labels, generator=torch.Generator().manual_seed(1)).mean().backward()
    total = sum(float(p.grad.abs().sum()) for p in flow.parameters() if p.grad is not None)
    assert total > 0


def test_joint_loss_is_the_segmenters_and_the_flows(data):
    images, labels = batch(data)
    streams = (torch.Generator().manual_seed(1) for _ in range(2))
    flow = small_flow()
    alone, both = (
        exposure(JointFlow(flow, w), w).loss(images, labels, generator=next(streams))
        for w in (0.0, 0.5)
    )
    torch.testing.assert_close(both.value - alone.value, 0.5 * both.terms["flow"])


def test_a_bank_has_nothing_to_learn_and_nothing_is_pasted_without_source(data):
    images, labels = batch(data)
    bank = Bank(torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    pasted = exposure(bank).loss(images, labels, generator=torch.Generator().manual_seed(1))
    plain = exposure(None).loss(images, labels, generator=torch.Generator().manual_seed(1))
    assert set(pasted.terms) == {"known", "uniform", "energy", "d_out"}
    assert set(plain.terms) == {"known"}
    assert list(bank.parameters()) == []


def test_what_the_start_said_is_kept_where_nothing_was_pasted(data):
    images, labels = batch(data)
    bank = Bank(torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    free = exposure(bank)
    kept = exposure(bank, keep=2.0)
    kept.start = (copy.deepcopy(kept.model).eval(),)
    found = kept.eval().loss(images, labels, generator=torch.Generator().manual_seed(1))
    pasted = free.eval().loss(images, labels, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found.value - found.terms["keep"], pasted.value)
    assert found.terms["keep"].mean() > 0  # a paste and another light change answers
    kept.mixer, kept.augment = exposure(None).mixer, PLAIN
    same = kept.loss(images, labels, generator=torch.Generator().manual_seed(1))
    assert same.terms["keep"].abs().max() < 1e-6
    kept.start[0].segmenter.segmentation_head[0].bias.data[0] += 5.0
    other = kept.loss(images, labels, generator=torch.Generator().manual_seed(1))
    assert other.terms["keep"].mean() > 0.1
    assert not any(name.startswith("start") for name in kept.state_dict())


def test_the_density_of_the_start_is_held_on_all_pixels_of_the_same_picture(data):
    images, labels = batch(data)
    bank = Bank(torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    made = exposure(bank, hold=2.0).eval()
    twin = copy.deepcopy(made.model).eval()
    made.held = (twin,)

    def term():
        found = made.loss(images, labels, generator=torch.Generator().manual_seed(1))
        return found.terms["hold"]

    assert term().abs().max() < 1e-6  # pasted into and relit, but both see the same picture
    bias = twin.segmenter.segmentation_head[0].bias.data
    bias[:-1] += 3.0  # all classes alike, not the outlier head
    torch.testing.assert_close(term(), torch.full((4,), 2.0 * 2.5), atol=1e-4, rtol=1e-4)
    assert not any(name.startswith("held") for name in made.state_dict())


def test_the_floor_lifts_the_known_and_not_the_negatives(data):
    images, labels = batch(data)
    bank = Bank(torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    only = {"uniform": 0.0, "d_out": 0.0, "energy": 0.0, "raised": 1.0}
    made = exposure(bank, **only).eval()
    mixed = made.mix(images, labels["label"], torch.Generator().manual_seed(2))
    logits = torch.randn(4, 3, 48, 64, generator=torch.Generator().manual_seed(3))
    logits.requires_grad_()
    made._terms(logits, None, mixed)["raised"].mean().backward()
    pushed = logits.grad.sum(1)
    known = (mixed.labels != 255) & ~mixed.negative
    assert (pushed[known] < 0).all()
    assert (pushed[~known] == 0).all()


def test_keeping_wants_a_model_to_go_on_from(data, tmp_path):
    wanted = dataclasses.replace(config(), loss=LossConfig(keep=1.0))
    with pytest.raises(AleatorError, match=r"loss\.keep.*--start MODEL"):
        train(data, tmp_path / "kept", wanted, say=silent)
    train(data, tmp_path / "first", config(steps=1), say=silent)
    start = tmp_path / "first"
    train(data, tmp_path / "kept", wanted, start=start, say=silent)
    lines = (tmp_path / "kept" / "metrics.jsonl").read_text().splitlines()
    free = load_checkpoint(tmp_path / "first").config["notes"]["loss"]
    assert (free["keep"], free["keep_of"]) == (0.0, None)
    named = dataclasses.replace(
        wanted, classes=("a", "b", "c"), loss=LossConfig(keep=1.0, keep_of=str(start))
    )
    with pytest.raises(AleatorError, match="its answers cannot be kept"):
        train(data, tmp_path / "other", named, say=silent)
    assert all("keep" in json.loads(line) for line in lines)


def test_holding_wants_a_model_to_go_on_from(data, tmp_path):
    wanted = dataclasses.replace(config(), loss=LossConfig(hold=1.0))
    with pytest.raises(AleatorError, match=r"loss\.hold.*--start MODEL"):
        train(data, tmp_path / "held", wanted, say=silent)
    train(data, tmp_path / "first", config(steps=1), say=silent)
    train(data, tmp_path / "held", wanted, start=tmp_path / "first", say=silent)
    lines = (tmp_path / "held" / "metrics.jsonl").read_text().splitlines()
    assert all("hold" in json.loads(line) for line in lines)
    assert max(json.loads(line)["hold"] for line in lines) > 0  # it moves, and that is felt
    named = LossConfig(hold=1.0, hold_of=str(tmp_path / "first"))
    train(data, tmp_path / "named", dataclasses.replace(wanted, loss=named), say=silent)
    (first, *_) = (tmp_path / "named" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(first)["hold"] > 0  # a fresh network is not where that one was


def test_exposure_samples_pictures_with_something_in_them(data):
    images, labels = batch(data)
    white = exposure(Bank(torch.ones(1, 3, 16, 16)))
    context = {"field": images, "label": labels["label"]}
    drawn = white.sample((2,), context, generator=torch.Generator().manual_seed(0))
    assert drawn.shape == (2, *images.shape)
    assert ((drawn - images).abs().amax((2, 3, 4)) > 0.05).any(1).all()


@pytest.fixture
def killed(monkeypatch):
    """Training that is interrupted in its fourth step, after the state of the second was kept."""

    def made(frames, augment, size):
        inner = make_batches(frames, augment, size)

        def batches(step, generator):
            if step == 3:
                raise KeyboardInterrupt
            return inner(step, generator)

        return batches

    return lambda: monkeypatch.setattr(train_module, "make_batches", made)


@pytest.mark.parametrize("kind", ["none", "flow"])
def test_resumed_training_is_uninterrupted_training(data, tmp_path, kind, killed, monkeypatch):
    chosen = config(kind, model=FLOW if kind == "flow" else {})
    whole = train(data, tmp_path / "whole", chosen, say=silent)
    killed()
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "partly", chosen, say=silent)
    monkeypatch.undo()
    again = train(data, tmp_path / "partly", chosen, resume=True, say=silent)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, msg=name)


def test_what_is_saved(data, tmp_path):
    trained = train(data, tmp_path / "m", config(), say=silent)
    again = load(tmp_path / "m")
    meta = json.loads((tmp_path / "m/model.json").read_text())
    x = torch.rand(1, 3, 48, 64)
    with torch.no_grad():
        torch.testing.assert_close(again(x).logits, trained.eval()(x).logits)
    assert 0 <= meta["card"]["scores"][0]["closed_miou"] <= 1
    assert meta["config"]["notes"]["negatives"]["kind"] == "none"
    assert "Unexpected objects" in (tmp_path / "m/card.md").read_text()
    assert (tmp_path / "m/metrics.jsonl").exists()
    with pytest.raises(AleatorError, match="holds a model"):
        train(data, tmp_path / "m", config(), say=silent)


def test_training_learns_the_scene(data, tmp_path):
    fit = FitConfig(steps=30, batch_size=2, warmup=4, learning_rate=5e-3, ema=0.8)
    chosen = dataclasses.replace(config(), fit=dataclasses.replace(fit, validate_every=0))
    train(data, tmp_path / "m", chosen, say=silent)
    assert load(tmp_path / "m").card["scores"][0]["closed_miou"] > 0.5


def test_same_seed_same_weights_and_other_seed_others(data, tmp_path):
    one, two, other = (
        train(data, tmp_path / str(i), config(steps=2), seed=seed, say=silent)
        for i, seed in enumerate((1, 1, 2))
    )
    names = [name for name, _ in one.named_parameters()]
    assert all(torch.equal(one.state_dict()[n], two.state_dict()[n]) for n in names)
    assert not all(torch.equal(one.state_dict()[n], other.state_dict()[n]) for n in names)


def test_going_on_from_a_model_keeps_its_network_and_wants_its_classes(data, tmp_path):
    train(data, tmp_path / "base", config(steps=2), say=silent)
    more = train(data, tmp_path / "more", config(steps=1), start=tmp_path / "base", say=silent)
    assert more.config == load(tmp_path / "base").config
    held = dataclasses.replace(config(steps=1), classes=("road", "sky", "boat"))
    with pytest.raises(AleatorError, match="a model of the classes"):
        train(data, tmp_path / "x", held, start=tmp_path / "base", say=silent)


def test_going_on_from_a_model_keeps_its_generator_if_it_is_of_the_kind(data, tmp_path):
    flow = config("flow", steps=1, model=FLOW)
    train(data, tmp_path / "base", flow, say=silent)
    kept, _ = kept_generator(tmp_path / "base", flow.negatives, 0)
    weights = load_checkpoint(tmp_path / "base").tensors
    for name, value in kept.flow.state_dict().items():
        torch.testing.assert_close(value, weights[f"negatives.{name}"])
    other = config("flow", model={**FLOW, "width": 16}).negatives
    assert kept_generator(tmp_path / "base", other, 0) is None
    assert kept_generator(tmp_path / "base", config("vae").negatives, 0) is None


def test_weights_of_another_encoder_are_refused(data, tmp_path):
    from safetensors.torch import save_file

    save_file({"conv.weight": torch.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(AleatorError, match="only 0 of the"):
        train(data, tmp_path / "x", config(), weights=tmp_path / "w.safetensors", say=silent)


def test_the_users_encoder_weights_are_taken(data, tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(7)
    encoder = AnomalyModel(ModelConfig(CLASSES, 255, NETWORK)).segmenter.encoder
    path = tmp_path / "w.safetensors"
    save_file({k: v.contiguous() for k, v in encoder.state_dict().items()}, path)
    frozen = dataclasses.replace(config(steps=1), fit=FitConfig(steps=1, learning_rate=1e-12))
    found = train(data, tmp_path / "m", frozen, weights=path, say=silent)
    first = next(iter(encoder.parameters()))
    torch.testing.assert_close(next(iter(found.segmenter.encoder.parameters())), first)


def test_a_run_of_other_settings_is_not_resumed(data, tmp_path, killed):
    killed()
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "m", config(), say=silent)
    other = dataclasses.replace(config(), loss=LossConfig(uniform=0.9))
    with pytest.raises(CheckpointError):
        train(data, tmp_path / "m", other, resume=True, say=silent)


def test_weights_of_classes_average_to_one(data):
    frames = read_frames(data, CLASSES, 255)
    weights = class_weights(frames, 0.25)
    assert (weights.numpy() * frames.shares).sum() == pytest.approx(1.0, rel=1e-5)
    assert weights.argmax() == int(frames.shares.argmin())
    assert class_weights(frames, 0.0) is None


def test_seam_test_sees_a_network_that_finds_pastes_and_no_other(data):
    frames = read_frames(data, CLASSES, 255)
    sharp = PlacementConfig(feather=0.0, tone=0.0, most=2)
    originals = torch.from_numpy(frames.images).permute(0, 3, 1, 2).float() / 255

    class Found:
        def __init__(self, images):
            gap = (images[:, None] - originals[None]).abs().amax(2)
            closest = gap.flatten(2).mean(2).argmin(1)
            self.changed = torch.stack([gap[i, j] for i, j in enumerate(closest)])
            self.noise = torch.rand(self.changed.shape)

    torch.manual_seed(0)
    found = seam_auroc(Found, frames, [lambda o: o.changed, lambda o: o.noise], sharp)
    assert found[0] > 0.95
    assert found[1] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"negatives": {"kind": "gan"}}, "unknown negatives 'gan'"),
        ({"segmenter": {"wings": 2}}, "unknown option segmenter.wings"),
        ({"fit": {"steps": 0}}, "at least 1"),
        ({"augment": {"height": "tall"}}, "augment.height"),
    ],
)
def test_bad_options_are_named(over, words):
    with pytest.raises(AleatorError, match=words):
        read_config(None, over)
