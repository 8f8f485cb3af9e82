"""Climate downscaling: coarse climate fields in, calibrated fine-scale ensembles out."""
