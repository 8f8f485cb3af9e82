"""The family `vae` on handwritten digits; see `digits.py`."""

from digits import main

if __name__ == "__main__":
    main("vae")
