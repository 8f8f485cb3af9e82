"""Couplings are permutations that keep the noise's law, and straighten flows; so does reflow."""

import itertools
import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from core import build
from core.coupling import Coupling, make_coupling, match_points, optimal_permutation
from core.diffusion import given_noise
from core.errors import AleatorError
from core.flow_matching import FlowMatching
from core.random import keyed_generator
from core.reflow import PairData, flow_pairs, straightness
from core.training import FitConfig, fit


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=keyed_generator(seed))


@pytest.mark.exact
def test_the_permutation_is_optimal_and_repeats_nothing():
    x, noise = normal(60, 2, 3), normal(60, 2, 3, seed=1)
    paired = Coupling("optimal")(x, noise)
    cost = torch.cdist(x.flatten(1), noise.flatten(1)).square()
    _, columns = linear_sum_assignment(cost.numpy())
    torch.testing.assert_close(paired, noise[columns])
    assert sorted(optimal_permutation(cost).tolist()) == list(range(60))
    assert (x - paired).square().sum() < (x - noise).square().sum()
    assert torch.equal(Coupling()(x, noise), noise)
    line = Coupling("optimal")(torch.arange(9.0)[:, None], normal(9, 1))
    assert (line.flatten().diff() > 0).all()  # in one dimension it sorts


@pytest.mark.exact
def test_blocks_bound_the_work_and_stay_permutations():
    x, noise = normal(50, 2), normal(50, 2, seed=1)
    paired = Coupling("optimal", block=16)(x, noise)
    assert not torch.equal(paired, Coupling("optimal")(x, noise))
    torch.testing.assert_close(paired.sort(0).values, noise.sort(0).values)
    for first in (0, 16, 32, 48):
        part = slice(first, first + 16)
        torch.testing.assert_close(paired[part], Coupling("optimal")(x[part], noise[part]))


@pytest.mark.exact
def test_under_a_label_the_noise_stays_standard_normal():
    """Two classes far apart: a blind coupling would give each its own half of the noise."""
    label = torch.arange(400) % 2
    x = normal(400, 1) + 6.0 * (2 * label[:, None] - 1)
    noise = normal(400, 1, seed=1)
    aware, blind = Coupling("optimal")(x, noise, label), Coupling("optimal")(x, noise)
    for value in (0, 1):
        mine = label == value
        assert aware[mine].mean().abs() < 4 / math.sqrt(200)
        assert torch.equal(aware[mine].sort(0).values, noise[mine].sort(0).values)
        assert blind[mine].mean().abs() > 0.5


@pytest.mark.exact
def test_a_vector_condition_is_traded_against_distance():
    """W = 0 ignores it; a large w leaves every noise with its own condition."""
    c = normal(100, 1, seed=2)
    x, noise = 5 * c + normal(100, 1), normal(100, 1, seed=1)

    def correlation(weight):
        paired = Coupling("optimal", condition_weight=weight)(x, noise, c)
        return torch.corrcoef(torch.cat([paired, c], 1).T)[0, 1].abs().item()

    assert correlation(0.0) > 0.9
    assert correlation(1e4) < 0.3
    exact = Coupling("optimal", condition_weight=1e4)(x, noise, c)
    assert torch.equal(exact, noise)


def test_couplings_come_from_configs_and_mistakes_are_named():
    assert make_coupling({"kind": "optimal", "block": 32}) == Coupling("optimal", 32)
    for config, message in (
        ("ot", "unknown coupling 'ot'; known: independent, optimal"),
        ({"kind": "optimal", "size": 3}, "no option 'size'; it has block"),
        ({"block": 1}, "block=1"),
    ):
        with pytest.raises(AleatorError, match=message):
            make_coupling(config)
    with pytest.raises(AleatorError, match="a context of batch 2 for 3 examples"):
        Coupling("optimal")(normal(3, 1), normal(3, 1), torch.zeros(2, dtype=torch.long))


@pytest.mark.exact
def test_noise_that_the_context_brings_is_used_and_not_shown():
    torch.manual_seed(0)
    model = build({"family": "flow_matching", "event_shape": [2], "net": {"width": 8}})
    x, noise = normal(5, 2), normal(5, 2, seed=1)
    assert given_noise({"noise": noise})[0] is None
    kept, brought = given_noise({"noise": noise, "label": x})
    assert list(kept) == ["label"]
    assert brought is noise
    t = model.draw_times(5, keyed_generator(3))
    found = model.loss(x, {"noise": noise}, generator=keyed_generator(3))
    x_t = (1 - t)[:, None] * x + t[:, None] * noise
    target = noise - x  # the network of a fresh model puts out zero velocity
    torch.testing.assert_close(found.value, target.square().mean(1), rtol=1e-4, atol=1e-4)
    assert model.denoise(x_t, t).velocity.abs().max() < 1e-5


