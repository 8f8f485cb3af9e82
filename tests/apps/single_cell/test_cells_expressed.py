"""Zeros that are meant: the parts of that estimate against exact laws, and its use."""

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import stats

from apps.single_cell import Denoiser, Output, denoise, expressed
from apps.single_cell.config import Config
from apps.single_cell.counts import Counts
from apps.single_cell.covariates import Design
from apps.single_cell.data import sample_path
from apps.single_cell.evaluation import protein_agreement
from apps.single_cell.expressed import (
    GRID,
    REACH,
    WIDTH,
    Levels,
    crossings,
    dispersion_curves,
    learn_levels,
    shrunken,
)
from apps.single_cell.inputs import bundled_model
from apps.single_cell.layers import point
from apps.single_cell.model import CellVAE, log_profile
from apps.single_cell.posterior import Rates, rates
from core.errors import AleatorError


@pytest.mark.exact
def test_curves_are_those_of_scipy_but_for_a_constant():
    rng = np.random.default_rng(0)
    mu = rng.gamma(1.0, 3.0, (50, 4)).astype(np.float32)
    x = rng.poisson(mu * rng.gamma(2.0, 0.5, mu.shape)).astype(np.float32)
    theta = np.exp(GRID)[:, None, None]
    known = stats.nbinom.logpmf(x, theta, theta / (theta + mu.astype(np.float64))).sum(1)
    found = dispersion_curves(mu, x)
    assert found - found[0] == pytest.approx(known - known[0], rel=1e-5, abs=1e-3)


def test_dispersions_are_found_where_counts_tell_them_and_shrink_where_not():
    rng = np.random.default_rng(1)
    log_theta = rng.normal(1.0, 1.0, 300)
    mu = np.full((800, 300), 5.0, np.float32)
    mu[:, 200:] = 0.02
    x = rng.poisson(mu * rng.gamma(np.exp(log_theta), np.exp(-log_theta), mu.shape))
    found = shrunken(dispersion_curves(mu, x.astype(np.float32)))
    assert np.abs(found - log_theta)[:200].mean() < 0.15
    assert found[200:].std() < 0.5 * log_theta[200:].std()
    assert found[200:].mean() == pytest.approx(1.0, abs=0.5)


def histogram(values):
    """Of the columns of values (N, G), as `learn_levels` counts them."""
    edges = np.arange(round(2 * REACH / WIDTH) + 1) * WIDTH - REACH
    return np.stack([np.histogram(column, edges)[0] for column in values.T]).astype(float)


def two_levels(share, low, high, spread, n=20_000, seed=0):
    rng = np.random.default_rng(seed)
    on = rng.random(n) < share
    return np.where(on, rng.normal(high, spread, n), rng.normal(low, spread, n))[:, None]


@pytest.mark.exact
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_crossing_is_where_two_normal_laws_are_as_likely(share):
    low, high, spread = -2.0, 1.0, 0.7
    found = crossings(histogram(two_levels(share, low, high, spread)))[0]
    middle = (low + high) / 2 + spread**2 * np.log((1 - share) / share) / (high - low)
    assert found == pytest.approx(middle, abs=1.5 * WIDTH)


def test_one_level_or_two_that_are_near_leave_a_gene_on():
    rng = np.random.default_rng(2)
    one = rng.normal(0.0, 0.5, (5000, 1))
    near = two_levels(0.5, -0.4, 0.4, 0.1)[:5000]  # 2.2 times apart
    assert (crossings(histogram(np.hstack([one, near]))) == -np.inf).all()
    assert np.isfinite(crossings(histogram(two_levels(0.5, -0.8, 0.8, 0.1)))).all()
    few = rng.normal(0.0, 2.0, (60, 3))  # two components lie far apart, and explain no more
    assert (crossings(histogram(few)) == -np.inf).all()


def no_covariates(n):
    return Design(np.zeros((n, 0), np.int64), np.zeros((n, 0), np.float32), ())


@pytest.fixture(scope="module")
def bundled():
    """The bundled sample of five cell lines, with what its model says of every estimate."""
    adata = ad.read_h5ad(sample_path())
    denoiser = Denoiser.load(bundled_model())
    counts, design = Counts(adata.X), no_covariates(adata.n_obs)
    levels = learn_levels(denoiser.model, counts, design, draws=2)
    parts = list(rates(denoiser.model, counts, design, draws=2))
    made = {
        name: np.concatenate([point(part, name, levels=levels) for part in parts])
        for name in ("mean", "balanced", "expressed")
    }
    return adata, made


