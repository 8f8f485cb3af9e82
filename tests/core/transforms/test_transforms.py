"""Every transform: determinants are those of autograd, inverses invert, contexts arrive."""

import pytest
import torch

from core.errors import AleatorError
from core.nets.conditions import Conditions
from core.transforms import (
    ActNorm,
    Affine,
    Autoregressive,
    Coupling,
    CouplingMLP,
    Elementwise,
    Flatten,
    Monotone,
    Permutation,
    PLUConvolution,
    RationalQuadratic,
    Split,
    Squeeze,
)


def jacobians(function, x):
    """(B, D, D), one example after the other, by autograd."""
    found = []
    for i in range(len(x)):

        def one(flat, i=i):
            return function(flat.reshape(1, *x.shape[1:]), i).flatten()

        found.append(torch.autograd.functional.jacobian(one, x[i].flatten()))
    return torch.stack(found)


def part(context, i):
    return None if context is None else {name: c[i : i + 1] for name, c in context.items()}


@pytest.mark.exact
def test_log_determinant_is_that_of_autograd(case):
    transform, x, context = case
    _, log_det = transform(x, context)
    jacobian = jacobians(lambda one, i: transform(one, part(context, i))[0], x)
    expected = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(log_det, expected, rtol=0, atol=1e-9)


@pytest.mark.exact
def test_inverse_inverts_and_has_the_opposite_determinant(case):
    transform, x, context = case
    with torch.no_grad():
        y, log_det = transform(x, context)
        back, log_det_back = transform.inverse(y, context)
        alone = transform.invert(y, context)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(alone, back, rtol=0, atol=1e-10)
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-9)


@pytest.mark.exact
def test_inverse_is_differentiable(case):
    """D inverse / dy is the inverse of d forward / dx, with gradients on."""
    transform, x, context = case
    y = transform(x, context)[0].detach()
    back = jacobians(lambda one, i: transform.inverse(one, part(context, i))[0], y[:1])
    there = jacobians(lambda one, i: transform(one, part(context, i))[0], x[:1])
    eye = torch.eye(back.shape[1], dtype=torch.float64)
    torch.testing.assert_close((back @ there)[0], eye, rtol=0, atol=1e-7)


def test_context_has_a_gradient_everywhere(case):
    transform, x, context = case
    if context is None:
        pytest.skip("takes no context")
    tensors = {k: c.requires_grad_() for k, c in context.items() if c.is_floating_point()}
    y, log_det = transform(x, {**context, **tensors})
    weights = torch.linspace(0.5, 1.5, y.numel(), dtype=torch.float64).reshape(y.shape)
    found = torch.autograd.grad((weights * y).sum() + log_det.sum(), list(tensors.values()))
    assert all((g.flatten(1).abs().sum(1) > 0).all() for g in found)
    with torch.no_grad():
        other = {**context, "label": (context["label"] + 2) % 4 - 1}
        assert ((transform(x, other)[0] - y).flatten(1).abs().sum(1) > 0).all()


