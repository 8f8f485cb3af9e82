"""The family `daed` on handwritten digits; see `digits.py`."""

from digits import main

if __name__ == "__main__":
    main("daed")
