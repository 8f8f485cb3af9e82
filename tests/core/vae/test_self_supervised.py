"""Self-supervised VAE: the split is a bijection with its volume, and the levels' bounds add up."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal
from torch.nn import functional as F

from core import build
from core.errors import AleatorError
from core.random import keyed_generator
from core.vae import VAE, SelfSupervisedVAE
from core.vae.likelihoods import GaussianLikelihood
from core.vae.self_supervised import merge, split, with_vector

F64 = torch.float64


def images(n=3, c=2, h=8, w=4, seed=0):
    return torch.randn(n, c, h, w, generator=keyed_generator(seed), dtype=F64)


@pytest.mark.exact
def test_the_split_is_a_bijection_of_known_volume():
    x = images()
    mean, detail = split(x)
    torch.testing.assert_close(mean, F.avg_pool2d(x, 2))
    torch.testing.assert_close(merge(mean, detail), x)

    def flat(v):
        y, r = split(v.reshape(1, 1, 4, 4))
        return torch.cat([y.flatten(), r.flatten()])

    jacobian = torch.autograd.functional.jacobian(flat, images(1, 1, 4, 4).flatten())
    model = SelfSupervisedVAE((1, 4, 4), levels=2)
    assert torch.linalg.slogdet(jacobian)[1].item() == pytest.approx(model.volume(), abs=1e-9)
    rows = jacobian[4:]
    torch.testing.assert_close(rows @ rows.T, torch.eye(12, dtype=F64))


class Given(nn.Module):
    """A network that is a function of its input and of the context's vector."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.unused = nn.Parameter(torch.zeros((), dtype=F64))

    def forward(self, x, level, context=None):
        return self.function(x, context)


def ppca(event, W, scale, shift):
    """An exact VAE: x = W z + shift(context) + scale ε with orthogonal columns of W."""
    likelihood = GaussianLikelihood(event, scale=scale, learned="no").double()
    likelihood.log_scale.fill_(math.log(scale))
    precision = 1 + W.square().sum(0) / scale**2

    def encode(x, context):
        gap = x.flatten(1) - shift(x, context)
        mean = gap @ W / scale**2 / precision
        return torch.cat([mean, -precision.log().expand_as(mean)], 1)

    def decode(z, context):
        return (z @ W.T + shift(z, context)).reshape(-1, *event)

    return VAE(
        event,
        latent_dim=W.shape[1],
        likelihood=likelihood,
        encoder=Given(encode),
        decoder=Given(decode),
    )


def orthogonal(rows, columns, seed):
    return torch.linalg.qr(
        torch.randn(rows, columns, generator=keyed_generator(seed), dtype=F64)
    ).Q


