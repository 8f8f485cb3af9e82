r"""Can a classifier tell generated showers from real ones? AUC 1/2 if it cannot, 1 if always.

Gradient-boosted trees on 60 % of both samples, judged on the other 40 %, as often as there are
seeds. Trees see what a perceptron on a few thousand showers does not; scikit-learn grows them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.errors import AleatorError

TRAINING = 0.6
"""Share of the showers that the classifier learns from."""


@dataclass(frozen=True)
class Auc:
    """Area under the curve.

    Attributes:
        mean: over seeds; below 1/2 is chance, too.
        std: over seeds: of split and classifier, not of the samples.
        stderr: what a single test part's finite size leaves open (Hanley and McNeil 1982).
    """

    mean: float
    std: float
    stderr: float


def classifier_auc(
    generated: np.ndarray, reference: np.ndarray, seeds: tuple[int, ...] = (0, 1, 2)
) -> Auc:
    """Train classifiers on (N, F) against (M, F) features.

    Raises:
        AleatorError: under fifty showers of one kind, or features that are not finite.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    for name, part in (("generated", generated), ("reference", reference)):
        if len(part) < 50:
            raise AleatorError(f"classifier: {len(part)} {name} showers; at least 50 are needed")
        if not np.isfinite(part).all():
            raise AleatorError(f"classifier: features of the {name} showers are not finite")
    found, held = [], (0, 0)
    for seed in seeds:
        (x, y), (test_x, test_y) = _split(generated, reference, seed)
        trees = HistGradientBoostingClassifier(random_state=seed)
        scores = trees.fit(x, y).predict_proba(test_x)[:, 1]
        found.append(area(scores[test_y == 0], scores[test_y == 1]))
        held = (int((test_y == 0).sum()), int((test_y == 1).sum()))
    mean = float(np.mean(found))
    return Auc(mean, float(np.std(found)), _hanley(mean, *held))


def _split(
    generated: np.ndarray, reference: np.ndarray, seed: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng([seed, 60])
    train, test = [], []
    for part in (generated, reference):
        order = random.permutation(len(part))
        cut = int(TRAINING * len(part))
        train.append(part[order[:cut]])
        test.append(part[order[cut:]])
    labels = [np.repeat([0, 1], [len(a), len(b)]) for a, b in (train, test)]
    return (np.concatenate(train), labels[0]), (np.concatenate(test), labels[1])


def area(negative: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive's score exceeds a negative's, ties counting half."""
    ranked = np.sort(negative)
    below = np.searchsorted(ranked, positive, "left") + np.searchsorted(ranked, positive, "right")
    return float(0.5 * below.mean() / len(negative))


def _hanley(auc: float, negatives: int, positives: int) -> float:
    """Standard error of an area under the curve."""
    one, two = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = auc * (1 - auc) + (positives - 1) * (one - auc**2) + (negatives - 1) * (two - auc**2)
    return float(np.sqrt(max(spread, 0.0) / (negatives * positives)))
