"""Continuous flows: closed forms, estimates without bias, three ways to the gradient."""

import math

import pytest
import torch
from torch import nn

from core.errors import AleatorError
from core.flows import CNF
from core.random import keyed_generator
from core.solvers.adjoint import odeint_adjoint, recomputed
from core.solvers.ode import odeint
from core.transforms import ODE

TIGHT = {"rtol": 1e-10, "atol": 1e-10}


class Linear(nn.Module):
    """u = A x."""

    def __init__(self, matrix):
        super().__init__()
        self.A = nn.Parameter(matrix.clone())

    def forward(self, x, t, context=None):
        return x @ self.A.T


class Curved(nn.Module):
    """A small smooth field that depends on everything."""

    def __init__(self, dims=2):
        super().__init__()
        self.first, self.last = nn.Linear(dims + 1, 6), nn.Linear(6, dims)

    def forward(self, x, t, context=None):
        h = torch.tanh(self.first(torch.cat([x, t[:, None]], 1)))
        return self.last(h if context is None else h * context["vector"])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=keyed_generator(seed), dtype=torch.float64)


@pytest.mark.exact
def test_a_linear_field_is_the_matrix_exponential():
    matrix, x = 0.5 * normal(3, 3), normal(4, 3, seed=1)
    flow = CNF(Linear(matrix), (3,), solver=TIGHT)
    y, log_det = flow.transform(x)
    torch.testing.assert_close(y, x @ torch.linalg.matrix_exp(matrix).T, rtol=0, atol=1e-8)
    torch.testing.assert_close(log_det, matrix.trace().expand(4), rtol=0, atol=1e-8)
    z = torch.distributions.Normal(0.0, 1.0)
    expected = z.log_prob(y).sum(1) + matrix.trace()
    torch.testing.assert_close(flow.log_prob(x).value, expected, rtol=0, atol=1e-8)


@pytest.mark.exact
def test_density_falls_where_the_field_diverges():
    """The continuity equation has a plus: for v = a x, ln p_1(x_1) = ln p_0(x_0) - a D."""
    a, x = 0.7, normal(5, 2)
    flow = CNF(Linear(a * torch.eye(2, dtype=torch.float64)), (2,), solver=TIGHT)
    noise = torch.distributions.Normal(0.0, 1.0).log_prob(math.exp(a) * x).sum(1)
    torch.testing.assert_close(flow.log_prob(x).value - 2 * a, noise, rtol=0, atol=1e-8)


@pytest.mark.exact
@pytest.mark.parametrize("trace", ["hutchinson", "hutch++"])
def test_estimated_traces_are_unbiased(trace):
    torch.manual_seed(0)
    net = Curved(6).double()
    with torch.no_grad():
        net.last.weight.mul_(3)
    flow = CNF(net, (6,), trace=trace, solver={"method": "rk4", "steps": 4})
    x = normal(3, 6)
    exact = flow.log_prob(x, exact=True)
    repeats = torch.stack(
        [flow.log_prob(x, generator=keyed_generator(i), probes=10).value for i in range(200)]
    )
    error = repeats.std(0) / math.sqrt(200)
    assert ((repeats.mean(0) - exact.value).abs() < 3.5 * error).all()
    found = flow.log_prob(x, generator=keyed_generator(0), probes=10)
    assert (found.kind, exact.kind) == ("unbiased", "exact")
    typical = repeats.std(0).mean()
    assert 0.3 < found.stderr.mean() / typical < 3


def test_hutch_plus_plus_is_closer_on_a_low_rank_field():
    matrix = sum(
        s * normal(12, 1, seed=i) @ normal(1, 12, seed=i + 9) for i, s in ((0, 1), (1, 1))
    )
    x = normal(2, 12)
    spread = {}
    for trace in ("hutchinson", "hutch++"):
        flow = ODE(Linear(0.05 * matrix), trace=trace)
        draws = flow.estimate(x, probes=8, generator=keyed_generator(0))[1]
        spread[trace] = draws.std(0).mean()
    assert spread["hutch++"] < 0.05 * spread["hutchinson"]


def gradients(flow, x, context):
    leaves = [x, context["vector"], *flow.parameters()]
    value = flow.log_prob(x, context).value.sum()
    return torch.autograd.grad(value, leaves)


