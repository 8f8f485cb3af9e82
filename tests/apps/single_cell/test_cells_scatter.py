"""How new counts scatter: the likelihood, its top, bursts that are there or are not, draws."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy import optimize, stats

from apps.single_cell import scatter as module
from apps.single_cell.config import Config
from apps.single_cell.counts import Counts
from apps.single_cell.covariates import Design
from apps.single_cell.likelihood import CellLaw
from apps.single_cell.model import DISPERSION, CellVAE, log_profile
from apps.single_cell.scatter import (
    GRID,
    Scatter,
    log_dispersions,
    log_likelihood,
    most_probable,
    parts,
)
from core.random import keyed_generator

CELLS, GENES = 600, 12
TRUE = np.geomspace(0.5, 20.0, GENES)


def cells(theta=TRUE, seed=0, chance=0.0, size=0.0, number=CELLS, level=(40, 250)):
    """Cells that are all alike but for their depths, with bursts."""
    stream = np.random.default_rng(seed)
    mu = stream.uniform(*level, number)[:, None] * np.ones(len(theta))
    rate = mu * stream.gamma(theta, 1 / theta, mu.shape)
    odd = stream.random(mu.shape) < -np.expm1(-chance * mu)
    rate = np.where(odd, (mu + size) * stream.gamma(2.0, 0.5, mu.shape), rate)
    return sp.csr_matrix(stream.poisson(rate), dtype=float)


def untold(counts, kind="nb", groups=1):
    """A model whose decoder tells cells not apart."""
    torch.manual_seed(0)
    config = Config(2, 8, kind, "gene-batch" if groups > 1 else "gene", strength=1.0)
    found = CellVAE(
        log_profile(counts), CELLS, config, covariates=groups - 1 and groups, batches=groups
    )
    with torch.no_grad():
        found.decoder.weight.zero_()
    return found.eval()


def alone(number=CELLS):
    return Design(np.zeros((number, 0), np.int64), np.zeros((number, 0), np.float32), ())


@pytest.mark.exact
@pytest.mark.parametrize(("chance", "size"), [(0.0, 0.0), (2e-3, 20.0)])
def test_the_likelihood_is_that_of_two_negative_binomials(chance, size):
    counts = torch.from_numpy(cells(chance=0.002, size=60.0).toarray()[:40])
    mu = counts.sum(1, keepdim=True).expand_as(counts) / GENES
    found = log_likelihood(counts, mu, chance, size)
    x, share = counts.numpy(), -np.expm1(-chance * mu.numpy())
    usual = mu.numpy() - share * size
    burst = usual + size
    for k, log_theta in enumerate(GRID.tolist()):
        theta = np.exp(log_theta)
        told = stats.nbinom.logpmf(x, theta, theta / (theta + usual))
        if chance:
            odd = stats.nbinom.logpmf(x, 2.0, 2 / (2 + burst))
            told = np.logaddexp(np.log(1 - share) + told, np.log(share) + odd)
        np.testing.assert_allclose(found[:, k].numpy(), told.sum(0), rtol=1e-5)


@pytest.mark.exact
def test_means_of_bursts_and_others_make_the_rate_however_large_bursts_are():
    mu = torch.tensor([1e-9, 0.01, 1.0, 50.0, 4000.0], dtype=torch.float64)
    for chance, size in ((1e-3, 20.0), (3e-3, 5e4)):
        share, usual, burst = parts(mu, chance, size)
        torch.testing.assert_close((1 - share) * usual + share * burst, mu)
        assert (usual >= 0.49 * mu).all()
        assert (burst > usual).all()
    share, usual, burst = parts(mu[:4], 1e-3, 20.0)
    torch.testing.assert_close(burst - usual, torch.full((4,), 20.0, dtype=torch.float64))
    torch.testing.assert_close(share[:2], 1e-3 * mu[:2], rtol=1e-4, atol=0)
    for part in parts(mu, 0.0, 0.0)[1:]:
        torch.testing.assert_close(part, mu)


@pytest.mark.exact
def test_the_top_of_a_parabola_is_found():
    top = torch.tensor([[0.3, -1.2, 2.0]], dtype=torch.float64)
    prior = 0.5 * DISPERSION * (GRID - 1.0).square()
    profile = -((GRID - top[..., None]) ** 2) + prior + 7.0
    at, height = most_probable(profile, 1.0)
    torch.testing.assert_close(at, top, rtol=0, atol=1e-9)
    assert height == pytest.approx(21.0)


@pytest.mark.exact
def test_without_bursts_the_most_probable_dispersions_are_found():
    x = cells()
    model = untold(Counts(x))
    found = Scatter.fit(model, Counts(x), alone(), seed=1)
    assert found.chance == 0.0
    dense = x.toarray()
    share = torch.softmax(model.decoder.level.detach().double(), 0).numpy()
    mu = dense.sum(1, keepdims=True) * share
    centre = float(log_dispersions(model).mean())

    def cost(log_theta):
        theta = np.exp(log_theta)
        told = stats.nbinom.logpmf(dense, theta, theta / (theta + mu)).sum()
        return -told + 0.5 * DISPERSION * np.square(log_theta - centre).sum()

    best = optimize.minimize(cost, np.log(TRUE), method="BFGS", options={"gtol": 1e-3}).x
    np.testing.assert_allclose(found.log_dispersion[0].numpy(), best, atol=0.04)


def test_bursts_are_noticed_and_do_not_widen_the_others():
    theta = np.full(400, 20.0)  # so many that a burst hardly changes its cell's total
    x = cells(theta, chance=1.5e-3, size=40.0, number=200, level=(1, 8))
    model = untold(Counts(x))
    found = Scatter.fit(model, Counts(x), alone(200))
    assert found.size == 40.0
    assert 1e-3 <= found.chance <= 2e-3
    assert found.log_dispersion.median() == pytest.approx(np.log(20.0), abs=0.3)
    blocks = module._blocks(model, Counts(x), alone(200), 0)
    profile = module.profiles(model, blocks, 0.0, 0.0)
    gamma_only, _ = most_probable(profile, float(log_dispersions(model).mean()))
    assert gamma_only.median() < np.log(20.0) - 1


def test_batches_have_their_own():
    x = sp.vstack([cells(TRUE)[: CELLS // 2], cells(TRUE[::-1].copy(), 1)[CELLS // 2 :]]).tocsr()
    codes = np.repeat([0, 1], CELLS // 2)[:, None]
    design = Design(codes, np.zeros((CELLS, 0), np.float32), (2,))
    found = Scatter.fit(untold(Counts(x), groups=2), Counts(x), design).log_dispersion.numpy()
    np.testing.assert_allclose(found[0], np.log(TRUE), atol=0.6)
    np.testing.assert_allclose(found[1], np.log(TRUE[::-1]), atol=0.6)


@pytest.mark.parametrize("kind", ["poisson", "zinb"])
def test_other_laws_keep_their_own(kind):
    x = cells()
    assert Scatter.fit(untold(Counts(x), kind), Counts(x), alone()) is None


def test_a_sample_of_the_cells_says_the_same(monkeypatch):
    x, found = cells(), []
    for most in (CELLS, CELLS // 2, CELLS // 2):
        monkeypatch.setattr(module, "SAMPLE", most)
        found.append(Scatter.fit(untold(Counts(x)), Counts(x), alone(), seed=3).log_dispersion)
    assert torch.equal(found[1], found[2])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0.5)
    assert not torch.equal(found[0], found[1])


@pytest.mark.exact
@pytest.mark.parametrize("chance", [0.0, 5e-3])
def test_rates_keep_the_mean_and_have_the_variance_of_the_law(chance):
    size, theta, n = 20.0, 4.0, 400_000
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(n, 3)
    law = CellLaw(logits, torch.full((n,), 10.0), torch.zeros(1, 3))
    found = Scatter(torch.full((1, 3), theta).log(), chance, size)
    rates = found.rates(law, keyed_generator(0)).double()
    mu = law.rate[0].double()
    share = -torch.expm1(-chance * mu)
    usual = mu - share * size
    second = (1 - share) * (1 + 1 / theta) * usual**2 + share * 1.5 * (usual + size) ** 2
    torch.testing.assert_close(rates.mean(0), mu, rtol=0.02, atol=0)
    torch.testing.assert_close(rates.var(0), second - mu**2, rtol=0.06, atol=0)


def test_rates_use_the_dispersions_of_the_batch():
    law = CellLaw(torch.zeros(4000, 2), torch.full((4000,), 10.0))
    found = Scatter(torch.tensor([[0.0, 0.0], [4.0, 4.0]]), 0.0, 1.0)
    group = torch.arange(4000) % 2
    rates = found.rates(law, [keyed_generator(1, i) for i in range(4000)], group) / 5.0
    assert rates[group == 0].var() == pytest.approx(1.0, rel=0.15)
    assert rates[group == 1].var() == pytest.approx(np.exp(-4.0), rel=0.15)
