"""Every score against a closed form, or against samples whose difference is known."""

from dataclasses import replace

import numpy as np
import pytest

from apps.hep_simulation.certificate import closure, cramer
from apps.hep_simulation.classifier import area, classifier_auc
from apps.hep_simulation.distances import fpd, frechet, kpd, polynomial_mmd
from apps.hep_simulation.evaluation import Sample, scores
from apps.hep_simulation.features import features
from apps.hep_simulation.memorisation import fingerprints, nearest, neighbours
from apps.hep_simulation.observables import (
    correlation_error,
    edges_of,
    following,
    response_bins,
    separation,
    separations,
)
from core.errors import AleatorError


@pytest.mark.exact
def test_separation_of_known_histograms():
    edges = np.array([0.0, 1.0, 2.0])
    x, y = np.repeat([0.5, 1.5], [30, 10]), np.repeat([0.5, 1.5], [10, 30])
    # shares 3/4, 1/4 and 1/4, 3/4: half of 2 (1/2)² / 1
    assert separation(x, y, edges) == pytest.approx(0.25)
    assert separation(x, x, edges) == 0
    assert separation(x[:30], y[10:], edges) == pytest.approx(1.0)
    assert len(edges_of("response", y)) == 101
    assert edges_of("layers", 7 * y)[[0, -1]] == pytest.approx([0.01515, 10.5])


@pytest.mark.exact
def test_frechet_distance_of_gaussians_is_the_closed_form():
    random = np.random.default_rng(0)
    x = random.normal(size=(200_000, 2)) * [1.0, 2.0]
    y = random.normal(size=(200_000, 2)) * [2.0, 2.0] + [0.0, 3.0]
    # means 3 apart; standard deviations 1 and 2 in one axis
    assert frechet(x, y) == pytest.approx(9 + 1, rel=0.02)
    assert frechet(x, x) == pytest.approx(0, abs=1e-9)


def test_fpd_extrapolates_the_bias_away():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 4000, 30))
    plain = frechet(x[:1000] / np.abs(x).max(0), y[:1000] / np.abs(x).max(0))
    found = fpd(x, y, least=500, repeats=5)
    assert found.value < 0.4 * plain
    assert fpd(x, y + 0.5, least=500, repeats=5).value > 5 * found.value
    with pytest.raises(AleatorError, match="more than 5000 are needed"):
        fpd(x, y, least=5000)


@pytest.mark.exact
def test_the_polynomial_mmd_is_the_sum_over_pairs():
    x, y = np.random.default_rng(0).normal(size=(2, 6, 3))
    kernel = lambda a, b: (a @ b / 3 + 1) ** 4  # noqa: E731
    own = [
        np.mean([kernel(z[i], z[j]) for i in range(6) for j in range(6) if i != j]) for z in (x, y)
    ]
    cross = np.mean([kernel(a, b) for a in x for b in y])
    assert polynomial_mmd(x, y) == pytest.approx(sum(own) - 2 * cross)
    big = np.random.default_rng(1).normal(size=(2, 800, 3))
    same, moved = kpd(*big, batch=400), kpd(big[0], big[1] + 1, batch=400)
    assert abs(same.value) < 4 * (same.error + 1e-3)
    assert moved.value > 10 * abs(same.value)
    assert kpd(*big).error == 0


def test_the_area_is_a_probability_of_pairs():
    x, y = np.array([0.0, 1.0, 1.0]), np.array([1.0, 2.0])
    # of 6 pairs: 4 right, 2 tied
    assert area(x, y) == pytest.approx((4 + 1) / 6)
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 300, 4))
    same, moved = classifier_auc(x, y), classifier_auc(x, y + 1.0)
    assert abs(same.mean - 0.5) < 4 * same.stderr
    assert moved.mean > 0.85
    with pytest.raises(AleatorError, match="at least 50"):
        classifier_auc(x[:20], y)
    with pytest.raises(AleatorError, match="not finite"):
        classifier_auc(x, np.where(y > 3, np.nan, y) * np.nan)


