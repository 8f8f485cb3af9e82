"""From noisy counts of single cells to biological signal, with its uncertainty."""
