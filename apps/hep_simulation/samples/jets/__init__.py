"""QCD events with generator-level and reconstructed jets, and a model trained on others."""
