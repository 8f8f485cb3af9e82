r"""The model of cells: a variational autoencoder whose decoder speaks of all genes.

    z ~ N(0, 1),   h = b + W f(z, c) + V c,   μ = n softmax(h),   x ~ NB(μ, θ)
    W ~ N(0, 1 / strength),   b, V ~ N(around the mean profile),   ln θ ~ N(centre, 2)

The priors on what is of a gene are part of the objective, so that a gene with few molecules keeps
to the mean profile whatever the optimiser does: weight decay beside Adam would not do that.
Covariates c enter the encoder, the hidden features and each gene's level.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apps.single_cell.config import DROPOUT, Config
from apps.single_cell.counts import Counts
from apps.single_cell.covariates import Design
from apps.single_cell.likelihood import CellLaw, CellLikelihood
from core.model import Context, Loss
from core.random import Generators, binomial, rand, randn
from core.vae import VAE

WARMUP = 200
"""Steps over which the Kullback-Leibler term comes in."""
SEEN = (0.5, 0.9)
"""Least and greatest share of a cell's molecules that the encoder sees in thinned training."""
LEVEL, DISPERSION = 0.1, 0.5
"""Precisions of the priors of gene levels b, V and of ln θ."""


class Encoder(nn.Module):
    """(features (B, G + 1), covariates) -> mean and log-variance of z, (B, 2 D)."""

    def __init__(
        self, genes: int, latent: int, width: int, covariates: int, dropout: float
    ) -> None:
        super().__init__()
        self.first = nn.Linear(genes, width)
        self.rest = nn.Linear(1 + covariates, width)
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)
        self.last = nn.Linear(width, 2 * latent)
        with torch.no_grad():
            self.last.weight *= 0.5
            self.last.bias[:latent] = 0.0
            self.last.bias[latent:] = -2.0
            self.rest.weight *= 0.1

    def forward(self, features: Tensor, noise_level: Tensor, context: Context = None) -> Tensor:
        """The noise level is not for this network; libraries come last in `features`."""
        depth = features[:, -1:] - 8.0
        h = self.first(features[:, :-1]) + self.rest(_with_covariates(depth, context))
        mean, log_variance = self.last(self.dropout(F.silu(self.norm(h)))).chunk(2, 1)
        return torch.cat([mean, log_variance.clamp(-10.0, 3.0)], 1)


class Decoder(nn.Module):
    """(z (B, D), covariates) -> logits (B, G) of the cell's profile."""

    start: Tensor

    def __init__(
        self, profile: Tensor, latent: int, width: int, covariates: int, dropout: float
    ) -> None:
        super().__init__()
        self.first = nn.Linear(latent + covariates, width)
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)
        self.weight = nn.Parameter(0.01 * torch.randn(width, len(profile)))
        self.level = nn.Parameter(profile.clone())
        self.shift = nn.Parameter(torch.zeros(covariates, len(profile)))
        self.register_buffer("start", profile)

    def forward(self, z: Tensor, noise_level: Tensor, context: Context = None) -> Tensor:
        """The noise level is not for this network."""
        return self.logits(self.features(z, context), context)

    def features(self, z: Tensor, context: Context = None) -> Tensor:
        """Hidden features f (B, H), which all genes share."""
        return self.dropout(F.silu(self.norm(self.first(_with_covariates(z, context)))))

    def logits(self, features: Tensor, context: Context = None) -> Tensor:
        """Log-rates b + W f + V c (B, G), up to a constant of each cell."""
        logits = torch.addmm(self.level, features, self.weight)
        if len(self.shift):
            logits = logits + _vector(context) @ self.shift
        return logits

    def penalty(self, strength: float) -> Tensor:
        """-ln of the prior of the weights, in nats."""
        level = (self.level - self.start).square().sum() + self.shift.square().sum()
        return 0.5 * (strength * self.weight.square().sum() + LEVEL * level)


