"""The classifier two-sample test against Bayes' accuracy and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

from core.errors import AleatorError
from core.evaluation import classifier_test
from core.evaluation.classifier_test import area_under_curve
from core.random import keyed_generator


def normal(n, d, mean=0.0, seed=0):
    return mean + torch.randn(n, d, generator=keyed_generator(seed))


@pytest.mark.exact
def test_two_gaussians_are_told_apart_as_well_as_can_be():
    """Bayes: accuracy Φ(|m| / 2), AUC Φ(|m| / √2)."""
    x, y = normal(1500, 3), normal(1000, 3, 0.5, seed=1)
    found = classifier_test(x, y, epochs=15)
    distance = 0.5 * math.sqrt(3)
    best = 0.5 * (1 + math.erf(distance / 2 / math.sqrt(2)))
    assert found.low < best < found.high + 0.02
    assert found.high - found.low < 0.05
    assert found.auc == pytest.approx(0.5 * (1 + math.erf(distance / 2)), abs=0.03)
    assert found.p_value < 1e-6
    labels = np.r_[np.zeros(1500), np.ones(1000)]
    reference = cross_val_predict(
        LogisticRegression(class_weight="balanced"), torch.cat([x, y]).numpy(), labels, cv=5
    )
    balanced = 0.5 * ((reference[:1500] == 0).mean() + (reference[1500:] == 1).mean())
    assert found.accuracy == pytest.approx(balanced, abs=0.02)


@pytest.mark.exact
def test_a_difference_in_dependence_alone_is_found():
    """Equal marginals, correlation 0.9 against none: a linear classifier sees nothing."""
    x, z = normal(800, 2), normal(800, 2, seed=1)
    y = torch.stack([z[:, 0], 0.9 * z[:, 0] + math.sqrt(1 - 0.81) * z[:, 1]], 1)
    found = classifier_test(x, y, folds=2, epochs=40)
    assert found.low > 0.62
    assert classifier_test(x, y, folds=2, depth=0, epochs=10).accuracy < 0.56


def test_samples_of_one_distribution_look_alike():
    p = torch.tensor(
        [
            classifier_test(
                normal(60, 2, seed=2 * k), normal(90, 2, seed=2 * k + 1), folds=2, epochs=3
            ).p_value
            for k in range(30)
        ]
    )
    assert (p < 0.05).sum() <= 5
    assert 0.3 < p.mean() < 0.7


@pytest.mark.exact
def test_area_under_curve_is_that_of_scikit_learn():
    a, b = normal(40, 1).round(decimals=1)[:, 0], normal(30, 1, 0.5, 1).round(decimals=1)[:, 0]
    expected = roc_auc_score(np.r_[np.zeros(40), np.ones(30)], torch.cat([a, b]).numpy())
    assert area_under_curve(a, b) == pytest.approx(expected, rel=1e-12)


def test_the_seed_decides_and_the_global_stream_is_left_alone():
    x, y = normal(60, 2), normal(60, 2, 1.0, seed=1)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = classifier_test(x, y, folds=2, epochs=2)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first.logits, classifier_test(x, y, folds=2, epochs=2).logits)
    assert not torch.equal(first.logits, classifier_test(x, y, folds=2, epochs=2, seed=1).logits)


def test_mistakes_are_named():
    x = normal(60, 2)
    with pytest.raises(AleatorError, match="60 and 20 examples for 5 folds"):
        classifier_test(x, x[:20])
    with pytest.raises(AleatorError, match="folds=1"):
        classifier_test(x, x, folds=1)
    with pytest.raises(AleatorError, match="the first sample has NaN"):
        classifier_test(x * math.nan, x)
