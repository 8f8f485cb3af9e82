r"""Splits as normal scores: what a law says of a split, as one number that is N(0, 1).

    u = F(E_a | E),   z = Φ⁻¹(u)

with F the distribution function of the law of `splits`, in the order: nothing to a, shared, all to
a. A whole outcome is an interval of u, in which a place is drawn; from any z there is one way
back, and it gives the split again that z was made of. Where the law is right, z knows nothing of
the energies: what is left to learn is how splits go together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from apps.hep_simulation.splits import LEAST, mixture

FARTHEST = 6.0
"""Greatest |z|."""
INSIDE = 1e-4
"""A drawn place keeps this share of its interval from the ends: rounding does not cross them."""
HALVINGS = 44
"""Of the interval that a share is sought in, logits of it: to the last digit."""


def to_normal(
    parameters: Tensor, a: Tensor, b: Tensor, uniform: Tensor, threshold: float
) -> Tensor:
    """Normal scores of splits into a and b.

    Args:
        parameters: (M, 3 K + 2) of the law.
        a: (M,) energy of the first part, MeV: 0 or at least the threshold.
        b: (M,) of the other; not both are 0.
        uniform: (M,) in [0, 1): the place in its interval of a whole outcome.
        threshold: τ, MeV.

    Returns:
        (M,) z, in the type of a.
    """
    shared = (a > 0) & (b > 0)
    law = _Law(parameters, shared | (a + b >= 2 * threshold))
    least = LEAST * threshold
    y = (a.double() - threshold).clamp(min=least).log()
    y = y - (b.double() - threshold).clamp(min=least).log()
    place = INSIDE + (1 - 2 * INSIDE) * uniform.double()
    within = law.none + law.both * law.below(y).clamp(INSIDE**2, 1 - INSIDE**2)
    whole = torch.where(a > 0, 1 - law.all * (1 - place), law.none * place)
    u = torch.where(shared, within, whole)
    return torch.special.ndtri(u).clamp(-FARTHEST, FARTHEST).to(a)


def from_normal(
    parameters: Tensor, energy: Tensor, z: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    """Splits of given scores; undoes `to_normal`.

    Args:
        parameters: (M, 3 K + 2) of the law.
        energy: (M,) E > 0, MeV.
        z: (M,).
        threshold: τ, MeV.

    Returns:
        (M,) E_a and (M,) E_b, each 0 or at least the threshold; they add up to E within rounding.
    """
    law = _Law(parameters, energy >= 2 * threshold)
    u = torch.special.ndtr(z.double())
    whole_a, whole_b = u >= 1 - law.all, u < law.none
    # where nothing can be shared, one of the two has it all
    whole_a = whole_a | ((law.both <= 0) & ~whole_b)
    y = law.quantile(((u - law.none) / law.both.clamp(min=1e-30)).clamp(1e-9, 1 - 1e-9))
    full = energy.double()
    excess = (full - 2 * threshold).clamp(min=0)
    a, b = (threshold + excess / (1 + v.exp()) for v in (-y, y))
    a = torch.where(whole_a, full, torch.where(whole_b, 0.0, a))
    b = torch.where(whole_a, 0.0, torch.where(whole_b, full, b))
    return a.to(energy), b.to(energy)


class _Law:
    """Probabilities (M,) of the three outcomes, and the distribution of the shared ones."""

    def __init__(self, parameters: Tensor, both: Tensor) -> None:
        logits, mean, log_scale = mixture(parameters, both)
        weight = logits.double().softmax(-1)
        self.all, self.none = weight[:, 0], weight[:, 1]
        self.both = weight[:, 2:].sum(-1)
        self.weight = weight[:, 2:] / self.both.clamp(min=1e-300)[:, None]
        self.mean, self.scale = mean.double(), log_scale.double().exp()

    def below(self, y: Tensor) -> Tensor:
        """Probability (M,) that the logit of a's share is below y (M,)."""
        return (self.weight / (1 + ((self.mean - y[:, None]) / self.scale).exp())).sum(-1)

    def quantile(self, p: Tensor) -> Tensor:
        """The logit below which are p (M,): between those of the components."""
        each = self.mean + self.scale * torch.logit(p)[:, None]
        low, high = each.amin(-1), each.amax(-1)
        for _ in range(HALVINGS):
            middle = 0.5 * (low + high)
            under = self.below(middle) < p
            low, high = torch.where(under, middle, low), torch.where(under, high, middle)
        return 0.5 * (low + high)
