r"""How unexpected is a pixel? One function a score, from what the network says of an image.

With logits s_k of K known classes, p = softmax(s), and d the logit of the outlier head:

    msp            1 - max_k p_k                     Hendrycks and Gimpel (2017) arXiv:1610.02136
    max_logit      -max_k s_k                        Hendrycks et al. (2022) arXiv:1911.11132
    entropy        -sum_k p_k ln p_k
    energy         -ln sum_k exp s_k                 Liu et al. (2020) arXiv:2010.03759
    jsd            -JS(p || uniform)                 Grcić et al. (2021) arXiv:2112.12833
    d_out          d
    hybrid         ln sigmoid(d) - ln sum_k exp s_k  Grcić et al. (2022) arXiv:2207.02606

Higher is always more unexpected. Nothing is normalised by image: scores of different frames are
compared with one another. Scores that are fitted to known pixels first are in `feature_scores`;
names joined by + are ensembles, the mean of standardised scores; `NAME@segments` is the mean of a
score over segments of the image (`segments`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from apps.anomaly_driving.augment import blurred
from apps.anomaly_driving.model import Outputs
from apps.anomaly_driving.segmenter import nearest
from core.errors import AleatorError

DEFAULT = ("msp", "max_logit", "entropy", "energy", "jsd", "d_out", "hybrid")
"""Judged by `benchmark` if nothing else is asked for, as far as the model has what they need."""

SEGMENTS, SMOOTH = "@segments", "@smooth"
AFTER = (SEGMENTS, SMOOTH)
"""What can be done with a score after the network: "energy@smooth"."""
SMOOTHING = 1 / 120
"""Standard deviation of the Gaussian of `@smooth`, as a share of the input's longer side."""


class Fitted(Protocol):
    """A score that has been fitted to known pixels."""

    def __call__(self, outputs: Outputs) -> Tensor:
        """The score (B, H, W), higher = more unexpected."""
        ...


def msp(outputs: Outputs) -> Tensor:
    """One minus the probability of the most likely class, (B, H, W)."""
    # the sum of the others: 1 - p_max would be 0 from about 17 logits on
    top, label = outputs.logits.max(1, keepdim=True)
    others = (outputs.logits - top).exp().scatter(1, label, 0.0).sum(1)
    return others / (1.0 + others)


def max_logit(outputs: Outputs) -> Tensor:
    """Minus the greatest logit, (B, H, W)."""
    return -outputs.logits.amax(1)


def entropy(outputs: Outputs) -> Tensor:
    """Shannon entropy of the softmax in nats, (B, H, W)."""
    logs = F.log_softmax(outputs.logits, 1)
    return -(logs.exp() * logs).sum(1)


def energy(outputs: Outputs) -> Tensor:
    """Minus the log-partition function, (B, H, W)."""
    return -outputs.logits.logsumexp(1)


def jensen_shannon(outputs: Outputs) -> Tensor:
    r"""Minus the Jensen-Shannon divergence of the softmax from uniform in nats, (B, H, W).

    JS(p || u) = H((p + u) / 2) - (H(p) + ln K) / 2, between 0 (uniform) and less than ln 2.
    """
    logs = F.log_softmax(outputs.logits, 1)
    p = logs.exp()
    k = logs.shape[1]
    mixed = (p + 1.0 / k) / 2
    between = -(mixed * mixed.log()).sum(1)
    own = -(p * logs).sum(1)
    return (own + math.log(k)) / 2 - between


def d_out(outputs: Outputs) -> Tensor:
    """Logit of the outlier head, (B, H, W).

    Raises:
        AleatorError: the model has no such head.
    """
    if outputs.d_out is None:
        raise AleatorError(
            "this model has no outlier head: d_out and hybrid need a model that was trained with "
            "negatives; choose energy or jsd"
        )
    return outputs.d_out


def hybrid(outputs: Outputs) -> Tensor:
    """Log of p(d_out | x) / p̂(x) up to a constant, (B, H, W).

    Raises:
        AleatorError: the model has no outlier head.
    """
    return F.logsigmoid(d_out(outputs)) + energy(outputs)


