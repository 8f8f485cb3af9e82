"""How an inference model is built and trained; checked where it comes in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from core.errors import AleatorError
from core.training import FitConfig

Method = Literal["npe", "nle"]
METHODS = ("npe", "nle")

_POSTERIOR: dict[str, Any] = {
    "steps": 600, "batch_size": 96, "learning_rate": 1e-3, "warmup": 50, "weight_decay": 0.5,
    "ema": 0.99, "validate_every": 50, "patience": 5, "save_every": 200, "precision": "32-true",
}  # fmt: skip
_LIKELIHOOD: dict[str, Any] = {
    "steps": 3000, "batch_size": 512, "learning_rate": 2e-3, "warmup": 50, "weight_decay": 1e-3,
    "clip": 5.0, "ema": 0.995, "validate_every": 200, "patience": 4, "save_every": 500,
    "precision": "32-true",
}  # fmt: skip


@dataclass(frozen=True)
class InferenceConfig:
    """Options of `train-inference`.

    Attributes:
        method: "npe", a posterior of sets; "nle", a likelihood of events.
        folds: parts that the parameters are split into: each member of the ensemble is trained
            without one, which stops it, calibrates it and judges it.
        members: networks per fold.
        network: options of the network: `SetPosterior` (npe) or the flow of events (nle).
        fit: options of `core.training.FitConfig`.
    """

    method: Method = "npe"
    folds: int = 5
    members: int = 1
    network: Mapping[str, Any] = field(default_factory=dict)
    fit: FitConfig = field(default_factory=lambda: FitConfig(**_POSTERIOR))

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise AleatorError(f"method {self.method!r}; known: {', '.join(METHODS)}")
        if self.folds < 2 or self.members < 1:
            raise AleatorError(
                f"folds={self.folds}, members={self.members}: at least 2 and 1 are needed"
            )

    def json(self) -> dict[str, Any]:
        """As a mapping."""
        return {**asdict(self), "network": dict(self.network)}


def make_config(method: str, settings: Mapping[str, Any], seed: int) -> InferenceConfig:
    """Defaults of a method, with the user's settings.

    Raises:
        AleatorError: an unknown method or option, or a value out of range.
    """
    if method not in METHODS:
        raise AleatorError(f"method {method!r}; known: {', '.join(METHODS)}")
    own = {f.name for f in fields(InferenceConfig)} - {"method"}
    if unknown := set(settings) - own:
        raise AleatorError(f"--set {min(unknown)}: known are {', '.join(sorted(own))}")
    defaults = _POSTERIOR if method == "npe" else _LIKELIHOOD
    given = dict(settings.get("fit", {}))
    if unknown := set(given) - {f.name for f in fields(FitConfig)}:
        raise AleatorError(f"fit has no option {min(unknown)!r}")
    try:
        fit = FitConfig(**{**defaults, "seed": seed, **given})
        chosen = InferenceConfig(
            method=method,  # type: ignore[arg-type]
            network=dict(settings.get("network", {})),
            fit=fit,
            folds=settings.get("folds", 5 if method == "npe" else 2),
            members=settings.get("members", 1),
        )
    except TypeError as error:
        raise AleatorError(f"--set: a value of the wrong kind ({error})") from None
    return chosen


def seeded(config: FitConfig, member: int) -> FitConfig:
    """The same options with a seed of this member's own."""
    return replace(config, seed=config.seed + 1000 * (member + 1))