def test_missing_and_wrong_contexts_are_refused(case):
    transform, x, context = case
    if context is None:
        pytest.skip("takes no context")
    with pytest.raises(AleatorError, match=r"needs a context with a (vector|field|label)"):
        transform(x)
    short = {**context, "vector": context["vector"][:, :1]}
    with pytest.raises(AleatorError, match=r"vector has shape \(4, 1\), expected \(B, 2\)"):
        transform(x, short)
    few = {name: c[:2] for name, c in context.items()}
    with pytest.raises(AleatorError, match="batch size 2, the examples have 4"):
        transform(x, few)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Elementwise(Affine(), (3,), None),
        lambda: Coupling(Affine(), torch.nn.Identity(), 3),
        lambda: Autoregressive(Affine(), 3),
        lambda: Permutation.reverse(3),
        lambda: PLUConvolution(3),
        lambda: ActNorm(3),
    ],
)
def test_events_of_another_size_are_refused(make):
    for direction in ("forward", "inverse"):
        with pytest.raises(AleatorError, match=r"built for 3 features, got .*\(2, 4\)"):
            getattr(make(), direction)(torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Squeeze()(torch.zeros(1, 1, 3, 4)), "even height and width, not"),
        (lambda: Squeeze().inverse(torch.zeros(1, 3, 2, 2)), "multiple of 4 channels"),
        (lambda: Permutation(torch.tensor([0, 0, 1])), "not a permutation"),
        (lambda: PLUConvolution(2, torch.ones(2, 2)), "singular"),
        (lambda: PLUConvolution(2, torch.zeros(2, 2)), "singular"),
        (lambda: PLUConvolution(2, torch.full((2, 2), torch.nan)), "finite"),
        (lambda: PLUConvolution(2, torch.eye(3)), "must be"),
        (lambda: Coupling(Affine(), torch.nn.Identity(), 1), "two features"),
        (lambda: RationalQuadratic(bins=8, min_bin=0.2), "bins \\* min_bin"),
        (lambda: ActNorm(2).train()(torch.full((3, 2), torch.inf)), "first batch is not finite"),
        (
            lambda: Split((2, 1, 1), torch.nn.Identity(), Flatten((1, 1, 1))).inverse(
                torch.zeros(1, 3)
            ),
            r"noise of this split is \(B, 2\)",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(AleatorError, match=message):
        call()


def test_a_convolution_that_became_singular_is_refused():
    conv = PLUConvolution(3)
    with torch.no_grad():
        conv.log_scale[1] = -torch.inf
    for direction in (conv.forward, conv.inverse):
        with pytest.raises(AleatorError, match="became singular"):
            direction(torch.zeros(2, 3))


@pytest.mark.exact
def test_convolution_starts_from_the_weight_given():
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    conv = PLUConvolution(4, weight)
    torch.testing.assert_close(conv.weight, weight, rtol=1e-5, atol=1e-6)
    x = torch.randn(2, 4, 3, 2)
    expected = torch.nn.functional.conv2d(x, weight[:, :, None, None])
    torch.testing.assert_close(conv(x)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.exact
def test_actnorm_standardises_its_first_training_batch_and_no_other():
    norm = ActNorm(3)
    x = 4 + 3 * torch.randn(50, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    x[:, 2] = 7.0  # a constant
    torch.testing.assert_close(norm.eval()(x)[0], x)  # not in evaluation
    y = norm.train()(x)[0]
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.var((0, 2, 3), correction=0), torch.tensor([1.0, 1.0, 0.0]))
    again = norm(10 * x)[0]
    torch.testing.assert_close(again.mean(), (10 * x - norm.mean[:, None, None]).mul(
        (-norm.log_std).exp()[:, None, None]).mean())  # fmt: skip
    other = ActNorm(3).train()
    other.load_state_dict(norm.state_dict())  # a loaded one is not initialised again
    torch.testing.assert_close(other(10 * x)[0], again)


@pytest.mark.exact
def test_coupling_leaves_one_half_and_its_jacobian_is_triangular():
    torch.manual_seed(0)
    univariate = RationalQuadratic(4, 2.0)
    net = CouplingMLP(3, 3 * univariate.size, Conditions(), (8,))
    transform, x = Coupling(univariate, net, 6).double(), torch.randn(3, 6).double()
    jacobian = jacobians(lambda one, i: transform(one)[0], x)
    torch.testing.assert_close(jacobian[:, :3, :3], torch.eye(3).double().expand(3, 3, 3))
    assert not jacobian[:, :3, 3:].any()
    assert jacobian[:, 3:, :3].any()


@pytest.mark.exact
def test_scaling_a_cube_by_two_divides_its_density_by_eight():
    scale = Elementwise(Affine(max_log_scale=100.0), (3,), None).double()
    with torch.no_grad():
        half = torch.tensor(0.5, dtype=torch.float64).log()
        scale.theta[1] = half / (1 - half.abs() / 100)
    _, log_det = scale(torch.rand(2, 3).double())
    torch.testing.assert_close(log_det.exp(), torch.full((2,), 1 / 8, dtype=torch.float64))


def test_a_monotone_network_that_is_given_no_time_says_so():
    monotone = Monotone(4, 8, max_steps=1).double()
    y = torch.linspace(-50, 50, 7, dtype=torch.float64)
    theta = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).double()
    with pytest.raises(AleatorError, match="did not converge in 1 steps"):
        monotone.inverse(y, theta)
