"""The pictures of a report."""

import matplotlib.image
import numpy as np

from apps.hep_simulation.evaluation import Sample
from apps.hep_simulation.plots import draw_all


def test_every_picture_is_drawn_and_shows_something(small, toy, tmp_path):
    samples = [Sample(*toy(small, 200, seed)[:2], small) for seed in (0, 1)]
    drawn = draw_all(tmp_path / "figures", *samples)
    assert sorted(path.stem for path in drawn) == [
        "correlations",
        "profiles",
        "response",
        "showers",
        "spectra",
    ]
    for path in drawn:
        picture = matplotlib.image.imread(path)
        assert np.ptp(picture[..., :3]) > 0.5
        assert (picture[..., :3].min(-1) < 0.9).mean() > 0.01
