"""Laws of data: normalised, equal to SciPy's, exact in float32, sampled from explicit streams."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from core.distributions import (
    Bernoulli,
    DiscretisedLogistic,
    Gaussian,
    NegativeBinomial,
    Poisson,
    ZeroInflated,
    check_counts,
    stirling_error,
)
from core.errors import AleatorError
from core.random import gamma, keyed_generator, poisson


def full(*values, dtype=torch.float64):
    return [torch.tensor(v, dtype=dtype) for v in values]


COUNTS = torch.tensor([0, 1, 2, 3, 7, 8, 9, 10, 11, 40, 300, 5000], dtype=torch.float64)


@pytest.mark.exact
@pytest.mark.parametrize("theta", [1e-4, 0.3, 2.5, 9.9, 10.1, 400.0, 1e7])
@pytest.mark.parametrize("mu", [1e-6, 0.02, 1.0, 9.0, 310.0, 1e5])
def test_negative_binomial_is_that_of_fifty_digits(mu, theta):
    with mpmath.workdps(50):
        m, t = mpmath.mpf(mu), mpmath.mpf(theta)
        expected = [
            float(
                mpmath.loggamma(x + t)
                - mpmath.loggamma(t)
                - mpmath.loggamma(x + 1)
                + t * mpmath.log(t / (t + m))
                + x * mpmath.log(m / (t + m))
            )
            for x in map(int, COUNTS.tolist())
        ]
    found = NegativeBinomial(*full(mu, theta)).log_prob(COUNTS)
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=2e-12)


@pytest.mark.exact
@pytest.mark.parametrize("theta", [0.3, 2.5, 11.0])
@pytest.mark.parametrize("mu", [0.02, 1.0, 310.0])
def test_negative_binomial_is_scipys(mu, theta):
    expected = stats.nbinom.logpmf(COUNTS.numpy(), theta, theta / (theta + mu))
    found = NegativeBinomial(*full(mu, theta)).log_prob(COUNTS)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.exact
@pytest.mark.parametrize("pi", [1e-3, 0.4, 0.97])
def test_zero_inflated_is_scipys_mixture(pi):
    mu, theta = 3.7, 0.8
    law = ZeroInflated(
        NegativeBinomial(*full(mu, theta)), torch.tensor(pi, dtype=torch.float64).logit()
    )
    mass = (1 - pi) * stats.nbinom.pmf(COUNTS.numpy(), theta, theta / (theta + mu))
    mass[COUNTS.numpy() == 0] += pi
    finite = mass > 1e-300
    np.testing.assert_allclose(law.log_prob(COUNTS)[finite], np.log(mass[finite]), atol=1e-8)


@pytest.mark.exact
@pytest.mark.parametrize("mu", [1e-6, 0.5, 12.0, 4800.0])
def test_poisson_is_scipys(mu):
    found = Poisson(*full(mu)).log_prob(COUNTS)
    np.testing.assert_allclose(found, stats.poisson.logpmf(COUNTS.numpy(), mu), rtol=1e-9)


@pytest.mark.property
@settings(deadline=None, max_examples=200)
@given(
    x=st.one_of(st.integers(0, 30), st.integers(0, 10**6)),
    log_ratio=st.floats(-2, 2),
    log_theta=st.floats(-7, 12),
)
def test_float32_agrees_with_float64(x, log_ratio, log_theta):
    """The naive difference of lnΓ is off by whole nats at 1e6 counts; this one by rounding."""
    mu = math.exp(log_ratio) * max(x, 0.5)
    single = [torch.tensor(v, dtype=torch.float32) for v in (x, mu, math.exp(log_theta))]
    double = [v.double() for v in single]
    for law in (lambda m, t: NegativeBinomial(m, t), lambda m, t: Poisson(m)):
        found = law(*single[1:]).log_prob(single[0]).item()
        expected = law(*double[1:]).log_prob(double[0]).item()
        assert found == pytest.approx(expected, rel=2e-6, abs=4e-6 + 2e-7 * abs(x - mu))


@pytest.mark.exact
def test_float32_is_better_than_the_textbook_formula():
    x, mu, theta = full(1e5, 1.001e5, 1e4, dtype=torch.float32)
    textbook = (
        torch.lgamma(x + theta)
        - torch.lgamma(theta)
        - torch.lgamma(x + 1)
        + theta * torch.log(theta / (theta + mu))
        + x * torch.log(mu / (theta + mu))
    )
    exact = stats.nbinom.logpmf(1e5, 1e4, 1e4 / (1e4 + float(mu)))
    assert abs(NegativeBinomial(mu, theta).log_prob(x).item() - exact) < 1e-4
    assert abs(textbook.item() - exact) > 1e-2


@pytest.mark.exact
def test_gradients_are_the_closed_form():
    """d/dμ = x/μ - (x + θ)/(μ + θ), through every branch; checked against finite differences."""
    mu = torch.full((len(COUNTS),), 8.3, dtype=torch.float64, requires_grad=True)
    theta = torch.full((len(COUNTS),), 1.7, dtype=torch.float64, requires_grad=True)
    law = NegativeBinomial(mu, theta)
    (by_mu,) = torch.autograd.grad(law.log_prob(COUNTS).sum(), mu)
    expected = COUNTS / 8.3 - (COUNTS + 1.7) / (8.3 + 1.7)
    torch.testing.assert_close(by_mu, expected, rtol=1e-10, atol=1e-10)
    small = COUNTS[:10]

    def log_p(m, t, logits):
        return ZeroInflated(NegativeBinomial(m, t), logits).log_prob(small)

    inputs = (mu[:10].detach(), theta[:10].detach(), torch.zeros(10, dtype=torch.float64))
    assert torch.autograd.gradcheck(log_p, tuple(v.requires_grad_() for v in inputs))


@pytest.mark.exact
def test_stirling_error_is_continuous_and_exact():
    z = torch.tensor([1e-3, 0.7, 3.0, 10 - 1e-12, 10 + 1e-12, 50.0], dtype=torch.float64)
    expected = torch.lgamma(z) - (z - 0.5) * z.log() + z - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(stirling_error(z), expected, rtol=0, atol=3e-13)


@pytest.mark.exact
@pytest.mark.parametrize(
    "law",
    [
        Poisson(*full(7.3)),
        NegativeBinomial(*full(7.3, 0.9)),
        ZeroInflated(Poisson(*full(4.0)), *full(-0.3)),
        ZeroInflated(NegativeBinomial(*full(7.3, 2.0)), *full(0.4)),
    ],
    ids=["poisson", "nb", "zip", "zinb"],
)
def test_counts_sum_to_one_with_the_stated_moments(law):
    x = torch.arange(3000, dtype=torch.float64)
    p = law.log_prob(x).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    mean = (p * x).sum()
    assert law.mean.item() == pytest.approx(mean.item(), rel=1e-10)
    assert law.variance.item() == pytest.approx((p * (x - mean) ** 2).sum().item(), rel=1e-9)


@pytest.mark.exact
@pytest.mark.parametrize(("loc", "scale"), [(0.2, 0.05), (-3.0, 0.4), (0.9, 1e-4), (0.0, 5.0)])
def test_discretised_logistic_sums_to_one_with_the_stated_moments(loc, scale):
    law = DiscretisedLogistic(*full(loc, scale), bins=32)
    x = torch.linspace(-1, 1, 32, dtype=torch.float64)
    p = law.log_prob(x).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    mean = (p * x).sum().item()
    assert law.mean.item() == pytest.approx(mean, abs=1e-12)
    variance = (p * (x - mean) ** 2).sum().item()
    assert law.variance.item() == pytest.approx(variance, abs=1e-10)


@pytest.mark.exact
def test_discretised_logistic_does_not_cancel_in_the_tails():
    """Far from loc the difference of two sigmoids underflows in float32; the log is exact."""
    law = DiscretisedLogistic(*full(0.0, 0.01, dtype=torch.float32), bins=21)
    found = law.log_prob(torch.tensor([-0.9, 0.9]))
    width = 0.1
    expected = -(0.9 - width / 2) / 0.01 + math.log1p(-math.exp(-width / 0.01))
    torch.testing.assert_close(found, torch.full((2,), expected), rtol=1e-5, atol=1e-4)


@pytest.mark.exact
def test_gaussian_integrates_and_bernoulli_sums_to_one():
    law = Gaussian(*full(0.4, 0.3))
    total, _ = integrate.quad(
        lambda x: law.log_prob(torch.tensor(x, dtype=torch.float64)).exp().item(), -4, 5
    )
    assert total == pytest.approx(1, abs=1e-9)
    for logit in (-800.0, -1.0, 0.0, 30.0):
        p = Bernoulli(torch.tensor(logit)).log_prob(torch.tensor([0.0, 1.0])).exp().sum()
        assert p.item() == pytest.approx(1, abs=1e-6)
    assert Bernoulli(torch.tensor(-800.0)).log_prob(torch.ones(1)).item() == -800


N = 200000
LAWS = {
    "gaussian": lambda o: Gaussian(0.7 * o, 0.3 * o),
    "bernoulli": lambda o: Bernoulli(-0.8 * o),
    "logistic": lambda o: DiscretisedLogistic(0.6 * o, 0.3 * o, bins=16),
    "poisson": lambda o: Poisson(3.3 * o),
    "nb": lambda o: NegativeBinomial(5.0 * o, 1.3 * o),
    "zinb": lambda o: ZeroInflated(NegativeBinomial(5.0 * o, 1.3 * o), 0.2 * o),
}


@pytest.mark.exact
@pytest.mark.parametrize("name", LAWS)
def test_samples_have_the_stated_moments(name):
    """Within five standard errors, those of the variance from the samples' fourth moment."""
    law = LAWS[name](torch.ones(N, dtype=torch.float64))
    x = law.sample(keyed_generator(0))
    mean, variance = law.mean[0].item(), law.variance[0].item()
    assert abs(x.mean().item() - mean) < 5 * math.sqrt(variance / N)
    squared = (x - mean) ** 2
    assert abs(squared.mean().item() - variance) < 5 * squared.std().item() / math.sqrt(N)


