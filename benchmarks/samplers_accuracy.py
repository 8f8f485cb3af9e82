r"""How near samplers come to the exact answer, ours and those of diffusers and azula.

A sampler of an ordinary differential equation carries noise to a known place: the quantile map
F_0^{-1}(F_T(x_T)). On a mixture of two Gaussians the denoiser and that map are exact, so that
what is left is the solver's error alone.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from core.denoiser import Posterior
from core.paths import path_from_config
from core.solvers import make_sampler

VP = path_from_config("vp")
BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}  # VP in 1000 steps
NOTES: list[str] = []

OURS = [
    ("2m", {}),
    ("2m", {"grid": "asinh"}),
    ("2m", {"grid": "karras"}),
    ("unipc", {}),
    ("unipc", {"grid": "asinh"}),
    ("unipc", {"grid": "asinh", "log_snr_max": 9.0}),
    ("unipc", {"grid": "karras"}),
    ("ddim", {}),
    ("ddim", {"grid": "asinh"}),
    ("heun", {}),
    ("heun", {"grid": "asinh"}),
    ("euler", {}),
    ("euler", {"grid": "log_snr"}),
]
# diffusers: every grid that its documentation offers for the scheduler.
SIGMA_GRIDS: list[dict[str, Any]] = [
    {},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
]
MULTISTEP = [*SIGMA_GRIDS, {"timestep_spacing": "trailing"}]
DIFFUSERS = {
    "DPMSolverMultistep": [
        *MULTISTEP,
        {"use_lu_lambdas": True},
        {"use_lu_lambdas": True, "final_sigmas_type": "sigma_min"},
        {"final_sigmas_type": "sigma_min"},
        {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"},
    ],
    "UniPCMultistep": [
        *MULTISTEP,
        {"use_karras_sigmas": True, "solver_order": 3},
        {"use_exponential_sigmas": True, "solver_order": 3},
        {"use_exponential_sigmas": True, "final_sigmas_type": "sigma_min"},
    ],
    "DDIM": [{}, {"timestep_spacing": "trailing"}],
    "EulerDiscrete": [*SIGMA_GRIDS, {"timestep_spacing": "trailing"}],
    "HeunDiscrete": SIGMA_GRIDS,
}
AZULA = ["DDIM", "Euler", "Heun", "zAB", "vAB", "zEAB", "xEAB", "REAB"]


@dataclass(frozen=True)
class Mixture:
    """0.35 N(-1, 0.3²) + 0.65 N(0.7, 0.2²), noised by any α and σ; every x of any shape."""

    weights: tuple[float, ...] = (0.35, 0.65)
    means: tuple[float, ...] = (-1.0, 0.7)
    scales: tuple[float, ...] = (0.3, 0.2)

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, means and scales, (K,) each."""
        return tuple(
            torch.tensor(v, dtype=torch.float64) for v in (self.weights, self.means, self.scales)
        )  # type: ignore[return-value]

    def mean_given(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[x_0 | x_t = x]."""
        weights, means, scales = self.parts()
        variance = alpha**2 * scales**2 + sigma**2
        offset = x[..., None] - alpha * means
        share = (weights.log() - 0.5 * (offset**2 / variance + variance.log())).softmax(-1)
        return (share * (means + alpha * scales**2 / variance * offset)).sum(-1)

    def cdf(self, x: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
        """F_t(x)."""
        weights, means, scales = self.parts()
        spread = (alpha**2 * scales**2 + sigma**2).sqrt()
        return (weights * torch.special.ndtr((x[..., None] - alpha * means) / spread)).sum(-1)

    def quantile_map(self, x_t: Tensor, alpha: float, sigma: float) -> Tensor:
        """F_0^{-1}(F_t(x_t)) by bisection: where the probability flow takes x_t."""
        target = self.cdf(x_t, alpha, sigma)
        low, high = torch.full_like(x_t, -20.0), torch.full_like(x_t, 20.0)
        for _ in range(70):
            middle = (low + high) / 2
            below = self.cdf(middle) < target
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


OTHERS = {
    "the mixture of the table above": Mixture(),
    "one Gaussian, unit variance": Mixture((1.0,), (0.0,), (1.0,)),
    "three modes": Mixture((0.2, 0.5, 0.3), (-1.4, 0.0, 1.5), (0.15, 0.4, 0.1)),
    "two sharp modes": Mixture((0.5, 0.5), (-1.0, 1.0), (0.03, 0.03)),
    "a long tail": Mixture((0.6, 0.3, 0.1), (-0.5, 0.5, 2.2), (0.2, 0.5, 0.8)),
    "a spike on a wide hill": Mixture((0.5, 0.5), (-0.3, 0.3), (0.02, 1.3)),
    "the first, at 0.3 of its scale": Mixture((0.35, 0.65), (-0.3, 0.21), (0.09, 0.06)),
}


@dataclass
class Exact:
    """The exact denoiser; it remembers how often it was asked and where the walk began."""

    mixture: Mixture = field(default_factory=Mixture)
    evaluations: int = 0
    start: tuple[Tensor, float, float] | None = None

    def mean(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[x_0 | x_t]."""
        alpha, sigma, x = float(alpha), float(sigma), x.double()
        self.evaluations += 1
        self.start = self.start or (x, alpha, sigma)
        return self.mixture.mean_given(x, alpha, sigma)

    def error(self, x_0: Tensor) -> float:
        """Mean |x_0 - F_0^{-1}(F_T(x_T))|, T being the level of noise this sampler began at."""
        assert self.start is not None
        return (x_0 - self.mixture.quantile_map(*self.start)).abs().mean().item()


def quantiles(n: int) -> Tensor:
    """Standard normal noise without chance: the (i + 1/2) / n quantiles, (n,)."""
    return torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)


