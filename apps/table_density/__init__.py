"""Density estimation on a table: fit a flow to its rows, score rows, draw rows."""
