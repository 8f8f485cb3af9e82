"""The pictures of a report on clouds."""

import matplotlib.image
import numpy as np
import pytest

from apps.hep_simulation.clouds.evaluation import Sample
from apps.hep_simulation.clouds.plots import draw_all, edges_of, spectra, substructure
from apps.hep_simulation.observables import separation
from tests.apps.hep_simulation.clouds.conftest import made_up


@pytest.fixture(scope="module")
def samples():
    return [Sample(made_up(500, seed)) for seed in (1, 2)]


def test_every_picture_is_drawn_and_shows_something(samples, tmp_path):
    drawn = draw_all(tmp_path / "figures", *samples)
    assert sorted(path.stem for path in drawn) == ["spectra", "substructure"]
    for path in drawn:
        picture = matplotlib.image.imread(path)
        assert np.ptp(picture[..., :3]) > 0.5
        assert (picture[..., :3].min(-1) < 0.9).mean() > 0.01


@pytest.mark.exact
def test_panels_hold_what_their_labels_say(samples):
    made, real = samples
    panels = {label: (x, y) for label, x, y in spectra(made, real)}
    clouds = made.clouds
    x, _ = panels["constituents' pT, GeV"]
    assert len(x) == clouds.counts.sum()
    assert x.sum() == pytest.approx((clouds.points[:, :, 2].sum(1) * clouds.pt).sum())
    assert panels["pT, GeV"][1] is real.clouds.pt
    # a jet of one row: its mass from the four-momenta of its constituents
    row = 3
    eta, phi, share = clouds.points[row][clouds.mask[row]].T
    pt = share * clouds.pt[row]
    p4 = np.array([pt * np.cosh(eta), pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)])
    energy, *momentum = p4.sum(1)
    mass = np.sqrt(energy**2 - np.square(momentum).sum())
    assert panels["mass, GeV"][0][row] == pytest.approx(mass, rel=1e-6)
    names = [label for label, *_ in substructure(made, real)]
    assert names == ["girth", "pTD", "tau1", "tau21", "tau32", "leading ptrel"]


def test_bins_hold_nearly_all_and_show_a_fault(samples):
    made, real = samples
    wide = made_up(500, 1)
    wide.points[:, :, :2] *= 1.3
    for label, x, y in spectra(made, real):
        edges = edges_of(label, y)
        assert (np.diff(edges) > 0).all()
        assert np.histogram(y, edges)[0].sum() > 0.99 * len(y)
        if label == "constituents":
            assert set(np.unique(edges % 1)) == {0.5}
        if label == "mass, GeV":
            broken = {name: v for name, v, _ in spectra(Sample(wide), real)}[label]
            assert separation(broken, y, edges) > 1.5 * separation(x, y, edges)
