"""Latent-variable models: decoders p(x | z), amortised posteriors q(z | x), and their bounds."""

from core.vae.daed import DAED
from core.vae.hierarchical import BottomUpVAE, TopDownVAE
from core.vae.joint import JointVAE
from core.vae.latent import LatentDiffusion, LatentFlowMatching, LearnedPrior
from core.vae.likelihoods import Likelihood, make_likelihood
from core.vae.self_supervised import SelfSupervisedVAE
from core.vae.vae import VAE
from core.vae.vq import VQVAE

__all__ = [
    "DAED",
    "VAE",
    "VQVAE",
    "BottomUpVAE",
    "JointVAE",
    "LatentDiffusion",
    "LatentFlowMatching",
    "LearnedPrior",
    "Likelihood",
    "SelfSupervisedVAE",
    "TopDownVAE",
    "make_likelihood",
]