def our_error(
    name: str,
    options: dict[str, Any],
    budget: int,
    z: Tensor,
    mixture: Mixture = Mixture(),
) -> tuple[float, int]:
    """Error of one of our samplers with `budget` evaluations, and how many it used."""
    exact = Exact(mixture)

    def denoise(x: Tensor, t: float) -> Posterior:
        point = VP.at(t)
        return Posterior(exact.mean(x, point.alpha, point.sigma), x, point)

    sampler = make_sampler({"name": name, "steps": budget, **options})
    x_0 = sampler(denoise, VP.at(VP.t_max).sigma * z, path=VP)
    return exact.error(x_0), exact.evaluations


def diffusers_error(
    name: str, options: dict[str, Any], budget: int, z: Tensor
) -> tuple[float, int]:
    """The same for a scheduler of diffusers.

    The denoiser answers for the scheduler's own noise level, not for the whole-number time step
    that diffusers rounds it to for the network: kinder than what a network would see.
    """
    exact, scheduler = Exact(), diffusers_scheduler(name, options)
    scheduler.set_timesteps((budget + 1) // 2 if "Heun" in name else budget)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    x = z[:, None] * float(scheduler.init_noise_sigma)
    for i, t in enumerate(scheduler.timesteps):
        if hasattr(scheduler, "sigmas"):  # σ/α; what the network sees has α² + σ² = 1
            squared = 1 / (1 + float(scheduler.sigmas[i]) ** 2)
        else:
            squared = float(scheduler.alphas_cumprod[t])
        alpha, sigma = squared**0.5, (1 - squared) ** 0.5
        seen = scheduler.scale_model_input(x, t)
        eps = (seen - alpha * exact.mean(seen, alpha, sigma)) / sigma
        x = scheduler.step(eps, t, x).prev_sample
    return exact.error(x), exact.evaluations


def azula_error(name: str, schedule: str, budget: int, z: Tensor) -> tuple[float, int]:
    """The same for a sampler of azula, on one of its schedules."""
    azula = load_azula()
    exact = Exact()

    class Denoiser(azula.denoise.Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = getattr(azula.noise, schedule)()

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
            return azula.denoise.DiracPosterior(exact.mean(x_t, *self.schedule(t)))

    denoiser = Denoiser()
    steps = budget // 2 if name == "Heun" else budget
    sampler = getattr(azula.sample, f"{name}Sampler")(
        denoiser, steps=steps, silent=True, dtype=torch.float64
    )
    x_t = z * float(denoiser.schedule(torch.ones((), dtype=torch.float64))[1])
    return exact.error(sampler(x_t)), exact.evaluations


def accuracy(budgets: tuple[int, ...], points: int = 4000) -> list[dict[str, Any]]:
    """Errors of all samplers, one row each, keyed e8, e12, ..."""
    z = quantiles(points)
    cases: list[tuple[str, str, str, Callable[..., tuple[float, int]], Any]] = [
        ("aleator", name, words(options), our_error, options) for name, options in OURS
    ]
    if load_diffusers():
        cases += [
            ("diffusers", name, words(o), diffusers_error, o)
            for name, grids in DIFFUSERS.items()
            for o in grids
        ]
    if load_azula():
        schedules = ("VPSchedule", "CosineSchedule")
        cases += [("azula", n, s, azula_error, s) for n in AZULA for s in schedules]
    rows = []
    for library, name, shown, run, options in cases:
        row: dict[str, Any] = {"library": library, "sampler": name, "options": shown}
        for budget in budgets:
            try:
                row[f"e{budget}"], used = run(name, options, budget, z)
            except Exception as error:
                NOTES.append(f"{library} {name} {shown}, {budget} evaluations: {error!r}"[:300])
                continue
            assert budget - 1 <= used <= budget, (library, name, shown, budget, used)
        rows.append(row)
    return rows


def other_data(budget: int, points: int = 4000) -> list[dict[str, Any]]:
    """Is a good grid good on one mixture only? Errors of our grids on others, one row each."""
    z, rows = quantiles(points), []
    for title, mixture in OTHERS.items():
        row: dict[str, Any] = {"data": title}
        for name in ("2m", "unipc"):
            for grid in ("log_snr", "asinh", "karras"):
                row[f"{name} {grid}"], _ = our_error(name, {"grid": grid}, budget, z, mixture)
        rows.append(row)
    return rows


def words(options: dict[str, Any]) -> str:
    """Options in a table cell: a switch by its name, anything else as name=value."""
    said = [k if v is True else f"{k}={v}" for k, v in options.items()]
    return ", ".join(said) or "default"


def load_diffusers() -> Any:
    """diffusers, or None with a note."""
    try:
        import diffusers
    except ImportError as error:
        note(f"diffusers is left out ({error}); pip install 'aleator[bench]'")
        return None
    diffusers.logging.set_verbosity_error()
    return diffusers


def diffusers_scheduler(name: str, options: dict[str, Any]) -> Any:
    """A scheduler on the linear VP schedule; nothing clipped, as the truth leaves [-1, 1]."""
    clip = {"clip_sample": False} if name in ("DDIM", "DDPM") else {}
    return getattr(load_diffusers(), f"{name}Scheduler")(**{**BETAS, **clip, **options})


def load_azula() -> Any:
    """azula, or None with a note; where torchvision breaks it, an empty module stands in."""
    for _ in range(2):
        try:
            return importlib.import_module("azula.sample") and importlib.import_module("azula")
        except ImportError as error:
            note(f"azula is left out ({error}); pip install 'aleator[bench]'")
            return None
        except RuntimeError as error:  # torchvision is there, but built for another torch
            empty = types.ModuleType("torchvision")
            empty.__spec__ = importlib.machinery.ModuleSpec("torchvision", None)
            sys.modules["torchvision"] = empty
            note(f"torchvision does not load ({error}): an empty module stands in for it")
    return None


def note(text: str) -> None:
    """Remember something that the tables' reader must know, once."""
    if text not in NOTES:
        NOTES.append(text)
