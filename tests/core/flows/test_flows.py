"""Every flow: its density is that of its map, it is normalised, and its samples follow it."""

import math

import pytest
import torch
from scipy.stats import chisquare

from core import build
from core.errors import AleatorError
from core.flows import MAF, NSF, Glow, RealNVP, ResidualFlow
from core.nets.lipschitz import SpectralConv2d
from core.random import keyed_generator


def examples(flow, batch=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return 1.2 * torch.randn(batch, *flow.event_shape, generator=generator, dtype=torch.float64)


def one(context, i):
    return {name: part[i : i + 1] for name, part in context.items()}


@pytest.mark.exact
def test_density_is_that_of_the_map_by_autograd(flow, context):
    x = examples(flow)
    found = flow.log_prob(x, context, exact=True)
    assert found.kind == "exact"
    for i in range(len(x)):

        def noise(flat, i=i):
            return flow.transform(flat.reshape(1, *flow.event_shape), one(context, i))[0][0]

        z = noise(x[i].flatten())
        jacobian = torch.autograd.functional.jacobian(noise, x[i].flatten())
        prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum()
        expected = prior + torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(found.value[i], expected, rtol=0, atol=1e-9)


@pytest.mark.exact
def test_inverse_inverts(flow, context):
    x = examples(flow)
    with torch.no_grad():
        back = flow.transform.invert(flow.transform(x, context)[0], context)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-6)


def test_context_reaches_density_and_samples(flow, context):
    x = examples(flow)
    vector = context["vector"].requires_grad_()
    (found,) = torch.autograd.grad(flow.log_prob(x, context, exact=True).value.sum(), vector)
    assert (found.abs().sum(1) > 0).all()
    vector.requires_grad_(False)
    drawn = flow.sample((), context, generator=keyed_generator(1))
    moved = {**context, "vector": context["vector"] + 1}
    assert (drawn - flow.sample((), moved, generator=keyed_generator(1))).abs().min() > 0
    relabelled = {**context, "label": (context["label"] + 1) % 3}
    assert (drawn - flow.sample((), relabelled, generator=keyed_generator(1))).abs().max() > 0


def test_every_parameter_is_trained(flow, context):
    x = examples(flow)
    flow.train().loss(examples(flow, seed=2), context)  # actnorms take this for their batch
    flow.loss(x, context, generator=keyed_generator(0)).mean().backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_streams_belong_to_examples_not_to_batches(flow, context):
    streams = [keyed_generator(7, i) for i in range(4)]
    together = flow.sample((), context, generator=streams)
    x = together.clone()
    for i in range(4):
        alone = flow.sample((), one(context, i), generator=[keyed_generator(7, i)])
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-6)
    dense = flow.log_prob(x, context, generator=[keyed_generator(8, i) for i in range(4)])
    last = flow.log_prob(x[3:], one(context, 3), generator=[keyed_generator(8, 3)])
    torch.testing.assert_close(last.value[0], dense.value[3], rtol=0, atol=1e-6)


def test_shapes_of_samples(flow, context):
    assert flow.sample((2, 5), context).shape == (2, 5, 4, *flow.event_shape)
    assert flow.sample((0,), context).shape == (0, 4, *flow.event_shape)


def grid(points, reach):
    axis = torch.linspace(-reach, reach, points, dtype=torch.float64)
    return axis, torch.cartesian_prod(axis, axis)


@torch.no_grad()
def density_on(flow, x, chunk=200_000):
    return torch.cat([flow.log_prob(part, exact=True).value for part in x.split(chunk)]).exp()


