"""The terms of the loss against SciPy and torch, and what they pull towards."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch.nn import functional as F

from apps.anomaly_driving.losses import (
    LossConfig,
    forgotten,
    known_cross_entropy,
    mean_of,
    moved_density,
    outlier_cross_entropy,
    raised_density,
    sunken_density,
    uniform_divergence,
)
from core.errors import AleatorError

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = 3 * torch.randn(2, 5, 4, 6, generator=GENERATOR)
LABELS = torch.randint(0, 6, (2, 4, 6), generator=GENERATOR)  # 5 is void


@pytest.mark.exact
def test_jensen_shannon_is_scipys():
    p = LOGITS.softmax(1).permute(0, 2, 3, 1).reshape(-1, 5).double().numpy()
    expected = [jensenshannon(row, np.full(5, 0.2)) ** 2 for row in p]
    found = uniform_divergence(LOGITS, "jsd").flatten().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["jsd", "cross_entropy"])
def test_divergence_is_least_for_the_uniform_law(kind):
    uniform = uniform_divergence(torch.ones(1, 5, 1, 1), kind)
    assert (uniform_divergence(LOGITS, kind) > uniform).all()


@pytest.mark.exact
def test_cross_entropy_is_torchs_mean_over_known_pixels():
    expected = F.cross_entropy(LOGITS, LABELS, ignore_index=5)
    torch.testing.assert_close(known_cross_entropy(LOGITS, LABELS, 5, None).mean(), expected)


def test_weights_of_classes_count():
    weights = torch.tensor([1.0, 0, 0, 0, 0])
    zero = torch.where(LABELS == 0, LABELS, 5)
    share = (LABELS == 0).sum() / (LABELS != 5).sum()
    expected = share * known_cross_entropy(LOGITS, zero, 5, None).mean()
    found = known_cross_entropy(LOGITS, LABELS, 5, weights).mean()
    torch.testing.assert_close(found, expected)


@pytest.mark.exact
def test_outlier_head_is_torchs_weighted_cross_entropy():
    d_out = LOGITS[:, 0]
    negative, known = LABELS == 0, (LABELS > 0) & (LABELS < 5)
    weight = min(4.0, float(known.sum() / negative.sum()))
    chosen = negative | known
    expected = F.binary_cross_entropy_with_logits(
        d_out[chosen],
        negative[chosen].float(),
        weight=torch.where(negative, weight, 1.0)[chosen],
    )
    torch.testing.assert_close(outlier_cross_entropy(d_out, negative, known, 4.0).mean(), expected)


def test_mean_over_nothing_is_zero():
    assert mean_of(torch.ones(2, 3, 3), torch.zeros(2, 3, 3, dtype=torch.bool)).tolist() == [0, 0]


def test_density_cost_falls_with_the_density():
    low, high = LOGITS - 20, LOGITS + 20
    assert raised_density(low, 0.0).max() < 1e-2
    torch.testing.assert_close(raised_density(high, 0.0), high.logsumexp(1))


@pytest.mark.parametrize("name", ["uniform", "d_out", "energy", "hold"])
def test_negative_weights_are_refused(name):
    with pytest.raises(AleatorError, match=name):
        LossConfig(**{name: -1.0})


def test_nan_weight_is_refused():
    with pytest.raises(AleatorError, match="uniform"):
        LossConfig(uniform=float("nan"))


@pytest.mark.exact
def test_what_is_forgotten_is_the_divergence_of_torch():
    before = LOGITS.flip(0)
    log_p, log_before = LOGITS.log_softmax(1), before.log_softmax(1)
    expected = F.kl_div(log_p, log_before, reduction="none", log_target=True).sum(1)
    torch.testing.assert_close(forgotten(LOGITS, before), expected)
    assert forgotten(LOGITS + 3.0, LOGITS).abs().max() < 1e-5  # a shift of all logits is free


@pytest.mark.exact
def test_a_moved_density_costs_by_huber_and_moved_classes_do_not():
    close, far = LOGITS + 0.5, LOGITS - 3.0
    torch.testing.assert_close(moved_density(close, LOGITS), torch.full((2, 4, 6), 0.125))
    torch.testing.assert_close(moved_density(far, LOGITS), torch.full((2, 4, 6), 2.5))
    assert moved_density(LOGITS.flip(1), LOGITS).abs().max() < 1e-9


@pytest.mark.exact
def test_a_density_below_the_floor_costs_and_one_far_above_does_not():
    total = LOGITS.exp().sum(1).log()
    expected = (1 + (2.0 - total).exp()).log()
    torch.testing.assert_close(sunken_density(LOGITS, 2.0), expected, atol=1e-5, rtol=1e-5)
    assert sunken_density(LOGITS + 30.0, 2.0).max() < 1e-6
    assert (sunken_density(LOGITS - 30.0, 2.0) > 10).all()
