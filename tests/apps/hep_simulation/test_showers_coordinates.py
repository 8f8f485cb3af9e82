"""Splits as normal scores, showers as coordinates: exact there and back, N(0, 1) in between."""

import math

import pytest
import torch
from scipy import stats

from apps.hep_simulation import splits
from apps.hep_simulation.coordinates import Coordinates
from apps.hep_simulation.fields import joint
from apps.hep_simulation.pattern import longitudinal
from apps.hep_simulation.profile import compress
from apps.hep_simulation.scores import FARTHEST, from_normal, to_normal
from apps.hep_simulation.tree import Tree
from apps.hep_simulation.turn import Turn, time
from core.denoiser import Posterior
from core.errors import AleatorError
from core.paths import path_from_config
from core.registry import build, build_net

THRESHOLD = 0.4


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _parameters(rows, seed=0):
    drawn = torch.randn(1, splits.width(), generator=_generator(seed))
    drawn[:, -splits.COMPONENTS :] -= 1.0  # not so close to the threshold that data are rounded
    return drawn.double().expand(rows, -1)


@pytest.mark.exact
@pytest.mark.parametrize("energy", [0.5, 0.9, 3.0, 900.0])
def test_scores_of_draws_are_normal_and_go_back_to_them(energy):
    count = 20_000
    whole = torch.full((count,), energy, dtype=torch.float64)
    uniform = torch.rand(count, 3, generator=_generator(1)).double()
    law = _parameters(count)
    a, b = splits.draw(law, whole, uniform[:, :2], THRESHOLD)
    z = to_normal(law, a, b, uniform[:, 2], THRESHOLD)
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-3
    again = from_normal(law, whole, z, THRESHOLD)
    for found, expected in zip(again, (a, b), strict=True):
        assert torch.equal(found == 0, expected == 0)
        assert torch.allclose(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.exact
def test_a_share_grows_with_its_score_and_parts_add_up():
    law, energy = _parameters(500, seed=3), torch.full((500,), 7.0, dtype=torch.float64)
    a, b = from_normal(law, energy, torch.linspace(-8, 8, 500).double(), THRESHOLD)
    assert (a.diff() >= 0).all()
    assert torch.allclose(a + b, energy)
    assert a[0] == 0
    assert b[-1] == 0
    inside = (a > 0) & (b > 0)
    assert inside.any()
    assert torch.minimum(a, b)[inside].min() >= THRESHOLD


def test_scores_stay_finite_at_the_ends_of_what_can_be_shared():
    a = torch.tensor([THRESHOLD, THRESHOLD, 5e4, 0.0, 1.0], dtype=torch.float64)
    b = torch.tensor([THRESHOLD, 5e4, THRESHOLD, 1.0, 0.0], dtype=torch.float64)
    z = to_normal(_parameters(5), a, b, torch.tensor([0.5, 0.5, 0.5, 0.0, 1.0]), THRESHOLD)
    assert z.abs().max() <= FARTHEST
    back = from_normal(_parameters(5), a + b, z, THRESHOLD)
    assert torch.allclose(torch.stack(back), torch.stack([a, b]), rtol=1e-4)


def _showers(layers=4, rings=3, sectors=6):
    """Sparse showers (8, L, A, R), among them an empty one and one of a single voxel."""
    x = 20 * torch.rand(8, layers, sectors, rings, generator=_generator(2))
    x[x < 12] = 0
    x[0] = 0
    x[1] = 0
    x[1, 2, 3, 1] = 5.0
    x[2, 0] = 0
    return x


def _coordinates(x):
    tree = Tree(x.shape[3], x.shape[2])
    padded = torch.nn.functional.pad(x, (0, 0, 0, tree.padded - x.shape[2]))
    nodes = tree.energies(padded)
    condition = torch.randn(len(x), 3, generator=_generator(4))
    torch.manual_seed(0)
    made = Coordinates(tree, x.shape[1], 3, THRESHOLD)
    made.standardise(nodes, condition)
    return made, tree, nodes, condition


@pytest.mark.exact
def test_showers_go_there_and_back_whatever_the_law():
    x = _showers()
    made, tree, nodes, condition = _coordinates(x)
    size = len(tree.splits)
    uniform = torch.rand(len(x), size, 4, generator=_generator(5))
    noise = torch.randn(len(x), size, 4, generator=_generator(6))
    z = made(nodes, condition, torch.arange(size), uniform, noise)
    some = torch.tensor([size - 1, 2])
    assert torch.equal(made(nodes, condition, some, uniform[:, some], noise[:, some]), z[:, some])
    assert z.shape == (len(x), size, 4)
    assert torch.equal(z[0], noise[0])  # nothing to split: noise
    back = tree.voxels(made.inverse(z, nodes[..., tree.root], condition))
    assert torch.equal(back > 0, x > 0)
    assert torch.allclose(back, x, rtol=1e-3)


def test_any_scores_keep_the_layer_energies_and_the_threshold():
    x = _showers()
    made, tree, nodes, condition = _coordinates(x)
    energies = nodes[..., tree.root].clone()
    z = 3 * torch.randn(len(x), len(tree.splits), 4, generator=_generator(7))
    found = made.inverse(z, energies, condition)
    voxels = tree.voxels(found)
    # sectors that are there only to make a power of two are not voxels
    leaves = [
        tree.leaf(ring, sector) for ring in range(tree.rings) for sector in range(tree.padded)
    ]
    assert torch.allclose(found[..., leaves].sum(-1), energies, rtol=1e-5)
    assert voxels[voxels > 0].min() >= THRESHOLD * (1 - 1e-6)
    assert (voxels[0] == 0).all()


def test_what_layers_are_told_is_on_one_scale():
    x = _showers()
    made, tree, nodes, condition = _coordinates(x)
    facts = made.standard_facts(nodes[..., tree.root], condition)
    assert facts.shape == (len(x), 4, 3 + 6)
    assert torch.isfinite(facts).all()
    assert facts.abs().max() <= 5
    assert facts[3:].std() < 2


@pytest.mark.exact
def test_generations_hold_every_split_once_and_parents_first():
    tree = Tree(9, 16)
    generations = tree.generations
    order = torch.cat(generations).tolist()
    assert sorted(order) == list(range(len(tree.splits)))
    known = {tree.root}
    for numbers in generations:
        chosen = [tree.splits[number] for number in numbers.tolist()]
        assert {split.parent for split in chosen} <= known
        known |= {child for split in chosen for child in (split.a, split.b)}
    assert len(generations) < tree.levels


def test_families_draw_the_coarse_inner_splits_together():
    tree = Tree(9, 16)
    chosen = [tree.splits[number] for number in joint(tree).tolist()]
    assert len(chosen) == 8 + 3 * (1 + 2 + 4)
    assert max(split.ring for split in chosen) == 2
    assert joint(Tree(1, 1)).tolist() == []


def _gaussian(correlation, path):
    """Denoiser of N(0, C) in two dimensions, exactly."""
    cov = torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=torch.float64)

    def denoise(x_t, t):
        point = path.at(t)
        alpha, sigma = point.alpha, point.sigma
        gain = alpha * cov @ torch.linalg.inv(alpha**2 * cov + sigma**2 * torch.eye(2))
        return Posterior(x_t @ gain.T, x_t, point)

    return denoise


