"""The family `latent_diffusion` on handwritten digits; see `digits.py`."""

from digits import main

if __name__ == "__main__":
    main("latent_diffusion")
