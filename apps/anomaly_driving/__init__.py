"""Unexpected objects in traffic: simulate them, train with them, score every pixel, prove it."""
