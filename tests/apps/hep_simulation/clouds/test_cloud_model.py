"""Training and sampling: laws, seeds, conditions, checkpoints."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from apps.hep_simulation.clouds.data import masses
from apps.hep_simulation.clouds.features import Scaling, spreads, turned
from apps.hep_simulation.clouds.kinematics import axis
from apps.hep_simulation.clouds.model import CloudModel
from apps.hep_simulation.clouds.train import CloudConfig, _like_sized, make_config, train
from core.errors import AleatorError
from core.random import keyed_generator

TINY = {
    "width": 16, "depth": 1, "heads": 2,
    "fit": {"steps": 30, "batch_size": 32, "validate_every": 15, "warmup": 5, "save_every": 30},
}  # fmt: skip


@pytest.fixture(scope="module")
def model(jets, tmp_path_factory):
    return train(jets, make_config(TINY), tmp_path_factory.mktemp("clouds"), say=lambda _: None)


@pytest.mark.exact
def test_encoding_is_undone(jets):
    scaling = Scaling.fit(jets)
    x = scaling.encode(jets)
    assert x.shape == (600, jets.mask.shape[1], 8)
    assert (x[~torch.as_tensor(jets.mask)] == 0).all()
    inside = x[torch.as_tensor(jets.mask)]
    assert inside[:, :3].std(0).sub(1).abs().max() < 0.05
    points, species = scaling.decode(x, jets.mask, jets.eta, spreads(jets.points, jets.mask))
    np.testing.assert_allclose(points, jets.points, atol=2e-5)
    assert (species == jets.species).all()


@pytest.mark.exact
def test_backward_jets_are_seen_reflected(jets):
    scaling, points = Scaling.fit(jets), jets.points * [-1, 1, 1]
    mirrored = replace(jets, eta=-jets.eta, points=points)
    torch.testing.assert_close(scaling.encode(mirrored), scaling.encode(jets))


@pytest.mark.exact
def test_turns_keep_radii_and_all_else(jets):
    x = Scaling.fit(jets).encode(jets)
    found = turned(x, keyed_generator(1), rotate=True)
    torch.testing.assert_close(found[:, :, :2].norm(dim=2), x[:, :, :2].norm(dim=2))
    assert torch.equal(found[:, :, 2:], x[:, :, 2:])
    assert not torch.allclose(found[:, :, :2], x[:, :, :2])
    flipped = turned(x, keyed_generator(1), rotate=False)
    assert torch.equal(flipped[:, :, 0], x[:, :, 0])
    assert torch.equal(flipped[:, :, 1].abs(), x[:, :, 1].abs())


def test_batches_are_of_like_size_and_cover_the_jets():
    size = torch.arange(256) % 40
    config = make_config(TINY).fit
    batches = [_like_sized(size, config, step) for step in range(8)]
    assert sorted(torch.cat(batches).tolist()) == list(range(256))
    assert np.mean([float(size[rows].float().std()) for rows in batches]) < 3


def test_sampled_jets_keep_the_laws(jets, model):
    found = model.sample(jets.pt[:60], jets.eta[:60], jets.kind[:60], seed=3)
    total = axis(found.points, found.mask)
    np.testing.assert_allclose(total.pt, 1, atol=1e-9)
    np.testing.assert_allclose(total.rapidity, 0, atol=1e-9)
    assert found.counts.min() >= 1
    assert found.counts.max() <= model.most
    assert (found.points[~found.mask] == 0).all()
    assert (np.diff(np.where(found.mask, found.points[:, :, 2], 0), axis=1) <= 0).all()
    assert set(np.unique(found.species[found.mask])) <= set(range(1, 6))
    given = model.sample(
        jets.pt[:9], jets.eta[:9], jets.kind[:9], counts=jets.counts[:9], spread=masses(jets)[:9]
    )
    assert (given.counts == jets.counts[:9]).all()
    np.testing.assert_allclose(masses(given), masses(jets)[:9], rtol=1e-4)


def test_a_jet_does_not_depend_on_the_others(jets, model):
    whole = model.sample(jets.pt[:40], jets.eta[:40], jets.kind[:40], seed=5)
    alone = model.sample(jets.pt[17:20], jets.eta[17:20], jets.kind[17:20], seed=5, first=17)
    assert (alone.counts == whole.counts[17:20]).all()
    for row in range(3):
        n = alone.counts[row]
        np.testing.assert_allclose(alone.points[row, :n], whole.points[17 + row, :n], atol=1e-4)
    other = model.sample(jets.pt[:40], jets.eta[:40], jets.kind[:40], seed=6)
    assert not np.array_equal(other.counts, whole.counts)


def test_multiplicity_and_mass_follow_the_training_jets(jets, model):
    found = model.sample(jets.pt, jets.eta, jets.kind, seed=1, steps=1)
    assert abs(found.counts.mean() - jets.counts.mean()) < 0.5
    assert abs(np.log(masses(found)).mean() - np.log(masses(jets)).mean()) < 0.1


def test_a_saved_model_makes_the_same_jets(jets, model, tmp_path):
    model.save(tmp_path / "m")
    again = CloudModel.load(tmp_path / "m")
    a, b = (m.sample(jets.pt[:8], jets.eta[:8], jets.kind[:8], seed=2) for m in (model, again))
    assert np.array_equal(a.points, b.points)
    assert again.reach() == model.reach()
    assert again.kinds == (1, 21)


def test_conditions_beyond_training_are_flagged(jets, model):
    low, high = jets.pt.min(), jets.pt.max()
    pt = np.array([low * 1.1, high * 1.5, low * 1.1, low * 1.1])
    flags = model.outside(pt, np.array([0, 0, 4.0, 0]), np.array([1, 1, 1, 5]))
    assert flags.tolist() == [False, True, True, True]


def test_a_stopped_training_goes_on_to_the_same_weights(jets, tmp_path):
    config = make_config({**TINY, "fit": {**TINY["fit"], "steps": 12}})
    whole = train(jets, config, tmp_path / "a", say=lambda _: None)
    half = make_config({**TINY, "fit": {**TINY["fit"], "steps": 12, "stop_at": 6}})
    train(jets, half, tmp_path / "b", say=lambda _: None)
    resumed = train(jets, config, tmp_path / "b", resume=True, say=lambda _: None)
    for a, b in zip(whole.cloud.parameters(), resumed.cloud.parameters(), strict=True):
        assert torch.equal(a, b)


def test_mistakes_are_named(jets, model, tmp_path):
    for settings, message in (
        ({"family": "gan"}, "family 'gan' of clouds; known: flow_matching, diffusion"),
        ({"width": 10}, "must divide by heads=4"),
        ({"deep": 3}, "no option 'deep'"),
        ({"fit": {"stepz": 3}}, "no option 'stepz'"),
        ({"depth": 0}, "depth=0"),
    ):
        with pytest.raises(AleatorError, match=message):
            make_config(settings)
    with pytest.raises(AleatorError, match="at least 500"):
        train(jets.rows(slice(0, 20)), CloudConfig(), tmp_path)
    one = (jets.pt[:1], jets.eta[:1], jets.kind[:1])
    with pytest.raises(AleatorError, match="--steps 0"):
        model.sample(*one, steps=0)
    with pytest.raises(AleatorError, match="must number 1 to"):
        model.sample(*one, counts=np.array([500]))
