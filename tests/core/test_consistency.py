"""Consistency models: the boundary, the exact map of a mixture, and their teacher's level."""

import math

import pytest
import torch

from core import build
from core.consistency import ConsistencyModel, Jumps
from core.diffusion import Diffusion
from core.errors import AleatorError
from core.nets import MLP
from core.random import keyed_generator
from core.training import FitConfig, fit

CONFIG = {
    "family": "consistency",
    "event_shape": [1],
    "path": {"name": "edm", "sigma_max": 20.0},
    "net": {"width": 64, "blocks": 2},
    "log_snr_max": 8.0,
}


def randomised(**changes):
    model = build({**CONFIG, **changes})
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=keyed_generator(1)))
    return model.double()


@pytest.mark.exact
@pytest.mark.parametrize("path", ["vp", "rectified", "edm", "cosine"])
def test_the_start_of_a_trajectory_is_where_it_is(path):
    """f(x, t_0) = x / α, whatever the weights."""
    model = randomised(path=path)
    x = torch.randn(6, 1, generator=keyed_generator(0), dtype=torch.float64)
    found = model.denoise(x, model.t_start).mean
    torch.testing.assert_close(found, x / model.path.at(model.t_start).alpha, rtol=0, atol=1e-9)
    assert not torch.allclose(model.denoise(x, 0.5).mean, x)


def exact_teacher(mixture, path):
    class Exact(Diffusion):
        def denoise(self, x_t, t, context=None):
            found = mixture.denoise(self.path)(x_t.double(), t)
            return type(found)(found.mean.to(x_t), x_t, self.path.at(t, x_t))

    return Exact(MLP((1,), width=4, blocks=1), (1,), path=path)


@pytest.mark.exact
def test_a_teachers_step_stays_on_the_trajectory(two_modes):
    """Both ends of a step lead to one origin by the exact quantile map."""
    student = build(CONFIG).double()
    student = ConsistencyModel(
        MLP((1,), width=4, blocks=1),
        (1,),
        path=student.path,
        teacher=exact_teacher(two_modes, student.path),
    ).double()
    x_t = torch.linspace(-3, 3, 40, dtype=torch.float64)[:, None]
    t, s = (student._time(torch.full((40,), k), 40) for k in (20.0, 19.0))
    x_s = student._teacher_step(x_t, t, s, None)
    origins = []
    for x, time in ((x_t, t), (x_s, s)):
        point = student.path.at(time[0].item())
        origins.append(two_modes.quantile_map(x, point.alpha, point.sigma))
    torch.testing.assert_close(origins[0], origins[1], rtol=0, atol=0.02)


def wasserstein(mixture, x):
    """W_1 to a one-dimensional mixture: mean distance of sorted draws from its quantiles."""
    levels = (torch.arange(len(x), dtype=torch.float64) + 0.5) / len(x)
    z = torch.special.ndtri(levels)[:, None]
    quantiles = mixture.quantile_map(1e4 * z, 0.0, 1e4)
    return (x.double().flatten().sort().values - quantiles.flatten()).abs().mean().item()


def student_of(mixture, tmp_path, teacher, steps=900):
    torch.manual_seed(0)
    options = {k: v for k, v in CONFIG.items() if k not in ("family", "net", "event_shape")}
    net = MLP((1,), **CONFIG["net"])
    model = ConsistencyModel(
        net, (1,), teacher=teacher, growth=200, last_steps=80, sigma_data=0.8, **options
    )
    train = mixture.sample(20000, keyed_generator(7)).float()

    def batches(step, generator):
        return train[torch.randint(20000, (256,), generator=generator)], None

    config = FitConfig(steps=steps, learning_rate=2e-3, validate_every=0, ema=0.99)
    return fit(model, batches, config, folder=tmp_path, progress=None, device="cpu").model


@pytest.mark.exact
def test_two_evaluations_of_a_student_are_worth_eight_of_its_teacher(two_modes, tmp_path):
    path = build(CONFIG).path
    teacher = exact_teacher(two_modes, path)
    student = student_of(two_modes, tmp_path, teacher)
    n = 20000
    by_teacher = teacher.sample(
        (n,), sampler={"name": "2m", "steps": 8}, generator=keyed_generator(1)
    )
    by_student = student.sample((n,), generator=keyed_generator(1))
    assert wasserstein(two_modes, by_student) < wasserstein(two_modes, by_teacher)
    # One evaluation approximates the probability flow's own map.
    x_t = student.prior_std * torch.randn(2000, 1, generator=keyed_generator(2))
    point = path.at(path.t_max)
    exact = two_modes.quantile_map(x_t.double(), point.alpha, point.sigma)
    one = student.denoise(x_t, path.t_max).mean.double()
    again = teacher.sampler.__class__(steps=8)
    eight = again(teacher.bind(None), x_t.double(), path=path)
    assert (one - exact).abs().mean() < 2 * (eight - exact).abs().mean()


