r"""VQ-VAE: latents from a codebook, and an autoregressive prior over codes, so that it samples.

    k_l = argmin_k |z_l(x) - e_k|²,   l = 1 ... L positions
    loss = -ln p(x | e_k) + β |z - sg(e_k)|² - ln p(k),     ∂e_k/∂z := 1 (straight through)
    codebook: e_k ← moving average of the z that chose it (mini-batch k-means)

Codes that nobody chooses are moved to encodings at random, without which the codebook collapses.
The posterior is a point, so that ln p(x | e_k) + ln p(k) is one term of the evidence's sum over
all codes: a lower bound. The prior is trained on the codes as they are, without gradient to the
encoder. References: van den Oord et al. (2017) arXiv:1711.00937; Razavi et al. (2019)
arXiv:1906.00446 (moving averages, revival).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Independent, OneHotCategorical
from torch.nn import functional as F

from core.distributions import Law
from core.errors import AleatorError
from core.model import Context, Density, Loss
from core.nets.embeddings import ConditionEmbedding
from core.random import Generators, rand
from core.vae.base import LatentModel, make_net, run_net, sum_event
from core.vae.likelihoods import Likelihood


class Codebook(nn.Module):
    """K vectors that follow what chooses them."""

    codes: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, count: int, dim: int, decay: float, seed: int = 0) -> None:
        """`decay`: of the moving averages; the first codes are standard normal."""
        super().__init__()
        start = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
        self.decay = decay
        self.register_buffer("codes", start)
        self.register_buffer("counts", torch.ones(count))
        self.register_buffer("sums", start.clone())

    def nearest(self, z: Tensor) -> Tensor:
        """Index of the nearest code of vectors (N, d), (N,)."""
        return torch.cdist(z, self.codes.to(z)).argmin(1)

    @torch.no_grad()
    def follow(self, z: Tensor, chosen: Tensor, u: Tensor, least: float) -> None:
        """Move codes towards the vectors (N, d) that chose them; revive those that few choose.

        Args:
            z: (N, d).
            chosen: (N,) indices.
            u: (N,) uniform numbers: revived codes take the vectors with the greatest.
            least: moving count below which a code is dead.
        """
        one_hot = F.one_hot(chosen, len(self.codes)).to(self.sums)
        self.counts.lerp_(one_hot.sum(0), 1 - self.decay)
        self.sums.lerp_(one_hot.T @ z.to(self.sums), 1 - self.decay)
        self.codes.copy_(self.sums / self.counts[:, None].clamp(min=1e-6))
        dead = (self.counts < least).nonzero()[: len(z), 0]
        if len(dead):
            rows = z[u.topk(len(dead)).indices].to(self.codes)
            self.codes[dead], self.sums[dead], self.counts[dead] = rows, rows, 1.0


class CodePrior(nn.Module):
    """A causal transformer: p(k) = Π p(k_l | k_{<l}, context)."""

    def __init__(
        self,
        length: int,
        codes: int,
        *,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        vector_dim: int = 0,
        classes: int = 0,
    ) -> None:
        """`length` positions of `codes` values; the context enters as the first token."""
        super().__init__()
        if width % heads:
            raise AleatorError(f"code prior: width={width} does not divide by heads={heads}")
        self.length, self.codes = length, codes
        self.token = nn.Embedding(codes, width)
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        self.start = ConditionEmbedding(width, vector_dim, classes)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, codes)

    def forward(self, codes: Tensor, context: Context) -> Tensor:
        """Logits (N, l + 1, K) of the code at each position, given those before: (N, l), l < L."""
        level = self.place.new_zeros(len(codes))
        h = torch.cat([self.start(level, context)[:, None], self.token(codes)], 1)
        h = h + self.place[: h.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(h.shape[1]).to(h)
        return self.last(self.norm(self.layers(h, mask=mask, is_causal=True)))

    def log_prob(self, codes: Tensor, context: Context) -> Tensor:
        """Log-probability ln p(k) of codes (N, L), (N,) nats."""
        logits = self(codes[:, :-1], context)
        return logits.log_softmax(2).gather(2, codes[:, :, None]).sum((1, 2))

    @torch.no_grad()
    def sample(self, u: Tensor, context: Context) -> Tensor:
        """Codes (N, L) from uniform numbers (N, L), position by position."""
        codes = torch.zeros(len(u), 0, dtype=torch.long, device=u.device)
        for position in range(self.length):
            share = self(codes, context)[:, -1].softmax(1).cumsum(1)
            below = share < u[:, position : position + 1] * share[:, -1:]
            codes = torch.cat([codes, below.sum(1, keepdim=True)], 1)
        return codes


class VQVAE(LatentModel):
    """A vector-quantised VAE with an autoregressive prior."""

    unsupported: ClassVar[Mapping[str, str]] = {
        "posterior": "its codes have no gradient; take a VAE or a diffusion model"
    }

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: Sequence[int] | None = None,
        *,
        codes: int = 64,
        code_dim: int = 8,
        positions: int = 16,
        likelihood: str | Mapping[str, Any] | Likelihood = "gaussian",
        encoder: nn.Module | Mapping[str, Any] | None = None,
        decoder: nn.Module | Mapping[str, Any] | None = None,
        prior: Mapping[str, Any] | None = None,
        commitment: float = 0.25,
        decay: float = 0.98,
        revive: float = 0.05,
    ) -> None:
        """Assemble.

        Args:
            event_shape: E.
            context_shape: shape of the main context tensor of one example, for the record.
            codes: K.
            code_dim: d, the length of a code.
            positions: L; of images with the network "coder", the cells of its coarsest grid.
            likelihood: p(x | codes).
            encoder: features of x -> (B, d · L), code dimensions first.
            decoder: (B, d · L) -> outputs of the likelihood.
            prior: options of the prior: width, layers, heads, vector_dim, classes.
            commitment: β, per element of the codes.
            decay: of the codebook's moving averages.
            revive: share of its fair part of a batch below which a code is dead; 0 for never.

        Raises:
            AleatorError: an option out of range, an unknown likelihood or network.
        """
        super().__init__(event_shape, context_shape, likelihood)
        if codes < 2 or code_dim < 1 or positions < 1 or commitment < 0 or revive < 0:
            raise AleatorError(
                f"vq-vae: codes={codes}, code_dim={code_dim}, positions={positions}, "
                f"commitment={commitment}, revive={revive} out of range"
            )
        if not 0 <= decay < 1:
            raise AleatorError(f"vq-vae: decay={decay}; it must be in [0, 1)")
        known = {"width", "layers", "heads", "vector_dim", "classes"}
        if unknown := set(prior or {}) - known:
            raise AleatorError(
                f"vq-vae: the prior has no option {sorted(unknown)[0]!r}; it has "
                f"{', '.join(sorted(known))}"
            )
        self.codes, self.code_dim, self.positions = codes, code_dim, positions
        self.commitment, self.revive = commitment, revive
        e, inside = self.event_shape, code_dim * positions
        self.encoder = make_net(encoder, e, (inside,))
        self.decoder = make_net(decoder, (inside,), (self.likelihood.outputs * e[0], *e[1:]))
        self.codebook = Codebook(codes, code_dim, decay)
        self.prior = CodePrior(positions, codes, **(prior or {}))

    def vectors(self, x: Tensor, context: Context) -> Tensor:
        """Encodings z (B, L, d), before they are quantised."""
        flat = run_net(self.encoder, self.likelihood.features(x), context)
        return flat.reshape(len(x), self.code_dim, self.positions).mT

    def quantise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (B, L) of encodings (B, L, d), and their vectors with the gradient of z."""
        chosen = self.codebook.nearest(z.detach().flatten(0, 1)).reshape(z.shape[:2])
        return chosen, z + (self.codebook.codes[chosen].to(z) - z).detach()

    def decode(self, vectors: Tensor, context: Context = None) -> Law:
        """p(x | codes) for vectors (N, L, d)."""
        flat = vectors.mT.flatten(1)
        return self.likelihood(run_net(self.decoder, flat, context), self.library_of(context))

    def encode(self, x: Tensor, context: Context = None) -> Independent:
        """q(codes | x, context): all mass on the nearest codes, one-hot over (L, K)."""
        self.check(x, context)
        chosen, _ = self.quantise(self.vectors(x, self.with_library(context, x)))
        probabilities = F.one_hot(chosen, self.codes).to(self.new().dtype)
        return Independent(OneHotCategorical(probs=probabilities), 1)

    def loss(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Loss:
        """Reconstruction, commitment and the prior's surprise of examples x (B, *E), (B,) nats.

        In training mode the codebook follows the batch.
        """
        self.check(x, context)
        known = self.with_library(context, x)
        z = self.vectors(x, known)
        chosen, vectors = self.quantise(z)
        reconstruction = -sum_event(self.decode(vectors, known).log_prob(x))
        gap = (z - self.codebook.codes[chosen].to(z)).square().flatten(1).sum(1)
        surprise = -self.prior.log_prob(chosen, context)
        if self.training:
            u = rand((len(x), self.positions), generator, device=z.device)
            least = self.revive * chosen.numel() / self.codes
            flat = z.detach().flatten(0, 1)
            self.codebook.follow(flat, chosen.flatten(), u.flatten(), least)
        value = reconstruction + self.commitment * gap + surprise
        terms = {"reconstruction": reconstruction, "commitment": gap, "prior": surprise}
        terms["perplexity"] = torch.full_like(gap, perplexity(chosen, self.codes))
        return Loss(value, {name: term.detach() for name, term in terms.items()})

    def log_prob(
        self,
        x: Tensor,
        context: Context = None,
        *,
        generator: Generators | None = None,
        **options: Any,
    ) -> Density:
        """The bound ln p(x | codes) + ln p(codes) at the nearest codes, (B,) nats; not random."""
        if options:
            raise AleatorError(f"vq-vae: log_prob has no option {sorted(options)[0]!r}")
        self.check(x, context)
        with torch.no_grad():
            return Density(self.log_weights(x, context, 1, generator)[:, 0], "lower_bound")

    def log_weights(  # noqa: D102
        self, x: Tensor, context: Context, draws: int, generator: Generators | None
    ) -> Tensor:
        known = self.with_library(context, x)
        chosen, vectors = self.quantise(self.vectors(x, known))
        log_p = sum_event(self.decode(vectors, known).log_prob(x))
        return (log_p + self.prior.log_prob(chosen, context))[:, None].expand(-1, draws)

    @property
    def latent_sizes(self) -> tuple[int, ...]:
        """(L,): one uniform number for each code."""
        return (self.positions,)

    def generate(self, context: Context, noise: Sequence[Tensor]) -> Law:
        """p(x | codes) for codes drawn from the prior with normal noise (N, L)."""
        chosen = self.prior.sample(torch.special.ndtr(noise[0]), context)
        return self.decode(self.codebook.codes[chosen].to(noise[0]), context)


def perplexity(chosen: Tensor, codes: int) -> float:
    """How many codes a batch uses, exp of the entropy of their frequencies: from 1 to K."""
    share = torch.bincount(chosen.flatten(), minlength=codes).double()
    share = share[share > 0] / share.sum()
    return math.exp(-(share * share.log()).sum().item())
