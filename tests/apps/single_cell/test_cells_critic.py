"""The critic's ratio is that of sklearn's classifier, and choosing by it mends what is drawn."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from apps.single_cell import critic as module
from apps.single_cell.critic import LIMIT, Critic, choose
from apps.single_cell.realism import Components
from core.errors import CheckpointError
from core.random import keyed_generator

GENES = 30


def cells(n, spread, seed):
    """Poisson counts with one latent of a given spread, CSR."""
    rng = np.random.default_rng(seed)
    z = spread * rng.normal(size=(n, 1))
    share = np.exp(z * np.linspace(-1, 1, GENES))
    share /= share.sum(1, keepdims=True)
    return sp.csr_matrix(rng.poisson(share * 300).astype(np.float32))


@pytest.fixture(scope="module")
def learned():
    real, drawn = cells(1500, 0.6, 0), [cells(1500, 0.5, seed) for seed in (1, 2)]
    return Critic.fit(real, drawn), real, drawn


@pytest.mark.exact
def test_the_ratio_is_that_of_sklearn(learned):
    critic, real, drawn = learned
    order = torch.randperm(1500, generator=keyed_generator(0, 0)).numpy()
    halves = np.sort(order[:750]), np.sort(order[750:])
    new, expected = cells(50, 0.5, 3), np.zeros(50)
    for fitted, judged in (halves, halves[::-1]):
        components = Components.fit(real[fitted])

        def features(x, own=components):
            return np.c_[own(x), np.log(x.toarray().sum(1))]

        pipe = make_pipeline(
            StandardScaler(),
            PolynomialFeatures(2, include_bias=False),
            StandardScaler(),
            LogisticRegression(C=1 / module.PENALTY, max_iter=500),
        )
        x = np.concatenate([features(part[judged]) for part in (real, *drawn)])
        pipe.fit(x, np.repeat([1, 0, 0], 750))
        expected += (pipe.decision_function(features(new)) + np.log(2)) / 2
    assert critic.log_ratio(new) == pytest.approx(np.clip(expected, -LIMIT, LIMIT), abs=2e-3)


def test_choosing_by_it_mends_a_spread_that_is_too_small(learned):
    critic, real, _ = learned
    candidates = [cells(1000, 0.5, 100 + k) for k in range(10)]
    pick = choose(np.stack([critic.log_ratio(x) for x in candidates]), seed=0)
    kept = sp.vstack([candidates[k][i] for i, k in enumerate(pick)], format="csr")
    first = Components.fit(cells(1500, 0.6, 7))
    spread = [first(x)[:, 0].std() for x in (real, candidates[0], kept)]
    assert spread[1] < 0.88 * spread[0]
    assert spread[2] == pytest.approx(spread[0], rel=0.08)


def test_there_is_little_to_say_where_both_are_of_one_law():
    critic = Critic.fit(cells(1500, 0.5, 0), [cells(1500, 0.5, seed) for seed in (1, 2)])
    assert abs(critic.log_ratio(cells(500, 0.5, 5))).mean() < 0.5


@pytest.mark.exact
def test_candidates_are_kept_in_proportion_to_their_ratios():
    w = np.array([1.0, 2.0, 5.0])
    pick = choose(np.tile(np.log(w)[:, None], (1, 20_000)), seed=1)
    share = np.bincount(pick, minlength=3) / len(pick)
    assert share == pytest.approx(w / w.sum(), abs=4 * np.sqrt(0.25 / len(pick)))
    later = choose(np.tile(np.log(w)[:, None], (1, 50)), seed=1, first=100)
    assert (later == pick[100:150]).all()


def test_what_is_far_beyond_is_cut(learned):
    critic = learned[0]
    odd = sp.csr_matrix(np.r_[np.full(15, 5000.0), np.zeros(15)].astype(np.float32)[None])
    assert abs(critic.log_ratio(odd)).max() <= LIMIT


@pytest.mark.exact
def test_kept_and_read(learned):
    critic = learned[0]
    again = Critic.of(critic.tensors())
    new = cells(20, 0.5, 9)
    assert (again.log_ratio(new) == critic.log_ratio(new)).all()
    with pytest.raises(CheckpointError, match=r"incomplete \(square\); train again"):
        Critic.of({name: value for name, value in critic.tensors().items() if name != "square"})
