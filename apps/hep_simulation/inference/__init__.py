"""p(θ | x_1, ..., x_n): posteriors of theory parameters from sets of independent events."""
