r"""Markov chains on an unnormalised density, and how far to trust them.

    Langevin (ULA)   x ← x + (a/2) ∇ ln p(x) + √a ε        the noise is √a, not a: see `langevin`
    MALA             the same proposal, accepted with min(1, p(x') q(x|x') / (p(x) q(x'|x)))
    HMC              leapfrog of H(x, v) = -ln p(x) + |v|²/2, accepted with min(1, e^-ΔH)
    AIS              ln Z from weights along a path of tempered densities

Many chains run side by side: states are (N, *E), `log_p` maps them to (N,). References: Roberts
and Tweedie (1996) doi:10.2307/3318418; Neal (2011) arXiv:1206.1901; Hoffman and Gelman (2014)
arXiv:1111.4246 (dual averaging); Neal (2001) doi:10.1023/A:1008923215028 (AIS).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import AleatorError
from core.random import Generators, rand, randn

LogDensity = Callable[[Tensor], Tensor]
"""(N, *E) -> (N,) nats, up to a constant; differentiable."""


@dataclass(frozen=True)
class Chains:
    """What a sampler returns.

    Attributes:
        x: (N, *E) the last states.
        draws: (S, N, *E) the kept states.
        acceptance: (N,) mean probability of acceptance; ones where nothing is rejected.
        step: the step size that was used after adaptation.
    """

    x: Tensor
    draws: Tensor
    acceptance: Tensor
    step: float


def value_and_gradient(log_p: LogDensity, x: Tensor) -> tuple[Tensor, Tensor]:
    """Value ln p(x) (N,) and its gradient (N, *E), detached.

    Raises:
        AleatorError: `log_p` does not return one number for each state.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = log_p(x)
        if value.shape != x.shape[:1]:
            raise AleatorError(
                f"log-density of shape {tuple(value.shape)} for {len(x)} states; one number each "
                "is needed"
            )
        (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


def langevin(
    log_p: LogDensity,
    x: Tensor,
    *,
    step: float,
    steps: int,
    adjust: bool = False,
    keep: int = 0,
    temperature: float = 1.0,
    generator: Generators | None = None,
) -> Chains:
    r"""Langevin dynamics, unadjusted or with the Metropolis correction (MALA).

        x' = x + (a/2) ∇ ln p(x) + √(a τ) ε

    With noise a ε in place of √a ε the stationary variance would be a times too small. Unadjusted,
    the chain of N(0, 1) settles at variance 1 / (1 - a/4): exact only as a → 0.

    Args:
        log_p: unnormalised log-density.
        x: (N, *E) initial states.
        step: a > 0.
        steps: how many.
        adjust: accept or reject, so that p itself is stationary.
        keep: keep every so many states in `draws`; 0 for none.
        temperature: τ; 1 for p, less for its modes. Only without `adjust`.
        generator: one stream, or one for each chain.

    Returns:
        the states, draws and acceptance.

    Raises:
        AleatorError: an option out of range, a start of density zero, or a chain that diverged.
    """
    _check(step, steps, x)
    if adjust and temperature != 1:
        raise AleatorError("MALA samples p itself: temper log_p instead of giving a temperature")
    x = x.detach()
    value, gradient = _start(log_p, x)
    accepted, kept = torch.zeros_like(value), []
    for k in range(steps):
        noise = randn(x.shape, generator, device=x.device, dtype=x.dtype)
        proposal = x + 0.5 * step * gradient + math.sqrt(step * temperature) * noise
        new_value, new_gradient = value_and_gradient(log_p, proposal)
        if adjust:
            back = x - proposal - 0.5 * step * new_gradient
            log_ratio = new_value - value + _sum(0.5 * (noise.square() - back.square() / step))
            take, probability = _accept(log_ratio, generator)
            accepted += probability
            x = _where(take, proposal, x)
            value = torch.where(take, new_value, value)
            gradient = _where(take, new_gradient, gradient)
        else:
            x, value, gradient = proposal, new_value, new_gradient
            accepted += 1
        if keep and (k + 1) % keep == 0:
            kept.append(x)
    if not x.isfinite().all():
        raise AleatorError(f"Langevin with step {step:g} diverged; take a smaller one")
    return Chains(x, _stack(kept, x), accepted / steps, step)


def leapfrog(
    log_p: LogDensity, x: Tensor, v: Tensor, gradient: Tensor, *, step: float, length: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`length` leapfrog steps from (x, v): reversible, volume preserving, error O(step²).

    Args:
        log_p: unnormalised log-density.
        x: (N, *E) positions.
        v: (N, *E) momenta.
        gradient: ∇ ln p(x).
        step: of time.
        length: how many steps.

    Returns:
        positions, momenta, ln p and ∇ ln p there.
    """
    value = x.new_zeros(len(x))
    v = v + 0.5 * step * gradient
    for k in range(length):
        x = x + step * v
        value, gradient = value_and_gradient(log_p, x)
        v = v + (step if k < length - 1 else 0.5 * step) * gradient
    return x, v, value, gradient


def hmc(
    log_p: LogDensity,
    x: Tensor,
    *,
    step: float = 0.1,
    length: int = 10,
    steps: int,
    warmup: int = 0,
    target: float = 0.8,
    keep: int = 1,
    generator: Generators | None = None,
) -> Chains:
    """Hamiltonian Monte Carlo with the identity as mass.

    Args:
        log_p: unnormalised log-density.
        x: (N, *E) initial states.
        step: of the leapfrog; where dual averaging starts.
        length: leapfrog steps of a trajectory. The step of each trajectory is jittered by up to
            a tenth, so that none is locked to a period of the target.
        steps: trajectories after warm-up.
        warmup: trajectories over which the step size, one for all chains, is adapted.
        target: mean acceptance that the adaptation aims at.
        keep: keep every so many states; 0 for none.
        generator: one stream, or one for each chain. With warm-up the chains share a step size,
            and so depend on one another.

    Returns:
        the states, draws, acceptance after warm-up and the adapted step.

    Raises:
        AleatorError: an option out of range, or a start of density zero.
    """
    _check(step, steps, x)
    if length < 1 or warmup < 0 or not 0 < target < 1:
        raise AleatorError(f"hmc: length={length}, warmup={warmup}, target={target} out of range")
    x = x.detach()
    value, gradient = _start(log_p, x)
    adaptation = DualAveraging(step, target)
    accepted, kept = torch.zeros_like(value), []
    for k in range(warmup + steps):
        v = randn(x.shape, generator, device=x.device, dtype=x.dtype)
        jitter = 0.9 + 0.2 * math.modf(0.5 + k * 0.6180339887498949)[0]  # low discrepancy
        new_x, new_v, new_value, new_gradient = leapfrog(
            log_p, x, v, gradient, step=step * jitter, length=length
        )
        log_ratio = new_value - value + 0.5 * _sum(v.square() - new_v.square())
        take, probability = _accept(log_ratio, generator)
        x = _where(take, new_x, x)
        value = torch.where(take, new_value, value)
        gradient = _where(take, new_gradient, gradient)
        if k < warmup:
            step = adaptation.update(probability.mean().item())
            step = adaptation.final if k == warmup - 1 else step
            continue
        accepted += probability
        if keep and (k + 1 - warmup) % keep == 0:
            kept.append(x)
    return Chains(x, _stack(kept, x), accepted / steps, step)


class DualAveraging:
    """Step size for a target acceptance (Hoffman and Gelman 2014, section 3.2)."""

    def __init__(self, step: float, target: float) -> None:
        """Start at `step`, shrink towards ten times it."""
        self.target, self.mu = target, math.log(10 * step)
        self.error = self.log_final = 0.0
        self.count = 0

    def update(self, acceptance: float) -> float:
        """The next step size to try, given the acceptance of the last one."""
        self.count += 1
        rate = 1 / (self.count + 10)
        self.error += rate * (self.target - acceptance - self.error)
        log_step = self.mu - math.sqrt(self.count) / 0.05 * self.error
        weight = self.count**-0.75
        self.log_final += weight * (log_step - self.log_final)
        return math.exp(log_step)

    @property
    def final(self) -> float:
        """The averaged step size, to go on with."""
        return math.exp(self.log_final)


@dataclass(frozen=True)
class LogZ:
    """An estimate of a normalising constant.

    Attributes:
        value: ln Ẑ; Ẑ itself is unbiased.
        stderr: of ln Ẑ, by the delta method over chains.
        effective: (Σ w)² / Σ w², how many chains the estimate really rests on.
        x: (N, *E) final states.
        log_w: (N,) their log-weights: an importance sample of p.
    """

    value: float
    stderr: float
    effective: float
    x: Tensor
    log_w: Tensor


def annealed_importance(
    log_p: LogDensity,
    x: Tensor,
    *,
    scale: float = 1.0,
    temperatures: int = 100,
    step: float = 0.2,
    length: int = 5,
    generator: Generators | None = None,
) -> LogZ:
    r"""Estimate ln ∫ exp(log_p) by annealing from N(0, scale²) along p_0^(1-b) p^b, b from 0 to 1.

    Args:
        log_p: unnormalised log-density.
        x: (N, *E): its shape, device and type say what chains there are; values are not used.
        scale: standard deviation of the normalised start p_0; wider than p is safe.
        temperatures: values of b after 0; one HMC trajectory follows each.
        step: of the leapfrog, in units of `scale`.
        length: leapfrog steps of a trajectory.
        generator: one stream, or one for each chain.

    Raises:
        AleatorError: an option out of range, or fewer than two chains.
    """
    _check(step, temperatures, x)
    if len(x) < 2 or scale <= 0:
        raise AleatorError(f"AIS: {len(x)} chains, scale {scale}; two and a positive are needed")
    constant = 0.5 * math.log(2 * math.pi) + math.log(scale)

    def start(y: Tensor) -> Tensor:
        return _sum(-0.5 * (y / scale).square() - constant)

    x = scale * randn(x.shape, generator, device=x.device, dtype=x.dtype)
    log_w = x.new_zeros(len(x))
    # Geometric in the odds of b: dense at both ends, where the densities change fastest.
    grid = torch.linspace(-6, 6, temperatures + 1, dtype=torch.float64).sigmoid()
    grid = (grid - grid[0]) / (grid[-1] - grid[0])
    for before, after in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        with torch.no_grad():
            log_w += (after - before) * (log_p(x) - start(x))

        def tempered(y: Tensor, b: float = after) -> Tensor:
            return (1 - b) * start(y) + b * log_p(y)

        if after < 1:
            x = hmc(
                tempered,
                x,
                step=step * scale,
                length=length,
                steps=1,
                keep=0,
                generator=generator,
            ).x
    value = log_w.logsumexp(0).item() - math.log(len(x))
    relative = (log_w - value).exp()
    effective = (relative.sum().square() / relative.square().sum()).item()
    return LogZ(value, relative.std().item() / math.sqrt(len(x)), effective, x, log_w)


def _check(step: float, steps: int, x: Tensor) -> None:
    if not (step > 0 and math.isfinite(step)) or steps < 1:
        raise AleatorError(f"step={step}, steps={steps}: both must be positive")
    if not x.isfinite().all():
        raise AleatorError("initial states: NaN or infinite values")


def _start(log_p: LogDensity, x: Tensor) -> tuple[Tensor, Tensor]:
    value, gradient = value_and_gradient(log_p, x)
    if not (value.isfinite().all() and gradient.isfinite().all()):
        raise AleatorError("initial states: the log-density or its gradient is not finite there")
    return value, gradient


def _accept(log_ratio: Tensor, generator: Generators | None) -> tuple[Tensor, Tensor]:
    """Whether each chain moves, and the probability of it; no move to where p is NaN or zero."""
    log_ratio = log_ratio.nan_to_num(nan=-math.inf, posinf=-math.inf)
    shape = (len(log_ratio), 1)
    u = rand(shape, generator, device=log_ratio.device, dtype=log_ratio.dtype)[:, 0]
    probability = log_ratio.clamp(max=0).exp()
    return u < probability, probability


def _where(take: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(take.reshape(-1, *[1] * (old.dim() - 1)), new, old)


def _sum(value: Tensor) -> Tensor:
    return value.flatten(1).sum(1)


def _stack(kept: list[Tensor], x: Tensor) -> Tensor:
    return torch.stack(kept) if kept else x.new_empty(0, *x.shape)
