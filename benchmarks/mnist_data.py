"""MNIST's 10 000 test images as a data set of their own, and a classifier to compare samples in.

9000 images train and 1000 are held out, by a permutation of seed 0. Grey values lie in [-1, 1].
The binarised images are drawn once, a pixel white with probability grey / 255 (static
binarisation, Salakhutdinov and Murray 2008), so that every model sees the same zeros and ones.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import AleatorError
from core.random import keyed_generator

HELD = 1000
NAMES = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
FEATURES = 32


@dataclass(frozen=True)
class Digits:
    """Grey images (N, 1, 28, 28) in [-1, 1], the same binarised to 0 and 1, and labels (N,)."""

    grey: Tensor
    binary: Tensor
    label: Tensor

    def __getitem__(self, rows: slice | Tensor) -> Digits:
        return Digits(self.grey[rows], self.binary[rows], self.label[rows])

    def __len__(self) -> int:
        return len(self.label)


def load(folder: Path) -> tuple[Digits, Digits]:
    """Images to train on, and held out.

    Raises:
        AleatorError: a file is missing, damaged or not MNIST's.
    """
    pixels, labels = (_idx(folder / name) for name in NAMES)
    if pixels.shape[1:] != (28, 28) or len(pixels) != len(labels) or len(pixels) <= HELD:
        raise AleatorError(
            f"{folder}: images {pixels.shape} and labels {labels.shape}; (N, 28, 28), (N,) and "
            f"more than {HELD} of them are needed"
        )
    order = np.random.default_rng(0).permutation(len(pixels))
    share = torch.from_numpy(pixels[order].astype(np.float32))[:, None] / 255
    white = torch.rand(share.shape, generator=keyed_generator(0, 1)) < share
    whole = Digits(2 * share - 1, white.float(), torch.from_numpy(labels[order].astype(np.int64)))
    return whole[slice(HELD, None)], whole[slice(None, HELD)]


def _idx(path: Path) -> np.ndarray:
    """An array in MNIST's format: 0, 0, type 8, number of axes, their lengths, bytes."""
    try:
        raw = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise AleatorError(
            f"{path} is missing: DATA is a folder with {' and '.join(NAMES)}"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise AleatorError(f"{path}: not a gzip file, or damaged ({error})") from None
    axes = raw[3] if len(raw) > 3 else 0
    shape = np.frombuffer(raw[4 : 4 + 4 * axes], ">u4")
    if raw[:3] != b"\0\0\x08" or len(raw) != 4 + 4 * axes + int(np.prod(shape)):
        raise AleatorError(f"{path}: not an array of bytes in MNIST's format")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)


class Classifier(nn.Module):
    """A small convolutional network: features (N, 32), and labels from them."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.SiLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.SiLU(),
            nn.Conv2d(32, 32, 3, 2, 1), nn.SiLU(), nn.Flatten(), nn.Linear(512, FEATURES),
        )  # fmt: skip
        self.head = nn.Linear(FEATURES, 10)
        self.register_buffer("scale", torch.ones(FEATURES))

    def features(self, x: Tensor) -> Tensor:
        """In units of their spread over the training images."""
        parts = [self.body(part) for part in x.split(500)]
        return torch.cat(parts).detach() / self.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.silu(self.body(x)))


def train_classifier(train: Digits, steps: int = 600) -> Classifier:
    """Trained on grey and binarised images alike, shifted by up to two pixels."""
    torch.manual_seed(1)
    net, generator = Classifier(), keyed_generator(1, 1)
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(train), (128,), generator=generator)
        x = torch.cat([train.grey[rows[:64]], 2 * train.binary[rows[64:]] - 1])
        shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
        loss = F.cross_entropy(net(torch.roll(x, shift, (2, 3))), train.label[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.requires_grad_(False).eval()
    net.scale = net.features(train.grey).std(0)
    return net
