"""Three validation sets that are not the place trained on, and are none of the benchmarks.

    python benchmarks/driving_shift.py DATA OUT

DATA holds `static_val/`, `road_mit/` and `coco_cutouts/`. What is to be chosen (negatives, steps,
the default score) is chosen on these and on `static_val`, so that the benchmarks choose nothing:

- OUT/static_shift: `static_val` in another light, by another camera: white balance, gamma,
  saturation, contrast and haze, then blur or lost resolution, noise and JPEG.
- OUT/foreign_roads: photographs of Californian motorways with one to three real objects each,
  pasted as `synthesize` pastes. Everything that was not pasted counts as known.
- OUT/foreign_small: the same with objects of 4 to 12 hundredths of the picture's height.

All are plain folders that `pipelines.driving benchmark` reads.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from apps.anomaly_driving.augment import blurred
from apps.anomaly_driving.data import open_data, to_tensor
from apps.anomaly_driving.files import read_image, write_image
from apps.anomaly_driving.frames import image_files
from apps.anomaly_driving.negatives.config import NegativesConfig, PlacementConfig
from apps.anomaly_driving.negatives.mixer import Mixer
from apps.anomaly_driving.negatives.sources import Piece, Source, read_piece
from core.random import keyed_generator, rand, randn

PLACING = PlacementConfig(known=0.0, near=0.5, anywhere=0.1, tone=0.5, recolour=0.0)
SMALL = dataclasses.replace(PLACING, near=0.12, far=0.04, anywhere=0.0)
VOID, WIDTH, DRAWS = 255, 960, 3
"""Ignored pixels; width of the foreign photographs; pictures made of each."""


class Cutouts(Source):
    """Real objects of several folders."""

    def __init__(self, *folders: Path) -> None:
        super().__init__()
        self.pieces = [read_piece(path) for folder in folders for path in image_files(folder)]

    def draw(self, count: int, generator: torch.Generator) -> list[Piece]:
        chosen = torch.randint(len(self.pieces), (count,), generator=generator)
        return [self.pieces[i] for i in chosen.tolist()]


def main(arguments: list[str] | None = None) -> None:
    """Write the sets."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("out", type=Path, help="folder to write")
    options = parser.parse_args(arguments)
    write_shifted(options.data / "static_val", options.out / "static_shift")
    write_foreign(options.data, options.out / "foreign_roads", PLACING)
    write_foreign(options.data, options.out / "foreign_small", SMALL)


def write_shifted(source: Path, folder: Path) -> None:
    """Every frame of a labelled folder by another camera, its labels as they are."""
    for number, sample in enumerate(open_data(source).samples()):
        image = other_camera(sample.tensor, keyed_generator(0, 31, number))
        assert sample.anomaly is not None
        write_pair(folder, sample.frame.key, image, sample.anomaly)


def write_foreign(data: Path, folder: Path, placing: PlacementConfig) -> None:
    """Photographs of other roads with real objects pasted into them."""
    cutouts = data / "coco_cutouts"
    mixer = Mixer(
        Cutouts(cutouts / "nc", cutouts / "free"), NegativesConfig(placement=placing), 1, VOID
    )
    for number, path in enumerate(image_files(data / "road_mit")):
        image = resized(read_image(path).pixels, WIDTH)
        for draw in range(DRAWS):
            empty = torch.zeros(1, *image.shape[1:], dtype=torch.long)
            mixed = mixer(image[None], empty, keyed_generator(0, 37, number, draw))
            labels = torch.where(mixed.negative, 1, mixed.labels)[0].to(torch.uint8).numpy()
            write_pair(folder, f"{path.stem}_{draw}", mixed.images[0], labels)


def other_camera(image: Tensor, generator: torch.Generator) -> Tensor:
    """Colours, then sharpness, then noise and JPEG of a picture (3, H, W) in [0, 1]."""
    import cv2

    draw = rand((8,), generator).tolist()
    warm = torch.tensor([draw[0], 0.5, 1 - draw[0]])[:, None, None]
    x = image.clamp_min(1e-4) ** float(np.exp(0.9 * (draw[1] - 0.5))) * (0.7 + 0.6 * warm)
    grey = x.mean(0, keepdim=True)
    x = grey + (x - grey) * (0.3 + 1.3 * draw[2])
    haze = 0.4 * draw[3] ** 2
    x = (1 - haze) * x + 0.8 * haze
    height, width = image.shape[1:]
    if draw[4] < 0.4:
        x = blurred(x[None], 0.5 + 2 * draw[4])[0]
    elif draw[4] < 0.7:
        small = torch.nn.functional.interpolate(x[None], scale_factor=0.5, mode="area")
        x = torch.nn.functional.interpolate(small, (height, width), mode="bilinear")[0]
    x = x + 0.06 * draw[5] ** 2 * randn(x.shape, generator)
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(20 + 70 * draw[6])]
    _, packed = cv2.imencode(".jpg", pixels_of(x), quality)
    return to_tensor(np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR)))


def resized(pixels: np.ndarray, width: int) -> Tensor:
    """(3, h, width) in [0, 1] of (H, W, 3) bytes."""
    import cv2

    size = (width, round(pixels.shape[0] * width / pixels.shape[1]))
    return to_tensor(np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)))


def pixels_of(image: Tensor) -> np.ndarray:
    """(H, W, 3) bytes of (3, H, W) in [0, 1]."""
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()


def write_pair(folder: Path, key: str, image: Tensor, labels: np.ndarray) -> None:
    """images/KEY.png and labels/KEY.png."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_image(folder / "images" / f"{key}.png", pixels_of(image))
    write_image(folder / "labels" / f"{key}.png", labels)


if __name__ == "__main__":
    main()
