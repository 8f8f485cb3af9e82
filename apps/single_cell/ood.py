r"""How unlike the training cells a cell is.

    s = -ELBO,   expected s = a + b ln n + c (ln n)²,   score = (s - expected) / threshold

Deep cells have more to say, so surprise is compared at the same depth n. The threshold is what
98 % of cells stay below that are like the training cells but were not trained on: scores above 1
are rare among cells of the same kind.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

QUANTILE = 0.98
WARN_ABOVE = 1.0


@dataclass(frozen=True)
class Surprise:
    """Expected surprise at a depth, and what is unusual.

    Attributes:
        coefficients: a, b, c per molecule-free scale, in ln n.
        centre: median of what is left over in unseen cells, relative.
        threshold: `QUANTILE` of it, above the centre.
    """

    coefficients: tuple[float, float, float]
    centre: float
    threshold: float

    @classmethod
    def fit(
        cls,
        elbo: np.ndarray,
        library: np.ndarray,
        unseen_elbo: np.ndarray,
        unseen_library: np.ndarray,
    ) -> Surprise:
        """From cells that were trained on, and cells that were not.

        Args:
            elbo: (N,) nats.
            library: (N,) molecules.
            unseen_elbo: (M,).
            unseen_library: (M,).
        """
        x, y = np.log(library), np.log(np.maximum(-elbo, 1e-6))
        a = np.stack([np.ones_like(x), x, x**2], 1)
        weight = np.ones_like(x)
        for _ in range(5):  # least absolute deviations, by reweighting
            fitted = np.linalg.lstsq(a * weight[:, None], y * weight, rcond=None)[0]
            weight = 1 / np.sqrt(np.maximum(np.abs(y - a @ fitted), 1e-3))
        found = cls((float(fitted[0]), float(fitted[1]), float(fitted[2])), 0.0, 1.0)
        apart = found.score(unseen_elbo, unseen_library)
        centre = float(np.median(apart))
        threshold = max(float(np.quantile(apart, QUANTILE)) - centre, 1e-3)
        return cls(found.coefficients, centre, threshold)

    def score(self, elbo: np.ndarray, library: np.ndarray) -> np.ndarray:
        """Scores (N,) of cells; above 1 is unusual."""
        a, b, c = self.coefficients
        x = np.log(np.maximum(library, 1.0))
        apart = np.log(np.maximum(-elbo, 1e-6)) - (a + b * x + c * x**2)
        return (apart - self.centre) / self.threshold

    def to_dict(self) -> dict[str, object]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: dict) -> Surprise:
        """Undo `to_dict`, also after JSON."""
        a, b, c = state["coefficients"]
        return cls((a, b, c), state["centre"], state["threshold"])