@pytest.mark.exact
def test_density_integrates_to_one_and_samples_follow_it(plane):
    """Quadrature on a grid, and a chi-square test of draws against it."""
    smooth = not isinstance(plane, RealNVP | NSF) and "Affine" not in str(plane)
    points, reach = (121 if smooth else 601), 9.0
    axis, x = grid(points, reach)
    spacing = axis[1] - axis[0]
    mass = (density_on(plane, x) * spacing**2).reshape(points, points)
    assert abs(mass.sum().item() - 1) < 1e-4
    count = 5_000
    drawn = plane.sample((count,), generator=keyed_generator(3))
    nodes = torch.searchsorted(axis, torch.linspace(-2.0, 2.0, 9, dtype=torch.float64))
    inner = axis[nodes] + 0.5 * spacing  # between nodes
    place = torch.bucketize(drawn.contiguous(), inner)
    counts = torch.zeros(10, 10).index_put_((place[:, 0], place[:, 1]), torch.ones(count), True)
    node = torch.bucketize(axis, inner)
    expected = torch.zeros(10, points, dtype=torch.float64).index_add_(0, node, mass)
    expected = torch.zeros(10, 10, dtype=torch.float64).index_add_(1, node, expected)
    expected = count * expected.flatten() / expected.sum()
    many = expected > 10  # the rest, and one of the many, make a bin together
    many[many.nonzero()[0]] = False
    observed = torch.cat([counts.flatten()[many], counts.flatten()[~many].sum()[None]])
    expected = torch.cat([expected[many], expected[~many].sum()[None]])
    assert chisquare(observed.double().numpy(), expected.numpy()).pvalue > 1e-3


@pytest.mark.exact
def test_glow_integrates_to_one_and_samples_follow_it(shaken):
    """In four dimensions: mass, entropy and moments from a grid, beside those of the draws."""
    torch.manual_seed(0)
    flow = shaken(Glow((1, 2, 2), scales=1, steps=2, width=4), size=0.1)
    axis = torch.linspace(-6.0, 6.0, 25, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis, axis, axis).reshape(-1, 1, 2, 2)
    mass = density_on(flow, x) * (axis[1] - axis[0]) ** 4
    assert abs(mass.sum().item() - 1) < 1e-4
    drawn = flow.sample((20_000,), generator=keyed_generator(3))
    log_mass = mass.clamp_min(1e-300).log() - 4 * (axis[1] - axis[0]).log()
    log_p = flow.log_prob(drawn).value
    assert abs(log_p.mean() - (mass * log_mass).sum()) < 4 * log_p.std() / math.sqrt(20_000)
    flat = x.flatten(1)
    mean = (mass[:, None] * flat).sum(0)
    covariance = torch.einsum("n,ni,nj->ij", mass, flat - mean, flat - mean)
    within = 5 * math.sqrt(covariance.diagonal().max() / 20_000)
    torch.testing.assert_close(drawn.flatten(1).mean(0), mean, rtol=0, atol=within)
    torch.testing.assert_close(drawn.flatten(1).T.cov(), covariance, rtol=0, atol=3 * within)


@pytest.mark.exact
@pytest.mark.parametrize("dense", [False, True])
def test_convolutional_residual_flows_integrate_to_one(shaken, dense):
    """An image of two pixels: the determinant is that of convolutions with padding."""
    torch.manual_seed(0)
    flow = shaken(ResidualFlow((1, 1, 2), layers=2, width=6, dense=dense), size=0.2)
    axis, x = grid(161, 9.0)
    assert isinstance(next(m for m in flow.modules() if hasattr(m, "norm")), SpectralConv2d)
    density = density_on(flow, x.reshape(-1, 1, 1, 2))
    assert abs(density.sum().item() * (axis[1] - axis[0]).item() ** 2 - 1) < 1e-4
    gaussian = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1).exp()
    assert (density - gaussian).abs().max() > 0.02  # and it is no Gaussian


def test_integers_have_a_bound_that_sums_to_at_most_one(shaken):
    flow = shaken(RealNVP((2,), levels=4, hidden=(8,), layers=2, probes=200))
    x = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    found = flow.log_prob(x, generator=keyed_generator(0))
    assert found.kind == "lower_bound"
    total = found.value.exp().sum()
    error = (found.value.exp() * found.stderr).square().sum().sqrt()
    assert 0 < total < 1 + 3 * error
    drawn = flow.sample((500,), generator=keyed_generator(1))
    assert torch.equal(drawn, drawn.round())
    assert drawn.min() >= 0
    assert drawn.max() <= 3
    loss = flow.loss(x, generator=keyed_generator(2))
    bits = loss.terms["nll"] / (2 * math.log(2))
    torch.testing.assert_close(loss.terms["bits_per_dim"], bits)