@pytest.mark.exact
@pytest.mark.parametrize("way", ["direct", "checkpoint", "adjoint"])
def test_gradients_are_those_of_finite_differences(way):
    torch.manual_seed(0)
    flow = CNF(Curved().double(), (2,), gradient=way, solver=TIGHT)
    x = normal(3, 2).requires_grad_()
    context = {"vector": normal(3, 6, seed=1).requires_grad_()}
    leaves = [x, context["vector"], *flow.parameters()]
    for leaf, found in zip(leaves, gradients(flow, x, context), strict=True):
        direction = normal(*leaf.shape, seed=2)
        with torch.no_grad():
            values = []
            for h in (1e-4, -1e-4):
                leaf.add_(direction, alpha=h)
                values.append(flow.log_prob(x, context).value.sum())
                leaf.sub_(direction, alpha=h)
        expected = (values[0] - values[1]) / 2e-4
        torch.testing.assert_close((found * direction).sum(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.exact
def test_checkpointed_is_direct_and_adjoint_comes_closer_with_the_tolerance():
    torch.manual_seed(0)
    net, x = Curved().double(), normal(3, 2).requires_grad_()
    with torch.no_grad():
        net.first.weight.mul_(2)
        net.last.weight.mul_(5)
    context = {"vector": normal(3, 6, seed=1).requires_grad_()}

    def found(way, tolerance):
        solver = {"rtol": tolerance, "atol": tolerance}
        return gradients(CNF(net, (2,), gradient=way, solver=solver), x, context)

    def distance(one, other):
        return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))

    assert distance(found("checkpoint", 1e-4), found("direct", 1e-4)) < 1e-12
    truth = found("direct", 1e-11)
    errors = [distance(found("adjoint", tolerance), truth) for tolerance in (1e-2, 1e-5, 1e-9)]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-7


def saved_by(way, steps):
    """Numbers that autograd keeps for the backward pass."""
    net, kept = Curved().double(), []

    def field(t, y):
        return net(y, y.new_full((len(y),), t))

    leaves, y = list(net.parameters()), normal(8, 2)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        options = {"method": "rk4", "steps": steps}
        if way == "adjoint":
            odeint_adjoint(field, y, 0.0, 1.0, leaves, **options)
        else:
            odeint(recomputed(field, leaves) if way == "checkpoint" else field, y, 0, 1, **options)
    return sum(kept)


def test_what_is_kept_for_the_backward_pass():
    """Adjoint: the end, however many steps; checkpoints: a state an evaluation."""
    few, many = ({way: saved_by(way, n) for way in WAYS} for n in (5, 20))
    assert few["adjoint"] == many["adjoint"] == 16
    assert many["checkpoint"] == 4 * few["checkpoint"] == 20 * 4 * 16
    assert many["direct"] > 5 * many["checkpoint"]


WAYS = ("direct", "checkpoint", "adjoint")


def test_maximum_likelihood_through_the_solver_learns():
    torch.manual_seed(0)
    x = torch.cat([normal(200, 1) * 0.3 - 1.5, normal(200, 1, seed=1) * 0.3 + 1.5]).float()
    flow = CNF(Curved(1), (1,), solver={"rtol": 1e-3, "atol": 1e-3})
    optimizer = torch.optim.Adam(flow.parameters(), 3e-2)
    for _ in range(80):
        optimizer.zero_grad()
        flow.loss(x).mean().backward()
        optimizer.step()
    gaussian = -math.log(x.std().item()) - 0.5 * math.log(2 * math.pi) - 0.5
    assert flow.log_prob(x).value.mean() > gaussian + 0.25


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CNF(Curved(), (2,), trace="guess"), "known: exact, hutchinson, hutch"),
        (lambda: CNF(Curved(), (2,), gradient="none"), "known: checkpoint, adjoint, direct"),
        (lambda: CNF(Curved(), (2,), solver={"method": "magic"}).log_prob(torch.zeros(1, 2)),
         "unknown ODE method"),
    ],
)  # fmt: skip
def test_unknown_words_are_named(make, message):
    with pytest.raises(AleatorError, match=message):
        make()


class Explosive(nn.Module):
    """u = x³ of a large x: the solution ends before t = 1."""

    def forward(self, x, t, context=None):
        return 100 * x**3


@pytest.mark.parametrize("way", WAYS)
def test_a_tolerance_out_of_reach_is_an_error_not_a_nan(way):
    flow = CNF(Explosive(), (2,), gradient=way, solver={"max_evaluations": 2000})
    with pytest.raises(AleatorError, match="cannot reach"):
        flow.log_prob(torch.ones(2, 2))
