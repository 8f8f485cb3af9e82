"""Pictures with something pasted into them, unknown or known, by the same hands.

Where and how large follows a road scene's perspective, with exceptions; the outline is a random
blob (or a cut-out's own), the border fades, the tone goes towards the surroundings. A share of the
pastes are parts of other training pictures under their own labels: shape, border and tone then
tell nothing, and only what is inside can.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apps.anomaly_driving.negatives.blend import feather, poisson, tone_matched
from apps.anomaly_driving.negatives.config import NegativesConfig, PlacementConfig
from apps.anomaly_driving.negatives.shapes import border_of, feathered, outline
from apps.anomaly_driving.negatives.sources import Piece, Source
from core.random import rand, randn

SOLID, FAINT = 0.6, 0.05
"""Opacity from which a pixel is the pasted object's, and below which it is not touched."""


@dataclass(frozen=True)
class Mixed:
    """What pasting makes of B pictures.

    Attributes:
        images: (B, 3, H, W).
        labels: (B, H, W): void where something unknown was pasted and on faded borders; the
            pasted labels where it was known.
        negative: bool (B, H, W), where something unknown was pasted.
        known: bool (B, H, W), where something known was.
    """

    images: Tensor
    labels: Tensor
    negative: Tensor
    known: Tensor


@dataclass(frozen=True)
class Place:
    """Where one object goes.

    Attributes:
        top: row of its box.
        left: column of it.
        height: rows.
        width: columns.
        feather: pixels over which the border fades.
    """

    top: int
    left: int
    height: int
    width: int
    feather: float


