"""The layers that `denoise` writes: which, and from rates to their values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from apps.single_cell.expressed import Levels
from apps.single_cell.posterior import DRAWS, Place, Rates
from core.errors import AleatorError

AVERAGE = "average of all"
"""In place of a batch: decode with each of them, and take the mean."""

ESTIMATES = ("balanced", "mean", "expressed")


@dataclass(frozen=True)
class Output:
    """What `denoise` writes.

    Attributes:
        target_sum: depth of the denoised rates; None keeps each cell's own.
        level: of the credible interval.
        log: also the expected log(1 + 10 000 · share), which plots use.
        draws: of the latents for each cell.
        dtype: float32 or float16.
        batch: category of the batch key to decode with instead of each cell's own, or `AVERAGE`.
        seed: of the draws.
        rates: whether to write layers at all; without them only latents and scores.
        name: of the layers, followed by _lower, _upper and _log.
        samples: draws of the rates from their posterior, each a layer _sample0, _sample1, ...
        sparse: write layers as CSR, values below this as zero; None writes all of them.
        estimate: what is called denoised: "balanced" between the posterior mean and an estimate
            that varies over cells as the rates do (`posterior.balanced`), the posterior "mean", or
            "expressed", zero where a cell does not express the gene (`expressed.Levels`).
    """

    target_sum: float | None = None
    level: float = 0.9
    log: bool = False
    draws: int = DRAWS
    dtype: str = "float32"
    batch: str | None = None
    seed: int = 0
    rates: bool = True
    name: str = "denoised"
    samples: int = 0
    sparse: float | None = None
    estimate: str = "balanced"

    def __post_init__(self) -> None:
        if self.target_sum is not None and self.target_sum <= 0:
            raise AleatorError(f"target_sum={self.target_sum}: it must be positive")
        if not 0 < self.level < 1:
            raise AleatorError(f"level={self.level}: a share, between 0 and 1, is expected")
        if self.draws < 1:
            raise AleatorError(f"draws={self.draws}: at least one is needed")
        if self.samples < 0 or (self.samples and self.batch is not None):
            raise AleatorError(
                f"samples={self.samples}: not negative, and of the cells' own batches only"
            )
        if self.sparse is not None and not self.sparse > 0:
            raise AleatorError(f"sparse={self.sparse}: a positive rate is expected")
        if self.sparse is not None and self.dtype == "float16":
            raise AleatorError("sparse layers are float32: SciPy has no sparse float16")
        if self.estimate not in ESTIMATES:
            raise AleatorError(f"estimate={self.estimate!r}; known: {', '.join(ESTIMATES)}")
        if self.estimate == "expressed" and self.batch is not None:
            raise AleatorError("estimate='expressed' is of the cells' own batches only")
        if self.dtype not in ("float32", "float16"):
            raise AleatorError(f"dtype={self.dtype!r}; known: float32, float16")

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers."""
        if not self.rates:
            return ()
        ends = ["", "_lower", "_upper", *(["_log"] if self.log else [])]
        ends += [f"_sample{k}" for k in range(self.samples)]
        return tuple(f"{self.name}{end}" for end in ends)


def expected_log(mean: np.ndarray, shape: np.ndarray, nodes: int = 12) -> np.ndarray:
    """E log(1 + λ) for gamma laws of the given means and shapes.

    The integral over probabilities p of log(1 + quantile(p)), by Gauss and Legendre.

    Args:
        mean: any shape.
        shape: of the gamma laws, likewise.
        nodes: of the quadrature.
    """
    at, weight = np.polynomial.legendre.leggauss(nodes)
    place, total = Place.of(shape), np.zeros(mean.shape, np.float32)
    for p, w in zip((at + 1) / 2, weight / 2, strict=True):
        total += w * np.log1p(mean * place.read(float(p)))
    return total


def layer_values(
    part: Rates,
    library: np.ndarray,
    output: Output,
    samples: Sequence[np.ndarray] = (),
    levels: Levels | None = None,
) -> list[np.ndarray]:
    """Values (B, G) of each layer, for cells of library sizes (B,); samples of rates come last."""
    low, high = part.interval(output.level)
    scale = 1.0 if output.target_sum is None else (output.target_sum / library)[:, None]
    arrays = [point(part, output.estimate, (low, high), levels) * scale, low * scale, high * scale]
    if output.log:
        arrays.append(expected_log(part.mean * (1e4 / library)[:, None], part.shape))
    arrays += [sample * scale for sample in samples]
    if output.sparse is not None:
        arrays = [np.where(a < output.sparse, 0, a) for a in arrays]
    return arrays


def point(
    part: Rates,
    estimate: str = "balanced",
    interval: tuple[np.ndarray, np.ndarray] | None = None,
    levels: Levels | None = None,
) -> np.ndarray:
    """The value (B, G) that stands for each rate.

    Args:
        part: rates.
        estimate: see `Output`; the mean where rates are of other covariates than the cells' own.
            A balanced one is inside its credible interval.
        interval: two of (B, G); 90 % if None.
        levels: of the genes, which "expressed" needs.
    """
    if estimate == "expressed":
        if levels is None:
            raise AleatorError("estimate='expressed' needs levels, see expressed.learn_levels")
        return levels.estimate(part)
    if estimate == "mean" or part.balanced is None:
        return part.mean
    low, high = interval or part.interval()
    return np.clip(part.balanced, np.minimum(low, part.mean), np.maximum(high, part.mean))


def among_all(raw: np.ndarray, values: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Values of the model's genes among all genes; others keep their counts."""
    found = raw.copy()
    found[:, own] = values
    return found
