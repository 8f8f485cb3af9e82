"""CRPS and energy score against scoringrules, closed forms and their defining properties."""

import math

import numpy as np
import pytest
import scoringrules
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import AleatorError
from core.evaluation import crps_ensemble, energy_score


def ensemble(m, *shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((m, *shape), generator=generator, dtype=dtype)
    return x, torch.randn(shape, generator=generator, dtype=dtype)


@pytest.mark.exact
@pytest.mark.parametrize("m", [2, 5, 16])
@pytest.mark.parametrize(("fair", "estimator"), [(True, "fair"), (False, "nrg")])
def test_crps_is_that_of_scoringrules(m, fair, estimator):
    x, y = ensemble(m, 7, 11)
    expected = scoringrules.crps_ensemble(y.numpy(), x.numpy(), m_axis=0, estimator=estimator)
    np.testing.assert_allclose(crps_ensemble(x, y, fair=fair).numpy(), expected, atol=1e-12)


@pytest.mark.exact
def test_plain_crps_is_the_integral_of_squared_cdf_differences():
    x, y = ensemble(6)
    grid = torch.linspace(-6, 6, 1_200_001, dtype=torch.float64)
    cdf = (x[:, None] <= grid).double().mean(0)
    integral = torch.trapezoid((cdf - (y <= grid).double()).square(), grid)
    assert abs(crps_ensemble(x, y, fair=False) - integral) < 1e-5


@pytest.mark.exact
@pytest.mark.parametrize("m", [2, 3, 10])
def test_fair_crps_of_normal_members_is_unbiased_whatever_m(m):
    # closed form of N(0, 1) at y: y (2 Phi(y) - 1) + 2 phi(y) - 1/sqrt(pi)
    y, draws = 0.7, 200_000
    x, _ = ensemble(m, draws, seed=m)
    scores = crps_ensemble(x, torch.full((draws,), y, dtype=torch.float64))
    phi = math.exp(-y * y / 2) / math.sqrt(2 * math.pi)
    exact = y * math.erf(y / math.sqrt(2)) + 2 * phi - 1 / math.sqrt(math.pi)
    assert abs(scores.mean() - exact) < 4 * scores.std() / draws**0.5
    plain = crps_ensemble(x, torch.full((draws,), y, dtype=torch.float64), fair=False).mean()
    assert abs(plain - exact - 1 / (m * math.sqrt(math.pi))) < 5 * scores.std() / draws**0.5


def test_one_member_scores_its_error():
    x, y = ensemble(1, 9, 4)
    torch.testing.assert_close(crps_ensemble(x, y), (x[0] - y).abs())
    torch.testing.assert_close(energy_score(x, y), torch.linalg.vector_norm(x[0] - y, dim=-1))


def test_float32_near_280_kelvin_loses_no_digits():
    x, y = ensemble(16, 1000)
    warm, truth = (280 + 0.01 * x).float(), (280 + 0.01 * y).float()
    exact = crps_ensemble(warm.double(), truth.double())
    assert (crps_ensemble(warm, truth) - exact).abs().max() < 2e-8


@pytest.mark.exact
@pytest.mark.parametrize(("fair", "estimator"), [(True, "fair"), (False, "nrg")])
def test_energy_score_is_that_of_scoringrules(fair, estimator):
    x, y = ensemble(7, 13, 5)
    expected = scoringrules.es_ensemble(
        y.numpy(), x.numpy(), m_axis=0, v_axis=-1, estimator=estimator
    )
    np.testing.assert_allclose(energy_score(x, y, fair=fair).numpy(), expected, atol=1e-12)


@pytest.mark.exact
def test_energy_score_in_one_dimension_is_the_crps():
    x, y = ensemble(9, 20)
    torch.testing.assert_close(energy_score(x[..., None], y[:, None]), crps_ensemble(x, y))


def test_energy_score_does_not_depend_on_its_blocks(monkeypatch):
    x, y = ensemble(5, 12, 3, 4)
    whole = energy_score(x, y)
    monkeypatch.setattr("core.evaluation.proper_scores._BLOCK", 1)
    assert torch.equal(energy_score(x, y), whole)
    torch.testing.assert_close(whole, energy_score(x.flatten(2), y.flatten(1)))


def test_masked_components_do_not_count():
    x, y = ensemble(5, 8, 6)
    mask = torch.tensor([True, True, False, True, False, True])
    expected = energy_score(x[..., mask], y[..., mask])
    y[:, 2] = torch.nan
    torch.testing.assert_close(energy_score(x, y, mask=mask), expected)
    assert energy_score(x, y).isnan().all()


def test_a_missing_value_gives_a_missing_score():
    x, y = ensemble(5, 4)
    x[2, 0] = torch.nan
    y[1] = torch.nan
    assert crps_ensemble(x, y).isnan().tolist() == [True, True, False, False]


@pytest.mark.exact
def test_gradient_is_that_of_finite_differences():
    x, y = ensemble(4, 3)
    assert torch.autograd.gradcheck(lambda x: crps_ensemble(x, y), x.requires_grad_())
    x, y = ensemble(4, 3, 2)
    assert torch.autograd.gradcheck(lambda x: energy_score(x, y), x.requires_grad_())


@pytest.mark.property
@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(0, 10**6),
    st.floats(-1e3, 1e3),
    st.floats(-5, 5),
    st.booleans(),
)
def test_members_permute_and_the_score_moves_with_the_data(m, seed, shift, scale, fair):
    x, y = ensemble(m, 4, 3, seed=seed)
    order = torch.randperm(m, generator=torch.Generator().manual_seed(seed))
    for score in (crps_ensemble, energy_score):
        s = score(x, y, fair=fair)
        torch.testing.assert_close(score(x[order], y, fair=fair), s)
        torch.testing.assert_close(score(x + shift, y + shift, fair=fair), s, atol=1e-10, rtol=0)
        scaled = score(scale * x, scale * y, fair=fair)
        torch.testing.assert_close(scaled, abs(scale) * s, atol=1e-10, rtol=0)


@pytest.mark.property
@settings(max_examples=40, deadline=None)
@given(st.integers(2, 8), st.integers(0, 10**6))
def test_fair_score_is_the_mean_over_all_smaller_ensembles(m, seed):
    # a U-statistic: leaving out each member in turn and averaging changes nothing
    x, y = ensemble(m + 1, 5, 2, seed=seed)
    for score in (crps_ensemble, energy_score):
        left_out = [score(torch.cat([x[:i], x[i + 1 :]]), y) for i in range(m + 1)]
        torch.testing.assert_close(torch.stack(left_out).mean(0), score(x, y))


@pytest.mark.property
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 10), st.integers(0, 10**6))
def test_plain_scores_are_never_negative_and_zero_at_certainty(m, seed):
    x, y = ensemble(m, 6, 3, seed=seed)
    for score in (crps_ensemble, energy_score):
        assert score(x, y, fair=False).min() >= -1e-12
        assert score(y.expand(m, 6, 3), y).abs().max() == 0


def test_shapes_that_do_not_match_are_named():
    with pytest.raises(
        AleatorError, match=r"\(3, 4\) do not match truth \(3,\).*member axis first"
    ):
        crps_ensemble(torch.zeros(3, 4), torch.zeros(3))
    with pytest.raises(AleatorError, match="no members"):
        crps_ensemble(torch.zeros(0, 4), torch.zeros(4))
