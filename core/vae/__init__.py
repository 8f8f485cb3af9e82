"""Latent-variable models: decoders p(x | z), amortised posteriors q(z | x), and their bounds."""

from core.vae.hierarchical import BottomUpVAE, TopDownVAE
from core.vae.likelihoods import Likelihood, make_likelihood
from core.vae.vae import VAE

__all__ = ["VAE", "BottomUpVAE", "Likelihood", "TopDownVAE", "make_likelihood"]
