"""Every family, every verb, vectors and images: it works, or it says what to use instead."""

import pytest
import torch

from core.contract import EVENTS, NEEDED, VERBS, matrix, supports, table
from core.errors import AleatorError, Unsupported
from core.inference import posterior
from core.operators import Linear
from core.random import keyed_generator
from core.registry import FAMILIES, build

SMALL: dict[str, dict] = {
    "energy": {"chain_steps": 2, "sampler": {"name": "mala", "steps": 3}},
    "cnf": {"solver": {"rtol": 1e-2, "atol": 1e-2}},
    "consistency": {"sampler": 1},
}
FAST = {"energy": {"chains": 4, "temperatures": 3}, "diffusion": {"trace": "hutchinson"}}
FAST["flow_matching"] = FAST["diffusion"]
FAST["latent_diffusion"] = FAST["latent_flow_matching"] = {"draws": 2, "trace": "hutchinson"}


def model_of(family, event):
    torch.manual_seed(0)
    options = {**NEEDED.get(family, {}), **SMALL.get(family, {})}
    return build({"family": family, "event_shape": event, **options})


def examples(event, n=3):
    return 0.5 * torch.randn(n, *event, generator=keyed_generator(1))


def use(model, family, verb, event):
    """Call a verb and return something of the shape that it promises."""
    x, g = examples(event), keyed_generator(2)
    context = torch.tensor([0, 1, 2]) if family == "hybrid" else None
    if verb == "loss":
        return model.loss(x, context, generator=g).value, (3,)
    if verb == "sample":
        return model.sample((2,), generator=g), (2, *event)
    if verb == "log_prob":
        density = model.log_prob(x, context, generator=g, **FAST.get(family, {}))
        assert density.kind in ("exact", "unbiased", "lower_bound", "estimate")
        return density.value, (3,)
    if verb == "denoise":
        return model.denoise(x, torch.full((3,), 0.5)).mean, (3, *event)
    if verb == "encode":
        z = model.encode(x)  # a distribution, or for a bijection the noise itself
        z = z if isinstance(z, torch.Tensor) else z.mean
        return z, (3, *z.shape[1:])
    matrix = torch.randn(2, x[0].numel(), generator=keyed_generator(3))
    method = posterior(model, torch.zeros(1, 2), Linear(matrix), noise=0.5)
    short = {"candidates": 2, "warmup": 2, "steps": 2, "length": 2}
    if method.__class__.__name__ == "Sampled":
        method = posterior(model, torch.zeros(1, 2), Linear(matrix), noise=0.5, **short)
    return method.sample((2,), generator=g), (2, 1, *event)


@pytest.mark.contract
@pytest.mark.parametrize("kind", sorted(EVENTS))
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_verb_works_or_says_what_to_use_instead(family, verb, kind):
    event = EVENTS[kind]
    try:
        model = model_of(family, event)
    except AleatorError:
        row = next(r for r in matrix([family]) if r.kind == kind)
        assert not row.verbs[verb]
        assert "event" in row.reason  # it says that such events are not for it
        return
    if supports(model, verb):
        found, shape = use(model, family, verb, event)
        assert found.shape == shape
        assert found.isfinite().all()
    else:
        with pytest.raises(Unsupported, match=f"{type(model).__name__} has no {verb}: "):
            use(model, family, verb, event)


def test_the_matrix_is_at_least_what_was_promised():
    rows = matrix()
    assert {row.family for row in rows} == set(FAMILIES)
    vectors = sum(sum(row.verbs.values()) for row in rows if row.kind == "vector")
    assert vectors + sum(sum(r.verbs.values()) for r in rows if r.kind == "image") >= 45
    text = table(rows)
    assert text.count("\n| ") >= 2 * len(FAMILIES)
    assert "| diffusion | vector | ✓ | ✓ | ✓ | ✓ | – | ✓ |" in text


def test_mistakes_are_named():
    with pytest.raises(AleatorError, match=r"unknown family 'gan'; known: .*diffusion"):
        matrix(["gan"])
    with pytest.raises(AleatorError, match="unknown verb 'draw'"):
        supports(model_of("vae", (8,)), "draw")
