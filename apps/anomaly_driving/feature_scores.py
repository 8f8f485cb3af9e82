r"""Scores that are fitted to known pixels first: distances and densities of features.

    std_max_logit  -(max_k s_k - μ_c) / σ_c of the predicted class c   Jung et al. (2021)
                                                                       arXiv:2107.11264
    mahalanobis    min_c sqrt((f - μ_c)ᵀ Σ⁻¹ (f - μ_c))                Lee et al. (2018)
                                                                       arXiv:1807.03888
    knn            distance of f / |f| to its k-th nearest known one   Sun et al. (2022)
                                                                       arXiv:2204.06507
    flow           -ln p(f) of a spline flow on whitened f             core.flows
    a+b            mean of (a - μ_a) / σ_a and (b - μ_b) / σ_b

Moments are summed in float64 frame by frame; k-NN and the flow see a sample of the pixels that is
drawn with equal chances from all frames, in memory that does not grow. Pixels with label 255 or 1
are left out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from apps.anomaly_driving.model import Outputs
from apps.anomaly_driving.scores import Fitted, enlarged, parts, predicted_classes, resolve
from core.errors import AleatorError
from core.random import keyed_generator, rand

Tensors = dict[str, Tensor]


class FeatureScore(ABC):
    """A score with a state: tensors that a checkpoint keeps."""

    name: ClassVar[str]

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = dict(state)

    @abstractmethod
    def __call__(self, outputs: Outputs) -> Tensor:
        """The score (B, H, W), higher = more unexpected."""


class Moments:
    """Streamed count, mean and central second moments of vectors by class, float64.

    The sums are of differences from the first vectors' mean, so that nothing cancels.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.origin: Tensor | None = None
        self.count = torch.zeros(classes, dtype=torch.float64)

    def add(self, vectors: Tensor, labels: Tensor) -> None:
        """Add vectors (N, D) of classes (N,)."""
        if not len(vectors):
            return
        x = vectors.double().cpu()
        if self.origin is None:
            self.origin = x.mean(0)
            self.sum = torch.zeros(self.classes, x.shape[1], dtype=torch.float64)
            self.square = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
            self.own_square = torch.zeros(self.classes, x.shape[1], dtype=torch.float64)
        x, labels = x - self.origin, labels.cpu()
        self.count.index_add_(0, labels, torch.ones(len(x), dtype=torch.float64))
        self.sum.index_add_(0, labels, x)
        self.own_square.index_add_(0, labels, x.square())
        self.square += x.T @ x

    def mean(self) -> Tensor:
        """(classes, D); of classes without pixels, the mean of all."""
        origin = self._origin()
        overall = self.sum.sum(0) / self.count.sum()
        own = self.sum / self.count.clamp_min(1)[:, None]
        return torch.where(self.count[:, None] > 0, own, overall) + origin

    def std(self) -> Tensor:
        """(classes, D) deviation within each class; of classes without pixels, the largest."""
        self._origin()
        n = self.count.clamp_min(1)[:, None]
        spread = (self.own_square / n - (self.sum / n).square()).clamp_min(0).sqrt()
        return torch.where(self.count[:, None] > 1, spread, spread.amax(0)).clamp_min(1e-6)

    def within(self) -> Tensor:
        """(D, D) covariance around the class means, shared by all classes."""
        self._origin()
        n = self.count.clamp_min(1)[:, None]
        between = (self.sum / n).T @ self.sum
        return (self.square - between) / self.count.sum()

    def _origin(self) -> Tensor:
        if self.origin is None:
            raise AleatorError("no known pixel to fit a score to: are all labels void?")
        return self.origin


