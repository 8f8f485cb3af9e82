"""The joint law of a cell equals core's laws gene by gene, SciPy's, and its own gradients."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from apps.single_cell.likelihood import CellLaw, CellLikelihood, Seen
from core.distributions import NegativeBinomial, Poisson, ZeroInflated
from core.errors import AleatorError

SCVI_LAWS = Path(__file__).with_name("scvi_laws.json")


def some_law(rows=5, genes=40, kind="nb", per_cell=False, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    h = torch.randn(rows, genes, generator=g, dtype=dtype)
    library = 50 + 100 * torch.rand(rows, generator=g, dtype=dtype)
    shape = (rows if per_cell else 1, genes)
    theta = torch.randn(shape, generator=g, dtype=dtype) if kind != "poisson" else None
    zero = torch.randn(1, genes, generator=g, dtype=dtype) if kind == "zinb" else None
    x = torch.poisson(library[:, None] * h.softmax(1), generator=g)
    return CellLaw(h, library, theta, zero), x


@pytest.mark.exact
@pytest.mark.parametrize("kind", ["nb", "poisson", "zinb"])
def test_log_prob_is_scipys(kind):
    law, x = some_law(kind=kind)
    mu = law.rate.numpy()
    if kind == "poisson":
        expected = stats.poisson.logpmf(x, mu)
    else:
        theta = law.dispersion.numpy()
        expected = stats.nbinom.logpmf(x, theta, theta / (theta + mu))
    if kind == "zinb":
        pi = law.zero_logits.sigmoid().numpy()
        mixed = np.log(pi + (1 - pi) * np.exp(expected))
        expected = np.where(x.numpy() == 0, mixed, np.log1p(-pi) + expected)
    assert np.abs(law.log_prob(x).numpy() - expected.sum(1)).max() < 1e-10


@pytest.mark.exact
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["nb", "poisson", "zinb", "nb of each cell"])
def test_what_is_prepared_once_serves_all_latents(kind, dtype):
    """Prepared under one draw of the latents, read under another, at extreme dispersions too."""
    law, x = some_law(kind=kind[:7].split(" of")[0], per_cell="each" in kind, dtype=dtype)
    if law.log_dispersion is not None:
        law.log_dispersion[:, ::2] *= 9 / law.log_dispersion[:, ::2].abs()
    other = CellLaw(law.logits.flip(0), law.library, law.log_dispersion, law.zero_logits)
    found, expected = other.bound(Seen.of(x, law)), other.log_prob(x)
    assert found.numpy() == pytest.approx(
        expected.numpy(), rel=1e-12 if dtype == torch.float64 else 2e-6
    )
    assert (law.bound(Seen.of(x, law)) - found).abs().max() > 1.0


@pytest.mark.exact
@pytest.mark.parametrize("kind", ["nb", "zinb"])
def test_log_prob_is_that_of_scvi_tools(kind):
    """Numbers that scvi-tools 1.4.2 wrote (make_scvi_laws.py); each count is a cell of two genes.

    The other gene takes the rest of the library, so that the mean of the first is as asked. To
    1e-6 of masses beyond 1 nat: scvi-tools adds 1e-8 to means, and 900 counts of a mean of 0.003
    feel that.
    """
    known = json.loads(SCVI_LAWS.read_text())
    x, mu, theta, zero, expected = (
        torch.tensor(known[name], dtype=torch.float64)
        for name in ("count", "mean", "dispersion", "zero_logit", kind)
    )
    assert len(x) == 192
    library = 2 * mu
    counts = torch.stack([x, torch.zeros_like(x)], 1)
    per_gene = torch.stack([theta, torch.ones_like(x)], 1).log()
    inserted = torch.stack([zero, torch.zeros_like(x)], 1) if kind == "zinb" else None
    law = CellLaw(torch.zeros_like(counts), library, per_gene, inserted)
    rest = -torch.log1p(mu)  # a zero of mean μ and dispersion 1
    if kind == "zinb":
        rest = (0.5 + 0.5 * rest.exp()).log()
    gap = (law.log_prob(counts) - rest - expected).abs()
    assert (gap / expected.abs().clamp(min=1.0)).max() < 1e-6


@pytest.mark.exact
@pytest.mark.parametrize("per_cell", [False, True])
def test_gradients(per_cell):
    law, x = some_law(3, 7, per_cell=per_cell)
    h, theta = law.logits.requires_grad_(), law.log_dispersion.requires_grad_()

    def mass(h, theta):
        return CellLaw(h, law.library, theta).log_prob(x)

    assert torch.autograd.gradcheck(mass, (h, theta))


@pytest.mark.exact
def test_gradient_of_poisson():
    law, x = some_law(3, 7, kind="poisson")
    assert torch.autograd.gradcheck(
        lambda h: CellLaw(h, law.library).log_prob(x), (law.logits.requires_grad_(),)
    )


def test_single_precision_with_large_dispersion_keeps_six_digits():
    law, x = some_law(4, 2000)
    exact = CellLaw(law.logits, law.library, law.log_dispersion + 8).log_prob(x)
    single = CellLaw(
        law.logits.float(), law.library.float(), law.log_dispersion.float() + 8
    ).log_prob(x.float())
    assert ((single - exact) / exact).abs().max() < 2e-6


@pytest.mark.exact
@pytest.mark.parametrize("kind", ["nb", "zinb"])
def test_posterior_of_the_rate_against_quadrature(kind):
    law, x = some_law(2, 6, kind=kind)
    mean, variance = law.posterior(x)
    mu, theta = law.rate.numpy(), law.dispersion.expand_as(x).numpy()
    for i, j in np.ndindex(2, 6):
        u = np.linspace(-200, np.log(60 * mu[i, j] + 60), 200_001)  # rates e^u
        grid = np.exp(u)
        weight = stats.gamma.pdf(grid, theta[i, j], scale=mu[i, j] / theta[i, j])
        weight *= stats.poisson.pmf(x[i, j], grid) * grid * (u[1] - u[0])
        inserted = 0.0
        if kind == "zinb":
            pi = law.zero_logits.sigmoid()[0, j].item()
            weight, inserted = (1 - pi) * weight, pi * (x[i, j] == 0).item()
        total = weight.sum() + inserted
        first, second = (weight * grid).sum() / total, (weight * grid**2).sum() / total
        assert mean[i, j].item() == pytest.approx(first, rel=1e-5)
        assert variance[i, j].item() == pytest.approx(second - first**2, rel=1e-5)


def test_posterior_predicts_held_out_molecules():
    """With known truth: thinned counts of the law itself, the other half predicted."""
    law, _ = some_law(400, 30, dtype=torch.float32)
    law = CellLaw(law.logits, law.library, law.log_dispersion)
    g = torch.Generator().manual_seed(1)
    theta = law.dispersion.expand_as(law.rate).contiguous()
    rate = torch._standard_gamma(theta, generator=g) * law.rate / theta
    seen, held = torch.poisson(rate, generator=g), torch.poisson(rate, generator=g)
    mean, variance = law.posterior(seen)
    assert (held - mean).square().mean() < 0.8 * (held - law.rate).square().mean()
    spread = (held - mean).square().mean() / (variance + mean).mean()
    assert spread == pytest.approx(1, abs=0.1)


def test_samples_have_the_moments():
    law, _ = some_law(2, 20, kind="zinb", dtype=torch.float32)
    g = torch.Generator().manual_seed(2)
    many = torch.stack([law.sample(g) for _ in range(4000)])
    assert torch.allclose(many.mean(0), law.mean, rtol=0.25, atol=0.1)
    zero = law._elementwise().log_prob(torch.zeros(2, 20)).exp()
    assert ((many == 0).float().mean(0) - zero).abs().max() < 0.04


def test_law_of_core_is_what_it_says():
    law, x = some_law(kind="zinb")
    assert isinstance(law._elementwise(), ZeroInflated)
    law, x = some_law(kind="poisson")
    assert isinstance(law._elementwise(), Poisson)
    law, x = some_law()
    core = NegativeBinomial(law.rate, law.dispersion)
    assert torch.allclose(law.log_prob(x), core.log_prob(x).sum(1), rtol=1e-12)
    assert torch.allclose(law.variance, core.variance)


def test_dispersion_of_each_batch():
    likelihood = CellLikelihood(4, "nb", groups=2)
    likelihood.spread.data[1] = 0.0
    law = likelihood(torch.zeros(3, 4), torch.ones(3), torch.tensor([0, 1, 0]))
    assert law.dispersion[:, 0].tolist() == pytest.approx([7, 1, 7], rel=1e-5)


def test_unknown_kind():
    with pytest.raises(AleatorError, match="nb, poisson, zinb"):
        CellLikelihood(3, "gauss")
