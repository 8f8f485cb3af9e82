"""Scores against SciPy's closed forms; their polarity; names."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import logsumexp, softmax
from scipy.stats import entropy

from apps.anomaly_driving.model import Outputs
from apps.anomaly_driving.scores import (
    SCORES,
    available,
    is_fitted,
    parse,
    parts,
    predicted_classes,
    resolve,
)
from core.errors import AleatorError


@pytest.fixture
def outputs():
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(2, 5, 6, 7, generator=generator, dtype=torch.float64)
    d_out = 3 * torch.randn(2, 6, 7, generator=generator, dtype=torch.float64)
    return Outputs(logits, d_out, torch.randn(2, 3, 2, 2, generator=generator))


def closed_forms(outputs):
    s, d = outputs.logits.numpy(), outputs.d_out.numpy()
    p, uniform = softmax(s, 1), np.full(s.shape, 1 / s.shape[1])
    return {
        "msp": 1 - p.max(1),
        "max_logit": -s.max(1),
        "entropy": entropy(p, axis=1),
        "energy": -logsumexp(s, 1),
        "jsd": -(jensenshannon(p, uniform, axis=1) ** 2),
        "d_out": d,
        "hybrid": -np.log1p(np.exp(-d)) - logsumexp(s, 1),
    }


@pytest.mark.exact
def test_closed_forms(outputs):
    wanted = closed_forms(outputs)
    assert set(wanted) == {name for name in SCORES if not is_fitted(name)}
    for name, value in wanted.items():
        found = resolve(name, {})(outputs)
        assert found.shape == (2, 6, 7)
        assert found.numpy() == pytest.approx(value, abs=1e-12), name


def test_higher_is_more_unexpected():
    """A pixel that nothing claims scores above one that a class claims."""
    logits = torch.tensor([[12.0, 0, 0, 0], [0.1, 0, 0, 0]]).T[None, :, None]
    outputs = Outputs(logits, torch.tensor([[[-4.0, 4.0]]]), torch.empty(0))
    for name, entry in SCORES.items():
        if entry.function is not None:
            known, unknown = entry.function(outputs)[0, 0]
            assert unknown > known, name


def test_confident_pixels_are_told_apart_in_float16():
    """1 - p would be 0 in float32 from about 17 logits on; the sum of the others is not."""
    logits = torch.tensor([[8.0, 10.0, 12.0, 14.0], [0.0, 0, 0, 0]])[None, :, None]
    found = SCORES["msp"].function(Outputs(logits, None, torch.empty(0)))[0, 0]
    assert (found.half().diff() < 0).all()
    assert found.double().numpy() == pytest.approx(1 / (1 + np.exp([8, 10, 12, 14])), rel=1e-5)


def test_predicted_classes(outputs):
    assert (predicted_classes(outputs).numpy() == outputs.logits.numpy().argmax(1)).all()


def test_names():
    assert parse(" energy, msp,energy") == ("energy", "msp")
    assert parse(["max-logit", "energy+hybrid"]) == ("max_logit", "energy+hybrid")
    assert parts("energy+hybrid") == ["energy", "hybrid"]
    with pytest.raises(AleatorError, match="unknown score 'energie'; near names: energy"):
        parse("energie")
    with pytest.raises(AleatorError, match="unknown score 'mps'"):
        parse("energy+mps")
    with pytest.raises(AleatorError, match="no score is named"):
        parse(" , ")


def test_what_a_model_cannot_give(outputs):
    bare = Outputs(outputs.logits, None, outputs.features)
    with pytest.raises(AleatorError, match="no outlier head"):
        SCORES["hybrid"].function(bare)
    with pytest.raises(AleatorError, match=r"knn has to be fitted .* calibrate FOLDER"):
        resolve("knn", {})
    with pytest.raises(AleatorError, match="has to be fitted"):
        resolve("msp+energy", {})
    names = ("msp", "hybrid", "knn", "energy")
    assert available(names, head=False, fits={}) == ("msp", "energy")
    assert available(names, head=True, fits={"knn": SCORES["msp"].function}) == names
