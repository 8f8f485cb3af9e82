"""What molecular cross-validation found on the user's own data, in numbers and in a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Verdict:
    """Losses of held-out molecules on the user's own data, and what follows.

    Attributes:
        losses: method -> corrected Poisson loss, nats per value; "ours" is this model.
        differences: other method -> (ours - theirs, its standard error), paired by cell.
        coverage: share of held-out molecules' randomised ranks inside the central 90 %.
        cells: that were scored.
        tried: candidates and their losses after a short run.
        curve: (level, share of ranks inside the central interval of that level).
    """

    losses: dict[str, float]
    differences: dict[str, tuple[float, float]]
    coverage: float
    cells: int
    tried: tuple[tuple[str, float], ...] = ()
    curve: tuple[tuple[float, float], ...] = ()

    @property
    def best(self) -> str:
        """The method with the least loss."""
        return min(self.losses, key=lambda name: self.losses[name])

    @property
    def helps(self) -> bool:
        """Whether ours is better than every alternative by more than twice the error."""
        return all(mean + 2 * error < 0 for mean, error in self.differences.values())

    @property
    def hurts(self) -> bool:
        """Whether an alternative is better than ours by more than twice the error."""
        return any(mean - 2 * error > 0 for mean, error in self.differences.values())

    def sentence(self, *, generates: bool = False) -> str:
        """What a user should know.

        Args:
            generates: of a model that is made to generate cells, and is not drawn in.
        """
        listed = ", ".join(f"{name} {loss:.5f}" for name, loss in self.losses.items())
        told = f"held-out molecules, corrected Poisson loss (less is better): {listed}; "
        if self.helps:
            told += "denoising helps here"
        elif self.hurts:
            told += f"denoising hurts here: {self.best} predicts better, use that instead"
        else:
            told += f"no difference that can be told: {self.best} has the least loss"
        if generates and not self.helps:
            told += " (of this model, made to generate cells; `denoise` fits one that is drawn in)"
        return f"{told}; {self.coverage:.1%} of held-out molecules inside their 90 % intervals"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, also fit for `uns`."""
        return {
            "losses": dict(self.losses),
            "differences": {name: list(pair) for name, pair in self.differences.items()},
            "coverage": self.coverage,
            "cells": self.cells,
            "tried": dict(self.tried),
            "curve": {f"{level:g}": share for level, share in self.curve},
            "helps": self.helps,
            "hurts": self.hurts,
            "sentence": self.sentence(),
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Verdict:
        """Undo `to_dict`."""
        differences = {name: (pair[0], pair[1]) for name, pair in state["differences"].items()}
        tried = tuple(state["tried"].items())
        curve = tuple((float(k), share) for k, share in state.get("curve", {}).items())
        return cls(state["losses"], differences, state["coverage"], state["cells"], tried, curve)
