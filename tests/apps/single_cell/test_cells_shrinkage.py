"""Directions of the latent space drawn in: exact algebra, noise to the mean, structure kept."""

import copy

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy import stats

from apps.single_cell import Denoiser, Output
from apps.single_cell.config import Config
from apps.single_cell.counts import Counts
from apps.single_cell.covariates import Design
from apps.single_cell.fitting import fit_model
from apps.single_cell.generate import generating
from apps.single_cell.mcv import split
from apps.single_cell.posterior import rates
from apps.single_cell.selection import choose, select
from apps.single_cell.shrinkage import (
    Shrinkage,
    _Block,
    _Cells,
    _HeldOut,
    learn_shrinkage,
    shrink,
)
from core.errors import AleatorError

QUICK = Config(latent=4, width=16, likelihood="nb", strength=1.0, steps=150)


def plain(n):
    return Design(np.zeros((n, 0), np.int64), np.zeros((n, 0), np.float32), ())


def fitted(counts, config=QUICK):
    library = np.asarray(counts.sum(1)).ravel()
    return fit_model(Counts(counts), library, plain(counts.shape[0]), config, progress=None).model


@pytest.fixture(scope="module")
def typed(known):
    adata, real = known(n=400)
    molecules = split(sp.csr_matrix(adata.X), 0.7, 0)
    return molecules, fitted(molecules.train), real


@pytest.fixture(scope="module")
def noise():
    """Cells that all have the same shares, and counts of them without any further noise."""
    stream = np.random.default_rng(3)
    share = stream.dirichlet(np.full(60, 0.5))
    depth = stream.lognormal(np.log(400), 0.3, (300, 1))
    counts = stream.poisson(depth * share).astype(np.float32)
    counts[:, -1] += 1
    return sp.csr_matrix(counts)


def means(model, counts):
    return np.concatenate([part.mean for part in rates(model, Counts(counts), plain(300))])


@pytest.mark.exact
def test_directions_are_principal_components_in_the_metric_of_counts(typed):
    molecules, model, _ = typed
    cells = _Cells(model, Counts(molecules.train), plain(400))
    features = torch.cat([f for f, _ in cells.parts]).double()
    s = (features - cells.centre) @ cells.scores
    weight = model.decoder.weight.double()
    p = (model.decoder.level.double() + cells.centre @ weight).softmax(0)
    covariance = (s.T @ s / len(s)).detach().numpy()
    np.testing.assert_allclose(covariance, np.diag(cells.sizes.square()), atol=1e-9)
    large = cells.sizes > 1e-4 * cells.sizes[0]
    apart = cells.loadings - (cells.loadings @ p)[:, None]
    gram = ((apart * p) @ apart.T)[large][:, large].detach().numpy()
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-6)
    assert (cells.sizes.diff() <= 0).all()
    again = (cells.scores @ cells.loadings).detach().numpy()
    np.testing.assert_allclose(again, weight.detach().numpy(), atol=1e-6)


@pytest.mark.exact
def test_weights_of_one_and_of_zero(typed):
    molecules, model, _ = typed
    counts, design = Counts(molecules.train), plain(400)
    same = shrink(model, Shrinkage(), counts, design)
    nearly = shrink(model, Shrinkage(rest=1 - 1e-9), counts, design)
    gone = shrink(model, Shrinkage(rest=0.0), counts, design)
    x = torch.from_numpy(molecules.train[:50].toarray())
    context = {"library": x.sum(1)}
    with torch.no_grad():
        z = model.encode(x, context).mean
        found = [m.decode(z, context).rate.numpy() for m in (model, same, nearly, gone)]
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_allclose(found[2], found[0], rtol=1e-3, atol=1e-5)
    share = found[3] / found[3].sum(1, keepdims=True)
    np.testing.assert_allclose(share, share[:1].repeat(50, 0), rtol=1e-4)
    assert np.abs(found[0] / found[3] - 1).max() > 0.5


@pytest.mark.exact
def test_each_gene_keeps_its_mean(typed):
    molecules, model, _ = typed
    counts, design = Counts(molecules.train), plain(400)
    drawn_in = shrink(model, Shrinkage((1.0, 0.4), 0.1), counts, design)
    cells = _Cells(model, counts, design)
    ratio = (cells.expected(drawn_in.decoder) / cells.totals).detach().numpy()
    np.testing.assert_allclose(ratio, 1, atol=2e-3)


@pytest.mark.exact
def test_likelihood_of_held_out_molecules_is_scipys():
    stream = np.random.default_rng(0)
    mu, theta = stream.gamma(1.0, 2.0, (5, 7)), stream.gamma(2.0, 2.0, (1, 7))
    x, y, ratio = stream.poisson(2.0, (5, 7)), stream.poisson(1.0, (5, 7)), 0.25

    def ours(scale):
        tensors = [torch.tensor(a, dtype=torch.float64) for a in (mu * scale, theta, x, y)]
        return _Block(tensors[0], *tensors, ratio)

    def scipys(scale):
        shape, rate = theta + x, mu * scale
        mean = ratio * rate * (theta + x) / (theta + rate)
        return stats.nbinom.logpmf(y, shape, shape / (shape + mean)).sum()

    told = ours(1.3).likelihood() - ours(1.0).likelihood()
    assert told == pytest.approx(scipys(1.3) - scipys(1.0), abs=1e-10)
    slope = ours(1.0).by_rate()[0].sum()
    step = 1e-5
    numerically = (scipys(np.exp(step)) - scipys(np.exp(-step))) / (2 * step)
    assert float(slope) == pytest.approx(numerically, rel=1e-6)


