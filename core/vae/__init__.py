"""Latent-variable models: decoders p(x | z), amortised posteriors q(z | x), and their bounds."""

from core.vae.hierarchical import BottomUpVAE, TopDownVAE
from core.vae.latent import LatentDiffusion, LatentFlowMatching, LearnedPrior
from core.vae.likelihoods import Likelihood, make_likelihood
from core.vae.vae import VAE

__all__ = [
    "VAE",
    "BottomUpVAE",
    "LatentDiffusion",
    "LatentFlowMatching",
    "LearnedPrior",
    "Likelihood",
    "TopDownVAE",
    "make_likelihood",
]