def test_without_a_teacher_it_learns_from_examples(two_modes, tmp_path):
    model = student_of(two_modes, tmp_path, None)
    assert int(model.step) == 900
    assert model.steps_now() == 80
    drawn = model.sample((20000,), generator=keyed_generator(1))
    assert wasserstein(two_modes, drawn) < 0.1
    assert wasserstein(two_modes, torch.randn(20000, 1, generator=keyed_generator(1))) > 0.2


@pytest.mark.exact
def test_training_without_a_teacher_tends_to_distillation(two_modes):
    """The mean step of an example's own noise is the exact teacher's, as steps grow small."""
    student = build(CONFIG).double()
    path, gaps = student.path, []
    x = two_modes.sample(200000, keyed_generator(0))
    for steps in (10, 40):
        t, s = (
            student._time(torch.tensor([k * 1.0]), steps).item()
            for k in (steps * 0.6, steps * 0.6 - 1)
        )
        at, to = path.at(t), path.at(s)
        eps = torch.randn(x.shape, generator=keyed_generator(1), dtype=torch.float64)
        x_t, x_s = at.alpha * x + at.sigma * eps, to.alpha * x + to.sigma * eps
        near = (x_t - 0.3).abs() < 0.02 * at.sigma
        mean_step = (x_s - x_t)[near].mean().item()
        teacher = exact_teacher(two_modes, path).double()
        point = torch.full((1, 1), 0.3, dtype=torch.float64)
        velocity = teacher.denoise(point, t).eps.item() * (to.sigma - at.sigma)
        gaps.append(abs(mean_step - velocity) / abs(to.sigma - at.sigma))
    assert max(gaps) < 0.05


@pytest.mark.contract
def test_verbs_and_contexts():
    net = {"width": 16, "blocks": 1, "classes": 3}
    model = build({**CONFIG, "event_shape": [3], "net": net})
    label, x = torch.tensor([0, 1]), torch.randn(2, 3, generator=keyed_generator(0))
    loss = model.loss(x, label, generator=keyed_generator(1))
    assert loss.value.shape == (2,)
    assert loss.terms["steps"].tolist() == [10, 10]
    assert int(model.step) == 1
    assert model.sample((4,), label, generator=keyed_generator(2)).shape == (4, 2, 3)
    one = model.sample((4,), sampler=1, generator=keyed_generator(2))
    assert not torch.equal(one, model.sample((4,), sampler=3, generator=keyed_generator(2)))
    streams = [keyed_generator(3, k) for k in range(2)]
    whole = model.sample((1,), label, generator=streams)[0]
    alone = model.sample((1,), label[1:], generator=[keyed_generator(3, 1)])[0]
    torch.testing.assert_close(whole[1:], alone, rtol=1e-5, atol=1e-5)


def test_a_teacher_is_neither_trained_nor_stored(two_modes):
    path = build(CONFIG).path
    student = ConsistencyModel(
        MLP((1,), width=4), (1,), path=path, teacher=exact_teacher(two_modes, path)
    )
    assert not [n for n in student.state_dict() if n.startswith("teacher")]
    assert math.isclose(student.r_start, math.exp(-3.5), rel_tol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first_steps": 1}, "first_steps=1"),
        ({"prediction": "eps"}, "neither prediction nor"),
        ({"sampler": "2m"}, "a number of evaluations"),
        ({"growth": 0}, "growth=0"),
    ],
)
def test_mistakes_in_configs_are_named(change, message):
    with pytest.raises(AleatorError, match=message):
        build({**CONFIG, **change})


def test_mistakes_in_use_are_named(two_modes):
    model = build(CONFIG)
    with pytest.raises(AleatorError, match="has no log_prob: only the ends"):
        model.log_prob(torch.zeros(2, 1))
    with pytest.raises(AleatorError, match="knows no guidance"):
        model.sample((2,), guidance=object())
    with pytest.raises(AleatorError, match="steps=0"):
        Jumps(0)
    with pytest.raises(AleatorError, match=r"give path=teacher\.path"):
        ConsistencyModel(MLP((1,)), (1,), path="vp", teacher=exact_teacher(two_modes, "edm"))
