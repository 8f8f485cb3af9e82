"""The family `latent_flow_matching` on handwritten digits; see `digits.py`."""

from digits import main

if __name__ == "__main__":
    main("latent_flow_matching")