class Reservoir:
    """A sample of vectors, each of all that came with the same chance; in constant memory."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.seen = size, seed, 0
        self.keys = torch.empty(0, dtype=torch.float64)
        self.rows: Tensor | None = None

    def add(self, vectors: Tensor) -> None:
        """Offer vectors (N, D): those with the smallest random keys stay."""
        if not len(vectors):
            return
        # one draw a call: the sample depends on seed and order of frames alone
        keys = rand((len(vectors),), keyed_generator(self.seed, self.seen), dtype=torch.float64)
        self.seen += 1
        rows = vectors.float().cpu()
        merged = rows if self.rows is None else torch.cat([self.rows, rows])
        keys = torch.cat([self.keys, keys])
        kept = keys.argsort()[: self.size]
        self.keys, self.rows = keys[kept], merged[kept]

    def sample(self) -> Tensor:
        """(≤ size, D)."""
        if self.rows is None:
            raise AleatorError("no known pixel to fit a score to: are all labels void?")
        return self.rows


class StandardisedMaxLogit(FeatureScore):
    """Maximum logit, standardised by the statistics of the predicted class."""

    name = "std_max_logit"

    def __call__(self, outputs: Outputs) -> Tensor:
        """The score (B, H, W)."""
        top, labels = outputs.logits.max(1)
        mean, std = (self.state[key].to(top) for key in ("mean", "std"))
        return (mean[labels] - top) / std[labels]

    @classmethod
    def of(cls, moments: Moments) -> StandardisedMaxLogit:
        """From the moments of the maximum logit by predicted class."""
        return cls({"mean": moments.mean()[:, 0].float(), "std": moments.std()[:, 0].float()})


class Mahalanobis(FeatureScore):
    """Distance to the nearest class mean in units of the shared covariance."""

    name = "mahalanobis"

    def __call__(self, outputs: Outputs) -> Tensor:
        """The score (B, H, W)."""
        features = must_have_features(outputs)
        white = self.state["whiten"].to(features)
        centres = self.state["mean"].to(features) @ white.T
        x = F.conv2d(features, white[:, :, None, None])
        flat = x.flatten(2).transpose(1, 2)
        distance = torch.cdist(flat, centres.expand(len(flat), -1, -1)).amin(2)
        grid = distance.reshape(x.shape[0], *x.shape[2:])
        return enlarged(grid, outputs.logits.shape[2:])

    @classmethod
    def of(cls, moments: Moments, shrink: float = 1e-3) -> Mahalanobis:
        """From the moments of the features; `shrink` of the mean variance joins the diagonal."""
        covariance = moments.within()
        floor = shrink * covariance.diagonal().mean().clamp_min(1e-12)
        values, vectors = torch.linalg.eigh(covariance)
        whiten = vectors.T / (values.clamp_min(0) + floor).sqrt()[:, None]
        seen = moments.count > 0
        return cls({"mean": moments.mean()[seen].float(), "whiten": whiten.float()})


class Nearest(FeatureScore):
    """Distance to the k-th nearest of a sample of known features, all of unit length."""

    name = "knn"
    K = 5

    def __call__(self, outputs: Outputs) -> Tensor:
        """The score (B, H, W)."""
        features = must_have_features(outputs)
        bank = self.state["bank"].to(features)
        x = F.normalize(features, dim=1)
        flat = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        k = min(self.K, len(bank))
        found = [torch.cdist(rows, bank).kthvalue(k, 1).values for rows in flat.split(8192)]
        grid = torch.cat(found).reshape(x.shape[0], *x.shape[2:])
        return enlarged(grid, outputs.logits.shape[2:])

    @classmethod
    def of(cls, sample: Tensor) -> Nearest:
        """From a sample of known features (N, D)."""
        return cls({"bank": F.normalize(sample, dim=1)})


class FlowDensity(FeatureScore):
    """Minus the log-density of a flow on the whitened leading components of the features."""

    name = "flow"
    DIMS, STEPS, LAYERS = 16, 600, 4

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__(state)
        self.flow = self._build(len(state["whiten"]))
        weights = {k.removeprefix("flow."): v for k, v in state.items() if k.startswith("flow.")}
        self.flow.load_state_dict(weights)
        self.flow.eval()

    def __call__(self, outputs: Outputs) -> Tensor:
        """The score (B, H, W)."""
        features = must_have_features(outputs)
        self.flow.to(features.device)
        whiten, mean = self.state["whiten"].to(features), self.state["mean"].to(features)
        x = F.conv2d(features - mean[:, None, None], whiten[:, :, None, None])
        flat = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        with torch.no_grad():
            # beyond 30 deviations the density is nil either way, and splines stay finite
            parts = [-self.flow.log_prob(r.clamp(-30, 30)).value for r in flat.split(16384)]
        grid = torch.cat(parts).reshape(x.shape[0], *x.shape[2:])
        return enlarged(grid, outputs.logits.shape[2:])

    @classmethod
    def _build(cls, dims: int) -> Any:
        from core.flows import NSF

        return NSF((dims,), layers=cls.LAYERS, autoregressive=False, hidden=(64, 64))

    @classmethod
    def of(cls, sample: Tensor, folder: Path, seed: int, steps: int | None = None) -> FlowDensity:
        """Train on a sample of known features (N, D); `folder` is for the run's files."""
        from core.data import batch_indices
        from core.training import FitConfig, fit

        mean = sample.double().mean(0)
        centred = sample.double() - mean
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
        kept = values.argsort(descending=True)[: min(cls.DIMS, len(values))]
        kept = kept[values[kept] > 1e-9 * values.max()]
        if len(kept) < 2:
            raise AleatorError(
                "score flow: the known features do not vary (they span less than two directions); "
                "fit to more or other images"
            )
        whiten = (vectors[:, kept] / values[kept].sqrt()).T
        data = (centred @ whiten.T).float().clamp(-30, 30)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            flow = cls._build(len(kept))
        config = FitConfig(steps=steps or cls.STEPS, batch_size=512, validate_every=0, seed=seed)
        fitted = fit(
            flow,
            lambda step, _: (data[batch_indices(seed, step, 512, len(data))], None),
            config,
            folder=folder,
            device="cpu",
            progress=None,
        )
        weights = {f"flow.{k}": v for k, v in fitted.model.state_dict().items()}
        return cls({"mean": mean.float(), "whiten": whiten.float(), **weights})