@pytest.mark.exact
@pytest.mark.parametrize("name", ["edm", "rectified", "vp"])
def test_turning_keeps_spreads_at_any_number_of_steps_and_finds_correlations(name):
    path = path_from_config(name)
    start = path.at(path.t_max)
    basis = math.hypot(start.alpha, start.sigma) * torch.eye(2, dtype=torch.float64)

    def covariance(correlation, steps):  # samples are linear in the noise
        x = Turn(steps)(_gaussian(correlation, path), basis, path=path)
        return x.T @ x

    assert torch.allclose(covariance(0.0, 1), torch.eye(2).double(), atol=1e-6)
    wanted = torch.tensor([[1.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
    errors = {
        n: (covariance(0.6, n) - wanted).abs().max().item() for n in (1, 2, 3, 4, 15, 16, 32)
    }
    assert errors[1] > errors[3] > errors[15]
    assert errors[2] > errors[4] > errors[16] > errors[32]
    assert errors[16] > 3 * errors[32]  # of second order
    assert errors[32] < 0.0012


def test_time_of_an_angle_is_that_of_its_noise():
    path = path_from_config({"name": "edm", "sigma_min": 0.01, "sigma_max": 20.0})
    for angle in (0.3, 1.2):
        point = path.at(time(path, angle))
        assert math.atan2(point.sigma, point.alpha) == pytest.approx(angle, abs=1e-6)
    assert time(path, math.pi / 2) == path.t_max


def test_a_network_along_depth_sees_neighbours_and_starts_from_nothing():
    import apps.hep_simulation.fields  # noqa: F401  registers it

    torch.manual_seed(1)
    net = build_net({"name": "depth", "width": 16, "blocks": 3, "vector_dim": 2}, (5, 1, 20))
    x = torch.randn(3, 5, 1, 20, generator=_generator(9))
    level, context = torch.zeros(3), {"vector": torch.ones(3, 2)}
    assert (net(x, level, context) == 0).all()
    for layer in (net.last, net.gate):
        torch.nn.init.normal_(layer.weight)
    found = net(x, level, context)
    assert found.shape == x.shape
    changed = x.clone()
    changed[0, 2, 0, 10] += 1.0
    moved = (net(changed, level, context) - found).abs().sum((1, 2))
    assert moved[0, 3:18].min() > 0  # 1 + 2 + 4 layers either way (and their norm: a little)
    assert (moved[1:] == 0).all()
    with pytest.raises(AleatorError, match=r"\(S, 1, L\)"):
        build_net({"name": "depth"}, (5, 3, 20))
    for wrong in ({"width": 0}, {"width": 7}, {"blocks": 0}):
        with pytest.raises(AleatorError, match="even width and at least one block"):
            build_net({"name": "depth", **wrong}, (5, 1, 20))


def _correlated(count, seed, layers=6):
    """(N, 2, 1, L): two numbers a layer that have much in common from layer to layer."""
    common = torch.randn(count, 2, 1, 1, generator=_generator(seed))
    own = torch.randn(count, 2, 1, layers, generator=_generator(seed + 1))
    return 0.9 * common + (1 - 0.9**2) ** 0.5 * own


def _fitted(model, steps):
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    model.train()
    for step in range(steps):
        loss = model.loss(_correlated(128, 10 * step), generator=_generator(step)).value.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def test_a_pupil_begins_at_one_step_of_its_teacher_and_gets_beyond_it():
    import apps.hep_simulation.fields  # noqa: F401  registers the network

    torch.manual_seed(2)
    net = {"name": "depth", "width": 32, "blocks": 2}
    common = {"event_shape": [2, 1, 6], "path": {"name": "edm", "sigma_max": 20.0}}
    teacher = build({"family": "diffusion", "net": net, "log_sigma_mean": 0.0, **common})
    pupil = build({"family": "consistency", "net": {**net, "turning": True}, **common})

    def drawn(model, sampler):
        return model.sample((1000,), sampler=sampler, generator=_generator(11))

    noise = drawn(pupil, 1)  # nothing is learnt yet: noise as it came
    assert noise.std().item() == pytest.approx(1.0, abs=0.02)
    _fitted(teacher, 250)
    pupil.denoiser.net.load_state_dict(teacher.denoiser.net.state_dict())
    object.__setattr__(pupil, "teacher", teacher)
    many, one, first = drawn(teacher, Turn(32)), drawn(teacher, Turn(1)), drawn(pupil, 1)
    far = (one - many).square().mean()
    assert (first - one).square().mean() < 0.3 * far
    near = (drawn(_fitted(pupil, 250), 1) - many).square().mean()
    assert near < 0.5 * far


def test_what_a_layer_is_told_of_its_shower():
    """Two layers of 3 and 1 MeV: shares before, what is to come, places, the total."""
    first, second = longitudinal(torch.tensor([[3.0, 1.0]], dtype=torch.float64))[0]
    middle = 0.05 / 4
    told = [0, compress(torch.tensor(1.0)), -middle, middle, compress(torch.tensor(4.0))]
    assert first.tolist() == pytest.approx([float(v) for v in told])
    told = [0.75, 0, 0.05 - middle, middle, compress(torch.tensor(4.0))]
    assert second.tolist() == pytest.approx([float(v) for v in told])
