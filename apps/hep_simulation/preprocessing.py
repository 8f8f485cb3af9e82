r"""Energy-conserving preprocessing: exactly invertible, zeros and threshold handled.

    u_0 = E_tot / E_inc,   u_l = E_l / Σ_{m ≥ l} E_m            (Krause and Shih 2021)
    z   = ln(x / τ) + 1 if x ≥ τ, else uniform in [-2, 0)       (x a voxel, τ the threshold)

Half-way between, z < 1/2 is read as an empty voxel, so that noise on empty voxels costs nothing on
the way back. The inverse scales the voxels of each layer to the layer's energy, which keeps every
E_l exactly; a voxel that falls below the threshold by it is emptied and its energy shared out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EMPTY_BELOW = 0.5


def ratios(energies: Tensor, incident: Tensor) -> Tensor:
    """Layer energies (B, L) and incident energies (B,) to (B, L) ratios u_0 and u_1..u_{L-1}."""
    left = energies.flip(1).cumsum(1).flip(1)
    share = torch.where(left > 0, energies / left.clamp(min=1e-30), 0.0)
    return torch.cat([(left[:, 0] / incident)[:, None], share[:, :-1]], 1)


def from_ratios(u: Tensor, incident: Tensor) -> Tensor:
    """Undo `ratios`: (B, L) and (B,) to layer energies (B, L)."""
    total, share = u[:, 0] * incident, u[:, 1:]
    kept = torch.cat([torch.ones_like(share[:, :1]), (1 - share).cumprod(1)], 1)
    share = torch.cat([share, torch.ones_like(share[:, :1])], 1)
    return total[:, None] * kept * share


class Shares(nn.Module):
    """Voxels (B, L, A, R) to standardised images (B, L, R, A), and back, given layer energies."""

    mean: Tensor
    scale: Tensor

    def __init__(self, layers: int, sectors: int, rings: int, threshold: float) -> None:
        """Threshold τ in MeV."""
        super().__init__()
        self.threshold = threshold
        self.register_buffer("mean", torch.zeros(layers, rings, 1))
        self.register_buffer("scale", torch.ones(layers, rings, 1))

    def raw(self, x: Tensor, uniform: Tensor) -> Tensor:
        """Z before it is standardised, (B, L, R, A); both arguments are (B, L, A, R)."""
        filled = (x.clamp(min=self.threshold) / self.threshold).log() + 1
        return torch.where(x >= self.threshold, filled, 2 * uniform - 2).transpose(2, 3)

    def fit(self, x: Tensor, uniform: Tensor) -> None:
        """Standardise by training showers (B, L, A, R)."""
        z = self.raw(x, uniform)
        self.mean = z.mean((0, 3), keepdim=True)[0]
        self.scale = z.std((0, 3), keepdim=True)[0].clamp(min=0.1)

    def forward(self, x: Tensor, uniform: Tensor) -> Tensor:
        """To images."""
        return (self.raw(x, uniform) - self.mean) / self.scale

    def inverse(self, z: Tensor, energies: Tensor) -> Tensor:
        """To voxels whose layers have the energies (B, L), each 0 or at least the threshold."""
        value = (z * self.scale + self.mean).transpose(2, 3)
        weight = torch.where(value >= EMPTY_BELOW, (value - 1).clamp(0, 20).exp(), 0.0).flatten(2)
        # a layer with energy has at least its most likely voxel
        best = value.flatten(2).argmax(-1, keepdim=True)
        none = weight.sum(-1, keepdim=True) <= 0
        weight = weight.scatter(-1, best, weight.gather(-1, best) + none.to(weight))
        return self._shared(weight, energies).reshape(value.shape)

    def _shared(self, weight: Tensor, energies: Tensor) -> Tensor:
        """Scale (B, L, V) to the energies, and empty what falls below the threshold by it."""
        largest = weight.argmax(-1, keepdim=True)
        for _ in range(weight.shape[-1]):
            scaled = weight * (energies / weight.sum(-1).clamp(min=1e-30))[..., None]
            low = (scaled > 0) & (scaled < self.threshold)
            low.scatter_(-1, largest, torch.zeros_like(largest, dtype=torch.bool))
            if not low.any():
                break
            weight = torch.where(low, 0.0, weight)
        return scaled
