"""Baselines: exact where there is a closed form or a reference, and right about known truth."""

import numpy as np
import pytest
import scipy.sparse as sp

from apps.single_cell.baselines import (
    Components,
    Diffusion,
    LibraryMean,
    Neighbours,
    PoissonFactors,
    Raw,
    Thresholded,
    _above_noise,
    baselines,
    normalised,
)
from apps.single_cell.mcv import cross_validate, split
from core.errors import AleatorError


@pytest.fixture(scope="module")
def known():
    """Counts (200, 60) of three types, and their rates."""
    rng = np.random.default_rng(0)
    profile = rng.dirichlet(np.full(60, 0.3), 3)
    depth = rng.lognormal(np.log(60), 0.3, (200, 1))
    rates = depth * profile[rng.integers(0, 3, 200)]
    return sp.csr_matrix(rng.poisson(rates).astype(np.float32)), rates


def test_all_keep_the_depth(known):
    counts, _ = known
    for name, method in baselines().items():
        if hasattr(method, "components"):
            method.components = Components(5)
        if isinstance(method, PoissonFactors | Components | Thresholded):
            method.rank = 3
        rates = method.fit(counts).predict(counts[:20])
        assert rates.shape == (20, 60), name
        assert (rates >= 0).all(), name
        total = np.asarray(counts[:20].sum(1)).ravel()
        assert rates.sum(1) == pytest.approx(total, rel=1e-4), name


@pytest.mark.exact
def test_library_mean_is_the_profile(known):
    counts, _ = known
    rates = LibraryMean().fit(counts).predict(counts)
    x = counts.toarray()
    assert rates == pytest.approx(np.outer(x.sum(1), x.sum(0) / x.sum()), rel=1e-5)


def test_raw(known):
    assert (Raw().fit(known[0]).predict(known[0]) == known[0].toarray()).all()


def test_factors_of_rank_one_are_the_library_mean(known):
    counts, _ = known
    one = PoissonFactors(1, 20).fit(counts).predict(counts)
    assert one == pytest.approx(LibraryMean().fit(counts).predict(counts), rel=1e-3)


def test_factors_never_lose_and_end_where_scikit_learn_does(known):
    from sklearn.decomposition import NMF

    counts, _ = known
    ours = PoissonFactors(3, 400, tolerance=1e-9).fit(counts)
    assert (np.diff(ours.losses) < 1e-6).all()
    x = counts.toarray()

    def deviance(rates):
        return (rates - x * np.log(np.maximum(rates, 1e-12))).sum()

    theirs = min(
        deviance(model.fit_transform(x) @ model.components_)
        for model in (
            NMF(3, solver="mu", beta_loss=1, init="random", random_state=s, max_iter=1000)
            for s in range(3)
        )
    )
    found = min(
        deviance(PoissonFactors(3, 400, 1e-9, seed).fit(counts).predict(counts))
        for seed in range(3)
    )
    assert found == pytest.approx(theirs, rel=2e-3)


def test_factors_beat_the_mean_and_raw_on_held_out_molecules(known):
    molecules = split(known[0], 0.9, 0)
    loss = {
        name: cross_validate(method.fit(molecules.train).predict, molecules).scores()["poisson"]
        for name, method in {
            "raw": Raw(),
            "mean": LibraryMean(),
            "factors": PoissonFactors(3),
        }.items()
    }
    assert loss["factors"] < loss["mean"] < loss["raw"]


def test_factors_find_the_rates(known):
    counts, rates = known
    error = np.abs(PoissonFactors(3).fit(counts).predict(counts) - rates).sum() / rates.sum()
    assert error < 0.15
    assert error < 0.5 * np.abs(counts.toarray() - rates).sum() / rates.sum()


def test_components_of_nearly_full_rank_give_the_counts_back(known):
    counts = known[0][:30, :20]
    counts = counts[np.asarray(counts.sum(1)).ravel() > 0]
    for transform in ("log", "sqrt"):
        rates = Components(19, transform).fit(counts).predict(counts)
        assert np.abs(rates - counts.toarray()).mean() < 0.02


def test_one_neighbour_is_the_cell_itself(known):
    counts, _ = known
    rates = Neighbours(1, Components(5)).fit(counts).predict(counts)
    assert rates == pytest.approx(counts.toarray(), rel=1e-4, abs=1e-4)


def test_diffusion_brings_cells_together(known):
    counts, _rates = known

    def spread(t):
        found = Diffusion(t, 5, Components(5, "sqrt")).fit(counts).predict(counts)
        return normalised(sp.csr_matrix(found), 1.0).toarray().std(0).mean()

    assert spread(6) < spread(1)


@pytest.mark.exact
def test_thresholding_is_what_its_equations_say(known):
    counts, _ = known
    x = counts.toarray()
    a = np.log1p(x / x.sum(1, keepdims=True) * 1e4)
    u, s, v = np.linalg.svd(a, full_matrices=False)
    low = (u[:, :3] * s[:3]) @ v[:3]
    kept = np.where(low > np.abs(np.quantile(low, 0.001, axis=0)), low, 0)
    for g in range(a.shape[1]):
        on, seen = kept[:, g] > 0, a[:, g] > 0
        if on.sum() > 1 and seen.sum() > 1:
            z = (kept[on, g] - kept[on, g].mean()) / kept[on, g].std(ddof=1)
            kept[on, g] = np.maximum(z * a[seen, g].std(ddof=1) + a[seen, g].mean(), 0)
        kept[(kept[:, g] == 0) & seen, g] = a[(kept[:, g] == 0) & seen, g]
    rates = np.expm1(kept)
    rates *= x.sum(1, keepdims=True) / rates.sum(1, keepdims=True)
    found = Thresholded(3).fit(counts).predict(counts)
    assert np.abs(found - rates).max() < 1e-2 * rates.max()
    assert (found[x > 0] > 0).all()
    assert ((found == 0) == (rates == 0)).mean() > 0.999


def test_the_rank_is_where_singular_values_leave_the_noise():
    gaps = np.random.default_rng(3).uniform(0.01, 0.02, 96)
    noise = 5.0 - np.cumsum(gaps)
    assert _above_noise(np.concatenate([[50.0, 30.0, 20.0, 10.0], noise])) == 4
    assert _above_noise(np.concatenate([[50.0], 5.0 - np.cumsum(np.append(gaps, 0.01))])) == 1
    assert _above_noise(np.arange(40.0, 0, -1)) == 40  # too few to tell noise by


def test_bad_options(known):
    counts, _ = known
    with pytest.raises(AleatorError, match="rank 60"):
        PoissonFactors(60).fit(counts)
    with pytest.raises(AleatorError, match="log or sqrt"):
        Components(3, "cube").fit(counts)
    with pytest.raises(AleatorError, match="neighbours"):
        Neighbours(1000).fit(counts)
    with pytest.raises(AleatorError, match="steps"):
        Diffusion(0).fit(counts)
