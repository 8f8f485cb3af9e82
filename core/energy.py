r"""Energy-based models: p(x | c) = exp(-E(x, c)) / Z(c), a density known up to its constant.

    E(x, c) = f(x, c) + |u|² / 2s²,  x = m + L u   the quadratic keeps Z finite for any f
    ∇ -ln p = E_data[∇E] - E_model[∇E]        contrastive divergence (Hinton 2002)
    J = E[½ |s|² + ∇·s],  s = -∇E             score matching (Hyvärinen 2005), no Z in it
    J = E[½ |s|² + vᵀ(∇s)v]                   sliced (Song et al. 2019, arXiv:1905.07088)
    J = E ½ |σ s(x + σ ε) + ε|²               denoising (Vincent 2011, doi:10.1162/NECO_a_00142):
                                              the minimiser is the score of the *noised* data

Negative examples of contrastive divergence come from short MALA chains on a replay buffer
(Du and Mordatch 2019, arXiv:1903.08689). Chains run in u. With `base="fitted"`, m and L Lᵀ are
the mean and covariance of data, so that f only tilts a Gaussian (Xie et al. 2016,
arXiv:1602.03264) and one step size fits all directions; pixels that hardly vary would else stop
every chain whose steps are made for those that do.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.checks import check_examples
from core.errors import AleatorError
from core.mcmc import Chains, annealed_importance, hmc, langevin
from core.model import (
    Context,
    Density,
    GenerativeModel,
    Loss,
    context_batch,
    expand_context,
)
from core.random import Generators, rand, randn

Training = Literal["contrastive", "explicit", "sliced", "denoising"]
SAMPLERS: dict[str, dict[str, Any]] = {
    "mala": {"step": 0.1, "steps": 500, "adjust": True},
    "langevin": {"step": 0.01, "steps": 500},
    "hmc": {"step": 0.2, "length": 10, "steps": 50, "warmup": 50, "keep": 0},
}


class EnergyModel(GenerativeModel):
    """A network as an energy."""

    takes_net = False
    replay: Tensor
    filled: Tensor
    base_mean: Tensor
    base_factor: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: Sequence[int] | None = None,
        *,
        energy: nn.Module | Mapping[str, Any] | None = None,
        base: Literal["isotropic", "fitted"] = "isotropic",
        base_scale: float = 3.0,
        training: Training = "contrastive",
        noise: float = 0.1,
        chain_steps: int = 20,
        chain_step: float = 0.05,
        replay_size: int = 1024,
        restart: float = 0.05,
        magnitude: float = 0.0,
        sampler: str | Mapping[str, Any] = "mala",
    ) -> None:
        """Assemble.

        Args:
            event_shape: E.
            context_shape: shape of the main context tensor of one example, for the record.
            energy: f, (x (B, *E), zeros (B,), context) -> (B, 1); a module, or the config of a
                network (by default an MLP).
            base: m = 0 and L = 1, or what `fit_base` makes of data.
            base_scale: s, in u; wider than the data, or 1 with a fitted base. Chains start from
                u ~ N(0, s²).
            training: the objective.
            noise: σ of denoising score matching.
            chain_steps: MALA steps for negative examples.
            chain_step: their step size.
            replay_size: states kept between training steps; 0 starts every chain afresh.
            restart: share of chains that start from the base all the same. With a context all
                do: a state of the buffer belongs to another context.
            magnitude: weight of the squared energies in the loss, which keeps them near zero.
            sampler: of `sample`: mala, langevin, hmc, or a mapping with options.

        Raises:
            AleatorError: an option out of range, an unknown objective, sampler or network.
        """
        super().__init__()
        if training not in ("contrastive", "explicit", "sliced", "denoising"):
            raise AleatorError(
                f"unknown training {training!r}; known: contrastive, denoising, explicit, sliced"
            )
        if base not in ("isotropic", "fitted"):
            raise AleatorError(f"energy model: base={base!r}; known: fitted, isotropic")
        positive = {"base_scale": base_scale, "noise": noise, "chain_step": chain_step}
        positive["chain_steps"] = chain_steps
        for name, value in positive.items():
            if value <= 0:
                raise AleatorError(f"energy model: {name}={value}; it must be positive")
        if not 0 <= restart <= 1 or replay_size < 0 or magnitude < 0:
            raise AleatorError(
                f"energy model: restart={restart}, replay_size={replay_size}, "
                f"magnitude={magnitude} out of range"
            )
        self.event_shape = torch.Size(event_shape)
        self.context_shape = None if context_shape is None else torch.Size(context_shape)
        self.net = _network(energy, self.event_shape)
        self.base_scale, self.objective, self.noise = base_scale, training, noise
        self.chain_steps, self.chain_step = chain_steps, chain_step
        self.restart, self.magnitude = restart, magnitude
        self.sampler = _sampler(sampler)
        self.register_buffer("replay", torch.zeros(replay_size, *self.event_shape))
        self.register_buffer("filled", torch.zeros((), dtype=torch.bool))
        self.fitted = base == "fitted"
        if self.fitted:
            dims = math.prod(self.event_shape)
            self.register_buffer("base_mean", torch.zeros(dims))
            self.register_buffer("base_factor", torch.eye(dims))

    def fit_base(self, x: Tensor) -> None:
        """Give the base the mean and covariance of examples x (N, *E), N larger than E.

        Raises:
            AleatorError: the model has no base to fit, or the examples do not span the space.
        """
        check_examples(x, self.event_shape, None)
        if not self.fitted:
            raise AleatorError("energy model: base='fitted' in the config has a base to fit")
        flat = x.flatten(1).double()
        factor, failed = torch.linalg.cholesky_ex(torch.cov(flat.T).reshape(flat.shape[1], -1))
        if len(flat) <= flat.shape[1] or failed or not factor.isfinite().all():
            raise AleatorError(
                f"energy model: the covariance of {len(flat)} examples of {flat.shape[1]} numbers "
                "is singular; give more examples, or add noise to elements that never vary"
            )
        self.base_mean.copy_(flat.mean(0))
        self.base_factor.copy_(factor)

    def to_data(self, u: Tensor) -> Tensor:
        """Examples x = m + L u of base coordinates u (B, *E)."""
        if not self.fitted:
            return u
        factor, mean = self.base_factor.to(u.dtype), self.base_mean.to(u.dtype)
        return (mean + u.flatten(1) @ factor.T).reshape(u.shape)

    def to_base(self, x: Tensor) -> Tensor:
        """The inverse of `to_data`."""
        if not self.fitted:
            return x
        gap = x.flatten(1) - self.base_mean.to(x.dtype)
        factor = self.base_factor.to(x.dtype)
        return torch.linalg.solve_triangular(factor, gap.T, upper=False).T.reshape(x.shape)

    def energy(self, x: Tensor, context: Context = None) -> Tensor:
        """E(x, context) of (B, *E), (B,) nats."""
        return self._energy(x, self.to_base(x), context)

    def energy_at(self, u: Tensor, context: Context = None) -> Tensor:
        """E(m + L u, context) of base coordinates u (B, *E), (B,) nats: what chains run on."""
        return self._energy(self.to_data(u), u, context)

    def _energy(self, x: Tensor, u: Tensor, context: Context) -> Tensor:
        f = self.net(x, x.new_zeros(len(x)), context)
        return f.flatten(1).sum(1) + _sum(u.square()) / (2 * self.base_scale**2)

    def score(self, x: Tensor, context: Context = None) -> Tensor:
        """∇ ln p(x | context) = -∇E, (B, *E); differentiable in the weights."""
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            return -torch.autograd.grad(self.energy(x, context).sum(), x, create_graph=True)[0]

    def loss(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Loss:
        """The objective of examples x (B, *E), value (B,).

        The value of contrastive divergence is a difference of energies: its gradient is that of
        -ln p, its level says nothing.
        """
        check_examples(x, self.event_shape, context)
        if self.objective == "contrastive":
            return self._contrastive(x, context, generator)
        if self.objective == "denoising":
            eps = randn(x.shape, generator, device=x.device, dtype=x.dtype)
            score = self.score(x + self.noise * eps, context)
            value = 0.5 * _sum((self.noise * score + eps).square())
            return Loss(value, {"denoising": value.detach()})
        x = x.detach().requires_grad_()
        score = self.score(x, context)
        if self.objective == "sliced":
            v = randn(x.shape, generator, device=x.device, dtype=x.dtype)
            (along,) = torch.autograd.grad((score * v).sum(), x, create_graph=True)
            trace = _sum(along * v)
        else:
            trace = divergence(score, x)
        value = 0.5 * _sum(score.square()) + trace
        return Loss(value, {"score_squared": _sum(score.square()).detach()})

    def _contrastive(self, x: Tensor, context: Context, generator: Generators | None) -> Loss:
        chains = self.negatives(x, context, generator)
        negative = chains.x
        positive_energy = self.energy(x, context)
        negative_energy = self.energy(negative, context)
        value = positive_energy - negative_energy
        if self.magnitude:
            squares = positive_energy.square() + negative_energy.square()
            value = value + self.magnitude * squares
        terms = {"positive": positive_energy.detach(), "negative": negative_energy.detach()}
        terms["acceptance"] = chains.acceptance
        return Loss(value, terms)

    @torch.no_grad()
    def negatives(self, x: Tensor, context: Context, generator: Generators | None) -> Chains:
        """Model examples like x, from chains that go on from the buffer, which they update."""
        start = self.base_scale * randn(x.shape, generator, device=x.device, dtype=x.dtype)
        slots = None
        if len(self.replay) and context is None:
            u = rand((len(x), 2), generator, device=x.device)
            slots = (u[:, 0] * len(self.replay)).long().clamp(max=len(self.replay) - 1)
            if not self.filled:
                noise = torch.Generator().manual_seed(int(u[0, 0] * 2**24))
                fresh = torch.randn(self.replay.shape, generator=noise, dtype=self.replay.dtype)
                self.replay.copy_(self.base_scale * fresh)
                self.filled.fill_(True)
            again = (u[:, 1] < self.restart).reshape(-1, *[1] * (x.dim() - 1))
            start = torch.where(again, start, self.replay[slots].to(start))
        chains = langevin(
            lambda u: -self.energy_at(u, context),
            start,
            step=self.chain_step,
            steps=self.chain_steps,
            adjust=True,  # the gradient is biased by nothing but the chains' length
            generator=generator,
        )
        if slots is not None and self.training:
            self.replay[slots] = chains.x.to(self.replay)
        return dataclasses.replace(chains, x=self.to_data(chains.x))

    def sample(
        self,
        shape: Sequence[int] = (),
        context: Context = None,
        *,
        sampler: str | Mapping[str, Any] | None = None,
        guidance: Any = None,
        generator: Generators | None = None,
    ) -> Tensor:
        """Draw by Markov chains from the base, one for each draw: (*S, B, *E).

        Args:
            shape: S.
            context: condition, batch B.
            sampler: "mala", "langevin", "hmc", or {"name": ..., "steps": ..., "step": ...}.
            guidance: none is known for this family.
            generator: one stream, or prod(S) · B of them, S-major.
        """
        if guidance is not None:
            raise AleatorError("energy models know no guidance")
        draws, batch = math.prod(shape), context_batch(context)
        repeated = expand_context(context, draws)
        like = self.replay
        start = self.base_scale * randn(
            (draws * (batch or 1), *self.event_shape),
            generator,
            device=like.device,
            dtype=next(self.parameters(), like).dtype,
        )
        options = dict(self.sampler if sampler is None else _sampler(sampler))
        run = hmc if options.pop("name") == "hmc" else langevin
        u = run(lambda u: -self.energy_at(u, repeated), start, generator=generator, **options).x
        return self.to_data(u).reshape(
            *shape, *(() if batch is None else (batch,)), *self.event_shape
        )

    def log_prob(
        self,
        x: Tensor,
        context: Context = None,
        *,
        generator: Generators | None = None,
        chains: int = 256,
        temperatures: int = 200,
        **options: Any,
    ) -> Density:
        """-E(x) - ln Ẑ, with ln Ẑ by annealed importance sampling, (B,) nats.

        Args:
            x: (B, *E).
            context: condition, batch B; each has its own Z, estimated by its own chains.
            generator: stream of the chains.
            chains: how many, for each context.
            temperatures: of the annealing.
            options: further ones of `core.mcmc.annealed_importance`.

        Returns:
            kind "estimate": Ẑ is unbiased, its logarithm too small by about stderr² / 2.
        """
        check_examples(x, self.event_shape, context)
        batch = 1 if context is None else len(x)
        repeated = expand_context(context, chains)
        log_w = annealed_importance(
            lambda u: -self.energy_at(u, repeated),
            x.new_zeros(chains * batch, *self.event_shape),
            scale=self.base_scale,
            temperatures=temperatures,
            generator=generator,
            **options,
        ).log_w.reshape(chains, batch)
        log_z = log_w.logsumexp(0) - math.log(chains)
        stderr = (log_w - log_z).exp().std(0) / math.sqrt(chains)
        if self.fitted:
            log_z = log_z + self.base_factor.diagonal().log().sum().to(log_z)
        with torch.no_grad():
            value = -self.energy(x, context) - log_z
        return Density(value, "estimate", stderr.expand_as(value))


def divergence(field: Tensor, x: Tensor) -> Tensor:
    """∇·field of field(x) (B, *E), (B,), by one backward pass for each dimension."""
    flat = field.flatten(1)
    total = flat.new_zeros(len(flat))
    for i in range(flat.shape[1]):
        (row,) = torch.autograd.grad(flat[:, i].sum(), x, create_graph=True)
        total = total + row.flatten(1)[:, i]
    return total


def _network(
    energy: nn.Module | Mapping[str, Any] | None, event_shape: Sequence[int]
) -> nn.Module:
    if isinstance(energy, nn.Module):
        return energy
    from core.registry import build_net

    return build_net({"name": "mlp", "out_shape": (1,), **(energy or {})}, tuple(event_shape))


def _sampler(config: str | Mapping[str, Any]) -> dict[str, Any]:
    options = {"name": config} if isinstance(config, str) else dict(config)
    name = options.get("name")
    if name not in SAMPLERS:
        raise AleatorError(f"unknown sampler {name!r}; known: {', '.join(sorted(SAMPLERS))}")
    known = set(SAMPLERS[name]) | {"name"} | ({"temperature"} if name == "langevin" else set())
    if unknown := set(options) - known:
        raise AleatorError(f"sampler {name} has no option {sorted(unknown)[0]!r}")
    return {**SAMPLERS[name], **options}


def _sum(value: Tensor) -> Tensor:
    return value.flatten(1).sum(1)
