"""Bundled samples and weights, so that every command runs without a download."""