@pytest.mark.exact
def test_negative_binomial_samples_follow_the_mass_function():
    x = LAWS["nb"](torch.ones(N, dtype=torch.float64)).sample(keyed_generator(1)).numpy()
    p = stats.nbinom.pmf(np.arange(25), 1.3, 1.3 / 6.3)
    observed = np.bincount(np.minimum(x, 25).astype(int), minlength=26)
    assert stats.chisquare(observed, N * np.append(p, 1 - p.sum())).pvalue > 1e-3


@pytest.mark.contract
@pytest.mark.parametrize("name", LAWS)
def test_a_row_draws_from_its_own_stream(name):
    law = LAWS[name](torch.ones(4, 3))
    whole = law.sample([keyed_generator(i) for i in range(4)])
    part = LAWS[name](torch.ones(2, 3)).sample([keyed_generator(i) for i in (2, 3)])
    assert torch.equal(whole[2:], part)
    assert torch.equal(law.sample(keyed_generator(7)), law.sample(keyed_generator(7)))
    assert not torch.equal(whole[0], whole[1])


def test_streams_and_rows_must_match():
    for draw in (gamma, poisson):
        with pytest.raises(ValueError, match="2 generators for 3 samples"):
            draw(torch.ones(3), [keyed_generator(0), keyed_generator(1)])
        assert draw(torch.ones(0, 2), []).shape == (0, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, -2.0], "the least is -2"),
        ([1.0, 0.5], "0.5 is not an integer; give raw counts"),
        ([1.0, math.nan], "NaN or infinite"),
        ([1.0, math.inf], "NaN or infinite"),
        ([2.0**25], "not exact in torch.float32"),
    ],
)
def test_what_is_no_count_is_refused(values, message):
    for law in (Poisson(torch.ones(())), LAWS["zinb"](torch.ones(()))):
        with pytest.raises(AleatorError, match=message):
            law.log_prob(torch.tensor(values))
    check_counts(torch.tensor([2.0**24, 0.0]))


@pytest.mark.parametrize(
    ("law", "value", "message"),
    [
        (Bernoulli(torch.zeros(())), 0.5, "other than 0 and 1"),
        (DiscretisedLogistic(*full(0.0, 1.0), bins=3), 0.4, "off the grid of 3 values"),
        (DiscretisedLogistic(*full(0.0, 1.0), bins=3), 2.0, "outside"),
        (DiscretisedLogistic(*full(0.0, 1.0), bins=3), math.nan, "off the grid"),
    ],
)
def test_values_without_probability_are_refused(law, value, message):
    with pytest.raises(AleatorError, match=message):
        law.log_prob(torch.tensor(value))
