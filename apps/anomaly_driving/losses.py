r"""What training minimises: known pixels by their class, negatives towards not knowing.

    L = CE(known) + β_u · D(p(y|x), uniform) + β_o · BCE(d_out) + β_e · softplus(log p̂(x) - m)
        + β_f · softplus(f - log p̂(x)) + β_k · KL(p_start(y|x₀) ‖ p(y|x))
        + β_h · huber(log p̂(x) - log p̂_start(x))

The second and the fourth term act on pasted negatives: the divergence D from the uniform law
(Jensen–Shannon, or the cross-entropy KL(u ‖ p) up to a constant), and a soft hinge that lowers
log p̂ = logsumexp of the logits below a margin m, which energy and max-logit scores feel.
The cross-entropy does not feel log p̂: a shift of all logits is free. The floor f holds it up on
known pixels, so that a known tree that looks like a negative's grain does not sink with it. The
term of β_k acts on known pixels that nothing was pasted on: a training that goes on from a model
keeps what that model said of the picture x₀ before it was pasted into and relit. Softmax and
log p̂ are independent coordinates of the logits (s = log p + log p̂), so that the classes may be
kept of one model and the density be held, on all pixels, at that of another.
References: Grcić, Bevandić, Kalafatić, Šegvić (2021) arXiv:2112.12833 (Jensen–Shannon); Grcić,
Bevandić, Šegvić (2022) arXiv:2207.02606 (d_out, log p̂); Hendrycks et al. (2019) arXiv:1812.04606;
Liu et al. (2020) arXiv:2010.03759 (an energy bounded on both sides); Li, Hoiem (2016)
arXiv:1606.09282 (learning without forgetting).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from core.errors import AleatorError


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms.

    Attributes:
        uniform: β_u, on negatives.
        divergence: D: "jsd", or "cross_entropy" to the uniform law.
        d_out: β_o, on all pixels, both sides weighed alike up to `balance`.
        balance: most that a negative pixel counts against a known one in the d_out term.
        energy: β_e, on negatives.
        margin: m.
        raised: β_f, on known pixels; 0 to push them up by nothing but their class.
        floor: f.
        keep: β_k, on known pixels, if the training goes on from a model; 0 for a free hand.
        keep_of: folder of the model whose answers are kept; that gone on from if None.
        hold: β_h, on all pixels; 0 to leave log p̂ to the other terms.
        hold_of: folder of the model whose log p̂ is held; that gone on from if None.
        class_power: classes count by share^-power in the cross-entropy; 0 for alike.
    """

    uniform: float = 0.5
    divergence: Literal["jsd", "cross_entropy"] = "jsd"
    d_out: float = 0.5
    balance: float = 4.0
    energy: float = 0.1
    margin: float = 0.0
    raised: float = 0.0
    floor: float = 4.0
    keep: float = 0.0
    keep_of: str | None = None
    hold: float = 0.0
    hold_of: str | None = None
    class_power: float = 0.25

    def __post_init__(self) -> None:
        for name in ("uniform", "d_out", "energy", "raised", "keep", "hold", "class_power"):
            if not getattr(self, name) >= 0:
                raise AleatorError(f"loss.{name}={getattr(self, name)}: it must not be negative")
        if self.balance <= 0:
            raise AleatorError(f"loss.balance={self.balance}: it must be positive")


def known_cross_entropy(
    logits: Tensor, labels: Tensor, void: int, weights: Tensor | None
) -> Tensor:
    """Cross-entropy of known pixels, (B,): each example's share of the batch mean times B.

    Args:
        logits: (B, K, H, W).
        labels: (B, H, W).
        void: id that does not count.
        weights: (K,) of the classes.
    """
    ignored = labels == void
    safe = torch.where(ignored, 0, labels)
    each = F.cross_entropy(logits, safe, reduction="none")
    if weights is not None:
        each = each * weights.to(each)[safe]
    return mean_of(each, ~ignored)


def uniform_divergence(logits: Tensor, kind: str) -> Tensor:
    r"""How far the softmax (B, K, H, W) is from saying nothing, (B, H, W), in nats.

    JSD(p, u) = H((p + u) / 2) - H(p) / 2 - H(u) / 2, or CE = -Σ_k log p_k / K.
    """
    log_p = logits.log_softmax(1)
    if kind == "cross_entropy":
        return -log_p.mean(1)
    k = logits.shape[1]
    p = log_p.exp()
    mixed = 0.5 * (p + 1 / k)
    entropy_mixed = -(mixed * mixed.log()).sum(1)
    entropy_p = -(p * log_p).sum(1)
    return entropy_mixed - 0.5 * entropy_p - 0.5 * math.log(k)


def outlier_cross_entropy(d_out: Tensor, negative: Tensor, known: Tensor, most: float) -> Tensor:
    """Binary cross-entropy of the outlier head, (B,), negatives weighed up to `most`.

    Args:
        d_out: (B, H, W) logits.
        negative: bool (B, H, W), pasted and unknown.
        known: bool (B, H, W), known, or pasted and known.
        most: see `LossConfig.balance`.
    """
    each = F.binary_cross_entropy_with_logits(d_out, negative.to(d_out), reduction="none")
    ratio = known.sum() / negative.sum().clamp_min(1)
    weight = torch.where(negative, ratio.clamp(1.0, most).to(each), 1.0)
    return mean_of(each * weight, negative | known)


def raised_density(logits: Tensor, margin: float) -> Tensor:
    """softplus(logsumexp - margin), (B, H, W): what a negative's unnormalised density costs."""
    return F.softplus(logits.logsumexp(1) - margin)


def sunken_density(logits: Tensor, floor: float) -> Tensor:
    """softplus(floor - logsumexp), (B, H, W): what a known pixel's costs."""
    return F.softplus(floor - logits.logsumexp(1))


def forgotten(logits: Tensor, before: Tensor) -> Tensor:
    """KL(p_before ‖ p) of the softmax of logits (B, K, H, W), (B, H, W), in nats."""
    log_before = before.log_softmax(1)
    return (log_before.exp() * (log_before - logits.log_softmax(1))).sum(1)


def moved_density(logits: Tensor, before: Tensor) -> Tensor:
    """Huber's function of the change of logsumexp between logits (B, K, H, W), (B, H, W)."""
    return F.smooth_l1_loss(logits.logsumexp(1), before.logsumexp(1), reduction="none")


def mean_of(each: Tensor, where: Tensor) -> Tensor:
    """Share of each example (B,) in the mean of `each` (B, H, W) over `where`, times B.

    Its mean over the batch is the mean over all chosen pixels; zero if there are none.
    """
    count = where.sum().clamp_min(1)
    return len(each) * (each * where).flatten(1).sum(1) / count
