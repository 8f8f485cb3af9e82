"""How a model of cells is made and trained; what is None is chosen on the user's own data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from apps.single_cell.likelihood import KINDS, Kind
from core.errors import AleatorError

Dispersion = Literal["gene", "gene-batch"]
DROPOUT = 0.1
"""Share of hidden features left out in training, if nothing else is said."""


@dataclass(frozen=True)
class Config:
    """Options of the model; `select` fills in what is None by molecular cross-validation.

    Attributes:
        latent: dimensions of the latent space.
        width: hidden features of encoder and decoder.
        likelihood: "nb", "poisson" or "zinb".
        dispersion: of each "gene", or of each gene in each batch ("gene-batch").
        strength: precision of the normal prior on what a hidden feature does to a gene; what the
            counts of a rare gene cannot show stays near the gene's mean.
        dropout: share of hidden features left out in training; None for `DROPOUT`, or for none
            where cells are to be generated.
        components: Gaussians of a prior of the latents that is learned with the model; None for
            the standard normal, or for some where cells are to be generated.
        thinned: train the encoder on a random part of each cell's molecules and the decoder on the
            others (noise that one part has is not in the other); None where cells are to be
            generated, and only there.
        steps: optimiser steps; None chooses by the number of cells and stops early.
        batch_size: cells a step.
        learning_rate: at its peak.
        shrinkage: weight, from 0 (the library mean) to 1 (as it was trained), of what the latent
            space says of a cell; None chooses one for each of its directions.
    """

    latent: int | None = None
    width: int = 128
    likelihood: Kind | None = None
    dispersion: Dispersion = "gene"
    strength: float | None = None
    dropout: float | None = None
    components: int | None = None
    thinned: bool | None = None
    steps: int | None = None
    batch_size: int = 128
    learning_rate: float = 6e-3
    shrinkage: float | None = None

    def __post_init__(self) -> None:
        for name in ("latent", "width", "steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise AleatorError(f"{name}={value}: at least 1 is needed")
        if self.likelihood is not None and self.likelihood not in KINDS:
            raise AleatorError(f"likelihood={self.likelihood!r}; known: {', '.join(KINDS)}")
        if self.dispersion not in ("gene", "gene-batch"):
            raise AleatorError(f"dispersion={self.dispersion!r}; known: gene, gene-batch")
        if self.strength is not None and self.strength < 0:
            raise AleatorError(f"strength={self.strength}: it must not be negative")
        if self.shrinkage is not None and not 0 <= self.shrinkage <= 1:
            raise AleatorError(f"shrinkage={self.shrinkage}: a weight from 0 to 1 is expected")
        if self.components is not None and self.components < 0:
            raise AleatorError(f"components={self.components}: a whole number >= 0 is needed")
        if not 0 <= (self.dropout or 0.0) < 1 or self.learning_rate <= 0:
            raise AleatorError(
                f"dropout={self.dropout}, learning_rate={self.learning_rate}: a share below 1 and "
                "a positive rate are needed"
            )

    @property
    def chosen(self) -> bool:
        """Whether nothing is left to select."""
        return None not in (self.latent, self.likelihood, self.strength, self.steps)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)
