"""How `images/` was made: four road photographs made smaller, one with a chair pasted into it.

python -m apps.anomaly_driving.samples.make_samples ROADS CUTOUTS

ROADS is a folder with the photographs of udacity's CarND lane-finding projects (MIT), CUTOUTS one
with `val_chair_1993_2698543.png`, cut out of a photograph under CC BY 2.0; see README.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from apps.anomaly_driving.files import read_image, write_image
from apps.anomaly_driving.negatives.blend import feather, tone_matched
from apps.anomaly_driving.negatives.shapes import border_of, feathered
from apps.anomaly_driving.negatives.sources import read_piece

HERE = Path(__file__).parent
ROADS = ("solidWhiteCurve", "test1", "test3", "test2")
PASTED, CHAIR = "test2", "val_chair_1993_2698543.png"
WIDTH, TALL, LEFT, BOTTOM = 768, 84, 430, 372
"""Pixels: width of the pictures; height and place of the chair."""


def main(roads: Path, cutouts: Path) -> None:
    """Write the pictures."""
    import cv2

    for name in ROADS:
        pixels = read_image(roads / f"{name}.jpg").pixels
        height = round(pixels.shape[0] * WIDTH / pixels.shape[1])
        small = cv2.resize(pixels, (WIDTH, height), interpolation=cv2.INTER_AREA)
        image = torch.from_numpy(small).permute(2, 0, 1).float() / 255
        if name == PASTED:
            image, name = with_chair(image, cutouts / CHAIR), f"{name}_chair"
        written = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        write_image(HERE / "images" / f"{name}.jpg", written)


def with_chair(image: torch.Tensor, path: Path) -> torch.Tensor:
    """The chair on the road, its border faded and its tone half-way to the road's."""
    piece = read_piece(path)
    assert piece.opacity is not None
    size = (TALL, round(TALL * piece.pixels.shape[2] / piece.pixels.shape[1]))
    resize = torch.nn.functional.interpolate
    pixels = resize(piece.pixels[None], size, mode="bilinear", antialias=True)[0]
    opacity = resize(piece.opacity[None, None], size, mode="bilinear", antialias=True)[0, 0]
    margin = border_of(1.0)
    alpha = feathered(opacity > 0.5, 1.0)
    pixels = torch.nn.functional.pad(pixels[None], (margin,) * 4, mode="replicate")[0]
    rows, columns = alpha.shape
    box = (slice(None), slice(BOTTOM - rows, BOTTOM), slice(LEFT, LEFT + columns))
    below = image[box]
    toned = tone_matched(pixels, alpha, below, torch.tensor(0.3))
    pasted = image.clone()
    pasted[box] = feather(below, toned.clamp(0, 1), alpha)
    return pasted


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