@pytest.mark.exact
def test_bits_of_a_uniform_law_on_integers():
    """The identity map: the bound is E ln N(x/8 + u/8 - 1/2) - ln 8, per dimension."""
    flow = RealNVP((2,), levels=8, hidden=(8,), layers=1, probes=3_000).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.zero_()
    x = torch.tensor([[0, 3]])
    edges = torch.tensor([0.0, 3.0], dtype=torch.float64) / 8 - 0.5
    second = ((edges + 1 / 8) ** 3 - edges**3) / 3 * 8  # E v² for v uniform on a cell
    expected = (-0.5 * second - 0.5 * math.log(2 * math.pi) - math.log(8)).sum()
    found = flow.log_prob(x, generator=keyed_generator(0))
    assert abs(found.value - expected) < 4 * found.stderr


@pytest.mark.parametrize(
    "config",
    [
        {"family": "real_nvp", "event_shape": [3]},
        {"family": "maf", "event_shape": [3], "univariate": "monotone"},
        {"family": "nsf", "event_shape": [3], "vector_dim": 2},
        {"family": "glow", "event_shape": [1, 4, 4], "levels": 16},
        {"family": "residual_flow", "event_shape": [1, 4, 4], "dense": True},
        {"family": "cnf", "event_shape": [3], "net": {"name": "mlp", "width": 16}},
    ],
    ids=lambda config: config["family"],
)
def test_one_word_builds_it(config):
    model = build(config)
    context = {"vector": torch.zeros(2, 2)} if config.get("vector_dim") else None
    x = torch.zeros(2, *config["event_shape"])
    assert model.loss(x, context).value.shape == (2,)
    assert model.log_prob(x, context).kind in ("exact", "unbiased", "lower_bound")


@pytest.mark.parametrize("option", ["transform", "conditions", "univariate", "autoregressive"])
def test_what_a_preset_settles_is_no_option(option):
    with pytest.raises(AleatorError, match=f"RealNVP has no option '{option}'"):
        build({"family": "real_nvp", "event_shape": [3], option: 1})


@pytest.mark.exact
@pytest.mark.parametrize("family", [MAF, NSF, RealNVP])
def test_a_whitened_flow_starts_as_the_gaussian_of_the_data(family):
    """With all networks at zero, which are the identity, nothing but the linear layer is left."""
    torch.manual_seed(0)
    flow = family((3,), layers=2, hidden=(8,), linear=True).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.zero_()
    mixed = examples(flow, 200) @ torch.tensor(
        [[1.0, 0.6, 0.0], [0.0, 0.5, -0.4], [0.0, 0.0, 0.8]], dtype=torch.float64
    )
    flow.whiten(mixed, shrink=0.01)
    covariance = mixed.T.cov() + 0.01 * torch.eye(3)
    order = [part for part in flow.transform.modules() if hasattr(part, "back")]
    assert len(order) == (1 if family is not RealNVP else 2)  # permutations change nothing here
    law = torch.distributions.MultivariateNormal(torch.zeros(3).double(), covariance)
    found = flow.log_prob(mixed).value
    torch.testing.assert_close(found, law.log_prob(mixed), rtol=0, atol=1e-6)
    flow.whiten(mixed * torch.tensor([1.0, 2.0, -1.0]))  # again, with other signs
    assert torch.isfinite(flow.log_prob(mixed).value).all()


def test_whitening_needs_a_linear_layer_and_features_that_differ():
    with pytest.raises(AleatorError, match="build it with linear=True"):
        NSF((2,), layers=1).whiten(torch.randn(9, 2))
    twice = torch.randn(9, 1).expand(9, 2)
    with pytest.raises(AleatorError, match="covariance of 9 examples of 2 features is singular"):
        MAF((2,), layers=1, linear=True).whiten(twice)


@pytest.mark.exact
def test_channels_reversed_are_a_glow_too(shaken):
    torch.manual_seed(0)
    flow = shaken(Glow((1, 4, 4), steps=2, width=4, mixing="reverse"), size=0.1)
    x = examples(flow)
    z, log_det = flow.transform(x)
    torch.testing.assert_close(flow.transform.invert(z), x, rtol=0, atol=1e-9)
    torch.testing.assert_close(flow.encode(x), z)
    whole = torch.autograd.functional.jacobian(
        lambda flat: flow.transform(flat.reshape(1, 1, 4, 4))[0][0], x[0].flatten()
    )
    torch.testing.assert_close(torch.linalg.slogdet(whole)[1], log_det[0], rtol=0, atol=1e-9)
    with pytest.raises(AleatorError, match="known: convolution, reverse"):
        Glow((1, 4, 4), mixing="shuffle")


