"""Bundled sample data and weights; `README.md` says where they come from."""