def two_modes(n, generator):
    sign = 2.0 * torch.randint(2, (n, 1), generator=generator) - 1
    return torch.cat([1.5 * sign, -sign], 1) + 0.2 * torch.randn(n, 2, generator=generator)


def trained(tmp_path, name, batches, **options):
    config = {"family": "flow_matching", "event_shape": [2], "net": {"width": 48, "blocks": 2}}
    torch.manual_seed(0)
    model = build({**config, **options})
    fit_config = FitConfig(steps=500, learning_rate=4e-3, validate_every=0, ema=0.95)
    folder = tmp_path / name
    return fit(model, batches, fit_config, folder=folder, progress=None, device="cpu").model


@pytest.mark.exact
def test_paths_straighten_by_coupling_and_by_reflow_and_not_by_matching_alone(tmp_path):
    """X8: straight conditional paths do not make the marginal flow straight."""

    def batches(step, generator):
        return two_modes(128, generator), None

    plain = trained(tmp_path, "plain", batches)
    coupled = trained(tmp_path, "coupled", batches, coupling="optimal")
    pairs = PairData.of(plain, 4000, sampler={"name": "euler", "steps": 30})
    again = trained(tmp_path, "again", pairs)
    noise = normal(500, 2, seed=9)
    bent, by_coupling, by_reflow = (
        straightness(m, noise, steps=30).mean().item() for m in (plain, coupled, again)
    )
    assert bent > 0.3
    assert by_coupling < bent / 2
    assert by_reflow < bent / 4
    # Two Euler steps of the straight flow go where thirty do, rather than those of the bent one.
    one = flow_pairs(again, noise, sampler={"name": "euler", "steps": 2})
    many = flow_pairs(again, noise, sampler={"name": "euler", "steps": 30})
    gap = (one - many).norm(dim=1).median()
    few, true = (flow_pairs(plain, noise, sampler={"name": "euler", "steps": n}) for n in (2, 30))
    assert gap < (few - true).norm(dim=1).median() / 2
    near = (many.abs() - torch.tensor([1.5, 1.0])).norm(dim=1)
    assert near.median() < 0.5


@pytest.mark.exact
def test_pairs_are_where_the_flow_goes(two_modes):
    """On the exact velocity of a mixture, against its quantile map."""

    class Exact(FlowMatching):
        def denoise(self, x_t, t, context=None):
            return two_modes.denoise(self.path)(x_t, t)

    model = Exact(torch.nn.Linear(1, 1).double(), (1,))
    noise = normal(200, 1, seed=4).double()
    found = flow_pairs(model, noise, sampler={"name": "2m", "steps": 60, "log_snr_max": 12.0})
    point = model.path.at(model.path.t_max)
    exact = two_modes.quantile_map(model.prior_std * noise, point.alpha, point.sigma)
    assert (found - exact).abs().mean() < 0.005
    assert (found - exact).abs().max() < 0.05
    data = PairData.of(model, 10, batch=4, chunk=3)
    x, context = data(0, keyed_generator(0))
    assert x.shape == context["noise"].shape == (4, 1)
    labelled = PairData(noise, noise, torch.arange(200), 7)
    x, context = labelled(0, keyed_generator(0))
    assert torch.equal(noise[context["label"]], x)
    with pytest.raises(AleatorError, match="equal shapes"):
        PairData(noise, noise[:3], None, 4)


@pytest.mark.exact
def test_points_of_a_set_are_matched_within_it_and_padding_is_left_alone():
    x, noise = normal(3, 5, 2), normal(3, 5, 2, seed=1)
    mask = torch.arange(5) < torch.tensor([5, 3, 1])[:, None]
    found = match_points(x, noise, mask)
    for row in range(3):
        n = int(mask[row].sum())
        costs = [
            (x[row, :n] - noise[row, list(order)]).square().sum()
            for order in itertools.permutations(range(n))
        ]
        torch.testing.assert_close((x[row, :n] - found[row, :n]).square().sum(), min(costs))
        a, b = (part[row, :n].sort(0).values for part in (found, noise))
        assert torch.equal(a, b)  # a permutation: each noise exactly once
    assert torch.equal(found[~mask], noise[~mask])
    torch.testing.assert_close(match_points(x, x.flip(1)), x)
