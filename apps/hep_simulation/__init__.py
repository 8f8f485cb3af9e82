"""Colliders: learned calorimeter showers, jets and inference, judged as the field judges them."""