class Mixer(nn.Module):
    """Pastes negatives, and known parts, into batches."""

    def __init__(
        self, source: Source | None, config: NegativesConfig, classes: int, void: int
    ) -> None:
        """Assemble.

        Args:
            source: of the unknown; None to paste nothing at all.
            config: placement and weights.
            classes: K; only parts whose pixels are mostly of these are pasted as known.
            void: label id of no class.
        """
        super().__init__()
        self.source, self.config, self.classes, self.void = source, config, classes, void

    @property
    def pastes(self) -> bool:
        """Whether there is anything to paste."""
        return self.source is not None

    def forward(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Mixed:
        """Paste into images (B, 3, H, W) in [0, 1] with labels (B, H, W).

        Gradients reach a source in training, and nothing else.
        """
        nothing = torch.zeros_like(labels, dtype=torch.bool)
        if self.source is None:
            return Mixed(images, labels, nothing, nothing)
        place = self.config.placement
        counts = torch.randint(place.most + 1, (len(images),), generator=generator)
        if not counts.sum():
            counts[0] = 1
        shows_known = rand((int(counts.sum()),), generator) < place.known
        if shows_known.all():
            shows_known[0] = False
        drawn = iter(self.source.draw(int((~shows_known).sum()), generator))
        flags = iter(shows_known.tolist())
        parts = [
            self._into(b, images, labels, int(count), flags, drawn, generator)
            for b, count in enumerate(counts.tolist())
        ]
        return Mixed(*(torch.stack(column) for column in zip(*parts, strict=True)))  # type: ignore[arg-type]

    def likelihood_loss(
        self, images: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor] | None:
        """The source's own loss on known pictures: weighted, and as it is; None without one."""
        if self.source is None:
            return None
        value = self.source.likelihood_loss(images, generator)
        return None if value is None else (self.config.joint_weight * value, value)

    def _into(
        self,
        index: int,
        images: Tensor,
        labels: Tensor,
        count: int,
        flags: object,
        drawn: object,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Paste `count` objects into one picture, far ones first."""
        image, label = images[index], labels[index].clone()
        negative = torch.zeros_like(label, dtype=torch.bool)
        known = negative.clone()
        places = [place_of(self.config.placement, *label.shape, generator) for _ in range(count)]
        for place in sorted(places, key=lambda p: p.top + p.height):
            if next(flags):  # type: ignore[call-overload]
                other = int(torch.randint(len(images), (1,), generator=generator))
                image = self._known(
                    image, label, negative, known, images[other], labels[other], place, generator
                )
            else:
                piece: Piece = next(drawn)  # type: ignore[call-overload]
                image = self._unknown(image, label, negative, known, piece, place, generator)
        return image, label, negative, known

    def _unknown(
        self,
        image: Tensor,
        label: Tensor,
        negative: Tensor,
        known: Tensor,
        piece: Piece,
        place: Place,
        generator: torch.Generator,
    ) -> Tensor:
        piece, place = fitted(piece, place, image.shape, generator)
        piece = Piece(
            recoloured(piece.pixels, self.config.placement.recolour, generator), piece.opacity
        )
        image, box, alpha = self._blended(image, piece, place, generator)
        solid, touched = alpha >= SOLID, alpha > FAINT
        label[box][touched] = self.void
        negative[box][touched] = solid[touched]
        known[box][touched] = False
        return image

    def _known(
        self,
        image: Tensor,
        label: Tensor,
        negative: Tensor,
        known: Tensor,
        other: Tensor,
        other_label: Tensor,
        place: Place,
        generator: torch.Generator,
    ) -> Tensor:
        """A part of another picture, enlarged or shrunk a little, with its labels."""
        zoom, down, across = rand((3,), generator).tolist()
        factor = 0.6 + zoom
        rows = min(max(2, round(place.height / factor)), other.shape[1])
        columns = min(max(2, round(place.width / factor)), other.shape[2])
        top, left = (
            int(down * (other.shape[1] - rows + 1)),
            int(across * (other.shape[2] - columns + 1)),
        )
        part = (slice(top, top + rows), slice(left, left + columns))
        image, box, alpha = self._blended(image, Piece(other[(..., *part)]), place, generator)
        margin = border_of(place.feather)
        size = (place.height, place.width)
        ids = F.interpolate(other_label[part][None, None].float(), size, mode="nearest")[0, 0]
        ids = F.pad(ids, (margin,) * 4, value=self.void).long()
        ids = ids[_visible(place, margin, image.shape)]
        solid, touched = alpha >= SOLID, alpha > FAINT
        label[box] = torch.where(solid, ids, torch.where(touched, self.void, label[box]))
        negative[box][touched] = False
        known[box][touched] = (solid & (ids != self.void))[touched]
        return image

    def _blended(
        self, image: Tensor, piece: Piece, place: Place, generator: torch.Generator
    ) -> tuple[Tensor, tuple[slice, slice], Tensor]:
        """The picture with the piece in it, the box that it touched, and the opacity there."""
        config = self.config.placement
        margin = border_of(place.feather)
        size = (place.height, place.width)
        pixels = F.interpolate(piece.pixels[None], size, mode="bilinear", antialias=True)[0]
        if piece.opacity is None:
            inside = outline(*size, generator)
        else:
            own = F.interpolate(piece.opacity[None, None], size, mode="bilinear", antialias=True)
            inside = own[0, 0] > 0.5
        alpha = feathered(inside, place.feather).to(pixels)
        pixels = F.pad(pixels[None], (margin,) * 4, mode="replicate")[0]
        visible = _visible(place, margin, image.shape)
        alpha, pixels = alpha[visible], pixels[(..., *visible)]
        box = _box(place, margin, image.shape)
        below = image[(..., *box)]
        strength = config.tone * rand((1,), generator).to(image)
        pixels = tone_matched(pixels, alpha, below, strength).clamp(0, 1)
        if config.blend == "poisson":
            merged = poisson(below, pixels, alpha > 0.5)
        else:
            merged = feather(below, pixels, alpha)
        inset = torch.zeros_like(image)
        inset[(..., *box)] = merged - below
        return image + inset, box, alpha


def place_of(
    config: PlacementConfig, height: int, width: int, generator: torch.Generator
) -> Place:
    """A box in a picture of height × width: small towards the horizon, large near the camera."""
    row, column, free, aspect, wide = rand((5,), generator).tolist()
    size, bend = randn((2,), generator).tolist()
    if free < config.anywhere:
        bottom = 0.15 + 0.85 * row
        share = config.far * (config.near / config.far) ** aspect
    else:
        bottom = config.horizon + (1 - config.horizon) * row
        share = config.far + (config.near - config.far) * row
    rows = height * share * 2.718281828 ** (config.spread * size)
    columns = rows * 2.718281828 ** (0.4 * bend)
    rows, columns = (
        min(max(8, round(n)), round(0.9 * limit))
        for n, limit in ((rows, height), (columns, width))
    )
    top = round(bottom * height) - rows
    left = round(column * (width + 0.5 * columns) - 0.75 * columns)
    return Place(
        *(max(-rows // 4, min(top, height - rows // 2)), max(-columns // 2, left)),
        *(rows, columns, config.feather * wide),
    )


def fitted(
    piece: Piece, place: Place, shape: torch.Size, generator: torch.Generator
) -> tuple[Piece, Place]:
    """Texture mirrored and tiled to a random grain; a cut-out's box in its own proportions."""
    flip, grain = rand((2,), generator).tolist()
    pixels, opacity = piece.pixels, piece.opacity
    if flip < 0.5:
        pixels = pixels.flip(-1)
        opacity = None if opacity is None else opacity.flip(-1)
    if opacity is not None:
        rows = min(place.height, shape[1])
        columns = max(4, round(rows * pixels.shape[2] / pixels.shape[1]))
        if columns > 0.9 * shape[2]:
            rows, columns = max(4, round(rows * 0.9 * shape[2] / columns)), round(0.9 * shape[2])
        bottom = place.top + place.height
        centre = min(max(place.left + place.width // 2, 0), shape[2])
        left = centre - columns // 2
        return Piece(pixels, opacity), Place(bottom - rows, left, rows, columns, place.feather)
    tiles = 1 + int(3 * grain) if grain > 0.5 else 1
    return Piece(mirrored(pixels, tiles)), place


def mirrored(pixels: Tensor, tiles: int) -> Tensor:
    """A texture (3, h, w) continued by its mirror images to tiles × tiles of itself."""
    if tiles == 1:
        return pixels
    row = torch.cat([pixels if i % 2 == 0 else pixels.flip(-1) for i in range(tiles)], -1)
    return torch.cat([row if i % 2 == 0 else row.flip(-2) for i in range(tiles)], -2)


def recoloured(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Other colours and another contrast, differentiably: (3, h, w)."""
    if not strength:
        return pixels
    draw = 2 * rand((5,), generator).to(pixels) - 1
    turn = torch.randperm(3, generator=generator)
    mixed = torch.lerp(pixels, pixels[turn], strength * draw[0].abs())
    level = mixed.mean((1, 2), keepdim=True)
    mixed = level + (mixed - level) * (strength * draw[1]).exp()
    return (mixed + 0.3 * strength * draw[2:5, None, None]).clamp(0, 1)


def _box(place: Place, margin: int, shape: torch.Size) -> tuple[slice, slice]:
    """The part of the picture that a place with its margin covers."""
    top, left = place.top - margin, place.left - margin
    bottom, right = place.top + place.height + margin, place.left + place.width + margin
    return (
        slice(max(top, 0), max(min(bottom, shape[1]), 0)),
        slice(max(left, 0), max(min(right, shape[2]), 0)),
    )


def _visible(place: Place, margin: int, shape: torch.Size) -> tuple[slice, slice]:
    """The part of the padded piece that is inside the picture."""
    rows, columns = _box(place, margin, shape)
    top, left = place.top - margin, place.left - margin
    return (
        slice(rows.start - top, rows.stop - top),
        slice(columns.start - left, columns.stop - left),
    )
