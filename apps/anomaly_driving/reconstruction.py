r"""What a generative model of known patches cannot draw again is unexpected.

    s(p) = mean over patches with p of |x(p) - D(E(x))(p)|_1 / 3

A variational autoencoder of small patches (`core.vae`) learns what known streets look like;
patches overlap by half, and their errors are averaged. It needs no segmenter, and it is blind to
things that are plainer than streets: a smooth object is easy to draw. Reference: Baur et al.
(2018) arXiv:1804.04488, and Nalisnick et al. (2019) arXiv:1810.09136 for what it is blind to.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from apps.anomaly_driving.feature_scores import FeatureScore
from apps.anomaly_driving.model import Outputs
from core.errors import AleatorError

PATCH, LATENT = 16, 12
PER_IMAGE = 64
"""Patches that an image offers to the sample that the model learns from."""


class Reconstruction(FeatureScore):
    """Mean absolute error of a VAE's reconstruction of overlapping patches."""

    name = "reconstruction"
    STEPS = 1500

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__(state)
        self.vae = self._build()
        weights = {k.removeprefix("vae."): v for k, v in state.items() if k.startswith("vae.")}
        self.vae.load_state_dict(weights)
        self.vae.eval()

    def __call__(self, outputs: Outputs) -> Tensor:
        """Not to be had from a network's outputs.

        Raises:
            AleatorError: always; `of_image` is what gives the score.
        """
        raise AleatorError("reconstruction is scored from the image, not from a network's outputs")

    def of_image(self, images: Tensor) -> Tensor:
        """The score (B, H, W) of images (B, 3, H, W) in [0, 1]."""
        device, half = images.device, PATCH // 2
        self.vae.to(device)
        height, width = images.shape[2:]
        bottom, right = -height % half + half, -width % half + half
        x = F.pad(images, (half, right, half, bottom), mode="replicate")
        columns = F.unfold(x, PATCH, stride=half)  # (B, 3 · 16², L)
        patches = columns.transpose(1, 2).reshape(-1, 3, PATCH, PATCH)
        mean, std = self.state["mean"].to(device), self.state["std"].to(device)
        errors = torch.cat(
            [(p - self._again((p - mean) / std) * std - mean).abs() for p in patches.split(2048)]
        ).mean(1)
        errors = errors.reshape(len(images), -1, PATCH * PATCH).transpose(1, 2)
        size = (x.shape[2], x.shape[3])
        total = F.fold(errors, size, PATCH, stride=half)
        count = F.fold(torch.ones_like(errors), size, PATCH, stride=half)
        return (total / count)[:, 0, half : half + height, half : half + width]

    def _again(self, patches: Tensor) -> Tensor:
        """Standardised patches as the model draws them from the mean of their latents."""
        with torch.no_grad():
            return self.vae.decode(self.vae.encode(patches).mean).mean

    @staticmethod
    def _build() -> Any:
        from core.registry import build

        return build(
            {
                "family": "vae",
                "event_shape": [3, PATCH, PATCH],
                "latent_dim": LATENT,
                "encoder": {"name": "mlp", "width": 256, "blocks": 1},
                "decoder": {"name": "mlp", "width": 256, "blocks": 1},
            }
        )

    @classmethod
    def of(
        cls, sample: Tensor, folder: Path, seed: int, steps: int | None = None
    ) -> Reconstruction:
        """Train on known patches (N, 3 · 16²); `folder` is for the run's files."""
        from core.data import Standardizer, batch_indices
        from core.training import FitConfig, fit

        patches = sample.reshape(-1, 3, PATCH, PATCH)
        scale = Standardizer.fit(patches, (0, 2, 3))
        data = scale(patches)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            vae = cls._build()
        config = FitConfig(
            steps=steps or cls.STEPS,
            batch_size=256,
            validate_every=0,
            learning_rate=1e-3,
            seed=seed,
        )
        fitted = fit(
            vae,
            lambda step, _: (data[batch_indices(seed, step, 256, len(data))], None),
            config,
            folder=folder,
            device="cpu",
            progress=None,
        )
        weights = {f"vae.{k}": v for k, v in fitted.model.state_dict().items()}
        return cls({"mean": scale.mean[0], "std": scale.std[0], **weights})


def known_patches(image: Tensor, known: Tensor, generator: torch.Generator) -> Tensor:
    """Up to `PER_IMAGE` patches (N, 3 · 16²) of an image that are known all over.

    Args:
        image: (1, 3, H, W) in [0, 1].
        known: (1, H, W) bool.
        generator: of the places.
    """
    columns = F.unfold(image, PATCH, stride=PATCH // 2)[0].T
    inside = F.unfold(known[:, None].float(), PATCH, stride=PATCH // 2)[0].amin(0) > 0.5
    columns = columns[inside]
    chosen = torch.randperm(len(columns), generator=generator)[:PER_IMAGE]
    return columns[chosen]
