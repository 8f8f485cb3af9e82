"""Latent-variable models: decoders p(x | z), amortised posteriors q(z | x), and their bounds."""

from core.vae.likelihoods import Likelihood, make_likelihood
from core.vae.vae import VAE

__all__ = ["VAE", "Likelihood", "make_likelihood"]