class Ensemble(FeatureScore):
    """Mean of several scores, each standardised by its mean and deviation on known pixels."""

    name = "ensemble"

    def __init__(self, state: Mapping[str, Tensor], name: str, fits: Mapping[str, Fitted]) -> None:
        super().__init__(state)
        self.members = [resolve(part, fits) for part in parts(name)]
        self.scales = list(zip(state["mean"].tolist(), state["std"].tolist(), strict=True))

    def __call__(self, outputs: Outputs) -> Tensor:
        """The score (B, H, W)."""
        standard = [
            (member(outputs) - mean) / std
            for member, (mean, std) in zip(self.members, self.scales, strict=True)
        ]
        return torch.stack(standard).mean(0)


def must_have_features(outputs: Outputs) -> Tensor:
    """Features (B, C, h, w).

    Raises:
        AleatorError: the network gives logits only.
    """
    if not outputs.features.numel():
        raise AleatorError(
            "this network gives logits only, no features: choose a score of the logits, such as "
            "energy"
        )
    return outputs.features


def known_features(outputs: Outputs, known: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, C) and predicted classes (N,) of cells whose centre pixel is known.

    Args:
        outputs: of B images.
        known: (B, H, W) bool.
    """
    features = must_have_features(outputs)
    size = features.shape[2:]
    labels = predicted_classes(outputs)[:, None].float()
    at = F.interpolate(labels, size=size, mode="nearest-exact")[:, 0].long()
    kept = F.interpolate(known[:, None].float(), size=size, mode="nearest-exact")[:, 0] > 0.5
    return features.permute(0, 2, 3, 1)[kept], at[kept]
