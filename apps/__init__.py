"""The applications: each turns its field's files into tensors and back."""
