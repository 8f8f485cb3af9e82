"""Command-line front ends: thin doors to the applications, no mathematics."""
