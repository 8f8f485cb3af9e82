r"""Diagnostics of Markov chains: split R̂ and effective sample size.

    R̂   = sqrt(((n-1)/n W + B/n) / W)          W within, B between half-chains of length n
    ESS = M n / (1 + 2 Σ_t ρ_t)                  ρ_t pooled, summed by Geyer's initial sequence

References: Gelman et al., Bayesian Data Analysis (2013), chapter 11; Geyer (1992)
doi:10.1214/ss/1177011137; Vehtari et al. (2021) arXiv:1903.08008.
"""

from __future__ import annotations

import torch
from torch import Tensor

from core.errors import AleatorError


def split_r_hat(draws: Tensor) -> Tensor:
    """Split R̂ of draws (S, N, *E) of N chains, (*E); 1 where the chains agree.

    Raises:
        AleatorError: fewer than four draws.
    """
    within, pooled = _variances(_halves(draws))
    return (pooled / within).sqrt()


def effective_sample_size(draws: Tensor) -> Tensor:
    """How many independent draws would know the mean as well, (*E); draws (S, N, *E).

    Raises:
        AleatorError: fewer than four draws.
    """
    halves = _halves(draws)
    n, chains = halves.shape[:2]
    _, pooled = _variances(halves)
    centred = halves - halves.mean(0)
    # Autocovariances of all lags by one FFT, padded so that none wraps around.
    spectrum = torch.fft.rfft(centred, n=2 * n, dim=0)
    covariance = torch.fft.irfft(spectrum.abs().square(), n=2 * n, dim=0)[:n].mean(1) / n
    within = covariance[0] * n / (n - 1)
    rho = 1 - (within - covariance * n / (n - 1)) / pooled
    rho[0] = 1.0
    even = n - n % 2
    pairs = rho[0:even:2] + rho[1:even:2]
    positive = (pairs > 0).to(pairs).cumprod(0)
    monotone = pairs.cummin(0).values
    time = (2 * (monotone * positive).sum(0) - 1).clamp(min=1 / (chains * n))
    return chains * n / time


def _halves(draws: Tensor) -> Tensor:
    """(S, N, *E) -> (S // 2, 2 N, *E)."""
    if draws.dim() < 2 or draws.shape[0] < 4:
        raise AleatorError(f"draws of shape {tuple(draws.shape)}; (S, N, *E) with S ≥ 4 is needed")
    n = draws.shape[0] // 2
    return torch.cat([draws[:n], draws[-n:]], 1)


def _variances(halves: Tensor) -> tuple[Tensor, Tensor]:
    """Variance within chains, and the pooled estimate of the target's."""
    n = halves.shape[0]
    within = halves.var(0).mean(0)
    return within, (n - 1) / n * within + halves.mean(0).var(0)
