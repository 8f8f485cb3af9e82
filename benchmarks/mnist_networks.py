"""The encoder and the decoder that both libraries train: torch alone, for either interpreter."""

from __future__ import annotations

from torch import nn

LATENT, WIDTH = 20, 300


def encoder() -> nn.Sequential:
    """(N, 784) to means and log-variances (N, 2 · 20)."""
    return nn.Sequential(
        nn.Linear(784, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(),
        nn.Linear(WIDTH, 2 * LATENT),
    )  # fmt: skip


def decoder() -> nn.Sequential:
    """(N, 20) to logits (N, 784)."""
    return nn.Sequential(
        nn.Linear(LATENT, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(),
        nn.Linear(WIDTH, 784),
    )  # fmt: skip
