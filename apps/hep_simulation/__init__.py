"""Collider simulation: learned showers and jets, and the inference of theory parameters."""
