r"""Log-densities by the probability-flow ODE.

Along dx/dt = u(x, t) the log-density obeys d/dt ln p_t(x_t) = -div u(x_t, t), hence

    ln p_0(x_0) = ln p_T(x_T) + ∫_0^T div u(x_t, t) dt.

The divergence is the exact trace of the Jacobian, or Hutchinson's estimate eᵀ J e with random
signs e held fixed along each trajectory: unbiased, with a standard error over probes.
References: Song et al. (2021) arXiv:2011.13456; Grathwohl et al. (2019) arXiv:1810.01367.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from core.errors import AleatorError
from core.model import Density
from core.paths import Path
from core.random import Generators, rand
from core.solvers.ode import odeint

Velocity = Callable[[Tensor], Tensor]


def flow_log_prob(
    denoise: Any,
    x: Tensor,
    *,
    path: Path,
    prior_std: float = 1.0,
    trace: str = "exact",
    probes: int = 8,
    log_snr_max: float = 14.0,
    generator: Generators | None = None,
    **solver: Any,
) -> Density:
    """Log-density of a path model.

    Args:
        denoise: (x_t, t) -> Posterior, context bound.
        x: (B, *E) examples.
        path: the forward process.
        prior_std: standard deviation of x_T.
        trace: "exact" (D backward passes an evaluation) or "hutchinson".
        probes: Hutchinson probes an example.
        log_snr_max: log-SNR at which the data are entered: the density is that of the data with
            noise of this level, exp(-log_snr_max / 2) of the signal.
        generator: stream of the probes.
        solver: options of `core.solvers.ode.odeint` (method, rtol, atol, steps).

    Returns:
        nats; "exact" up to the solver's tolerance, or "unbiased" with its standard error.

    Raises:
        AleatorError: unknown trace, or a tolerance out of reach.
    """
    if trace not in ("exact", "hutchinson"):
        raise AleatorError(f"unknown trace {trace!r}; known: exact, hutchinson")
    if trace == "hutchinson" and probes < 2:
        raise AleatorError(f"probes={probes}: a standard error needs at least two")
    batch, dims = len(x), math.prod(x.shape[1:])
    start = max(
        path.t_from_log_snr(torch.tensor(log_snr_max, dtype=torch.float64)).item(), path.t_min
    )
    signs = None
    if trace == "hutchinson":
        draw = rand((batch, probes, *x.shape[1:]), generator, device=x.device, dtype=x.dtype)
        signs = torch.where(draw < 0.5, -1.0, 1.0).to(x).transpose(0, 1)

    def field(t: float, state: Tensor) -> Tensor:
        x_t = state[:, :dims].reshape(x.shape)
        u, divergence = with_divergence(lambda y: denoise(y, t).velocity, x_t, signs)
        return torch.cat([u.reshape(batch, dims), divergence], 1)

    columns = 1 if signs is None else probes
    first = path.at(start).alpha * x.reshape(batch, dims)
    state = torch.cat([first, x.new_zeros(batch, columns)], 1)
    state = odeint(field, state, start, path.t_max, **{"rtol": 1e-6, "atol": 1e-6, **solver})
    x_end, gained = state[:, :dims], state[:, dims:]
    prior = -0.5 * (x_end / prior_std).square().sum(1)
    prior = prior - dims * (math.log(prior_std) + 0.5 * math.log(2 * math.pi))
    estimates = (prior + dims * math.log(path.at(start).alpha))[:, None] + gained
    if signs is None:
        return Density(estimates[:, 0], "exact")
    stderr = estimates.std(1) / math.sqrt(probes)
    return Density(estimates.mean(1), "unbiased", stderr)


def with_divergence(
    velocity: Velocity, x: Tensor, signs: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A velocity and its divergence.

    Args:
        velocity: (B, *E) -> (B, *E), example by example.
        x: (B, *E).
        signs: (K, B, *E) Hutchinson probes, or None for the exact trace.

    Returns:
        the velocity (B, *E), and its divergence (B, 1) or its K estimates (B, K).
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        u = velocity(x)
        if signs is None:
            directions = torch.eye(x[0].numel(), device=x.device, dtype=x.dtype)
            directions = directions.reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)
        else:
            directions = signs
        parts = []
        for i, direction in enumerate(directions):
            keep = i + 1 < len(directions)
            (vjp,) = torch.autograd.grad(u, x, direction, retain_graph=keep)
            parts.append((vjp * direction).flatten(1).sum(1))
    columns = torch.stack(parts, 1)
    return u.detach(), columns.sum(1, keepdim=True) if signs is None else columns
