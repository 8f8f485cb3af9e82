"""Hierarchical VAEs: a diffusion model in disguise, and exact on linear-Gaussian chains."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from core import build
from core.errors import AleatorError
from core.random import keyed_generator
from core.training import FitConfig, fit
from core.vae import BottomUpVAE, TopDownVAE
from core.vae.likelihoods import GaussianLikelihood

F64 = torch.float64


def gaussian(scale, shape=(1,)):
    likelihood = GaussianLikelihood(shape, scale=1.0, learned="no", least=1e-9).double()
    likelihood.log_scale.fill_(math.log(scale))
    likelihood.least = 1e-9
    return likelihood


def conditional(joint, known, wanted):
    """Gain, offset and covariance of p(wanted | known) in a joint Gaussian."""
    S, m = joint.covariance_matrix, joint.mean
    gain = torch.linalg.solve(S[known][:, known], S[known][:, wanted]).T
    return gain, m[wanted] - gain @ m[known], S[wanted][:, wanted] - gain @ S[known][:, wanted]


A = torch.tensor([[0.8, 0.0], [0.0, -0.5]], dtype=F64)  # z_2 -> z_1
S1, SX = 0.7, 0.4


def joint(W, m):
    """The law of (z_2, z_1, x): z_1 = A z_2 + S1 ε, x = W z_1 + m + SX ε."""
    eye2, eye4 = torch.eye(2, dtype=F64), torch.eye(4, dtype=F64)
    C1 = A @ A.T + S1**2 * eye2
    top = torch.cat([eye2, A.T, A.T @ W.T], 1)
    middle = torch.cat([A, C1, C1 @ W.T], 1)
    bottom = torch.cat([W @ A, W @ C1, W @ C1 @ W.T + SX**2 * eye4], 1)
    mean = torch.cat([torch.zeros(4, dtype=F64), m])
    return MultivariateNormal(mean, torch.cat([top, middle, bottom]))


Z2, Z1, X = slice(0, 2), slice(2, 4), slice(4, 8)


def index(*parts):
    return torch.cat([torch.arange(8)[p] for p in parts])


@pytest.fixture
def law(orthogonal):
    return joint(orthogonal.W, orthogonal.m)


def evidence(law):
    return MultivariateNormal(law.mean[X], law.covariance_matrix[X, X])


def examples(law, n=40):
    z = torch.randn(n, 4, generator=keyed_generator(3), dtype=F64)
    return law.mean[X] + 1.2 * z


def bottom_up(law, orthogonal, shift=0.0, widen=1.0):
    Affine, kernels = orthogonal.affine, []
    for known, wanted in ((index(X), index(Z1)), (index(Z1), index(Z2))):
        gain, offset, covariance = conditional(law, known, wanted)
        torch.testing.assert_close(covariance, covariance.diagonal().diag())
        kernels.append(Affine(gain, offset + shift, (widen * covariance.diagonal()).log()))
    prior = Affine(A, torch.zeros(2, dtype=F64), torch.full((2,), 2 * math.log(S1), dtype=F64))
    return BottomUpVAE(
        (4,),
        latent_dims=(2, 2),
        likelihood=gaussian(SX, (4,)),
        encoder=kernels,
        decoder=[Affine(orthogonal.W, orthogonal.m), prior],
    )


def top_down(law, orthogonal, shift=0.0, widen=1.0):
    """The path h carries z_2 in its first two features and z_1 in the next two."""
    Affine, width, eye = orthogonal.affine, 4, torch.eye(4, dtype=F64)
    zero = torch.zeros(2, width, dtype=F64)
    model = TopDownVAE(
        (4,),
        latent_dims=(2, 2),
        width=width,
        likelihood=gaussian(SX, (4,)),
        encoder=Affine(eye, torch.zeros(4, dtype=F64)),
        decoder=Affine(torch.cat([0 * orthogonal.W, orthogonal.W], 1), orthogonal.m),
    ).double()
    low, top = model.levels
    top.prior = Affine(zero, torch.zeros(2, dtype=F64), torch.zeros(2, dtype=F64))
    spread = torch.full((2,), 2 * math.log(S1), dtype=F64)
    low.prior = Affine(torch.cat([A, 0 * A], 1), torch.zeros(2, dtype=F64), spread)
    for level, known, wanted in ((top, index(X), Z2), (low, index(Z2, X), Z1)):
        gain, offset, covariance = conditional(law, known, index(wanted))
        torch.testing.assert_close(covariance, covariance.diagonal().diag())
        full = torch.zeros(2, 8, dtype=F64)
        full[:, 4:] = gain[:, -4:]
        full[:, : gain.shape[1] - 4] = gain[:, :-4]
        level.posterior = Affine(full, offset + shift, (widen * covariance.diagonal()).log())
    with torch.no_grad():
        for level, rows in ((top, slice(0, 2)), (low, slice(2, 4))):
            level.inject.weight.zero_()
            level.inject.bias.zero_()
            level.inject.weight[rows] = torch.eye(2, dtype=F64)
    return model


BOTH = pytest.mark.parametrize("make", [bottom_up, top_down])


@pytest.mark.exact
@BOTH
def test_the_bound_is_the_evidence_where_the_posterior_is_exact(make, law, orthogonal):
    model, x = make(law, orthogonal), examples(law)
    exact = evidence(law).log_prob(x)
    for draws in (1, 5):
        found = model.log_prob(x, draws=draws, generator=keyed_generator(0))
        torch.testing.assert_close(found.value, exact, rtol=0, atol=1e-9)


@pytest.mark.exact
@BOTH
def test_bounds_are_ordered(make, law, orthogonal):
    model = make(law, orthogonal, shift=0.3, widen=1.6)
    x = examples(law, 1)
    exact, below = evidence(law).log_prob(x).item(), -math.inf
    for draws in (1, 4, 32):
        many = x.expand(4000, -1)
        values = model.log_prob(many, draws=draws, generator=keyed_generator(draws)).value
        stderr = values.std().item() / math.sqrt(len(values))
        assert values.mean().item() > below + 3 * stderr
        below = values.mean().item()
        assert below < exact + 3 * stderr
    assert exact - below < 0.15


@pytest.mark.exact
@BOTH
def test_the_loss_is_the_bound_in_expectation(make, law, orthogonal):
    model, x = make(law, orthogonal, 0.3, 1.6), examples(law, 1).expand(20000, -1)
    loss = -model.loss(x, generator=keyed_generator(1)).value
    bound = model.log_prob(x, draws=1, generator=keyed_generator(2)).value
    stderr = math.hypot(loss.std().item(), bound.std().item()) / math.sqrt(20000)
    assert loss.mean().item() == pytest.approx(bound.mean().item(), abs=4 * stderr)
    assert stderr < 0.05


@pytest.mark.exact
@BOTH
def test_prior_samples_follow_the_evidence(make, law, orthogonal):
    n, exact = 60000, evidence(law)
    x = make(law, orthogonal).sample((n,), generator=keyed_generator(4))
    z = torch.linalg.solve_triangular(exact.scale_tril, (x - exact.mean).T, upper=False)
    assert (z.mean(1).abs() < 5 / math.sqrt(n)).all()
    torch.testing.assert_close(z @ z.T / n, torch.eye(4, dtype=F64), rtol=0, atol=8 / n**0.5)


CONFIGS = {
    "hierarchical_vae": {
        "encoder": {"width": 16, "blocks": 1, "classes": 3},
        "decoder": {"width": 16, "blocks": 1, "classes": 3},
    },
    "top_down_vae": {
        "width": 12,
        "encoder": {"width": 16, "blocks": 1, "classes": 3},
        "decoder": {"width": 16, "blocks": 1, "classes": 3},
        "level": {"width": 16, "blocks": 1, "classes": 3},
    },
}
FAMILIES = pytest.mark.parametrize("family", sorted(CONFIGS))


def config(family, **changes):
    base = {"family": family, "event_shape": [5], "latent_dims": [3, 2, 2]}
    return {**base, **CONFIGS[family], **changes}


def randomised(family, **changes):
    model, generator = build(config(family, **changes)), keyed_generator(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return model


@pytest.mark.contract
@FAMILIES
@pytest.mark.parametrize("event", [[5], [1, 4, 4]])
def test_verbs_keep_each_examples_stream(family, event):
    model = randomised(family, event_shape=event).double()
    x = torch.randn(6, *event, generator=keyed_generator(0), dtype=F64)
    label = torch.arange(6) % 3

    def streams(rows):
        return [keyed_generator(9, r) for r in rows]

    for verb in (
        lambda c, r: model.log_prob(x[r], c, draws=3, generator=streams(r)).value,
        lambda c, r: model.loss(x[r], c, generator=streams(r)).value,
        lambda c, r: model.sample((1,), c, generator=streams(r))[0],
    ):
        whole, part = verb(label, range(6)), verb(label[4:], range(4, 6))
        torch.testing.assert_close(whole[4:], part, rtol=1e-9, atol=1e-9)
    assert model.sample((4,), label, generator=keyed_generator(2)).shape == (4, 6, *event)
    assert model.sample((4,), generator=keyed_generator(2)).shape == (4, *event)
    other = model.log_prob(x, (label + 1) % 3, draws=3, generator=streams(range(6))).value
    same = model.log_prob(x, label, draws=3, generator=streams(range(6))).value
    assert not torch.allclose(other, same)


@FAMILIES
def test_every_parameter_learns_and_idle_levels_are_no_nan(family, tmp_path):
    """One-dimensional data leave most levels idle: divergence near zero, nothing infinite."""
    model = build(config(family, event_shape=[2], warmup=150))
    u = torch.randn(1000, 1, generator=keyed_generator(0))
    train = torch.cat([u, -u], 1) + 0.1 * torch.randn(1000, 2, generator=keyed_generator(1))
    start = {n: p.detach().clone() for n, p in model.named_parameters()}

    def batches(step, generator):
        label = torch.randint(3, (64,), generator=generator)
        return train[torch.randint(1000, (64,), generator=generator)], label

    options = FitConfig(steps=300, learning_rate=5e-3, validate_every=0, ema=0.0)
    fitted = fit(model, batches, options, folder=tmp_path, progress=None, device="cpu").model
    unmoved = [n for n, p in fitted.named_parameters() if torch.equal(p, start[n])]
    assert not [n for n in unmoved if "condition" not in n]
    label = torch.zeros(1000, dtype=torch.long)
    terms = fitted.loss(train, label, generator=keyed_generator(2)).terms
    rates = sorted(terms[f"kl_{level}"].mean().item() for level in (1, 2, 3))
    assert all(math.isfinite(r) for r in rates)
    assert rates[0] < 0.2
    bound = fitted.log_prob(train, label, generator=keyed_generator(3)).value.mean().item()
    S = torch.tensor([[1.01, -1.0], [-1.0, 1.01]])
    exact = MultivariateNormal(torch.zeros(2), S).log_prob(train).mean().item()
    without_latents = MultivariateNormal(torch.zeros(2), S.diag().diag()).log_prob(train).mean()
    # Measured -2.28 and -2.30 between -2.89 and -0.94: three hundred steps close a third of the
    # gap, and say that latents are used; that bounds can be tight is proven on exact models above.
    assert without_latents.item() + 0.4 < bound < exact + 0.05


@pytest.mark.exact
def test_level_bits_hold_idle_levels(law, orthogonal):
    model, x = top_down(law, orthogonal), examples(law)
    plain = model.loss(x, generator=keyed_generator(5))
    model.level_bits = 1e3
    held = model.loss(x, generator=keyed_generator(5))
    torch.testing.assert_close(held.value, plain.terms["reconstruction"] + 2e3)
    model.beta = 0.0
    torch.testing.assert_close(
        model.loss(x, generator=keyed_generator(5)).value, plain.terms["reconstruction"]
    )


@pytest.mark.exact
def test_both_directions_share_one_path(law, orthogonal):
    """The prior of a level is the same function of the path in inference and in generation."""
    model = top_down(law, orthogonal)
    x = examples(law, 3)
    noise = [torch.zeros(3, 2, dtype=F64)] * 2
    latents = model(x, None, noise).latents
    h = model.levels[1].after(model.top.expand(3, -1), latents[1], None)
    given_above = model.levels[0].prior(h, None)
    with torch.no_grad():
        model.levels[1].inject.weight.mul_(2)
    moved = model(x, None, noise)
    h = model.levels[1].after(model.top.expand(3, -1), latents[1], None)
    assert not torch.allclose(model.levels[0].prior(h, None), given_above)
    assert not torch.allclose(moved.latents[0], latents[0])  # the posterior below sees it too


@FAMILIES
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_dims": []}, r"latent_dims=\[\]"),
        ({"latent_dims": [2, 0]}, r"latent_dims=\[2, 0\]"),
        ({"level_bits": -1.0}, "level_bits=-1.0"),
        ({"likelihood": "normal"}, "unknown likelihood 'normal'"),
        ({"encoder": {"wide": 3}}, "net MLP has no option 'wide'"),
    ],
)
def test_mistakes_in_configs_are_named(family, change, message):
    with pytest.raises(AleatorError, match=message):
        build(config(family, **change))


@FAMILIES
def test_bad_examples_are_one_clear_line(family):
    model = build(config(family))
    for verb in (model.loss, model.log_prob):
        with pytest.raises(AleatorError, match="first in example 1"):
            verb(torch.tensor([[0.0] * 5, [math.nan] * 5]))
        with pytest.raises(AleatorError, match="context of batch 3 for 2"):
            verb(torch.zeros(2, 5), torch.zeros(3, dtype=torch.long))
    with pytest.raises(AleatorError, match="sampler='2m'"):
        model.sample((2,), sampler="2m")


def test_networks_are_counted():
    with pytest.raises(AleatorError, match="1 networks for 2 levels"):
        BottomUpVAE((4,), latent_dims=(2, 2), encoder=[torch.nn.Identity()])
