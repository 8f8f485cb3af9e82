"""One word says what is pasted; the rest says how much, how large, and how the seam is hidden."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.errors import AleatorError
from core.training import FitConfig

KINDS = ("none", "paste", "textures", "vae", "flow", "diffusion", "flow_matching")
WITHOUT_TRAINING = ("textures",)
"""Kinds that can be mixed into another one."""
BLENDS = ("feather", "poisson")


@dataclass(frozen=True)
class PlacementConfig:
    """How patches come into a picture.

    Attributes:
        most: objects in one picture; how many is drawn from 0 to this.
        known: share of the pastes that show the known: parts of other training pictures, under
            their own labels, with the same shapes and seams. This is what keeps a network from
            learning the seam.
        near: height of an object on the lowest row, as a share of the picture's.
        far: likewise on the horizon row.
        horizon: row of the horizon, as a share of the height.
        spread: standard deviation of the logarithm of the size.
        anywhere: share of objects that keep to no perspective.
        feather: widest border that fades, in pixels.
        tone: most of the way from an object's own mean and contrast to its surroundings'.
        recolour: strength of a random change of an unknown object's colours.
        known_recolour: likewise of a pasted known part, so that odd colours alone are no sign.
        soften: largest blur of what is pasted, known or unknown, in pixels; half of it stays
            sharp. The grain of a generator is then no sign either.
        shade: largest contrast of a ramp of light across what is pasted, known or unknown.
        blend: "feather", or "poisson" (gradients instead of values; not for the joint flow).
    """

    most: int = 3
    known: float = 0.4
    near: float = 0.6
    far: float = 0.1
    horizon: float = 0.35
    spread: float = 0.5
    anywhere: float = 0.3
    feather: float = 2.0
    tone: float = 0.8
    recolour: float = 0.6
    known_recolour: float = 0.0
    soften: float = 0.0
    shade: float = 0.0
    blend: str = "feather"

    def __post_init__(self) -> None:
        if self.most < 1:
            raise AleatorError(f"negatives.placement.most={self.most}: at least one is needed")
        for name in ("known", "anywhere", "tone"):
            if not 0 <= getattr(self, name) <= 1:
                raise AleatorError(
                    f"negatives.placement.{name}={getattr(self, name)}: expected 0 to 1"
                )
        for name in ("recolour", "known_recolour", "soften", "shade"):
            if not getattr(self, name) >= 0:
                raise AleatorError(
                    f"negatives.placement.{name}={getattr(self, name)}: it must not be negative"
                )
        if self.blend not in BLENDS:
            raise AleatorError(f"unknown blend {self.blend!r}; known: {', '.join(BLENDS)}")
        if not 0 < self.far <= self.near <= 1.5:
            raise AleatorError(f"sizes far={self.far}, near={self.near}: 0 < far <= near <= 1.5")


@dataclass(frozen=True)
class NegativesConfig:
    """What is pasted.

    Attributes:
        kind: none; paste (cut-outs or textures of `folder`); vae, diffusion, flow_matching
            (trained on patches of the known first, then drawn from); flow (trained on them
            first, then jointly with the segmenter).
        folder: of PNG cut-outs with transparency, or of textures; needed by "paste".
        also: kinds without a training that are mixed in: textures.
        also_share: share of the objects that come from them.
        patch: pixels a side of generated patches.
        bank: patches drawn from a generator that is trained first.
        joint_weight: of the flow's negative log-likelihood per dimension in the joint loss.
        temperature: factor on the noise that a flow or VAE is sampled with.
        model: options of `core.build` for the generator.
        fit: the generator's training on patches of the known.
        placement: how patches come into a picture.
    """

    kind: str = "none"
    folder: str | None = None
    also: tuple[str, ...] = ()
    also_share: float = 0.5
    patch: int = 32
    bank: int = 512
    joint_weight: float = 0.1
    temperature: float = 1.0
    model: Mapping[str, Any] = field(default_factory=dict)
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(
            steps=1000, batch_size=32, validate_every=0, log_every=100, weight_decay=0.01
        )
    )
    placement: PlacementConfig = field(default_factory=PlacementConfig)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise AleatorError(f"unknown negatives {self.kind!r}; known: {', '.join(KINDS)}")
        if self.kind == "paste" and not self.folder:
            raise AleatorError(
                "negatives of kind paste need a folder of cut-outs or textures: "
                "--set negatives.folder=FOLDER"
            )
        if unknown := sorted(set(self.also) - set(WITHOUT_TRAINING)):
            raise AleatorError(
                f"negatives.also={unknown[0]!r}: what can be mixed in is "
                f"{', '.join(WITHOUT_TRAINING)}"
            )
        if self.also and self.kind == "none":
            raise AleatorError('negatives.also needs a kind to be mixed into; say kind="textures"')
        if not 0 <= self.also_share <= 1:
            raise AleatorError(f"negatives.also_share={self.also_share}: expected 0 to 1")
        if self.patch < 8 or self.patch % 8:
            raise AleatorError(f"negatives.patch={self.patch}: a multiple of 8 is needed")
        if self.kind == "flow" and self.placement.blend == "poisson":
            raise AleatorError(
                "Poisson blending passes no gradient to a joint flow; use blend=feather"
            )
        if self.temperature <= 0:
            raise AleatorError(f"negatives.temperature={self.temperature}: it must be positive")

    def but(self, **changes: Any) -> NegativesConfig:
        """With some entries changed."""
        return dataclasses.replace(self, **changes)