def overdispersed(adata, least=0.02, most=0.2, genes=100):
    """Genes that few cells show, with the greatest variance for their mean."""
    x = adata.X.toarray().astype(float)
    seen = (x > 0).mean(0)
    fitted = x.sum(1, keepdims=True) * (x.sum(0) / x.sum())
    excess = np.square(x - fitted).sum(0) / np.maximum(x.sum(0), 1)
    excess[(seen < least) | (seen > most)] = 0
    return np.argsort(-excess)[:genes]


def test_markers_are_ranked_more_like_molecules_that_were_not_seen(bundled):
    adata, made = bundled
    truth = adata.layers["truth"].toarray().astype(float)
    chosen = overdispersed(adata)
    pairs = {adata.var_names[j]: k for k, j in enumerate(chosen)}
    known = (truth / truth.sum(1, keepdims=True))[:, chosen]

    def agreement(values):
        found = protein_agreement(values.astype(float), adata.var_names, known, pairs)
        return np.mean(list(found.values()))

    ours = agreement(made["expressed"])
    assert ours > agreement(made["balanced"]) + 0.03
    assert ours > agreement(made["mean"]) + 0.03
    assert ours > agreement(adata.X.toarray()) + 0.03


def test_zeros_are_where_a_cell_line_has_none_of_it(bundled):
    adata, made = bundled
    truth = adata.layers["truth"].toarray().astype(float)
    line = adata.obs["cell_line"].astype(str).to_numpy()
    deep = truth.sum(0) > 1000
    profile = truth.sum(0) / truth.sum()
    zero, absent = made["expressed"][:, deep] == 0, np.zeros((len(line), deep.sum()), bool)
    for name in set(line):
        bulk = truth[line == name].sum(0) / truth[line == name].sum()
        absent[line == name] = (bulk < 0.1 * profile)[deep]
    assert absent.mean() > 0.003
    assert zero[absent].mean() > 0.9
    assert zero[~absent].mean() < 0.15
    assert truth[made["expressed"] == 0].sum() < 0.06 * truth.sum()


@pytest.fixture(scope="module")
def untrained(known):
    """Cells, and a model that knows their mean profile."""
    adata, _ = known(n=150, g=30)
    counts = Counts(adata.X)
    torch.manual_seed(0)
    config = Config(latent=3, width=16, likelihood="nb", strength=1.0, steps=1)
    return counts, CellVAE(log_profile(counts), len(counts), config).eval()


def test_levels_and_rates_do_not_depend_on_blocks(untrained):
    counts, model = untrained
    design = no_covariates(len(counts))
    levels, again = (learn_levels(model, counts, design) for _ in range(2))
    assert (levels.threshold == again.threshold).all()
    assert (levels.dispersion == again.dispersion).all()
    found = [
        np.concatenate(
            [
                point(part, "expressed", levels=levels)
                for part in rates(model, counts, design, cells=cells)
            ]
        )
        for cells in (16, 256)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_many_cells_are_sampled(untrained, monkeypatch):
    counts, model = untrained
    design = no_covariates(len(counts))
    looked = []
    real = expressed.dispersion_curves
    monkeypatch.setattr(expressed, "SAMPLE", 120)
    monkeypatch.setattr(
        expressed, "dispersion_curves", lambda mu, x: looked.append(len(x)) or real(mu, x)
    )
    some, same, other = (learn_levels(model, counts, design, seed=seed) for seed in (1, 1, 2))
    assert sum(looked) == 3 * 120
    assert (some.dispersion == same.dispersion).all()
    assert (some.dispersion != other.dispersion).any()


def test_denoise_writes_it(monkeypatch):
    adata = ad.read_h5ad(sample_path())[:40].copy()
    threshold = np.zeros(adata.n_vars)
    threshold[:3] = 1.0
    known = Levels(np.full(adata.n_vars, 5.0, np.float32), threshold)
    monkeypatch.setattr(denoise, "learn_levels", lambda *_, **__: known)
    output = Output(estimate="expressed", draws=1)
    written = Denoiser.load(bundled_model()).denoise(adata, output=output)
    assert (written.layers["denoised"][:, :3] == 0).all()
    assert (written.layers["denoised"][:, 3:] > 0).mean() > 0.99
    assert (written.layers["denoised_upper"] > 0).all()
    assert written.uns["aleator"]["output"]["estimate"] == "expressed"


def test_what_it_cannot_do_is_said():
    with pytest.raises(AleatorError, match="own batches"):
        Output(estimate="expressed", batch="a")
    part = Rates(0, 1, *(np.ones((1, 2)),) * 2, np.zeros((1, 1)), np.zeros(1))
    with pytest.raises(AleatorError, match="needs levels"):
        point(part, "expressed")
    with pytest.raises(AleatorError, match="have no counts"):
        Levels(np.ones(2), np.zeros(2)).estimate(part)
