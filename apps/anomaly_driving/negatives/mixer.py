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

from apps.anomaly_driving.negatives.blend import (
    feather,
    poisson,
    shaded,
    softened,
    tone_matched,
)
from apps.anomaly_driving.negatives.config import NegativesConfig, PlacementConfig
from apps.anomaly_driving.negatives.shapes import border_of, feathered, outline
from apps.anomaly_driving.negatives.sources import Piece, Source
from core.random import rand, randn

SOLID, FAINT = 0.6, 0.05
"""Opacity from which a pixel is the pasted object's, and below which it is not touched."""


Box = tuple[slice, slice]
"""Rows and columns of a picture."""


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


@dataclass
class Canvas:
    """One picture while objects come into it; fields as of `Mixed`, without the batch."""

    image: Tensor
    labels: Tensor
    negative: Tensor
    known: Tensor

    def mark(self, box: Box, alpha: Tensor, ids: Tensor | None, void: int) -> None:
        """Note what was pasted into a box: unknown, or known with class ids (h, w)."""
        solid, touched = alpha >= SOLID, alpha > FAINT
        fresh = torch.full_like(self.labels[box], void)
        if ids is not None:
            fresh = torch.where(solid, ids, fresh)
        self.labels[box] = torch.where(touched, fresh, self.labels[box])
        self.negative[box] = torch.where(touched, solid & (ids is None), self.negative[box])
        self.known[box] = torch.where(touched, solid & (fresh != void), self.known[box])


