"""The family `consistency` on handwritten digits; see `digits.py`."""

from digits import main

if __name__ == "__main__":
    main("consistency")