@dataclass(frozen=True)
class Score:
    """An entry of the registry.

    Attributes:
        function: outputs -> (B, H, W), higher = more unexpected; None if it must be fitted.
        head: needs the outlier head.
        features: needs the decoder's features.
        image: is of the image, not of what the network says of it.
    """

    function: Callable[[Outputs], Tensor] | None
    head: bool = False
    features: bool = False
    image: bool = False


SCORES: Mapping[str, Score] = {
    "msp": Score(msp),
    "max_logit": Score(max_logit),
    "entropy": Score(entropy),
    "energy": Score(energy),
    "jsd": Score(jensen_shannon),
    "d_out": Score(d_out, head=True),
    "hybrid": Score(hybrid, head=True),
    "std_max_logit": Score(None),
    "mahalanobis": Score(None, features=True),
    "knn": Score(None, features=True),
    "flow": Score(None, features=True),
    "reconstruction": Score(None, image=True),
}


def parse(names: str | Sequence[str]) -> tuple[str, ...]:
    """Names "msp, energy+hybrid" as a tuple, in order, once each.

    Raises:
        AleatorError: no name, or an unknown one; with near names.
    """
    listed = names.split(",") if isinstance(names, str) else list(names)
    found: list[str] = []
    for entry in (text.strip().replace("-", "_") for text in listed):
        if not entry:
            continue
        if "@" in bare(entry):
            raise AleatorError(
                f"score {entry}: what follows the name can only be {' or '.join(AFTER)}"
            )
        for part in parts(entry):
            nearest("score", part, SCORES)
            if SCORES[part].image and "+" in entry:
                raise AleatorError(f"score {entry}: {part} cannot be a member of an ensemble")
        if entry not in found:
            found.append(entry)
    if not found:
        raise AleatorError(f"no score is named; known: {', '.join(SCORES)}")
    return tuple(found)


def parts(name: str) -> list[str]:
    """Members of an ensemble "a+b", or the score itself."""
    return [part.strip() for part in bare(name).split("+")]


def bare(name: str) -> str:
    """The name without what is done after the network, e.g. "@segments"."""
    for suffix in AFTER:
        name = name.removesuffix(suffix)
    return name


def is_fitted(name: str) -> bool:
    """Whether the score needs a fit to known pixels: ensembles do, for their scales."""
    return "+" in name or SCORES[bare(name)].function is None


def resolve(name: str, fits: Mapping[str, Fitted]) -> Callable[[Outputs], Tensor]:
    """The function of a score.

    Args:
        name: as of `parse`.
        fits: fitted scores of the model by name.

    Raises:
        AleatorError: it has to be fitted first.
    """
    name = bare(name)
    if not is_fitted(name):
        function = SCORES[name].function
        assert function is not None
        return function
    if name not in fits:
        raise AleatorError(
            f"score {name} has to be fitted to known images first: calibrate FOLDER --model DIR "
            f"--fit TRAINING_FOLDER --scores {name}"
        )
    return fits[name]


def available(names: Sequence[str], *, head: bool, fits: Mapping[str, Fitted]) -> tuple[str, ...]:
    """Those of the scores that a model can give."""
    return tuple(
        name
        for name in names
        if (bare(name) in fits if is_fitted(name) else head or not SCORES[bare(name)].head)
    )


def predicted_classes(outputs: Outputs) -> Tensor:
    """Most likely known class of each pixel, (B, H, W)."""
    return outputs.logits.argmax(1)


def smoothed(score: Tensor) -> Tensor:
    """A score (B, H, W) blurred: an object is a surface, what is uncertain at a border a line."""
    return blurred(score[:, None], SMOOTHING * max(score.shape[1:]))[:, 0]


def enlarged(score: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """A score (B, h, w) on the grid of features, bilinear, to (B, H, W) pixels."""
    return F.interpolate(score[:, None], size=tuple(size), mode="bilinear")[:, 0]
