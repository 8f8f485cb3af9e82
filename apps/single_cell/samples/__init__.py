"""Bundled cells and weights; see README.md."""
