"""The same parameters give the same numbers as nflows and zuko."""

import math

import pytest
import torch

from core.random import keyed_generator
from core.transforms import Affine, RationalQuadratic, compile_splines

zuko = pytest.importorskip("zuko")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=keyed_generator(seed), dtype=torch.float64)


def corners(spline, theta):
    """Widths, heights and inner slopes that the parameters stand for."""
    k, bound = spline.shape.bins, spline.shape.bound
    shares = theta[: 2 * k].unflatten(0, (2, k)).softmax(1)
    sizes = spline.shape.least + spline.shape.rest * shares
    slopes = torch.nn.functional.softplus(theta[2 * k :] + spline.shape.slope_offset)
    return sizes[0], sizes[1], slopes + spline.shape.min_slope, bound


@pytest.mark.exact
def test_spline_is_that_of_zuko():
    spline = RationalQuadratic(6, 2.5)
    x, theta = 2 * normal(50), normal(spline.size, 50, seed=1)
    widths, heights, slopes, bound = corners(spline, theta)
    peer = zuko.transforms.MonotonicRQSTransform(widths.T, heights.T, slopes.T.log(), bound)
    # its constructor squeezes its arguments: give it the knots themselves
    for name, sizes in (("horizontal", widths), ("vertical", heights)):
        knots = torch.cat([torch.zeros(1, 50, dtype=x.dtype), sizes.cumsum(0)]).T - bound
        setattr(peer, name, knots)
    ones = torch.ones(50, 1, dtype=x.dtype)
    peer.derivatives = torch.cat([ones, slopes.T, ones], 1)
    y, log_slope = spline(x, theta)
    torch.testing.assert_close(y, peer(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(log_slope, peer.log_abs_det_jacobian(x, y), rtol=0, atol=1e-6)
    torch.testing.assert_close(spline.inverse(y, theta)[0], peer.inv(y), rtol=0, atol=1e-6)


@pytest.mark.exact
def test_spline_is_that_of_nflows():
    nflows = pytest.importorskip("nflows.transforms.splines.rational_quadratic")
    spline = RationalQuadratic(8, 3.0)
    x, theta = 2 * normal(200), normal(spline.size, 200, seed=1)
    arguments = theta[:8].T, theta[8:16].T, theta[16:].T + spline.shape.slope_offset
    for inverse, kernel in ((False, spline), (True, spline.inverse)):
        expected = nflows.unconstrained_rational_quadratic_spline(
            x, *arguments, inverse=inverse, tails="linear", tail_bound=3.0
        )
        for ours, theirs in zip(kernel(x, theta), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.exact
def test_affine_is_that_of_zuko():
    affine, x, theta = Affine(), normal(30), 3 * normal(2, 30, seed=1)
    peer = zuko.transforms.MonotonicAffineTransform(theta[0], theta[1], slope=1e-3)
    y, log_slope = affine(x, theta)
    torch.testing.assert_close(y, peer(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(log_slope, peer.log_abs_det_jacobian(x, y), rtol=0, atol=1e-6)
    torch.testing.assert_close(affine.inverse(y, theta)[0], x, rtol=0, atol=1e-6)


@pytest.mark.exact
@pytest.mark.parametrize("inverted", [False, True])
def test_gradients_of_splines_are_those_of_differences(inverted):
    spline = RationalQuadratic(4, 2.0)
    x, theta = 1.5 * normal(12).requires_grad_(), normal(spline.size, 12, seed=1).requires_grad_()
    function = spline.inverse if inverted else spline
    assert torch.autograd.gradcheck(function, (x, theta))
    assert torch.autograd.gradgradcheck(function, (x[:4], theta[:, :4]))


def test_one_bin_is_a_spline_too():
    spline = RationalQuadratic(1, 2.0)
    x = normal(5).requires_grad_()
    y, log_slope = spline(x, normal(2, 5, seed=1))
    torch.testing.assert_close(y, x)  # one bin, with slope 1 at both ends
    torch.testing.assert_close(log_slope, torch.zeros_like(x))
    assert torch.autograd.gradcheck(spline, (x, normal(2, 5, seed=1).requires_grad_()))


@pytest.mark.slow
def test_fused_splines_are_those_of_eager_execution():
    """In double precision to rounding; in single precision as near to that as eager ones are."""
    spline = RationalQuadratic()
    for batch in (64, 100):
        given = [1.5 * normal(batch, 3), 0.5 * normal(spline.size, batch, 3, seed=1)]
        given.append(normal(2, batch, 3, seed=2))
        given = [part.float() for part in given]
        for function in (spline, spline.inverse):
            found = {}
            for dtype in (torch.float64, torch.float32):
                x, theta, weights = (part.to(dtype) for part in given)
                x.requires_grad_()
                theta.requires_grad_()
                for compiled in (False, True):
                    compile_splines(spline, compiled)
                    y, log_slope = function(x, theta)
                    value = (weights[0] * y + weights[1] * log_slope).sum()
                    gradients = torch.autograd.grad(value, (x, theta))
                    found[dtype, compiled] = [y, log_slope, *gradients]
            truth = found[torch.float64, False]
            for fused, exact in zip(found[torch.float64, True], truth, strict=True):
                torch.testing.assert_close(fused, exact, rtol=1e-12, atol=1e-12)
            for fused, eager, exact in zip(
                found[torch.float32, True], found[torch.float32, False], truth, strict=True
            ):
                error = (eager - exact).abs().max()  # of rounding: steep slopes multiply it
                assert (fused - exact).abs().max() < 1.5 * error + 1e-6
            for fused, eager in zip(
                found[torch.float32, True][:2], found[torch.float32, False][:2], strict=True
            ):
                torch.testing.assert_close(fused, eager, rtol=1e-5, atol=1e-5)


def test_slope_offset_makes_zero_the_identity():
    spline = RationalQuadratic(8, 3.0)
    x = normal(20)
    y, log_slope = spline(x, torch.zeros(spline.size, 20, dtype=x.dtype))
    torch.testing.assert_close(y, x, rtol=0, atol=1e-12)
    assert log_slope.abs().max() < 1e-12
    assert math.isclose(math.log1p(math.exp(spline.shape.slope_offset)), 1 - 1e-3)
