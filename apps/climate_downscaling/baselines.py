r"""What users would pick instead of a generative model, all on one interface.

Deterministic methods give one member: interpolation, interpolation corrected by its mean error
(BCSD in spirit), pointwise quantile mapping, and ridge regression on the whole coarse field.
`Dressed` makes an ensemble of any of them by adding residual fields of the training period, drawn
at random or taken from the most similar coarse fields (analogues). On small samples these are
hard to beat: a generative model that cannot is not worth its cost.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor

from apps.climate_downscaling.interpolation import interpolate
from apps.climate_downscaling.mean import blocks_with_gap
from core.errors import AleatorError
from core.random import Generators, rand

STRENGTHS = tuple(10.0**k for k in range(-2, 5))
"""Ridge penalties that cross-validation chooses from."""


class Baseline(Protocol):
    """A downscaling method of one variable, on tensors."""

    def fit(self, coarse: Tensor, fine: Tensor) -> Self:
        """Learn from the training part, in order of time: (T, h, w) and (T, H, W)."""
        ...

    def predict(
        self, coarse: Tensor, members: int = 1, generator: Generators | None = None
    ) -> Tensor:
        """Downscale (T, h, w) to (M, T, H, W); M = 1 of a deterministic method."""
        ...


@dataclass
class Interpolation:
    """The coarse field itself, interpolated: nothing is learnt but the factor.

    Attributes:
        kind: "nearest", "bilinear" or "bicubic".
        nonnegative: overshoots of the spline below zero are cut.
        wrap: the columns go once around the Earth.
    """

    kind: str = "bicubic"
    nonnegative: bool = False
    wrap: bool = False
    factor: int = 0

    def fit(self, coarse: Tensor, fine: Tensor) -> Self:
        """Note the factor."""
        self.factor = _factor(coarse, fine)
        return self

    def predict(
        self, coarse: Tensor, members: int = 1, generator: Generators | None = None
    ) -> Tensor:
        """Interpolate."""
        return self.base(coarse)[None].to(coarse.dtype)

    def base(self, coarse: Tensor) -> Tensor:
        """(T, H, W) in float64."""
        base = interpolate(coarse.double(), self.factor, self.kind, wrap=self.wrap)
        return base.clamp_min(0) if self.nonnegative else base


@dataclass
class MeanCorrected:
    r"""Interpolation corrected by a map of its mean error: the idea of BCSD.

        y = base + mean(fine − base)        or, of amounts,        y = base · mean(fine)/mean(base)

    Reference: Wood et al. (2004), doi:10.1023/B:CLIM.0000013685.99609.9e.
    """

    nonnegative: bool = False
    base: Interpolation = field(default_factory=Interpolation)
    correction: Tensor = field(default_factory=lambda: torch.zeros(()))

    def __post_init__(self) -> None:
        self.base.nonnegative = self.nonnegative

    def fit(self, coarse: Tensor, fine: Tensor) -> Self:
        """Average the error, or the ratio of the means, cell by cell."""
        base, mean = self.base.fit(coarse, fine).base(coarse).mean(0), fine.double().mean(0)
        self.correction = mean / base.clamp_min(1e-9) if self.nonnegative else mean - base
        return self

    def predict(
        self, coarse: Tensor, members: int = 1, generator: Generators | None = None
    ) -> Tensor:
        """Interpolate and correct."""
        base = self.base.base(coarse)
        corrected = base * self.correction if self.nonnegative else base + self.correction
        return corrected[None].to(coarse.dtype)


@dataclass
class QuantileMapping:
    r"""Pointwise quantile mapping of the interpolated field: y = F_fine⁻¹(F_base(base)).

    Quantiles are interpolated linearly between `quantiles` levels; beyond the training range the
    correction of the extreme quantile is kept, so that new records stay records.

    Reference: Panofsky and Brier (1968); Boé et al. (2007), doi:10.1002/joc.1602.
    """

    nonnegative: bool = False
    quantiles: int = 201
    base: Interpolation = field(default_factory=Interpolation)
    source: Tensor = field(default_factory=lambda: torch.zeros(()))
    target: Tensor = field(default_factory=lambda: torch.zeros(()))

    def __post_init__(self) -> None:
        self.base.nonnegative = self.nonnegative

    def fit(self, coarse: Tensor, fine: Tensor) -> Self:
        """Tabulate both quantile functions, (H W, Q)."""
        levels = torch.linspace(0, 1, self.quantiles, dtype=torch.float64)
        base = self.base.fit(coarse, fine).base(coarse)
        self.source, self.target = (_quantiles(values, levels) for values in (base, fine))
        return self

    def predict(
        self, coarse: Tensor, members: int = 1, generator: Generators | None = None
    ) -> Tensor:
        """Interpolate and map, cell by cell."""
        base = self.base.base(coarse)
        x = base.flatten(1).T.contiguous()  # (H W, T)
        last = self.source.shape[1] - 1
        above = torch.searchsorted(self.source, x, right=True).clamp(1, last)
        (x0, x1), (y0, y1) = (
            (table.gather(1, above - 1), table.gather(1, above))
            for table in (self.source, self.target)
        )
        share = ((x - x0) / (x1 - x0).clamp_min(1e-12)).clamp(0, 1)
        low, high = self.source[:, :1], self.source[:, -1:]
        mapped = y0 + share * (y1 - y0) + (x - high).clamp_min(0) + (x - low).clamp_max(0)
        fine = mapped.T.reshape(base.shape)
        return (fine.clamp_min(0) if self.nonnegative else fine)[None].to(coarse.dtype)


@dataclass
class Ridge:
    r"""The residual of interpolation in every fine cell, regressed on the whole coarse field.

        y = base + m + A W,    W = (Aᵀ A + a I)⁻¹ Aᵀ R

    with A the standardised coarse cells and R the centred residuals of the training part.

    Attributes:
        nonnegative: base and prediction are cut at zero.
        strength: penalty a; chosen by cross-validation over blocks of time if None.
        blocks: contiguous blocks of the cross-validation; a tenth of a block is left out on
            either side of the one held out.
    """

    nonnegative: bool = False
    strength: float | None = None
    blocks: int = 5
    base: Interpolation = field(default_factory=Interpolation)
    state: dict[str, Tensor] = field(default_factory=dict)
    chosen: float = 0.0

    def __post_init__(self) -> None:
        self.base.nonnegative = self.nonnegative

    def fit(self, coarse: Tensor, fine: Tensor) -> Self:
        """Choose the strength, then regress."""
        residual = (fine.double() - self.base.fit(coarse, fine).base(coarse)).flatten(1)
        x = coarse.double().flatten(1)
        self.chosen = self.strength or self._choose(x, residual)
        self.state = _regress(x, residual, (self.chosen,))
        return self

    def predict(
        self, coarse: Tensor, members: int = 1, generator: Generators | None = None
    ) -> Tensor:
        """Interpolate and add the regression."""
        base = self.base.base(coarse)
        fine = base + _apply(self.state, coarse.double().flatten(1))[0].reshape(base.shape)
        return (fine.clamp_min(0) if self.nonnegative else fine)[None].to(coarse.dtype)

    def _choose(self, x: Tensor, residual: Tensor) -> float:
        error = torch.zeros(len(STRENGTHS), dtype=torch.float64)
        for rest, held_out in _folds(len(x), self.blocks):
            state = _regress(x[rest], residual[rest], STRENGTHS)
            apart = _apply(state, x[held_out]) - residual[held_out]
            error += apart.square().flatten(1).nansum(1)
        return STRENGTHS[int(error.argmin())]


@dataclass
class Dressed:
    """An ensemble: a deterministic method plus residual fields of the training period.

    Attributes:
        mean: the method.
        pick: "random" training times, or "analogue": those of the most similar coarse fields
            (Euclidean, cells standardised), the most similar one first. As many as members.
        held_out: take residuals of blocks of time left out of the fit of the mean; residuals of
            the fit itself are too small.
        nonnegative: members are cut at zero.
    """

    mean: Baseline
    pick: Literal["random", "analogue"] = "random"
    held_out: bool = False
    nonnegative: bool = False
    blocks: int = 5
    state: dict[str, Tensor] = field(default_factory=dict)

    def fit(self, coarse: Tensor, fine: Tensor) -> Self:
        """Fit the mean, and keep its residuals and the coarse fields that they belong to."""
        residual = torch.empty_like(fine)
        if self.held_out:
            for rest, held_out in _folds(len(fine), self.blocks):
                method = copy.deepcopy(self.mean).fit(coarse[rest], fine[rest])
                residual[held_out] = fine[held_out] - method.predict(coarse[held_out])[0]
        self.mean.fit(coarse, fine)
        if not self.held_out:
            residual = fine - self.mean.predict(coarse)[0]
        x = coarse.double().flatten(1)
        centre, scale = x.mean(0), x.std(0).clamp_min(1e-12)
        self.state = {
            "residual": residual,
            "fields": (x - centre) / scale,
            "centre": centre,
            "scale": scale,
        }
        return self

    def predict(
        self, coarse: Tensor, members: int = 16, generator: Generators | None = None
    ) -> Tensor:
        """Members (M, T, H, W); random ones are drawn per time from the generator(s)."""
        residual, count = self.state["residual"], len(self.state["residual"])
        if self.pick == "random":
            u = rand((len(coarse), members), generator, dtype=torch.float64)
            index = (u * count).long().to(coarse.device)
        else:
            if members > count:
                raise AleatorError(
                    f"{members} analogues asked for, but the training part has {count} times"
                )
            x = (coarse.double().flatten(1) - self.state["centre"]) / self.state["scale"]
            index = torch.cdist(x, self.state["fields"]).topk(members, largest=False).indices
        ensemble = self.mean.predict(coarse) + residual[index.T]
        return ensemble.clamp_min(0) if self.nonnegative else ensemble


def baselines(*, nonnegative: bool = False) -> dict[str, Baseline]:
    """All of them by name, unfitted, from the simplest to the strongest.

    Args:
        nonnegative: the variable is an amount (precipitation): nothing falls below zero, and
            mean errors are corrected by a factor.
    """
    amount: dict[str, Any] = {"nonnegative": nonnegative}

    def dressed(mean: Baseline, pick: Literal["random", "analogue"], **more: Any) -> Dressed:
        return Dressed(mean, pick, **amount, **more)

    return {
        **{kind: Interpolation(kind, **amount) for kind in ("nearest", "bilinear", "bicubic")},
        "bicubic + mean residual": MeanCorrected(**amount),
        "quantile mapping": QuantileMapping(**amount),
        "bicubic + random residuals": dressed(Interpolation(**amount), "random"),
        "analogues": dressed(Interpolation(**amount), "analogue"),
        "ridge": Ridge(**amount),
        "ridge + dressed residuals": dressed(Ridge(**amount), "random"),
        "ridge + held-out residuals": dressed(Ridge(**amount), "random", held_out=True),
        "ridge + analogue residuals": dressed(Ridge(**amount), "analogue"),
    }


def _folds(times: int, blocks: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(rest, held out) of contiguous blocks; neighbouring times resemble each other: a gap."""
    return blocks_with_gap(times, blocks, times // blocks // 10)


def _factor(coarse: Tensor, fine: Tensor) -> int:
    """Fine cells per side of a coarse cell."""
    ratios = {f / c for f, c in zip(fine.shape[-2:], coarse.shape[-2:], strict=True)}
    if len(ratios) != 1 or not (ratio := ratios.pop()).is_integer() or len(coarse) != len(fine):
        raise AleatorError(
            f"coarse {tuple(coarse.shape)} and fine {tuple(fine.shape)} do not belong together: "
            "expected (T, h, w) and (T, factor h, factor w)"
        )
    return int(ratio)


def _quantiles(values: Tensor, levels: Tensor) -> Tensor:
    """Quantiles (H W, Q) of (T, H, W) along time, by linear interpolation of order statistics."""
    ranked = values.double().flatten(1).sort(0).values
    place = levels * (len(ranked) - 1)
    below = place.floor().long().clamp_max(len(ranked) - 2) if len(ranked) > 1 else place.long()
    above = (below + 1).clamp_max(len(ranked) - 1)
    return torch.lerp(ranked[below], ranked[above], (place - below)[:, None]).T.contiguous()


def _regress(x: Tensor, y: Tensor, strengths: tuple[float, ...]) -> dict[str, Tensor]:
    """Ridge weights (S, P, D) of y (T, D) on standardised x (T, P), for S penalties at once."""
    centre, scale, mean = x.mean(0), x.std(0).clamp_min(1e-12), y.mean(0)
    a = (x - centre) / scale
    value, vector = torch.linalg.eigh(a.T @ a)
    along = vector.T @ (a.T @ (y - mean))
    shrunk = torch.stack([vector @ (along / (value + s)[:, None]) for s in strengths])
    return {"centre": centre, "scale": scale, "mean": mean, "weights": shrunk}


def _apply(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """Predictions (S, T, D)."""
    return ((x - state["centre"]) / state["scale"]) @ state["weights"] + state["mean"]
