"""The cascade: an exact density, conserved energy, the same bits in any company."""

import pytest
import torch

from apps.hep_simulation.cascade import SplittingCascade, rotated, standard_condition, thinned
from apps.hep_simulation.pattern import Pattern
from apps.hep_simulation.profile import _State
from core.errors import AleatorError
from core.random import keyed_generator


def _model(shape=(5, 4, 3), threshold=0.3, seed=0, **options):
    torch.manual_seed(seed)
    sizes = {"radial": 16, "angular": 16, "profile": 16}
    model = SplittingCascade(shape, classes=2, threshold=threshold, **sizes, **options)
    return model.eval()


def _context(count):
    return {
        "vector": torch.linspace(5, 8, count)[:, None],
        "label": torch.arange(count) % 2,
    }


def _streams(count, seed=3):
    return [keyed_generator(seed, i) for i in range(count)]


@pytest.mark.exact
def test_the_density_of_two_voxels_integrates_to_one():
    """p(E_tot) times the split: on a grid over the two energies, plus the lines where one is 0."""
    model = _model((1, 1, 2), threshold=2.0, seed=1).double()  # its tails end on the grid
    context = {"vector": torch.tensor([[4.0]], dtype=torch.float64), "label": torch.tensor([0])}
    # logarithmic above the threshold, where the density is steep
    fine = torch.linspace(-12.0, 7.0, 700, dtype=torch.float64)
    energy, width = 2.0 + fine.exp(), fine.exp() * (fine[1] - fine[0])

    def mass(a, b):
        x = torch.stack([a, b], -1).reshape(-1, 1, 1, 2)
        many = {name: value.expand(len(x), *value.shape[1:]) for name, value in context.items()}
        return model.log_prob(x, many).value.exp()

    rows, columns = torch.meshgrid(torch.arange(700), torch.arange(700), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    none = torch.zeros_like(energy)
    total = (mass(energy[rows], energy[columns]) * width[rows] * width[columns]).sum()
    total += ((mass(energy, none) + mass(none, energy)) * width).sum()
    total += mass(none[:1], none[:1]).sum()
    assert total.item() == pytest.approx(1.0, abs=3e-3)


def test_what_is_seen_when_drawing_is_what_the_density_sees(monkeypatch):
    """The same law for every split on both paths: nothing looks ahead."""
    model, seen = _model(rotates=False), {}
    law = Pattern._law

    def spied(self, memory, shower, layer, split, facts):
        found = law(self, memory, shower, layer, split, facts)
        keys = zip(shower.tolist(), layer.tolist(), split.tolist(), strict=True)
        for key, row in zip(keys, found, strict=True):
            seen.setdefault(key, []).append(row)
        return found

    monkeypatch.setattr(Pattern, "_law", spied)
    x = model.sample((), _context(6), generator=_streams(6))
    drawn = len(seen)
    model.log_prob(x, _context(6))
    assert drawn == len(seen) > 100
    worst = max((rows[0] - rows[1]).abs().max().item() for rows in seen.values())
    assert worst < 2e-3


def test_the_profile_knows_the_same_when_drawing_as_in_the_density():
    profile = _model((7, 1, 1)).profile
    energies = 50 * torch.rand(40, 7, generator=torch.Generator().manual_seed(0))
    energies[energies < 15] = 0
    energies[0] = 0
    left, total = energies.flip(1).cumsum(1).flip(1), energies.sum(1)
    state, rows = _State(total), []
    for layer in range(7):
        rows.append(state.features(left[:, layer]))
        state.add(energies[:, layer], layer)
    assert torch.allclose(
        torch.stack(rows, 1), profile._features(energies, left, total), atol=1e-5
    )


def test_energies_are_conserved_and_voxels_reach_the_threshold():
    model = _model()
    x = model.sample((), _context(20), generator=_streams(20))
    assert x.shape == (20, 5, 4, 3)
    assert x[x > 0].min() >= 0.3 * (1 - 1e-6)
    u = torch.cat([torch.rand(1, 2 + 12 + 2 * 5 * 11, generator=g) for g in _streams(20)])
    condition = standard_condition(_context(20), 2)
    energies = model.profile.sample(condition, u[:, 2:14])
    assert torch.allclose(x.sum((2, 3)), energies, rtol=1e-5, atol=1e-4)


def test_a_shower_is_the_same_in_any_company():
    model, context = _model(), _context(24)
    whole = model.sample((), context, generator=_streams(24))
    for size in (1, 5, 23):
        parts = []
        for start in range(0, 24, size):
            rows = slice(start, start + size)
            part = {name: value[rows] for name, value in context.items()}
            parts.append(model.sample((), part, generator=_streams(24)[rows]))
        assert torch.equal(torch.cat(parts), whole)


def test_the_loss_is_the_density_on_average():
    model, context = _model(), _context(32)
    x = model.sample((), context, generator=_streams(32))
    exact = -model.log_prob(x, context).value.mean().item()
    with torch.no_grad():
        found = model.loss(x, context, generator=torch.Generator().manual_seed(0))
    assert 100 * found.value.mean().item() == pytest.approx(exact, rel=1e-4)


def test_thinning_keeps_the_expectation():
    angular = torch.arange(20_000) % 4 != 0
    weight = thinned(angular, 8, torch.Generator().manual_seed(0))
    assert (weight == 0).any()
    for kind in (angular, ~angular):
        assert weight[kind].mean().item() == pytest.approx(1.0, abs=0.1)


def test_rotations_are_permutations_of_the_sectors():
    x = torch.rand(3, 5, 4, 3)
    turned = rotated(x, torch.tensor([1, 0, 3]), torch.tensor([False, True, False]))
    assert torch.equal(turned[0], x[0].roll(-1, 1))
    assert torch.equal(turned[1], x[1].flip(1))
    assert torch.equal(turned[2], x[2].roll(1, 1))


def test_it_learns_to_share_evenly():
    """Two rings that always get a third and two thirds: the fitted cascade does the same."""
    model = _model((1, 1, 2), threshold=0.1)
    total = torch.exp(torch.rand(256, 1, generator=torch.Generator().manual_seed(0)) + 5)
    x = (total * torch.tensor([1 / 3, 2 / 3])).reshape(-1, 1, 1, 2)
    context = {"vector": total.log(), "label": torch.zeros(256, dtype=torch.long)}
    model.standardise(x, context)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(300):
        loss = model.loss(x, context, generator=torch.Generator().manual_seed(step)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    drawn = model.sample((), context, generator=_streams(256))
    share = drawn[:, 0, 0, 0] / drawn.sum((1, 2, 3))
    assert share.median().item() == pytest.approx(1 / 3, abs=0.01)
    assert (share - 1 / 3).abs().quantile(0.75) < 0.03  # a fifth, evenly spread, had it not learnt


def test_what_it_does_not_take_is_named():
    model = _model()
    with pytest.raises(AleatorError, match="vector"):
        model.sample((), torch.zeros(3, 1))
    with pytest.raises(AleatorError, match="no sampler"):
        model.sample((), _context(2), sampler={"steps": 3})
