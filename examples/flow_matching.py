"""The family `flow_matching` on handwritten digits; see `digits.py`."""

from digits import main

if __name__ == "__main__":
    main("flow_matching")
