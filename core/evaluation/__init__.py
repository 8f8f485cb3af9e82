"""Is it right? Proper scores, calibration, distances between samples, checks of posteriors.

Scores are negatively oriented (less is better) and in the unit of the data. Members come first:
(M, ...) against a truth (...). A NaN in truth or members gives a NaN score, which `nan_mean` and
the summaries of `calibration` leave out; nothing else is ever dropped silently.
"""

from core.evaluation.averages import Interval, block_bootstrap, nan_mean
from core.evaluation.calibration import SpreadSkill, coverage, pit, rank_histogram, spread_skill
from core.evaluation.chains import effective_sample_size, split_r_hat
from core.evaluation.classifier_test import TwoSampleTest, classifier_test
from core.evaluation.distances import (
    Distance,
    energy_distance,
    frechet_distance,
    mmd,
    sliced_wasserstein,
)
from core.evaluation.posterior_checks import Coverage, Ranks, expected_coverage, sbc, tarp
from core.evaluation.proper_scores import crps_ensemble, energy_score

__all__ = [
    "Coverage",
    "Distance",
    "Interval",
    "Ranks",
    "SpreadSkill",
    "TwoSampleTest",
    "block_bootstrap",
    "classifier_test",
    "coverage",
    "crps_ensemble",
    "effective_sample_size",
    "energy_distance",
    "energy_score",
    "expected_coverage",
    "frechet_distance",
    "mmd",
    "nan_mean",
    "pit",
    "rank_histogram",
    "sbc",
    "sliced_wasserstein",
    "split_r_hat",
    "spread_skill",
    "tarp",
]
