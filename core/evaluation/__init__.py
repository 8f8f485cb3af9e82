"""Is the ensemble right? Proper scores, calibration, and how sure one can be of either.

Scores are negatively oriented (less is better) and in the unit of the data. Members come first:
(M, ...) against a truth (...). A NaN in truth or members gives a NaN score, which `nan_mean` and
the summaries of `calibration` leave out; nothing else is ever dropped silently.
"""

from core.evaluation.averages import Interval, block_bootstrap, nan_mean
from core.evaluation.calibration import SpreadSkill, coverage, pit, rank_histogram, spread_skill
from core.evaluation.chains import effective_sample_size, split_r_hat
from core.evaluation.proper_scores import crps_ensemble, energy_score

__all__ = [
    "Interval",
    "SpreadSkill",
    "block_bootstrap",
    "coverage",
    "crps_ensemble",
    "effective_sample_size",
    "energy_score",
    "nan_mean",
    "pit",
    "rank_histogram",
    "split_r_hat",
    "spread_skill",
]
