r"""How far to believe each direction of the latent space: chosen by molecules that were held out.

A decoder that was trained for long enough to tell cells apart has learned noise, too. What it says
of cells is taken apart into directions, by how many of the molecules each moves,

    h - mean h = Σ_k s_k b_k,    Cov(s_k, s_l) = 0,    Σ_g p_g b_kg b_lg = δ_kl

with p = softmax(mean h) (a principal component analysis of log-rates in the metric of counts), and
drawn in:

    h' = mean h + Σ_k w_k s_k b_k,    θ' = κ θ,    levels so that each gene keeps its mean rate

The w_k in [0, 1] and κ are what gives held-out molecules x' the greatest likelihood. Given the
latents and the molecules x that were seen, these are negative binomial, too,

    x' | x ~ NB(mean r μ (θ + x) / (θ + μ), dispersion θ + x),      r: depth of x' over that of x

which Fisher's scoring climbs, direction by direction. Weights are then made to fall with the size
of the direction (isotonic regression), and used for the directions of the same rank in the model
of all molecules. They are few numbers from many molecules: the verdict on the same molecules stays
honest. w = 0 is the library mean, w = 1 the model as it was trained. The decoder and its
dispersions themselves are changed, so that rates, intervals, draws and the bound follow.

References: Batson, Royer and Webber (2019) doi:10.1101/786269 (held-out molecules); Copas (1983)
doi:10.1111/j.2517-6161.1983.tb01258.x (predictions are drawn in by what they lose on new data);
Gavish and Donoho (2017) doi:10.1109/TIT.2017.2653801 (each singular value by itself).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import optimize, sparse
from torch import Tensor

from apps.single_cell.counts import Counts
from apps.single_cell.covariates import Design
from apps.single_cell.likelihood import SPEED
from apps.single_cell.mcv import Split
from apps.single_cell.model import CellVAE, Decoder, make_context
from apps.single_cell.posterior import CELLS

OWN = 20
"""Directions with a weight of their own; the rest share one."""
SAMPLE = 1000
"""Cells that directions and means are taken from, and whose held-out molecules choose; at most."""
ROUNDS = 8
"""Of scoring."""
STEP, MOVES = 0.5, 10
"""Of ln κ: the step of its search, and how many."""
CORRECTIONS = 3
"""Of the level of each gene, until its mean is kept."""


@dataclass(frozen=True)
class Shrinkage:
    """What is done to a model after training.

    Attributes:
        weights: of the directions, the one that moves most molecules first.
        rest: of all further directions.
        dispersion: κ.
    """

    weights: tuple[float, ...] = ()
    rest: float = 1.0
    dispersion: float = 1.0

    def of(self, directions: int) -> np.ndarray:
        """The weight of each of so many directions."""
        own = np.array(self.weights[:directions], np.float64)
        return np.concatenate([own, np.full(directions - len(own), self.rest)])

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "weights": list(self.weights),
            "rest": self.rest,
            "dispersion": self.dispersion,
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Shrinkage:
        """Undo `to_dict`; what is not there was left as it was."""
        return cls(
            tuple(state.get("weights", ())), state.get("rest", 1.0), state.get("dispersion", 1.0)
        )

    def __str__(self) -> str:
        shown = " ".join(f"{weight:.2f}" for weight in self.weights[:8])
        more = " ..." if len(self.weights) > 8 else ""
        rest = f"{shown}{more}, the rest by {self.rest:.2f}" if shown else f"{self.rest:.2f}"
        return f"deviations from the mean drawn in by {rest}; dispersions by {self.dispersion:.2g}"


def learn_shrinkage(
    model: CellVAE, molecules: Split, design: Design, *, seed: int = 0
) -> Shrinkage:
    """Choose weights and the factor of dispersions on molecules that a model was not fitted to.

    A zero-inflated model stays as it is: what it holds of a zero is not in this likelihood.

    Args:
        model: of the training molecules.
        molecules: (N, G) in two parts; a sample of the cells is used.
        design: covariates of the cells.
        seed: of the sample.
    """
    if model.likelihood.zeros is not None:
        return Shrinkage()
    chosen = _sample(molecules.train.shape[0], seed)
    train, test = molecules.train[chosen], molecules.test[chosen]
    cells = _Cells(model, Counts(train), design.take(chosen))
    held = _HeldOut(model, cells, train, test, molecules.ratio)
    groups = torch.arange(len(cells.sizes)).clamp(max=OWN)
    weights = torch.ones(int(groups[-1]) + 1, dtype=torch.float64)
    decoder, factor = copy.deepcopy(model.decoder), 1.0
    for number in range(ROUNDS):
        if number == ROUNDS // 2 and model.likelihood.spread is not None:
            factor = _climb(lambda tried: held.likelihood(decoder, tried))
        slope, curvature = held.score(decoder, factor)
        slope, curvature = (
            torch.zeros_like(weights).index_add(0, groups, v) for v in (slope, curvature)
        )
        weights = (weights + slope / curvature.clamp(min=1e-9)).clamp(0, 1)
        cells.draw_in(weights[groups], decoder, corrections=1)
    size = torch.zeros_like(weights).index_add(0, groups, cells.sizes.square())
    falling = optimize.isotonic_regression(
        weights.numpy(), weights=size.numpy() + 1e-12, increasing=False
    ).x
    *own, rest = (float(weight) for weight in falling)
    if int(groups[-1]) < OWN:
        own, rest = [*own, rest], rest
    return Shrinkage(tuple(own), rest, factor)


@torch.no_grad()
def shrink(
    model: CellVAE, shrinkage: Shrinkage, counts: Counts, design: Design, *, seed: int = 0
) -> CellVAE:
    """A copy of a model with its directions drawn in.

    Args:
        model: trained.
        shrinkage: what is to be done.
        counts: (N, G) that it was trained on; a sample of the cells is used.
        design: covariates of the cells.
        seed: of the sample.
    """
    found = copy.deepcopy(model)
    if found.likelihood.spread is not None and found.likelihood.centre is not None:
        by = float(np.log(shrinkage.dispersion)) / SPEED
        found.likelihood.spread.add_(by)
        found.likelihood.centre.add_(by)
    weights = torch.from_numpy(shrinkage.of(model.decoder.weight.shape[0]))
    if bool((weights == 1).all()):
        return found
    chosen = _sample(len(counts), seed)
    cells = _Cells(model, counts.select(cells=chosen), design.take(chosen))
    cells.draw_in(weights, found.decoder)
    return found


class _Cells:
    """What a model says of some cells, by directions.

    Attributes:
        parts: hidden features f (B, H) of blocks of cells, and their contexts.
        centre: mean f (H,).
        scores: (H, H): s = (f - centre) @ scores.
        loadings: b (H, G).
        sizes: standard deviations of s over the cells, falling; (H,).
        totals: expected molecules (G,) of each gene in these cells.
    """

    @torch.no_grad()
    def __init__(self, model: CellVAE, counts: Counts, design: Design) -> None:
        self.parts = []
        for start, stop, block in counts.blocks(CELLS):
            x = torch.from_numpy(block.toarray())
            here = design.take(slice(start, stop))
            context = make_context(x.sum(1).numpy(), here, slice(None))
            z = model.encode(x, context).mean
            self.parts.append((model.decoder.features(z, context), context))
        self.decoder = model.decoder
        self.totals = self.expected(model.decoder)
        weight = model.decoder.weight.double()
        features = torch.cat([f for f, _ in self.parts]).double()
        self.centre = features.mean(0)
        p = (model.decoder.level.double() + self.centre @ weight).softmax(0)
        moved = weight @ p
        values, axes = torch.linalg.eigh((weight * p) @ weight.T - torch.outer(moved, moved))
        root = values.clamp(min=float(values.max()) * 1e-9 + 1e-30).sqrt()
        inner = axes * root  # of W in the metric of counts: inner @ innerᵀ
        apart = (features - self.centre) @ inner
        spread, turn = torch.linalg.eigh(apart.T @ apart / len(apart))
        turn = turn.flip(1)
        self.sizes = spread.flip(0).clamp(min=0).sqrt()
        self.scores, self.loadings = inner @ turn, turn.T @ (axes / root).T @ weight

    def expected(self, decoder: Decoder) -> Tensor:
        """Molecules (G,) that a decoder expects in these cells; float64, above zero."""
        total = torch.zeros(len(decoder.level), dtype=torch.float64)
        for f, context in self.parts:
            rate = context["library"][:, None] * decoder.logits(f, context).softmax(1)
            total += rate.sum(0, dtype=torch.float64)
        return total.clamp(min=1e-30)

    @torch.no_grad()
    def draw_in(self, weights: Tensor, decoder: Decoder, corrections: int = CORRECTIONS) -> None:
        """Change a decoder, so that it says w_k s_k and keeps the mean rate of each gene.

        Args:
            weights: w (H,).
            decoder: another than that of the model.
            corrections: of its levels.
        """
        weight = (self.scores * weights) @ self.loadings
        before = decoder.level.double() + self.centre @ decoder.weight.double()
        decoder.weight.copy_(weight)
        decoder.level.copy_(before - self.centre @ weight)
        for _ in range(corrections):
            decoder.level.add_((self.totals / self.expected(decoder)).log().float())


class _HeldOut:
    """Likelihood of held-out molecules of some cells under a decoder."""

    def __init__(
        self,
        model: CellVAE,
        cells: _Cells,
        train: sparse.csr_matrix,
        test: sparse.csr_matrix,
        ratio: float,
    ) -> None:
        self.model, self.cells, self.ratio = model, cells, ratio
        self.train, self.test = train, test

    @torch.no_grad()
    def _blocks(self, decoder: Decoder, factor: float) -> Iterator[_Block]:
        start = 0
        for f, context in self.cells.parts:
            rows = slice(start, start + len(f))
            start = rows.stop
            law = self.model.likelihood(
                decoder.logits(f, context), context["library"], context.get("label")
            )
            theta = None if law.log_dispersion is None else law.dispersion * factor
            x, y = (torch.from_numpy(part[rows].toarray()) for part in (self.train, self.test))
            yield _Block(f, law.rate, theta, x, y, self.ratio)

    def likelihood(self, decoder: Decoder, factor: float) -> float:
        """Σ ln p(x' | x), up to what neither changes."""
        return sum(block.likelihood() for block in self._blocks(decoder, factor))

    def score(self, decoder: Decoder, factor: float) -> tuple[Tensor, Tensor]:
        """Slope of the log-likelihood in the weights (H,), and its expected curvature."""
        loadings, scores = self.cells.loadings.float(), self.cells.scores
        slope = torch.zeros(len(loadings), dtype=torch.float64)
        curvature = torch.zeros_like(slope)
        for block in self._blocks(decoder, factor):
            s = (block.features.double() - self.cells.centre) @ scores
            first, second = block.by_rate()
            p = block.rate / block.rate.sum(1, keepdim=True)
            in_logits = first - p * first.sum(1, keepdim=True)
            slope += (s * (in_logits @ loadings.T)).sum(0)
            curvature += (s.square() * (second @ loadings.square().T)).sum(0)
        return slope, curvature


@dataclass
class _Block:
    """Some cells: rates μ, dispersions θ (None for Poisson), seen x and held-out molecules x'."""

    features: Tensor
    rate: Tensor
    theta: Tensor | None
    seen: Tensor
    held: Tensor
    ratio: float

    def likelihood(self) -> float:
        """Σ ln p(x' | x), of negative binomials; up to what θ does not change."""
        assert self.theta is not None
        odds = self.ratio * self.rate / (self.theta + self.rate)
        shape = self.theta + self.seen
        found = -(shape * odds.log1p()).sum(dtype=torch.float64)
        at = self.held > 0
        a, q, x = (v[at].double() for v in (shape, odds, self.held))
        own = torch.lgamma(a + x) - torch.lgamma(a) + x * (q / (1 + q)).clamp(min=1e-30).log()
        return float(found + own.sum())

    def by_rate(self) -> tuple[Tensor, Tensor]:
        """Slope of each term in ln μ (B, G), and its expected curvature."""
        if self.theta is None:
            expected = self.ratio * self.rate
            return self.held - expected, expected
        odds = self.ratio * self.rate / (self.theta + self.rate)
        share = self.theta / (self.theta + self.rate)
        expected = (self.theta + self.seen) * odds
        return (self.held - expected) * share / (1 + odds), expected * share.square() / (1 + odds)


def _climb(value: Callable[[float], float]) -> float:
    """The factor of the greatest value, in steps of its logarithm from 1, to where it falls."""
    best, most = 0.0, value(1.0)
    for direction in (STEP, -STEP):
        for _ in range(MOVES):
            found = value(float(np.exp(best + direction)))
            if found <= most:
                break
            best, most = best + direction, found
        if best:
            break
    return float(np.exp(best))


def _sample(cells: int, seed: int) -> np.ndarray:
    if cells <= SAMPLE:
        return np.arange(cells)
    return np.sort(np.random.default_rng([seed, cells]).permutation(cells)[:SAMPLE])