def test_fitting_beats_the_best_gaussian():
    """A noisy circle: a spline flow gains what a Gaussian cannot."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    angle = 2 * math.pi * torch.rand(2000, generator=generator)
    x = torch.stack([angle.cos(), angle.sin()], 1)
    x = 1.4 * x + 0.15 * torch.randn(2000, 2, generator=generator)
    flow = NSF((2,), layers=2, hidden=(32, 32))
    optimizer = torch.optim.Adam(flow.parameters(), 5e-3)
    for _ in range(100):
        optimizer.zero_grad()
        flow.loss(x[:1500]).mean().backward()
        optimizer.step()
    gaussian = torch.distributions.MultivariateNormal(x[:1500].mean(0), x[:1500].T.cov())
    with torch.no_grad():
        gain = flow.log_prob(x[1500:]).value.mean() - gaussian.log_prob(x[1500:]).mean()
    assert gain > 0.4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f.loss(torch.zeros(2, 4)), r"shape \(2, 4\), expected \(B, 3\)"),
        (lambda f: f.loss(torch.zeros(3)), "expected"),
        (lambda f: f.log_prob(torch.full((2, 3), torch.nan)), "not finite"),
        (lambda f: f.log_prob(torch.full((2, 3), 1e30)), "not finite"),
        (lambda f: f.log_prob(torch.zeros(2, 3), {"vector": torch.zeros(2, 1)}), "built without"),
        (lambda f: f.log_prob(torch.zeros(2, 3), probes=1), "at least two"),
        (lambda f: f.sample((2,), sampler="ddim"), "no sampler"),
        (lambda f: f.sample((2,), torch.zeros(2, 3, 4)), "neither a vector"),
        (lambda f: RealNVP((1,)), "autoregressive flow for one"),
        (lambda f: RealNVP((3,), layers=0), "at least one"),
        (lambda f: RealNVP((3,), levels=1), "at least two values"),
        (lambda f: NSF((3,), bins=0), "bins >= 1"),
        (lambda f: MAF((3,), univariate="cubic"), "known: affine, monotone"),
        (lambda f: Glow((3,)), r"\(C, H, W\)"),
        (lambda f: Glow((1, 6, 6)), "divide by 2"),
        (lambda f: ResidualFlow((3,), bound=1.0), "0 < bound < 1"),
        (lambda f: ResidualFlow((3,), squeezes=1), "are for events"),
        (lambda f: ResidualFlow((1, 3, 3), squeezes=1), "divide by 2"),
    ],
)
def test_mistakes_are_named(call, message):
    torch.manual_seed(0)
    with pytest.raises(AleatorError, match=message):
        call(RealNVP((3,), layers=2, hidden=(4,)))


def test_wrong_contexts_are_refused(flow, context):
    x = examples(flow)
    with pytest.raises(AleatorError, match="needs a context with a vector"):
        flow.log_prob(x)
    with pytest.raises(AleatorError, match=r"vector has shape \(4, 1\)"):
        flow.loss(x, {**context, "vector": context["vector"][:, :1]})
    with pytest.raises(AleatorError, match="batch size 4, the examples have 2"):
        flow.loss(x[:2], context)
    with pytest.raises(AleatorError, match="not finite"):
        flow.sample((1,), {**context, "vector": context["vector"] / 0})
    with pytest.raises(AleatorError, match=r"labels must be in 0\.\.2"):
        flow.sample((1,), {**context, "label": context["label"] + 1})


def test_integers_out_of_range_are_refused():
    flow = RealNVP((2,), levels=4)
    for x in (torch.tensor([[0.5, 1.0]]), torch.tensor([[-1, 0]]), torch.tensor([[0, 4]])):
        with pytest.raises(AleatorError, match=r"integers 0\.\.3"):
            flow.log_prob(x)


def test_diverged_weights_are_reported_not_passed_on():
    flow = MAF((2,), layers=1, hidden=(4,))
    with torch.no_grad():
        next(flow.parameters()).fill_(torch.nan)
    with pytest.raises(AleatorError, match="not finite"):
        flow.log_prob(torch.zeros(1, 2))
    with pytest.raises(AleatorError, match="not finite"):
        flow.sample((3,))
