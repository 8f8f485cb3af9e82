"""Classifier-free guidance: the tilted score, and its two ends."""

import math

import pytest
import torch
from torch import nn

from core.denoiser import Posterior
from core.diffusion import Diffusion
from core.errors import AleatorError
from core.guidance import ClassifierFree, from_weight
from core.paths import path_from_config
from core.random import keyed_generator


class Linear(nn.Module):
    """A small conditional network with random weights."""

    def __init__(self, dim=3, out=None, seed=0):
        super().__init__()
        self.layer = nn.Linear(2 * dim + 1, out or dim).double()
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)

    def forward(self, x, noise, context=None):
        c = torch.zeros_like(x) if context is None else context
        return self.layer(torch.cat([x, noise[:, None], c], 1)).tanh()


def points(n=7, d=3, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.exact
def test_guided_score_is_the_tilted_one(mixture_3d):
    """X9: s ∇ln p(x|c) + (1-s) ∇ln p(x), on an exact mixture with its component as condition."""
    path = path_from_config("vp")

    class Exact:
        def __init__(self):
            self.path = path

        def denoise(self, x_t, t, context):
            whole = mixture_3d.denoise(path)(x_t, t)
            point = path.at(t)
            rows = []
            for i, label in enumerate(context.tolist()):
                if label < 0:
                    rows.append(whole.mean[i])
                else:
                    a, s2 = point.alpha, mixture_3d.scales[label] ** 2
                    gain = a * s2 / (a**2 * s2 + point.sigma**2)
                    m = mixture_3d.means[label]
                    rows.append(m + gain * (x_t[i] - a * m))
            return Posterior(torch.stack(rows), x_t, point)

    x_t, label, t, scale = points(6), torch.zeros(6, dtype=torch.long), 0.3, 2.5
    x = x_t.clone().requires_grad_()
    point = path.at(t)
    components = mixture_3d.components(x, point.alpha, point.sigma)
    log = scale * components[:, 0] + (1 - scale) * components.logsumexp(1)
    (exact,) = torch.autograd.grad(log.sum(), x)
    for batched in (True, False):
        guided = ClassifierFree(scale, batched).bind(Exact(), label)(x_t, t)
        torch.testing.assert_close(guided.score, exact)
    assert from_weight(1.5) == ClassifierFree(2.5)


def test_guidance_scale_one_is_the_conditional_model_bitwise():
    model = Diffusion(Linear(), (3,), context_dropout=0.5)
    context = points(4)
    streams = [keyed_generator(i) for i in range(8)]

    def draw(guidance, c=context):
        streams = [keyed_generator(i) for i in range(8)]
        return model.sample((2,), c, guidance=guidance, generator=streams)

    assert torch.equal(draw(None), draw(ClassifierFree(1.0)))
    assert torch.equal(draw(ClassifierFree(0.0)), draw(None, torch.zeros_like(context)))
    assert not torch.allclose(draw(None), draw(ClassifierFree(3.0)))
    with pytest.raises(AleatorError, match="needs a context"):
        model.sample((2,), guidance=ClassifierFree(2.0), generator=streams[:2])


@pytest.mark.exact
def test_an_interval_guides_only_the_steps_within_it():
    model = Diffusion(Linear(), (3,), path="vp")
    context = points(4, seed=1)
    whole = ClassifierFree(3.0).bind(model, context)
    part = ClassifierFree(3.0, interval=(-2.0, 2.0)).bind(model, context)
    plain = ClassifierFree(1.0).bind(model, context)
    x_t = points(4)
    for t in (0.05, 0.3, 0.5, 0.9):
        point = model.path.at(t)
        inside = abs(2 * math.log(point.alpha / point.sigma)) <= 2
        expected = whole if inside else plain
        assert torch.equal(part(x_t, t).mean, expected(x_t, t).mean)
    assert inside is False
    with pytest.raises(AleatorError, match="interval="):
        ClassifierFree(2.0, interval=(1.0, -1.0))
