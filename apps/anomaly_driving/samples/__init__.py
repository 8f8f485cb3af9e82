"""Road photographs, one with an object pasted into it, and weights; see README.md."""
