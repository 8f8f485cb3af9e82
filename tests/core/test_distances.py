"""Distances between samples: closed forms, SciPy, and intervals that cover."""

import math

import pytest
import torch
from scipy import linalg, stats
from torch import Tensor

from core.errors import AleatorError
from core.evaluation import energy_distance, frechet_distance, mmd, sliced_wasserstein
from core.random import keyed_generator

F64 = torch.float64


def normal(n, d=1, mean=0.0, scale=1.0, seed=0) -> Tensor:
    z = torch.randn(n, d, generator=keyed_generator(seed, n, d), dtype=F64)
    return mean + scale * z


def mean_absolute(mean, scale):
    """E|Z| of Z ~ N(mean, scale²)."""
    z = mean / scale
    return scale * math.sqrt(2 / math.pi) * math.exp(-(z**2) / 2) + mean * math.erf(z / 2**0.5)


ENERGY = 2 * mean_absolute(0.7, math.sqrt(1 + 1.5**2)) - (1 + 1.5) * mean_absolute(0.0, 2**0.5)


def rbf(mean, total, h, d):
    """E exp(-|Z|² / 2h²) of Z ~ N(mean, total I) in d dimensions, mean the same in each."""
    return (h**2 / (h**2 + total)) ** (d / 2) * math.exp(-d * mean**2 / (2 * (h**2 + total)))


MMD = rbf(0, 2.0, 1.3, 3) + rbf(0, 2 * 1.5**2, 1.3, 3) - 2 * rbf(0.7, 1 + 1.5**2, 1.3, 3)
FRECHET = 3 * (0.7**2 + 0.5**2)

CASES = {
    "energy": (1, ENERGY, lambda x, y: energy_distance(x, y)),
    "mmd": (3, MMD, lambda x, y: mmd(x, y, bandwidths=[1.3])),
    "frechet": (3, FRECHET, lambda x, y: frechet_distance(x, y)),
    "wasserstein": (
        1,
        math.hypot(0.7, 0.5),
        lambda x, y: sliced_wasserstein(x, y, projections=1, generator=keyed_generator(0)),
    ),
}


@pytest.mark.exact
@pytest.mark.parametrize("name", sorted(CASES))
def test_estimates_are_centred_on_the_truth_and_their_intervals_cover_it(name):
    """Over 120 pairs of samples of two Gaussians whose distance is a closed form."""
    dims, exact, distance = CASES[name]
    found = [
        distance(normal(200, dims, seed=2 * k), normal(160, dims, 0.7, 1.5, seed=2 * k + 1))
        for k in range(120)
    ]
    values = torch.tensor([f.value for f in found])
    spread = values.std().item()
    assert values.mean().item() == pytest.approx(exact, abs=4 * spread / math.sqrt(120))
    assert sum(f.stderr for f in found) / 120 == pytest.approx(spread, rel=0.25)
    covered = sum(f.low < exact < f.high for f in found)
    assert 120 * 0.95 - 10 <= covered <= 120


@pytest.mark.exact
def test_energy_distance_is_that_of_scipy():
    """SciPy's is the root of the biased form: its means count each example with itself."""
    x, y = normal(60), normal(45, mean=0.3, scale=2.0, seed=1)
    u = energy_distance(x, y, groups=5).value
    xx, yy, xy = (torch.cdist(a, b).mean() for a, b in ((x, x), (y, y), (x, y)))
    biased = (2 * xy - xx - yy).item()
    assert math.sqrt(biased) == pytest.approx(
        stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()), rel=1e-10
    )
    assert u == pytest.approx((2 * xy - xx * 60 / 59 - yy * 45 / 44).item(), rel=1e-10)


@pytest.mark.exact
@pytest.mark.parametrize("m", [50, 80, 37])
def test_one_dimension_of_sliced_wasserstein_is_that_of_scipy(m):
    x, y = normal(50), normal(m, mean=0.4, scale=1.7, seed=1)
    found = sliced_wasserstein(x, y, order=1, projections=1, groups=5)
    expected = stats.wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert found.value == pytest.approx(expected, rel=1e-10)


@pytest.mark.exact
def test_sliced_wasserstein_of_a_shift_is_its_projected_length():
    """W_2(θ·x, θ·(x + m)) = |θ·m|, and E (θ·m)² = |m|² / D."""
    x, shift = normal(200, 4), torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=F64)
    found = sliced_wasserstein(x, x + shift, projections=5000, groups=2)
    assert found.value == pytest.approx(shift.norm().item() / 2, rel=0.04)
    assert found.stderr < 0.1
    assert sliced_wasserstein(x, x, groups=2).value == 0


