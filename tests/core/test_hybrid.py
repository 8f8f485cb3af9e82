"""Hybrid models: a classifier that knows what it has seen."""

import math

import pytest
import torch

from core import build
from core.errors import AleatorError
from core.flows import RealNVP
from core.hybrid import HybridModel
from core.random import keyed_generator

TRUNK = {"family": "real_nvp", "layers": 4, "hidden": [32, 32]}


def blobs(rows, seed=0):
    """Two classes, left and right, of unit height."""
    generator = keyed_generator(seed)
    label = torch.randint(0, 2, (rows,), generator=generator)
    centre = torch.stack([4.0 * label - 2, torch.zeros(rows)], 1)
    return centre + 0.5 * torch.randn(rows, 2, generator=generator), label


def trained(weight, steps=150):
    torch.manual_seed(0)
    model = HybridModel((2,), flow=TRUNK, classes=2, weight=weight)
    x, label = blobs(512)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(x, {"label": label}).mean().backward()
        optimizer.step()
    return model.eval()


@pytest.mark.exact
def test_loss_is_cross_entropy_plus_weighted_likelihood():
    torch.manual_seed(0)
    model = HybridModel((2,), flow=TRUNK, classes=2, weight=0.3)
    x, label = blobs(20)
    found = model.loss(x, {"label": label})
    cross = torch.nn.functional.cross_entropy(model.logits(x), label, reduction="none")
    nll = -model.log_prob(x).value
    torch.testing.assert_close(found.value, cross + 0.3 * nll)
    torch.testing.assert_close(found.terms["nll"], nll)
    joint = model.log_prob(x, {"label": label})
    torch.testing.assert_close(joint.value, -cross - nll)
    total = sum(
        model.log_prob(x, {"label": torch.full_like(label, y)}).value.exp() for y in range(2)
    )
    torch.testing.assert_close(total, model.log_prob(x).value.exp())  # Σ_y p(x, y) = p(x)


@pytest.mark.parametrize("trunk", [TRUNK, {"family": "residual_flow", "layers": 2, "width": 8}])
def test_without_weight_there_is_the_cross_entropy_and_no_determinant(trunk):
    torch.manual_seed(0)
    model = HybridModel((2,), flow=trunk, classes=2, weight=0.7)
    x, label = blobs(8)
    both = model.loss(x, label, generator=keyed_generator(1))
    model.weight = 0.0
    one = model.loss(x, label, generator=keyed_generator(1))
    assert "nll" not in one.terms
    torch.testing.assert_close(one.value, both.terms["cross_entropy"])
    torch.testing.assert_close(both.value, one.value + 0.7 * both.terms["nll"])


def test_weight_is_one_over_the_dimensions_by_default():
    assert HybridModel((2, 3), flow=TRUNK, classes=2).weight == pytest.approx(1 / 6)


@pytest.mark.parametrize("trunk", [
    TRUNK,
    {"family": "residual_flow", "layers": 2, "width": 8},
    {"family": "maf", "layers": 2, "hidden": [8]},
], ids=lambda trunk: trunk["family"])  # fmt: skip
def test_every_trunk_gets_a_gradient_from_both_terms(trunk):
    torch.manual_seed(0)
    x, label = blobs(16)
    for weight in (0.0, 1.0):
        model = HybridModel((2,), flow=trunk, classes=2, weight=weight)
        model.loss(x, {"label": label}, generator=keyed_generator(0)).mean().backward()
        moved = [p.grad is not None and p.grad.abs().sum() > 0 for p in model.flow.parameters()]
        assert sum(moved) > len(moved) / 2
        encoded = model.flow.encode(x)
        torch.testing.assert_close(encoded, model.flow.transform(x)[0], rtol=1e-4, atol=1e-5)


def test_a_sure_classifier_far_from_the_data_is_found_out():
    """The blue point: p(y | x) is high, p(x) is low, and the joint decision says so."""
    model = trained(None)
    x, label = blobs(400, seed=1)
    blue = torch.tensor([[7.0, 4.0]])
    with torch.no_grad():
        assert (model.logits(x).argmax(1) == label).float().mean() > 0.98
        assert model.logits(blue).softmax(1).max() > 0.95
        seen, score = model.decide(x)
        assert (seen == label).float().mean() > 0.98
        assert model.decide(blue)[1] < score.sort().values[4]  # below 99 % of those seen


def test_weighing_the_likelihood_improves_it():
    x, _ = blobs(400, seed=1)
    nll = [-trained(weight, 100).log_prob(x).value.mean() for weight in (0.0, 0.5, 1.0)]
    entropy = math.log(2) + 1 + math.log(2 * math.pi * 0.25)
    assert nll[0] > nll[1] + 0.3
    assert nll[2] < entropy + 0.4


def test_integers_are_dequantised_and_samples_are_integers():
    model = build({"family": "hybrid", "event_shape": [1, 4, 4], "classes": 3,
                   "flow": {"family": "glow", "width": 6, "steps": 1, "levels": 16}})  # fmt: skip
    x = torch.randint(0, 16, (5, 1, 4, 4), generator=keyed_generator(0))
    found = model.loss(x, torch.tensor([0, 1, 2, 0, 1]), generator=keyed_generator(1))
    assert found.terms["nll"].mean() > 0
    assert model.log_prob(x, generator=keyed_generator(1)).kind == "lower_bound"
    drawn = model.sample((2,), generator=keyed_generator(2))
    assert drawn.shape == (2, 1, 4, 4)
    assert torch.equal(drawn, drawn.round())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: m.loss(x), "labels None; integers"),
        (lambda m, x: m.loss(x, torch.zeros(3, dtype=torch.long)), r"labels \(3,\)"),
        (lambda m, x: m.loss(x, torch.tensor([0, 2])), r"in 0\.\.1; got 0\.\.2"),
        (lambda m, x: m.loss(x * torch.nan, torch.tensor([0, 1])), "not finite"),
        (lambda m, x: m.sample((2,), torch.tensor([0])), "without a label"),
        (lambda m, x: HybridModel((2,), flow=TRUNK, classes=1), "at least two"),
        (lambda m, x: HybridModel((2,), flow=TRUNK, classes=2, weight=-1.0), "not be negative"),
        (lambda m, x: HybridModel((3,), flow=RealNVP((2,)), classes=2), "is of events"),
        (lambda m, x: HybridModel((2,), flow={"family": "diffusion"}, classes=2), "be a flow"),
    ],
)
def test_mistakes_are_named(call, message):
    torch.manual_seed(0)
    with pytest.raises(AleatorError, match=message):
        call(HybridModel((2,), flow=TRUNK, classes=2), torch.zeros(2, 2))
