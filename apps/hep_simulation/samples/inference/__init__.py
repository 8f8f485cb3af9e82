"""Pythia events at eight unknown points, and the posterior trained on 600 others."""
