"""Reconstructed jets from generator-level ones: response, efficiency, fakes, whole events."""
