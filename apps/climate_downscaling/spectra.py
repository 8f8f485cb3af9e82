r"""Radial power spectra: does a field have the variance of nature at every scale?

    P(k) = mean over { (k_y, k_x) : round(|k|) = k } of |F[h · (x − x̄)]|²,   k = 1, ..., n/2 − 1

with a symmetric Hann window h and wavenumbers in cycles over n cells, n the smaller side, so that
rectangular domains are isotropic. The mean over k of the squared ratio of two spectra in decibels
is the log-spectral distance.
"""

from __future__ import annotations

import torch
from torch import Tensor


def radial_power(fields: Tensor, valid: Tensor | None = None) -> Tensor:
    """Power at the radial wavenumbers 1, ..., n/2 - 1 of each field.

    Args:
        fields: (..., H, W).
        valid: bool, broadcastable to `fields`: cells that count; the others stand at the mean of
            those, which leaves a window of the valid cells' shape. None if all do.

    Returns:
        (..., K) float64, in the unit of the data squared, up to a constant of the grid.
    """
    x = fields.double()
    height, width = x.shape[-2:]
    if valid is None:
        x = x - x.mean((-2, -1), keepdim=True)
    else:
        valid = valid.expand(x.shape)
        kept = torch.where(valid, x, 0.0)
        mean = kept.sum((-2, -1), keepdim=True) / valid.sum((-2, -1), keepdim=True)
        x = torch.where(valid, x - mean, 0.0)
    hann = [torch.hann_window(s, periodic=False, dtype=torch.float64) for s in (height, width)]
    power = torch.fft.fft2(x * torch.outer(*hann)).abs().square().flatten(-2)
    rings = _rings(height, width)
    total = power.new_zeros((*power.shape[:-1], int(rings.max()) + 1))
    total.index_add_(-1, rings, power)
    return (total / torch.bincount(rings))[..., 1 : min(height, width) // 2]


def radial_spectrum(fields: Tensor) -> Tensor:
    """Mean over time of the power of (T, H, W) fields, (K,) float64; see `radial_power`."""
    return radial_power(fields).mean(0)


def wavelengths(height: int, width: int) -> Tensor:
    """Cells per wave at each wavenumber of `radial_power`, (K,) float64."""
    n = min(height, width)
    return n / torch.arange(1, max(1, n // 2), dtype=torch.float64)


def distance(spectrum: Tensor, truth: Tensor) -> float:
    r"""Log-spectral distance of two mean spectra (K,), in dB.

        LSD = sqrt( mean_k (10 log_10 P_x(k) / P_y(k))² )

    NaN where there is no wavenumber (grids of fewer than four cells a side) or no data.
    """
    return (10 * torch.log10(spectrum / truth)).square().mean().sqrt().item()


def log_spectral_distance(fields: Tensor, truth: Tensor) -> float:
    """Log-spectral distance of fields (T, H, W) from the truth (T', H, W), in dB."""
    return distance(radial_spectrum(fields), radial_spectrum(truth))


def _rings(height: int, width: int) -> Tensor:
    """Rounded radial wavenumber of every element of the transform, (H W,)."""
    n = min(height, width)
    k_y, k_x = (torch.fft.fftfreq(size, dtype=torch.float64) * n for size in (height, width))
    return (k_y[:, None].square() + k_x.square()).sqrt().round().long().flatten()