@pytest.mark.exact
def test_frechet_distance_is_the_formula_with_scipys_matrix_root():
    mix = normal(5, 5, seed=7)
    x, y = normal(300, 5), normal(240, 5, 0.3, seed=1) @ mix
    found = frechet_distance(x, y, corrected=False, groups=5).value
    a, b = torch.cov(x.T).numpy(), torch.cov(y.T).numpy()
    shift = (x.mean(0) - y.mean(0)).square().sum().item()
    expected = shift + (a + b - 2 * linalg.sqrtm(a @ b).real).trace()
    assert found == pytest.approx(expected, rel=1e-10)


@pytest.mark.exact
def test_the_correction_takes_the_bias_of_small_samples_away():
    """Between samples of one distribution: 30 of each in 6 dimensions, mean over 40 pairs."""
    pairs = [(normal(60, 6, seed=2 * k), normal(60, 6, seed=2 * k + 1)) for k in range(40)]
    plain = [frechet_distance(x, y, corrected=False, groups=10).value for x, y in pairs]
    corrected = [frechet_distance(x, y, groups=10).value for x, y in pairs]
    assert min(plain) > 0.1
    assert abs(sum(corrected)) < 0.25 * sum(plain)


@pytest.mark.exact
def test_jackknife_of_pairs_is_that_of_leaving_groups_out():
    x, y = normal(40, 2), normal(30, 2, 0.5, seed=1)
    found = energy_distance(x, y, groups=5)
    left = []
    for sample, other, swap in ((x, y, False), (y, x, True)):
        values = []
        for g in range(5):
            part = sample[torch.arange(len(sample)) % 5 != g]
            pair = (other, part) if swap else (part, other)
            values.append(energy_distance(*pair, groups=2).value)
        left.append(torch.tensor(values, dtype=F64))
    variance = sum(4 / 5 * (v - v.mean()).square().sum() for v in left)
    assert found.stderr == pytest.approx(variance.sqrt().item(), rel=1e-9)


TESTS = pytest.mark.parametrize(
    "distance",
    [
        lambda x, y, **o: energy_distance(x, y, groups=4, **o),
        lambda x, y, **o: mmd(x, y, groups=4, **o),
        lambda x, y, **o: sliced_wasserstein(x, y, groups=2, projections=8, **o),
        lambda x, y, **o: frechet_distance(x, y, groups=2, **o),
    ],
    ids=["energy", "mmd", "wasserstein", "frechet"],
)


@TESTS
def test_permutations_find_a_difference_and_only_one_that_is_there(distance):
    def p(mean, seed):
        x, y = normal(24, 2, seed=seed), normal(20, 2, mean, seed=seed + 1000)
        return distance(x, y, permutations=39, generator=keyed_generator(seed)).p_value

    same = torch.tensor([p(0.0, k) for k in range(60)])
    assert (same <= 0.2).double().mean().item() == pytest.approx(0.2, abs=4 * 0.4 / 60**0.5)
    assert 0.35 < same.mean() < 0.65
    assert p(2.0, 0) == 1 / 40


def test_pairs_in_blocks_are_all_pairs(monkeypatch):
    x, y = normal(50, 2), normal(41, 2, 0.2, seed=1)
    options = {"groups": 4, "permutations": 19}
    whole = energy_distance(x, y, generator=keyed_generator(0), **options)
    monkeypatch.setattr("core.evaluation.distances._BLOCK", 300)
    blocks = energy_distance(x, y, generator=keyed_generator(0), **options)
    assert blocks.value == pytest.approx(whole.value, rel=1e-12)
    assert blocks.stderr == pytest.approx(whole.stderr, rel=1e-12)
    assert blocks.p_value == whole.p_value


def test_images_are_vectors():
    x, y = normal(40, 12), normal(40, 12, 1.0, seed=1)
    for distance in (energy_distance, mmd):
        image = distance(x.reshape(40, 3, 2, 2), y.reshape(40, 3, 2, 2))
        assert image.value == distance(x, y).value


@pytest.mark.parametrize("distance", [energy_distance, mmd, sliced_wasserstein, frechet_distance])
def test_mistakes_are_named(distance):
    x = normal(50, 2)
    with pytest.raises(AleatorError, match=r"shape \(50, 2\) and \(50, 1\)"):
        distance(x, x[:, :1])
    with pytest.raises(AleatorError, match="the second sample has NaN"):
        distance(x, x.where(x < 1, math.nan))
    with pytest.raises(AleatorError, match="fewer groups"):
        distance(x, x[:20])
    with pytest.raises(AleatorError, match="level=2"):
        distance(x, x, level=2)


def test_bandwidths_are_checked():
    x = normal(50, 2)
    with pytest.raises(AleatorError, match="bandwidths="):
        mmd(x, x, bandwidths=[0.0])
    with pytest.raises(AleatorError, match="over half of all examples are equal"):
        mmd(0 * x, 0 * x)
    with pytest.raises(AleatorError, match=r"order=0\.5"):
        sliced_wasserstein(x, x, order=0.5)