class Mixer(nn.Module):
    """Pastes negatives, and known parts, into batches."""

    def __init__(
        self, source: Source | None, config: NegativesConfig, classes: int, void: int
    ) -> None:
        """Assemble.

        Args:
            source: of the unknown; None to paste nothing, or, with known = 1, the known alone.
            config: placement and weights.
            classes: K.
            void: label id of no class.
        """
        super().__init__()
        self.source, self.config, self.classes, self.void = source, config, classes, void

    @property
    def pastes(self) -> bool:
        """Whether there is anything to paste."""
        return self.source is not None or self.config.placement.known == 1

    def forward(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Mixed:
        """Paste into images (B, 3, H, W) in [0, 1] with labels (B, H, W).

        Gradients reach a source in training, and nothing else.
        """
        nothing = torch.zeros_like(labels, dtype=torch.bool)
        if not self.pastes:
            return Mixed(images, labels, nothing, nothing)
        share = self.config.placement.known
        counts = torch.randint(self.config.placement.most + 1, (len(images),), generator=generator)
        if not counts.sum():
            counts[0] = 1
        shows_known = rand((int(counts.sum()),), generator) < share
        if share < 1 and shows_known.all():
            shows_known[0] = False
        wanted = int((~shows_known).sum())
        drawn = iter(self.source.draw(wanted, generator) if self.source is not None else ())
        pieces = iter([None if known else next(drawn) for known in shows_known.tolist()])
        canvases = []
        for index, count in enumerate(counts.tolist()):
            empty = torch.zeros_like(nothing[index])
            canvas = Canvas(images[index], labels[index].clone(), empty, empty.clone())
            self._fill(canvas, [next(pieces) for _ in range(count)], images, labels, generator)
            canvases.append(canvas)
        return Mixed(
            torch.stack([c.image for c in canvases]),
            torch.stack([c.labels for c in canvases]),
            torch.stack([c.negative for c in canvases]),
            torch.stack([c.known for c in canvases]),
        )

    def likelihood_loss(
        self, images: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor] | None:
        """The source's own loss on known pictures: weighted, and as it is; None without one."""
        if self.source is None:
            return None
        value = self.source.likelihood_loss(images, generator)
        return None if value is None else (self.config.joint_weight * value, value)

    def _fill(
        self,
        canvas: Canvas,
        pieces: list[Piece | None],
        images: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> None:
        """Paste pieces, far ones first; None stands for a part of another picture."""
        shape = canvas.labels.shape
        height, width = shape
        places = [place_of(self.config.placement, height, width, generator) for _ in pieces]
        places.sort(key=lambda place: place.top + place.height)
        for piece, place in zip(pieces, places, strict=True):
            if piece is not None:
                piece, place = fitted(piece, place, canvas.image.shape, generator)
                colour = recoloured(piece.pixels, self.config.placement.recolour, generator)
                box, alpha = self._blend(canvas, Piece(colour, piece.opacity), place, generator)
                canvas.mark(box, alpha, None, self.void)
            else:
                other = int(torch.randint(len(images), (1,), generator=generator))
                part = part_like(place, shape, generator)
                pixels = images[(other, slice(None), *part)]
                if self.config.placement.known_recolour:
                    strength = self.config.placement.known_recolour
                    pixels = recoloured(pixels, strength, generator)
                box, alpha = self._blend(canvas, Piece(pixels), place, generator)
                ids = resized_ids(labels[(other, *part)], place, self.void)
                ids = ids[_visible(place, border_of(place.feather), shape)]
                canvas.mark(box, alpha, ids, self.void)

    def _blend(
        self, canvas: Canvas, piece: Piece, place: Place, generator: torch.Generator
    ) -> tuple[Box, Tensor]:
        """Put a piece into the picture: the box that it touched, and its opacity there."""
        config, shape = self.config.placement, canvas.labels.shape
        margin, size = border_of(place.feather), (place.height, place.width)
        pixels = F.interpolate(piece.pixels[None], size, mode="bilinear", antialias=True)[0]
        pixels = softened(shaded(pixels, config.shade, generator), config.soften, generator)
        if piece.opacity is None:
            inside = outline(*size, generator)
        else:
            own = F.interpolate(piece.opacity[None, None], size, mode="bilinear", antialias=True)
            inside = own[0, 0] > 0.5
        visible, box = _visible(place, margin, shape), _box(place, margin, shape)
        alpha = feathered(inside, place.feather)[visible].to(pixels)
        pixels = F.pad(pixels[None], (margin,) * 4, mode="replicate")[0][(slice(None), *visible)]
        below = canvas.image[(slice(None), *box)]
        strength = config.tone * rand((1,), generator).to(below)
        pixels = tone_matched(pixels, alpha, below, strength).clamp(0, 1)
        if config.blend == "poisson":
            merged = poisson(below, pixels, alpha > 0.5)
        else:
            merged = feather(below, pixels, alpha)
        inset = torch.zeros_like(canvas.image)
        inset[(slice(None), *box)] = merged - below
        canvas.image = canvas.image + inset
        return box, alpha


def part_like(place: Place, shape: torch.Size, generator: torch.Generator) -> Box:
    """A random part of a picture, from 0.6 to 1.6 times smaller than a place."""
    zoom, down, across = rand((3,), generator).tolist()
    rows = min(max(2, round(place.height / (0.6 + zoom))), shape[0])
    columns = min(max(2, round(place.width / (0.6 + zoom))), shape[1])
    top, left = int(down * (shape[0] - rows + 1)), int(across * (shape[1] - columns + 1))
    return slice(top, top + rows), slice(left, left + columns)


def resized_ids(ids: Tensor, place: Place, void: int) -> Tensor:
    """Class ids (h, w) at a place's size, by the nearest pixel, with its margin as void."""
    size = (place.height, place.width)
    near = F.interpolate(ids[None, None].float(), size, mode="nearest-exact")[0, 0].long()
    return F.pad(near, (border_of(place.feather),) * 4, value=void)


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


def _box(place: Place, margin: int, shape: torch.Size) -> Box:
    """The part of the picture that a place with its margin covers."""
    top, left = place.top - margin, place.left - margin
    bottom, right = place.top + place.height + margin, place.left + place.width + margin
    return (
        slice(max(top, 0), max(min(bottom, shape[0]), 0)),
        slice(max(left, 0), max(min(right, shape[1]), 0)),
    )


def _visible(place: Place, margin: int, shape: torch.Size) -> Box:
    """The part of the padded piece that is inside the picture."""
    rows, columns = _box(place, margin, shape)
    top, left = place.top - margin, place.left - margin
    return (
        slice(rows.start - top, rows.stop - top),
        slice(columns.start - left, columns.stop - left),
    )
