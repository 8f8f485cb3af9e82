r"""DAED: a diffusion model split into a generator and a denoising autoencoder.

    ln p(x) ≥ -(L_T + Σ_t L_t)  +  E ln p(x | x_1)
               generator: noise to x_1   autoencoder: x_1 to x,   x_1 = α x + σ ε at λ_1

The diffusion stops at a noise level λ_1, where what is left to do is no longer generation but
removal of noise: a network of its own does that in one step, has its capacity to itself, and works
on other data sets, too. With the generator's network in its place the bound is that of the
diffusion model. Reference: Deja et al. (2022) arXiv:2206.00070.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.checks import check_examples
from core.denoiser import Denoiser, Posterior
from core.diffusion import Diffusion
from core.distributions import Gaussian
from core.elbo import diffusion_elbo
from core.errors import AleatorError
from core.model import Context, Density, GenerativeModel, Loss
from core.random import Generators, randn
from core.solvers import make_sampler
from core.solvers.base import GridSampler
from core.vae.base import sum_event


class DAED(GenerativeModel):
    """A diffusion generator down to some noise, and a denoising autoencoder below it."""

    takes_net = False

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: Sequence[int] | None = None,
        *,
        generator: Diffusion | Mapping[str, Any] | None = None,
        autoencoder: nn.Module | Mapping[str, Any] | None = None,
        log_snr: float = 3.0,
        scale: float | None = None,
        output: Literal["data", "mean"] = "mean",
    ) -> None:
        """Assemble.

        Args:
            event_shape: E.
            context_shape: shape of the main context tensor of one example, for the record.
            generator: a diffusion model, or its config without family and event_shape.
            autoencoder: (x_1 (B, *E), level (B,), context) -> (B, *E), a module or the config of
                a network; its output is preconditioned like the generator's.
            log_snr: λ_1, log-SNR at which the two meet; 3 is a noise of 22 % of the signal.
            scale: standard deviation of p(x | x_1) to start learning from; that of the noise left
                if None.
            output: `sample` draws x from p(x | x_1), or returns its mean.

        Raises:
            AleatorError: an option out of range, or a generator for other events.
        """
        super().__init__()
        from core.registry import build, build_net

        self.event_shape = torch.Size(event_shape)
        self.context_shape = None if context_shape is None else torch.Size(context_shape)
        if not isinstance(generator, Diffusion):
            config = {"first_log_snr": log_snr, **(generator or {})}
            built = build({**config, "family": "diffusion", "event_shape": self.event_shape})
            assert isinstance(built, Diffusion)
            generator = built
        if generator.event_shape != self.event_shape:
            raise AleatorError(
                f"daed: a generator of {list(generator.event_shape)} for events of "
                f"{list(self.event_shape)}"
            )
        if output not in ("data", "mean") or (scale is not None and scale <= 0):
            raise AleatorError(f"daed: output={output!r}, scale={scale}; data or mean, positive")
        path = generator.path
        t = path.t_from_log_snr(torch.tensor(log_snr, dtype=torch.float64)).item()
        if not path.t_min < t < path.t_max:
            raise AleatorError(f"daed: log_snr={log_snr} is not on the path {path.name}")
        if not isinstance(autoencoder, nn.Module):
            autoencoder = build_net(autoencoder or {}, tuple(event_shape))
        self.generator, self.t_meet, self.log_snr = generator, t, log_snr
        d = generator.denoiser.sigma_data
        self.autoencoder = Denoiser(autoencoder, path, "edm", d)
        self.output = output
        start = math.exp(-log_snr / 2) if scale is None else scale
        self.log_scale = nn.Parameter(torch.tensor(math.log(start)))

    def law(self, x_1: Tensor, context: Context = None) -> Gaussian:
        """p(x | x_1) of noisy examples (B, *E) at λ_1."""
        mean = self.autoencoder(x_1, self.t_meet, context).mean
        return Gaussian(mean, self.log_scale.exp().clamp(min=1e-4))

    def noisy(self, x: Tensor, generator: Generators | None) -> Tensor:
        """Draws of x_1 given x (B, *E)."""
        point = self.generator.path.at(self.t_meet)
        eps = randn(x.shape, generator, device=x.device, dtype=x.dtype)
        return point.alpha * x + point.sigma * eps

    def remove_noise(self, x: Tensor, noise: float, context: Context = None) -> Tensor:
        """The autoencoder by itself: what x + noise ε was, for images of any data set.

        Args:
            x: (B, *E) with noise of standard deviation `noise`.
            noise: at most that of λ_1 in units of the signal; what is missing is not added.
            context: condition, batch B.

        Raises:
            AleatorError: more noise than the autoencoder was trained for.
        """
        point = self.generator.path.at(self.t_meet)
        if not 0 < noise <= 1.001 * point.sigma / point.alpha:
            raise AleatorError(
                f"noise={noise:g}: the autoencoder takes up to {point.sigma / point.alpha:.3g}"
            )
        return self.autoencoder(point.alpha * x, self.t_meet, context).mean

    def loss(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Loss:
        """The generator's loss above λ_1 and -ln p(x | x_1) per element, value (B,)."""
        check_examples(x, self.event_shape, context)
        above = self.generator.loss(x, context, generator=generator)
        log_p = sum_event(self.law(self.noisy(x, generator), context).log_prob(x))
        below = -log_p / math.prod(self.event_shape)
        terms = {f"generator_{name}": term for name, term in above.terms.items()}
        return Loss(above.value + below, {**terms, "autoencoder": below.detach()})

    @torch.no_grad()
    def log_prob(
        self,
        x: Tensor,
        context: Context = None,
        *,
        generator: Generators | None = None,
        steps: int = 100,
        draws: int = 4,
        **options: Any,
    ) -> Density:
        """The variational bound, (B,) nats: the generator's steps and the autoencoder's last.

        Args:
            x: (B, *E).
            context: condition, batch B.
            generator: stream of the noise.
            steps: of the generator, from noise to λ_1.
            draws: of the noise for each term.
            options: further ones of `core.elbo.diffusion_elbo`.
        """
        check_examples(x, self.event_shape, context)
        options.setdefault("prior_std", self.generator.prior_std)
        bound = diffusion_elbo(
            self.generator.bind(context),
            x,
            path=self.generator.path,
            steps=steps,
            log_snr_max=self.log_snr,
            draws=draws,
            generator=generator,
            **options,
        )
        parts = [
            sum_event(self.law(self.noisy(x, generator), context).log_prob(x))
            for _ in range(draws)
        ]
        last = torch.stack(parts)
        value = bound.density.value + bound.l_0 + last.mean(0)
        stderr = None
        if draws > 1 and bound.density.stderr is not None:
            own = last.std(0) / math.sqrt(draws)
            stderr = (bound.density.stderr.square() + own.square()).sqrt()
        return Density(value, "lower_bound", stderr)

    @torch.no_grad()
    def sample(
        self,
        shape: Sequence[int] = (),
        context: Context = None,
        *,
        sampler: Any = None,
        guidance: Any = None,
        generator: Generators | None = None,
    ) -> Tensor:
        """Generate x_1, then remove its noise: (*S, B, *E), or (*S, *E) without context.

        Args:
            shape: S.
            context: condition, batch B.
            sampler: of the generator, one that walks a grid of times; it stops at λ_1.
            guidance: of the generator.
            generator: one stream, or prod(S) · B of them, S-major.
        """
        chosen = make_sampler(self.generator.sampler if sampler is None else sampler)
        if not isinstance(chosen, GridSampler):
            raise AleatorError(f"daed: {type(chosen).__name__} walks no grid of times")
        chosen = dataclasses.replace(chosen, log_snr_max=self.log_snr)
        relay = _Relay(self, guidance, generator)
        return self.generator.sample(
            shape, context, sampler=chosen, guidance=relay, generator=generator
        )


class _Relay:
    """As guidance: the generator until the last evaluation, which the autoencoder makes."""

    def __init__(self, model: DAED, inner: Any, generator: Generators | None) -> None:
        self.model, self.inner, self.generator = model, inner, generator

    def bind(self, generator: Any, context: Context) -> Any:
        denoise = generator.bind(context, self.inner)

        def relay(x_t: Tensor, t: float) -> Posterior:
            if t > self.model.t_meet * (1 + 1e-9):
                return denoise(x_t, t)
            law = self.model.law(x_t, context)
            x = law.mean if self.model.output == "mean" else law.sample(self.generator)
            return Posterior(x, x_t, generator.path.at(t))

        return relay
