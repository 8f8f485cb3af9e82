"""The family `joint_vae` on handwritten digits; see `digits.py`."""

from digits import main

if __name__ == "__main__":
    main("joint_vae")
