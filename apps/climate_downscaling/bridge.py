r"""Bias adjustment of whole fields: an unpaired flow from the model's climate to the reference's.

Quantile mapping makes every cell's distribution right and leaves wrong what relates cells and
variables to each other. Here the quantiles are mapped as in quantile delta mapping, and the
*ranks* are carried from one climate to the other:

    u = Φ⁻¹(F(x))                        normal scores, each series by its own quantiles
    dc/dt = v(c, t, season),  c = Eᵀ u   from the model's scores (t = 1) to the reference's (t = 0)
    x̂ = F_ref⁻¹(τ) + F_x⁻¹(τ) - F_hist⁻¹(τ),    τ = rank of the carried u in its own period

in the leading principal components E of both climates; what lies outside of them stays. The
velocity v is learnt by flow matching on pairs of days that nobody has paired: optimal transport
within a batch of days of about one season. The change of every quantile is kept, of amounts as a
ratio. With a few hundred days of a winter the net learns days by heart, hence few components,
few steps and blurred days (`jitter`); docs/prognosis.md has the held-out table that these were
chosen by. References: Tong et al. (2024) arXiv:2302.00482; Wan et al. (2024) arXiv:2412.08079
(debiasing by flows); Cannon (2018) doi:10.1007/s00382-017-3580-6 (why not cell by cell).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import ConfigDict
from scipy.special import ndtri
from torch import Tensor

from apps.climate_downscaling.quantiles import pieces, wetted
from core.coupling import Coupling
from core.errors import AleatorError
from core.flow_matching import FlowMatching
from core.model import Context
from core.nets.mlp import MLP
from core.reflow import flow_pairs
from core.training import FitConfig, fit

LEVELS = 1001
"""Of the quantile functions: the tails are where two climates differ most."""
SAMPLER = {"name": "heun", "steps": 20}
SEASON_WEIGHT = 3.0
"""Of a difference in season, against one in scores, when days are paired."""


@dataclass(frozen=True)
class BridgeConfig:
    """How the flow is trained; the defaults suit some hundred to some thousand days.

    Attributes:
        explained: share of the variance of the scores that the components keep.
        most: components at most.
        steps: of training.
        batch_size: days of either climate in a batch, within which they are paired.
        width: of the net.
        jitter: blur of days in training, in standard deviations of a component; 0 for none.
        learning_rate: of training.
    """

    explained: float = 0.9
    most: int = 20
    steps: int = 600
    batch_size: int = 128
    width: int = 64
    jitter: float = 0.5
    learning_rate: float = 2e-3

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        if not 0 < self.explained <= 1:
            raise AleatorError(f"bridge.explained={self.explained}: a share in (0, 1] is needed")
        for name, least in {"most": 1, "steps": 1, "batch_size": 2, "width": 1}.items():
            if getattr(self, name) < least:
                raise AleatorError(
                    f"bridge.{name}={getattr(self, name)}: at least {least} is needed"
                )
        if self.jitter < 0 or self.learning_rate <= 0:
            raise AleatorError("bridge: no negative jitter, and a positive learning rate")


def adjust_jointly(
    values: np.ndarray,
    history: np.ndarray,
    reference: np.ndarray,
    season: tuple[np.ndarray, np.ndarray, np.ndarray],
    *,
    thresholds: Sequence[float | None],
    window: float = 0.25,
    config: BridgeConfig | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Adjust all variables of a model's series together.

    Args:
        values: (T, V, ...) to adjust, cells on the other axes.
        history: (S, V, ...) the same model over the reference's period.
        reference: (R, V, ...).
        season: places in the year of the three, in [0, 1).
        thresholds: V of them; of amounts, below which a day is dry; None for what may be negative.
        window: of the year, centred, that quantile functions are estimated in.
        config: of the flow.
        seed: of everything random.

    Returns:
        (T, V, ...) adjusted.

    Raises:
        AleatorError: fewer than 50 days in the history or the reference, a season without days
            in one of the series, or nothing that varies.
    """
    config = config or BridgeConfig()
    for name, series in (("history", history), ("reference", reference)):
        if len(series) < 50:
            raise AleatorError(
                f"the {name} has {len(series)} days; a bridge needs 50 or more: take --method qdm"
            )
    filled = [_wet(x, thresholds, seed + k) for k, x in enumerate((values, history, reference))]
    scores = [
        normal_scores(x, s, window).reshape(len(x), -1)
        for x, s in zip(filled, season, strict=True)
    ]
    bridge = Bridge.fit(scores[1], scores[2], season[1], season[2], config, seed)
    carried = bridge(scores[0], season[0]).reshape(values.shape)
    place = normal_scores(carried, season[0], window)
    amounts = np.array([t is not None for t in thresholds])
    result = _delta_mapped(place, filled, season, window, amounts)
    for v, threshold in enumerate(thresholds):
        if threshold is not None:
            result[:, v] = np.where(result[:, v] < threshold, 0.0, result[:, v])
    return result.astype(values.dtype)


