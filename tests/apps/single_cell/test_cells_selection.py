"""What the verdict says follows from paired differences, and survives being stored."""

import json

import numpy as np
import pytest
import scipy.sparse as sp

from apps.single_cell.config import Config
from apps.single_cell.counts import Counts
from apps.single_cell.covariates import Design
from apps.single_cell.mcv import split
from apps.single_cell.selection import LADDERS, _sample, select
from apps.single_cell.trial import SHARE, Trial
from apps.single_cell.verdict import Verdict
from core.errors import AleatorError


def plain(cells):
    return Design(np.zeros((cells, 0), np.int64), np.zeros((cells, 0), np.float32), ())


def verdict(mean, error=0.001):
    losses = {"ours": 0.5, "raw": 0.5 - mean}
    return Verdict(losses, {"raw": (mean, error)}, 0.9, 100)


def test_helps_hurts_or_cannot_be_told():
    helps, hurts, neither = verdict(-0.1), verdict(0.1), verdict(0.0015)
    assert helps.helps
    assert not helps.hurts
    assert "denoising helps here" in helps.sentence()
    assert hurts.hurts
    assert not hurts.helps
    assert "denoising hurts here: raw predicts better" in hurts.sentence()
    assert not neither.helps
    assert not neither.hurts
    assert "no difference that can be told" in neither.sentence()


def test_a_model_that_generates_is_told_apart_where_it_does_not_help():
    assert "made to generate" in verdict(0.1).sentence(generates=True)
    assert verdict(-0.1).sentence(generates=True) == verdict(-0.1).sentence()


def test_one_better_alternative_is_enough_not_to_help():
    found = Verdict(
        {"ours": 0.5, "raw": 0.9, "library mean": 0.4},
        {"raw": (-0.4, 0.001), "library mean": (0.1, 0.001)},
        0.9,
        100,
    )
    assert not found.helps
    assert found.hurts
    assert found.best == "library mean"


def test_stored_and_read():
    found = verdict(-0.1)
    assert Verdict.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_hidden_cells_are_not_among_the_seen():
    seen, unseen = _sample(10_000, 0)
    assert not set(seen) & set(unseen)
    assert len(seen) + len(unseen) == 6000
    assert sorted(np.concatenate(_sample(200, 1))) == list(range(200))


def test_what_is_given_is_kept():
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(rng.poisson(2.0, (60, 20)).astype(np.float32))
    design = plain(60)
    given = Config(latent=3, width=8, likelihood="poisson", strength=5.0, steps=20)
    found = select(Counts(counts), design, given, device="cpu")
    assert found.config == given
    assert found.verdict.tried == ()
    assert not found.verdict.hurts or found.verdict.best != "ours"


def test_cells_left_without_molecules_to_learn_from_are_left_out():
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(1.0 + rng.poisson(1.0, (200, 2)), dtype=np.float32)
    counts = sp.csr_matrix(counts.multiply(np.r_[np.ones(150), np.zeros(50)][:, None]))
    counts[150:, 0] = 1  # a molecule each: about five of these end up held out
    counts, design = Counts(sp.csr_matrix(counts)), plain(200)
    index = np.arange(200)
    trial = Trial.of(counts, design, index, 0, "cpu")
    train = np.asarray(split(counts.take(index), SHARE, 0).train.sum(1)).ravel()
    assert 0 < (train == 0).sum() < 50
    assert trial.library.tolist() == train[train > 0].tolist()
    assert len(trial.design) == trial.molecules.test.shape[0] == len(trial.library)
    config = Config(latent=2, width=8, likelihood="poisson", strength=5.0, steps=20)
    assert select(counts, design, config, device="cpu").verdict.cells < 200


def test_too_few_cells_with_molecules_to_learn_from():
    one = np.zeros((32, 4), np.float32)
    one[:4], one[4:, 0] = 50, 1
    with pytest.raises(AleatorError, match="only 27 of 32 cells have molecules left"):
        Trial.of(Counts(sp.csr_matrix(one)), plain(32), np.arange(32), 3, "cpu")


def test_ladders_start_at_their_base():
    from apps.single_cell.selection import BASE

    assert all(BASE[name] in ladder for name, ladder in LADDERS.items())


def test_too_few_cells():
    counts = sp.csr_matrix(np.ones((10, 5), np.float32))
    design = plain(10)
    with pytest.raises(AleatorError, match="30 are needed"):
        select(Counts(counts), design, Config())