class CellVAE(VAE):
    """A VAE of counts with priors on what belongs to a gene.

    Contexts are mappings: `library` (B,), and where there are covariates `vector` (B, C) and
    `label` (B,), the batch.
    """

    decoder: Decoder
    likelihood: CellLikelihood

    def __init__(
        self,
        profile: Tensor,
        cells: int,
        config: Config,
        *,
        covariates: int = 0,
        batches: int = 1,
    ) -> None:
        """Assemble.

        Args:
            profile: (G,) log-shares of the genes, where levels start and shrink to.
            cells: N of the training set, by which the priors are shared out.
            config: with latent, likelihood and strength chosen.
            covariates: C, width of the design.
            batches: number of them, for dispersions of each batch.
        """
        assert config.latent is not None
        assert config.likelihood is not None
        assert config.strength is not None
        dropout = DROPOUT if config.dropout is None else config.dropout
        genes, size = len(profile), (config.latent, config.width, covariates, dropout)
        groups = batches if config.dispersion == "gene-batch" else 1
        likelihood = CellLikelihood(genes, config.likelihood, groups)
        super().__init__(
            (genes,),
            (covariates,) if covariates else None,
            latent_dim=config.latent,
            likelihood=likelihood,
            encoder=Encoder(genes, *size),
            decoder=Decoder(profile, *size),
            warmup=WARMUP,
            components=config.components or 0,
        )
        self.cells, self.strength, self.thinned = cells, config.strength, bool(config.thinned)

    def decode(self, z: Tensor, context: Context = None) -> CellLaw:
        """p(x | z, context) of latents (N, D)."""
        logits = self.decoder(z, z.new_zeros(len(z)), context)
        group = context.get("label") if isinstance(context, dict) else None
        return self.likelihood(logits, self.library_of(context), group)

    def loss(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Loss:
        """Negative ELBO with the share of the priors that falls to one cell, (B,) nats.

        Thinned training takes cells apart, x = x' + x'', x' ~ Binomial(x, s), s uniform in `SEEN`:

            -1/(1 - s) E_q(z | x') ln p(x'' | z) + KL(q(z | x') ‖ p(z))

        so that z holds what molecules that were not seen have in common with those that were
        (Batson, Royer and Webber 2019, doi:10.1101/786269, as a training).
        """
        if self.thinned and self.training:
            found = self._thinned_loss(x, context, generator)
        else:
            found = super().loss(x, context, generator=generator)
        prior = self.decoder.penalty(self.strength) + self.likelihood.penalty(DISPERSION)
        share = prior / self.cells
        prior_term = {"prior": share.detach().expand(len(x))}
        return Loss(found.value + share, {**found.terms, **prior_term})

    def _thinned_loss(self, x: Tensor, context: Context, generator: Generators | None) -> Loss:
        self.check(x, context)
        context = self.with_library(context, x)
        assert isinstance(context, dict)
        low, high = SEEN
        share = low + (high - low) * rand((len(x), 1), generator, device=x.device)
        seen, one = binomial(x, share, generator), share[:, 0]
        q = self.posterior_law(seen, {**context, "library": context["library"] * one})
        z = q.mean + q.stddev * randn(q.mean.shape, generator, device=x.device)
        law = self.decode(z, {**context, "library": context["library"] * (1 - one)})
        return self.bound(q, z, -law.log_prob(x - seen) / (1 - one))


def log_profile(counts: Counts) -> Tensor:
    """Logarithm of the share (G,) of each gene, half a molecule added to each."""
    total = np.zeros(counts.shape[1])
    for _, _, block in counts.blocks():
        total += np.asarray(block.sum(0, dtype=np.float64)).ravel()
    total += 0.5
    return torch.from_numpy(np.log(total / total.sum())).float()


def make_context(
    library: np.ndarray, design: Design, index: np.ndarray | slice
) -> dict[str, Tensor]:
    """The context of some cells.

    Args:
        library: (N,) of all cells.
        design: of all cells.
        index: which.
    """
    context = {"library": torch.from_numpy(np.asarray(library[index], np.float32))}
    if sum(design.sizes) + design.values.shape[1]:
        part = design.take(index)
        context["vector"] = torch.from_numpy(part.matrix())
        if design.sizes:
            context["label"] = torch.from_numpy(part.codes[:, 0].copy())
    return context


def parameters(genes: int, config: Config) -> int:
    """Roughly how many weights a model of so many genes has."""
    return 2 * genes * config.width + 2 * genes + math.prod((config.width, config.latent or 1, 3))


def _vector(context: Context) -> Tensor:
    assert isinstance(context, dict)
    return context["vector"]


def _with_covariates(x: Tensor, context: Context) -> Tensor:
    if isinstance(context, dict) and "vector" in context:
        return torch.cat([x, context["vector"]], 1)
    return x
