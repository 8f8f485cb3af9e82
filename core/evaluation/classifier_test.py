r"""The classifier two-sample test: can a network tell two samples apart?

    accuracy on examples that it was not trained on: ½ if they are of one distribution, and for a
    perfect classifier ½ + ½ total variation between the two

A low accuracy may also mean a weak classifier: the test finds differences, it does not prove
equality. Reference: Lopez-Paz and Oquab (2017) arXiv:1610.06545.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import AleatorError
from core.evaluation.distances import two_samples


@dataclass(frozen=True)
class TwoSampleTest:
    """How well held-out examples are told apart.

    Attributes:
        accuracy: mean of the two classes' accuracies, over all folds; ½ is chance.
        low: lower end of its confidence interval (normal, given the fitted classifiers).
        high: upper end.
        auc: probability that an example of y is rated above one of x; ties count half.
        p_value: of as high an accuracy by chance (one-sided normal).
        logits: (N + M,) held-out log-odds for y, x's examples first: what to look at to see
            *which* examples are recognised.
    """

    accuracy: float
    low: float
    high: float
    auc: float
    p_value: float
    logits: Tensor


def classifier_test(
    x: Tensor,
    y: Tensor,
    *,
    folds: int = 5,
    width: int = 64,
    depth: int = 2,
    epochs: int = 100,
    patience: int = 8,
    level: float = 0.95,
    seed: int = 0,
) -> TwoSampleTest:
    """Train perceptrons to tell x (N, *E) from y (M, *E), each on all but one fold.

    Inputs are standardised, and a tenth of what is trained on says when to stop. Classes count
    equally whatever their sizes.

    Args:
        x: one sample.
        y: the other.
        folds: of the cross-validation.
        width: hidden units.
        depth: hidden layers; 0 is logistic regression.
        epochs: at most so many.
        patience: epochs without improvement before stopping.
        level: of the interval.
        seed: folds and initial weights.

    Raises:
        AleatorError: samples that do not match or are too small, or an option out of range.
    """
    from scipy import stats

    x, y = two_samples(x, y)
    if folds < 2 or width < 1 or depth < 0 or epochs < 1 or not 0 < level < 1:
        raise AleatorError(
            f"classifier_test: folds={folds}, width={width}, depth={depth}, epochs={epochs}, "
            f"level={level} out of range"
        )
    if min(len(x), len(y)) < 10 * folds:
        raise AleatorError(
            f"classifier_test: {len(x)} and {len(y)} examples for {folds} folds; at least ten "
            "of each a fold are needed"
        )
    inputs = torch.cat([x, y]).float()
    labels = torch.cat([torch.zeros(len(x)), torch.ones(len(y))]).to(inputs)
    generator = torch.Generator().manual_seed(seed)
    fold = torch.cat([torch.randperm(len(part), generator=generator) % folds for part in (x, y)])
    logits = torch.empty(len(inputs))
    for k in range(folds):
        train = (fold != k).nonzero()[:, 0]
        train = train[torch.randperm(len(train), generator=generator)]
        held = (fold == k).nonzero()[:, 0]
        predict = _fitted(inputs[train], labels[train], width, depth, epochs, patience, generator)
        logits[held] = predict(inputs[held]).cpu()
    right_x, right_y = (logits[: len(x)] < 0).double(), (logits[len(x) :] > 0).double()
    accuracy = 0.5 * (right_x.mean() + right_y.mean()).item()
    spread = [part.var().item() / len(part) for part in (right_x, right_y)]
    stderr = 0.5 * math.sqrt(sum(spread)) or 0.5 / math.sqrt(min(len(x), len(y)))
    null = 0.25 * math.sqrt(1 / len(x) + 1 / len(y))
    half = float(stats.norm.ppf(0.5 + level / 2)) * stderr
    return TwoSampleTest(
        accuracy,
        max(0.0, accuracy - half),
        min(1.0, accuracy + half),
        area_under_curve(logits[: len(x)], logits[len(x) :]),
        float(stats.norm.sf((accuracy - 0.5) / null)),
        logits,
    )


def area_under_curve(negative: Tensor, positive: Tensor) -> float:
    """Probability that a positive's score exceeds a negative's, ties counting half."""
    ranked = negative.contiguous().sort().values
    below = torch.searchsorted(ranked, positive.contiguous()).double()
    up_to = torch.searchsorted(ranked, positive.contiguous(), right=True).double()
    return (0.5 * (below + up_to).mean() / len(negative)).item()


def _fitted(
    inputs: Tensor,
    labels: Tensor,
    width: int,
    depth: int,
    epochs: int,
    patience: int,
    generator: torch.Generator,
) -> nn.Module:
    """A perceptron fitted with early stopping: inputs (N, D) -> log-odds (N,)."""
    _loss = F.binary_cross_entropy_with_logits
    held = max(2, len(inputs) // 10)
    net = _Perceptron(inputs[held:], width, depth, generator)
    # Both classes weigh the same.
    weight = torch.where(labels > 0.5, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=1e-3)
    least, stale = math.inf, 0
    best = {name: value.clone() for name, value in net.state_dict().items()}
    for _ in range(epochs):
        order = held + torch.randperm(len(inputs) - held, generator=generator)
        for rows in order.to(inputs.device).split(128):
            loss = F.binary_cross_entropy_with_logits(
                net(inputs[rows]), labels[rows], weight[rows]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            score = _loss(net(inputs[:held]), labels[:held], weight[:held]).item()
        if score < least:
            least, stale = score, 0
            best = {name: value.clone() for name, value in net.state_dict().items()}
        else:
            stale += 1
            if stale >= patience:
                break
    net.load_state_dict(best)
    return net.requires_grad_(False)


class _Perceptron(nn.Module):
    """Standardises by what it is fitted on; weights from an explicit stream."""

    mean: Tensor
    scale: Tensor

    def __init__(self, inputs: Tensor, width: int, depth: int, stream: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("mean", inputs.mean(0))
        self.register_buffer("scale", inputs.std(0).clamp(min=1e-12))
        sizes = [inputs.shape[1], *[width] * depth, 1]
        self.layers = nn.ModuleList(
            nn.utils.skip_init(nn.Linear, a, b) for a, b in itertools.pairwise(sizes)
        )
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            with torch.no_grad():
                layer.weight.normal_(0, math.sqrt(1 / layer.weight.shape[1]), generator=stream)
                layer.bias.zero_()
        self.to(inputs.device)

    def forward(self, x: Tensor) -> Tensor:
        h = (x - self.mean) / self.scale
        for layer in self.layers[:-1]:
            h = F.silu(layer(h))
        return self.layers[-1](h)[:, 0]
