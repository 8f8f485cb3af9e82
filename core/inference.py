r"""p(x | y) for y = A(x) + s ε: one call for every family.

    posterior(model, y, operator, noise=s).sample((S,))        -> (S, B, *E)

    diffusion, flow matching     guided sampling; see `core.guidance.inverse`
    VAEs, invertible flows       Hamiltonian Monte Carlo in the noise u that x = g(u) is made of:
                                 ln p(u | y) = -|u|²/2 + ln N(y; A g(u), s²) + const
    energy models                the same in x itself, with -E(x)
    latent diffusion             guided sampling in the latent space, then x given z and y

In noise space the prior is standard normal whatever the model, so that one step size fits.
References: Neal (2011) arXiv:1206.1901; Rozet et al. (2024) arXiv:2405.13712; Whang et al. (2021)
arXiv:2003.08089 (flows).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.energy import EnergyModel
from core.errors import AleatorError, Unsupported
from core.guidance.inverse import DPS, InverseGuidance, MomentMatching, PiGDM, conjugate_gradients
from core.mcmc import Chains, hmc
from core.model import Context, GenerativeModel, context_batch, expand_context, unsupported
from core.operators import Function, Operator, as_operator
from core.path_model import PathModel
from core.random import Generators, rand, randn
from core.vae.base import LatentModel
from core.vae.latent import LearnedPrior
from core.vae.likelihoods import GaussianLikelihood

METHODS: dict[str, type[InverseGuidance]] = {
    "dps": DPS,
    "moment_matching": MomentMatching,
    "pigdm": PiGDM,
}


_CHAINS = {"candidates": 16, "step": 0.1, "length": 10, "warmup": 100, "steps": 60}


@dataclass(frozen=True, eq=False)
class Conditioned(ABC):
    """A model given an observation.

    Attributes:
        model: of x.
        y: (B, *M) observations.
        operator: A.
        noise: s.
        context: condition, batch B.
        options: of the method.
    """

    model: Any
    y: Tensor
    operator: Operator
    noise: float
    context: Context
    options: dict[str, Any]

    @abstractmethod
    def sample(self, shape: Sequence[int] = (), *, generator: Generators | None = None) -> Tensor:
        """Draws of p(x | y), (*S, B, *E); `generator` is one stream, or prod(S) · B of them."""

    def rows(self, shape: Sequence[int]) -> tuple[Tensor, Context, tuple[int, ...]]:
        """Observations and contexts of all draws, S-major, and the leading shape of the result."""
        draws = math.prod(shape)
        y = self.y.repeat(draws, *[1] * (self.y.dim() - 1))
        return y, expand_context(self.context, draws), (*shape, len(self.y))


def posterior(
    model: GenerativeModel,
    y: Tensor,
    operator: Operator | Tensor | Callable[[Tensor], Tensor],
    *,
    noise: float,
    context: Context = None,
    method: str | None = None,
    **options: Any,
) -> Conditioned:
    """Condition a model on an observation that it was not trained for.

    Args:
        model: of any family but discrete ones.
        y: (B, *M) observations.
        operator: A: see `core.operators`; a bool mask, a matrix or a function will do.
        noise: s > 0, standard deviation of the observation's error.
        context: condition of the model, batch B.
        method: "moment_matching" (the default), "pigdm" or "dps" for diffusion and flow matching;
            "hmc" for the others.
        options: of the method: iterations and sampler; or candidates, warmup, steps, step, length.

    Returns:
        something to `sample` from.

    Raises:
        AleatorError: a family or method that does not go together, or bad observations.
    """
    method = _method_for(model, method)
    operator = as_operator(operator)
    if not (noise > 0 and math.isfinite(noise)):
        raise AleatorError(f"posterior: noise={noise}; a positive standard deviation is needed")
    if y.dim() < 2 or not y.isfinite().all():
        raise AleatorError(
            f"posterior: observations of shape {tuple(y.shape)}; finite values (B, *M) are "
            "needed: leave what is missing to the operator"
        )
    if context is not None and context_batch(context) != len(y):
        raise AleatorError(
            f"a context of batch {context_batch(context)} for {len(y)} observations"
        )
    fields = (model, y, operator, noise, context)
    if isinstance(model, PathModel):
        return Guided(*fields, {"method": method, **options})
    if isinstance(model, LearnedPrior):
        return LatentGuided(*fields, {"method": method, **options})
    return Sampled(*fields, options)


def methods(model: GenerativeModel) -> list[str]:
    """What `posterior` can do with a model, the default first; nothing if it has none."""
    if "posterior" in model.unsupported:
        return []
    if isinstance(model, PathModel):
        return ["moment_matching", "dps", "pigdm"]
    if isinstance(model, LearnedPrior):
        return ["moment_matching", "pigdm"] if isinstance(model.prior, PathModel) else []
    if isinstance(model, EnergyModel) or hasattr(model, "transform"):
        return ["hmc"]
    return ["hmc"] if isinstance(model, LatentModel) else []


def _method_for(model: GenerativeModel, method: str | None) -> str:
    known = methods(model)
    if not known:
        raise Unsupported(unsupported(type(model), "posterior"))
    if method is not None and method not in known:
        raise AleatorError(
            f"posterior of {type(model).__name__}: method {method!r}; known: {', '.join(known)}"
        )
    return method or known[0]


@dataclass(frozen=True, eq=False)
class Guided(Conditioned):
    """By guided sampling of diffusion or flow matching."""

    def sample(self, shape: Sequence[int] = (), *, generator: Generators | None = None) -> Tensor:
        """Draws of p(x | y), (*S, B, *E)."""
        y, _, leading = self.rows(shape)
        options = dict(self.options)
        sampler, chosen = options.pop("sampler", None), METHODS[options.pop("method")]
        guidance = _make_guidance(chosen, y, self.operator, self.noise, options)
        return _guided(self.model, guidance, shape, self.context, leading, sampler, generator)


@dataclass(frozen=True, eq=False)
class LatentGuided(Conditioned):
    """By guided sampling in a latent space, through a Gaussian decoder.

    The latent is observed through A and the mean of p(x | z); x is then drawn given z and y by
    correcting a draw of p(x | z) with its own observation (Matheron's rule).
    """

    def sample(self, shape: Sequence[int] = (), *, generator: Generators | None = None) -> Tensor:
        """Draws of p(x | y), (*S, B, *E)."""
        model: LearnedPrior = self.model
        vae, likelihood = model.autoencoder, model.autoencoder.likelihood
        assert isinstance(model.prior, PathModel)
        if not self.operator.linear:
            raise AleatorError(
                "the posterior of a latent model needs a linear operator; take a VAE, or a model "
                "of x itself"
            )
        if not isinstance(likelihood, GaussianLikelihood) or likelihood.outputs != 1:
            raise AleatorError(
                "the posterior of a latent model needs a Gaussian likelihood of constant scale"
            )
        y, repeated, leading = self.rows(shape)

        def decoded(latents: Tensor) -> Tensor:
            z = (model.mean + model.scale * latents).flatten(1)
            return vae.decode(z, repeated).mean

        scale = vae.likelihood(y.new_zeros(1, *model.event_shape)).scale.detach()
        origin = y.new_zeros(len(y), *model.event_shape)

        def of_decoder(v: Tensor) -> Tensor:
            """A Σ Aᵀ v of the decoder's own variance Σ."""
            return self.operator(scale.square() * self.operator.adjoint(origin, v))

        options = {"iterations": 10, **self.options}
        sampler, method = options.pop("sampler", None), METHODS[options.pop("method")]
        through = Function(lambda latents: self.operator(decoded(latents)))
        options["covariance"] = of_decoder
        guidance = _make_guidance(method, y, through, self.noise, options)
        latents = _guided(model.prior, guidance, shape, self.context, leading, sampler, generator)
        with torch.no_grad():
            mean = decoded(latents.reshape(len(y), *model.latent_shape))
            x = mean + scale * randn(mean.shape, generator, device=mean.device, dtype=mean.dtype)
            error = randn(y.shape, generator, device=y.device, dtype=y.dtype)
            gap = y - self.operator(x) - self.noise * error
        v = conjugate_gradients(
            lambda v: self.noise**2 * v + of_decoder(v), gap, min(100, gap[0].numel())
        )
        x = x + scale.square() * self.operator.adjoint(origin, v)
        return x.reshape(*leading, *model.event_shape)


def _make_guidance(
    method: type[InverseGuidance], y: Tensor, operator: Operator, noise: float, options: Any
) -> InverseGuidance:
    known = set(method.__dataclass_fields__) - {"y", "operator", "noise"}
    if unknown := set(options) - known:
        raise AleatorError(
            f"posterior: no option {sorted(unknown)[0]!r}; it has {', '.join(sorted(known))}, "
            "sampler"
        )
    return method(y, operator, noise, **options)


def _guided(
    model: PathModel,
    guidance: InverseGuidance,
    shape: Sequence[int],
    context: Context,
    leading: tuple[int, ...],
    sampler: Any,
    generator: Generators | None,
) -> Tensor:
    """Draw one example for each row of the guidance's y."""
    sampler = {"name": "2m", "steps": 50} if sampler is None else sampler
    chosen = {"sampler": sampler, "guidance": guidance, "generator": generator}
    if context is None:
        x = model.sample((math.prod(leading),), **chosen)
    else:
        x = model.sample(tuple(shape), context, **chosen)
    return x.reshape(*leading, *model.event_shape)


@dataclass(frozen=True, eq=False)
class Sampled(Conditioned):
    """By Hamiltonian Monte Carlo, a chain for each draw.

    Each chain starts from the best of some draws of the prior, picked in proportion to their
    likelihood, so that modes are found; warm-up adapts one step size for all chains, which
    therefore depend on one another a little, and all draws on the number of chains.
    """

    def sample(self, shape: Sequence[int] = (), *, generator: Generators | None = None) -> Tensor:
        """Draws of p(x | y), (*S, B, *E): the last states of the chains."""
        return self.chains(shape, generator=generator)[1]

    def chains(
        self, shape: Sequence[int] = (), *, keep: int = 0, generator: Generators | None = None
    ) -> tuple[Chains, Tensor]:
        """The chains in the space that they run in, for diagnostics, and the draws of x."""
        y, context, leading = self.rows(shape)
        space = _space(self.model, context, len(y))
        options: dict[str, Any] = dict(_CHAINS)
        if unknown := set(self.options) - set(options):
            raise AleatorError(
                f"posterior: no option {sorted(unknown)[0]!r}; it has {', '.join(options)}"
            )
        options |= self.options
        candidates = options.pop("candidates")

        def log_likelihood(x: Tensor) -> Tensor:
            seen = self.operator(x)
            if seen.shape != y.shape:
                raise AleatorError(
                    f"observations of shape {tuple(y.shape)}; the operator gives "
                    f"{tuple(seen.shape)}"
                )
            return -0.5 * ((y - seen) / self.noise).square().flatten(1).sum(1)

        start = space.start(candidates, log_likelihood, generator)

        def target(u: Tensor) -> Tensor:
            return space.log_prior(u) + log_likelihood(space.to_x(u))

        run = hmc(target, start, keep=keep, generator=generator, **options)
        with torch.no_grad():
            x = space.to_x(run.x)
        return run, x.reshape(*leading, *self.model.event_shape)


@dataclass(frozen=True, eq=False)
class _Space:
    """Where chains run.

    Attributes:
        shape: of one state.
        to_x: states (N, ...) to examples (N, *E).
        log_prior: (N, ...) -> (N,).
        scale: standard deviation of the Gaussian that candidates are drawn from.
        count: N.
        exact: that Gaussian is the prior itself.
    """

    shape: tuple[int, ...]
    to_x: Callable[[Tensor], Tensor]
    log_prior: Callable[[Tensor], Tensor]
    scale: float
    count: int
    like: Tensor
    exact: bool = True

    @torch.no_grad()
    def start(self, candidates: int, log_likelihood: Any, generator: Generators | None) -> Tensor:
        """One of several candidates for each chain, in proportion to their weights."""
        tries, weights = [], []
        for _ in range(max(1, candidates)):
            u = self.scale * randn(
                (self.count, *self.shape),
                generator,
                device=self.like.device,
                dtype=self.like.dtype,
            )
            weight = log_likelihood(self.to_x(u))
            if not self.exact:
                weight = weight + self.log_prior(u) + 0.5 * _sum((u / self.scale).square())
            tries.append(u)
            weights.append(weight)
        share = torch.stack(weights, 1).softmax(1).cumsum(1)
        v = rand((self.count, 1), generator, device=self.like.device, dtype=self.like.dtype)
        chosen = (share < v * share[:, -1:]).sum(1)
        return torch.stack(tries, 1)[torch.arange(self.count), chosen]


def _space(model: GenerativeModel, context: Context, count: int) -> _Space:
    like = next(model.parameters(), torch.empty(())).new_empty(())
    if isinstance(model, EnergyModel):
        return _Space(
            tuple(model.event_shape),
            model.to_data,
            lambda u: -model.energy_at(u, context),
            model.base_scale,
            count,
            like,
            exact=False,
        )
    if isinstance(model, LatentModel):
        dims, to_x = model.noise_dim, lambda u: model.from_noise(u, context)
    else:  # a flow
        dims = math.prod(model.event_shape)
        if getattr(model, "levels", None) is not None:
            raise AleatorError(
                "this flow is of integers: take one of continuous data, scaled like them"
            )
        inverse: Any = model.transform

        def to_x(u: Tensor) -> Tensor:
            x = inverse.invert(u, context).reshape(-1, *model.event_shape)
            if torch.is_grad_enabled() and u.requires_grad and not x.requires_grad:
                raise AleatorError(
                    "the inverse of this flow has no gradient: give the posterior of a coupling, "
                    "autoregressive or continuous flow"
                )
            return x

    return _Space((dims,), to_x, lambda u: -0.5 * _sum(u.square()), 1.0, count, like)


def _sum(value: Tensor) -> Tensor:
    return value.flatten(1).sum(1)