@dataclass(frozen=True)
class Bridge:
    """A flow between two climates of scores, trained.

    Attributes:
        basis: (D, K) principal components of both.
        scale: (K,) standard deviation of both together along them.
        flow: from c at t = 1 to c at t = 0, in units of `scale`.
    """

    basis: np.ndarray
    scale: np.ndarray
    flow: FlowMatching

    @classmethod
    def fit(
        cls,
        source: np.ndarray,
        target: np.ndarray,
        source_season: np.ndarray,
        target_season: np.ndarray,
        config: BridgeConfig,
        seed: int = 0,
    ) -> Bridge:
        """Learn from scores (S, D) and (R, D), and their places in the year."""
        basis = principal_components(np.concatenate([source, target]), config)
        along = [x @ basis for x in (source, target)]
        scale = np.concatenate(along).std(0).clip(1e-6)
        start, end = (torch.from_numpy(x / scale).float() for x in along)
        pairs = Unpaired(start, end, source_season, target_season, config)
        count = basis.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = MLP((count,), vector_dim=2, width=config.width, blocks=2)
        flow = FlowMatching(net, (count,), (2,))
        options = FitConfig(
            steps=config.steps,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            warmup=min(20, config.steps),
            ema=0.98,
            validate_every=0,
            save_every=config.steps,
            seed=seed,
        )
        with tempfile.TemporaryDirectory() as folder:
            fitted = fit(flow, pairs, options, folder=folder, device="cpu", progress=None)
        trained = fitted.model.eval()
        assert isinstance(trained, FlowMatching)
        return cls(basis, scale, trained)

    def __call__(self, scores: np.ndarray, season: np.ndarray) -> np.ndarray:
        """Carry scores (T, D) of the source to the target's climate, (T, D)."""
        along = scores @ self.basis
        start = torch.from_numpy(along / self.scale).float()
        end = flow_pairs(self.flow, start, phase(season), sampler=SAMPLER)
        moved = end.double().numpy() * self.scale - along
        return scores + moved @ self.basis.T


class Unpaired:
    """Batches of pairs of days that nobody has paired, for `core.training.fit`.

    Days of the source are drawn at random, and for each a day of the target of about the same
    season; within the batch they are then paired by optimal transport.
    """

    def __init__(
        self,
        source: Tensor,
        target: Tensor,
        source_season: np.ndarray,
        target_season: np.ndarray,
        config: BridgeConfig,
        window: float = 0.1,
    ) -> None:
        """Scores (S, K) and (R, K) with their places in the year; `window` of about a season."""
        order = np.argsort(target_season, kind="stable")
        self.source, self.target = source, target[torch.from_numpy(order)]
        self.season = source_season
        cycle = target_season[order]
        around = np.concatenate([cycle - 1, cycle, cycle + 1])
        low = np.searchsorted(around, source_season - window / 2)
        high = np.searchsorted(around, source_season + window / 2, side="right")
        alone = high <= low  # no day so near: the nearest one
        nearest = np.abs(around[None] - source_season[alone, None]).argmin(1)
        low[alone], high[alone] = nearest, nearest + 1
        self.low, self.high = torch.from_numpy(low), torch.from_numpy(high)
        self.config = config
        self.coupling = Coupling("optimal", config.batch_size, SEASON_WEIGHT)

    def __call__(self, step: int, generator: torch.Generator) -> tuple[Tensor, Context]:
        """A batch: days of the target, and with each as its noise a day of the source."""
        count = self.config.batch_size
        rows = torch.randint(len(self.source), (count,), generator=generator)
        low, high = self.low[rows], self.high[rows]
        u = torch.rand(count, generator=generator, dtype=torch.float64)
        others = (low + (u * (high - low)).long()) % len(self.target)
        x, start = self.target[others], self.source[rows]
        if self.config.jitter:
            x, start = (
                v + self.config.jitter * torch.randn(v.shape, generator=generator)
                for v in (x, start)
            )
        context = {"vector": phase(self.season[rows.numpy()])}
        return x, {**context, "noise": self.coupling(x, start, context)}


