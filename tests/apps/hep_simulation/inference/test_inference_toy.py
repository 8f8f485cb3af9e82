"""Trained end to end on a toy whose posterior is known: a linear-Gaussian simulator in a box."""

import numpy as np
import pytest
import torch

from apps.hep_simulation.inference.config import make_config
from apps.hep_simulation.inference.data import EventSets
from apps.hep_simulation.inference.evaluation import judge
from apps.hep_simulation.inference.posterior import load
from apps.hep_simulation.inference.prior import BoxPrior
from apps.hep_simulation.inference.train import train
from core.evaluation import classifier_test

SLOPE = np.array([[1.0, 0.4, 0.0], [0.0, 0.6, -0.8]])
NOISE = 0.7
PRIOR = BoxPrior(("a", "b"), (-1.0, 2.0), (1.0, 5.0))
NAMES = ("x", "y", "z")


def simulate(count, events, seed):
    """Sets of x ~ N(B u, s²) with θ uniform in the prior."""
    rng = np.random.default_rng(seed)
    u = rng.random((count, 2))
    x = (u @ SLOPE)[:, None] + NOISE * rng.standard_normal((count, events, 3))
    return EventSets(x.astype(np.float32), NAMES, PRIOR.from_unit(u), PRIOR, "toy")


def brute_force(x, draws, seed=0):
    """Draws of u from the exact posterior, on a fine grid."""
    side = (np.arange(600) + 0.5) / 600
    grid = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    centre = x.astype(np.float64).mean(0)
    log_p = -0.5 * len(x) * ((centre - grid @ SLOPE) ** 2).sum(1) / NOISE**2
    rng = np.random.default_rng(seed)
    p = np.exp(log_p - log_p.max())
    rows = rng.choice(len(grid), draws, p=p / p.sum())
    return grid[rows] + (rng.random((draws, 2)) - 0.5) / 600


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """400 parameters, 20 events each."""
    config = make_config("npe", {"folds": 3, "fit": {"steps": 250}}, 0)
    folder = tmp_path_factory.mktemp("toy")
    return train(simulate(400, 20, 1), config, folder, device="cpu", say=lambda line: None)


@pytest.mark.parametrize("n", [1, 10, 50, 200])
def test_the_same_weights_match_brute_force_at_any_number_of_events(trained, n):
    sets = simulate(3, n, 2)
    found = []
    for k, x in enumerate(sets.x):
        ours = trained.sample_unit(x, 1000, torch.Generator().manual_seed(k))
        exact = torch.as_tensor(brute_force(x, 1000, k))
        found.append(classifier_test(ours, exact, folds=2, width=32, epochs=40).accuracy)
    assert np.mean(found) < (0.57 if n <= 50 else 0.62)  # 200 is ten times what was simulated


def test_ranks_are_uniform_and_intervals_hold(trained):
    for n in (2, 20):
        judged = judge(trained, simulate(150, n, 3), draws=200)
        assert judged.ranks.p_value().min() > 0.01
        assert judged.row()["cover_68"] == pytest.approx(0.68, abs=0.06)


def test_density_is_the_exact_one(trained):
    """Mean ln q of truths is within .05 nats of the exact posterior's."""
    sets = simulate(200, 20, 4)
    side = (np.arange(200) + 0.5) / 200
    grid = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    u = PRIOR.to_unit(sets.theta)
    exact = []
    for truth, x in zip(u, sets.x.astype(np.float64), strict=True):
        at = np.concatenate([grid, truth[None]]) @ SLOPE
        log_l = -0.5 * 20 * ((x.mean(0) - at) ** 2).sum(1) / NOISE**2
        exact.append(log_l[-1] - np.log(np.exp(log_l[:-1] - log_l.max()).mean()) - log_l.max())
    ours = judge(trained, sets, draws=50).log_q.mean().item()
    assert ours == pytest.approx(np.mean(exact), abs=0.05)


def test_alarms_are_rare_on_good_sets_and_sure_on_bad_ones(trained):
    good = trained.standardised(simulate(400, 20, 5).x)
    bad = good.clone()
    bad[..., 2] += 2.5  # no parameters make z alone this large
    wild = good.clone()
    wild[:, 0, 1] = 40.0
    assert (trained.guard.misfit(good) < 0.01).double().mean() < 0.03
    assert (trained.guard.misfit(bad) < 0.01).double().mean() > 0.95
    assert (trained.guard.misfit(torch.cat([good, good, good], 1)) < 0.01).double().mean() < 0.05
    assert (trained.guard.outside(wild) > 0).all()


def test_the_posterior_predictive_check_sees_what_cannot_be_explained(trained):
    x = simulate(1, 20, 6).x[0]
    u = trained.sample_unit(x, 300, torch.Generator().manual_seed(0))
    shifted = trained.standardised(x).clone()
    shifted[:, 2] += 3.0
    fine = trained.guard.predictive(trained.standardised(x), u)
    odd = trained.guard.predictive(shifted, u)
    assert ((fine > 0.01) & (fine < 0.99)).all()
    assert odd[2] > 0.999


def test_saving_and_loading_changes_nothing(trained, tmp_path):
    trained.save(tmp_path / "m")
    again, x = load(tmp_path / "m"), simulate(1, 7, 7).x[0]
    assert np.array_equal(again.sample(x, 20, seed=3), trained.sample(x, 20, seed=3))
    theta = PRIOR.from_unit(np.array([[0.2, 0.6]]))
    assert again.log_prob(theta, x).value == trained.log_prob(theta, x).value


def test_draws_of_a_set_do_not_depend_on_the_others(trained):
    x = simulate(3, 5, 8).x
    alone = trained.sample(x[2], 10, seed=1, number=2)
    for k in range(3):
        trained.sample(x[k], 10, seed=1, number=k)
    assert np.array_equal(trained.sample(x[2], 10, seed=1, number=2), alone)


def test_likelihood_of_events_finds_the_same_posterior(tmp_path):
    """Neural likelihood: the exact mean, and no narrower than the exact posterior."""
    settings = {"fit": {"steps": 400}, "network": {"layers": 2, "hidden": [32], "bins": 4}}
    config = make_config("nle", settings, 0)
    model = train(simulate(300, 20, 1), config, tmp_path, device="cpu", say=lambda line: None)
    model.save(tmp_path / "m")
    again = load(tmp_path / "m")
    for k, x in enumerate(simulate(3, 30, 9).x):
        ours = again.sample_unit(x, 2000, torch.Generator().manual_seed(0)).numpy()
        exact = brute_force(x, 4000, k)
        width = exact.std(0)
        assert (np.abs(ours.mean(0) - exact.mean(0)) < 0.6 * width).all()
        assert (ours.std(0) > 0.75 * width).all()
        assert (ours.std(0) < 1.8 * width).all()
    events = again.simulate_unit(torch.tensor([[0.5, 0.5]]), 2000, torch.Generator())
    assert events[0].mean(0) == pytest.approx(np.array([0.5, 0.5]) @ SLOPE, abs=0.1)
