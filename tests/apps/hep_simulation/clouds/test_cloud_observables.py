"""Energy-flow polynomials against their definition, N-subjettiness against FastJet."""

import numpy as np
import pytest

from apps.hep_simulation.clouds import observables
from apps.hep_simulation.clouds.data import Clouds
from apps.hep_simulation.clouds.observables import (
    EFPS,
    FOUR,
    NAMES,
    exclusive_axes,
    features,
    four_points,
    subjettiness,
)

GRAPHS = {
    "edge": "ab",
    "double edge": "ab,ab",
    "wedge": "ab,bc",
    "triangle": "ab,bc,ca",
    "cycle": "ab,bc,cd,da",
    "triangle and edge": "ab,bc,ca,ad",
    "path, outer doubled": "ab,ab,bc,cd",
    "path, inner doubled": "ab,bc,bc,cd",
    "star, doubled": "ab,ab,ac,ad",
}


def by_definition(graph, z, theta):
    """Sum over all N-tuples of particles."""
    points = sorted(set(graph) - {","})
    edges = graph.split(",")
    return np.einsum(",".join([*points, *edges]) + "->", *[z] * len(points), *[theta] * len(edges))


def shares(jets, row):
    eta, phi, pt = jets.points[row, jets.mask[row]].T
    return pt / pt.sum(), np.hypot(eta[:, None] - eta, phi[:, None] - phi)


@pytest.mark.exact
def test_polynomials_are_sums_over_all_tuples(jets):
    some = jets.rows(slice(0, 8))
    few, four = features(some)[:, -len(EFPS) :], four_points(some)
    for row in range(8):
        z, theta = shares(some, row)
        expected = [by_definition(GRAPHS[name], z, theta) for name in EFPS]
        np.testing.assert_allclose(few[row], expected, rtol=1e-10)
        expected = [by_definition(GRAPHS[name], z, theta) for name in FOUR]
        np.testing.assert_allclose(four[row], expected, rtol=1e-10)


@pytest.mark.exact
def test_two_particles_have_features_in_closed_form():
    points = np.array([[[0.1, 0.0, 0.6], [-0.15, 0.0, 0.4]]])
    mask = np.ones((1, 2), bool)
    jet = Clouds(np.array([100.0]), np.zeros(1), np.zeros(1), points, mask, np.zeros((1, 2)))
    found = dict(zip(NAMES, features(jet)[0], strict=True))
    assert found["multiplicity"] == 2
    assert found["girth"] == pytest.approx(0.6 * 0.1 + 0.4 * 0.15)
    assert found["pTD"] == pytest.approx(np.hypot(0.6, 0.4))
    assert found["edge"] == pytest.approx(2 * 0.6 * 0.4 * 0.25)
    assert found["mass"] == pytest.approx(np.sqrt(2 * 0.24 * (np.cosh(0.25) - 1)))
    assert found["tau21"] == 0
    assert found["triangle"] == 0


@pytest.mark.exact
def test_padding_and_order_do_not_matter(jets):
    some = jets.rows(slice(0, 5))
    wide = some.padded(40)
    np.testing.assert_allclose(features(wide), features(some), rtol=1e-9, atol=1e-12)
    order = np.random.default_rng(0).permutation(40)
    mixed = Clouds(
        wide.pt, wide.eta, wide.kind, wide.points[:, order], wide.mask[:, order],
        wide.species[:, order],
    )  # fmt: skip
    np.testing.assert_allclose(features(mixed), features(some), rtol=1e-9, atol=1e-12)


@pytest.mark.exact
def test_axes_are_exclusive_kt_jets(jets):
    fastjet = pytest.importorskip("fastjet")
    definition = fastjet.JetDefinition(fastjet.kt_algorithm, 1000.0)
    for row in range(12):
        own = jets.points[row, jets.mask[row]]
        eta, phi, pt = own.T
        momenta = [pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), pt * np.cosh(eta)]
        particles = [fastjet.PseudoJet(*p) for p in np.stack(momenta, 1).tolist()]
        for number in (1, 2, 3):
            found = fastjet.ClusterSequence(particles, definition).exclusive_jets(number)
            axes, alive = exclusive_axes(own[None], np.ones((1, len(own)), bool), number)
            ours = sorted(axes[0, alive[0], 2])
            np.testing.assert_allclose(ours, sorted(j.perp() for j in found), rtol=1e-9)


def test_subjettiness_falls_with_every_axis(jets):
    taus = [subjettiness(jets.points, jets.mask, n) for n in (1, 2, 3)]
    assert (taus[1] <= taus[0] + 1e-12).mean() > 0.99
    assert taus[2].mean() < taus[1].mean() < taus[0].mean()
    three = jets.counts == 3
    assert (taus[2][three] == 0).all()
    assert (taus[1][three] > 0).all()


def test_shares_of_species_sum_to_what_is_labelled(jets):
    found = observables.labelled(jets)
    np.testing.assert_allclose(found[:, :3].sum(1), 1, rtol=1e-12)
    assert (found[:, 3] == (jets.species == 1).sum(1)).all()
