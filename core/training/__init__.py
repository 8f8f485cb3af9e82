"""Training: `fit` a model on batches that are a function of the step, and resume exactly."""

from core.training.config import FitConfig
from core.training.fit import Batches, Fitted, fit

__all__ = ["Batches", "FitConfig", "Fitted", "fit"]
