r"""Where new cells come from: a prior learned over the latents and the library of real ones.

    y = (z, ln n),   z = m + s σ ε,  q(z | x) = N(m, σ²),      p(y | c): flow matching or diffusion

The standard normal that a VAE is trained with is not what its latents look like; what they do
look like is learned here, jointly with the logarithm of the library, given conditions c (cell
type, batch, anything in obs). `spread` s = 1 is the aggregated posterior itself. A tenth of the
cells is held out, and training stops when they are not fitted better any more: that, not the
number of steps, is what keeps single cells from being learned by heart.

    translation:  y ↦ Φ_b⁻¹(Φ_a(y))

carries a cell of condition a along its probability flow Φ_a to noise and back along that of b.
References: Vahdat et al. (2021) arXiv:2106.05931 (latent priors); Palma et al. (2024)
arXiv:2407.11734 (flow matching of cells); Su et al. (2022) arXiv:2203.08382 (translation).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from apps.single_cell.checks import some
from apps.single_cell.counts import Counts
from apps.single_cell.covariates import Covariates, Design
from apps.single_cell.model import CellVAE, make_context
from core.errors import AleatorError
from core.model import Context
from core.path_model import PathModel
from core.random import keyed_generator
from core.registry import build
from core.solvers.ode import odeint
from core.training import FitConfig, fit

Family = Literal["flow_matching", "diffusion"]
FAMILIES: tuple[Family, ...] = ("flow_matching", "diffusion")
HELD_OUT, REPEATS = 0.1, 8
"""Share of the cells that say when to stop, and noise levels at which each is looked at."""
FEW = 50
"""Cells below which no prior is fitted."""
ROWS = 50_000
"""Cells whose conditions are remembered, from which those of new cells are drawn."""


@dataclass(frozen=True)
class PriorConfig:
    """How a prior is made.

    Attributes:
        family: "flow_matching" or "diffusion".
        width: hidden features.
        blocks: residual blocks.
        steps: at most; training stops before when held-out cells say so.
        batch_size: latents a step.
        learning_rate: at its peak.
        spread: share s of the posterior's standard deviation that is learned with the means.
    """

    family: Family = "flow_matching"
    width: int = 128
    blocks: int = 2
    steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 2e-3
    spread: float = 1.0

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise AleatorError(f"prior {self.family!r}; known: {', '.join(FAMILIES)}")
        for name in ("width", "blocks", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise AleatorError(f"prior: {name}={getattr(self, name)}, at least 1 is needed")
        if self.learning_rate <= 0 or not 0 <= self.spread <= 1:
            raise AleatorError(
                f"prior: learning_rate={self.learning_rate}, spread={self.spread}; a positive "
                "rate and a share between 0 and 1 are needed"
            )


@dataclass(frozen=True)
class CellPrior:
    """A model of latents and log-libraries, with the conditions that it knows.

    Attributes:
        model: of standardised (z, ln n), (D + 1,).
        mean: (D + 1,) by which they are standardised.
        scale: (D + 1,) likewise.
        conditions: columns and categories.
        rows: conditions of training cells, from which those of new cells are drawn.
        config: how it was made.
    """

    model: PathModel
    mean: Tensor
    scale: Tensor
    conditions: Covariates
    rows: Design
    config: PriorConfig

    def draw(self, design: Design, seed: int, first: int = 0) -> tuple[Tensor, Tensor]:
        """New latents (N, D) and libraries (N,) under conditions of N cells.

        Args:
            design: conditions, as encoded by `conditions`.
            seed: of the draws.
            first: place of the first cell: cell i draws from (seed, i), whatever the blocks.
        """
        streams = [keyed_generator(seed, 0, first + i) for i in range(len(design))]
        context = _context(design)
        if context is None:
            y = self.model.sample((len(streams),), generator=streams)
        else:
            y = self.model.sample((), context, generator=streams)
        return self._split(y)

    @torch.no_grad()
    def translate(
        self, z: Tensor, library: Tensor, source: Design, target: Design
    ) -> tuple[Tensor, Tensor]:
        """Carry cells from their conditions to others.

        Args:
            z: (N, D) latents.
            library: (N,).
            source: their conditions.
            target: those that they are to have.

        Returns:
            latents and libraries under the new conditions.
        """
        y = (torch.cat([z, library.log()[:, None]], 1) - self.mean) / self.scale
        path = self.model.path
        noise = self._flow(y * path.at(path.t_min).alpha, source, path.t_min, path.t_max)
        back = self._flow(noise, target, path.t_max, path.t_min)
        return self._split(back / path.at(path.t_min).alpha)

    def _flow(self, y: Tensor, design: Design, start: float, end: float) -> Tensor:
        """Along the probability flow under given conditions."""
        denoise = self.model.bind(_context(design))
        return odeint(lambda t, x: denoise(x, t).velocity, y, start, end, rtol=1e-4, atol=1e-4)

    def _split(self, y: Tensor) -> tuple[Tensor, Tensor]:
        y = y * self.scale + self.mean
        return y[:, :-1], y[:, -1].exp()

    def choose(self, cells: int, where: Mapping[str, str], seed: int) -> pd.DataFrame:
        """Conditions of new cells: those asked for, the others as they come with them in training.

        Args:
            cells: N.
            where: column -> category that all cells shall have.
            seed: of the draw.

        Returns:
            (N, columns) table; a combination that training never saw takes the other columns from
            all cells.

        Raises:
            AleatorError: a column or a category that is not known.
        """
        if cells < 1:
            raise AleatorError(f"{cells} new cells: at least one is needed")
        codes, values = self.rows.codes, self.rows.values
        fits = np.ones(len(codes), bool)
        for column, value in where.items():
            place, code = self.place(column, value)
            fits &= codes[:, place] == code
        pool = np.flatnonzero(fits) if fits.any() else np.arange(len(codes))
        stream = np.random.default_rng(seed)  # the first cells are the same, however many
        drawn = pool[stream.integers(0, len(pool), cells)]
        table = {
            group.key: np.array(group.categories, dtype=object)[codes[drawn, k]]
            for k, group in enumerate(self.conditions.groups)
        }
        table |= {
            number.key: values[drawn, k] * number.std + number.mean
            for k, number in enumerate(self.conditions.continuous)
        }
        index = pd.Index([f"generated-{i}" for i in range(cells)])
        return pd.DataFrame({**table, **where}, index=index)

    def place(self, column: str, value: str) -> tuple[int, int]:
        """Number of a column and code of a category.

        Raises:
            AleatorError: it is not known; the known ones are listed.
        """
        keys = [group.key for group in self.conditions.groups]
        if column not in keys:
            known = ", ".join(keys) or "none: fit it with --like COLUMN"
            raise AleatorError(f"cells are not generated by {column}; columns known: {known}")
        group = self.conditions.groups[keys.index(column)]
        if value not in group.categories:
            raise AleatorError(
                f"{column}={value} was not seen in training (known: {some(group.categories, 12)})"
            )
        return keys.index(column), group.categories.index(value)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"config": asdict(self.config), "conditions": self.conditions.to_dict()}

    def tensors(self) -> dict[str, Tensor]:
        """Everything else, for a checkpoint."""
        weights = {f"prior.{k}": v for k, v in self.model.state_dict().items()}
        rows = {
            "codes": torch.from_numpy(self.rows.codes),
            "values": torch.from_numpy(self.rows.values),
        }
        return {**weights, **rows, "mean": self.mean, "scale": self.scale}

    @classmethod
    def from_dict(cls, state: dict[str, Any], tensors: dict[str, Tensor]) -> CellPrior:
        """Undo `to_dict` and `tensors`."""
        conditions = Covariates.from_dict(state["conditions"])
        config = PriorConfig(**state["config"])
        model = _build(config, len(tensors["mean"]), conditions.width)
        model.load_state_dict(
            {k.removeprefix("prior."): v for k, v in tensors.items() if k.startswith("prior.")}
        )
        sizes = tuple(len(group.categories) for group in conditions.groups)
        rows = Design(tensors["codes"].numpy(), tensors["values"].numpy(), sizes)
        return cls(model.eval(), tensors["mean"], tensors["scale"], conditions, rows, config)


def fit_prior(
    model: CellVAE,
    counts: Counts,
    design: Design,
    conditions: Covariates,
    rows: Design,
    config: PriorConfig,
    *,
    seed: int = 0,
    device: str = "auto",
    progress: bool = False,
) -> CellPrior:
    """Learn what latents and libraries of cells look like under their conditions.

    Args:
        model: trained; it is not changed.
        counts: (N, G) of the model's genes.
        design: of the cells, for the model.
        conditions: of the prior.
        rows: conditions of the cells, encoded.
        config: of the prior.
        seed: of weights, noise and held-out cells.
        device: where.
        progress: show it.

    Raises:
        AleatorError: too few cells.
    """
    if len(counts) < FEW:
        raise AleatorError(f"{len(counts)} cells are too few to generate from; {FEW} are needed")
    centre, width = latents(model, counts, design)
    width = torch.cat([width * config.spread, width.new_zeros(len(width), 1)], 1)
    mean = centre.mean(0)
    scale = (centre.var(0) + width.square().mean(0)).sqrt().clamp(min=1e-6)
    centre, width = (centre - mean) / scale, width / scale
    order = torch.randperm(len(centre), generator=keyed_generator(seed, 1))
    kept, held = order[round(HELD_OUT * len(order)) :], order[: round(HELD_OUT * len(order))]
    matrix = torch.from_numpy(rows.matrix())

    def batches(step: int, generator: torch.Generator) -> tuple[Tensor, Context]:
        chosen = kept[torch.randint(len(kept), (config.batch_size,), generator=generator)]
        noise = torch.randn((len(chosen), centre.shape[1]), generator=generator)
        return centre[chosen] + width[chosen] * noise, _vector(matrix[chosen])

    def score(found: Any) -> float:
        generator = keyed_generator(seed, 2)
        shown = held.repeat(REPEATS)
        noise = torch.randn((len(shown), centre.shape[1]), generator=generator)
        y, context = centre[shown] + width[shown] * noise, _vector(matrix[shown])
        place = next(found.parameters()).device
        context = context if context is None else {k: v.to(place) for k, v in context.items()}
        return float(found.loss(y.to(place), context, generator=generator).value.mean())

    options = FitConfig(
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        ema=0.998,
        validate_every=max(1, config.steps // 15),
        patience=4,
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        torch.manual_seed(seed)
        net = _build(config, centre.shape[1], matrix.shape[1])
        fitted = fit(
            net,
            batches,
            options,
            folder=folder,
            score=torch.no_grad()(score),
            device=device,
            progress="steps of the prior" if progress else None,
        )
    assert isinstance(fitted.model, PathModel)
    few = np.random.default_rng([seed, len(rows)]).permutation(len(rows))[:ROWS]
    kept_rows = replace(rows, codes=rows.codes[few], values=rows.values[few])
    return CellPrior(fitted.model.eval(), mean, scale, conditions, kept_rows, config)


@torch.no_grad()
def latents(model: CellVAE, counts: Counts, design: Design) -> tuple[Tensor, Tensor]:
    """Posterior means with log-libraries, (N, D + 1), and standard deviations (N, D)."""
    centre, width = [], []
    for start, stop, block in counts.blocks(256):
        x = torch.from_numpy(block.toarray())
        library = x.sum(1).clamp(min=1.0)
        part = design.take(slice(start, stop))
        q = model.encode(x, make_context(library.numpy(), part, slice(None)))
        centre.append(torch.cat([q.mean, library.log()[:, None]], 1))
        width.append(q.stddev)
    return torch.cat(centre), torch.cat(width)


def conditions_of(
    known: Covariates, obs: pd.DataFrame, where: str, like: Sequence[str]
) -> Covariates:
    """What a prior is conditioned on: the model's covariates, and further columns.

    Args:
        known: of the model.
        obs: table of the cells.
        where: their file, for messages.
        like: further columns of categories.

    Raises:
        AleatorError: a column is missing or no category.
    """
    keys = [group.key for group in known.groups]
    numbers = [number.key for number in known.continuous]
    if wrong := [key for key in like if key in numbers]:
        raise AleatorError(f"{wrong[0]} is a number of the model, not a category to generate by")
    more = [key for key in dict.fromkeys(like) if key not in keys]
    found = Covariates.fit(obs, where, categorical=more)
    return Covariates(None, (*known.groups, *found.categorical), known.continuous)


def _build(config: PriorConfig, size: int, conditions: int) -> PathModel:
    net = {
        "name": "mlp",
        "width": config.width,
        "blocks": config.blocks,
        "vector_dim": conditions,
    }
    path = {"path": "cosine"} if config.family == "diffusion" else {}
    made = build({"family": config.family, "event_shape": (size,), "net": net, **path})
    assert isinstance(made, PathModel)
    return made


def _context(design: Design) -> dict[str, Tensor] | None:
    return _vector(torch.from_numpy(design.matrix()))


def _vector(matrix: Tensor) -> dict[str, Tensor] | None:
    return {"vector": matrix} if matrix.shape[1] else None