@pytest.mark.exact
def test_three_levels_of_exact_vaes_have_the_exact_density():
    """A linear-Gaussian chain of levels: x is Gaussian, its covariance by propagation."""
    sizes = [((3, 2, 2), 4, 1), ((3, 1, 1), 1, 2)]  # detail events, cells of what they are given
    maps = [0.3 * torch.randn(12, 4, generator=keyed_generator(5), dtype=F64)]
    maps.append(0.5 * torch.randn(3, 1, generator=keyed_generator(6), dtype=F64))
    details = [
        ppca(event, orthogonal(math.prod(event), 2, seed), 0.4, lambda x, y, B=B: y @ B.T)
        for (event, _, seed), B in zip(sizes, maps, strict=True)
    ]
    W = torch.ones(1, 1, dtype=F64)
    coarse = ppca((1, 1, 1), W, 0.7, lambda x, y: torch.zeros(1, dtype=F64))
    model = SelfSupervisedVAE((1, 4, 4), levels=3, coarse=coarse, detail=details)
    covariance = torch.full((1, 1), 1 + 0.49, dtype=F64)
    for vae, B, (event, _, seed) in reversed(list(zip(details, maps, sizes, strict=True))):
        Wd = orthogonal(math.prod(event), 2, seed)
        noise = Wd @ Wd.T + 0.16 * torch.eye(len(Wd), dtype=F64)
        top = torch.cat([covariance, covariance @ B.T], 1)
        low = torch.cat([B @ covariance, B @ covariance @ B.T + noise], 1)
        joint = torch.cat([top, low])
        side = vae.event_shape[-1]
        unit = torch.eye(len(joint), dtype=F64)
        y, r = unit[:, : side**2], unit[:, side**2 :]
        M = merge(y.reshape(-1, 1, side, side), r.reshape(-1, 3, side, side)).flatten(1).T
        covariance = M @ joint @ M.T
    law = MultivariateNormal(torch.zeros(16, dtype=F64), covariance)
    x = images(20, 1, 4, 4)
    found = model.log_prob(x, draws=1, generator=keyed_generator(1))
    torch.testing.assert_close(found.value, law.log_prob(x.flatten(1)), rtol=0, atol=1e-8)
    drawn = model.double().sample((20000,), generator=keyed_generator(2)).flatten(1)
    gap = torch.cov(drawn.T) - covariance
    assert gap.norm() < 0.06 * covariance.norm()
    one = -model.loss(x[:1].expand(4000, -1, -1, -1), generator=keyed_generator(3)).value
    exact = law.log_prob(x[:1].flatten(1)).item()
    assert one.mean().item() == pytest.approx(exact, abs=5 * one.std().item() / math.sqrt(4000))


@pytest.mark.contract
def test_verbs_and_super_resolution():
    net = {"width": 16, "blocks": 1, "classes": 3}
    small = {"latent_dim": 2, "encoder": net, "decoder": net}
    model = build(
        {
            "family": "self_supervised_vae",
            "event_shape": [1, 8, 8],
            "coarse": small,
            "detail": small,
        }
    ).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=keyed_generator(4), dtype=F64))
    x, label = images(3, 1, 8, 8), torch.arange(3)
    loss = model.loss(x, label, generator=keyed_generator(1))
    assert loss.value.shape == (3,)
    assert set(loss.terms) == {"coarse", "detail_0", "detail_1"}
    density = model.log_prob(x, label, draws=4, generator=keyed_generator(1))
    assert density.kind == "lower_bound"
    assert (density.stderr > 0).all()
    assert model.sample((2,), label, generator=keyed_generator(2)).shape == (2, 3, 1, 8, 8)
    streams = [keyed_generator(3, k) for k in range(3)]
    whole = model.sample((1,), label, generator=streams)[0]
    alone = model.sample((1,), label[2:], generator=[keyed_generator(3, 2)])[0]
    torch.testing.assert_close(whole[2:], alone)
    for factor in (2, 4):
        coarse = F.avg_pool2d(x, factor)
        fine = model.refine(coarse, label, generator=keyed_generator(5))
        torch.testing.assert_close(F.avg_pool2d(fine, factor), coarse)
    with pytest.raises(AleatorError, match=r"the levels are of \[\[2, 2\], \[4, 4\]\]"):
        model.refine(x[..., :3, :3], label)


def test_contexts_keep_their_other_parts():
    y = images(2, 1, 2, 2)
    assert torch.equal(with_vector(None, y), y.flatten(1))
    given = with_vector({"label": torch.arange(2), "vector": torch.ones(2, 1).double()}, y)
    assert given["vector"].shape == (2, 5)
    assert torch.equal(with_vector(torch.arange(2), y)["label"], torch.arange(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"event_shape": [8]}, "an event"),
        ({"event_shape": [1, 6, 8]}, "sides divisible by 4"),
        ({"levels": 1}, "two levels or more"),
        ({"detail": {"latent": 3}}, "family VAE has no option 'latent'"),
    ],
)
def test_mistakes_are_named(options, message):
    config = {"family": "self_supervised_vae", "event_shape": [1, 8, 8]}
    with pytest.raises(AleatorError, match=message):
        build({**config, **options})
    with pytest.raises(AleatorError, match="for details of"):
        SelfSupervisedVAE((1, 8, 8), levels=2, detail=[])