@pytest.mark.exact
def test_curvature_is_the_variance_of_the_slope():
    stream = np.random.default_rng(1)
    mu, theta, x, ratio = np.full((200_000, 1), 3.0), 2.0, 4.0, 0.5
    y = stream.poisson(stream.gamma(theta + x, ratio * mu / (theta + mu)))
    full = [torch.from_numpy(np.full_like(mu, value)) for value in (theta, x)]
    rate = torch.from_numpy(mu)
    block = _Block(rate, rate, *full, torch.from_numpy(y.astype(float)), ratio)
    slope, curvature = (value.numpy() for value in block.by_rate())
    assert abs(slope.mean()) < 4 * slope.std() / np.sqrt(len(slope))
    assert slope.var() == pytest.approx(curvature.mean(), rel=0.02)


def test_slope_in_the_weights_is_that_of_the_likelihood(typed):
    molecules, model, _ = typed
    cells = _Cells(model, Counts(molecules.train), plain(400))
    held = _HeldOut(model, cells, molecules.train, molecules.test, molecules.ratio)
    slope, _ = held.score(model.decoder, 1.0)
    values = []
    for change in (1e-2, -1e-2):
        decoder, weights = copy.deepcopy(model.decoder), torch.ones(16, dtype=torch.float64)
        weights[0] += change
        cells.draw_in(weights, decoder, corrections=0)
        values.append(held.likelihood(decoder, 1.0))
    assert float(slope[0]) == pytest.approx((values[0] - values[1]) / 2e-2, rel=0.02)


def test_noise_is_drawn_to_the_library_mean(noise):
    molecules = split(noise, 0.9, 0)
    model = fitted(molecules.train)
    found = learn_shrinkage(model, molecules, plain(300))
    assert max(found.weights) < 0.3
    assert found.dispersion > 3
    drawn_in = shrink(model, found, Counts(molecules.train), plain(300))
    counts = molecules.train
    library = np.asarray(counts.sum(1))
    mean = library * np.asarray(counts.sum(0)) / counts.sum()
    before, after = (np.square(means(m, counts) / mean - 1).mean() for m in (model, drawn_in))
    assert after < 0.15 * before


def test_the_verdict_on_noise_does_not_hurt(noise):
    design = plain(noise.shape[0])
    as_trained = Config(**{**vars(QUICK), "shrinkage": 1.0})
    hurt = select(Counts(noise), design, as_trained, device="cpu", search=False).verdict
    found = select(Counts(noise), design, QUICK, device="cpu", search=False)
    assert hurt.hurts
    assert not found.verdict.hurts
    assert found.verdict.losses["ours"] < hurt.losses["ours"]
    apart = found.verdict.differences["library mean"][0]
    assert abs(apart) < 0.2 * hurt.differences["library mean"][0]


def test_structure_stays(typed):
    molecules, model, real = typed
    found = learn_shrinkage(model, molecules, plain(400))
    assert min(found.weights[:2]) > 0.75  # three types have two directions
    assert max(found.weights[2:8]) < 0.6
    assert list(found.weights) == sorted(found.weights, reverse=True)
    drawn_in = shrink(model, found, Counts(molecules.train), plain(400))
    truth = real[:, molecules.genes]
    errors = []
    for m in (model, drawn_in):
        parts = rates(m, Counts(molecules.train), plain(400))
        mean = np.concatenate([part.mean for part in parts]) / 0.7
        errors.append(np.square(np.sqrt(mean) - np.sqrt(truth)).mean())
    assert errors[1] < 1.005 * errors[0]


def test_poisson_and_zero_inflated_models(typed):
    molecules, _, _ = typed
    poisson = fitted(molecules.train, Config(4, 16, "poisson", strength=1.0, steps=150))
    found = learn_shrinkage(poisson, molecules, plain(400))
    assert found.dispersion == 1
    assert 0.5 < found.weights[0] <= 1
    zinb = fitted(molecules.train, Config(4, 16, "zinb", strength=1.0, steps=5))
    assert learn_shrinkage(zinb, molecules, plain(400)) == Shrinkage()


def test_it_is_kept_with_the_model_and_changes_all_that_is_written(known, tmp_path):
    adata, _ = known()
    config = Config(4, 16, "nb", strength=10.0, steps=60)
    chosen = Denoiser.fit(adata, config=config, search=False)
    assert chosen.shrinkage != Shrinkage()
    chosen.save(tmp_path / "model")
    loaded = Denoiser.load(tmp_path / "model")
    assert loaded.shrinkage == chosen.shrinkage
    output = Output(samples=2, estimate="mean")
    written, again = (d.denoise(adata, output=output) for d in (chosen, loaded))
    for name in output.layers:
        np.testing.assert_array_equal(written.layers[name], again.layers[name])
    none = Denoiser.fit(
        adata, config=Config(**{**vars(config), "shrinkage": 0.0}), search=False
    ).denoise(adata, output=output)
    library = np.asarray(adata.X.sum(1))
    for layer in ("denoised", "denoised_lower", "denoised_upper", "denoised_sample0"):
        spread = (none.layers[layer] / library).std(0).mean()
        assert spread < (written.layers[layer] / library).std(0).mean()


def test_a_model_for_new_cells_is_left_as_trained(known):
    adata, _ = known(120)
    config = generating(Config(4, 16, "nb", strength=10.0, steps=60), 120)
    assert choose(Counts(adata.X), plain(120), config, search=False)[1].of(16).min() == 1


@pytest.mark.parametrize("weight", [-0.1, 1.5, float("nan")])
def test_a_weight_is_from_zero_to_one(weight):
    with pytest.raises(AleatorError, match=r"shrinkage=.*from 0 to 1"):
        Config(shrinkage=weight)
