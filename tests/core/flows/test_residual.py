"""Residual flows: contraction, determinants without bias, inverses that say when they fail."""

import pytest
import torch
from torch.nn import functional as F

from core.errors import AleatorError
from core.flows import ResidualFlow
from core.nets.conditions import Conditions
from core.nets.lipschitz import ConcatenatedLipSwish, LipschitzNet, LipSwish, SpectralConv2d
from core.random import keyed_generator
from core.transforms import Residual


def normal(*shape, seed=0):
    return torch.randn(shape, generator=keyed_generator(seed), dtype=torch.float64)


def operator(conv, weight, shape):
    """The matrix of a convolution, column by column."""
    basis = torch.eye(shape[0] * shape[1] * shape[2], dtype=weight.dtype).reshape(-1, *shape)
    return conv.operate(basis, weight).flatten(1).T


@pytest.mark.exact
@pytest.mark.parametrize(
    ("channels", "grid"), [((1, 1), (5, 6)), ((2, 3), (4, 4)), ((4, 2), (3, 5))]
)
def test_power_iteration_finds_the_norm_of_the_convolution(channels, grid):
    torch.manual_seed(0)
    conv = SpectralConv2d(*channels, 3, grid, bound=0.9).double()
    with torch.no_grad():
        conv.weight.mul_(4)
    shape = (channels[0], *grid)
    expected = torch.linalg.matrix_norm(operator(conv, conv.weight, shape), 2)
    torch.testing.assert_close(conv.norm(), expected, rtol=1e-4, atol=0)
    bounded = torch.linalg.matrix_norm(operator(conv, conv.scaled_weight(), shape), 2)
    assert 0.89 < bounded <= 0.9
    reshaped = torch.linalg.matrix_norm(conv.weight.flatten(1), 2)
    assert reshaped < 0.95 * expected  # what a norm of the kernel would have let through


@pytest.mark.exact
def test_norm_is_differentiable_in_the_weight():
    torch.manual_seed(0)
    conv = SpectralConv2d(2, 2, 3, (4, 4)).double()
    conv.norm().backward()
    step = 1e-5 * conv.weight.grad
    with torch.no_grad():
        before = torch.linalg.matrix_norm(operator(conv, conv.weight - step, (2, 4, 4)), 2)
        after = torch.linalg.matrix_norm(operator(conv, conv.weight + step, (2, 4, 4)), 2)
    torch.testing.assert_close(
        after - before, 2e-5 * conv.weight.grad.square().sum(), rtol=1e-3, atol=0
    )


def test_a_weight_within_the_bound_is_left_alone():
    conv = SpectralConv2d(1, 1, 3, (4, 4), bound=0.9)
    with torch.no_grad():
        conv.weight.mul_(0.01)
    torch.testing.assert_close(conv.scaled_weight(), conv.weight)


@pytest.mark.exact
@pytest.mark.parametrize("beta", [-1.0, 0.5, 4.0])
def test_activations_do_not_stretch(beta):
    x = torch.linspace(-20, 20, 200_001, dtype=torch.float64)[:, None]
    for activation in (LipSwish(), ConcatenatedLipSwish()):
        activation = activation.double()
        with torch.no_grad():
            activation.beta.fill_(beta)
            y = activation(x)
        slope = (y[1:] - y[:-1]).norm(dim=1) / (x[1] - x[0])
        assert 0.98 < slope.max() <= 1


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("shape", [(6,), (2, 5, 4)])
def test_networks_do_not_stretch(shape, dense):
    """1e4 random pairs, near and far, and the norm of Jacobians; with weights made large."""
    torch.manual_seed(0)
    net = LipschitzNet(shape, width=8, dense=dense, bound=0.9).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(5)
        x = 3 * normal(10_000, *shape)
        other = x + normal(10_000, *shape, seed=1) * torch.logspace(-4, 1, 10_000).reshape(
            -1, *[1] * len(shape)
        )
        ratio = (net(x) - net(other)).flatten(1).norm(dim=1) / (x - other).flatten(1).norm(dim=1)
        assert ratio.max() <= 0.9
    for point in x[:5]:
        jacobian = torch.autograd.functional.jacobian(lambda p: net(p[None])[0], point)
        size = point.numel()
        assert torch.linalg.matrix_norm(jacobian.reshape(size, size), 2) <= 0.9
    assert ratio.max() > 0.05  # and the bound is not kept by doing nothing