@pytest.mark.exact
def test_a_shifted_generator_is_worth_what_the_shift_says():
    """N(δ, 1) against N(0, 1): D² = ∫ (Φ(x - δ) - Φ(x))² ≈ δ² / (2 √π); ∫ F (1 - F) = 1 / √π."""
    random = np.random.default_rng(0)
    y = random.normal(size=100_000)
    found = closure(random.normal(size=100_000) + 0.1, y)
    assert found.worth == pytest.approx(2 / 0.1**2, rel=0.15)
    assert found.bias == pytest.approx(0.1, abs=3 * found.bias_error)
    assert not found.at_least
    fair = closure(random.normal(size=100_000), y)
    assert fair.at_least
    assert fair.worth == pytest.approx(50_000)


def test_the_cramer_distance_is_unbiased():
    random = np.random.default_rng(0)
    drawn = [cramer(*random.normal(size=(2, 50)))[0] for _ in range(2000)]
    assert abs(np.mean(drawn)) < 4 * np.std(drawn) / np.sqrt(2000)


def test_a_wrong_energy_scale_is_seen_by_linearity_and_separation(small, toy):
    showers, energies, _ = toy(small, 4000)
    other, more, _ = toy(small, 4000, seed=1)
    truth = features(showers, energies, small)
    fair, scaled = (features(other * f, more, small) for f in (1.0, np.float32(1.02)))
    for b in response_bins(fair, truth):
        assert abs(b.linearity) < 4 * b.linearity_error
    for b in response_bins(scaled, truth):
        assert b.linearity == pytest.approx(0.02, abs=4 * b.linearity_error)
        assert abs(b.resolution) < 4 * b.resolution_error
    voxels = [s[s > 0] for s in (other, showers)]
    found = [separations(part, truth, tuple(voxels))["response"] for part in (fair, scaled)]
    assert found[1] > 1.5 * found[0]
    assert correlation_error(fair, truth) < 0.1


def test_a_centre_that_follows_itself_is_told_from_one_that_does_not(small, toy):
    showers, energies, _ = toy(small, 2000)
    found = features(showers, energies, small)
    random = np.random.default_rng(2)
    lean = random.normal(size=(2000, 1))
    shape = found.centre_eta.shape
    for share, wanted in ((0.0, 0.0), (0.8, 0.64)):
        part = {
            f"centre_{name}": share * lean + (1 - share**2) ** 0.5 * random.normal(size=shape)
            for name in ("eta", "phi")
        }
        part["centre_eta"][:, 1:2] = 0.0  # a layer that no shower reaches
        assert following(replace(found, **part)) == pytest.approx(wanted, abs=0.05)
    none = dict.fromkeys(("centre_eta", "centre_phi"), np.zeros(shape))
    assert following(replace(found, **none)) == 0.0


def test_a_replayed_shower_is_found_and_a_fresh_one_is_not(small, toy):
    parts = [toy(small, 400, seed) for seed in range(3)]
    marks = [fingerprints(showers, energies, small) for showers, energies, _ in parts]
    fresh = neighbours(*marks)
    assert fresh.ratio == pytest.approx(1.0, abs=0.1)
    showers, energies, _ = parts[1]
    turned = np.roll(showers.reshape(-1, 5, 4, 3), 1, 2).reshape(400, -1) * np.float32(1.3)
    copies = neighbours(fingerprints(turned, 1.3 * energies, small), *marks[1:])
    assert copies.ratio < 0.01
    assert copies.replayed == 1.0
    assert nearest(marks[0][:5], marks[0])[0] == pytest.approx(0, abs=1e-3)


def test_broken_showers_score_worse_than_fair_ones(small, toy):
    truth, fair = (Sample(*toy(small, 600, seed)[:2], small) for seed in (0, 1))
    leaked = fair.showers.reshape(600, 5, 12).copy()
    leaked[:, 1:] += 0.2 * leaked[:, :-1]
    broken = Sample(leaked.reshape(600, -1), fair.energies, small)
    good, bad = (scores(part, truth, seeds=(0,)) for part in (fair, broken))
    assert abs(good["auc_high"] - 0.5) < 4 * good["auc_high_stderr"]
    assert bad["auc_high"] > 0.7
    assert bad["linearity"] > 10 > good["linearity"]