def phase(season: np.ndarray) -> Tensor:
    """Sine and cosine of places in the year, (T, 2)."""
    angle = torch.from_numpy(2 * np.pi * np.asarray(season, np.float64))
    return torch.stack([angle.sin(), angle.cos()], 1).float()


def principal_components(rows: np.ndarray, config: BridgeConfig) -> np.ndarray:
    """Leading directions (D, K) of rows (N, D), as many as explain what is to be explained.

    Raises:
        AleatorError: nothing varies.
    """
    from scipy.linalg import eigh

    centred = rows - rows.mean(0)
    short = len(rows) < rows.shape[1]  # whichever Gram matrix is smaller
    gram = centred @ centred.T if short else centred.T @ centred
    total, size = float(np.trace(gram)), len(gram)
    if not total > 1e-9 * rows.size:  # scores have variance one
        raise AleatorError("the climates to bridge do not vary")
    first = max(0, size - config.most)
    values, vectors = eigh(gram, subset_by_index=[first, size - 1])
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = int((np.cumsum(values) / total < config.explained).sum()) + 1
    kept = max(1, min(kept, int((values > 1e-9 * total).sum())))
    chosen = vectors[:, :kept]
    return centred.T @ chosen / np.sqrt(values[:kept]) if short else chosen


def normal_scores(values: np.ndarray, season: np.ndarray, window: float) -> np.ndarray:
    """Φ⁻¹(F(x)) of every value (T, ...), F of its own series in a window of the year."""
    tau = (np.arange(LEVELS) + 0.5) / LEVELS
    normal, scores = ndtri(tau), np.empty(values.shape)
    for rows, (near,) in pieces([season], window):
        table = np.quantile(values[near], tau, axis=0).reshape(LEVELS, -1)
        x = values[rows].reshape(len(rows), -1)
        found = [np.interp(x[:, c], table[:, c], normal) for c in range(x.shape[1])]
        scores[rows] = np.stack(found, 1).reshape(scores[rows].shape)
    return scores


def _delta_mapped(
    scores: np.ndarray,
    series: Sequence[np.ndarray],
    season: Sequence[np.ndarray],
    window: float,
    amounts: np.ndarray,
) -> np.ndarray:
    """Values (T, V, ...) of scores: the reference's quantile, and the change of that quantile.

    Series are those to adjust, the history and the reference; of amounts the change is a ratio.
    """
    tau = (np.arange(LEVELS) + 0.5) / LEVELS
    normal, result = ndtri(tau), np.empty(scores.shape)
    kinds = np.broadcast_to(amounts[:, None], (len(amounts), scores[0, 0].size)).ravel()
    for rows, near in pieces(season, window):
        tables = [
            np.quantile(x[days], tau, axis=0).reshape(LEVELS, -1)
            for x, days in zip(series, near, strict=True)
        ]
        u = scores[rows].reshape(len(rows), -1)
        out = np.empty_like(u)
        for c, amount in enumerate(kinds):
            now, then, wanted = (np.interp(u[:, c], normal, t[:, c]) for t in tables)
            out[:, c] = wanted * (now / np.maximum(then, 1e-12)) if amount else wanted + now - then
        result[rows] = out.reshape(result[rows].shape)
    return result


def _wet(x: np.ndarray, thresholds: Sequence[float | None], seed: int) -> np.ndarray:
    """A copy in which dry days are random numbers below the threshold."""
    filled = np.array(x, np.float64)
    for v, threshold in enumerate(thresholds):
        if threshold is not None:
            filled[:, v] = wetted(filled[:, v], threshold, seed + 10 * v)
    return filled