@pytest.mark.exact
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("shape", [(3,), (2, 3, 2)])
def test_log_determinant_is_unbiased(shape, dense):
    torch.manual_seed(0)
    net = LipschitzNet(shape, width=8, dense=dense, bound=0.9).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.5 * normal(*parameter.shape, seed=4))
    block = Residual(net, exact_terms=2)
    x = normal(1, *shape, seed=2)
    with torch.no_grad():
        exact = block(x)[1]
        draws = block.estimate(x, probes=10_000, generator=keyed_generator(5))[1][:, 0]
    assert draws.std() > 0
    assert abs(draws.mean() - exact) < 3 * draws.std() / 100


@pytest.mark.exact
def test_gradient_of_the_estimate_is_unbiased():
    torch.manual_seed(0)
    net = LipschitzNet((3,), width=6, bound=0.8).double().eval()
    block, x = Residual(net, exact_terms=2), normal(1, 3, seed=2)
    weight = net.layers[0].weight
    (exact,) = torch.autograd.grad(block(x)[1].sum(), weight)
    groups = [
        torch.autograd.grad(
            block.estimate(x, probes=1000, generator=keyed_generator(i))[1].mean(), weight
        )[0]
        for i in range(20)
    ]
    found = torch.stack(groups)
    error = (found.mean(0) - exact) / (found.std(0) / 20**0.5)
    assert error.abs().max() < 4.5  # of 18 elements, Student's t


def test_flow_says_unbiased_with_its_error():
    torch.manual_seed(0)
    flow, x = ResidualFlow((2,), layers=2, width=8).double(), normal(5, 2)
    found = flow.log_prob(x, generator=keyed_generator(0), probes=400)
    exact = flow.log_prob(x, exact=True)
    assert (found.kind, exact.kind) == ("unbiased", "exact")
    assert exact.stderr is None
    assert ((found.value - exact.value).abs() < 4 * found.stderr + 1e-12).all()


def test_bound_holds_after_training_steps():
    torch.manual_seed(0)
    flow = ResidualFlow((1, 4, 4), layers=2, width=4, squeezes=1, bound=0.9)
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    x = torch.rand(32, 1, 4, 4, generator=keyed_generator(1))
    for step in range(20):
        optimizer.zero_grad()
        flow.loss(x, generator=keyed_generator(2, step)).mean().backward()
        optimizer.step()
    flow.eval()
    for module in flow.modules():
        if isinstance(module, SpectralConv2d):
            shape = (module.weight.shape[1], *module.out_shape[1:])
            with torch.no_grad():
                matrix = operator(module, module.scaled_weight(), shape)
            assert torch.linalg.matrix_norm(matrix, 2) <= module.bound + 1e-4
    back = flow.transform.invert(flow.transform(x)[0])
    torch.testing.assert_close(back, x, rtol=0, atol=1e-4)


def test_an_inverse_that_does_not_converge_says_so():
    class Stretching(torch.nn.Module):
        def forward(self, x, context=None):
            return 3 * x

    block = Residual(Stretching(), max_steps=50)
    with pytest.raises(AleatorError, match="did not converge to 1e-06 in 50 steps"):
        block.invert(torch.ones(1, 2))
    with pytest.raises(AleatorError, match="did not converge"):
        block.inverse(torch.full((1, 2), torch.nan))


def test_options_are_checked():
    net = LipschitzNet((2,), Conditions())
    for options in ({"exact_terms": 0}, {"stop": 0.0}, {"stop": 1.0}):
        with pytest.raises(AleatorError, match="probability in"):
            Residual(net, **options)


def test_lipswish_is_what_it_says():
    x = normal(5)[:, None]
    beta = F.softplus(torch.tensor(0.5))
    torch.testing.assert_close(LipSwish()(x.float()), (x * torch.sigmoid(beta * x) / 1.1).float())
